"""Training steps and embeddings on made-up pictures: bfloat16 beside float32, speed, and where the time of a step goes."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from occreid_jax import distributed
from occreid_jax.acceptance.hardware import share
from occreid_jax.acceptance.run import read_rows
from occreid_jax.acceptance.task import Task, accelerator
from occreid_jax.train.performance import made_up, measure_embed, measure_train, prepare_step, with_batch
from occreid_jax.types import Method, Stage

STEPS = 10  # that are timed
KERNELS = 15  # that a profile names
CALLS = 5  # steps in a profile


def precision(task: Task) -> Iterator[dict[str, Any]]:
    """For every stage one step from the same values on the same batch, in float32 and in bfloat16.

    The differences are relative to float32. What a stage selects by rank may differ between the two, and its loss with it. On
    accelerators float32 products are what XLA makes of them by default (TF32 on NVIDIA). Micro encoders, whatever the machine.
    """
    if not accelerator():
        jax.config.update("jax_disable_most_optimizations", True)  # a processor compiles longer than it computes here
    devices = distributed.devices(1)
    narrow = {(name, stage.name): (method, stage) for name, method, stage in task.stages("bfloat16", published=False)}
    for name, method, stage in task.stages("float32", published=False):
        wide = one_step(method, stage, devices)
        rounded = one_step(*narrow[name, stage.name], devices)
        row = {"method": name, "stage": stage.name}
        for key in ("loss", "gradient_norm"):
            row |= {key: wide[key], f"{key}_bfloat16": rounded[key], f"{key}_difference": relative(rounded[key], wide[key])}
        yield row


def one_step(method: Method, stage: Stage, devices: distributed.Devices) -> dict[str, float]:
    """The metrics of one step from initial values."""
    prepared = prepare_step(method, stage, made_up(method), devices)
    _, metrics = prepared.executable(prepared.state, prepared.tables, prepared.rows)
    return {name: float(values[0]) for name, values in metrics.items()}


def relative(value: float, reference: float) -> float:
    return abs(value - reference) / max(abs(reference), 1e-12)


def speed(task: Task) -> Iterator[dict[str, Any]]:
    """Training and embedding of the ViT baseline at two batch sizes, then every other stage at its own batch size.

    Everything is in the step: gathering, augmentation, all losses, the update. Shares are of the datasheet's peak and of the
    matrix product that `hardware.peaks` measured, by the model's own arithmetic.
    """
    devices = distributed.devices(1)
    products = [row for row in read_rows(task.out, "peaks") if "bfloat16" in row["what"] and "tflops" in row]
    measured = products[0]["tflops"] * 1e12 if products else 0.0
    for name, method, stage in task.stages("auto", task.published):
        sizes = [stage.sampler.batch_size] if name != "baseline" else [64, 256] if task.published else [16, 32]
        for size in sizes:
            row = measure_train(method, with_batch(stage, size), made_up(method), devices, STEPS)
            yield speed_row(name, stage.name, row, measured)
            if stage.name == method.stages()[-1].name:
                row = measure_embed(method, made_up(method), size, devices, STEPS)
                yield speed_row(name, "embedding", row, measured)


def speed_row(name: str, stage: str, row: dict[str, Any], measured: float) -> dict[str, Any]:
    """What a table shows of a measurement."""
    rate = row["images_per_second"] * row["flops_per_image"]
    return {
        "method": name,
        "stage": stage,
        "batch": row["batch_size"],
        "images_per_second": round(row["images_per_second"], 1),
        "median_ms": round(1e3 * row["median_seconds"], 3),
        "p95_ms": round(1e3 * row["p95_seconds"], 3),
        "share_of_datasheet": round(row["utilisation"], 4) or None,
        "share_of_measured": share(rate, measured),
        "work_gigabytes": row["work_gigabytes"],
        "compile_seconds": round(row["compile_seconds"], 1),
        "augmentation_share": row.get("augmentation_share"),
    }


def profile(task: Task) -> Iterator[dict[str, Any]]:
    """The dearest kernels of the ViT baseline's training step, from the profiler: milliseconds of one step and shares of all."""
    name, method, stage = next(task.stages("auto", task.published))
    prepared = prepare_step(method, stage, made_up(method), distributed.devices(1))
    current, _ = prepared.executable(prepared.state, prepared.tables, prepared.rows)
    jax.block_until_ready(current)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                current, metrics = prepared.executable(current, prepared.tables, prepared.rows)
            jax.block_until_ready(metrics)
        times = kernels(Path(folder))
    total = sum(times.values())
    for kernel, seconds in times.most_common(KERNELS):
        yield {"method": name, "kernel": kernel[:80], "ms": round(1e3 * seconds / CALLS, 4), "share": round(seconds / total, 4)}


def kernels(folder: Path) -> Counter:
    """Seconds by kernel of everything below ``folder`` that the profiler wrote: those of the accelerator, or of the processor's
    own threads where there is none."""
    planes = [
        plane
        for path in folder.rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    ]
    chosen = [plane for plane in planes if plane.name.startswith("/device:")] or planes
    times = Counter()
    for plane in chosen:
        for line in plane.lines:
            if plane.name.startswith("/device:TPU") and line.name != "XLA Ops":
                continue  # the same time once more, by step and by module
            for event in line.events:
                stats = {key for key, _ in event.stats}
                if "hlo_op" in stats or "hlo_module" in stats or plane.name.startswith("/device:"):
                    times[event.name] += event.duration_ns / 1e9
    return times
