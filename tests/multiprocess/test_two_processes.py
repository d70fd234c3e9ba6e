"""Two processes with four devices each train one run together, with the losses of one process with eight."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from occreid_jax.files import read_json
from occreid_jax.train.log import read_metrics
from tests.launch.test_two_at_once import Other

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def start(arguments: list[str], processes: int) -> list[subprocess.Popen]:
    """Starts ``launch/train.py`` once per process, joined through a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for process in range(processes):
        environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}"}
        environment |= {"PYTHONFAULTHANDLER": "1"}
        if processes > 1:
            environment |= {
                "OCCREID_COORDINATOR": f"127.0.0.1:{port}",
                "OCCREID_PROCESSES": str(processes),
                "OCCREID_PROCESS": str(process),
            }
        command = [sys.executable, str(ROOT / "launch" / "train.py"), *arguments]
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    return started


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """(exit status, output) of each; if one does not end in time, all tell where they stand and are ended."""
    outputs, late = [], False
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=10 if late else 240)[0])
        except subprocess.TimeoutExpired:
            late = True
            for other in processes:
                other.send_signal(signal.SIGABRT)  # faulthandler prints the stacks of all threads
            outputs.append(process.communicate(timeout=60)[0])
    assert not late, "\n".join(["not ended in time", *outputs])
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


@pytest.fixture
def arguments(market_root, tmp_path):
    def make(name: str, epochs: int) -> list[str]:
        return [
            "--config=configs/baseline.py:dataset=market1501,backbone=micro", f"--config.data.root={market_root}",
            f"--config.data.cache={tmp_path / 'tables'}", "--config.data.image_size=64,32",
            f"--config.stages.main.epochs={epochs}", "--config.stages.main.sampler.batch_size=16",
            "--config.report.enabled=False", "--config.loop.log_every=1", f"--workdir={tmp_path / name}",
        ]  # fmt: skip

    return make


def losses_of(workdir: Path) -> list[float]:
    """Those of the first two epochs: every step enlarges what sums in another order round differently."""
    losses = [line["main/loss"] for line in read_metrics(workdir / "metrics.jsonl") if "main/loss" in line]
    return losses[: 2 * len(losses) // 3]


def test_two_processes_train_like_one(arguments, tmp_path):
    """Two that keep the whole of the optimiser's state each, and two of whose devices each keeps a piece of it."""
    pieces = ["--config.mesh.shard_optimizer=True"]
    for name, count, more in (("one", 1, []), ("two", 2, []), ("pieces", 2, pieces)):
        for status, output in finish(start([*arguments(name, 3), *more], count)):
            assert status == 0, output
    one, *others = (read_json(tmp_path / name / "results.json") for name in ("one", "two", "pieces"))
    assert [one["mAP"]] * 2 == pytest.approx([other["mAP"] for other in others], abs=0.5)
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "two"), rel=1e-3)
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "pieces"), rel=1e-3)
    (_, told), _ = again = finish(start([*arguments("pieces", 3), *pieces], 2))  # what they stored together is read together
    assert [status for status, _ in again] == [0, 0] and "going on from step" in told, again


def test_all_processes_of_a_second_start_are_told(arguments, tmp_path):
    """The lead alone asks for the folder; the others do not wait for it."""
    first = Other(tmp_path / "held")
    try:
        ended = finish(start(arguments("held", 1), 2))
    finally:
        first.kill()
    assert [status for status, _ in ended] == [1, 1]
    assert all(f"error: {first.line(tmp_path / 'held')}" in output.splitlines() for _, output in ended), ended
