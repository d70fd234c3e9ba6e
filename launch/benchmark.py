"""Measures speed on made-up pictures: training steps and embedding of one config, without any dataset.

    python launch/benchmark.py --config=configs/baseline.py
    python launch/benchmark.py --config=configs/baseline.py:dataset=market1501 --batch_sizes=64,256 --steps=50 --json=speed.json

Prints for every batch size: seconds to compile, step time (median and 95th percentile), images per second, the share of the
device's peak that the model's own arithmetic reaches (where the peak is known), memory, and augmentation: its own images per
second and its time as a share of the step's.
"""

from __future__ import annotations

import command
from absl import flags

CONFIG = command.define_config()
BATCH_SIZES = flags.DEFINE_list("batch_sizes", [], "training batch sizes (default: each stage's own)")
STEPS = flags.DEFINE_integer("steps", 20, "timed steps", lower_bound=2)
STAGE = flags.DEFINE_string("stage", None, "stage to measure (default: the first that reads pictures)")
PICTURES = flags.DEFINE_integer("pictures", 1024, "pictures in the made-up table", lower_bound=64)
JSON = flags.DEFINE_string("json", None, "also write the figures to this file")
flags.mark_flag_as_required("config")


def main() -> None:
    from pathlib import Path

    import jax
    import numpy as np

    from configs import common
    from occreid_jax import config as configuration
    from occreid_jax import distributed, methods
    from occreid_jax.errors import UserError
    from occreid_jax.files import write_json
    from occreid_jax.train.performance import made_up, measure_embed, measure_train, peak_flops, with_batch
    from occreid_jax.types import Meta

    distributed.initialise()
    config = CONFIG.value
    configuration.validate(config)
    if not all(size.isdigit() and int(size) > 0 for size in BATCH_SIZES.value):
        raise UserError(f"--batch_sizes={','.join(BATCH_SIZES.value)}: give numbers, for example --batch_sizes=64,256")
    devices = distributed.devices(config.mesh.devices, **distributed.switches(config.mesh))
    preset = common.DATASETS[config.data.name]
    meta = Meta(preset["identities"], preset["cameras"], tuple(config.data.image_size), PICTURES.value)
    method = methods.create(config, meta)
    stages = [stage for stage in method.stages() if "image" in stage.inputs and STAGE.value in (None, stage.name)]
    if not stages:
        raise UserError(f"config {config.method.name} has no stage {STAGE.value or 'that reads pictures'}")
    stage = stages[0]
    columns = made_up(method)
    height, width = meta.image_size
    kind = jax.devices()[0].device_kind
    print(f"{config.method.name}, stage {stage.name}, {height}x{width}, {np.dtype(method.dtype).name}, {devices.count} x {kind}")
    if not peak_flops():
        print("the peak of this device is not known, so utilisation is left out")
    figures = {"device": kind, "devices": devices.count, "jax": jax.__version__, "train": [], "embed": []}
    for size in [int(size) for size in BATCH_SIZES.value] or [stage.sampler.batch_size]:
        row = measure_train(method, with_batch(stage, size), columns, devices, STEPS.value)
        figures["train"].append(row)
        print(f"train  {described(row)}", flush=True)
        row = measure_embed(method, columns, size, devices, STEPS.value)
        figures["embed"].append(row)
        print(f"embed  {described(row)}", flush=True)
    if JSON.value:
        write_json(Path(JSON.value), figures)


def described(row: dict) -> str:
    """One measurement as a line."""
    words = [
        f"batch {row['batch_size']:4d}",
        f"compile {row['compile_seconds']:.1f} s",
        f"step {1e3 * row['median_seconds']:.1f} ms median, {1e3 * row['p95_seconds']:.1f} ms p95",
        f"{row['images_per_second']:.0f} images/s",
    ]
    if row["utilisation"]:
        words.append(f"{100 * row['utilisation']:.1f} % of peak")
    if row["work_gigabytes"] is not None:
        words.append(f"{row['work_gigabytes']:.2f} GB work space")
    if "augmentation_share" in row:
        share = 100 * row["augmentation_share"]
        words.append(f"augmentation {row['augmented_per_second']:.0f} images/s, {share:.1f} % of the step")
    return ", ".join(words)


if __name__ == "__main__":
    command.run(main)
