"""Own pictures: by folders, by a pattern of names, by a table; what is told of them, and how they are split."""

import collections

import numpy as np
import pytest

from occreid_jax.data import DataError, open_dataset, people
from occreid_jax.data.fingerprint import fingerprint
from occreid_jax.data.people import Row
from occreid_jax.data.readers.checks import match_counts


@pytest.mark.parametrize("pattern, path, expected", [
    ("{camera}_{identity}_*", "gate2_anna_17.jpg", ("anna", "gate2")),
    ("{camera}_{identity}_*", "deep/inside/gate2_anna_17.JPG", ("anna", "gate2")),
    ("{identity}-*.png", "o'neil-3.png", ("o'neil", "")),
    ("{identity}-*.png", "o'neil-3.jpg", None),
    ("{identity}/*", "anna/17.jpg", ("anna", "")),
    ("{identity}/*", "17.jpg", None),
    ("*/cam{camera}/{identity}.*", "day1/cam3/anna.x.jpg", ("anna", "3")),
    ("{camera}_{identity}_*", "anna.jpg", None),
    ("p{identity}c{camera}", "p12c3.jpg", ("12", "3")),
])  # fmt: skip
def test_patterns(pattern, path, expected):
    rows, strangers = people.rows_by_pattern([path], pattern)
    assert (rows, strangers) == (([], [path]) if expected is None else ([Row(path, *expected)], []))


@pytest.mark.parametrize("pattern", ["*_*", "{person}_*", "{identity}_{identity}", "{camera}_*"])
def test_patterns_that_name_nobody(pattern):
    with pytest.raises(DataError, match="should hold {identity} once"):
        people.compiled(pattern)


def made_up(seed: int = 0, count: int = 12, cameras: int = 3) -> list[Row]:
    """Rows of a few people with 1 to 6 pictures each by cameras that are not the same for all."""
    rng = np.random.default_rng(seed)
    return [
        Row(f"{person:02d}_{shot}.jpg", f"p{person:02d}", f"c{rng.integers(1, cameras + 1)}" if cameras else "")
        for person in range(count) for shot in range(int(rng.integers(1, 7)))
    ]  # fmt: skip


@pytest.mark.parametrize("cameras", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_rule(cameras, seed):
    """Every picture is used once, nobody is trained on and tested, and every query can be found at another camera."""
    rows = people.split(made_up(seed, cameras=cameras), seed)
    assert [row.path for row in rows] == [row.path for row in made_up(seed, cameras=cameras)]
    by_role = {role: [row for row in rows if row.split == role] for role in people.ROLES}
    assert sum(map(len, by_role.values())) == len(rows)
    trained = {row.identity for row in by_role["train"]}
    tested = {row.identity for row in by_role["query"] + by_role["gallery"]}
    assert not trained & tested and len(trained) == 6
    for query in by_role["query"]:
        others = [row for row in by_role["gallery"] if row.identity == query.identity]
        assert others and (not cameras or any(row.camera != query.camera for row in others))
    for person in tested:
        own = [row for row in rows if row.identity == person]
        queries = [row for row in own if row.split == "query"]
        assert len({row.camera for row in queries}) == len(queries)
        # nobody who could be found is left without a query
        assert bool(queries) == (len({row.camera for row in own}) > 1 if cameras else len(own) > 1)
    assert people.split(rows, seed + 1) == rows  # a split that is there stays
    assert people.split(made_up(seed, cameras=cameras), seed) == rows != people.split(made_up(seed, cameras=cameras), seed + 1)


def write_people(root, write_picture, names):
    for seed, name in enumerate(names):
        write_picture(root / name, seed)


NAMES = [f"gate{camera}_{person}_{shot}.jpg" for person in ("ann", "bob", "cyd", "dee") for camera in (1, 2) for shot in (1, 2)]


def test_each_form_gives_the_same_benchmark(tmp_path, write_picture):
    """A pattern, a folder per identity and a table by hand: the same people, splits and cameras, told by the same hash."""
    root = tmp_path / "flat"
    write_people(root, write_picture, NAMES)
    rows, strangers = people.rows_by_pattern(people.pictures_below(root)[0], "{camera}_{identity}_*")
    assert not strangers and len(rows) == 16
    people.write_table(root / people.FILE, people.split(rows))
    dataset = open_dataset("folder", root)
    assert dataset.protocol == "folder/cameras-by-table@1" and dataset.train.cameras == "folder"
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (8, 4, 4)
    assert (match_counts(dataset.query, dataset.gallery)[0] > 0).all()
    assert collections.Counter(dataset.train.camids.tolist()) == {0: 4, 1: 4}
    whole = fingerprint(dataset.train, dataset.query, dataset.gallery)
    # by hand, in another order, with semicolons, other headings, a byte order mark and no splits
    text = "Person;File;Cam\n" + "".join(f"{row.identity};{row.path};{row.camera}\n" for row in reversed(rows))
    (root / people.FILE).write_text(text, encoding="utf-8-sig")
    again = open_dataset("folder", root)
    assert fingerprint(again.train, again.query, again.gallery) == whole
    # with the folders that the reader knows without a table
    for role in people.ROLES:
        split = getattr(dataset, role)
        for name in split.names:
            camera, person, shot = name.removesuffix(".jpg").split("_")
            place = tmp_path / "folders" / role / person / f"{shot}_c{camera[4:]}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((root / name).read_bytes())
    folders = open_dataset("folder", tmp_path / "folders", camera="name")
    for role in people.ROLES:
        one, other = getattr(dataset, role), getattr(folders, role)
        pairs = [sorted(zip(split.pids.tolist(), split.camids.tolist(), strict=True)) for split in (one, other)]
        assert pairs[0] == pairs[1]
    rows, strangers = people.rows_by_folder(["ann/1.jpg", "ann/deeper/2.jpg", "loose.jpg"])
    assert [row.identity for row in rows] == ["ann", "ann"] and strangers == ["loose.jpg"]


def test_what_was_not_read_is_listed(tmp_path, write_picture):
    write_people(tmp_path, write_picture, [*NAMES, "holiday.jpg"])
    (tmp_path / "photo.heic").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    paths, left_out = people.pictures_below(tmp_path)
    assert len(left_out) == 1 and left_out[0].startswith("photo.heic (.heic files cannot be decoded")
    rows, strangers = people.rows_by_pattern(paths, "{camera}_{identity}_*")
    lines = people.preview(people.split(rows), strangers, left_out)
    assert "16 pictures of 4 people, 4 to 4 each, 4 in the middle; 2 cameras: gate1, gate2" in lines
    assert "train: 8 pictures of 2 people" in lines and "query: 4 pictures of 2 people" in lines
    assert "NOT READ: 1 pictures that name nobody: holiday.jpg" in lines
    assert sum(line.startswith("gate") for line in lines) == 8 and "... and 8 more" in lines
    people.write_table(tmp_path / people.FILE, people.split(rows))
    assert any("1 pictures below" in note and "are not used" in note for note in open_dataset("folder", tmp_path).notes)
    with pytest.raises(DataError, match="is there already; remove it"):
        people.write_table(tmp_path / people.FILE, rows)


@pytest.mark.parametrize("text, told", [
    ("path,camera\na.jpg,1\n", "has no column identity; its first line should be"),
    ("path,identity\na.jpg,ann\na.jpg,bob\n", "1 pictures stand there twice: a.jpg"),
    ("path,identity,split\na.jpg,ann,test\n", "1 lines lack .* or have another split than train, query or gallery: line 2"),
    ("path,identity\n../a.jpg,ann\n,bob\n", "2 lines lack a path below its folder or an identity.*: line 2, line 3"),
    ("path,identity,camera\na.jpg,ann,1\nb.jpg,ann,\n", "1 of 2 pictures have no camera: b.jpg; name all or none"),
    ("path,identity\n\n", "no picture is named there"),
    ("", "has no column path and no column identity"),
])  # fmt: skip
def test_tables_that_cannot_be_used(tmp_path, text, told):
    (tmp_path / people.FILE).write_text(text)
    with pytest.raises(DataError, match=told):
        open_dataset("folder", tmp_path)


def test_a_table_of_pictures_that_are_not_there(tmp_path, write_picture):
    write_people(tmp_path, write_picture, NAMES)
    (tmp_path / people.FILE).write_text("path,identity,split\ngone.jpg,ann,train\n" + f"{NAMES[0]},ann,query\n")
    with pytest.raises(DataError, match="1 pictures are not there or cannot be decoded: gone.jpg"):
        open_dataset("folder", tmp_path)
