"""ViT baseline: cls token, BNNeck, identity loss and soft-margin batch-hard triplet, SGD.

    python launch/train.py --config=configs/baseline.py                                  embedded benchmark, demo size
    python launch/train.py --config=configs/baseline.py:size=small                       embedded benchmark, small
    python launch/train.py --config=configs/baseline.py:grid=fine                        patches of 8 pixels in place of 16
    python launch/train.py --config=configs/baseline.py:dataset=market1501 \
        --config.data.root=DIR --config.init.weights=DIR                                 the published recipe

On the embedded benchmark the encoder starts from the tiny CLIP that ships with the package (docs/tiny_clip.md);
``pretrained=false`` starts from nothing. The weights are those that launch/port_weights.py makes from an ImageNet ViT
(docs/porting.md).
Published (TransReID's table, ViT-B/16, 256x128, stride 16): Market-1501 mAP 86.8, R-1 94.7. The embedded benchmark's
measured figures stand in docs/results.md.
"""

from configs import common


def get_config(arg: str = ""):
    arg = common.parse_arg(
        arg,
        dataset="synthetic", size="demo", split="occluded", backbone="", stride=0, grid="coarse", camera=False, person_mask=False,
        pretrained=True,
    )  # fmt: skip
    config = common.base(arg)
    config.method = common.vit_method("baseline", arg, config)
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
