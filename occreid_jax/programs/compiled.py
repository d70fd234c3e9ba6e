"""One stage's training step, or embedding, compiled for the chips of a topology from shapes alone: nothing is allocated."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from occreid_jax import methods
from occreid_jax.chips import GIB, chip_of
from occreid_jax.distributed import Devices
from occreid_jax.errors import UserError
from occreid_jax.evaluation.embed import make_embed
from occreid_jax.nn import attention, clip, vit
from occreid_jax.train import state
from occreid_jax.train.performance import step_flops, table_shapes
from occreid_jax.train.plan import StagePlan
from occreid_jax.train.step import COLUMNS, StageStep
from occreid_jax.types import Meta, Method, Stage
from occreid_jax.weights.trees import flatten

EMBED = "embed"  # the name of the program that is no stage
Shape = jax.ShapeDtypeStruct


class Facts(NamedTuple):
    """What must be known of a program to judge it. Shapes are by path or name."""

    batch_size: int  # of all chips together
    image_size: tuple[int, int]  # height, width
    trained: dict[str, tuple[int, ...]]  # the parameters that move
    statistics: dict[str, tuple[int, ...]]  # of batch normalisation
    tables: dict[str, tuple[int, ...]]  # what lies on every chip whole: pictures, occluders, features


class Program(NamedTuple):
    """A compiled program."""

    name: str  # of the stage, or `EMBED`
    executable: Any
    text: str  # its optimised HLO
    seconds: float  # to lower and compile
    flops: float  # of one chip by the method's own formulas, 0: unknown
    devices: Devices
    facts: Facts


def open_method(config, images: int, identities: int, cameras: int, devices: Devices) -> Method:
    """The method of ``config`` for a training set of that size and for these chips. They take the place of "auto" in it: its
    dtype becomes bfloat16, its attention and the number of devices theirs, in place."""
    if config.dtype == "auto":
        config.dtype = "bfloat16"
    config.mesh.devices = devices.count
    config.attention = attention.for_platform(config.attention, devices.mesh.devices.flat[0].platform)
    return methods.create(config, Meta(identities, cameras, tuple(config.data.image_size), images))


@contextlib.contextmanager
def shallow(depth: int) -> Iterator[None]:
    """Inside, every transformer of the tables of sizes that has more blocks has ``depth`` of them (0: all as they are).

    Compiling takes seconds in proportion to the blocks, and every kind of operation is there from the first.
    """
    sizes, networks = dict(vit.SIZES), dict(clip.VISUAL)

    def cut(size: Any) -> Any:
        return dataclasses.replace(size, depth=min(depth, size.depth)) if depth and isinstance(size, vit.Size) else size

    try:
        vit.SIZES.update({name: cut(size) for name, size in sizes.items()})
        clip.VISUAL.update({name: both._replace(visual=cut(both.visual), text=cut(both.text)) for name, both in networks.items()})
        yield
    finally:
        vit.SIZES.update(sizes)
        clip.VISUAL.update(networks)


def programs(method: Method, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the programs of a method, or those of ``names``. Raises `UserError` for one that it has not."""
    known = (*(stage.name for stage in method.stages()), EMBED)
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"this config has no stage '{unknown[0]}'; it has {', '.join(known)}")
    return tuple(name for name in known if not names or name in names)


def per_chip(name: str, batch_size: int, devices: Devices) -> int:
    """Pictures of one chip. Raises `UserError` if the batch does not divide."""
    if batch_size % devices.count:
        fitting = -(-batch_size // devices.count) * devices.count
        told = f"a batch of {batch_size} does not divide over {devices.count} chips"
        raise UserError(f"{name}: {told}; give --batch={fitting}, or another multiple of {devices.count}")
    return batch_size // devices.count


def stage_shapes(method: Method, config, stage: Stage) -> tuple[StageStep, tuple, Facts]:
    """The step of ``stage`` at its batch size, the shapes of its arguments, and what a judge of its program must know.

    Epochs are counted as if every picture were seen once in each.
    """
    batch_size, meta = stage.sampler.batch_size, method.meta
    ends = max(meta.images // batch_size, 1) * np.arange(1, stage.epochs + 1)
    plan = StagePlan(0, stage, 0, ends, lambda epoch: np.zeros((1, batch_size), np.int32))
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    step = StageStep(method, plan, params, config.loop.accumulate)
    current = jax.eval_shape(lambda p, e: state.create(p, e, 0), params, extra)
    current = current.replace(opt_state=step.shapes)
    known = table_shapes(method)
    tables = {name: known[name] for name in (*stage.inputs, *COLUMNS, *stage.shared) if name in known}
    kept = tables | (extra.get("tables", {}) if isinstance(extra, Mapping) else {})
    moved = {path: shape for paths in step.paths for path, shape in state.select(params, paths).items()}
    statistics = extra.get("batch_stats", {}) if isinstance(extra, Mapping) else {}
    facts = Facts(batch_size, meta.image_size, shapes(moved), shapes(statistics), shapes(kept))
    return step, (current, tables, Shape((1, batch_size), jnp.int32)), facts


def compile_stage(method: Method, config, stage: Stage, devices: Devices, options: Mapping[str, Any]) -> Program:
    """The training step of ``stage`` at its batch size."""
    share = per_chip(f"stage '{stage.name}'", stage.sampler.batch_size, devices)
    step, arguments, facts = stage_shapes(method, config, stage)
    executable, seconds = compiled(stage.name, step.jitted(devices), arguments, devices, options)
    return Program(stage.name, executable, executable.as_text(), seconds, step_flops(stage) * share, devices, facts)


def compile_embed(method: Method, devices: Devices, batch_size: int, options: Mapping[str, Any]) -> Program:
    """Embedding of one batch of gallery pictures, from uint8 pixels to features on every chip."""
    share = per_chip(EMBED, batch_size, devices)
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    known = table_shapes(method)
    batch = {name: Shape((batch_size, *known[name].shape[1:]), known[name].dtype) for name in method.evaluation_inputs}
    batch |= {name: Shape((batch_size,), jnp.int32) for name in ("camid", "index")} | {"valid": Shape((batch_size,), bool)}
    executable, seconds = compiled(EMBED, make_embed(method, devices, "gallery"), (params, extra, batch), devices, options)
    facts = Facts(batch_size, method.meta.image_size, {}, {}, {})
    return Program(EMBED, executable, executable.as_text(), seconds, method.forward_flops() * share, devices, facts)


@contextlib.contextmanager
def whole_compiler() -> Iterator[None]:
    """Inside, nothing of the compiler is left out, and the compile cache is off: programs for absent chips cannot be loaded."""
    names = ("jax_disable_most_optimizations", "jax_enable_compilation_cache")
    before = [jax.config.values[name] for name in names]
    try:
        for name in names:
            jax.config.update(name, False)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def compiled(name: str, function, arguments: tuple, devices: Devices, options: Mapping[str, Any]) -> tuple[Any, float]:
    """The executable of a jitted function, and the seconds that it took. Raises `UserError` if it does not fit into a chip."""
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    try:
        with whole_compiler():
            executable = lowered.compile(dict(options) or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(too_large(name, str(error))) from error
    seconds = time.perf_counter() - started
    needed = needed_bytes(executable)
    chip = chip_of(devices.mesh.devices.flat[0].device_kind)
    if chip is not None and needed > chip.memory:
        raise UserError(too_large(name, f"{needed / GIB:.1f}G of {chip.memory / GIB:.1f}G"))
    return executable, seconds


def too_large(name: str, told: str) -> str:
    """One line about a program that does not fit, with the amounts in the compiler's words: "(18.64G) exceeds ... (15.75G)"."""
    amounts = re.findall(r"\b([\d.]+)G\b", told)[:2]
    needs = f"needs {' of '.join(amounts)} GiB of a chip" if len(amounts) == 2 else "needs more memory than a chip has"
    remedies = "smaller --batch, --config.method.remat=true where the method has it, --config.mesh.shard_optimizer=true"
    return f"{name}: {needs}: {remedies}, or more chips"


def needed_bytes(executable: Any) -> float:
    """Bytes of one chip while a program runs: its peak where the compiler says it, else arguments, results and work space."""
    memory = executable.memory_analysis()
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return getattr(memory, "peak_memory_in_bytes", 0) or whole


def shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the arrays of one dictionary."""
    return {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
