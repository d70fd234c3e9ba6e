"""DPL-ReID: occluders pasted where they belong, two prompts per identity, LSNet beside CLIP's image tower.

    python launch/train.py --config=configs/dpl_reid.py                                  embedded benchmark, demo size
    python launch/train.py --config=configs/dpl_reid.py:grid=fine                        patches of 8 pixels in place of 16
    python launch/train.py --config=configs/dpl_reid.py:row=rwoa                         a row of the paper's tables, see `ROWS`
    python launch/train.py --config=configs/dpl_reid.py:dataset=occluded_duke \
        --config.data.root=DIR --config.init.weights=CLIP,LSNET --config.data.occluders=FRAMES    the published recipe, ViT-B/16
    python launch/train.py --config=configs/dpl_reid.py:dataset=occluded_duke,backbone=rn50 ...    with the ResNet-50

Market-1501 and DukeMTMC-reID (and ``split=holistic``) have LSNet alone, as in the paper's Table 4: pasted occluders harm there.
P-DukeMTMC and Occluded-Market have a quarter of the pictures changed, where the paper says "reduced".
``rates=single`` moves everything at the ViT's rate, the paper read literally: the fusion's weights then stay where they start.
The weights are those that launch/port_weights.py makes from CLIP and from LSNet-T (docs/porting.md), FRAMES a library of whole
frames (launch/prepare_data.py occluders --kind=overlay, docs/datasets.md); without one rendered frames are pasted.
Published (R-1 / mAP), ViT: Occluded-Duke 76.3 / 67.2, Occluded-REID 94.9 / 91.3, P-DukeMTMC 94.5 / 85.9, Occluded-Market
86.6 / 74.4; ResNet-50: 70.6 / 57.2, 70.8 / 62.4, 92.4 / 81.2, 80.8 / 65.1. The embedded benchmark's measured figures stand in
docs/results.md.
"""

from configs import clip_reid, common

HOLISTIC = ("market1501", "dukemtmc")
OCCLUDED = ("p_dukemtmc", "occluded_market")  # training pictures are occluded already: fewer get something more
OFF = {"occlusion.kind": "none", "templates": "full", "wgff.on": False}
RWOA, DUAL, WGFF = {"occlusion.kind": "rwoa"}, {"templates": "both"}, {"wgff.on": True}
NO_WGFF = RWOA | DUAL | {"wgff.on": False}
UNTOUCHED = {"flip": 0.0, "pad": 0, "erasing": 0.0}  # no traditional augmentation in the second stage


def augmented(kind: str, **others) -> dict:
    """A row of Table 5: another way to hide in place of RWOA."""
    return NO_WGFF | {"occlusion.kind": kind} | others


def words(own: int, occluders: int) -> dict:
    """A row of Table 8; full prompts keep their four words."""
    return NO_WGFF | {"occluded_words": own, "occluder_words": occluders}


ROWS = {
    # Table 3: what each part brings. Table 4 is wgff.
    "baseline": OFF,
    "wgff": OFF | WGFF,
    "rwoa": OFF | RWOA,
    "rwoa_dual": NO_WGFF,
    "full": RWOA | DUAL | WGFF,
    # Ours: the other half of Table 3, without matching colours, one Y for everybody.
    "dual": OFF | DUAL | {"occlusion.kind": "rwoa", "occluded_training": False},
    "rwoa_wgff": OFF | RWOA | WGFF,
    "unaligned": RWOA | DUAL | WGFF | {"occlusion.align": False},
    "shared_y": NO_WGFF | {"shared_occluder_words": True},
    # Table 5: other ways to hide, without traditional augmentation in the second stage and with it; RWOA with it is rwoa_dual.
    "erasing": augmented("erasing", **UNTOUCHED),
    "cropping": augmented("cropping", **UNTOUCHED),
    "hide_and_seek": augmented("hide_and_seek", **UNTOUCHED),
    "cutmix": augmented("cutmix", **UNTOUCHED),
    "oia": augmented("oia", **UNTOUCHED),
    "rwoa_only": augmented("rwoa", **UNTOUCHED),
    "hide_and_seek_traditional": augmented("hide_and_seek"),
    "cutmix_traditional": augmented("cutmix"),
    "oia_traditional": augmented("oia"),
    # Table 6: one template alone; both are rwoa_dual.
    "template_full": NO_WGFF | {"templates": "full"},
    "template_occluded": NO_WGFF | {"templates": "occluded"},
    # Table 7: how the two texts become one; weighted is rwoa_dual.
    "fusion_mlp": NO_WGFF | {"text_fusion": "mlp"},
    "fusion_attention": NO_WGFF | {"text_fusion": "cross_attention"},
    # Table 8: words of the person and of the occluder in the second template.
    "words_2_2": words(2, 2),
    "words_2_4": words(2, 4),
    "words_4_2": words(4, 2),
    "words_4_4": words(4, 4),
    "words_4_6": words(4, 6),
    "words_6_4": words(6, 4),
    "words_6_6": words(6, 6),
    # Figure 10: the share of pictures that are changed.
    "quarter": {"occlusion.probability": 0.25},
}
"""Rows of Tables 3 to 8 as changes of ``config.method`` and of both stages' augmentation."""


def get_config(arg: str = ""):
    arg = common.parse_arg(
        arg, dataset="synthetic", size="demo", split="occluded", backbone="", stride=0, grid="coarse", camera="",
        text=True, row="", rates="own",
    )  # fmt: skip
    for key, value, known in (
        ("row", arg.row, ("", *ROWS)), ("rates", arg.rates, ("own", "single")), ("camera", arg.camera, ("", "true", "false"))
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"unknown {key} '{value}'; known: {', '.join(filter(None, known))}")
    config = base_config(arg)
    small, resnet = common.is_small(config), config.method.backbone.endswith(("rn50", "resnet"))
    config.data.occluder_frames = True
    config.report.gradcam = True  # the paper's Figures 8, 9 and 11
    config.method.update(
        name="dpl_reid",
        templates="both",  # prompts: full (CLIP-ReID's) | occluded ("... is occluded by Y Y Y Y.") | both
        occluded_words=4,  # X of the second prompt, learned for every identity
        occluder_words=4,  # Y of the second prompt
        shared_occluder_words=False,  # one Y for all identities
        variants=4 if small else 8,  # occluded versions of every picture that the second prompt is learned on
        text_fusion="weighted",  # of the two texts: weighted | mlp | cross_attention
        alpha=0.5,  # share of the full text at the start, weighted fusion
        wgff=dict(
            on=True,  # LSNet beside CLIP's image tower
            network="tiny" if small else "lsnet_t",  # lsnet_t | lsnet_s | lsnet_b | tiny (from nothing)
            offsets="subgrid",  # LSNet's attention on other grids than 4x4: subgrid | bicubic
            beta=0.9,  # share of CLIP's features at the start, ViT
            gate_bias=3.0,  # where gates start, before the sigmoid, ResNet
            frozen_norms=False,  # LSNet's batch norms keep their statistics
        ),
    )
    occlusion = dict(
        kind="rwoa",  # rwoa | oia | hide_and_seek | cutmix | cropping | erasing | none
        probability=0.5,  # that a picture is changed
        align=True,  # the changed picture gets the mean and deviation of every channel of the one before (rwoa, oia)
        flip=0.5,  # probability that a frame is mirrored
        erode=1,  # pixels that are taken off its edge
        blur=0.75 if small else 1.5,  # pixels by which its edge is softened
        cells=(8, 4),  # hide_and_seek: rows and columns
        least_kept=0.5,  # cropping: of either side
    )
    finetune = config.stages.finetune
    finetune.augment.occlusion = dict(occlusion)
    if arg.text:
        config.stages.prompts.augment = dict(occlusion=dict(occlusion))
    if not small:
        config.stages = longer(config.stages, resnet)
    set_rates(config, small, resnet, arg.rates)
    holistic = arg.dataset in HOLISTIC or arg.split == "holistic"
    change(config, OFF | WGFF if holistic else ROWS["quarter"] if arg.dataset in OCCLUDED else {})
    change(config, ROWS.get(arg.row, {}))
    return config


def base_config(arg):
    """CLIP-ReID's config, with the paper's stride of 12 and cameras where pictures have the published size and the network is a
    ViT."""
    full_size = arg.dataset != "synthetic" or arg.size == "full"
    vit = not arg.backbone.endswith(("rn50", "resnet"))
    given = dict(dataset=arg.dataset, size=arg.size, split=arg.split, grid=arg.grid, text=arg.text)
    if arg.backbone:
        given["backbone"] = arg.backbone
    stride = arg.stride or (12 if full_size and vit and arg.backbone in ("", "vit_b16") else 0)
    given["stride"] = stride
    given["camera"] = arg.camera == "true" if arg.camera else full_size and vit
    return clip_reid.get_config(",".join(f"{key}={value}" for key, value in given.items()))


def longer(stages, resnet: bool):
    """The paper's numbers of epochs: 150 and 80 for the ViT, 120 and 200 for the ResNet."""
    if "prompts" in stages:
        stages.prompts.epochs = 120 if resnet else 150
    stages.finetune.epochs = 200 if resnet else 80
    return stages


def set_rates(config, small: bool, resnet: bool, rates: str) -> None:
    """Optimisers of what CLIP-ReID does not have: LSNet, projections and fusions, and the two learned weights by themselves.

    At the ViT's rate of 5e-6 the sum of all steps of a training is 0.03, so that neither weight could move, and layers that start
    from nothing would stay there.
    """
    finetune = config.stages.finetune
    same = finetune.optimizer.to_dict()
    branch = {} if resnet or rates == "single" else {"learning_rate": 5e-5}
    scalar = {} if rates == "single" else {"learning_rate": 1e-3, "bias_factor": 1.0}
    if small and rates == "own":
        branch, scalar = SMALL_RATES["branch"], SMALL_RATES["scalar"]
    finetune.branch_optimizer = same | branch
    finetune.scalar_optimizer = same | scalar | {"weight_decay": 0.0, "bias_weight_decay": 0.0}


SMALL_RATES = {"branch": {"learning_rate": 2e-3}, "scalar": {"learning_rate": 1e-2}}
"""On the embedded benchmark, where LSNet starts from nothing and a training has hundreds of steps."""


def change(config, changes: dict) -> None:
    """Applies a row, in place: ``occlusion.*`` to both stages, traditional augmentation to the second, all else to the method.

    ``occluded_training=False`` leaves the occluders to the prompts alone.
    """
    stages = tuple(name for name in ("prompts", "finetune") if name in config.stages)
    for key, value in changes.items():
        if key == "occluded_training":
            config.stages.finetune.augment.occlusion.kind = "none"
        elif key in UNTOUCHED:
            config.stages.finetune.augment[key] = value
        else:
            common.change(config, {key: value}, stages)
