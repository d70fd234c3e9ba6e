"""The command that compares reference files: exit status, lines, JSON, and files that cannot be run."""

import json

import numpy as np

from tests.launch.conftest import ROOT

REFERENCE = ROOT / "third_party" / "reference"


def test_lines_and_exit_status(launch):
    finished = launch("compare_numerics.py", "--reference", REFERENCE / "sched_formulas.npz", REFERENCE / "metrics_exact.npz")
    lines = finished.fine().out.splitlines()
    assert lines[0] == f"{REFERENCE / 'sched_formulas.npz'}: schedules"
    assert lines[-1] == "total: 12 of 12 outputs agree, 2 of 2 files passed"
    first = next(line for line in lines if "cosine0_f64" in line)
    assert first.endswith("both in float64)") and " ok " in first


def test_json_with_files_that_fail(launch, tmp_path):
    with np.load(REFERENCE / "sched_formulas.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "wrong.npz", **arrays | {"out.cosine0_f64": arrays["out.cosine0_f64"] * 1.001})
    np.savez(tmp_path / "strange.npz", **{"out.x": np.zeros(2)})
    good = REFERENCE / "sched_formulas.npz"
    names = ["strange.npz", "absent.npz", "wrong.npz", good]
    finished = launch("compare_numerics.py", "--reference", *names, "--json", folder=tmp_path)
    assert finished.status == 1
    errors = finished.err.splitlines()
    assert errors[0].startswith("error: strange.npz: no comparison knows this kind of file; known: ")
    assert errors[1:] == ["error: absent.npz: no such reference file"]
    document = json.loads(finished.out)
    assert document["passed"] is False
    assert [each["passed"] for each in document["files"]] == [False, False, False, True]
    outputs = {each["key"]: each for each in document["files"][2]["outputs"]}
    assert [key for key, each in outputs.items() if not each["passed"]] == ["cosine0_f64"]
    assert outputs["cosine0_f64"]["noise_multiple"] is None and outputs["cosine0_f64"]["error"] > 1e-6


def test_a_fault_of_the_program_keeps_its_traceback_and_stops_no_other_file(launch, tmp_path):
    with np.load(REFERENCE / "metrics_exact.npz") as file:
        np.savez(tmp_path / "flat.npz", **dict(file) | {"in.distmat": file["in.distmat"].ravel()})
    finished = launch("compare_numerics.py", "--reference", "flat.npz", REFERENCE / "sched_formulas.npz", folder=tmp_path)
    assert finished.status == 1 and finished.err.startswith("Traceback")
    assert finished.err.splitlines()[-1].startswith("error: flat.npz: this program failed on it, see above (ValueError: ")
    assert finished.out.splitlines()[-1].endswith("1 of 2 files passed")


def test_no_file(launch):
    launch("compare_numerics.py").mistake("name reference files")
