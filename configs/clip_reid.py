"""CLIP-ReID: learned prompts for every identity, then the image encoder fine-tuned towards their texts.

    python launch/train.py --config=configs/clip_reid.py                                 embedded benchmark, demo size
    python launch/train.py --config=configs/clip_reid.py:size=small                      embedded benchmark, small
    python launch/train.py --config=configs/clip_reid.py:grid=fine                       patches of 8 pixels in place of 16
    python launch/train.py --config=configs/clip_reid.py:dataset=market1501 \
        --config.data.root=DIR --config.init.weights=DIR                                 the published recipe, ViT-B/16
    python launch/train.py --config=configs/clip_reid.py:dataset=market1501,backbone=rn50 ...     with the ResNet-50

``text=false`` is the one-stage CLIP baseline; ``camera`` and ``stride=12`` are the paper's SIE and OLP. The weights are those
that launch/port_weights.py makes from CLIP (docs/porting.md).
Published: Market-1501 mAP 89.6, R-1 95.5 (ViT), 90.5, 95.4 (with SIE and OLP), 89.8, 95.7 (ResNet-50). The embedded benchmark's
measured figures stand in docs/results.md.
"""

from configs import common

EPOCHS = {"demo": (40, 20), "small": (15, 8)}  # of prompts and of fine-tuning, on the embedded benchmark
FINE_EPOCHS = {"demo": (40, 12), "small": (15, 6)}  # on its fine grid


def get_config(arg: str = ""):
    arg = common.parse_arg(
        arg, dataset="synthetic", size="demo", split="occluded", backbone="", stride=0, grid="coarse", camera=False, text=True
    )
    config = common.base(arg)
    full_size = max(config.data.image_size) >= 256
    patch = common.patch_side(arg, config)
    backbone = arg.backbone or ("vit_b16" if full_size else common.TINY[arg.grid].removeprefix("clip_"))
    resnet = backbone.endswith(("rn50", "resnet"))
    config.method = dict(
        name="clip_reid",
        backbone=backbone,  # of CLIP: vit_b16 | rn50 | vit_b32 | vit_l14 | tiny | tiny_fine
        stride=arg.stride or patch,  # ViT only; 12 is the paper's OLP
        camera=arg.camera,  # one learned vector per camera on the cls token (SIE); ViT only
        camera_scale=1.0,
        registers=0,  # learned tokens beside the patches that only the encoder's blocks see; ViT only
        remat=False,
        text=arg.text,  # False: one stage, no prompts, no text (the CLIP baseline)
        words=4,  # learned for every identity
        held_out=0.0,  # share of images that the first stage leaves out, to watch its accuracy on them
        label_smoothing=0.1,
        margin=0.3,
        identity_weight=0.25 if arg.text and not resnet else 1.0,
        triplet_weight=1.0,
        image_text_weight=1.0,
        test_feature="before",  # the side of the necks: before | after
        mean=(0.485, 0.456, 0.406) if resnet else (0.5, 0.5, 0.5),
        std=(0.229, 0.224, 0.225) if resnet else (0.5, 0.5, 0.5),
    )
    prompts = dict(
        epochs=60 if resnet else 120,
        sampler=dict(name="uniform", batch_size=64, remainder="pad"),
        optimizer=common.adam(
            learning_rate=3.5e-4,
            schedule=dict(name="cosine", warmup_epochs=5, warmup_start=1e-5, floor=1e-6),
        ),
    )
    finetune = dict(
        epochs=120 if resnet else 60,
        sampler=common.identity_sampler(),
        augment=common.standard_augment(),
        optimizer=common.adam(
            learning_rate=3.5e-4 if resnet else 5e-6,
            bias_factor=2.0,
            weight_decay=5e-4 if resnet else 1e-4,
            bias_weight_decay=5e-4 if resnet else 1e-4,
            schedule=dict(
                name="multistep",
                milestones=(40, 70) if resnet else (30, 50),
                gamma=0.1,
                warmup_epochs=10,
                warmup_factor=0.01 if resnet else 0.1,
            ),
        ),
    )
    config.stages = dict(prompts=prompts, finetune=finetune) if arg.text else dict(finetune=finetune)
    if common.is_small(config):
        finish_small(config, arg)
    return config


def finish_small(config, arg) -> None:
    """Changes the recipe for the small rendered pictures and the tiny CLIP, in place: fewer epochs, so higher rates."""
    epochs = (FINE_EPOCHS if arg.grid == "fine" else EPOCHS).get(arg.size, (15, 8))
    if arg.text:
        prompts = config.stages.prompts
        prompts.epochs = epochs[0]
        prompts.optimizer.update(
            learning_rate=3e-3, schedule=dict(name="cosine", warmup_epochs=2, warmup_start=1e-4, floor=1e-5)
        )
    finetune = config.stages.finetune
    finetune.epochs = epochs[1]
    finetune.sampler = common.identity_sampler(8, 4)
    finetune.augment.pad = 5
    finetune.optimizer = common.small_optimizer(pretrained=True)
    config.method.test_feature = "after"
    config.init.weights = common.SHIPPED.get(f"clip_{config.method.backbone}", "")
