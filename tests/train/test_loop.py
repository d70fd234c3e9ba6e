"""The loop from start to end on a tiny set: results, resuming after a kill and after SIGTERM, refusals, other starts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from occreid_jax import distributed
from occreid_jax.errors import UserError
from occreid_jax.files import read_json
from occreid_jax.train.folder import claim_workdir
from occreid_jax.train.log import Reporter, read_metrics
from occreid_jax.train.loop import Stopped, Trainer
from occreid_jax.train.setup import open_setup
from occreid_jax.train.start import read_run
from occreid_jax.weights.trees import flatten

ROOT = Path(__file__).resolve().parents[2]


def train(config, workdir: Path):
    setup = open_setup(config, Reporter(quiet=True))
    claim_workdir(workdir, config, setup.meta)
    trainer = Trainer(setup, workdir)
    return trainer.run(), trainer


def comparable(workdir: Path) -> dict:
    """results.json without what may differ between two equal runs."""
    results = read_json(workdir / "results.json")
    del results["seconds"]
    return results


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> str:
    """The cache folder of this file's image tables: every run reads the same pictures."""
    return str(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def whole(tiny_config, tables, tmp_path_factory):
    """A finished run on one device, which tests only read: config, evaluation, trainer."""
    config = tiny_config(data__cache=tables, evaluation__every_epochs=1, mesh__devices=1)
    return config, *train(config, tmp_path_factory.mktemp("whole"))


def test_a_run_leaves_what_it_promises(whole, tmp_path):
    config, evaluation, trainer = whole
    run = Path(shutil.copytree(trainer.workdir, tmp_path / "run"))
    results = read_json(run / "results.json")
    for key in ("protocol", "mAP", "mINP", "rank1", "rank5", "rank10", "untrained_mAP", "queries", "gallery", "skipped_queries"):
        assert key in results
    assert results["protocol"].startswith("market1501/")
    assert evaluation.summary.startswith(f"mAP {results['mAP']:.1f}  R-1 ")
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines if "evaluation/mAP" in line] == [int(end) for end in trainer.plan.stages[0].epoch_ends]
    losses = [line["main/loss"] for line in lines if "main/loss" in line]
    assert losses[-1] < losses[0]
    assert list((run / "tensorboard").glob("events*"))
    assert trainer.checkpoints.latest.latest_step() == trainer.plan.steps
    again, _ = train(config, run)  # a finished run only evaluates again
    assert again.results["parameters_sha256"] == results["parameters_sha256"]
    assert len(read_metrics(run / "metrics.jsonl")) == len(lines)


def command(config_changes: list[str], market_root: Path, workdir: Path, cache: Path) -> list[str]:
    return [
        sys.executable, str(ROOT / "launch" / "train.py"), "--config=configs/baseline.py:dataset=market1501,backbone=32x1x2",
        f"--config.data.root={market_root}", f"--config.data.cache={cache}", "--config.data.image_size=64,32",
        "--config.stages.main.epochs=12", "--config.stages.main.sampler.batch_size=16", "--config.evaluation.every_epochs=4",
        "--config.report.enabled=False", "--config.loop.log_every=1", f"--workdir={workdir}", *config_changes,
    ]  # fmt: skip


def wait_for_checkpoint(workdir: Path, process: subprocess.Popen) -> None:
    """Returns when the first complete checkpoint is there."""
    for _ in range(6000):
        folder = workdir / "checkpoints" / "latest"
        if process.poll() is not None or (folder.is_dir() and any(entry.name.isdigit() for entry in folder.iterdir())):
            return
        time.sleep(0.01)
    raise AssertionError("the run did not get there in a minute")


@pytest.fixture(scope="module")
def long_config(tiny_config, tables):
    """What `command` trains, on eight devices: long enough to be stopped on the way."""
    return tiny_config(data__cache=tables, stages__main__epochs=12, evaluation__every_epochs=4, loop__log_every=1)


@pytest.fixture(scope="module")
def uninterrupted(long_config, tmp_path_factory):
    """Results of the run that nobody stopped."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    train(long_config, workdir)
    return comparable(workdir)


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_stopped_run_ends_bit_equal(stop, status, market_root, tables, long_config, tmp_path, uninterrupted):
    workdir = tmp_path / "stopped"
    changes = [f"--config.evaluation.batch_size={long_config.evaluation.batch_size}"]
    arguments = command(changes, market_root, workdir, tables)
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(workdir, process)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert not (workdir / "results.json").exists()
    if stop == signal.SIGTERM:
        assert errors.count("\n") == 1 and "the same command goes on from there" in errors
    finished = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "going on from step" in finished.stdout
    assert comparable(workdir) == uninterrupted


class StopAtTen:
    """What a signal in the middle of an epoch does, in place of `distributed.StopRequest`."""

    def __init__(self):
        self.signal = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def requested(self, step):
        return signal.SIGTERM if step == 10 else 0


def stop_at_ten(config, workdir: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "StopRequest", StopAtTen)
        with pytest.raises(Stopped, match="stopped after step 10"):
            train(config, workdir)


def test_optimiser_state_is_resumed_too(whole, tmp_path, monkeypatch):
    """The optimiser's buffers of a run stopped in the middle of an epoch equal those of an uninterrupted one."""
    config, _, uncut = whole
    stop_at_ten(config, tmp_path / "cut", monkeypatch)
    _, cut = train(config, tmp_path / "cut")
    chex.assert_trees_all_equal(jax.device_get(uncut.state.opt_state), jax.device_get(cut.state.opt_state))


@pytest.mark.slow
def test_pieces_of_the_optimiser_s_state_are_resumed_on_any_devices(tiny_config, tables, tmp_path, monkeypatch):
    """A stopped run ends bit-equal on the same eight devices; on two, on one and in whole arrays the same state goes on."""
    monkeypatch.setattr(distributed, "SMALL", 1)

    def config(devices=8, shard=True):
        return tiny_config(data__cache=tables, mesh__devices=devices, mesh__shard_optimizer=shard, evaluation__untrained=False)

    _, uncut = train(config(), tmp_path / "uncut")
    stop_at_ten(config(), tmp_path / "cut", monkeypatch)
    states = []
    for number, (arguments, sides) in enumerate((((8, True), 8), ((2, True), 2), ((1, True), 1), ((8, False), 1))):
        folder = shutil.copytree(tmp_path / "cut", tmp_path / f"cut{number}")
        trainer = Trainer(open_setup(config(*arguments), Reporter(quiet=True)), folder)
        restored = trainer.restore()
        trainer.checkpoints.close()
        buffers = [leaf for leaf in jax.tree.leaves(restored.opt_state) if leaf.size % 8 == 0]
        assert {leaf.size // leaf.addressable_shards[0].data.size for leaf in buffers} == {sides}
        states.append(jax.device_get((restored.params, restored.opt_state)))
        chex.assert_trees_all_equal(states[0], states[-1])
    _, cut = train(config(), tmp_path / "cut")
    ends = [jax.device_get((trainer.state.params, trainer.state.opt_state)) for trainer in (uncut, cut)]
    chex.assert_trees_all_equal(*ends)


def test_another_config_is_refused_with_the_differences(tiny_config, tmp_path):
    config = tiny_config(data__cache=str(tmp_path / "tables"))
    setup = open_setup(config, Reporter(quiet=True))
    claim_workdir(tmp_path / "run", config, setup.meta)
    claim_workdir(tmp_path / "run", tiny_config(data__cache="elsewhere"), setup.meta)  # does not change what is computed
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"another config \(stages.main.epochs: 3 -> 7\)"):
        claim_workdir(tmp_path / "run", tiny_config(stages__main__epochs=7), setup.meta)


def test_starting_from_another_run(whole, tiny_config, tables, tmp_path):
    _, _, first = whole
    config = tiny_config(
        data__cache=tables, mesh__devices=1, init__run=str(first.workdir), stages__main__epochs=1, evaluation__untrained=False,
        stages__main__optimizer__learning_rate=0.0,
    )  # fmt: skip
    config.stages.main.optimizer.schedule = dict(name="constant")
    _, second = train(config, tmp_path / "second")
    stored = flatten(read_run(first.workdir)["params"])
    for path, value in flatten(second.state.params).items():
        np.testing.assert_array_equal(value, stored[path])


def test_a_loss_that_is_not_finite_stops_with_names(tiny_config, tables, tmp_path):
    config = tiny_config(data__cache=tables, mesh__devices=1, loop__log_every=1, evaluation__untrained=False)
    config.stages.main.optimizer.schedule = dict(name="constant")
    config.stages.main.optimizer.learning_rate = 1e25
    with pytest.raises(UserError, match="is not finite") as caught:
        train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    told = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert len(told["images"]) == 16 and told["images"][0].endswith(".jpg")
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.fixture(scope="module")
def one_epoch(tiny_config, tables, tmp_path_factory):
    """A function ``(**changes)`` -> mAP after one epoch with these changes of the config."""

    def mean_average_precision(**changes) -> float:
        config = tiny_config(data__cache=tables, stages__main__epochs=1, evaluation__untrained=False, **changes)
        evaluation, _ = train(config, tmp_path_factory.mktemp("epoch"))
        return evaluation.results["mAP"]

    return mean_average_precision


@pytest.fixture(scope="module")
def on_eight_devices(one_epoch) -> float:
    """mAP after one epoch on eight devices that hold the tables."""
    return one_epoch(mesh__devices=8, data__resident="always")


def test_eight_devices_train_like_one(one_epoch, on_eight_devices):
    assert one_epoch(mesh__devices=1) == pytest.approx(on_eight_devices, abs=0.5)


def test_streaming_trains_like_resident_tables(one_epoch, on_eight_devices):
    assert one_epoch(mesh__devices=8, data__resident="never") == pytest.approx(on_eight_devices, abs=1e-6)


def test_the_environment_names_the_data_root(tiny_config, monkeypatch):
    from occreid_jax.train.setup import data_root

    config = tiny_config(data__root="data")
    monkeypatch.setitem(os.environ, "OCCREID_DATA", "/somewhere")
    assert data_root(config) == Path("/somewhere")
    config.data.root = "/mine"
    assert data_root(config) == Path("/mine")
