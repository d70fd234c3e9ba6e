"""Libraries of occluders: the format, every source on made-up inputs, and what is said about unusable ones."""

import collections
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from occreid_jax.data import occluders
from occreid_jax.data.occluders import Occluder, read_library, write_library
from occreid_jax.errors import DataError, UserError
from occreid_jax.synthetic.loose import SHAPES
from occreid_jax.train.rendered import rendered_occluders

TERMS = ("a source", "a licence")


def quiet(done, total):
    assert 1 <= done <= total


def made(count=3):
    """Occluders of several sizes with random pixels."""
    rng = np.random.default_rng(0)
    sizes = [(20 + 3 * number, 40 - 5 * number) for number in range(count)]
    return [Occluder(f"thing {n}", rng.integers(0, 256, (*size, 4)).astype(np.uint8), *TERMS) for n, size in enumerate(sizes)]


@pytest.fixture
def library(tmp_path):
    """A folder with a small library."""
    write_library(tmp_path / "library", made(), 16)
    return tmp_path / "library"


def photo(path, size=(40, 30), seed=0):
    """Writes a random picture of (width, height) without loss and returns its pixels [h, w, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


# The format -----------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    things = [*made(), made(1)[0]._replace(kind="overlay", name="frame")]
    left_out = collections.Counter({"too dull": 2})
    library = write_library(tmp_path / "a" / "library", things, 16, left_out)
    assert library.pictures.shape == (4, 16, 16, 4) and library.pictures.dtype == np.uint8
    assert library.sides.tolist() == [[20, 40], [23, 35], [26, 30], [20, 40]] and library.sides.dtype == np.int32
    assert library.kinds == ("cutout", "cutout", "cutout", "overlay")
    assert library.entries[0].name == "thing 0" and (library.entries[0].source, library.entries[0].licence) == TERMS
    index = json.loads((tmp_path / "a" / "library" / "library.json").read_text())
    assert index["version"] == occluders.VERSION and index["side"] == 16 and index["left_out"] == {"too dull": 2}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["library"]  # nothing temporary is left


def test_stretching_mixes_colours_by_their_opacity():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (200, 100, 50, 255)
    pixels[:, 4:, 1] = 255  # transparent green
    small = occluders.stretch(pixels, 6)
    assert (small[small[..., 3] > 0][:, :3] == (200, 100, 50)).all() and 0 < small[0, 3, 3] < 255
    assert (small[:, -1] == (0, 255, 0, 0)).all()
    np.testing.assert_array_equal(occluders.stretch(pixels, 8), pixels)


def test_unusable_libraries_are_one_line(tmp_path, library):
    def fails(pattern, folder=library):
        with pytest.raises(DataError, match=pattern) as error:
            read_library(folder)
        assert "\n" not in str(error.value)

    fails("no such folder.*prepare_data.py occluders", tmp_path / "absent")
    (tmp_path / "bare").mkdir()
    fails("library.json is missing", tmp_path / "bare")
    index = json.loads((library / "library.json").read_text())
    pixels = (library / "pictures.npy").read_bytes()
    for change, pattern in (
        (dict(version=9), "version 9 instead of"),
        (dict(entries=[]), "holds no occluders"),
        (dict(entries=index["entries"][:2]), r"\(3, 16, 16, 4\) instead of uint8 \(2, 16, 16, 4\)"),
        (dict(entries=[{"name": "x"}] * 3), "cannot be used"),
        (dict(entries=[index["entries"][0] | {"kind": "ghost"}] * 3), "unknown kind"),
        (dict(side="wide"), "instead of uint8"),
    ):
        (library / "library.json").write_text(json.dumps(index | change))
        fails(pattern)
    (library / "library.json").write_text("[")
    with pytest.raises(UserError, match="not readable as JSON"):
        read_library(library)
    (library / "library.json").write_text(json.dumps(index))
    for content in (pixels[:-100], pixels[:20], b""):
        (library / "pictures.npy").write_bytes(content)
        fails("pictures.npy is damaged")
    (library / "pictures.npy").write_bytes(pixels[:-1] + bytes([pixels[-1] ^ 1]))
    fails("the pixels are not those that were written")
    (library / "pictures.npy").unlink()
    fails("pictures.npy is damaged")


def test_a_library_is_written_whole_or_not_at_all(tmp_path, library, monkeypatch):
    with pytest.raises(DataError, match="holds something already"):
        write_library(library, made(), 16)
    with pytest.raises(DataError, match=r"no occluders found \(left out: 3 dull\)"):
        write_library(tmp_path / "none", [], 16, collections.Counter(dull=3))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_library(tmp_path / "file" / "library", made(), 16)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match="No space left on device.*make room"):
        write_library(tmp_path / "full", made(), 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "library"]


# Sources --------------------------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures_with_transparency(tmp_path):
    pixels = np.zeros((30, 40, 4), np.uint8)
    pixels[5:15, 10:30] = (1, 2, 3, 200)
    (tmp_path / "more").mkdir()
    for name in ("a.png", "more/b.webp", "c.tif"):
        Image.fromarray(pixels).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    Image.fromarray(pixels * 0).save(tmp_path / "empty.png")
    photo(tmp_path / "opaque.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("no picture")
    left_out = collections.Counter()
    found = list(occluders.from_folder(tmp_path, *TERMS, left_out=left_out, progress=quiet))
    assert [thing.name for thing in found] == ["a.png", "c.tif", "more/b.webp"]
    assert all(thing.pixels.shape == (10, 20, 4) and (thing.pixels == (1, 2, 3, 200)).all() for thing in found)
    assert left_out == {"wholly transparent": 1, "without transparency": 1, "unreadable": 1}
    frames = list(occluders.from_folder(tmp_path, *TERMS, "overlay", limit=2, left_out=left_out, progress=quiet))
    assert [(thing.kind, thing.pixels.shape) for thing in frames] == [("overlay", (30, 40, 4))] * 2
    with pytest.raises(DataError, match="no pictures there"):
        list(occluders.from_folder(tmp_path / "absent", *TERMS, left_out=left_out, progress=quiet))


def packed(counts):
    """COCO's compressed run lengths, written after its description: five bits a character, low ones first."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + (32 if more else 0))
            if not more:
                break
    return text


def runs(mask):
    """Run lengths of a mask, column by column, background first."""
    flat = mask.T.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]]), append=0))
    return np.diff(np.concatenate([[0], edges[edges <= flat.size]])).tolist()


def test_masks_of_polygons_and_run_lengths():
    square = occluders.decode_segmentation([[10, 5, 19, 5, 19, 14, 10, 14], [0, 0, 2, 0, 2, 2, 0, 2]], (30, 40))
    assert square.shape == (30, 40) and square[5:15, 10:20].all() and square[:3, :3].all() and square.sum() == 109
    mask = np.random.default_rng(0).random((30, 40)) < 0.3
    mask[:, 5:30] |= np.arange(30)[:, None] > 3  # long runs too
    for counts in (runs(mask), packed(runs(mask))):
        np.testing.assert_array_equal(occluders.decode_segmentation({"size": [30, 40], "counts": counts}, (30, 40)), mask)
    assert occluders.unpack_counts("52203") == [5, 2, 2, 2, 5]  # the last two as differences to two before
    short, turned = {"size": [30, 40], "counts": [3]}, {"size": [40, 30], "counts": [1200]}
    for wrong in (None, 3, {"counts": [1]}, short, turned, [[1, 2, "x"]]):
        assert occluders.decode_segmentation(wrong, (30, 40)) is None


def annotated(folder, **changes):
    """COCO-style annotations of two pictures: polygon, run lengths, crowd, small box, broken mask."""
    pixels = [photo(folder / "pictures" / name, seed=seed) for seed, name in enumerate(("b.png", "a.png"))]
    mask = np.zeros((30, 40), bool)
    mask[4:24, 2:7] = True

    def entry(number, image, segmentation, side=10):
        box = [0, 0, 20, side]
        return dict(id=number, image_id=image, category_id=3, bbox=box, segmentation=segmentation, iscrowd=0)

    content = dict(
        info=dict(description="made up"),
        licenses=[dict(id=7, name="CC0", url="http://x")],
        categories=[dict(id=3, name="bench")],
        images=[dict(id=11, file_name="b.png", height=30, width=40, license=7), dict(id=12, file_name="a.png"),
                dict(id=13, file_name="absent.png")],
        annotations=[
            entry(1, 11, [[10, 5, 29, 5, 29, 14, 10, 14]]), entry(2, 12, dict(size=[30, 40], counts=runs(mask))),
            entry(3, 11, dict(size=[30, 40], counts=[1200])) | dict(iscrowd=1), entry(4, 12, [], 4),
            entry(5, 12, "?"), entry(6, 13, [[1, 1, 9, 1, 9, 9]]),
        ],
    ) | changes  # fmt: skip
    (folder / "notes.json").write_text(json.dumps(content))
    return pixels, mask


def test_annotations_in_cocos_format(tmp_path):
    pixels, mask = annotated(tmp_path)
    left_out = collections.Counter()

    def source(*terms, **more):
        counted = dict(left_out=left_out, progress=quiet, smallest=5) | more
        return list(occluders.from_annotations(tmp_path / "notes.json", tmp_path / "pictures", *terms, **counted))

    polygon, lengths = source()
    assert polygon.name == "b.png 1 bench" and (polygon.source, polygon.licence) == ("made up", "CC0 http://x")
    assert lengths.licence == "unknown"
    np.testing.assert_array_equal(polygon.pixels[..., :3], pixels[0][5:15, 10:30])
    np.testing.assert_array_equal(lengths.pixels[..., :3], pixels[1][4:24, 2:7])
    assert (polygon.pixels[..., 3] == 255).all() and (lengths.pixels[..., 3] == 255).all()
    assert left_out == {"crowds": 1, "smaller than 5 pixels": 1, "without a readable mask": 1,
                        "in pictures that are missing or do not fit": 1}  # fmt: skip
    assert {(thing.source, thing.licence) for thing in source(*TERMS)} == {TERMS}
    assert len(source(limit=1)) == 1 and source(limit=1, seed=4)[0].name == source(limit=1, seed=4)[0].name
    annotated(tmp_path, images=[dict(id=number, file_name="b.png", height=31, width=40) for number in (11, 12, 13)])
    assert source() == []  # pictures of another size than the annotations'
    for wrong in ([], dict(images=3), dict(images=[], annotations=[dict(bbox=[1, 1, 50, 50], image_id=5)])):
        (tmp_path / "notes.json").write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="not annotations in COCO's format"):
            source()
    with pytest.raises(UserError, match="no such file"):
        list(occluders.from_annotations(tmp_path / "absent.json", tmp_path, left_out=left_out, progress=quiet))


def test_crops_of_a_list(tmp_path):
    pixels = photo(tmp_path / "in folder" / "my crop 7.png")
    path = tmp_path / "in folder" / "crops.txt"
    path.write_text("# patches\nmy crop 7.png\n\nmy crop 7.png 3 4 20 10\n")
    whole, part = occluders.from_list(path, *TERMS, progress=quiet)
    np.testing.assert_array_equal(whole.pixels[..., :3], pixels)
    np.testing.assert_array_equal(part.pixels[..., :3], pixels[4:14, 3:23])
    assert (part.pixels[..., 3] == 255).all() and part.name == "my crop 7.png 3 4 20 10" and part.kind == "cutout"
    assert len(list(occluders.from_list(path, *TERMS, limit=1, progress=quiet))) == 1
    for text, pattern in (
        ("my crop 7.png 30 4 20 10", "line 1: .* is not inside the 40x30 pixels"),
        ("\nmy crop 7.png 1 1 0 5", "line 2: .* not inside"),
        ("my crop 7.png -1 1 2 5", "not inside"),
        ("other.png", "line 1: other.png cannot be used .missing"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=pattern):
            list(occluders.from_list(path, *TERMS, progress=quiet))
    with pytest.raises(DataError, match="cannot be read"):
        list(occluders.from_list(tmp_path / "absent.txt", *TERMS, progress=quiet))


def test_masks_of_a_segmentation_network(tmp_path):
    pixels = photo(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "b.png").write_bytes(b"nothing")
    masks = np.zeros((3, 30, 40), bool)
    masks[0, 3:9, 2:30], masks[1, 5:7, 5:7] = True, True
    left_out = collections.Counter()

    def generate(image):
        np.testing.assert_array_equal(np.asarray(image), pixels)
        return masks

    settings = dict(smallest=4, left_out=left_out, progress=quiet)
    (found,) = occluders.from_masks(tmp_path / "pictures", generate, *TERMS, **settings)
    np.testing.assert_array_equal(found.pixels[..., :3], pixels[3:9, 2:30])
    assert found.name == "a.png 0" and left_out == {"smaller than 4 pixels": 2, "unreadable": 1}


def test_segment_anything_says_what_it_lacks(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no SAM model there"):
        occluders.sam(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(occluders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs PyTorch and torchvision: pip install 'occreid_jax\[sam\]'") as error:
        occluders.sam(tmp_path)
    assert "\n" not in str(error.value)


def test_rendered_occluders(tmp_path):
    from occreid_jax import synthetic

    assert set(SHAPES) == set(synthetic.OBJECTS)
    things, again, others = (list(rendered_occluders(seed, quiet, 18)) for seed in (0, 0, 1))
    assert collections.Counter(thing.name.split()[0] for thing in things) == {kind: 2 for kind in synthetic.OBJECTS}
    for thing, same, other in zip(things, again, others, strict=True):
        np.testing.assert_array_equal(thing.pixels, same.pixels)
        assert thing.pixels.shape != other.pixels.shape or (thing.pixels != other.pixels).any()
        opaque = thing.pixels[..., 3] > 0
        assert opaque[0].any() and opaque[-1].any() and opaque[:, 0].any() and opaque[:, -1].any()  # a tight box
    free = {thing.name.split()[0] for thing in things if (thing.pixels[..., 3] < 128).mean() > 0.08}
    assert {"bush", "bicycle", "umbrella", "sign"} <= free  # a contour, not a box
    library = write_library(tmp_path / "library", things, 32)
    tall = library.sides[:, 0] > 2 * library.sides[:, 1]
    assert {entry.name.split()[0] for entry, high in zip(library.entries, tall, strict=True) if high} == {"pole", "sign"}


def test_people_stand_among_the_rendered_objects_if_asked_for():
    things = list(rendered_occluders(0, quiet, 9, 5))
    assert [thing.name.split()[0] for thing in things[9:]] == 5 * ["person"]
    for thing, alone in zip(things, rendered_occluders(0, quiet, 9), strict=False):
        np.testing.assert_array_equal(thing.pixels, alone.pixels)  # the objects stay what they are
    people = [thing.pixels for thing in things[9:]]
    for pixels, other in itertools.pairwise(people):
        height, width = pixels.shape[:2]
        assert 190 < height < 250 and height > 1.5 * width
        solid = pixels[..., 3] == 255
        assert 0.2 < solid.mean() < 0.9 and (pixels[..., 3] == 0).mean() > 0.1  # a contour, not a box
        assert len(np.unique(pixels[solid][:, :3], axis=0)) > 5  # skin, hair and clothes in their colours
        assert pixels.shape != other.shape or (pixels != other).any()


def test_people_of_a_library_are_of_the_training_sets():
    from occreid_jax.synthetic.loose import PASSERS_BY
    from occreid_jax.synthetic.people import owner, sample_people

    others = sample_people(PASSERS_BY, 60, "train")
    assert {owner(person) for person in others} == {"train"}
    assert not {person.outfit() for person in others} & {person.outfit() for person in sample_people(0, 300, "train")}


def test_the_command_makes_a_library(tmp_path):
    photo(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\na.png 1 2 10 25\n")
    command = [sys.executable, str(Path(__file__).parents[2] / "launch" / "prepare_data.py"), "occluders", "--from=list"]
    given = [f"--list={tmp_path / 'list.txt'}", f"--out={tmp_path / 'made'}", "--side=24", "--source=mine", "--licence=CC0"]
    done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "2 occluders, 1 of them more than twice as high as wide" in done.stdout, done
    library = read_library(tmp_path / "made")
    assert library.pictures.shape == (2, 24, 24, 4) and library.entries[1].licence == "CC0"
