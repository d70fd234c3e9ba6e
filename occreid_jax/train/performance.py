"""How fast a run is: images per second, and which share of the device's peak the model's own arithmetic reaches."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.chips import chip_of
from occreid_jax.data import occluders, resident
from occreid_jax.distributed import Devices, place
from occreid_jax.evaluation.embed import make_embed
from occreid_jax.methods.locations import MEAN
from occreid_jax.train import state
from occreid_jax.train.plan import StagePlan
from occreid_jax.train.rendered import RENDERED
from occreid_jax.train.step import COLUMNS, StageStep
from occreid_jax.types import Method, Stage
from occreid_jax.vectors import unit_vectors

FACTS, CLOSED, OPEN = 13, 55, 324  # facts of a picture, and sentences of those with few values and of the others
CAPTIONS = (4, 32)  # sentences of a picture, and tokens of one
TRAIN_FACTOR = 3.0  # a backward pass costs twice the forward pass


def step_flops(stage: Stage) -> float:
    """Floating-point operations of one picture in a training step of ``stage``, forward and backward."""
    return TRAIN_FACTOR * stage.flops + stage.frozen_flops


def peak_flops() -> float:
    """Dense bfloat16 peak of one device in FLOP/s, or 0 where it is not known (CPUs)."""
    chip = chip_of(jax.devices()[0].device_kind)
    return chip.flops if chip else 0.0


class Meter:
    """Measures between two calls of `rate`; compile time is left out by `restart`."""

    def __init__(self, flops_per_image: float, batch_size: int, devices: int):
        self.flops_per_image = flops_per_image
        self.batch_size, self.peak = batch_size, peak_flops() * devices
        self.step: int | None = None
        self.started = 0.0

    def restart(self) -> None:
        """Forgets what was measured, for example after compiling."""
        self.step = None

    def rate(self, step: int) -> tuple[float, float]:
        """(images per second, share of the peak) since the last `restart` or the first call; zeros at first."""
        now = time.monotonic()
        if self.step is None or step <= self.step:
            self.step, self.started = step, now
            return 0.0, 0.0
        rate = (step - self.step) * self.batch_size / max(now - self.started, 1e-9)
        return rate, rate * self.flops_per_image / self.peak if self.peak else 0.0


def memory_line(executable) -> str:
    """What a compiled program needs beside its arguments, in words; empty where the backend does not say."""
    analysis = executable.memory_analysis()
    if analysis is None:
        return ""
    arguments, temporary = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    return f"; memory {arguments / 1e9:.2f} GB state and tables, {temporary / 1e9:.2f} GB work space"


def timed(call: Callable[[], Any], count: int) -> np.ndarray:
    """Seconds of ``count`` calls, each waited for, after two that are not counted."""
    seconds = []
    for number in range(count + 2):
        started = time.perf_counter()
        jax.block_until_ready(call())
        if number >= 2:
            seconds.append(time.perf_counter() - started)
    return np.array(seconds)


def figures(
    seconds: np.ndarray, batch_size: int, compile_seconds: float, flops_per_image: float, devices: int, executable
) -> dict:
    """One measurement as plain numbers."""
    rate = batch_size / float(np.median(seconds))
    peak, memory = peak_flops() * devices, executable.memory_analysis()
    return {
        "batch_size": batch_size,
        "compile_seconds": compile_seconds,
        "median_seconds": float(np.median(seconds)),
        "p95_seconds": float(np.percentile(seconds, 95)),
        "images_per_second": rate,
        "flops_per_image": flops_per_image,
        "utilisation": rate * flops_per_image / peak if peak else 0.0,
        "work_gigabytes": memory.temp_size_in_bytes / 1e9 if memory is not None else None,
    }


def with_batch(stage: Stage, batch_size: int) -> Stage:
    """``stage`` with another batch size."""
    block = stage.sampler.copy_and_resolve_references()
    block.batch_size = batch_size
    return dataclasses.replace(stage, sampler=block)


class Prepared(NamedTuple):
    """A training step that is compiled and has everything on the device."""

    executable: Any  # (state, tables, rows) -> (state, metrics); gives the state's buffers away
    state: state.TrainState
    tables: dict[str, jax.Array]
    rows: jax.Array  # int32 [1, B]
    step: StageStep
    compile_seconds: float


def prepare_step(method: Method, stage: Stage, tables: dict[str, np.ndarray], devices: Devices) -> Prepared:
    """The jitted training step of ``stage`` from initial parameters on resident ``tables``, as `made_up` gives them or real."""
    rng = np.random.default_rng(0)
    # Pictures of one identity stand together, as the samplers put them.
    rows = np.sort(rng.integers(0, len(tables["label"]), (1, stage.sampler.batch_size))).astype(np.int32)
    plan = StagePlan(0, stage, 0, np.array([10**6]), lambda epoch: rows)
    names = [name for name in (*stage.inputs, *COLUMNS, *stage.shared) if name in tables]
    placed = resident.device_tables({name: tables[name] for name in names}, devices.replicated)
    placed_rows = place(rows, devices.steps)
    params, extra = jax.jit(method.init)(jax.random.key(0))
    extra = filled(extra)
    step = StageStep(method, plan, params)
    current = place(state.create(params, extra, 0), devices.replicated)
    current = current.replace(opt_state=place(step.init(current.params), devices.optimizer(step.shapes)))
    started = time.perf_counter()
    executable = step.jitted(devices).lower(current, placed, placed_rows).compile()
    return Prepared(executable, current, placed, placed_rows, step, time.perf_counter() - started)


def filled(extra: Any) -> Any:
    """What only a pass over pictures fills (memory banks, prototypes, cached features) and is still zero, as random unit vectors:
    so every loss has something to compare."""

    def one(number: int, leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.any():
            return leaf
        return unit_vectors(jax.random.normal(jax.random.key(number), leaf.shape, leaf.dtype))

    leaves, structure = jax.tree.flatten(extra)
    return structure.unflatten([one(number, leaf) for number, leaf in enumerate(leaves)])


def measure_train(method: Method, stage: Stage, tables: dict[str, np.ndarray], devices: Devices, steps: int) -> dict:
    """Times the training step of `prepare_step`, and its augmentation by itself.

    The share of augmentation is its time over the step's; both run in turn, so that a machine whose speed drifts does not spoil
    the ratio.
    """
    executable, current, placed, rows, step, compile_seconds = prepare_step(method, stage, tables, devices)
    batch = jax.jit(step.load)(current, placed, rows[0])
    augment = jax.jit(stage.augment).lower(current.rng, batch).compile()
    whole, alone = [], []
    for number in range(steps + 2):
        started = time.perf_counter()
        current, metrics = executable(current, placed, rows)
        jax.block_until_ready(metrics)
        between = time.perf_counter()
        jax.block_until_ready(augment(current.rng, batch))
        if number >= 2:
            whole.append(between - started)
            alone.append(time.perf_counter() - between)
    batch_size = stage.sampler.batch_size
    row = figures(np.array(whole), batch_size, compile_seconds, step_flops(stage), devices.count, executable)
    augmentation = float(np.median(alone))
    return row | {
        "augmented_per_second": batch_size / augmentation,
        "augmentation_share": augmentation / float(np.median(whole)),
    }


def made_up(method: Method) -> dict[str, np.ndarray]:
    """Tables of as many random pictures as a method trains on, whatever a stage asks for, and a library of occluders: by name."""
    rng, meta = np.random.default_rng(0), method.meta
    numbers = {"parts": (0, 9), "parsed": (1, 2), "caption": (1, 100), "occluder_sides": (16, 256)}
    numbers |= {"facts": (0, CLOSED), "closed_facts": (1, 100), "closed_kinds": (0, FACTS), "open_facts": (1, 100)}
    numbers |= {"camid": (0, meta.cameras), "label": (0, meta.identities)}
    shapes = table_shapes(method)
    whole = {name: each for name, each in shapes.items() if name != MEAN}
    tables = {name: rng.integers(*numbers.get(name, (0, 256)), each.shape, each.dtype) for name, each in whole.items()}
    tables |= {name: rng.random(each.shape, each.dtype) for name, each in shapes.items() if name == MEAN}
    return tables | {"label": np.sort(tables["label"])}


def table_shapes(method: Method) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of all tables that a stage of a method may ask for, with the default library of occluders: by name."""
    meta, data = method.meta, method.config.data
    frames = data.get("occluder_frames", False)
    side, people = (occluders.FRAME_SIDE, 0) if frames else (occluders.SIDE, data.get("occluder_people", 0))
    count, library = meta.images, RENDERED + people
    shapes = {
        "image": ((count, *meta.image_size, 3), np.uint8),
        "parts": ((count, *meta.image_size), np.uint8),
        "parsed": ((count,), np.bool_),
        "caption": ((count, *CAPTIONS), np.int32),
        "facts": ((count, FACTS), np.int32),
        "closed_facts": ((CLOSED, CAPTIONS[1]), np.int32),
        "closed_kinds": ((CLOSED,), np.int32),
        "open_facts": ((OPEN, CAPTIONS[1]), np.int32),
        "camid": ((count,), np.int32),
        "label": ((count,), np.int32),
        "occluders": ((library, side, side * 4), np.uint8),
        "occluder_sides": ((library, 2), np.int32),
    }
    if method.localises is not None:
        shapes[MEAN] = ((count, *method.location_grid), np.float32)
    return {name: jax.ShapeDtypeStruct(*each) for name, each in shapes.items()}


def measure_embed(method: Method, columns: dict[str, np.ndarray], batch_size: int, devices: Devices, steps: int) -> dict:
    """Times embedding of one batch that is on the device already."""
    params, extra = jax.jit(method.init)(jax.random.key(0))
    names = (*method.evaluation_inputs, "camid")
    batch = {name: columns[name][:batch_size] for name in names}
    batch |= {"index": np.arange(batch_size, dtype=np.int32), "valid": np.ones(batch_size, bool)}
    batch = place(batch, devices.rows)
    params, extra = place(params, devices.replicated), place(extra, devices.replicated)
    started = time.perf_counter()
    executable = make_embed(method, devices, "gallery").lower(params, extra, batch).compile()
    compile_seconds = time.perf_counter() - started
    seconds = timed(lambda: executable(params, extra, batch), steps)
    return figures(seconds, batch_size, compile_seconds, method.forward_flops(), devices.count, executable)
