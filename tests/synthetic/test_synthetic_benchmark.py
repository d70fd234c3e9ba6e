"""The benchmark on disk."""

import csv
import hashlib
import json
import re
from collections import Counter

import cv2
import numpy as np
import pytest

from occreid_jax.synthetic import DIFFICULTY, SIZES, Size, benchmark, contact_sheet, generate, plan

MICRO = Size(64, 32, 6, 60, 5, 16, 40, 4, 12, 3)
MARKET = re.compile(r"^(-1|\d{4})_c([1-6])s(\d)_(\d{6})_(\d{2})\.jpg$")


@pytest.fixture(scope="module")
def micro():
    SIZES["micro"] = MICRO
    yield "micro"
    del SIZES["micro"]


@pytest.fixture(scope="module")
def occluded(micro, tmp_path_factory):
    return generate(tmp_path_factory.mktemp("synthetic") / "occluded", micro, "occluded")


def _hashes(root):
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def _index(root):
    with open(root / "truth" / "index.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_same_seed_gives_the_same_bytes(occluded, micro, tmp_path):
    np.random.seed(3)
    again = generate(tmp_path / "again", micro, "occluded")
    assert _hashes(again) == _hashes(occluded)
    other = generate(tmp_path / "other", micro, "occluded", seed=1)
    images = [name for name in _hashes(occluded) if name.endswith(".jpg")]
    mine, theirs = _hashes(occluded), _hashes(other)
    assert all(mine[name] != theirs.get(name) for name in images)


def test_counts_and_names(occluded):
    rows = _index(occluded)
    assert Counter(r["folder"] for r in rows) == {"bounding_box_train": 60, "query": 16, "bounding_box_test": 55}
    assert len({(r["folder"], r["name"]) for r in rows}) == len(rows)
    for row in rows:
        match = MARKET.match(row["name"])
        assert match and int(match[1]) == int(row["pid"]) and int(match[2]) - 1 == int(row["camid"])
        assert (occluded / row["folder"] / row["name"]).is_file()
    gallery = Counter(np.sign(int(r["pid"])) for r in rows if r["folder"] == "bounding_box_test")
    assert gallery == {1: 40, 0: 12, -1: 3}
    on_disk = {(p.parent.name, p.name) for p in occluded.glob("*/*.jpg")}
    assert on_disk == {(r["folder"], r["name"]) for r in rows}


def test_identities_are_disjoint_and_every_query_has_a_match(occluded):
    rows = _index(occluded)
    pids = {folder: {int(r["pid"]) for r in rows if r["folder"] == folder} for folder in ("bounding_box_train", "query")}
    assert not pids["bounding_box_train"] & pids["query"]
    known = json.loads((occluded / "truth" / "identities.json").read_text())
    assert {int(pid) for pid in known} == pids["bounding_box_train"] | pids["query"]
    assert len({json.dumps(entry["attributes"]) for entry in known.values()}) == len(known)
    gallery = [(r["pid"], r["camid"]) for r in rows if r["folder"] == "bounding_box_test"]
    queries = [(r["pid"], r["camid"]) for r in rows if r["folder"] == "query"]
    assert len(set(queries)) == len(queries)
    for pid, camera in queries:
        assert any(p == pid and c != camera for p, c in gallery)


def test_truth_maps_agree_with_the_index(occluded):
    for row in _index(occluded):
        path = (occluded / "truth" / row["folder"] / row["name"]).with_suffix(".png")
        truth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert truth.shape == (MICRO.height, MICRO.width) and truth.dtype == np.uint8
        label, hidden = truth & 15, truth >= 16
        assert label.max() <= 8 and truth.max() < 32
        if row["occlusion"] in ("none", "crop"):
            assert not hidden.any()
        elif (label > 0).any():
            assert hidden[label > 0].mean() <= float(row["covered_fraction"]) + 1e-3


def test_queries_of_the_occluded_split_are_covered(occluded):
    queries = [r for r in _index(occluded) if r["folder"] == "query"]
    for row in queries:
        assert row["occlusion"] in ("object", "person", "crop") and row["occluder"]
        assert DIFFICULTY.covered_low <= float(row["covered_fraction"]) <= DIFFICULTY.covered_high


@pytest.mark.parametrize("split, low, high", [("occluded", 0.06, 0.14), ("holistic", 0.01, 0.07)])
def test_share_of_occlusions(split, low, high, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "wide", Size(32, 16, 20, 200, 10, 25, 130, 10, 10, 1))
    rows = _index(generate(tmp_path / split, "wide", split))
    for folder in ("bounding_box_train", "bounding_box_test"):
        share = np.mean([r["occlusion"] != "none" for r in rows if r["folder"] == folder])
        assert low <= share <= high, (folder, share)
    queries = np.mean([r["occlusion"] != "none" for r in rows if r["folder"] == "query"])
    assert queries == 1.0 if split == "occluded" else queries < 0.2


def test_interrupted_generation_leaves_nothing(micro, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    threads = cv2.getNumThreads()
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "half", micro, "occluded", progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert cv2.getNumThreads() == threads


def test_a_finished_benchmark_is_kept_and_another_is_refused(occluded, micro, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in occluded.rglob("*")}
    assert generate(occluded, micro, "occluded") == occluded
    assert {p: p.stat().st_mtime_ns for p in occluded.rglob("*")} == before
    with pytest.raises(ValueError, match="split occluded instead of holistic.*remove it"):
        generate(occluded, micro, "holistic")
    monkeypatch.setattr(benchmark, "VERSION", benchmark.VERSION + 1)
    with pytest.raises(ValueError, match="another synthetic benchmark"):
        generate(occluded, micro, "occluded")


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no synthetic benchmark; remove it or choose another folder"):
        generate(tmp_path, "demo", "occluded")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("size, split, seed", [("huge", "occluded", 0), ("demo", "partial", 0), ("demo", "occluded", -1)])
def test_unknown_arguments_are_refused(size, split, seed, tmp_path):
    with pytest.raises(ValueError, match="take"):
        generate(tmp_path / "out", size, split, seed)


def test_progress_reaches_the_total(micro, tmp_path):
    calls = []
    generate(tmp_path / "out", micro, "holistic", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (131, 131) and calls == sorted(calls) and len(calls) >= 3


@pytest.mark.parametrize("name", ["demo", "small", "full"])
def test_planned_counts(name):
    size = SIZES[name]
    shots = plan.shots(size, 0)
    names = {(s.folder, s.name) for s in shots}
    assert len(names) == len(shots)
    folders = Counter(s.folder for s in shots)
    assert folders["bounding_box_train"] == size.train_images and folders["query"] == size.query_images
    assert folders["bounding_box_test"] == size.gallery_images + size.distractor_images + size.junk_images
    assert all(MARKET.match(s.name) for s in shots)


def test_full_has_the_numbers_of_market1501():
    shots = plan.shots(SIZES["full"], 0)
    assert len({s.pid for s in shots if s.folder == "bounding_box_train"}) == 751
    assert len({s.pid for s in shots if s.folder == "query"}) == 750
    counts = Counter(s.folder for s in shots if s.pid >= 0)
    assert counts == {"bounding_box_train": 12936, "query": 3368, "bounding_box_test": 15913}
    assert sum(s.pid == 0 for s in shots) == 2798


def test_contact_sheet(occluded, tmp_path):
    contact_sheet(occluded, tmp_path / "sheet" / "sheet.png")
    sheet = cv2.imread(str(tmp_path / "sheet" / "sheet.png"))
    assert sheet.shape[1] == 16 * 96 and sheet.shape[0] % 192 == 0
