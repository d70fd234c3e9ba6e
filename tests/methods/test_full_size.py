"""Real steps at the published size: slow on a CPU, but the only proof that it computes and what it needs.

Each stage has a test of its own that begins with the initial parameters: what one has freed, the next does not need again.
"""

import functools
import importlib
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from occreid_jax import distributed, methods
from occreid_jax.data import resident
from occreid_jax.train import state
from occreid_jax.train.plan import make_plan
from occreid_jax.train.step import StageStep
from occreid_jax.types import Meta

ARGUMENTS = {  # the grid of DPM++, so that the costs compare; all of DPL-ReID, which has less on Market-1501; OGFR's finest grid
    "clip_reid": ",stride=12,camera=true", "dpl_reid": ",row=full", "ogfr": ",stride=11",
}  # fmt: skip
BATCH = 4  # two pictures of two people: every loss has something to compare
LARGEST = 8.0  # GB that one process may take, two of which run side by side


def peak_gigabytes(reset: bool = False) -> float:
    """Most memory that this process held since the last reset, where the system counts it; 0 elsewhere."""
    if not Path("/proc/self/clear_refs").exists():
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


@functools.cache
def config_of(name):
    config = importlib.import_module(f"configs.{name}").get_config("dataset=market1501" + ARGUMENTS.get(name, ""))
    for stage in config.stages.values():
        stage.sampler.batch_size = BATCH
        if "images_per_identity" in stage.sampler:
            stage.sampler.images_per_identity = 2
    return config


CASES = [(name, stage) for name in sorted(methods.NAMES) for stage in config_of(name).stages]


def cheap_start(method):
    """Parameters and extra of the method's shapes: random kernels, ones for scales and variances, else zeros.

    The method's own initial values (tested on micro networks) take longer here than the step.
    """
    rng = np.random.default_rng(0)

    def one(path, leaf):
        if str(path[-1].key) in ("scale", "var"):
            return jax.numpy.ones(leaf.shape, leaf.dtype)
        if leaf.ndim < 2 or not np.issubdtype(leaf.dtype, np.floating):
            return jax.numpy.zeros(leaf.shape, leaf.dtype)
        return jax.numpy.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, jax.eval_shape(method.init, jax.random.key(0)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "stage"), CASES, ids=["-".join(case) for case in CASES])
def test_one_full_size_step(name, stage, capsys):
    peak_gigabytes(reset=True)
    labels = np.repeat(np.arange(751), 4)
    method = methods.create(config_of(name), Meta(751, 6, (256, 128), len(labels)))
    plans = {plan.stage.name: plan for plan in make_plan(method.stages(), labels, 0, 1, 1).stages}
    params, extra = cheap_start(method)
    step = StageStep(method, plans[stage], params)
    current = state.create(params, extra, 0).replace(opt_state=step.init(params))
    del params, extra  # the step gives them away
    devices = distributed.devices(1)
    rng = np.random.default_rng(0)
    columns = {
        "image": rng.integers(0, 256, (64, 256, 128, 3), np.uint8),
        "parts": rng.integers(0, 9, (64, 256, 128), np.uint8),
        "parsed": np.ones(64, bool),
        "caption": rng.integers(1, 100, (64, 4, 32), np.int32),
        "camid": np.zeros(64, np.int32),
        "label": np.repeat(np.arange(32), 2).astype(np.int32),
        "occluders": rng.integers(0, 256, (8, 32, 32, 4), np.uint8),
        "occluder_sides": rng.integers(8, 64, (8, 2)).astype(np.int32),
    }
    tables = resident.device_tables(columns, devices.replicated)
    rows = np.arange(BATCH, dtype=np.int32)[None]
    began = time.process_time()
    executable = step.jitted(devices).lower(current, tables, rows).compile()
    compiled = time.process_time()
    current, metrics = jax.block_until_ready(executable(current, tables, rows))
    ended = time.process_time()
    memory, peak = executable.memory_analysis(), peak_gigabytes()
    with capsys.disabled():
        print(
            f"\n{name}, stage {stage}, 256x128, batch {BATCH}: loss {float(metrics['loss'][0]):.3f}, "
            f"{compiled - began:.0f} CPU-s to compile, {ended - compiled:.0f} for a step, "
            f"{memory.argument_size_in_bytes / 1e9:.2f} GB state, {memory.temp_size_in_bytes / 1e9:.2f} GB work space, "
            f"peak of the process {peak:.2f} GB"
        )
    assert np.isfinite(metrics["loss"]).all()
    assert (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9 < LARGEST and peak < LARGEST
