"""The doctor finds seeded faults and raises no false alarm."""

import shutil

from occreid_jax.data import build_table, doctor, examine, open_dataset
from occreid_jax.data.doctor import problems


def test_a_clean_set_raises_no_alarm(market_tree, tmp_path):
    dataset = open_dataset("market1501", market_tree())
    table = build_table(dataset.train, (16, 8), "bicubic", tmp_path / "cache")
    lines = examine(dataset, tmp_path / "cache")
    text = "\n".join(lines)
    assert "problem" not in text
    assert "train: 6 images, 3 identities, 2 cameras" in text
    assert "gallery: 4 images, 2 identities, 2 cameras; 1 of the images are distractors" in text
    assert "train: images per identity: 2 at least, 2 in the middle, 2 at most" in text
    assert "train: camera 1: 3, camera 2: 3" in text
    assert "no file occurs twice" in text and "share no identity" in text
    assert "1 image tables are as they were written" in text
    (table.path / "images.npy").write_bytes(b"")
    assert any("problem: image table" in line for line in examine(dataset, tmp_path / "cache", decode=False))


def test_seeded_faults(market_tree):
    root = market_tree(
        train=["0002_c1_0.jpg", "0002_c2_0.jpg", "0005_c1_9.jpg", "0007_c1_0.jpg"],
        query=["0005_c1_0.jpg", "0009_c2_0.jpg", "0012_c1_0.jpg"],
        gallery=["0005_c2_0.jpg", "0005_c1_0.jpg", "0009_c1_0.jpg", "0012_c1_1.jpg", "0013_c3_0.jpg"],
    )
    train, query, gallery = root / "bounding_box_train", root / "query", root / "bounding_box_test"
    shutil.copy(query / "0005_c1_0.jpg", gallery / "0005_c1_0.jpg")  # same identity and camera: hidden by the protocol
    shutil.copy(query / "0009_c2_0.jpg", gallery / "0009_c1_0.jpg")  # same picture, another camera
    shutil.copy(train / "0002_c1_0.jpg", train / "0007_c1_0.jpg")  # same picture, another identity
    shutil.copy(train / "0002_c2_0.jpg", gallery / "0013_c3_0.jpg")
    data = (gallery / "0012_c1_1.jpg").read_bytes()
    (gallery / "0012_c1_1.jpg").write_bytes(data[: len(data) // 2])
    lines = examine(open_dataset("market1501", root))
    text = "\n".join(lines)
    for words in (
        "problem: 1 queries have no match at another camera and will be skipped: query/0012_c1_0.jpg",
        "problem: 1 identities are in the training set and in the test set: 5",
        "files that are in query and in gallery, left out of the ranking as same identity and camera: 1",
        "problem: files that are in query and in gallery and that the camera rule does not leave out: 1",
        "problem: the same file under different identities in train: 1",
        "problem: files that are in train and in gallery: 1",
        "problem: gallery: 1 images cannot be used: bounding_box_test/0012_c1_1.jpg (",
        "train: 2 identities have a single image",
    ):
        assert words in text, words
    assert all("\n" not in line for line in lines)


def test_problems_alone_and_copies_looked_for_once(market_tree, tmp_path, monkeypatch):
    root, cache = market_tree(), tmp_path / "cache"
    assert problems(open_dataset("market1501", root), cache) == [] and not cache.exists()
    cache.mkdir()
    shutil.copy(root / "query" / "0005_c1_0.jpg", root / "bounding_box_test" / "0005_c2_0.jpg")
    shutil.copy(root / "query" / "0009_c2_0.jpg", root / "bounding_box_train" / "0009_c2_0.jpg")
    dataset = open_dataset("market1501", root)
    expected = [
        "problem: 1 identities are in the training set and in the test set: 9",
        "problem: files that are in query and in gallery and that the camera rule does not leave out: 1 (for example "
        "query/0005_c1_0.jpg = bounding_box_test/0005_c2_0.jpg)",
        "problem: files that are in train and in query: 1 (for example bounding_box_train/0009_c2_0.jpg = query/0009_c2_0.jpg)",
    ]
    assert problems(dataset, cache) == expected
    assert problems(dataset, cache) == [line for line in examine(dataset, decode=False) if line.startswith("problem: ")]
    monkeypatch.setattr(doctor, "_duplicates", None)  # found again in the folder
    assert problems(dataset, cache) == expected
    monkeypatch.undo()
    for damaged in cache.glob("copies-*.json"):
        damaged.write_text('{"lines"')
    assert problems(dataset, cache) == expected
    changed = root / "bounding_box_train" / "0009_c2_0.jpg"
    shutil.copy(root / "bounding_box_train" / "0002_c1_0.jpg", changed)  # another picture under the same name
    lines = problems(open_dataset("market1501", root), cache)
    assert expected[-1] not in lines and "problem: the same file under different identities in train: 1" in lines[-1]
