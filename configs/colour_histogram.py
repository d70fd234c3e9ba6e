"""Colour histogram: nothing is trained. Says how much of a benchmark colour alone solves.

    python launch/train.py --config=configs/colour_histogram.py:size=small

Measured figures on the embedded benchmark stand in docs/results.md.
"""

from configs import common


def get_config(arg: str = ""):
    arg = common.parse_arg(arg, dataset="synthetic", size="demo", split="occluded", person_mask=False)
    config = common.base(arg)
    config.method = dict(
        name="colour_histogram",
        bins=8,
        person_mask=arg.person_mask,
        mean=(0.5, 0.5, 0.5),  # only for showing pictures in the report
        std=(0.5, 0.5, 0.5),
    )
    config.stages = dict()
    config.evaluation.untrained = False
    return config
