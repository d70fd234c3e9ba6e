"""DPEFormer: dynamically selected patch tokens, parts blended with the global feature, a memory of identities, pasted occluders.

    python launch/train.py --config=configs/dpeformer.py                                 embedded benchmark, demo size
    python launch/train.py --config=configs/dpeformer.py:size=small                      embedded benchmark, small
    python launch/train.py --config=configs/dpeformer.py:grid=fine                       patches of 8 pixels in place of 16
    python launch/train.py --config=configs/dpeformer.py:dataset=occluded_duke \
        --config.data.root=DIR --config.init.weights=DIR                                 the published recipe, ViT-B/16

``preset=paper``, the default, follows the text, and the authors' code where the text is silent. ``preset=official`` reproduces
that code with its slips (a patch as global feature, one token too few, pooling that depends on the batch, attention that mixes
the pictures of a batch, random erasing in place of the occluders); ``preset=fixed`` is the code without them, to which
``slip=NAME+NAME`` adds some, see `SLIPS`. docs/methods/dpeformer.md has the table. Datasets with a recipe: occluded_duke,
market1501, dukemtmc, occluded_reid (trained on Market-1501). ``row=NAME`` is a row of the paper's ablation tables, see `ROWS`.

On the embedded benchmark the encoder starts from the tiny CLIP that ships with the package (docs/tiny_clip.md), and every preset
takes the least number of tokens as a share; ``pretrained=false`` starts from nothing. The weights are those that
launch/port_weights.py makes from an ImageNet ViT (docs/porting.md).
Published (R-1 / mAP): Occluded-Duke 69.9 / 58.9, Occluded-REID 87.0 / 79.5, Market-1501 95.4 / 88.1, DukeMTMC-reID 90.0 / 80.3.
The embedded benchmark's measured figures stand in docs/results.md.
"""

from configs import common

CODE = {  # what the code does and the text says otherwise, without a slip
    "selection.normalise": False,
    "selection.order": "rank",
    "selection.least": 24,
    "selection.absolute": True,
    "blending.kind": "sub_vector",
    "global_neck": False,
    "necks": "shared",
    "identity_weights.memory": 0.5,
    "identity_weights.final": 0.5,
    "identity_weights.global": 2.0,
    "identity_weights.part": 0.25,
    "occlusion.balanced": True,
    "occlusion.flip": 1.0,
}
SLIPS = {  # one by one, in the order in which a picture meets them
    "erased_twin": {
        "occlusion.kind": "erasing", "erasing": 1.0, "occlusion.noise": "before", "occlusion.erased_area": (0.05, 0.4),
    },  # fmt: skip
    "first_patch": {"global_token": "first_patch"},
    "one_too_few": {"selection.zero_based": True},
    "pooled_by_batch": {"selection.by_batch": True, "selection.by_batch_at_test": True},
    "mixed_batch": {"blending.scramble": True},
}
PRESETS = {
    "paper": {},
    "fixed": CODE,
    "official": CODE | {key: value for slip in SLIPS.values() for key, value in slip.items()},
}
BASELINE = {"part_branch": False, "descriptor": "parts_all"}
ERASING = {"occlusion.kind": "erasing", "erasing": 0.5}
ROWS = {  # their published numbers: occreid_jax/published
    # Table III: what each part brings. Random erasing acts on the twins, half of the time.
    "baseline": BASELINE | {"occluded": False},
    "baseline_pairs": BASELINE | {"occlusion.kind": "other_image"},
    "baseline_erasing": BASELINE | ERASING,
    "baseline_roa": BASELINE,
    "roa_selection": {"blending.on": False},
    "roa_blending": {"selection.on": False},
    "full": {},
    # Table IV: a fixed number of selected tokens.
    "fixed_12": {"selection.fixed": 12},
    "fixed_24": {"selection.fixed": 24},
    "fixed_48": {"selection.fixed": 48},
    "fixed_96": {"selection.fixed": 96},
    "fixed_128": {"selection.fixed": 128},
    # Table V: the least number of selected tokens.
    "least_0": {"selection.least": 0},
    "least_12": {"selection.least": 12},
    "least_24": {"selection.least": 24},
    "least_36": {"selection.least": 36},
    "least_48": {"selection.least": 48},
    "least_60": {"selection.least": 60},
    "least_72": {"selection.least": 72},
    # Table VI: pooled tokens as descriptor, from one training (the second equals roa_selection, so it had no blending).
    "before_selection": {"blending.on": False, "descriptor": "parts_all"},
    "after_selection": {"blending.on": False, "descriptor": "parts_selected"},
    # Table VII: what the tokens are compared with.
    "proxy_cls": {"selection.proxy": "cls"},
    "proxy_patch": {},
    # Table VIII: another work's fusion in place of blending.
    "rem": {"blending.kind": "relation"},
    # Table X: how the twin is occluded.
    "roa": {},
    "cut_and_paste": {"occlusion.kind": "cut_and_paste"},
    "erasing": ERASING,
    # Table XI: the contrastive loss after the encoder, or after blending too.
    "contrastive_one": {},
    "contrastive_two": {"memory.also_final": True},
}
"""Rows of Tables III to VIII, X and XI as changes of ``config.method`` (``erasing`` and ``occlusion.``: of the augmentation).

Table VIII compares with a module that the paper does not describe; its row has the one that stands in the official code, which
never trains it. Table IX is a choice of the library of occluders: objects from 50, 100 or 200 images.
"""


def get_config(arg: str = ""):
    arg = common.parse_arg(
        arg, dataset="synthetic", size="demo", split="occluded", backbone="", stride=0, grid="coarse", camera=False,
        preset="paper", slip="", row="", pretrained=True,
    )  # fmt: skip
    slips = arg.slip.split("+") if arg.slip else []
    for key, values, known in (("preset", [arg.preset], PRESETS), ("slip", slips, SLIPS), ("row", [arg.row], ROWS)):
        if unknown := [value for value in values if value and value not in known]:
            raise ValueError(f"unknown {key} '{unknown[0]}'; known: {', '.join(known)}")
    config = common.base(arg)
    config.data.occluder_people = 60  # "multiple pedestrians and various objects" (III-C); as many as of each kind of object
    config.method = dict(
        **common.encoder(arg, config),
        name="dpeformer",
        parts=4,
        part_branch=True,  # selection, blending and their heads; False: encoder, memory and two heads
        occluded=True,  # every image has an occluded twin in the batch
        global_token="cls",  # the global feature: cls | first_patch (official)
        global_neck=True,  # False: it is classified without a neck (official)
        necks="separate",  # separate | shared: the final head takes what the parts' necks give (official)
        selection=dict(
            on=True,
            least=48,  # tokens of 128 (256x128, patches of 16); on other grids the same share of all tokens; official: 24
            absolute=False,  # so many tokens, whatever the grid is (official)
            fixed=0,  # so many of 128, whatever the gaps are; 0: dynamic
            proxy="patch",  # what tokens are compared with: patch (the one most like the cls token) | cls
            order="spatial",  # selected tokens are pooled from top to bottom, or by score: spatial | rank | stripes (ours)
            ignore_first_gap=False,  # the gap behind the proxy itself does not count
            normalise=True,  # compare unit vectors; False: plain products
            zero_based=False,  # the number of the widest gap counts from 0: one token too few (official)
            by_batch=False,  # tokens are pooled first to the smallest number in the batch (official)
            by_batch_at_test=False,  # compare features that depend on their batch; without it by_batch is refused at test time
        ),
        # What ranks the tokens: learned (DPSM) | random | constant (the mean of the truth) | truth (where the visible person is,
        # from the renderer)
        location=dict(train="learned", test="learned"),
        blending=dict(
            on=True,
            kind="paper",  # paper (Eq. 7 to 12) | sub_vector (official) | relation (REM, Table VIII)
            heads=2,  # of 16 numbers in the paper's module, of 16 / heads in the official one
            scramble=False,  # sub_vector: heads are joined across the batch (official)
            shared=False,  # one position embedding and one LayerNorm for queries, keys and values
            detach_cls=False,  # no gradient from blending into the cls token
        ),
        memory=dict(
            keep=0.2,  # share of the old value in an update
            rule="sequential",  # sequential (sample by sample) | mean (once per identity)
            temperature=0.05,
            floor=1e-6,  # added to the probability in the loss (code)
            weight=1.0,
            occluded_weight=0.3,  # of the twins in the contrastive loss
            after_neck=True,  # remember and compare features after the neck (code; the text is silent)
            also_final=False,  # a second memory, of the final feature
        ),
        identity_weights={"memory": 1.0, "global": 1.0, "final": 1.0, "part": 1.0},  # of cross entropies, that of every part
        occluded_identity_weight=1.0,  # of the twins; the two weights are divided by their sum
        label_smoothing=0.0,
        neck_per_view=True,  # clean images and twins pass the necks one after the other; False: as one batch
        descriptor="final",  # final | parts_all (all tokens in stripes) | parts_selected (selected tokens, pooled)
        test_feature="after",  # the side of the neck that is compared: before | after (code; the text is silent)
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    occlusion = dict(
        # roa | cut_and_paste | erasing (with the probability ``erasing`` of the augmentation) | other_image, of the person | none
        kind="roa",
        least_area=0.5,  # of the image, of the box around the object
        most_area=0.75,
        balanced=False,  # False: the paper's three places, of which two coincide
        hard=False,  # paste whole pixels instead of soft edges
        flip=0.5,  # probability that an object is mirrored; official: 1
        probability=1.0,
        erased_area=(0.02, 1 / 3),  # share of the picture that erasing takes; official: 0.05 to 0.4
        noise="after",  # erasing's noise comes after or before pictures are normalised: after | before (official)
    )
    config.stages = dict(
        main=dict(
            epochs=120,
            sampler=common.identity_sampler(),
            augment=common.standard_augment(jitter=(0.1, 0.1, 0.1, 0.0), erasing=0.0, occlusion=occlusion),
            optimizer=common.adam(schedule=dict(name="cosine", warmup_epochs=5, warmup_start=1e-6, floor=2e-7)),
        )
    )
    if arg.preset != "paper":
        config.stages.main.optimizer = common.sgd()
    for changes in (PRESETS[arg.preset], *(SLIPS[name] for name in slips)):
        common.change(config, changes)
    if common.is_small(config):
        # Two or three dozens of tokens: the least number stays a share of them.
        config.method.update(label_smoothing=0.1)
        config.method.selection.absolute = False
        common.small_stage(config, arg, twins=True)
        # What the tiny CLIP does not bring has hundreds of steps instead of 30,000.
        config.stages.main.optimizer.groups = (("^(fbm_|heads/(final|part_))", 5.0),)
    common.change(config, ROWS.get(arg.row, {}))
    return config
