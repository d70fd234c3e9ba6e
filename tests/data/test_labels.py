"""Body-part labels from files beside pictures: what each kind means, which file is whose, what is refused."""

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from occreid_jax.data import DataError, labels, open_dataset
from occreid_jax.data.table import build_labels_table, build_parts_table
from occreid_jax.parts import OCCLUDED, PARTS

NUMBER = {name: number for number, name in enumerate(PARTS)}


def fields(height: int = 5, width: int = 4, **channels) -> np.ndarray:
    """Confidences [36, height, width]: ``c17=((row, column), value)`` and nothing else."""
    result = np.zeros((36, height, width), np.float32)
    for name, ((row, column), value) in channels.items():
        result[int(name[1:]), row, column] = value
    return result


@pytest.mark.parametrize("channel", range(36))
def test_every_channel_belongs_to_one_part(channel):
    """Key points as COCO numbers them, limbs by their two ends; the limb from hip to hip is the torso's alone."""
    points = ["head"] * 5 + [f"{side}_arm" for _ in range(3) for side in ("left", "right")] + ["torso", "torso"]
    points += ["left_leg", "right_leg", "left_foot", "right_foot"]
    limbs = ["left_leg", "left_leg", "right_leg", "right_leg", "torso", "torso", "torso", "torso"]
    limbs += ["left_arm", "right_arm", "left_arm", "right_arm"] + ["head"] * 7
    got = labels.parts_of_fields(fields(**{f"c{channel}": ((2, 1), 0.5)}))
    expected = np.zeros((5, 4), np.uint8)
    expected[2, 1] = NUMBER[(points + limbs)[channel]]
    np.testing.assert_array_equal(got, expected)


def test_the_most_confident_part_counts_from_a_half_on():
    got = labels.parts_of_fields(fields(
        c0=((0, 0), 0.6), c5=((0, 0), 0.7),  # an arm before the head
        c13=((1, 1), 0.49), c15=((2, 2), 0.5),
    ))  # fmt: skip
    assert got[0, 0] == NUMBER["left_arm"] and got[1, 1] == 0 and got[2, 2] == NUMBER["left_foot"] and np.count_nonzero(got) == 2


def test_fields_are_resized_by_nearest_neighbour(tmp_path):
    np.save(tmp_path / "a.npy", fields(c0=((0, 0), 1.0), c16=((4, 3), 1.0)).astype(np.float64))
    decoded = labels.decode_fields(tmp_path / "a.npy", (10, 8))
    assert decoded.pixels.shape == (10, 8) and decoded.size == (5, 4)
    expected = np.zeros((10, 8), np.uint8)
    expected[:2, :2], expected[8:, 6:] = NUMBER["head"], NUMBER["right_foot"]
    np.testing.assert_array_equal(decoded.pixels, expected)


@pytest.mark.parametrize("make, told", [
    (lambda path: np.save(path, np.array([{"a": 1}], object), allow_pickle=True), "Python objects, which are not loaded"),
    (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "Python objects, which are not loaded"),
    (lambda path: np.save(path, np.zeros((17, 4, 4), np.float32)), r"\(17, 4, 4\) instead of \(36, height, width\)"),
    (lambda path: np.save(path, np.zeros((36, 4, 4), np.int32)), "int32"),
    (lambda path: np.save(path, np.full((36, 4, 4), np.nan, np.float32)), "no confidences"),
    (lambda path: np.save(path, np.full((36, 4, 4), 40.0, np.float32)), "no confidences"),
    (lambda path: np.save(path, np.zeros((36, 0, 4), np.float32)), r"36, 0, 4"),
    (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), ".+"),
    (lambda path: path.write_bytes(b""), ".+"),
    (lambda path: path.write_bytes(np.lib.format.magic(1, 0) + b"v\x00{'descr': '<f4', 'fortran_order': False, 'shape': "
                                   b"(36, 4000, 4000), }".ljust(118) + b"\n"), ".+"),
])  # fmt: skip
def test_damaged_and_untrusted_fields_are_named(tmp_path, make, told):
    make(tmp_path / "a.npy")
    decoded = labels.decode_fields(tmp_path / "a.npy", (8, 4))
    assert decoded.pixels is None and re.search(told, decoded.problem)


def lut(classes) -> bytes:
    return labels.class_table(classes, "labels.json").tobytes()


def test_palette_and_grey_maps_with_named_classes(tmp_path):
    """ATR numbers shoes 9 and 10, the face 11; a palette's colours say nothing."""
    values = np.array([[0, 11, 2], [14, 4, 15], [12, 16, 13], [9, 0, 10]], np.uint8)
    expected = [[0, 1, 1], [2, 4, 3], [5, 0, 6], [7, 0, 8]]
    Image.fromarray(values).save(tmp_path / "grey.png")
    palette = Image.fromarray(values, mode="P")
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    palette.save(tmp_path / "palette.png")
    for name in ("grey", "palette"):
        decoded = labels.decode_label_map(tmp_path / f"{name}.png", (4, 3), lut("atr"))
        assert decoded.pixels.tolist() == expected and not decoded.problem
    told = {"0": "Background", "2": "hair", "4": "Upper-clothes", "11": "face", "12": "Left_leg", "16": "bag", "9": "left shoe",
            "10": "right shoe", "13": "right-leg", "14": "left-arm", "15": "Right-arm"}  # fmt: skip
    assert labels.decode_label_map(tmp_path / "grey.png", (4, 3), lut(told)).pixels.tolist() == expected
    strange = labels.decode_label_map(tmp_path / "grey.png", (4, 3), lut("ours")).problem
    assert strange == "values that are no class: 9, 10, 11, 12, 13 and 2 more"
    Image.fromarray(np.zeros((4, 3, 3), np.uint8)).save(tmp_path / "colour.png")
    assert "mode RGB" in labels.decode_label_map(tmp_path / "colour.png", (4, 3), lut("atr")).problem


def test_every_class_of_the_known_sets_is_a_part():
    assert [len(names) for names in labels.CLASSES.values()] == [9, 20, 18]
    for names in labels.CLASSES.values():
        assert all(labels.meaning(name) for name in names)
    table = labels.class_table("ours", "")
    assert table[:9].tolist() == list(range(9)) and table[16:25].tolist() == [OCCLUDED | part for part in range(9)]


def test_trousers_get_the_side_of_the_nearest_leg():
    legs = [labels.class_table("lip", "")[value] for value in (9, 18, 19)]  # pants, left shoe, right shoe
    pants, left, right = legs
    rows = np.array([[pants, pants, pants, pants], [left, 0, 0, right]], np.uint8)
    assert labels.with_sides(rows)[0].tolist() == [NUMBER["left_leg"]] * 2 + [NUMBER["right_leg"]] * 2
    alone = np.array([[0, pants, pants, pants, pants]], np.uint8)  # as of somebody who faces the camera
    assert labels.with_sides(alone).tolist() == [[0, 6, 6, 5, 5]]


@pytest.mark.parametrize("classes, told", [
    ("cihp", "classes 'cihp' are not known"),
    ({"0": "background", "1": "umbrella"}, "classes umbrella are no part"),
    ({"one": "hat"}, "should give names to values"),
    ({"255": "hat"}, "should give names to values"),
    (7, "should give names to values"),
])  # fmt: skip
def test_classes_that_say_nothing(classes, told):
    with pytest.raises(DataError, match=told):
        labels.class_table(classes, "labels.json")


# Files and pictures ---------------------------------------------------------------------------------------------------


@pytest.fixture
def market(market_tree):
    return open_dataset("market1501", market_tree())


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


@pytest.mark.parametrize("rule", ["{parent}/{stem}.npy", "{parent}/{name}.confidence_fields.npy", "{parent}/{name}.npy"])
def test_the_public_names_of_fields(market, tmp_path, rule):
    for role in labels.ROLES:
        for name in getattr(market, role).names:
            parent, base = name.split("/")
            write(tmp_path / "masks" / rule.format(parent=parent, stem=base[:-4], name=base), fields())
    parsing = labels.find_labels(market, str(tmp_path / "masks"))
    assert parsing.kind == "fields" and all(parsing.parsed(role).all() for role in labels.ROLES)


def test_labels_of_occluded_reid_lie_in_the_grandparents_folder(tmp_path):
    halves = ("occluded_body_images", "whole_body_images")
    names = [f"{half}/001/001_01.tif" for half in halves]
    for half, value in zip(halves, (0, 16), strict=True):
        write(tmp_path / half / "001_01.npy", fields(**{f"c{value}": ((0, 0), 1.0)}))
    found = [labels._file_of(tmp_path, {f"{half}/001_01.npy" for half in halves}, "fields", name) for name in names]
    assert found == [tmp_path / half / "001_01.npy" for half in halves]


def test_pictures_without_labels_are_told_and_have_no_parts(market, tmp_path):
    some = market.query.names[0]
    write(tmp_path / "masks" / f"{some[:-4]}.npy", fields(c0=((0, 0), 1.0)))
    parsing = labels.find_labels(market, str(tmp_path / "masks"))
    assert parsing.parsed("query").tolist() == [True, False] and not parsing.parsed("train").any()
    files = parsing.paths["query"], parsing.decode, parsing.words
    table = build_labels_table(market.query, *files, (10, 8), tmp_path / "cache")
    assert table.images[0, 0, 0] == NUMBER["head"] and not table.images[1].any()
    assert build_labels_table(market.query, *files, (10, 8), tmp_path / "cache").path == table.path
    write(tmp_path / "masks" / f"{some[:-4]}.npy", fields(c16=((0, 0), 1.0)).astype(np.float64))
    again = build_labels_table(market.query, *files, (10, 8), tmp_path / "cache")
    assert again.path != table.path and again.images[0, 0, 0] == NUMBER["right_foot"]
    write(tmp_path / "masks" / f"{some[:-4]}.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"1 of 2 files of body-part labels cannot be used: query/.*\.npy: \(3,\) instead of"):
        build_labels_table(market.query, *files, (10, 8), tmp_path / "cache")


def test_one_file_for_two_pictures_is_refused(tmp_path, write_picture):
    """Two people's folders with a picture of the same name each, and labels in one flat folder of the split."""
    seed = 0
    for role in ("train", "query", "gallery"):
        for person in ("ann", "bob"):
            seed += 1
            write_picture(tmp_path / "own" / role / person / "1.jpg", seed)
    write(tmp_path / "masks" / "query" / "1.npy", fields())
    with pytest.raises(DataError, match=r"1.npy is named after two pictures, .*ann/1.jpg and .*bob/1.jpg"):
        labels.find_labels(open_dataset("folder", tmp_path / "own"), str(tmp_path / "masks"))


def test_folders_that_cannot_be_used(market, tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        labels.find_labels(market, str(tmp_path / "nowhere"))
    masks = tmp_path / "masks"
    masks.mkdir()
    with pytest.raises(DataError, match="neither .npy nor .png files"):
        labels.find_labels(market, str(masks))
    write(masks / "other.npy", fields())
    with pytest.raises(DataError, match=r"none of the 1 files .* such as query/0005_c1_0.jpg.confidence_fields.npy"):
        labels.find_labels(market, str(masks))
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(masks / "other.png")
    with pytest.raises(DataError, match="both .npy and .png files"):
        labels.find_labels(market, str(masks))
    with pytest.raises(DataError, match="parsing_format is 'lips'"):
        labels.find_labels(market, "", "lips")
    assert labels.find_labels(market, "").kind == labels.NONE


def test_all_kinds_give_the_renderers_table(market, tmp_path):
    """The same labels as the renderer's truth, as confidence fields, as our map, as one with a legend and as ATR's: one table."""
    rng, size = np.random.default_rng(0), (10, 8)
    maps = {name: rng.integers(0, 9, size).astype(np.uint8) for name in market.query.names}
    channel = {0: None, 1: 30, 2: 7, 3: 26, 4: 21, 5: 18, 6: 19, 7: 15, 8: 16}
    atr = np.array([0, 11, 14, 15, 4, 12, 13, 9, 10], np.uint8)  # values of the nine parts
    for name, parts in maps.items():
        stem = name[:-4]
        confidence = np.zeros((36, *size), np.float32)
        for part, place in channel.items():
            if place is not None:
                confidence[place] = 0.9 * (parts == part)
        write(tmp_path / "fields" / f"{stem}.npy", confidence)
        for kind, values in (("truth", parts), ("ours", parts), ("legend", parts + 100), ("atr", atr[parts])):
            (tmp_path / kind / stem).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / kind / f"{stem}.png")
    (tmp_path / "legend" / "labels.json").write_text(
        json.dumps({"classes": {str(100 + place): name for place, name in enumerate(labels.CLASSES["ours"])}})
    )
    rendered = dataclasses.replace(market, truth=tmp_path / "truth")
    assert labels.find_labels(rendered, "").kind == labels.TRUTH and labels.find_labels(rendered, "").parsed("query").all()
    without = labels.find_labels(rendered, "none")
    assert without.kind == labels.NONE and not without.parsed("query").any()
    expected = build_parts_table(rendered, "query", size, tmp_path / "cache").images
    np.testing.assert_array_equal(expected, np.stack([maps[name] for name in market.query.names]))
    for kind, file_format in (("fields", "auto"), ("ours", "auto"), ("legend", "auto"), ("atr", "atr")):
        parsing = labels.find_labels(market, str(tmp_path / kind), file_format)
        files = parsing.paths["query"], parsing.decode, parsing.words
        table = build_labels_table(market.query, *files, size, tmp_path / "cache")
        np.testing.assert_array_equal(table.images, expected, err_msg=kind)
        assert parsing.kind == ("fields" if kind == "fields" else "label_map")
