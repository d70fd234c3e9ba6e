"""A run folder has one training at a time: the second start is told and stops, a killed one leaves the folder free."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from occreid_jax.errors import UserError
from occreid_jax.files import check_unheld, hold
from tests.launch.conftest import ROOT, listing


class Other:
    """A process that holds a folder, as a training does."""

    def __init__(self, folder: Path):
        program = f"from occreid_jax.files import hold; held = hold({str(folder)!r}); print('held', flush=True); input()"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout.readline() == "held\n"

    def line(self, folder: Path) -> str:
        """What a second one is told."""
        who = f"process {self.process.pid} on {socket.gethostname()}"
        return f"{folder}: another process trains there ({who}); wait for it, stop it, or choose another --workdir"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def other():
    started = []

    def start(folder: Path) -> Other:
        started.append(Other(folder))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def test_a_held_folder_and_one_that_a_kill_left(other, tmp_path):
    folder = tmp_path / "run"
    check_unheld(folder)
    assert not folder.exists()
    first = other(folder)
    for ask in (hold, check_unheld):
        with pytest.raises(UserError) as told:
            ask(folder)
        assert str(told.value) == first.line(folder)
    first.kill()
    check_unheld(folder)
    held = hold(folder)
    assert held.note == "" and (folder / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    note = hold(tmp_path).note
    assert note == f"{tmp_path} cannot be locked ([Errno 37] No locks available); start no second run in it"


def test_the_second_start_is_told(launch, tiny, run_copy, other, tmp_path):
    first = other(run_copy)
    before = {name: (run_copy / name).stat().st_mtime_ns for name in listing(run_copy)}
    unfinished = run_copy / "checkpoints" / "latest" / "99.orbax-checkpoint-tmp"  # what the first one is writing
    unfinished.mkdir()
    line = launch("train.py", *tiny(f"--workdir={run_copy}")).mistake()
    assert line == f"error: {first.line(run_copy)}" and unfinished.is_dir()
    unfinished.rmdir()
    after = {name: (run_copy / name).stat().st_mtime_ns for name in listing(run_copy)}
    assert {name for name in after if after[name] != before[name]} <= {"checkpoints/latest"}  # where the folder came and went
    first.kill()
    launch("train.py", *tiny(f"--workdir={run_copy}")).fine()


def test_two_that_begin_together(tiny_config, tmp_path, other):
    """Both found the folder free; the later one is told before it opens a checkpoint or writes a setting."""
    from occreid_jax.train.log import Reporter
    from occreid_jax.train.loop import Trainer
    from occreid_jax.train.setup import open_setup

    config = tiny_config(data__cache=str(tmp_path / "tables"), mesh__devices=1)
    setup = open_setup(config, Reporter(quiet=True))
    first = other(tmp_path / "run")
    with pytest.raises(UserError) as told:
        Trainer(setup, tmp_path / "run")
    assert str(told.value) == first.line(tmp_path / "run") and listing(tmp_path / "run") == [".lock"]
