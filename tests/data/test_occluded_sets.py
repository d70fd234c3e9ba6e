"""Readers of occluded sets, on tiny trees under each set's real names with all that is odd about them; a slow count agrees."""

import collections
import os
import re

import numpy as np
import pytest

from occreid_jax.data import DataError, examine, open_dataset
from occreid_jax.data.readers.checks import match_counts
from occreid_jax.data.readers.msmt17 import parse_line
from occreid_jax.types import Dataset

ROLES = ("train", "query", "gallery")
HALVES = ("occluded_body_images", "whole_body_images")


@pytest.fixture
def tree(tmp_path, write_picture):
    """tree(names) writes pictures of these paths, each another one, below a root whose own name would give a pid and a camera."""

    def make(names, root="exp_10_c2"):
        for name in names:
            tree.seed += 1
            write_picture(tmp_path / root / name, tree.seed)
        return tmp_path / root

    tree.seed = 0
    return make


MARKET = [f"market1501/bounding_box_train/{pid:04d}_c{camera}s1_000{pid}_01.jpg" for pid in (1, 2, 5) for camera in (1, 2)]


def counted(dataset: Dataset) -> dict[str, tuple[int, int]]:
    return {role: (len(getattr(dataset, role)), len(np.unique(getattr(dataset, role).pids))) for role in ROLES}


def slow_count(root, pattern: str) -> tuple[int, int]:
    """Pictures whose path below ``root`` is ``pattern`` from end to end, and different first groups: no reader, no rule of
    ours."""
    paths = [os.path.relpath(os.path.join(folder, file), root) for folder, _, files in os.walk(root) for file in files]
    matches = filter(None, (re.fullmatch(pattern, path.replace(os.sep, "/")) for path in paths))
    groups = [int(match[1]) for match in matches]
    return len(groups), len(set(groups))


# P-DukeMTMC-reID ------------------------------------------------------------------------------------------------------


@pytest.fixture
def p_duke(tree):
    """Training people 30 and 7140, tested 5 and 66; endings in capitals, litter, a whole picture under another's folder name."""
    base = "P-DukeMTMC-reid"
    names = [f"{base}/train/{half}/{pid:04d}/{pid:04d}_{shot}.jpg" for half in HALVES for pid in (30, 7140) for shot in (1, 2)]
    shots = [(pid, shot) for pid in (5, 66) for shot in (1, 2, 3)]
    names += [f"{base}/test/{half}/{pid:04d}/{pid:04d}_c{shot}_f0001.JPG" for half in HALVES for pid, shot in shots]
    root = tree(names + MARKET)
    (root / base / "test" / "Thumbs.db").write_text("x")
    (root / base / "test" / HALVES[0] / "0005" / ".DS_Store").write_text("x")
    return root


def test_p_dukemtmc(p_duke):
    dataset = open_dataset("p_dukemtmc", p_duke)
    assert dataset.protocol == "p_dukemtmc/supervised@1"
    found = counted(dataset)
    assert found == {"train": (8, 2), "query": (6, 2), "gallery": (6, 2)}
    base = "P-DukeMTMC-reid"
    assert found["train"] == slow_count(p_duke, rf"{base}/train/\w+/(\d+)/\d+_.*")
    for role, half in (("query", "occluded"), ("gallery", "whole")):
        assert found[role] == slow_count(p_duke, rf"(?i){base}/test/{half}_body_images/(\d+)/\d+_.*\.jpg")
    assert list(dataset.train.names) == sorted(dataset.train.names)
    for name, pid, camid in zip(dataset.train.names, dataset.train.pids, dataset.train.camids, strict=True):
        assert int(name.split("/")[2]) == pid and camid == ("whole" in name)
    # nothing is left out of a ranking, and no camera reaches a network
    assert match_counts(dataset.query, dataset.gallery)[0].tolist() == [3] * 6 and dataset.train.cameras == ""
    assert any("withdrawn" in note for note in dataset.notes) and any("12,927 of 665" in note for note in dataset.notes)


def test_p_dukemtmc_after_market(p_duke, tmp_path):
    dataset = open_dataset("p_dukemtmc", p_duke, protocol="market1501")
    assert dataset.protocol == "p_dukemtmc/market1501@1" and dataset.train.cameras == "market1501"
    assert sorted(set(dataset.train.pids.tolist())) == [10_001, 10_002, 10_005] and dataset.train.root == p_duke / "market1501"
    with pytest.raises(DataError, match="p_dukemtmc has no protocol 'marked1501'"):
        open_dataset("p_dukemtmc", p_duke, protocol="marked1501")
    base = p_duke / "P-DukeMTMC-reid"
    (base / "train").rename(base / "other")
    assert len(open_dataset("p_dukemtmc", p_duke, need_train=False).train) == 0
    with pytest.raises(DataError, match="has no folder train/occluded_body_images"):
        open_dataset("p_dukemtmc", p_duke)


def test_p_dukemtmc_refuses_two_identities_of_one_picture(p_duke, write_picture):
    write_picture(p_duke / "P-DukeMTMC-reid" / "test" / HALVES[1] / "0005" / "0066_9.jpg")
    with pytest.raises(DataError, match=r"1 entries give no identity: test/whole_body_images/0005/0066_9.jpg"):
        open_dataset("p_dukemtmc", p_duke)


# Partial-REID ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folders", [False, True])
def test_both_query_sets_of_partial_reid(tree, folders):
    """The crops of people 1 and 2, the occluded pictures of 1, 2 and 3: other pictures and other numbers under one name."""
    parts = {"partial_body_images": (1, 2), "occluded_body_images": (1, 2, 3), "whole_body_images": (1, 2, 3)}
    names = [
        f"Partial_REID/{half}/{f'{pid:03d}/' if folders else ''}{pid:03d}_{shot:03d}.jpg"
        for half, pids in parts.items() for pid in pids for shot in (1, 2)
    ]  # fmt: skip
    root = tree(names + MARKET)
    for protocol, half, count in (("partial", "partial", (4, 2)), ("occluded", "occluded", (6, 3)), ("", "partial", (4, 2))):
        dataset = open_dataset("partial_reid", root, protocol=protocol) if protocol else open_dataset("partial_reid", root)
        assert dataset.protocol == f"partial_reid/{half}-market1501@1"
        assert counted(dataset) == {"train": (6, 3), "query": count, "gallery": (6, 3)}
        assert count == slow_count(root, rf"Partial_REID/{half}_body_images/(?:\d+/)?(\d+)_\d+\.jpg")
        assert all(half in name for name in dataset.query.names)
        # a picture of the same number is a match too
        assert (match_counts(dataset.query, dataset.gallery)[0] == 2).all()


def test_partial_reid_refuses_what_gives_no_identity(tree):
    names = [f"Partial-REID/{half}/001_001.jpg" for half in ("partial_body_images", "whole_body_images")]
    root = tree([*names, "Partial-REID/whole_body_images/anna.jpg", *MARKET])
    with pytest.raises(DataError, match=r"1 entries give no identity: whole_body_images/anna.jpg"):
        open_dataset("partial_reid", root)
    with pytest.raises(DataError, match="has no folder occluded_body_images"):
        open_dataset("partial_reid", root, protocol="occluded")


# Occluded-REID by halves ----------------------------------------------------------------------------------------------


def test_the_older_protocol_of_occluded_reid(tree):
    shots = [(pid, shot) for pid in range(1, 9) for shot in (1, 2)]
    names = [f"Occluded_REID/{half}/{pid:03d}/{pid:03d}_{shot:02d}.tif" for half in HALVES for pid, shot in shots]
    root = tree(names)
    drawn = set()
    for trial in range(4):
        dataset = open_dataset("occluded_reid", root, protocol="half100", trial=trial)
        assert dataset.protocol == f"occluded_reid/half100-trial{trial}@1"
        assert counted(dataset) == {"train": (16, 4), "query": (8, 4), "gallery": (8, 4)}
        trained, tested = set(dataset.train.pids.tolist()), set(dataset.query.pids.tolist())
        assert trained | tested == set(range(1, 9)) and tested == set(dataset.gallery.pids.tolist())
        assert sum("occluded" in name for name in dataset.train.names) == 8
        again = open_dataset("occluded_reid", root, protocol="half100", trial=trial)
        assert again.train.names == dataset.train.names
        drawn.add(tuple(sorted(tested)))
    assert len(drawn) > 1
    with pytest.raises(DataError, match="'market1501' has no option 'protocol'"):
        open_dataset("market1501", root, protocol="half100")


# Occluded-Market ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folders", [("occluded_train", "occluded_query"), ("bounding_box_train", "query")])
def test_occluded_market(tree, folders):
    """Person 3 is trained on and a distractor of the gallery by name alone, as 29 are in the lists; 0000 stays in the gallery."""
    train, query = (f"Occluded_Market/{folder}" for folder in folders)
    gallery = "Occluded_Market/bounding_box_test"
    root = tree([
        f"{train}/0002_c1s1_000451_03.jpg", f"{train}/0002_c6s0004_011.jpg", f"{train}/0003_c1s0001_001.jpg",
        f"{query}/0001_c1s0004_011.jpg", f"{query}/0009_c2s1_000151_01.jpg",
        f"{gallery}/0001_c2s1_000301_00.jpg", f"{gallery}/0001_c1s1_001051_00.jpg.jpg", f"{gallery}/0009_c1s1_000001_00.jpg",
        f"{gallery}/0003_c1s1_000002_00.jpg", f"{gallery}/0000_c1s1_000003_00.jpg", f"{gallery}/-1_c1s1_000004_00.jpg",
        *MARKET, "market1501/query/0001_c1s1_000001_00.jpg", "market1501/bounding_box_test/0001_c2s1_000001_00.jpg",
    ])  # fmt: skip
    dataset = open_dataset("occluded_market", root)
    assert dataset.protocol == "occluded_market/std@1" and dataset.query.cameras == "market1501"
    assert counted(dataset) == {"train": (3, 2), "query": (2, 2), "gallery": (5, 4)}
    found = (slow_count(root, rf"{re.escape(folder)}/(\d+)_c\d+.*\.jpg") for folder in (train, query, gallery))
    assert counted(dataset) == dict(zip(ROLES, found, strict=True))
    assert dataset.query.camids.tolist() == [0, 1] and dataset.train.camids.tolist() == [0, 5, 0]
    told = examine(dataset)
    assert any(line.startswith("problem: 1 identities are in the training set and in the test set: 3") for line in told)
    assert any("bounding_box_test: ignored 1 junk images (identity -1)" in note for note in dataset.notes)
    assert counted(open_dataset("occluded_market", root / "Occluded_Market"))["query"] == (2, 2)


# MSMT17 ---------------------------------------------------------------------------------------------------------------


def msmt_names(people, cameras=(1, 15), shots=2):
    return [f"{pid:04d}/{pid:04d}_{shot:03d}_{camera:02d}_0303morning_0015_{shot}.jpg"
            for pid in people for camera in cameras for shot in range(shots)]  # fmt: skip


def msmt(tree, version="V1"):
    """Training people 0 and 1, of whom 1 has a validation picture; tested 0 and 1, other people; the last line has no newline."""
    folders = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}[version]
    base, train, test = f"MSMT17_{version}", msmt_names((0, 1)), msmt_names((0, 1), shots=3)
    root = tree([f"{base}/{folder}/{name}" for folder, names in zip(folders, (train, test), strict=True) for name in names])
    others = [each for each in test if each not in test[::3]]
    lists = {"train": train[:-1], "val": train[-1:], "query": test[::3], "gallery": others}
    for name, lines in lists.items():
        (root / base / f"list_{name}.txt").write_text("\n".join(f"{line} {int(line[:4])}" for line in lines))
    (root / base / "__MACOSX").mkdir()
    return root, base, lists


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_msmt17(tree, version):
    root, base, lists = msmt(tree, version)
    dataset = open_dataset("msmt17", root)
    assert dataset.protocol == f"msmt17/{version.lower()}-trainval@1"
    expected = {role: (len(lists[role]), 2) for role in ("query", "gallery")} | {"train": (8, 2)}
    assert counted(dataset) == expected
    folder = "mask_train_v2" if version == "V2" else "train"
    assert expected["train"] == slow_count(root, rf"{base}/{folder}/(\d+)/.*\.jpg")
    assert set(dataset.train.pids.tolist()) == {10_001, 10_002} and set(dataset.gallery.pids.tolist()) == {1, 2}
    assert collections.Counter(dataset.gallery.camids.tolist()) == {0: 4, 14: 4} and dataset.train.cameras == "msmt17"
    assert match_counts(dataset.query, dataset.gallery)[0].tolist() == [2] * 4
    assert (dataset.train.root / dataset.train.names[0]).is_file()
    alone = open_dataset("msmt17", root, protocol=f"{version.lower()}-train")
    assert alone.protocol == f"msmt17/{version.lower()}-train@1" and counted(alone)["train"] == (7, 2)
    assert not any("the published set has 0" in note for note in dataset.notes)


def test_msmt17_in_two_versions_and_without_lists(tree):
    root, base, _ = msmt(tree, "V1")
    msmt(tree, "V2")
    with pytest.raises(DataError, match="holds both versions of MSMT17; choose one with config.data.protocol"):
        open_dataset("msmt17", root)
    assert open_dataset("msmt17", root, protocol="v2-train").train.names[0].startswith("mask_train_v2/")
    (root / base / "list_val.txt").unlink()
    with pytest.raises(DataError, match="list_val.txt is missing: it comes with the set"):
        open_dataset("msmt17", root, protocol="v1-trainval")
    assert len(open_dataset("msmt17", root, protocol="v1-train").train) == 7
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="has no folder train, test"):
        open_dataset("msmt17", root / "empty")


@pytest.mark.parametrize("line, expected", [
    ("0000/0000_000_01_0303morning_0015_0.jpg 0", ("0000/0000_000_01_0303morning_0015_0.jpg", 0, 0)),
    ("1040/1040_070_15_0303noon_0015_0.jpg 1040", ("1040/1040_070_15_0303noon_0015_0.jpg", 1040, 14)),
    ("0000/0001_000_01_0303morning_0015_0.jpg 0", None),  # the name says another person
    ("0000/0000_000_01_0303morning_0015_0.jpg 1", None),  # the list does
    ("0000/0000_000_16_0303morning_0015_0.jpg 0", None),  # no such camera
    ("../../0000/0000_000_01_0303morning_0015_0.jpg 0", None),
    ("0000/0000_000_01_0303morning_0015_0.jpg", None),
    ("0000/picture.jpg 0", None),
])  # fmt: skip
def test_lines_of_msmt17(line, expected):
    assert parse_line(line) == expected


def test_lists_that_cannot_be_used(tree):
    root, base, lists = msmt(tree)
    path = root / base / "list_query.txt"
    good = path.read_text()
    path.write_text(f"{good}\nsomething else 3")
    with pytest.raises(DataError, match="list_query.txt: 1 lines are not .*: something else 3; take the list"):
        open_dataset("msmt17", root)
    path.write_text(f"{good}\n{good.splitlines()[0]}")
    with pytest.raises(DataError, match="1 pictures stand twice in list_query.txt"):
        open_dataset("msmt17", root)
