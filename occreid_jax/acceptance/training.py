"""Whole runs of launch/train.py: one that is killed and goes on, and demos of the embedded benchmark."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from occreid_jax.acceptance.task import Task, accelerator
from occreid_jax.files import read_json
from occreid_jax.train.log import read_metrics

SAVING = 15.0  # seconds that a run gets to save itself when its time is over
LEAST = 45.0  # seconds below which no demo is begun
SHORT = (  # a run of seconds: one block, small pictures
    "--config=configs/baseline.py:pretrained=false,backbone=32x1x2", "--config.data.image_size=64,32",
    "--config.stages.main.epochs=5", "--config.report.enabled=False", "--config.evaluation.untrained=False",
)  # fmt: skip


class OutOfTime(Exception):
    """The part's time ended while a run was going on."""


def resume(task: Task) -> Iterator[dict[str, Any]]:
    """One row: a run killed once its first checkpoint is there, gone on with, beside the same run that nobody stopped.

    Both end with the same parameters, bit by bit. GPUs are asked for kernels that always add in the same order.
    """
    shutil.rmtree(task.out / "resume", ignore_errors=True)
    whole, killed = task.out / "resume" / "whole", task.out / "resume" / "killed"
    environment = dict(os.environ)
    if accelerator():
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    run(task, whole, SHORT, environment)
    with training(task, killed, SHORT, environment) as process:
        while not checkpoints(killed):
            if process.poll() is not None or task.left < 0:
                raise OutOfTime("the run to kill made no checkpoint")
            time.sleep(0.01)
        process.kill()
        process.wait()
    step = max(checkpoints(killed))
    run(task, killed, SHORT, environment)
    ours, theirs = (read_json(folder / "results.json") for folder in (killed, whole))
    yield {
        "killed_after_step": step,
        "steps": read_metrics(whole / "metrics.jsonl")[-1]["step"],
        "bit_equal": ours["parameters_sha256"] == theirs["parameters_sha256"],
        "mAP": ours["mAP"],
        "mAP_uninterrupted": theirs["mAP"],
    }


def checkpoints(workdir: Path) -> list[int]:
    """Steps of the complete checkpoints of a run."""
    return [int(path.name) for path in workdir.glob("checkpoints/latest/*") if path.name.isdigit()]


def demos(task: Task) -> Iterator[dict[str, Any]]:
    """One demo run per config, as long as there is time. One that is stopped goes on in the next acceptance with this folder."""
    for name in task.demos:
        if task.left < LEAST:
            return
        workdir, started = task.out / "runs" / name, time.monotonic()
        row = {"command": f"python launch/train.py --config=configs/{name}.py"}
        try:
            run(task, workdir, (f"--config=configs/{name}.py",), dict(os.environ))
            results = read_json(workdir / "results.json")
            row |= {key: results[key] for key in ("untrained_mAP", "mAP", "rank1", "mINP")}
        except OutOfTime as error:
            row |= {"ended": str(error)}
        yield row | {"seconds": round(time.monotonic() - started, 1)}


def run(task: Task, workdir: Path, arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Trains to the end. Raises `OutOfTime` if that takes longer than the part has, RuntimeError if the run fails."""
    with training(task, workdir, arguments, environment) as process:
        try:
            process.wait(max(1.0, task.left - SAVING))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAVING)
            raise OutOfTime("stopped at its time; it goes on from its checkpoint") from None
    if process.returncode:
        raise RuntimeError(f"launch/train.py ended with status {process.returncode}; its words are in {workdir}.txt")


@contextlib.contextmanager
def training(task: Task, workdir: Path, arguments: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A running launch/train.py, which does not outlive the block. What it prints is kept beside its folder."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(task.root / "launch" / "train.py"), *arguments, f"--workdir={workdir}"]
    with Path(f"{workdir}.txt").open("a") as words:
        process = subprocess.Popen(command, cwd=task.root, env=environment, stdout=words, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
