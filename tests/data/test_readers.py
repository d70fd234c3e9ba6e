"""Readers: names, junk, distractors, litter, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from occreid_jax.data import DataError, build_table, examine, open_dataset
from occreid_jax.data.readers.checks import match_counts
from occreid_jax.data.readers.dukemtmc import parse_name as parse_duke_name
from occreid_jax.data.readers.market1501 import parse_name


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "name, expected",
    [
        ("0001_c1s1_000151_01.jpg", (1, 0)),
        ("-1_c3s1_000151_01.jpg", (-1, 2)),
        ("0002_c15s1_000151_01.jpg.jpg", (2, 14)),
        ("7140_c8_f0046985.jpg", (7140, 7)),
        ("exp_10_c2/0003_c4.jpg", (3, 3)),
        ("2024-05-01_c1.jpg", None),
        ("0001_c0.jpg", None),
        ("99999999999_c1.jpg", None),
        ("portrait.jpg", None),
    ],
)
def test_names(name, expected):
    assert parse_name(name) == expected


def test_market_reads_the_base_name_only(market_tree):
    dataset = open_dataset("market1501", market_tree(root="exp_10_c2"))
    np.testing.assert_array_equal(dataset.train.pids, [2, 2, 7, 7, 11, 11])
    np.testing.assert_array_equal(dataset.train.camids, [0, 1, 0, 1, 0, 1])
    assert dataset.train.pids.dtype == np.int32 and dataset.train.camids.dtype == np.int32
    assert dataset.protocol == "market1501/std@1"
    assert list(dataset.train.names) == sorted(dataset.train.names)
    assert all((dataset.query.root / name).is_file() for name in dataset.query.names)


@pytest.mark.parametrize("place", ["market1501", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15"])
def test_market_is_found_below_the_root(market_tree, place):
    root = market_tree(root=place)
    outer = root
    for _ in place.split("/"):
        outer = outer.parent
    assert open_dataset("market1501", outer).train.root == root


def test_junk_distractors_and_litter(market_tree):
    root = market_tree(
        train=["0002_c1_0.jpg", "0002_c12_0.TIF", "0000_c1_0.jpg", "0003_c1_0.jpg.jpg", "0003_c2.PNG"],
        query=["0005_c1_0.jpg", "0000_c1_0.jpg"],
        gallery=["0005_c2_0.jpg", "0000_c3_0.jpg", "-1_c1_0.jpg", "-1_c2_0.jpg"],
    )
    for litter in ("Thumbs.db", ".hidden.jpg", "notes.txt"):
        (root / "query" / litter).write_text("x")
    (root / "query" / "__MACOSX").mkdir()
    dataset = open_dataset("market1501", root)
    assert dataset.train.names == tuple(
        f"bounding_box_train/{n}" for n in ("0002_c12_0.TIF", "0002_c1_0.jpg", "0003_c1_0.jpg.jpg", "0003_c2.PNG")
    )
    assert dataset.train.camids.tolist() == [11, 0, 0, 1]
    assert dataset.query.names == ("query/0005_c1_0.jpg",)
    assert sorted(dataset.gallery.pids.tolist()) == [0, 5]
    notes = "\n".join(dataset.notes)
    assert "bounding_box_test: ignored 2 junk images (identity -1)" in notes
    assert "query: ignored 1 distractors (identity 0000)" in notes
    assert "1 files that are no pictures, 3 hidden or system entries" in notes
    assert "bounding_box_train: ignored 1 distractors" in notes
    assert "the published set has 12,936 of 751" in notes


def test_strange_names_are_told_all_at_once(market_tree):
    root = market_tree(train=["0002_c1_0.jpg", *(f"me{i}.jpg" for i in range(8))], query=["0005_c1_0.jpg", "you.jpg"])
    with pytest.raises(DataError) as error:
        open_dataset("market1501", root)
    message = one_line(error)
    assert "9 pictures are not named" in message and "bounding_box_train/me0.jpg" in message and "4 more" in message


def test_missing_and_empty_folders(market_tree, tmp_path):
    with pytest.raises(DataError) as error:
        open_dataset("market1501", tmp_path / "nowhere")
    assert "is not a folder" in one_line(error) and "bounding_box_train/" in one_line(error)
    root = market_tree()
    for file in (root / "query").iterdir():
        file.unlink()
    with pytest.raises(DataError) as error:
        open_dataset("market1501", root)
    assert "the query split" in one_line(error) and "no usable picture" in one_line(error)
    (root / "query").rmdir()
    with pytest.raises(DataError) as error:
        open_dataset("market1501", root)
    assert "has no folder query" in one_line(error)


def test_sets_without_a_possible_match_are_refused(market_tree):
    with pytest.raises(DataError) as error:
        open_dataset("market1501", market_tree(gallery=["0044_c2_0.jpg"], root="absent"))
    assert "none of the 2 query identities" in one_line(error)
    with pytest.raises(DataError) as error:
        open_dataset("market1501", market_tree(query=["0005_c1_0.jpg"], gallery=["0005_c1_1.jpg"], root="same_camera"))
    assert "no query has a match at another camera" in one_line(error)


def test_unknown_names_and_options(tmp_path):
    with pytest.raises(DataError) as error:
        open_dataset("market150", tmp_path)
    assert "did you mean 'market1501'" in one_line(error)
    with pytest.raises(DataError) as error:
        open_dataset("folder", tmp_path, kamera="none")
    assert "has no option 'kamera'" in one_line(error) and "camera" in one_line(error)
    with pytest.raises(DataError) as error:
        open_dataset("folder", tmp_path, camera="two")
    assert 'should be "none" or "name"' in one_line(error)


@pytest.fixture
def folder_tree(tmp_path, write_picture):
    for role, people in {"train": ("anna", "zoë b"), "query": ("carl",), "gallery": ("carl", "17")}.items():
        for person in people:
            for shot in (10, 20):
                camera = shot + (role == "gallery")
                write_picture(tmp_path / "own" / role / person / f"shot_c{camera}_{role}.jpg", seed=camera)
    return tmp_path / "own"


def test_folder_per_identity(folder_tree):
    (folder_tree / "query" / "loose.jpg").write_bytes(b"x")
    (folder_tree / "query" / "nobody").mkdir()
    dataset = open_dataset("folder", folder_tree)
    # sorted names: 17, anna, carl, zoë b -> 1, 2, 3, 4
    assert dataset.train.pids.tolist() == [2, 2, 4, 4]
    assert dataset.query.pids.tolist() == [3, 3] and dataset.gallery.pids.tolist() == [1, 1, 3, 3]
    assert set(dataset.query.camids) == {0} and set(dataset.gallery.camids) == {1}
    assert dataset.train.cameras == dataset.query.cameras == dataset.gallery.cameras == ""
    assert dataset.protocol == "folder/no-cameras@1"
    assert "query: ignored 1 identity folders without a picture" in dataset.notes
    assert "query: PICTURES LEFT OUT: 1 pictures outside an identity folder: move them into one" in dataset.notes


def test_folder_with_cameras_in_the_names(folder_tree, write_picture):
    dataset = open_dataset("folder", folder_tree, camera="name")
    assert dataset.protocol == "folder/cameras-by-name@1"
    assert dataset.query.camids.tolist() == [9, 19] and dataset.gallery.camids.tolist() == [10, 20, 10, 20]
    assert dataset.train.cameras == dataset.query.cameras == dataset.gallery.cameras == "folder"
    write_picture(folder_tree / "gallery" / "17" / "plain.jpg")
    with pytest.raises(DataError) as error:
        open_dataset("folder", folder_tree, camera="name")
    assert "gallery/17/plain.jpg" in one_line(error)


def test_folder_without_train(folder_tree):
    (folder_tree / "train").rename(folder_tree / "Training")
    with pytest.raises(DataError) as error:
        open_dataset("folder", folder_tree)
    assert "has no folder train" in one_line(error) and "one folder per identity" in one_line(error)
    check_tested_alone(open_dataset("folder", folder_tree, need_train=False), "train")
    (folder_tree / "query").rename(folder_tree / "Queries")
    with pytest.raises(DataError) as error:
        open_dataset("folder", folder_tree, need_train=False)
    assert "has no folder query: " in one_line(error)


def check_tested_alone(dataset, folder):
    """A test set without a training set, which a note tells."""
    assert len(dataset.train) == 0 and len(dataset.query) and len(dataset.gallery)
    assert dataset.train.pids.dtype == dataset.train.camids.dtype == np.int32
    assert f"there is no {folder}/, so this set can be evaluated and not trained on" in dataset.notes
    assert "train: no images" in examine(dataset)


@pytest.mark.parametrize("name", ["market1501", "dukemtmc", "occluded_duke", "occluded_reid", "synthetic"])
def test_test_sets_alone(market_tree, occluded_reid_tree, name):
    files = [f"{pid:04d}_c{camera}_f000000{number}.jpg" for number, (pid, camera) in enumerate(((5, 1), (5, 2)))]
    root = occluded_reid_tree() if name == "occluded_reid" else market_tree(files, files[:1], files[1:])
    if name == "synthetic":
        (root / "benchmark.json").write_text('{"size": "demo", "split": "occluded", "seed": 0, "version": 1}')
    whole = open_dataset(name, root, need_train=False)
    assert len(whole.train) and whole.train.names == open_dataset(name, root).train.names
    shutil.rmtree(next(root.rglob("bounding_box_train")))
    with pytest.raises(DataError) as error:
        open_dataset(name, root)
    assert "has no folder bounding_box_train: it should hold" in one_line(error)
    alone = open_dataset(name, root, need_train=False)
    check_tested_alone(alone, "bounding_box_train")
    assert alone.protocol == whole.protocol and alone.query.names == whole.query.names


def test_synthetic_takes_its_protocol_from_the_description(market_tree):
    root = market_tree()
    with pytest.raises(DataError) as error:
        open_dataset("synthetic", root)
    assert "no benchmark.json" in one_line(error)
    (root / "benchmark.json").write_text("{")
    with pytest.raises(DataError) as error:
        open_dataset("synthetic", root)
    assert "cannot be read" in one_line(error)
    facts = {"size": "demo", "split": "occluded", "seed": 0, "version": 1, "counts": {"query": 2, "query occluded": 1}}
    (root / "benchmark.json").write_text(json.dumps(facts))
    dataset = open_dataset("synthetic", root)
    assert dataset.protocol == "synthetic-demo-occluded/std@1" and dataset.truth == root / "truth"
    (root / "benchmark.json").write_text(json.dumps(facts | {"seed": 3, "version": 2}))
    assert open_dataset("synthetic", root).protocol == "synthetic-demo-occluded-seed3/std@2"
    (root / "query" / "0009_c2_0.jpg").unlink()
    with pytest.raises(DataError) as error:
        open_dataset("synthetic", root)
    assert "holds 1 pictures but benchmark.json says 2" in one_line(error)
    (root / "benchmark.json").write_text("{}")
    with pytest.raises(DataError) as error:
        open_dataset("synthetic", root)
    assert "lacks size, split, seed, version" in one_line(error)


DUKE = dict(
    train=[f"{pid:04d}_c{camera}_f0046985.jpg" for pid in (1, 7140) for camera in (2, 8)],
    query=["0005_c1_f0046985.jpg", "0009_c2_f0046985.jpg"],
    gallery=["0005_c2_f0046986.jpg", "0005_c1_f0046985.jpg", "0009_c1_f0046985.jpg", "0011_c3_f0046985.jpg"],
)
DUKE_PLACES = {
    "dukemtmc": ("", "dukemtmc", "DukeMTMC-reID", "dukemtmc-reid/DukeMTMC-reID", "dukemtmcreid/DukeMTMC-reID"),
    "occluded_duke": ("", "Occluded_Duke", "dukemtmcreid/Occluded_Duke"),
}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("0005_c2_f0046985.jpg", (5, 1)),
        ("7140_c8_f0046985.TIF", (7140, 7)),
        ("0005_c9_f0046985.jpg", None),
        ("0005_c12_f0046985.jpg", None),
        ("0000_c1_f0046985.jpg", None),
        ("-1_c1_f0046985.jpg", None),
        ("0001_c1s1_000151_01.jpg", None),
    ],
)
def test_duke_names(name, expected):
    assert parse_duke_name(name) == expected


@pytest.mark.parametrize("name, place", [(name, place) for name, places in DUKE_PLACES.items() for place in places])
def test_duke_is_found_below_the_root(market_tree, tmp_path, name, place):
    market_tree(root=f"all/{place}", **DUKE)
    dataset = open_dataset(name, tmp_path / "all")
    assert dataset.train.root == tmp_path / "all" / place
    assert (dataset.name, dataset.protocol) == (name, f"{name}/std@1")
    assert dataset.train.pids.tolist() == [1, 1, 7140, 7140] and dataset.train.camids.tolist() == [1, 7, 1, 7]
    assert dataset.gallery.pids.tolist() == [5, 5, 9, 11]


def test_duke_notes(market_tree):
    root = market_tree(**DUKE)
    (root / "query" / "Thumbs.db").write_text("x")
    plain, occluded = open_dataset("dukemtmc", root).notes, open_dataset("occluded_duke", root).notes
    for notes in (plain, occluded):
        assert sum("withdrawn by its authors" in note and "cannot be downloaded" in note for note in notes) == 1
        assert "query: ignored 1 hidden or system entries" in notes and all("\n" not in note for note in notes)
        assert any(note.startswith("gallery: 4 images of 3 identities; the published set has 17,661 of 1,110") for note in notes)
    assert any("the published set has 16,522 of 702" in note for note in plain)
    assert any("query: 2 images of 2 identities; the published set has 2,228 of 702" in note for note in plain)
    assert any("the published set has 15,618 of 702" in note for note in occluded)
    assert any("the published set has 2,210 of 519" in note for note in occluded)


@pytest.mark.parametrize("name, folder", [("dukemtmc", "DukeMTMC-reID/"), ("occluded_duke", "Occluded_Duke/")])
def test_other_sets_are_not_taken_for_duke(market_tree, tmp_path, name, folder):
    with pytest.raises(DataError) as error:
        open_dataset(name, market_tree())
    message = one_line(error)
    assert "12 pictures are not named <identity from 1>_c<camera from 1 to 8>_f<frame>" in message and "and 7 more" in message
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as error:
        open_dataset(name, tmp_path / "empty")
    assert "has no folder bounding_box_train, query" in one_line(error) and folder in one_line(error)
    with pytest.raises(DataError) as error:
        open_dataset(name, tmp_path / "nowhere")
    assert "is not a folder" in one_line(error)


@pytest.fixture
def occluded_reid_tree(market_tree, write_picture, tmp_path):
    """make(place, market, ending): Occluded-REID with identities 2 and 11, two pictures each; Market-1501 below the same root."""

    def make(place="Occluded_REID", market="market1501", ending=".tif"):
        if market is not None:
            market_tree(root=f"all/{market}")
        for half in ("occluded_body_images", "whole_body_images"):
            for pid in ("002", "011"):
                for shot in ("01", "02"):
                    seed = 100 * int(pid) + int(shot) + 10 * (half == "whole_body_images")
                    write_picture(tmp_path / "all" / place / half / pid / f"{pid}_{shot}{ending}", seed)
        return tmp_path / "all"

    return make


@pytest.mark.parametrize("ending", [".tif", ".jpg"])
@pytest.mark.parametrize("place, market", [("Occluded_REID", "market1501"), ("", ""), ("OccludedREID", "Market-1501-v15.09.15")])
def test_occluded_reid(occluded_reid_tree, place, market, ending):
    root = occluded_reid_tree(place, market, ending)
    dataset = open_dataset("occluded_reid", root)
    assert (dataset.name, dataset.protocol) == ("occluded_reid", "occluded_reid/all200-market1501@1")
    assert dataset.train.root == root / market and dataset.query.root == dataset.gallery.root == root / place
    assert dataset.train.names == open_dataset("market1501", root).train.names
    assert dataset.train.pids.tolist() == [10_002, 10_002, 10_007, 10_007, 10_011, 10_011]
    assert dataset.query.names[0] == f"occluded_body_images/002/002_01{ending}"
    assert (dataset.train.cameras, dataset.query.cameras, dataset.gallery.cameras) == ("market1501", "", "")
    for split, camid in ((dataset.query, 0), (dataset.gallery, 1)):
        assert split.pids.tolist() == [2, 2, 11, 11] and split.camids.tolist() == [camid] * 4
        assert split.pids.dtype == split.camids.dtype == np.int32 and list(split.names) == sorted(split.names)
    assert match_counts(dataset.query, dataset.gallery)[0].tolist() == [2, 2, 2, 2]


def test_occluded_reid_with_splits_in_two_places(occluded_reid_tree, tmp_path):
    dataset = open_dataset("occluded_reid", occluded_reid_tree())
    for split in (dataset.train, dataset.query, dataset.gallery):
        assert build_table(split, (16, 8), "bilinear", tmp_path / "cache").images.shape == (len(split), 16, 8, 3)
    text = "\n".join(examine(dataset))
    assert "problem" not in text and "train and test share no identity" in text


def test_occluded_reid_notes(occluded_reid_tree, write_picture):
    root = occluded_reid_tree()
    half = root / "Occluded_REID" / "whole_body_images"
    (half / "002" / "Thumbs.db").write_text("x")
    (half / ".DS_Store").write_text("x")
    (half / "013").mkdir()
    write_picture(half / "loose.tif")
    notes = open_dataset("occluded_reid", root).notes
    assert "whole_body_images: ignored 2 hidden or system entries, 1 identity folders without a picture" in notes
    assert "whole_body_images: PICTURES LEFT OUT: 1 pictures outside an identity folder: move them into one" in notes
    assert any(note == "cameras of query and gallery are not known: every gallery picture counts" for note in notes)
    for counts in ("train: 6 images of 3", "query: 4 images of 2", "gallery: 4 images of 2"):
        assert any(note.startswith(f"{counts} identities; the published set has") for note in notes)
    assert sum("1,000 of 200" in note for note in notes) == 2


def test_occluded_reid_refuses(occluded_reid_tree, write_picture, tmp_path):
    root = occluded_reid_tree(market=None)
    with pytest.raises(DataError) as error:
        open_dataset("occluded_reid", root)
    assert "has no folder bounding_box_train: it should hold the training set of Market-1501 beside" in one_line(error)
    write_picture(root / "market1501" / "bounding_box_train" / "0002_c1_0.jpg")
    assert len(open_dataset("occluded_reid", root).train) == 1  # nothing else of Market-1501 is needed
    half = root / "Occluded_REID" / "occluded_body_images"
    write_picture(half / "anna" / "1.tif")
    write_picture(half / "002" / "003_01.tif")
    with pytest.raises(DataError) as error:
        open_dataset("occluded_reid", root)
    message = one_line(error)
    assert "2 entries give no identity: occluded_body_images/002/003_01.tif, occluded_body_images/anna/;" in message
    half.rename(half.with_name("occluded"))
    with pytest.raises(DataError) as error:
        open_dataset("occluded_reid", root)
    assert "Occluded_REID has no folder occluded_body_images: it should hold" in one_line(error)
    with pytest.raises(DataError) as error:
        open_dataset("occluded_reid", tmp_path / "nowhere")
    assert "nowhere is not a folder" in one_line(error)


def test_match_counts_against_loops(market_tree):
    dataset = open_dataset("market1501", market_tree())
    query, gallery = dataset.query, dataset.gallery
    elsewhere, same = match_counts(query, gallery)
    for i in range(len(query)):
        own = gallery.pids == query.pids[i]
        assert same[i] == (own & (gallery.camids == query.camids[i])).sum()
        assert elsewhere[i] == (own & (gallery.camids != query.camids[i])).sum()
