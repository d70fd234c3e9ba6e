"""ViT baseline: cls token, BNNeck, identity loss and soft-margin batch-hard triplet, SGD.

    python launch/train.py --config=configs/baseline.py                                  embedded benchmark, demo size
    python launch/train.py --config=configs/baseline.py:size=small                       embedded benchmark, small
    python launch/train.py --config=configs/baseline.py:dataset=market1501 \
        --config.data.root=DIR --config.init.weights=vit_base.safetensors                the published recipe

Published (TransReID's table, ViT-B/16, 256x128, stride 16): Market-1501 mAP 86.8, R-1 94.7. The embedded benchmark's
measured figures stand in docs/results.md.
"""

from ml_collections import config_dict

from configs import common

DEMO_EPOCHS = {"demo": 30, "small": 12}


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
        stride=arg.stride or 16,
        camera=arg.camera,
        camera_scale=3.0,
        drop_path=0.1 if full_size else 0.0,
        from_scratch=not full_size,  # initial values for learning without pretrained weights
        remat=False,
        label_smoothing=0.0,
        margin=config_dict.placeholder(float),  # unset: the soft margin
        triplet_feature="before",  # the side of the neck that the triplet loss compares: before | after
        test_feature="before",  # the side that query and gallery are compared on
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
        # From nothing in minutes: a batch-hard loss before the neck would pull all features together before they tell
        # anything apart, and SGD is too slow for a transformer without pretrained weights.
        config.method.update(triplet_feature="after", test_feature="after", label_smoothing=0.1)
        main = config.stages.main
        main.epochs = DEMO_EPOCHS[arg.size]
        main.sampler = common.identity_sampler(8, 4)
        main.augment.pad = 5
        main.optimizer = common.adam(
            name="adamw",
            learning_rate=1e-3,
            weight_decay=0.05,
            bias_weight_decay=0.0,
            schedule=dict(name="cosine", warmup_epochs=2, warmup_start=1e-5, floor=1e-5),
        )
    return config
