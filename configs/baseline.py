"""ViT baseline: cls token, BNNeck, identity loss and soft-margin batch-hard triplet, SGD.

    python launch/train.py --config=configs/baseline.py                                  embedded benchmark, demo size
    python launch/train.py --config=configs/baseline.py:size=small                       embedded benchmark, small
    python launch/train.py --config=configs/baseline.py:dataset=market1501 \
        --config.data.root=DIR --config.init.weights=vit_base.safetensors                the published recipe

Published (TransReID's table, ViT-B/16, 256x128, stride 16): Market-1501 mAP 86.8, R-1 94.7. The embedded benchmark's
measured figures stand in docs/results.md.
"""

from configs import common


def get_config(arg: str = ""):
    arg = common.parse_arg(
        arg, dataset="synthetic", size="demo", split="occluded", backbone="", stride=0, camera=False, person_mask=False
    )
    config = common.base(arg)
    synthetic = arg.dataset == "synthetic"
    full_size = max(config.data.image_size) >= 256
    config.method = dict(
        name="baseline",
        backbone=arg.backbone or ("base" if full_size else "demo"),
        patch=16,
        stride=arg.stride or (16 if full_size else 8),
        camera=arg.camera,
        camera_scale=3.0,
        drop_path=0.1 if full_size else 0.0,
        remat=False,
        label_smoothing=0.0,
        margin=None,
        identity_weight=1.0,
        triplet_weight=1.0,
        person_mask=arg.person_mask,  # oracle: show the network only the visible person (needs ground truth)
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    config.stages = dict(
        main=dict(
            epochs=120,
            sampler=common.identity_sampler(),
            augment=common.standard_augment(),
            optimizer=common.sgd(),
        )
    )
    if synthetic and not full_size:
        demo = config.stages.main
        demo.epochs = 20
        demo.augment.pad = 5
    return config
