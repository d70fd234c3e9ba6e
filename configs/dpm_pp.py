"""DPM++: prompts, then salient patch selection, then masked prototypes on samples with transferred patches.

    python launch/train.py --config=configs/dpm_pp.py                                    embedded benchmark, demo size
    python launch/train.py --config=configs/dpm_pp.py:size=small                         embedded benchmark, small
    python launch/train.py --config=configs/dpm_pp.py:grid=fine                          patches of 8 pixels in place of 16
    python launch/train.py --config=configs/dpm_pp.py:dataset=occluded_duke \
        --config.data.root=DIR --config.init.weights=DIR                                 the published recipe, CLIP ViT-B/16
    python launch/train.py --config=configs/dpm_pp.py:dataset=occluded_duke,backbone=base ...    with an ImageNet ViT-B/16

Datasets with a recipe: occluded_duke, market1501, dukemtmc, occluded_reid (trained on Market-1501). ``row=NAME`` is a row of the
paper's ablation tables, see `ROWS`; ``recipe=dpm`` and ``recipe=spt`` are the two predecessors as their code trains them,
``recipe=dpm_spt`` is DPM on SPT's samples, as published before DPM++;
``learn_selection=false`` leaves the second stage out and takes its network from ``--config.init.weights=CLIP,SELECTION``. The
weights are those that launch/port_weights.py makes from CLIP or from an ImageNet ViT (docs/porting.md).
Published (R-1 / mAP): Occluded-Duke 76.9 / 67.2, Occluded-REID 95.4 / 91.8, Market-1501 96.1 / 91.2, DukeMTMC-reID 91.4 / 83.9
with CLIP; Occluded-Duke 74.7 / 63.0 with the ImageNet ViT. The embedded benchmark's measured figures stand in docs/results.md.
"""

from ml_collections import config_dict

from configs import common

EPOCHS = {"demo": (20, 4, 10), "small": (10, 3, 6)}  # of the three stages, on the embedded benchmark
SMALL_HEADS = dict(learning_rate=1e-2, weight_decay=0.0)
"""Of prototypes on the embedded benchmark, 20 times the encoder's rate (published: 70 times): at one rate for all they stay where
they start."""
SMALL_DECISION = {"coarse": 8e-3, "fine": 2e-3}
"""Rate of the selection network's last layer, by grid: at the published one its sigmoid saturates on the fine one in 40 steps."""

OFF = {"transfer.on": False, "mask": False, "head_weight": 0.0}
ROWS = {
    # Table III: what each part brings. "+ DPM" is a mask from the last block alone, without head enrichment.
    "baseline": OFF,
    "spt": OFF | {"transfer.on": True, "transfer.partners": "random"},
    "spt_oiou": OFF | {"transfer.on": True, "transfer.rolling": False},
    "spt_oiou_rolling": OFF | {"transfer.on": True},
    "dpm": OFF | {"mask": True, "mask_levels": (12,)},
    "dpm_hmg": OFF | {"mask": True},
    "dpm_hmg_hem": OFF | {"mask": True, "head_weight": 0.1},
    "full": {},
    # Table IV: where the mask is applied, without transfer. Its columns are lost in the text: docs/methods/dpm_pp.md.
    "feature_before": {"transfer.on": False, "mask_side": "feature", "mask_order": "before"},
    "prototype_before": {"transfer.on": False, "mask_side": "prototype", "mask_order": "before"},
    "both_before": {"transfer.on": False, "mask_side": "both", "mask_order": "before"},
    "feature_after": {"transfer.on": False, "mask_side": "feature", "mask_order": "after"},
    "prototype_after": {"transfer.on": False, "mask_side": "prototype", "mask_order": "after"},
    "both_after": {"transfer.on": False, "mask_side": "both", "mask_order": "after"},
    # Table V: weights of the masked identity loss (lambda 1) and of head enrichment (lambda 2), without transfer.
    "masked_0": {"transfer.on": False, "masked_weight": 0.0},
    "masked_0.5": {"transfer.on": False, "masked_weight": 0.5},
    "masked_1": {"transfer.on": False},
    "masked_1.5": {"transfer.on": False, "masked_weight": 1.5},
    "head_0": {"transfer.on": False, "head_weight": 0.0},
    "head_0.1": {"transfer.on": False},
    # Table VI: masked prototypes. The paper does not say whether "without" means without a mask at test time only.
    "unmasked": {"mask": False},
    "unmasked_test": {"test_mask": False},
    "unit_mask": {"unit_mask": True},  # the masked branch stays with masks of ones: what its margin does alone
    "visual_prototypes": {},
    "text_prototypes": {"mask_space": "text"},
    # Table VII: random erasing and transfer, without masks.
    "erasing": OFF,
    "transfer": OFF | {"transfer.on": True, "erasing": 0.0},
    "erasing_transfer": OFF | {"transfer.on": True},
}
"""Rows of Tables III to VII as changes of ``config.method`` (and ``erasing``, the probability of random erasing).

Not runnable, since the text of the paper lost their values: Table V, rows 2 and 4 of lambda 2 (values unknown; row 1 taken as
0), the grid of Figure 5 (thresholds of OIoU and rolling), and the binary gates of Eq. 21 other than blocks 2, 4, 10, 12.
"""
RECIPES = ("dpm_pp", "dpm", "spt", "dpm_spt")
SHORT = {"market1501": 50, "occluded_reid": 50}  # epochs of DPM's own recipe where it is not 150


def get_config(arg: str = ""):
    arg = common.parse_arg(
        arg,
        dataset="synthetic", size="demo", split="occluded", backbone="", stride=0, grid="coarse", camera=True, text=True,
        recipe="dpm_pp", row="", pretrained=True, learn_selection=True, triplet="hinge",
    )  # fmt: skip
    if arg.recipe not in RECIPES:
        raise ValueError(f"unknown recipe '{arg.recipe}'; known: {', '.join(RECIPES)}")
    if arg.triplet not in ("hinge", "soft"):
        raise ValueError(f"unknown triplet '{arg.triplet}'; it is hinge or soft")
    if arg.row and arg.row not in ROWS:
        raise ValueError(f"unknown row '{arg.row}'; known: {', '.join(ROWS)}")
    config = common.base(arg)
    small, patch = common.is_small(config), common.patch_side(arg, config)
    predecessor = arg.recipe != "dpm_pp"
    full_clip = "base" if predecessor else "clip_vit_b16"
    backbone = arg.backbone or (common.TINY[arg.grid] if small and arg.pretrained else "demo" if small else full_clip)
    is_clip = backbone.startswith("clip_")
    hard = arg.dataset == "occluded_duke" or arg.dataset == "synthetic"
    config.method = dict(
        name="dpm_pp",
        backbone=backbone,  # clip_vit_b16 | clip_tiny ... with CLIP's image tower; base | small | demo ... without texts
        patch=patch,
        stride=arg.stride or (patch if small else 12),
        camera=arg.camera,  # one learned vector per camera, in the third stage alone (SIE)
        camera_scale=1.0 if is_clip else 3.0,
        camera_tokens="cls" if is_clip else "all",
        drop_path=0.0 if is_clip or small else 0.1,
        dropout=0.0,
        attention_dropout=0.0,
        positions=True,
        registers=0,  # learned tokens beside the patches that only the encoder's blocks see
        from_scratch=small and not is_clip,
        remat=False,
        text=arg.text and is_clip and not predecessor,  # prompts, and anchors made of them
        words=4,  # learned for every identity
        held_out=0.0,  # share of images that the first stage leaves out, to watch its accuracy on them
        anchor_weight=1.0,
        anchor_epochs=0,  # of the third stage that the anchors act in; 0: all
        anchor_logits="product",  # product | cosine (times 100)
        prototype_start="xavier",  # of the third stage: xavier | means (of the identities' features)
        identity_weight=1.0,
        label_smoothing=0.1,  # of the identity and anchor losses
        masked_weight=1.0,  # lambda 1
        masked_smoothing=0.0,
        masked_feature="after",  # the side of the neck that the masked branch is trained on: before | after
        triplet_weight=1.0,
        margin=config_dict.placeholder(float),  # of the triplet loss; unset (triplet=soft): the soft margin
        clip_reid_heads=False,  # CLIP-ReID's second identity head and its two further triplets
        mask=True,  # masked prototypes
        unit_mask=False,  # the masked branch with masks of ones: its margin alone
        mask_levels=(2, 4, 10, 12),  # blocks of 12 that the generator reads; other depths keep the relative depth
        mask_pooling="max" if predecessor else "mean",  # of the last map: max (DPM's code) | mean (paper)
        mask_level_norm=False,  # a LayerNorm for each level first
        mask_space="visual",  # what is masked: visual prototypes | text (the anchors, in CLIP's space)
        mask_side="prototype",  # prototype | feature | both
        mask_order="before",  # the mask comes before or after the rows are brought to unit length
        cosine_scale=30.0,  # of the masked branch
        cosine_margin=0.5 if hard else 0.3,  # angle in radians
        beyond="linear",  # what the margin does beyond pi - margin: linear | wrap
        head_weight=0.1,  # lambda 2
        head_reduction="mean",  # mean | official (sum over the batch / heads^2)
        head_softmax=False,  # compare the heads after the softmax instead of before
        alternating=False,  # the mask generator is updated in a pass of its own, as DPM does
        test_mask=True,  # the gallery is seen through each query's mask
        test_feature="before",  # the side of the neck that is compared: before | after
        test_projected=False,  # append the feature in CLIP's text space
        transfer=dict(
            on=True,  # patch transfer, and the selection stage that it needs
            probability=0.5,
            partners="best",  # best | official | random
            threshold=0.7,  # of OIoU
            threshold_on="unrolled",  # unrolled | rolled
            rolling=True,
            roll_step=1,  # patches
            rolling_threshold=0.0,
            top_share=0.1,  # of the candidates, the best
            among=64,  # candidates: a larger batch is cut into equal shares of so many or fewer; 0: the whole batch
            exclude_same_identity=False,
            least_area=0.0,  # share of a partner's patches that must be salient
            hole_of="partner",  # whose salient patches the image is shown through: partner | target
            fallback="none",  # none | first (the official code takes the best pair at any score)
            ignore_identity=True,  # the partner's identity counts in no cross entropy
            ignore_negatives="symmetric",  # nor as a negative: symmetric | anchor | none
        ),
        selection=dict(
            stride=0,  # 0: that of the encoder
            levels=(2, 4, 10, 12),
            level_norm=False,  # a LayerNorm for each level first
            detach=True,  # no gradient from the decision layer into the features that it reads
            masking="scale",  # tokens of the second pass are scaled by saliency: scale | keep (0 or 1, straight-through)
            identity_weight=1.0,
            masked_weight=1.0,
            triplet_weight=1.0,
            margin=config_dict.placeholder(float),  # this and the smoothing: those of the stage that uses the network (paper)
            label_smoothing=0.0 if predecessor else 0.1,
            budget_weight=50.0,
            budget_share=0.3,
            budget_over="batch",  # batch | image
            overlap_weight=0.1,
        ),
        # What is salient for the transfer: learned (the selection network) | random | constant (the mean of the truth) | truth
        # (the visible person, from the renderer)
        location=dict(train="learned"),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    if not predecessor and arg.triplet == "hinge":
        config.method.margin = config.method.selection.margin = 0.3
    config.stages = published_stages()
    if predecessor:
        finish_predecessor(config, arg)
    if small:
        finish_small(config, arg)
    if not config.method.text:
        del config.stages["prompts"]
    common.change(config, ROWS.get(arg.row, {}), ("selection", "metric"))
    if not (config.method.transfer.on and arg.learn_selection):
        del config.stages["selection"]
    return config


def published_stages() -> dict:
    """The three stages with CLIP: what the paper states, and CLIP-ReID's and SPT's values where it is silent."""
    slow = common.adam(learning_rate=5e-6, bias_factor=2.0)
    steps = dict(name="multistep", milestones=(20, 40), gamma=0.1, warmup_epochs=10, warmup_factor=0.1)

    def cosine(rate: float) -> dict:
        return dict(name="cosine", warmup_epochs=5, warmup_start=0.01 * rate, floor=0.002 * rate)

    return dict(
        prompts=dict(
            epochs=100,
            sampler=dict(name="uniform", batch_size=64, remainder="pad"),
            optimizer=common.adam(
                learning_rate=3.5e-4,
                schedule=dict(name="cosine", warmup_epochs=5, warmup_start=1e-5, floor=1e-6),
            ),
        ),
        selection=dict(
            epochs=60,
            sampler=common.identity_sampler(),
            augment=common.standard_augment(),
            optimizer=slow | dict(schedule=cosine(5e-6)),
            decision_optimizer=common.sgd(schedule=cosine(0.008)),
        ),
        metric=dict(
            epochs=60,
            sampler=common.identity_sampler(),
            augment=common.standard_augment(),
            optimizer=slow | dict(schedule=dict(steps)),
            head_optimizer=common.adam(learning_rate=3.5e-4, bias_factor=2.0, schedule=dict(steps)),
            mask_optimizer=common.adam(learning_rate=3.5e-4, bias_factor=2.0, schedule=dict(steps)),
        ),
    )


def finish_predecessor(config, arg) -> None:
    """Changes the recipe to that of DPM or SPT as their code trains, or of DPM on SPT's samples, in place: SGD, soft triplet, no
    texts."""
    method, stages = config.method, config.stages
    dpm, spt, small = arg.recipe != "spt", arg.recipe != "dpm", common.is_small(config)
    epochs = SHORT.get(arg.dataset, 150) if dpm else 120
    method.update(label_smoothing=0.0, camera=arg.camera and dpm)
    if dpm:
        method.update(
            stride=arg.stride or (method.patch if small else 11 if arg.dataset == "occluded_duke" else 12),
            identity_weight=0.5,
            masked_weight=0.5,
            head_weight=0.01 if arg.dataset == "occluded_reid" else 0.1,
            head_reduction="official",
            alternating=True,
        )
        method.transfer.on = spt
        method.selection.stride = method.patch if spt else 0
    else:
        method.update(stride=arg.stride or method.patch, mask=False, head_weight=0.0)
    if spt:
        method.transfer.update(
            partners="official", probability=1.0, fallback="first", ignore_identity=False, ignore_negatives="none"
        )
    for name in ("selection", "metric"):
        stages[name].epochs = 120 if name == "selection" else epochs
        for key in list(stages[name]):
            if key.endswith("optimizer"):
                stages[name][key] = common.sgd()
    if dpm:
        stages.metric.mask_optimizer.schedule = dict(name="constant")  # the official code never schedules it
        if arg.dataset == "occluded_reid":
            stages.metric.augment.jitter = (0.3, 0.3, 0.2, 0.2)


def finish_small(config, arg) -> None:
    """Changes the recipe for the small rendered pictures and the tiny CLIP, in place: fewer epochs, so higher rates."""
    prompts, selection, metric = EPOCHS.get(arg.size, EPOCHS["small"])
    pretrained = config.method.backbone in common.SHIPPED
    adamw = common.small_optimizer(pretrained, warmup_epochs=1)
    config.stages.prompts.epochs = prompts
    config.stages.prompts.optimizer.update(
        learning_rate=3e-3, schedule=dict(name="cosine", warmup_epochs=2, warmup_start=1e-4, floor=1e-5)
    )
    for name, epochs in (("selection", selection), ("metric", metric)):
        stage = config.stages[name]
        stage.epochs = epochs
        stage.sampler = common.identity_sampler(8, 4)
        stage.augment.pad = 5
        for key in list(stage):
            if key.endswith("optimizer") and key != "decision_optimizer":
                stage[key] = dict(adamw)
        if name == "metric":
            stage.head_optimizer = adamw | SMALL_HEADS
    rate = SMALL_DECISION[arg.grid]
    schedule = adamw["schedule"] | dict(warmup_start=rate / 8)
    config.stages.selection.decision_optimizer.update(learning_rate=rate, schedule=schedule)
    if arg.recipe == "dpm_pp":
        config.method.transfer.update(least_area=0.25, probability=0.25)  # the best of four that were tried on the demo
    config.method.test_feature = "after"
    config.method.selection.level_norm = True  # the tiny CLIP's residual stream saturates the decision layer otherwise
    config.method.selection.update(margin=None, label_smoothing=0.0)  # SPT's own: patches find the person better on the demo
    if pretrained:
        config.init.weights = common.SHIPPED[config.method.backbone]
