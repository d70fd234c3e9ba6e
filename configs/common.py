"""What every config shares: the argument parser, dataset presets and the base block.

A config file is a function ``get_config(arg)`` that returns a `ml_collections.ConfigDict`. ``arg`` is what stands after the
colon of ``--config=configs/x.py:dataset=market1501,stride=12``.
"""

from __future__ import annotations

import ml_collections
from ml_collections import config_dict

# name -> picture size, and where the pictures lie below data.root. "identities", "cameras" and "images" are the published numbers
# of the training set (of "synthetic" those of the size demo, of "folder" made-up ones); a run takes the numbers it finds, these
# serve checks and estimates that have no pictures.
DATASETS = {
    "synthetic": dict(image_size=(128, 64), identities=64, cameras=6, images=1024),
    "market1501": dict(image_size=(256, 128), identities=751, cameras=6, images=12936),
    "dukemtmc": dict(image_size=(256, 128), identities=702, cameras=8, images=16522),
    "occluded_duke": dict(image_size=(256, 128), identities=702, cameras=8, images=15618),
    "occluded_reid": dict(image_size=(256, 128), identities=751, cameras=6, images=12936),  # trained on Market-1501
    "occluded_market": dict(image_size=(256, 128), identities=780, cameras=6, images=9287),
    "p_dukemtmc": dict(image_size=(256, 128), identities=665, cameras=0, images=12927),
    "partial_reid": dict(image_size=(256, 128), identities=751, cameras=6, images=12936),  # trained on Market-1501
    "msmt17": dict(image_size=(256, 128), identities=1041, cameras=15, images=32621),
    "folder": dict(image_size=(256, 128), identities=100, cameras=2, images=1000),
}
SMALL_IMAGE = (128, 64)  # of own pictures with size=small, for which the tiny CLIPs are made


GRIDS = {"coarse": 16, "fine": 8}
"""Side of a patch in pixels on the embedded benchmark's small pictures: "coarse" cuts 8x4 patches, "fine" the papers' 16x8."""
TINY = {"coarse": "clip_tiny", "fine": "clip_tiny_fine"}
"""The backbone of each grid whose weights ship with the package."""
SHIPPED = {"clip_tiny": "tiny_clip", "clip_tiny_fine": "tiny_clip_fine"}
"""The weights of each backbone that has some; docs/tiny_clip.md."""
EPOCHS = {  # of small encoders, by their start; on the fine grid a step costs three times as much and the start is better
    "tiny_clip": {"demo": 20, "small": 8}, "tiny_clip_fine": {"demo": 12, "small": 6}, "nothing": {"demo": 30, "small": 12},
}  # fmt: skip
TWIN_EPOCHS = {  # for twins
    "tiny_clip": {"demo": 12, "small": 6}, "tiny_clip_fine": {"demo": 8, "small": 4}, "nothing": {"demo": 18, "small": 9},
}  # fmt: skip
OWN_EPOCHS = 40


def parse_arg(arg: str | None, **defaults) -> ml_collections.ConfigDict:
    """`read_arg` as a ConfigDict."""
    return ml_collections.ConfigDict(read_arg(arg, defaults))


def read_arg(arg: str | None, defaults: dict) -> dict:
    """Reads "key=value,flag" into typed values; the defaults name the legal keys and give each its type.

    Raises ValueError, in one line, for an unknown key or a value of the wrong type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults:
            raise ValueError(f"unknown config argument '{key}'; this config knows {', '.join(sorted(defaults))}")
        default = defaults[key]
        if isinstance(default, bool):
            value = {"": True, "true": True, "false": False}.get(text.lower()) if equals or not text else None
        elif isinstance(default, int):
            value = int(text) if text.lstrip("-").isdigit() else None
        elif isinstance(default, float):
            try:
                value = float(text)
            except ValueError:
                value = None
        else:
            value = text or None
        if value is None:
            raise ValueError(f"config argument '{item}' should look like {key}={default}")
        values[key] = value
    return values


def patch_side(arg: ml_collections.ConfigDict, config: ml_collections.ConfigDict) -> int:
    """Side of a patch in pixels by the argument "grid", which is for the small rendered pictures; ValueError for another grid."""
    if arg.grid not in GRIDS:
        raise ValueError(f"unknown grid '{arg.grid}'; known: {', '.join(GRIDS)}")
    if arg.grid == "fine" and not is_small(config):
        raise ValueError("grid=fine is for the small pictures of the embedded benchmark; others have as many patches without it")
    return GRIDS[arg.grid] if is_small(config) else 16


def base(arg: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Seed, data, evaluation, checkpoints and logging. ``arg`` holds dataset, size, split (the last two for synthetic)."""
    if arg.dataset not in DATASETS:
        raise ValueError(f"unknown dataset '{arg.dataset}'; known: {', '.join(sorted(DATASETS))}")
    synthetic, own = arg.dataset == "synthetic", arg.dataset == "folder" and arg.size == "small"
    preset = DATASETS[arg.dataset]
    full_size = synthetic and arg.size == "full"
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.dtype = "auto"  # float32 | bfloat16; auto is bfloat16 on accelerators and float32 on CPUs
    # Of image transformers (occreid_jax/nn/attention.py): auto is cuDNN's fused attention in bfloat16 on GPUs that have it, whose
    # gradients add up in no fixed order; on TPUs the class token apart from 128 or 256 patches, with 32 pictures a chip or more;
    # XLA's everywhere else. xla is XLA's everywhere, apart what TPUs get
    config.attention = "auto"
    config.data = dict(
        name=arg.dataset,
        root="data",  # where real datasets lie; the environment variable OCCREID_DATA wins over this default
        cache="",  # decoded tables; empty: <root>/.tables
        size=arg.size if synthetic or own else "",
        split=arg.split if synthetic else "",
        synthetic_seed=0,
        protocol="",  # which of a dataset's protocols (docs/datasets.md); empty: its first
        trial=0,  # the protocol half100 of occluded_reid: which half of the identities is drawn
        camera="none",  # folder datasets: "none" or "name" (a _c<number> in the file name)
        image_size=(256, 128) if full_size else SMALL_IMAGE if own else preset["image_size"],
        train_filter="bicubic",  # the originals train on bicubic and test on bilinear pictures
        test_filter="bilinear",
        resident="auto",  # keep the training table in device memory: auto | always | never (stream it through Grain)
        occluders="",  # folder of a library of occluders (launch/prepare_data.py occluders); empty: a rendered one
        parsing="",  # folder of body-part labels for methods that read them; empty: the renderer's; none: no labels at all
        parsing_format="auto",  # auto | fields (BPBreID's .npy) | label_map (.png, our numbers) | lip | atr (theirs)
        occluder_people=0,  # people in the rendered library, beside its 540 objects
        occluder_frames=False,  # the library holds whole frames, in which occluders keep place and size (--kind=overlay)
    )
    config.mesh = dict(
        devices=0,  # 0: all devices
        shard_optimizer=False,  # each device keeps and updates its piece of the optimiser's state, instead of all of it
        overlap=False,  # TPUs: gradients are summed over the devices beside the backward pass, not after it
    )
    config.loop = dict(
        steps_per_call=1,  # training steps in one call of the jitted step; raise it when a step takes less than 5 ms
        accumulate=1,  # batches whose gradients are averaged into one update
        log_every=10,  # calls between two lines of metrics
    )
    config.checkpoint = dict(every_epochs=1, keep=2)
    config.evaluation = dict(
        every_epochs=0,  # 0: only before the first and after the last epoch
        batch_size=128,
        camera="auto",  # which vector test pictures get: auto | own | mean | zero | number | dpm | pvpm (occreid_jax/cameras.py)
        flip=False,  # average the features of a picture and of its mirror image
        rerank="",  # "k1,k2,lambda" such as "20,6,0.3": k-reciprocal re-ranking of the distances
        expansion="",  # "k,alpha" such as "5,3": average query expansion of the features
        untrained=True,  # evaluate once before training
    )
    config.init = dict(
        weights="",  # file of pretrained encoder weights
        run="",  # run folder whose last parameters to start from
        skip=r"(^|/)classifier[^/]*/|camera_embed",  # parameters that init.run may leave at their initial values
    )
    config.report = dict(
        enabled=True,
        queries=12,
        samples=16,
        gradcam=False,  # maps of where the evidence for a query's person lies, beside what the method shows of queries
    )
    return config


def encoder(arg: ml_collections.ConfigDict, config: ml_collections.ConfigDict) -> dict:
    """Settings of the ViT of a method. ``arg`` holds backbone, stride, grid, camera and pretrained.

    Pictures of 256 pixels get ViT-B; smaller ones the tiny CLIP that ships with the package, or with ``pretrained=false`` a small
    encoder that starts from nothing.
    """
    full_size = max(config.data.image_size) >= 256
    patch = patch_side(arg, config)
    backbone = arg.backbone or ("base" if full_size else TINY[arg.grid] if arg.pretrained else "demo")
    return dict(
        backbone=backbone,  # also WIDTHxDEPTHxHEADS, or clip_ and one of CLIP's networks
        patch=patch,
        stride=arg.stride or patch,
        camera=arg.camera,  # side information embedding: one learned vector per camera on every token
        camera_scale=3.0,
        drop_path=0.1 if full_size else 0.0,
        dropout=0.0,
        attention_dropout=0.0,
        positions=True,
        registers=0,  # learned tokens beside the patches that only the encoder's blocks see
        from_scratch=not full_size and backbone not in SHIPPED,  # initial values for learning without pretrained weights
        remat=False,
    )


def vit_method(name: str, arg: ml_collections.ConfigDict, config: ml_collections.ConfigDict, **changes) -> dict:
    """Settings of a ViT with BNNeck, identity loss and triplet. ``arg`` holds person_mask and what `encoder` reads.

    The recipe is the published one; `finish_small` changes it for small pictures.
    """
    values = encoder(arg, config) | dict(
        name=name,
        label_smoothing=0.0,
        identity_loss="softmax",  # softmax | arcface | cosface | amsoftmax | circle
        cosine_scale=30.0,  # of the last four
        cosine_margin=0.5,
        margin=config_dict.placeholder(float),  # of the triplet loss; unset: the soft margin
        triplet_feature="before",  # the side of the neck that the triplet loss compares: before | after
        test_feature="before",  # the side that query and gallery are compared on
        identity_weight=1.0,
        triplet_weight=1.0,
        person_mask=arg.person_mask,  # oracle: show the network only the visible person (needs ground truth)
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    return values | changes


def finish_small(config: ml_collections.ConfigDict, arg: ml_collections.ConfigDict) -> None:
    """Changes the one-stage recipe of a ViT for the small rendered pictures, in place; others keep the published one.

    A batch-hard loss before the neck would pull all features together before they tell anything apart, and SGD is too slow for
    a transformer that has to learn much in minutes.
    """
    if not is_small(config):
        return
    config.method.update(triplet_feature="after", test_feature="after", label_smoothing=0.1)
    small_stage(config, arg)


def small_stage(config: ml_collections.ConfigDict, arg: ml_collections.ConfigDict, twins: bool = False) -> None:
    """Batches, augmentation, epochs, optimiser and start of the stage "main" for the small rendered pictures, in place.

    ``twins``: every picture passes the encoder twice, clean and occluded.
    """
    main, start = config.stages.main, SHIPPED.get(config.method.backbone, "")
    main.sampler = identity_sampler(8, 4)
    main.augment.pad = 5
    main.epochs = (TWIN_EPOCHS if twins else EPOCHS)[start or "nothing"].get(arg.size, 8)
    if config.data.name == "folder":
        main.epochs = OWN_EPOCHS  # a few hundred pictures make a few steps an epoch; lower it for thousands
    main.optimizer = small_optimizer(bool(start))
    config.init.weights = start


def small_optimizer(pretrained: bool, warmup_epochs: int = 2) -> dict:
    """AdamW at a rate with which a small encoder learns in minutes: more from nothing than from the tiny CLIP."""
    return adam(
        name="adamw",
        learning_rate=5e-4 if pretrained else 1e-3,
        weight_decay=0.05,
        bias_weight_decay=0.0,
        schedule=dict(name="cosine", warmup_epochs=warmup_epochs, warmup_start=1e-5, floor=1e-5),
    )


def change(config: ml_collections.ConfigDict, changes: dict, stages: tuple[str, ...] = ("main",)) -> None:
    """Applies a row of an ablation table, in place: ``erasing``, ``jitter`` and ``occlusion.*`` belong to the augmentation of the
    named stages, everything else (dotted) to ``config.method``."""
    for key, value in changes.items():
        if key in ("erasing", "jitter") or key.startswith("occlusion."):
            for name in stages:
                config.stages[name].augment.update_from_flattened_dict({key: value})
        else:
            config.method.update_from_flattened_dict({key: value})


def is_small(config: ml_collections.ConfigDict) -> bool:
    """Whether this is something that a laptop trains in minutes: the embedded benchmark at a small size, or own pictures with
    ``size=small``."""
    return config.data.name in ("synthetic", "folder") and max(config.data.image_size) < 256


def sgd(**changes) -> dict:
    """SGD as in TransReID: momentum 0.9, coupled decay on every parameter, biases at twice the rate, cosine by epochs."""
    values = dict(
        name="sgd",
        learning_rate=0.008,
        momentum=0.9,
        weight_decay=1e-4,
        bias_factor=2.0,  # learning rate of parameters whose name contains "bias"
        bias_weight_decay=1e-4,
        clip_norm=0.0,  # 0: off
        schedule=dict(name="cosine", warmup_epochs=5, warmup_start=8e-5, floor=1.6e-5),
        groups=(),  # (path regex, learning-rate factor) pairs, the first match counts
    )
    return values | changes


def adam(**changes) -> dict:
    """Adam with coupled decay (torch's weight_decay, not AdamW)."""
    values = sgd(name="adam", learning_rate=1e-4, bias_factor=1.0, schedule=dict(name="constant"))
    del values["momentum"]
    return values | changes


def identity_sampler(identities: int = 16, images: int = 4) -> dict:
    """P x K sampling: ``identities`` people with ``images`` pictures each."""
    return dict(name="identity", batch_size=identities * images, images_per_identity=images)


def standard_augment(**changes) -> dict:
    """Flip, pad 10 and crop, random erasing, as in all baselines."""
    return dict(flip=0.5, pad=10, jitter=(0.0, 0.0, 0.0, 0.0), erasing=0.5) | changes
