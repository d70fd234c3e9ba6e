"""A made-up method that uses every part of the protocol at once: two stages, cached features as inputs, a bank filled by a pass
and refreshed, alternating updates, groups of learning rates. The loop must run it, and resume it bit-equal at every boundary."""

import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import common
from occreid_jax.evaluation.evaluate import parameters_hash
from occreid_jax.losses.identity import cross_entropy
from occreid_jax.methods.base import MethodBase
from occreid_jax.train import loop
from occreid_jax.train.bounds import beyond, beyond_at_the_end
from occreid_jax.train.folder import claim_workdir
from occreid_jax.train.log import Reporter, read_metrics
from occreid_jax.train.loop import Trainer
from occreid_jax.train.setup import open_setup
from occreid_jax.types import Aux, Bound, Stage, Update

WIDTH = 6
LATE, SOON = Bound("progress", 0.0, 1.0, "never said"), Bound("progress", 0.0, 0.3, "it is half over; go on")


class TwoStages(MethodBase):
    """Stage ``prompts`` trains a head on features that `prepare` cached; stage ``joint`` alternates between encoder and head."""

    def stages(self):
        sgd = ml_collections.ConfigDict(common.sgd(learning_rate=0.05, schedule=dict(name="constant"), groups=(("scale", 0.5),)))
        uniform = ml_collections.ConfigDict(dict(name="uniform", batch_size=32))

        def keep(rng, batch):
            return batch

        def normalise(rng, batch):
            return self.transform(batch)

        return (
            Stage("prompts", 2, uniform, (Update("^head/", sgd),), keep, inputs=("feature",), bounds=(LATE, SOON)),
            Stage("joint", 4, uniform, (Update("^encoder/", sgd), Update("^head/", sgd)), normalise, refresh_every=2),
        )

    def init(self, rng):
        encoder, head = jax.random.split(rng)
        params = {
            "encoder": {"kernel": 0.3 * jax.random.normal(encoder, (3, WIDTH)), "scale": jnp.ones(WIDTH)},
            "head": {"kernel": 0.3 * jax.random.normal(head, (WIDTH, self.meta.identities))},
        }
        extra = {
            "tables": {"feature": jnp.zeros((self.meta.images, WIDTH))},
            "bank": jnp.zeros((self.meta.identities, WIDTH)),
            "start": jnp.zeros((self.meta.identities, WIDTH)),
            "prepared": jnp.zeros((), jnp.int32),
        }
        return params, extra

    def encode(self, params, images):
        return jnp.tanh(images.mean(axis=(1, 2)) @ params["encoder"]["kernel"]) * params["encoder"]["scale"]

    def prepare(self, stage, epoch, context):
        features = context.pass_(lambda params, extra, batch: self.encode(params, batch["image"]))
        assert features.shape == (self.meta.images, WIDTH) and len(context.labels) == self.meta.images
        sums = np.zeros((self.meta.identities, WIDTH), np.float32)
        np.add.at(sums, context.labels, features)
        counts = np.bincount(context.labels, minlength=self.meta.identities)[:, None].astype(np.float32)
        prepared = np.asarray(context.extra["prepared"]) + np.int32(1)
        bank = jnp.asarray(sums / counts)  # one array in two places, of which the step moves one
        return {"tables": {"feature": features}, "bank": bank, "start": bank, "prepared": prepared}

    def start(self, stage, params, extra):
        head = {"kernel": extra["start"].T} if stage.name == "prompts" else params["head"]  # which the step gives away as well
        return params | {"head": head}

    def loss(self, params, extra, batch, rng, stage, t):
        features = batch["feature"] if stage.name == "prompts" else self.encode(params, batch["image"])
        noise = 0.1 * jax.random.normal(rng, features.shape)
        logits = (features + noise) @ params["head"]["kernel"] + features @ extra["bank"].T
        bank = extra["bank"].at[batch["label"]].set(0.5 * extra["bank"][batch["label"]] + 0.1 * (1.0 - t))
        return cross_entropy(logits, batch["label"]), Aux(extra | {"bank": bank}, {"progress": t})

    def embed(self, params, extra, batch, role):
        return self.encode(params, batch["image"])


@pytest.fixture(scope="module")
def open_trainer(tiny_config, tmp_path_factory):
    """A function ``(folder)`` -> a fresh `Trainer` of the made-up method in this run folder."""
    tables = str(tmp_path_factory.mktemp("tables"))

    def make(folder: Path) -> Trainer:
        config = tiny_config(data__cache=tables, mesh__devices=1, loop__log_every=1, evaluation__untrained=False)
        setup = open_setup(config, Reporter(quiet=True))
        setup.method = TwoStages(config, setup.meta)
        claim_workdir(folder, config, setup.meta)
        return Trainer(setup, folder)

    return make


@pytest.fixture
def trainer(open_trainer, tmp_path):
    """A function ``(name)`` -> a fresh `Trainer` in the test's run folder of that name."""
    return lambda name: open_trainer(tmp_path / name)


@pytest.fixture(scope="module")
def whole(open_trainer, tmp_path_factory) -> Trainer:
    """The run that nobody stopped, which tests only read."""
    trainer = open_trainer(tmp_path_factory.mktemp("whole"))
    trainer.run()
    return trainer


def test_stages_run_one_after_the_other(whole):
    first, second = whole.plan.stages
    assert (first.start, first.steps, second.start) == (0, 8, 8) and whole.plan.steps == 24
    before = jax.device_get(jax.jit(whole.method.init)(jax.random.fold_in(jax.random.key(0), 1))[0])
    assert int(whole.state.extra["prepared"]) == 3  # at both stages' starts and before the second stage's third epoch
    assert len(whole.state.opt_state) == 2
    lines = [line for line in read_metrics(whole.workdir / "metrics.jsonl") if "stage" in line]
    assert [line["stage"] for line in lines] == ["prompts"] * 8 + ["joint"] * 16
    progress = [line.get("prompts/progress", line.get("joint/progress")) for line in lines]
    np.testing.assert_allclose(progress, [*np.arange(8) / 8, *np.arange(16) / 16], atol=1e-6)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, jax.device_get(whole.state.params))
    assert all(value > 1e-4 for value in jax.tree.leaves(moved))


def test_a_metric_outside_of_its_bounds_is_told_once_and_at_the_end(whole):
    assert whole.told == {("prompts", "progress")}
    stages = [plan.stage for plan in whole.plan.stages]
    lines = read_metrics(whole.workdir / "metrics.jsonl")
    sentence = "stage prompts: progress is 0.875 at step 8, outside of 0 to 0.3: it is half over; go on"
    assert beyond_at_the_end(stages, lines) == (sentence,)
    assert beyond(stages[0], {"progress": 0.3}, 1) == {} and beyond(stages[0], {"progress": -0.1}, 1)
    assert beyond_at_the_end(stages, []) == ()


def test_the_first_stage_leaves_the_encoder_alone(trainer, monkeypatch):
    run = trainer("cut")
    before = jax.device_get(jax.jit(run.method.init)(jax.random.fold_in(jax.random.key(0), 1))[0])
    stop_at(monkeypatch, 8)
    with pytest.raises(loop.Stopped):
        run.run()
    step = run.checkpoints.last_step()
    params, _ = trainer("cut").checkpoints.restore_model(step, *jax.eval_shape(run.method.init, jax.random.key(0)))
    np.testing.assert_array_equal(params["encoder"]["kernel"], before["encoder"]["kernel"])
    assert np.abs(params["head"]["kernel"] - before["head"]["kernel"]).max() > 1e-4


def stop_at(monkeypatch, step: int) -> None:
    """Makes the loop see SIGTERM after global step ``step``."""

    class Request:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def requested(self, done):
            return signal.SIGTERM if done == step else 0

    monkeypatch.setattr(loop.distributed, "StopRequest", Request)


@pytest.mark.parametrize("step", [3, 4, 8, 9, 12, 16, 18, 20])
def test_resuming_is_bit_equal_inside_and_at_every_boundary(step, trainer, whole, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(loop.Stopped, match=f"stopped after step {step}"):
            trainer("cut").run()
    cut = trainer("cut")
    cut.run()
    for name in ("params", "extra", "opt_state"):
        assert parameters_hash(getattr(whole.state, name)) == parameters_hash(getattr(cut.state, name)), name
