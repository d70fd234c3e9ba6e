"""Sets made from lists of names: the same files as the authors' scripts copy, and what is refused."""

import pytest

from occreid_jax.data import DataError, examine, open_dataset
from occreid_jax.data.derive import derive
from occreid_jax.errors import UserError


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture
def duke(tmp_path, write_picture):
    """A DukeMTMC-reID with lists, whose last line ends without a newline: one query lies in query/, one only in the gallery."""
    for seed, name in enumerate((
        "bounding_box_train/0001_c1_f0001.jpg", "bounding_box_train/0001_c2_f0002.jpg", "bounding_box_train/7140_c1_f0003.jpg",
        "query/0005_c1_f0004.jpg", "bounding_box_test/0005_c2_f0005.jpg", "bounding_box_test/0009_c1_f0006.jpg",
        "bounding_box_test/0009_c3_f0007.jpg",
    )):  # fmt: skip
        write_picture(tmp_path / "DukeMTMC-reID" / name, seed)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.list").write_text("0001_c1_f0001.jpg\n0001_c2_f0002.jpg")
    (lists / "query.list").write_text("0005_c1_f0004.jpg\r\n0009_c1_f0006.jpg")
    (lists / "gallery.list").write_text("0005_c2_f0005.jpg\n0009_c1_f0006.jpg\n0009_c3_f0007.jpg\n\n")
    return tmp_path, lists


def test_occluded_duke(duke):
    root, lists = duke
    folder = derive("occluded_duke", root, lists, root, silent)
    dataset = open_dataset("occluded_duke", root)
    assert dataset.train.root == folder == root / "Occluded_Duke"
    assert dataset.train.names == ("bounding_box_train/0001_c1_f0001.jpg", "bounding_box_train/0001_c2_f0002.jpg")
    assert dataset.query.names == ("query/0005_c1_f0004.jpg", "query/0009_c1_f0006.jpg") and len(dataset.gallery) == 3
    source = root / "DukeMTMC-reID"
    for new, old in (("query/0005_c1_f0004.jpg",) * 2, ("query/0009_c1_f0006.jpg", "bounding_box_test/0009_c1_f0006.jpg")):
        assert (folder / new).read_bytes() == (source / old).read_bytes()
    told = examine(dataset)
    assert any("in query and in gallery, left out of the ranking as same identity and camera: 1" in line for line in told)
    assert not [line for line in told if line.startswith("problem")]
    with pytest.raises(UserError, match="is there already"):
        derive("occluded_duke", root, lists, root, silent)


def test_what_is_missing_is_told_before_anything_is_written(duke):
    root, lists = duke
    (root / "DukeMTMC-reID" / "bounding_box_train" / "0001_c2_f0002.jpg").unlink()
    with pytest.raises(DataError, match="1 of 7 pictures of the lists are not below .*: bounding_box_test/0001_c2_f0002.jpg"):
        derive("occluded_duke", root, lists, root / "out", silent)
    (lists / "query.list").write_text("../../0005_c1_f0004.jpg")
    with pytest.raises(DataError, match="query.list: 1 lines are no names of files"):
        derive("occluded_duke", root, lists, root / "out", silent)
    (lists / "query.list").unlink()
    with pytest.raises(DataError, match="query.list is missing"):
        derive("occluded_duke", root, lists, root / "out", silent)
    assert not (root / "out").exists()


def test_occluded_market(tmp_path, write_picture):
    """Frames of MARS get Market-1501's names; a line with a star says which frame has another name."""
    names = [
        "market1501/bounding_box_train/0002_c1s1_000451_03.jpg", "market1501/query/0001_c1s1_001051_00.jpg",
        "market1501/bounding_box_test/0001_c2s1_000301_00.jpg", "market1501/bounding_box_test/0007_c3s1_000301_00.jpg",
        "MARS/bbox_train/0007/0007C2T0003F011.jpg", "MARS/bbox_test/0002/0002C6T0001F005.jpg",
    ]  # fmt: skip
    for seed, name in enumerate(names):
        write_picture(tmp_path / name, seed)
    lists = tmp_path / "lists"
    lists.mkdir()
    texts = {
        "train_market": "0002_c1s1_000451_03.jpg\n",
        "train_mars": "0002_c6s0001_005.jpg\n",
        "query_market": "0001_c1s1_001051_00.jpg\n",
        "query_mars": "0007_c2s0003_900.jpg*0007_c2s0003_011.jpg\n",
        "test": "0001_c2s1_000301_00.jpg\n0007_c3s1_000301_00.jpg\n",
    }
    for name, text in texts.items():
        (lists / f"{name}.list").write_text(text)
    folder = derive("occluded_market", tmp_path, lists, tmp_path, silent)
    dataset = open_dataset("occluded_market", tmp_path)
    assert dataset.query.names == ("occluded_query/0001_c1s1_001051_00.jpg", "occluded_query/0007_c2s0003_900.jpg")
    assert dataset.train.camids.tolist() == [0, 5] and dataset.query.camids.tolist() == [0, 1]
    frame = tmp_path / "MARS/bbox_train/0007/0007C2T0003F011.jpg"
    assert (folder / "occluded_query/0007_c2s0003_900.jpg").read_bytes() == frame.read_bytes()
    (lists / "query_mars.list").write_text("somebody.jpg\n")
    with pytest.raises(DataError, match="query_mars.list: 1 lines are no frames of MARS: somebody.jpg"):
        derive("occluded_market", tmp_path, lists, tmp_path / "out", silent)
