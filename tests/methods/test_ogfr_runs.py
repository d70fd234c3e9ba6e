"""OGFR in the loop on a tiny set: stopped before, at and after a refresh of the reward's baseline, and on eight devices."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from configs import ogfr as configs
from occreid_jax import distributed, methods
from occreid_jax.data import resident
from occreid_jax.evaluation.evaluate import parameters_hash
from occreid_jax.train import loop, state
from occreid_jax.train.folder import claim_workdir
from occreid_jax.train.log import Reporter
from occreid_jax.train.loop import Trainer
from occreid_jax.train.plan import make_plan
from occreid_jax.train.setup import open_setup
from occreid_jax.train.step import StageStep
from occreid_jax.types import Meta

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def open_trainer(market_root, tmp_path_factory):
    """A function ``(folder)`` -> a fresh `Trainer` of four epochs whose baseline is measured before the first and the third."""
    tables = str(tmp_path_factory.mktemp("tables"))

    def make(folder) -> Trainer:
        config = configs.get_config("dataset=market1501,backbone=32x1x2,stride=16")
        config.data.update(root=str(market_root), cache=tables, image_size=(64, 32))
        config.method.update(unparsed="whole", label_grid=(16, 8), mask_loss_grid=(16, 8))
        config.method.policy.refresh_every = 2
        config.stages.main.epochs = 4
        config.stages.main.sampler.batch_size = 16
        config.stages.main.augment.occlusion.kind = "none"
        config.evaluation.update(batch_size=24, untrained=False)
        config.mesh.devices, config.loop.log_every, config.report.enabled = 1, 1, False
        setup = open_setup(config, Reporter(quiet=True))
        claim_workdir(folder, config, setup.meta)
        return Trainer(setup, folder)

    return make


def test_stopped_around_a_refresh_it_ends_bit_equal(open_trainer, tmp_path, monkeypatch, capsys):
    whole = open_trainer(tmp_path / "whole")
    whole.run()
    assert whole.state.extra["baseline"]["teacher"]["count"] == 2
    refresh = int(whole.plan.stages[0].epoch_ends[1])  # the second epoch's end: the third begins with a refresh
    for step in (refresh - 1, refresh, refresh + 1):

        class Request:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def requested(self, done, step=step):
                return signal.SIGTERM if done == step else 0

        folder = tmp_path / f"cut-{step}"
        with monkeypatch.context() as patch:
            patch.setattr(loop.distributed, "StopRequest", Request)
            with pytest.raises(loop.Stopped, match=f"stopped after step {step}"):
                open_trainer(folder).run()
        cut = open_trainer(folder)
        cut.run()
        for name in ("params", "extra", "opt_state"):
            assert parameters_hash(getattr(whole.state, name)) == parameters_hash(getattr(cut.state, name)), (step, name)
    with capsys.disabled():
        print(f"\nstopped after steps {refresh - 1}, {refresh} and {refresh + 1} of {whole.plan.steps}: bit-equal ends")


META = Meta(identities=8, cameras=2, image_size=(64, 32), images=32)


def stepped(count: int) -> tuple[dict, dict]:
    """(metrics, parameters) after one step on ``count`` devices."""
    config = configs.get_config("backbone=32x1x2")
    config.data.image_size, config.dtype, config.mesh.devices = META.image_size, "float32", count
    config.stages.main.sampler.batch_size = 16
    config.stages.main.sampler.images_per_identity = 2
    # Adam would divide gradients that are 0 but for rounding by themselves.
    config.stages.main.optimizer = common.sgd(learning_rate=0.1, schedule=dict(name="constant"))
    method, labels = methods.create(config, META), np.repeat(np.arange(8), 4)
    (plan,) = make_plan(method.stages(), labels, 0, 1, count).stages
    params, extra = jax.jit(method.init)(jax.random.key(0))
    devices = distributed.devices(count)
    step = StageStep(method, plan, params)
    current = state.create(params, extra, 0).replace(opt_state=step.init(params))
    rng = np.random.default_rng(0)
    columns = {
        "image": rng.integers(0, 256, (32, *META.image_size, 3), np.uint8),
        "parts": rng.integers(0, 9, (32, *META.image_size), np.uint8),
        "parsed": np.arange(32) % 5 > 0,
        "camid": np.zeros(32, np.int32),
        "label": labels.astype(np.int32),
        "occluders": rng.integers(0, 256, (4, 32, 32, 4), np.uint8),
        "occluder_sides": np.full((4, 2), 32, np.int32),
    }
    tables = resident.device_tables(columns, devices.replicated)
    rows = jnp.arange(0, 32, 2, dtype=jnp.int32)[None]
    current = distributed.place(current, devices.replicated)
    current, metrics = step.jitted(devices)(current, tables, distributed.place(np.asarray(rows), devices.steps))
    return jax.device_get(metrics), jax.device_get(current.params)


def test_eight_devices_step_like_one():
    """The agent's draws too are those of one device."""
    (one, params), (eight, others) = stepped(1), stepped(8)
    assert one["kept"] == eight["kept"]
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, rtol=2e-3, atol=1e-5, err_msg=name)
    for mine, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-4)
