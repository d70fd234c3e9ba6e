"""TransReID: the ViT baseline with camera embedding (SIE), jigsaw patch module (JPM) and, if asked, overlapping patches.

    python launch/train.py --config=configs/transreid.py                                 embedded benchmark, demo size
    python launch/train.py --config=configs/transreid.py:size=small                      embedded benchmark, small
    python launch/train.py --config=configs/transreid.py:grid=fine                       patches of 8 pixels in place of 16
    python launch/train.py --config=configs/transreid.py:dataset=market1501,stride=12 \
        --config.data.root=DIR --config.init.weights=DIR                                 the published recipe

``camera=false`` and ``jpm=false`` switch the two parts off; ``stride=12`` (11 on Occluded-Duke) overlaps the patches.
DeiT-S is ``backbone=small``, the ViT-S of the tables ``backbone=wide_small``. On the embedded benchmark the encoder starts from
the tiny CLIP that ships with the package (docs/tiny_clip.md); ``pretrained=false`` starts from nothing. The weights are those
that launch/port_weights.py makes from an ImageNet ViT (docs/porting.md).
Published (ViT-B/16, 256x128, with cameras): Market-1501 mAP 88.2, R-1 95.0 at stride 16; 88.9, 95.2 with overlapping
patches. The embedded benchmark's measured figures stand in docs/results.md.
"""

from configs import common


def get_config(arg: str = ""):
    arg = common.parse_arg(
        arg,
        dataset="synthetic", size="demo", split="occluded", backbone="", stride=0, grid="coarse", camera=True, jpm=True,
        person_mask=False, pretrained=True,
    )  # fmt: skip
    config = common.base(arg)
    config.method = common.vit_method(
        "transreid",
        arg,
        config,
        jpm=arg.jpm,
        parts=4,
        shift=5,  # patches roll by shift - 1, as in the official code
        shuffle_groups=2,
        rearrange=True,  # False: parts are consecutive patches
    )
    config.stages = dict(
        main=dict(
            epochs=120,
            sampler=common.identity_sampler(),
            augment=common.standard_augment(),
            optimizer=common.sgd(),
        )
    )
    common.finish_small(config, arg)
    return config
