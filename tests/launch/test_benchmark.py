"""launch/benchmark.py prints and writes a row of training and of embedding for every batch size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_batch_sizes(tmp_path):
    command = [
        sys.executable, str(ROOT / "launch" / "benchmark.py"), "--config=configs/baseline.py:pretrained=false,backbone=micro",
        "--config.data.image_size=64,32", "--batch_sizes=8,16", "--steps=2", "--pictures=64", f"--json={tmp_path / 'speed.json'}",
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "speed.json").read_text())
    for kind in ("train", "embed"):
        assert [row["batch_size"] for row in found[kind]] == [8, 16]
        for row in found[kind]:
            assert row["images_per_second"] == pytest.approx(row["batch_size"] / row["median_seconds"])
            assert f"{row['images_per_second']:.0f} images/s" in ended.stdout
