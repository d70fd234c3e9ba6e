"""Real steps at the published size: slow on a CPU, but the only proof that it computes and what it needs."""

import importlib
import resource
import time

import jax
import numpy as np
import pytest

from occreid_jax import distributed, methods
from occreid_jax.data import resident
from occreid_jax.train import state
from occreid_jax.train.plan import make_plan
from occreid_jax.train.step import StageStep
from occreid_jax.types import Meta

TRAINED = [name for name in sorted(methods.NAMES) if importlib.import_module(f"configs.{name}").get_config().stages]


ARGUMENTS = {"clip_reid": ",stride=12,camera=true"}  # the grid of DPM++, so that the costs compare


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TRAINED)
def test_one_full_size_step_of_every_stage(name, capsys):
    config = importlib.import_module(f"configs.{name}").get_config("dataset=market1501" + ARGUMENTS.get(name, ""))
    for stage in config.stages.values():
        stage.sampler.batch_size = 8
    labels = np.repeat(np.arange(751), 4)
    method = methods.create(config, Meta(751, 6, (256, 128), len(labels)))
    devices = distributed.devices(1)
    params, extra = jax.jit(method.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    for plan in make_plan(method.stages(), labels, 0, 1, 1).stages:
        step = StageStep(method, plan, params)
        current = state.create(params, extra, 0).replace(opt_state=step.init(params))
        columns = {
            "image": rng.integers(0, 256, (64, 256, 128, 3), np.uint8),
            "caption": rng.integers(1, 100, (64, 4, 32), np.int32),
            "camid": np.zeros(64, np.int32),
            "label": labels[:64].astype(np.int32),
            "occluders": rng.integers(0, 256, (8, 32, 32, 4), np.uint8),
            "occluder_sides": rng.integers(8, 64, (8, 2)).astype(np.int32),
        }
        tables = resident.device_tables(columns, devices.replicated)
        rows = np.arange(8, dtype=np.int32)[None]
        executable = step.jitted(devices).lower(current, tables, rows).compile()
        current, metrics = executable(current, tables, rows)
        jax.block_until_ready(metrics)
        started = time.monotonic()
        current, metrics = executable(current, tables, rows)
        jax.block_until_ready(metrics)
        seconds = time.monotonic() - started
        params, extra = current.params, current.extra  # the old ones were given away
        assert np.isfinite(metrics["loss"]).all()
        memory = executable.memory_analysis()
        with capsys.disabled():
            print(
                f"\n{name}, stage {plan.stage.name}, 256x128, batch 8: loss {float(metrics['loss'][0]):.3f}, "
                f"{seconds:.2f} s for the second step, "
                f"{memory.argument_size_in_bytes / 1e9:.2f} GB state, {memory.temp_size_in_bytes / 1e9:.2f} GB work space, "
                f"peak of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"
            )
