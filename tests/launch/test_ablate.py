"""launch/ablate.py: tables by name, and a queue of rows that may be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from configs import fed
from occreid_jax import methods, published
from occreid_jax.files import read_json
from occreid_jax.types import Meta
from tests.launch.conftest import LAUNCH, ROOT


def test_all_tables_are_listed_with_their_rows(launch):
    lines = launch("ablate.py", "--list").fine().out.splitlines()
    tables = [table for paper in published.papers() for table in published.tables(paper).values()]
    assert [line.split()[0] for line in lines[1:]] == [table.name for table in tables]
    found = {line.split()[0]: list(map(int, line.split()[1:4])) for line in lines[1:]}
    assert found["fed/3"] == [6, 0, 0] and found["dpm_pp/figure-5"] == [0, 0, 3]


def test_nothing_was_run(launch, tmp_path):
    out = launch("ablate.py", "--table=fed/1", "--show", f"--workdir={tmp_path}").fine().out
    assert "| FED | 86.3 | 79.3 | - | - | not run |" in out and "| PAT | 81.6 | 72.1 | - | - | published only |" in out
    assert (tmp_path / "fed-1.md").read_text() == out.removesuffix("\n")
    lost = launch("ablate.py", "--table=dpm_pp/figure-5", "--show", f"--workdir={tmp_path}").fine().out
    assert "| thresholds of rolling | lost | lost | - | - | lost |" in lost


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--table is missing: name a table such as fed/3"),
        (("--table=fed/9",), "fed has no table '9'; it has 1, 2, 3, 4"),
        (("--table=fed/3", "--row=npoo"), "fed/3 has no row 'npoo'; it has baseline, erasing, npo"),
        (("--table=fed/1", "--row=PAT"), "nothing here runs the row 'PAT'"),
        (("--table=fed/3", "--dataset=marke", "--row=all"), "unknown dataset 'marke'"),
    ],
)
def test_mistakes(launch, tmp_path, arguments, words):
    finished = launch("ablate.py", *arguments, f"--workdir={tmp_path}")
    assert finished.status and words in finished.err and "Traceback" not in finished.err


def test_costs_are_those_of_the_formulas(launch):
    """FED's pairs pass the encoder twice and its memory once, 120 epochs of 244 batches of 64."""
    lines = launch("ablate.py", "--table=fed/3", "--row=npo,all", "--cost", "--share=0.5").fine().out.splitlines()
    assert "at 50% of its bfloat16 peak, which is assumed, not measured" in lines[1]
    (npo, full) = (line.split() for line in lines[3:])
    assert npo[-3] == full[-3] == f"{120 * (15618 // 64) * 64:,}"
    config = fed.get_config("dataset=occluded_duke,row=all")
    (stage,) = methods.create(config, Meta(702, 8, (256, 128), 15618)).stages()
    operations = 3 * stage.flops * 120 * (15618 // 64) * 64
    assert full[-2] == f"{operations / 1e15:,.1f}" and full[-1] == f"{operations / (989e12 * 0.5 * 3600):.2f}"
    assert float(npo[-1]) < float(full[-1])


@pytest.mark.slow
def test_a_killed_queue_finishes_without_repeating_or_losing_a_row(people, tmp_path):
    settings = {
        "data.root": people, "data.image_size": "64,32", "mesh.devices": 1, "evaluation.batch_size": 24,
        "evaluation.untrained": "false", "report.enabled": "false", "stages.main.epochs": 2,
        "stages.main.sampler.batch_size": 16, "stages.main.augment.occlusion.kind": "erasing",
    }  # fmt: skip
    command = [
        sys.executable, str(LAUNCH / "ablate.py"), "--table=fed/3", "--row=npo,npo_oem,all", "--dataset=synthetic",
        "--seeds=0,1", "--with=backbone=micro,pretrained=false", f"--workdir={tmp_path}",
        *(f"--set={key}={value}" for key, value in settings.items()),
    ]  # fmt: skip
    first, second, third = (
        tmp_path / "synthetic" / f"fed,row={row},backbone=micro,pretrained=false" for row in ("npo", "npo_oem", "all")
    )
    here = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "cwd": tmp_path, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **here)
    deadline = time.monotonic() + 240
    while not (second / "seed-0" / "results.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    cut, _ = process.communicate(timeout=120)
    assert process.returncode, cut
    assert not (second / "seeds.json").exists()
    finished = [first / "seed-0", first / "seed-1", second / "seed-0"]
    before = [(folder / "results.json").stat().st_mtime_ns for folder in finished]
    again = subprocess.run(command, capture_output=True, timeout=300, **here)
    assert again.returncode == 0, again.stdout + again.stderr
    assert [(folder / "results.json").stat().st_mtime_ns for folder in finished] == before
    page = (tmp_path / "fed-3.md").read_text()
    for folder, label in ((first, "2: + NPO"), (second, "3: + NPO + OEM"), (third, "5: FED")):
        found = read_json(folder / "seeds.json")
        assert found["seeds"] == ["0", "1"] and len(found["mAP"]["values"]) == 2
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {label} |"))
        assert line.endswith(f"{found['mAP']['mean']:.1f} +- {found['mAP']['std']:.1f} | 0, 1 |")
    assert page.count("not run") == 3 and "Protocol of what was measured: synthetic-demo-occluded/std@1." in page
