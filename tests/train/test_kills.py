"""SIGKILL at ten random moments: while compiling, inside an epoch, at its end, while saving, while evaluating. The run that is
started again after every kill ends bit-equal to the one that nobody stopped."""

import json
import random
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_loop import ROOT, command, comparable

LONGER = ["--config.stages.main.epochs=120", "--config.evaluation.every_epochs=4"]


def stored(workdir: Path) -> list[np.ndarray]:
    """Every array of the newest checkpoint: parameters, BatchNorm statistics, optimiser state, step and key."""
    with ocp.CheckpointManager((workdir / "checkpoints" / "latest").absolute()) as manager:
        step = manager.latest_step()
        items = {}
        for item in ("model", "training"):
            metadata = manager.item_metadata(step)[item]
            tree = metadata.tree if hasattr(metadata, "tree") else metadata
            items[item] = jax.tree.map(lambda leaf: getattr(leaf, "shape", ()), tree)
        with ocp.StandardCheckpointer() as reader:
            folder = manager.directory / str(step)
            return [
                np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
                for item in ("model", "training")
                for leaf in jax.tree.leaves(reader.restore(folder / item))
            ]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_kills_change_nothing(market_root, tmp_path, capsys):
    started = time.monotonic()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = command(LONGER, market_root, whole, tmp_path / "tables")
    subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
    seconds = time.monotonic() - started
    arguments = command(LONGER, market_root, killed, tmp_path / "tables")
    moments, chance = [], random.Random(0)
    while len(moments) < 10:
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(chance.uniform(3.0, 8.0))  # the first seconds are imports and the first evaluation
        if process.poll() is not None:
            # It came to the end between two kills: begin again in a new folder, the kills so far count for this one.
            assert process.returncode == 0, process.stdout.read()
            assert comparable(killed) == comparable(whole)
            killed = tmp_path / f"killed-{len(moments)}"
            arguments = command(LONGER, market_root, killed, tmp_path / "tables")
            continue
        process.kill()
        process.communicate()
        steps = sorted(int(entry.name) for entry in killed.glob("checkpoints/latest/*") if entry.name.isdigit())
        writing = [entry.name for entry in killed.glob("checkpoints/*/*tmp*")]
        moments.append({"checkpoints": steps, "being written": writing})
    finished = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert comparable(killed) == comparable(whole)
    ours, theirs = stored(killed), stored(whole)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    with capsys.disabled():
        print(f"\nuninterrupted run {seconds:.0f} s; the kills found: {json.dumps(moments)}")
