"""OGFR: an encoder told which parts are hidden, a teacher erasing patches by a learned policy, a student on occluded pictures.

    python launch/train.py --config=configs/ogfr.py                                      embedded benchmark, demo size
    python launch/train.py --config=configs/ogfr.py:size=small                           embedded benchmark, small
    python launch/train.py --config=configs/ogfr.py:grid=fine                            patches of 8 pixels in place of 16
    python launch/train.py --config=configs/ogfr.py:dataset=occluded_duke \
        --config.data.root=DIR --config.init.weights=DIR                                 the published recipe

Datasets with a recipe: occluded_duke (stride 11), market1501, dukemtmc, msmt17, p_dukemtmc, which has no cameras, occluded_reid
(trained on Market-1501, without cameras); stride 12 on all but the first. Every picture needs body-part labels, in training and
at test time; docs/methods/ogfr.md says which there are and what is done with pictures that have none. ``row=NAME`` is a row of
the paper's ablation tables, see `ROWS`. ``camera=true`` or ``false`` switches the camera embedding. The weights are those that
launch/port_weights.py makes from an ImageNet ViT (docs/porting.md).
Published (R-1 / mAP): Occluded-Duke 76.6 / 64.7, Occluded-REID 86.9 / 80.9, P-DukeMTMC 93.2 / 83.4, Market-1501 96.4 / 90.2,
DukeMTMC-reID 92.3 / 82.7, MSMT17 86.2 / 66.9. The embedded benchmark's measured figures stand in docs/results.md.
"""

from ml_collections import ConfigDict, config_dict

from configs import common

STRIDES = {"occluded_duke": 11}
"""Of datasets of 256x128 pictures; 12 elsewhere."""
CAMERAS = {"occluded_reid": False}
"""Whether the encoder is told cameras; elsewhere it is. Occluded-REID has none of those that its network is trained with."""
ONE_BRANCH = {"distils": False}
ROWS = {
    # Table 4: what each part brings.
    "baseline": ONE_BRANCH | {"occlusion_aware": False, "erases": "none", "triplet_weight": 1.0},
    "oa_vit": ONE_BRANCH | {"erases": "none"},
    "single_branch": ONE_BRANCH | {"erases": "student"},
    "fep_student": {"erases": "student"},
    "fep_both": {"erases": "both"},
    "full": {},
    # Table 5: what is erased.
    "mask_none": {"policy.on": False},
    "mask_random": {"location.train": "random"},
    "mask_labels": {"location.train": "truth"},  # background and what is covered
    "mask_learned": {},
    # Table 6: the decoder that purifies.
    "decoder_plain": {"decoder": "plain"},
    "decoder_fixed": {},
    # Table 7: fewer cells than this, and a part counts as hidden. With the text's "less than" none could be at 0.
    "threshold_0": {"threshold": 0, "inclusive": True},
    "threshold_5": {},
    "threshold_10": {"threshold": 10},
    "threshold_15": {"threshold": 15},
    # Table 8: distillation without one of its terms.
    "no_mse": {"mse_weight": 0.0},
    "no_cosine": {"cosine_weight": 0.0},
    "no_kd": {"divergence_weight": 0.0, "student_id_weight": 0.0},
    # Figure 4: how many coarse parts the patterns tell apart.
    "groups_1": {"groups": 1},
    "groups_4": {},
    "groups_8": {"groups": 8},
    # Patches that do not overlap, which the text mentions and no table has.
    "no_sliding": {"stride": 16},
}
"""Rows of Tables 4 to 8 and figure 4 as changes of ``config.method``; docs/methods/ogfr.md says what the first are made of."""
NEW = r"^(teacher|student|patterns|heads/)|part_tokens"
"""Parameters that no pretrained encoder brings, but for the agent's."""


def get_config(arg: str = ""):
    arg = common.parse_arg(
        arg, dataset="synthetic", size="demo", split="occluded", backbone="", stride=0, grid="coarse", camera="auto", row="",
        pretrained=True,
    )  # fmt: skip
    if arg.row and arg.row not in ROWS:
        raise ValueError(f"unknown row '{arg.row}'; known: {', '.join(ROWS)}")
    if arg.camera not in ("auto", "true", "false"):
        raise ValueError(f"unknown camera '{arg.camera}'; known: auto, true, false")
    config = common.base(arg)
    small = common.is_small(config)
    camera = not small and CAMERAS.get(arg.dataset, True) if arg.camera == "auto" else arg.camera == "true"
    stride = arg.stride or (0 if small else STRIDES.get(arg.dataset, 12))
    arg = ConfigDict(arg.to_dict() | {"camera": camera, "stride": stride})
    config.method = dict(
        **common.encoder(arg, config),
        name="ogfr",
        occlusion_aware=True,  # part tokens, patterns and the loss of the maps; False: a plain ViT on occluded pictures
        distils=True,  # a teacher on the clean picture beside the student on the occluded one; False: the latter alone
        erases="teacher",  # whose decoder erases and purifies: teacher | student | both | none
        decoder="fixed",  # its first layer updates patches only (fixed), or two plain layers (plain)
        fep_residual=True,  # False: its layers as Eq. 12 prints them, without residuals
        groups=4,  # C, coarse parts whose hiding makes a pattern: 1 (the person) | 4 (head, arms, torso, legs) | 8
        threshold=5,  # lambda: with fewer cells a part is hidden
        inclusive=False,  # True: with this many as well
        label_grid=(64, 32),  # cells that are counted; (256, 128) are the text's pixels
        mask_loss_grid=(64, 32),  # cells of the maps' cross entropy
        pattern_scale=3.0,  # gamma 1, of the vector of the pattern on every token
        pattern_dropout=0.0,  # ours: this share of training pictures is told that nothing is hidden
        correlation_scale=10.0,  # of cosines inside the softmax over parts
        visibility_rule="argmax",  # a part is visible where it wins a cell of the map (argmax), or has a cosine > 0 (raw_cosine)
        visible_cells=1,  # so many cells at least
        test_pattern="labels",  # labels | whole (nothing is hidden) | estimate (from the network's own map, in a first pass)
        unparsed="error",  # pictures without labels: error (at the start, by name) | whole | estimate
        policy=dict(
            on=True,  # False: nothing is erased
            weight=1.0,
            start=2.197,  # the agent's first bias: nine patches in ten are kept; the text's 0 is every other one
            # p^m and p^b: batch (means of both) | dataset (picture against the training set's mean) | picture (against its own) |
            # same_step (against itself, unerased, in the same step)
            reward="dataset",
            refresh_every=10,  # epochs between two measurements of p^b
            reduction="mean",  # log-probabilities of a picture's patches: mean | sum (Eq. 11)
            certain=0.05,  # 1 - p^b is at least that
            centre=False,  # the batch's mean is subtracted from the reward
            random_keep=0.9,  # share that the source "random" of the location keeps
        ),
        # What is erased in training: learned (the agent) | random | constant (the mean of the truth) | truth (all but the visible
        # person); which parts are visible at test time: learned (the rule above) | random | constant | truth
        location=dict(train="learned", test="learned"),
        mse_weight=1.0,
        cosine_weight=0.5,  # mu 1
        student_id_weight=0.3,  # alpha
        divergence_weight=0.4,  # beta
        temperature=1.0,
        distill_sg=True,  # the teacher is not pulled towards the student
        teacher_id_weight=0.3,  # ours: identity losses of the teacher, without which nothing teaches its scores; the text: 0
        encoder_id_weight=1.0,
        triplet_weight=0.5,  # mu 2
        margin=config_dict.placeholder(float),  # of the triplet loss; unset: the soft margin
        triplet_feature="before",  # the side of the necks that the triplet loss compares: before | after
        mask_weight=1.0,
        label_smoothing=0.0,
        test_feature="before",  # the side of the necks that query and gallery are compared on
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    occlusion = dict(
        kind="obstacle",  # obstacle | none
        probability=0.5,
        area=(0.1, 0.5),  # of the picture, of the box around the object
        jitter=0.5,  # of the object's brightness, contrast and saturation
        flip=0.5,
        rectangles=False,  # True: whole boxes instead of outlines
    )
    config.stages = dict(
        main=dict(
            epochs=120,
            sampler=common.identity_sampler(),
            augment=common.standard_augment(erasing=0.0, occlusion=occlusion),
            optimizer=common.sgd(),
        )
    )
    if small:
        config.method.update(triplet_feature="after", test_feature="after", label_smoothing=0.1)
        common.small_stage(config, arg, twins=arg.row not in ("baseline", "oa_vit", "single_branch"))
        config.stages.main.optimizer.groups = ((NEW, 5.0), ("^agent", 50.0))
        config.method.policy.refresh_every = 2
    common.change(config, ROWS.get(arg.row, {}))
    return config
