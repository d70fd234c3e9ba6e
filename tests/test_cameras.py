"""The rule which camera a network is told, and that every picture's feature is that of exactly its camera's vector."""

import dataclasses
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import cameras
from occreid_jax.cameras import MEAN, ZERO, Cameras
from occreid_jax.errors import UserError
from occreid_jax.evaluation.embed import embed_split
from occreid_jax.methods import NAMES
from occreid_jax.nn.vit import camera_vectors
from occreid_jax.train.folder import claim_workdir, read_meta
from occreid_jax.train.log import Reporter
from occreid_jax.train.setup import open_setup, training_meta
from occreid_jax.types import Dataset, Meta, Split
from occreid_jax.weights.trees import flatten, unflatten

GAP = Cameras((0, 2), "market1501")  # cameras 1 and 3 of the file names


def split(numbers, network="market1501"):
    names = tuple(f"{row}.jpg" for row in range(len(numbers)))
    return Split(Path("."), names, np.arange(1, 1 + len(numbers), dtype=np.int32), np.array(numbers, np.int32), network)


def dataset(query, gallery):
    return Dataset("set", "set/std@1", split([0, 2]), query, gallery)


# The rule -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "tested", "rows"),
    [
        ("auto", split([0, 1, 2, 4, 0]), [0, MEAN, 1, MEAN, 0]),  # camera 2 lies between two that were in training
        ("auto", split([-1, 3]), [MEAN, MEAN]),
        ("auto", split([0, 2], "dukemtmc"), [MEAN, MEAN]),  # the same numbers, other cameras
        ("auto", split([0, 2], ""), [MEAN, MEAN]),  # made-up numbers
        ("own", split([2, 0, 2]), [1, 0, 1]),
        ("mean", split([0, 4]), [MEAN, MEAN]),
        ("zero", split([0, 4]), [ZERO, ZERO]),
        ("number", split([2, 0], "dukemtmc"), [1, 0]),
        ("dpm", split([0, 1, 5], ""), [0, 0, 0]),
    ],
)
def test_what_queries_are_told(choice, tested, rows):
    told = dataclasses.replace(GAP, choice=choice).rows(tested, "query")
    assert told.dtype == np.int32 and told.tolist() == rows


def test_a_convention_has_one_camera_for_each_side():
    told = dataclasses.replace(GAP, choice="dpm")
    assert told.rows(split([0, 1], ""), "gallery").tolist() == [1, 1]  # camera 3 is row 1 here
    all_six = Cameras(tuple(range(6)), "market1501", "pvpm")
    assert [all_six.rows(split([7, 7], ""), role).tolist() for role in ("query", "gallery")] == [[0, 0], [1, 1]]


def test_training_pictures_are_told_their_own_camera_whatever_the_choice():
    for choice in cameras.CHOICES:
        assert dataclasses.replace(GAP, choice=choice).rows(split([2, 0]), "train").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("choice", "tested", "message"),
    [
        ("own", split([0, 1, 4]), r"camera=own: cameras 2, 5 of market1501 \(query\) had no picture in training "
                                  r"\(with cameras 1, 3 of market1501\); choose config.evaluation.camera=auto, mean or zero"),
        ("own", split([0], "dukemtmc"), r"camera=own: camera 1 of dukemtmc \(query\)"),
        ("own", split([0], ""), "camera=own: the query pictures have no cameras"),
        ("number", split([0, 1], "dukemtmc"), "query of dukemtmc: the model has no vector for camera 2 "),
        ("number", split([0], ""), "camera=number: the query pictures have no cameras"),
    ],
)  # fmt: skip
def test_a_vector_that_does_not_exist_is_an_error(choice, tested, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(GAP, choice=choice).rows(tested, "query")
    with pytest.raises(UserError, match="camera=pvpm: the model has no vector for camera 2 "):
        dataclasses.replace(GAP, choice="pvpm").rows(tested, "gallery")


def test_the_protocol_and_one_note_tell_what_is_not_plain():
    plain, partly = dataset(split([0]), split([0, 2])), dataset(split([0, 1]), split([0, 2, 4]))
    without, other = dataset(split([0], ""), split([1], "")), dataset(split([0, 1, 2], "dukemtmc"), split([7], "dukemtmc"))
    assert [GAP.suffix(each) for each in (plain, partly, without, other)] == ["", "+camera=auto", "+camera=mean", "+camera=mean"]
    told = "they get the mean of the trained camera vectors (config.evaluation.camera)"
    assert GAP.notes(plain) == ()
    assert GAP.notes(partly) == (
        f"cameras 2, 5 (query and gallery) had no picture in training (with cameras 1, 3 of market1501): {told}",
    )
    assert GAP.notes(without) == (f"query and gallery pictures have no cameras: {told}",)
    assert GAP.notes(other) == (
        f"cameras 1 to 3, 8 (query and gallery) had no picture in training (with cameras 1, 3 of market1501): {told}",
    )
    for choice in ("mean", "zero", "number", "dpm", "pvpm"):
        told = dataclasses.replace(GAP, choice=choice)
        assert told.suffix(plain) == f"+camera={choice}" and told.notes(plain) == ()
    assert dataclasses.replace(GAP, choice="own").suffix(plain) == ""
    assert Cameras().suffix(partly) == "" and Cameras().notes(partly) == ()  # no embedding


def test_the_training_cameras_are_a_set():
    assert cameras.training_cameras(split([2, 0, 2, 7])) == ((0, 2, 7), "market1501")
    assert cameras.training_cameras(split([0, 1], "")) == ((), "")
    meta = Meta(4, 3, (64, 32), 8)  # as older runs counted them
    assert cameras.of_network(meta, True) == Cameras((0, 1, 2)) and cameras.of_network(meta, False) == Cameras()
    assert Cameras((0, 1, 2)).rows(split([2, 3], "any"), "query").tolist() == [2, MEAN]


# The vectors --------------------------------------------------------------------------------------------------------------


def test_vectors_of_rows_mean_and_zero():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    camids = jnp.array([2, 0, MEAN, ZERO, 1])
    vectors = np.asarray(camera_vectors(table, camids))
    np.testing.assert_array_equal(vectors[[0, 1, 4]], np.asarray(table)[[2, 0, 1]])  # bit by bit
    np.testing.assert_allclose(vectors[2], np.asarray(table).mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(vectors[3], 0.0)
    assert np.isnan(camera_vectors(table, jnp.array([3, 4, -3, -9]))).all()  # no neighbour's vector
    weights = jnp.arange(20.0).reshape(5, 4)
    ours = jax.grad(lambda t: jnp.sum(weights * camera_vectors(t, jnp.array([2, 0, 0, 1, 2]))))(table)
    plain = jax.grad(lambda t: jnp.sum(weights * t[jnp.array([2, 0, 0, 1, 2])]))(table)
    np.testing.assert_array_equal(ours, plain)


# Features of pictures -----------------------------------------------------------------------------------------------------


MICRO = {"backbone": "micro", "patch": 16, "stride": 16}


def config_of(name, dataset, root, **evaluation):
    """The config of a method with its camera embedding on and a micro network, on pictures of 64x32."""
    config = importlib.import_module(f"configs.{name}").get_config(f"dataset={dataset}")
    config.method.update({key: value for key, value in MICRO.items() if key in config.method})
    if config.method.get("text") and not name.startswith(("clip_reid", "dpl_reid")):
        config.method.backbone = "clip_micro"  # texts need a CLIP
    if "wgff" in config.method:
        config.method.wgff.network = "micro"
    config.method.update(camera=True, camera_scale=3.0)
    if "unparsed" in config.method:
        config.method.unparsed = "whole"  # these pictures have no body-part labels
    config.data.root, config.data.image_size, config.mesh.devices = str(root), (64, 32), 1
    config.evaluation.update(evaluation)
    return config


def without_labels(setup) -> str:
    """What the protocol ends in of a method that reads body-part labels."""
    return "+parsing=whole" if "unparsed" in setup.config.method else ""


WITH_CAMERAS = [name for name in sorted(NAMES) if "camera" in importlib.import_module(f"configs.{name}").get_config().method]


def features(setup, params, extra, columns, role):
    """Features of every row, float32 [N, D], whatever pytree the method has.

    Without OGFR's ``visible``: it is 0 or 1, and where two parts are equally near to a patch the size of the batch decides.
    """
    found = embed_split(setup.method, params, extra, columns, role, 24, setup.devices)
    found = {name: value for name, value in found.items() if name != "visible"} if isinstance(found, dict) else found
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)).astype(np.float32) for leaf in jax.tree.leaves(found)], axis=1)


def with_table(params, table):
    """Parameters with another camera embedding [C, D]."""
    flat = flatten(params)
    (path,) = [path for path in flat if path.endswith("camera_embed")]
    assert flat[path].shape == table.shape
    return unflatten(flat | {path: jnp.asarray(table)})


def table_of(count, width=32):
    """Vectors that lie far apart, float32 [C, D]."""
    return np.random.default_rng(count).normal(size=(count, width)).astype(np.float32)


def check_features(setup, told, vectors, role, rows):
    """Features of a split under ``told``, and those of each picture alone in a network that has its vector and no other."""
    params, extra = jax.jit(setup.method.init)(jax.random.key(1))
    columns = setup.evaluation_columns()[role]
    found = features(setup, with_table(params, told), extra, columns, role)
    assert np.isfinite(found).all()
    for row in rows:
        one = {name: np.asarray(column[row : row + 1]) for name, column in columns.items()} | {"camid": np.zeros(1, np.int32)}
        for vector, same in ((vectors[row], True), (vectors[row] + told[0][::-1], False)):
            other = features(setup, with_table(params, np.tile(vector, (len(told), 1))), extra, one, role)[0]
            assert np.allclose(found[row], other, rtol=1e-4, atol=1e-4) == same, (row, same)


def numbers(split):
    """The number after _c in the names of a split."""
    return [int(name.rsplit("_c", 1)[1][0]) for name in split.names]


@pytest.mark.parametrize("name", WITH_CAMERAS)
def test_every_picture_gets_its_own_cameras_vector(market_root, name):
    setup = open_setup(config_of(name, "market1501", market_root), Reporter(quiet=True))
    protocol = f"market1501/std@1{without_labels(setup)}"
    assert (setup.meta.cameras, setup.meta.camera_numbers, setup.dataset.protocol) == (3, (0, 1, 2), protocol)
    table = table_of(3)
    for role, rows in (("query", (0, 1, 2)), ("gallery", (0, 2, 4))):
        vectors = table[np.array(numbers(getattr(setup.dataset, role))) - 1]
        check_features(setup, table, vectors, role, rows)


@pytest.mark.parametrize("choice", ["auto", "mean", "zero", "number", "dpm", "pvpm"])
def test_a_gap_and_cameras_beyond_it(gap_root, choice):
    """Trained on cameras 1 and 3, tested on 1, 2, 3 (query) and 1, 2, 5 (gallery)."""
    if choice in ("number", "pvpm"):
        with pytest.raises(UserError, match="no vector for camera"):
            open_setup(config_of("transreid", "market1501", gap_root, camera=choice), Reporter(quiet=True))
        return
    setup = open_setup(config_of("transreid", "market1501", gap_root, camera=choice), Reporter(quiet=True))
    assert (setup.meta.cameras, setup.meta.camera_numbers) == (2, (0, 2))
    assert setup.dataset.protocol == f"market1501/std@1+camera={choice}"
    table = table_of(2)
    mean, zero = table.mean(axis=0), np.zeros_like(table[0])
    vectors = {
        "auto": {1: table[0], 2: mean, 3: table[1], 5: mean},
        "mean": dict.fromkeys((1, 2, 3, 5), mean),
        "zero": dict.fromkeys((1, 2, 3, 5), zero),
        "dpm": dict.fromkeys((1, 2, 3, 5), None),
    }[choice]
    for role, rows in (("query", (0, 1, 2)), ("gallery", (0, 2, 4))):
        if choice == "dpm":
            vectors = dict.fromkeys(vectors, table[0] if role == "query" else table[1])
        wanted = [vectors[number] for number in numbers(getattr(setup.dataset, role))]
        check_features(setup, table, np.stack(wanted), role, rows)
    assert setup.columns("train", (), "bicubic")["camid"].tolist() == [{1: 0, 3: 1}[n] for n in numbers(setup.dataset.train)]


def test_a_set_without_cameras_has_no_vectors_to_train(people_root, capsys):
    for name in WITH_CAMERAS:
        config = config_of(name, "folder", people_root)
        setup = open_setup(config, Reporter())
        note = "note: the training set has no cameras, so the method's camera embedding is off (config.method.camera)"
        assert capsys.readouterr().out.splitlines().count(note) == 1
        protocol = f"folder/no-cameras@1{without_labels(setup)}"
        assert (setup.meta.cameras, setup.meta.camera_numbers, setup.dataset.protocol) == (0, (), protocol)
        params = jax.eval_shape(setup.method.init, jax.random.key(0))[0]
        assert not any("camera_embed" in path for path in flatten(params))


def test_a_network_with_cameras_on_a_set_without(market_root, people_root, capsys):
    trained = open_setup(config_of("transreid", "market1501", market_root), Reporter(quiet=True)).meta
    config, table = config_of("transreid", "folder", people_root), table_of(3)
    setup = open_setup(config, Reporter(), trained)
    told = "query and gallery pictures have no cameras: they get the mean of the trained camera vectors"
    assert capsys.readouterr().out.splitlines().count(f"note: {told} (config.evaluation.camera)") == 1
    assert setup.dataset.protocol == "folder/no-cameras@1+camera=mean"
    for role in ("query", "gallery"):
        check_features(setup, table, np.tile(table.mean(axis=0), (5, 1)), role, (0, 4))
    config.evaluation.camera = "own"
    with pytest.raises(UserError, match="camera=own: the query pictures have no cameras"):
        open_setup(config, Reporter(quiet=True), trained)


def test_meta_is_kept_and_older_ones_still_open(tmp_path, gap_root):
    config = config_of("transreid", "market1501", gap_root)
    meta = training_meta(open_setup(config, Reporter(quiet=True)).dataset.train, config)
    assert not claim_workdir(tmp_path / "new", config, meta) and read_meta(tmp_path / "new") == meta
    assert claim_workdir(tmp_path / "new", config, meta)
    with pytest.raises(UserError, match=r"another training set \(camera_numbers: "):
        claim_workdir(tmp_path / "new", config, dataclasses.replace(meta, camera_numbers=(0, 1)))
    path = tmp_path / "new" / "meta.json"
    path.write_text('{"identities": 16, "cameras": 3, "image_size": [64, 32], "images": 96}')
    assert read_meta(tmp_path / "new") == Meta(16, 3, (64, 32), 96, (0, 1, 2), "")
    assert claim_workdir(tmp_path / "new", config, meta)  # goes on
