"""Clean trees of every set raise no alarm; each of twelve kinds of damage is found by the words a person would look for."""

import shutil

import numpy as np
import pytest

from occreid_jax.data import DataError, build_table, examine, open_dataset, terms
from occreid_jax.data.doctor import overlaps
from occreid_jax.data.readers import READERS


@pytest.fixture
def market(market_tree):
    """A clean Market-1501 with three trained and three tested people."""
    gallery = [f"{pid:04d}_c{camera}_1.jpg" for pid in (5, 9, 12) for camera in (1, 2)]
    return market_tree(gallery=gallery, query=["0005_c1_0.jpg", "0009_c2_0.jpg", "0012_c1_0.jpg"])


def alarms(root, cache=None) -> list[str]:
    return [line for line in examine(open_dataset("market1501", root), cache) if line.startswith("problem")]


def test_clean_trees_raise_no_alarm(market, market_tree, write_picture, tmp_path):
    assert alarms(market) == []
    seed = 500
    for number, (name, folders) in enumerate({
        "p_dukemtmc": {f"P-DukeMTMC-reid/{part}/{half}_body_images/{pid:04d}/{pid:04d}_{shot}.jpg"
                       for part, pids in (("train", (1, 2)), ("test", (5, 6))) for half in ("occluded", "whole") for pid in pids
                       for shot in (1, 2)},
        "partial_reid": {f"Partial_REID/{half}_body_images/{pid:03d}_{shot:03d}.jpg"
                         for half in ("partial", "whole") for pid in (1, 2) for shot in (1, 2)},
        "occluded_reid": {f"Occluded_REID/{half}_body_images/{pid:03d}/{pid:03d}_{shot:02d}.tif"
                          for half in ("occluded", "whole") for pid in (1, 2) for shot in (1, 2)},
    }.items()):  # fmt: skip
        root = tmp_path / f"set{number}"
        trained = {f"market1501/bounding_box_train/{pid:04d}_c{camera}s1_0.jpg" for pid in (3, 4) for camera in (1, 2)}
        for path in folders | trained:
            seed += 1
            write_picture(root / path, seed)
        lines = examine(open_dataset(name, root))
        assert not [line for line in lines if line.startswith("problem")], name
        assert any("the published set has" in line for line in lines)  # told as a note: these are no full sets


def truncated(root):
    path = root / "query" / "0009_c2_0.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def copied(source, target):
    return lambda root: shutil.copy(root / source, root / target)


def moved(source, target):
    return lambda root: (root / target).parent.mkdir(parents=True, exist_ok=True) or shutil.move(root / source, root / target)


DAMAGE = {
    "a picture cut short": (truncated, "query: 1 images cannot be used: query/0009_c2_0.jpg"),
    "an empty file": (lambda root: (root / "query" / "0005_c1_0.jpg").write_bytes(b""), "0005_c1_0.jpg (zero bytes)"),
    "no picture at all": (lambda root: (root / "bounding_box_train" / "0002_c1_0.jpg").write_text("404"), "(not an image)"),
    "a query without a match": (moved("bounding_box_test/0005_c2_1.jpg", "bounding_box_test/0013_c2_1.jpg"),
                                "1 queries have no match at another camera and will be skipped: query/0005_c1_0.jpg"),
    "a trained person in the test": (moved("bounding_box_train/0002_c1_0.jpg", "bounding_box_train/0009_c3_7.jpg"),
                                     "1 identities are in the training set and in the test set: 9"),
    "a trained picture in the gallery": (copied("bounding_box_train/0002_c1_0.jpg", "bounding_box_test/0099_c1_0.jpg"),
                                         "files that are in train and in gallery: 1"),
    "a picture of two people": (copied("bounding_box_train/0002_c1_0.jpg", "bounding_box_train/0007_c1_9.jpg"),
                                "the same file under different identities in train: 1"),
    "a query copied into the gallery": (copied("query/0009_c2_0.jpg", "bounding_box_test/0009_c3_0.jpg"),
                                        "files that are in query and in gallery and that the camera rule does not leave out: 1"),
    "pictures that cannot be decoded": (moved("bounding_box_train/0007_c1_0.jpg", "bounding_box_train/0007_c1_0.heic"),
                                        "PICTURES LEFT OUT: 1 .heic files cannot be decoded"),
    "pictures one folder too deep": (moved("bounding_box_train/0011_c1_0.jpg", "bounding_box_train/more/0011_c1_0.jpg"),
                                     "PICTURES LEFT OUT: 1 pictures in folders inside: move them up"),
    "a picture without its ending": (moved("bounding_box_test/0012_c2_1.jpg", "bounding_box_test/0012_c2_1"),
                                     "PICTURES LEFT OUT: 1 JPEG pictures have no ending: rename them"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_is_found(name, market):
    damage, words = DAMAGE[name]
    damage(market)
    assert any(words in line for line in alarms(market)), alarms(market)


def test_a_changed_table_is_found(market, tmp_path):
    table = build_table(open_dataset("market1501", market).train, (16, 8), "bicubic", tmp_path / "cache")
    assert alarms(market, tmp_path / "cache") == []
    pixels = np.load(table.path / "images.npy", mmap_mode="r+")
    pixels[0, 0, 0, 0] ^= 255
    pixels.flush()
    assert any("the pixels are not those that were written" in line for line in alarms(market, tmp_path / "cache"))


@pytest.mark.parametrize("damage, words", [
    (lambda root: shutil.rmtree(root / "query"), "has no folder query: it should hold"),
    (lambda root: (root / "query" / "0005_c1_0.jpg").rename(root / "query" / "somebody.jpg"), "1 pictures are not named"),
    (lambda root: [path.unlink() for path in (root / "bounding_box_test").iterdir()], "gallery split .* has no usable picture"),
])  # fmt: skip
def test_what_is_missing_is_an_error_of_one_line(market, damage, words):
    damage(market)
    with pytest.raises(DataError, match=words) as error:
        open_dataset("market1501", market)
    assert "\n" not in str(error.value)


def test_pictures_of_two_sets(market, market_tree, tmp_path):
    train, query, gallery = ["0101_c1_0.jpg", "0102_c1_0.jpg"], ["0111_c1_0.jpg"], ["0111_c2_0.jpg"]
    other = market_tree(root="other", train=train, query=query, gallery=gallery)
    shutil.copy(market / "bounding_box_train" / "0002_c1_0.jpg", other / "bounding_box_test" / "0112_c1_0.jpg")
    shutil.copy(market / "query" / "0005_c1_0.jpg", other / "query" / "0111_c1_0.jpg")
    for path in (other / "bounding_box_train").iterdir():
        path.write_bytes(path.read_bytes() + path.name.encode())  # the fixture draws the same pictures for both
    (other / "bounding_box_test" / gallery[0]).write_bytes((other / "bounding_box_test" / gallery[0]).read_bytes() + b"x")
    lines = overlaps(open_dataset("market1501", market), open_dataset("market1501", other))
    assert lines == [
        "1 files are in query of market1501 and in query of market1501 (for example query/0005_c1_0.jpg = query/0111_c1_0.jpg)",
        "problem: 1 files are in train of market1501 and in gallery of market1501 (for example "
        "bounding_box_train/0002_c1_0.jpg = bounding_box_test/0112_c1_0.jpg)",
    ]
    (other / "query" / "0111_c1_0.jpg").write_bytes(b"1")
    (other / "bounding_box_test" / "0112_c1_0.jpg").write_bytes(b"22")
    none = overlaps(open_dataset("market1501", market), open_dataset("market1501", other))
    assert none == ["market1501 and market1501 have no file in common"]


def test_sets_that_share_people():
    pairs = [("p_dukemtmc", "occluded_duke"), ("dukemtmc", "p_dukemtmc"), ("occluded_market", "market1501")]
    assert all(f"a model trained on {pair[0]} is tested on {pair[1]}" in terms.shared(*pair) for pair in pairs)
    fine = [("market1501", "p_dukemtmc"), ("dukemtmc", "occluded_duke"), ("market1501", "occluded_market"), ("folder", "folder")]
    assert not any(terms.shared(*pair) for pair in fine)


def test_every_public_set_has_its_terms():
    assert set(terms.TERMS) == set(READERS) - {"folder", "synthetic"}
    assert all("withdrawn in 2019" in terms.told(name) for name in ("dukemtmc", "occluded_duke", "p_dukemtmc"))
    assert terms.told("folder") == ""
