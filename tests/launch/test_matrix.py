"""Several runs on several datasets in one table: cells, protocols, a second call, and what fails."""

from __future__ import annotations

import json
import re
import shutil

import pytest


@pytest.mark.slow  # every cell is a command of its own
def test_a_matrix_of_runs_and_sets(launch, trained, people_root, tmp_path):
    run, out = shutil.copytree(trained, tmp_path / "run"), tmp_path / "matrix"
    arguments = [f"--runs={run}", f"--sets=own,folder={people_root}", f"--out={out}"]
    told = launch("matrix.py", *arguments).fine().out
    assert f"{run} on own" in told and f"{run} on folder={people_root}" in told
    row = next(line for line in told.splitlines() if line.startswith(f"| {run}"))
    own = json.loads((run / "results.json").read_text())
    (other,) = [json.loads(path.read_text()) for path in run.glob("evaluations/*/results.json")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == ["market1501", *(f"{each['mAP']:.1f} / {each['rank1']:.1f}" for each in (own, other))]
    assert "Protocols: own: market1501/std@1; folder: folder/no-cameras@1." in told
    assert (out / "matrix.md").read_text().rstrip() in told

    again = launch("matrix.py", *arguments).fine().out
    assert " on folder=" not in again and row in again  # nothing is evaluated twice
    path = next(run.glob("evaluations/*/results.json"))
    path.write_text(json.dumps(other | {"parameters_sha256": "of before"}))
    third = launch("matrix.py", *arguments).fine().out
    assert f"{run} on folder={people_root}" in third and f"{run} on own" not in third and row in third

    wrong = f"--sets=own,market1501={tmp_path / 'nowhere'},folder={people_root}"
    failed = launch("matrix.py", f"--runs={run}", wrong, f"--out={out}")
    failed.mistake("1 of 3 cells failed", "nowhere", "is not a folder")
    assert re.search(rf"\| {re.escape(str(run))} \|.* \| not evaluated \|", failed.out)


def test_flags_that_name_nothing(launch, tmp_path):
    launch("matrix.py", f"--runs={tmp_path}", "--sets=market1501", f"--out={tmp_path}").mistake("should look like market1501=DIR")
    launch("matrix.py", f"--runs={tmp_path}", "--sets=own", f"--out={tmp_path}").mistake("is no run folder")
