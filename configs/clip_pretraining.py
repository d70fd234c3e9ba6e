"""Pretrains the tiny CLIP on rendered pictures and sentences; launch/pretrain_clip.py measures the result and writes the asset.

    python launch/pretrain_clip.py                                                     the weights of the coarse grid
    python launch/pretrain_clip.py --config=configs/clip_pretraining.py:grid=fine      those of the fine grid
    python launch/train.py --config=configs/clip_pretraining.py                        the same training as an ordinary run

The captions are those of the synthetic sets, so no other dataset can be trained on. The size "pretrain" has people, cameras and
random numbers that no benchmark has; its query and gallery show other people at other cameras. On the fine grid (patches of 8
pixels) training starts from the weights of the coarse one, and every picture is told single facts beside its caption. What the
weights reach stands in docs/tiny_clip.md.
"""

from configs import common


def get_config(arg: str = ""):
    arg = common.parse_arg(arg, dataset="synthetic", size="pretrain", split="occluded", grid="coarse")
    config = common.base(arg)
    fine, patch = arg.grid == "fine", common.patch_side(arg, config)
    config.method = dict(
        name="clip_pretraining",
        backbone=common.TINY[arg.grid].removeprefix("clip_"),  # of occreid_jax/nn/clip.py
        stride=patch,
        registers=0,  # learned tokens beside the patches that only the encoder's blocks see
        # Sentences of the facts with few values, all of which every picture is compared with; 0: captions alone
        facts=55 if fine else 0,
        closed_weight=4.0,  # of that comparison in the loss
        from_scratch=True,  # initial values for learning without pretrained weights
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    if fine:
        config.init.weights = "tiny_clip"  # its patches and positions are resampled
        config.stages = dict(
            masked=stage(epochs=18, keep_patches=0.25, learning_rate=7e-4, warmup_epochs=1),
            whole=stage(epochs=8, keep_patches=1.0, learning_rate=4e-4, warmup_epochs=0),
        )
    else:
        config.stages = dict(
            masked=stage(epochs=20, keep_patches=0.5, learning_rate=5e-4, warmup_epochs=2),
            whole=stage(epochs=6, keep_patches=1.0, learning_rate=2e-4, warmup_epochs=0),
        )
    return config


def stage(epochs: int, keep_patches: float, learning_rate: float, warmup_epochs: int) -> dict:
    """One stage: pictures in random order, and the encoder sees a random share of their patches."""
    return dict(
        epochs=epochs,
        keep_patches=keep_patches,
        # At a rate of 2e-3 and with 128 pictures the loss does not leave its first value in 100 steps; so it does at once. Epochs
        # are cut short, since the rate changes from one to the next.
        sampler=dict(name="uniform", batch_size=64, most=50),
        augment=common.standard_augment(pad=4, erasing=0.0),
        optimizer=common.adam(
            name="adamw",
            learning_rate=learning_rate,
            weight_decay=0.05,
            bias_weight_decay=0.0,
            clip_norm=1.0,
            schedule=dict(name="cosine", warmup_epochs=warmup_epochs, warmup_start=1e-5, floor=1e-5),
        ),
    )
