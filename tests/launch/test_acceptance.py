"""launch/acceptance.py: parts end without taking others along, rows are kept as they come, and the whole runs on a processor."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from occreid_jax import methods
from occreid_jax.acceptance import peer, run, task
from occreid_jax.files import read_json
from occreid_jax.train.performance import filled

ROOT = Path(__file__).resolve().parents[2]


def a_part(rows, error=None):
    def part(task):
        yield from rows
        if error:
            raise error

    return part


def run_one(monkeypatch, tmp_path, part, seconds=60.0):
    monkeypatch.setitem(run.PARTS, "devices", run.Part("hardware:devices", 1.0, "Made up"))
    monkeypatch.setattr("occreid_jax.acceptance.hardware.devices", part)
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)  # this process is pytest's
    run.run_part("devices", tmp_path, ROOT, seconds, None, ())
    return read_json(tmp_path / "devices.json")


def test_what_a_part_found_before_it_failed_is_kept(monkeypatch, tmp_path):
    rows = [{"a": 1}, {"a": 2}]
    assert run_one(monkeypatch, tmp_path, a_part(rows)) == {"rows": rows, "ended": "finished"}
    stored = run_one(monkeypatch, tmp_path, a_part(rows, MemoryError("no memory\nleft")))
    assert stored == {"rows": rows, "ended": "failed: MemoryError: no memory"}
    assert run_one(monkeypatch, tmp_path, a_part(rows), seconds=-1.0) == {"rows": rows[:1], "ended": "out of time"}


def test_every_row_is_on_the_disk_before_the_next(monkeypatch, tmp_path):
    seen = []

    def part(task):
        for number in range(3):
            yield {"number": number}
            seen.append([row["number"] for row in run.read_rows(tmp_path, "devices")])

    run_one(monkeypatch, tmp_path, part)
    assert seen == [[0], [0, 1], [0, 1, 2]]


def test_parts_for_which_no_time_is_left_are_told(tmp_path):
    words = []
    found = run.accept(tmp_path, ROOT, 0.0, ("devices", "peaks"), (), True, tell=words.append)
    assert [part["ended"] for part in found.values()] == ["not begun: no time left"] * 2
    assert found == read_json(tmp_path / "acceptance.json") and len(words) == 4


def test_a_peer_that_cannot_be_imported_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    rows = list(peer.peer(task.Task(Path(), ROOT, 0.0, False, ())))
    assert len(rows) == 1 and "timm" in rows[0]["left_out"] and rows[0]["left_out"].endswith("pip install torch timm")


def test_a_table_shows_every_column_and_one_row_as_a_list():
    part = {"seconds": 3.4, "ended": "finished"}
    text = run.table({"peaks": part | {"rows": [{"what": "a|b", "x": 0.123456}, {"what": "c", "y_z": None}]},
                      "devices": part | {"rows": [{"device": "cpu", "memory": None}]}})  # fmt: skip
    assert "| what | x | y z |\n| --- | --- | --- |\n| a/b | 0.1235 | - |\n| c | - | - |\n" in text
    assert "3 s, finished.\n\n* device: cpu\n* memory: -\n" in text


@pytest.mark.parametrize("published", [False, True])
def test_every_stage_of_every_method_is_looked_at(published):
    stages = [(name, stage.name) for name, _, stage in task.Task(Path(), ROOT, 0.0, published, ()).stages("float32", published)]
    expected = {name: list(task.settings(name, "float32", published).stages) for name in methods.NAMES}
    assert sorted(stages) == sorted((name, stage) for name, names in expected.items() for stage in names)
    assert stages[0] == ("baseline", "main") and stages[-1][0] == "clip_pretraining"


def test_what_a_pass_would_fill_is_random_and_nothing_else():
    extra = {"bank": np.zeros((3, 4), np.float32), "mean": np.zeros(4, np.float32), "own": np.full((2, 2), 0.5, np.float32),
             "count": np.zeros((2, 2), np.int32)}  # fmt: skip
    got = filled(jax.tree.map(jax.numpy.asarray, extra))
    np.testing.assert_allclose(np.linalg.norm(got["bank"], axis=1), 1.0, rtol=1e-6)
    for name in ("mean", "own", "count"):
        np.testing.assert_array_equal(got[name], extra[name])


PROFILED = """
import json, sys, time
from pathlib import Path
import jax
from occreid_jax.acceptance import steps
values = jax.numpy.ones((512, 512))
function = jax.jit(lambda x: jax.numpy.sort(x @ x, axis=0)).lower(values).compile()
with jax.profiler.trace(sys.argv[1]):
    started = time.perf_counter()
    jax.block_until_ready(function(values))
    seconds = time.perf_counter() - started
print(json.dumps([seconds, steps.kernels(Path(sys.argv[1]))]))
"""


def test_a_profile_names_kernels_by_their_time(tmp_path):
    # In a process of its own, as every part is: a profiler sees little in one that has long done other things.
    ended = subprocess.run([sys.executable, "-c", PROFILED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    seconds, times = json.loads(ended.stdout)
    assert times and 0 < sum(times.values()) <= 4 * seconds  # several threads may work at once
    assert any("sort" in name or "dot" in name for name in times)


def acceptance(*arguments, timeout=60):
    command = [sys.executable, str(ROOT / "launch" / "acceptance.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--parts=speed,spead",), "--parts: there is no part 'spead'; the parts are devices, precision"),
        (("--demos=fedd",), "--demos: there is no configs/fedd.py"),
        (("--methods=fed,fedd",), "--methods: there is no method 'fedd'; the methods are baseline, clip_pretraining, clip_reid"),
    ],
)
def test_wrong_names_are_told_before_anything_runs(arguments, words, tmp_path):
    ended = acceptance(f"--out={tmp_path / 'out'}", *arguments)
    assert ended.returncode == 1 and words in ended.stderr and ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_on_a_processor(tmp_path, capsys):
    """Everything but demo runs, for one method of one stage and one of several: stages compute in bfloat16, and a killed run ends
    bit-equal. (The contract's tests have every method in bfloat16.) More minutes than it takes: other tests run beside it."""
    chosen = "--methods=baseline,dpm_pp"
    ended = acceptance("--minutes=18", "--size=small", "--demos=", chosen, f"--out={tmp_path}", timeout=1100)
    with capsys.disabled():
        print(f"\n{ended.stdout[-6000:]}")
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "acceptance.json").read_text())
    assert list(found) == list(run.PARTS)
    assert found["resume"]["rows"][0]["bit_equal"]
    assert 0 < found["resume"]["rows"][0]["killed_after_step"] < found["resume"]["rows"][0]["steps"]
    for row in found["precision"]["rows"]:
        # Eight bits of a number: half a per cent in what is summed over a batch. Selection by rank may jump.
        assert row["loss_difference"] < 0.01 and row["gradient_norm_difference"] < 0.05, row
        assert row["gradient_norm"] > 0, row
    steps = [(row["method"], row["stage"]) for row in found["precision"]["rows"]]
    assert steps == [("baseline", "main"), ("dpm_pp", "prompts"), ("dpm_pp", "selection"), ("dpm_pp", "metric")]
    speeds = [(row["method"], row["stage"], row["batch"]) for row in found["speed"]["rows"]]
    assert speeds[:4] == [("baseline", kind, size) for size in (16, 32) for kind in ("main", "embedding")]
    for name in ("devices", "peaks", "profile"):
        assert found[name]["rows"], name
