"""Sources of weights, what is written of them, and the way back to PyTorch's names."""

import dataclasses
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from occreid_jax.errors import UserError
from occreid_jax.nn.vit import Size, ViT, resize_positions
from occreid_jax.weights import port, sources
from occreid_jax.weights.pth import read_pth, write_pth
from occreid_jax.weights.read import read_weights
from occreid_jax.weights.sources import Origin, read_source
from occreid_jax.weights.trees import flatten, merge_encoder, unflatten
from tests.weights.checkpoints import DEPTH, HEADS, PATCH, WIDTH, Numbers, google, hugging_face, same, timm, transreid

NOWHERE = Origin("elsewhere", ())

# Sources ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ".pth.tar", ".npz"])
def test_files_of_every_kind(tmp_path, suffix):
    arrays, path = timm(), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(arrays, path)
    elif suffix == ".npz":
        np.savez(path, **arrays)
    else:
        write_pth(path, arrays)
    found, origin = read_source(str(path))
    assert same(found, {name: arrays[name] for name in found}) and found.keys() == arrays.keys()
    assert origin == Origin(str(path), (path,))
    assert origin.checksums() == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    assert read_source(str(tmp_path))[1].files == (path,)  # the only one in its folder


def test_archives_are_read_without_pickles(tmp_path):
    np.savez(tmp_path / "objects.npz", cls=np.array([{}], object))
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("objects", "one", "text"):
        with pytest.raises(UserError, match=rf"{name}\.npz: not a readable \.npz file"):
            read_source(str(tmp_path / f"{name}.npz"))


def test_folders(tmp_path):
    with pytest.raises(UserError, match="no file of weights in it"):
        read_source(str(tmp_path))
    (tmp_path / "README.md").write_text("words")
    save_file(timm(), tmp_path / "a.safetensors")
    save_file(transreid(), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"several files of weights \(a.safetensors, b.safetensors\)"):
        read_source(str(tmp_path))
    save_file(hugging_face(), tmp_path / "model.safetensors")
    assert same(read_source(str(tmp_path))[0], hugging_face())


def test_shards(tmp_path):
    arrays = timm()
    names = sorted(arrays)
    index = {name: f"model-0000{1 + k % 2}-of-00002.safetensors" for k, name in enumerate(names)}
    for shard in set(index.values()):
        save_file({name: arrays[name] for name in names if index[name] == shard}, tmp_path / shard)
    listing = tmp_path / "model.safetensors.index.json"
    listing.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    found, origin = read_source(str(tmp_path))
    assert found.keys() == arrays.keys() and len(origin.checksums()) == 2
    shutil.copy(tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match="stands in another shard too"):
        read_source(str(tmp_path))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors missing"):
        read_source(str(tmp_path))
    for wrong in ({"a": "../other.safetensors"}, {"a": "weights.bin"}, {}, []):
        listing.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(UserError, match="not an index"):
            read_source(str(tmp_path))


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "from_hub", lambda name: pytest.fail("asked the hub for a file's name"))
    for source in (tmp_path / "absent", "absent", "weights/absent.pth"):
        with pytest.raises(UserError, match=r"no such file or folder; give one, or the id .*owner/name"):
            read_source(str(source))
    (tmp_path / "weights.ckpt").write_text("words")
    with pytest.raises(UserError, match="not a file of weights by its name"):
        read_source(str(tmp_path / "weights.ckpt"))


def test_the_hub(tmp_path, monkeypatch):
    from huggingface_hub import errors

    asked = []

    def download(name, file):
        asked.append((name, file))
        if file in offered:
            if isinstance(offered[file], Exception):
                raise offered[file]
            return str(offered[file])
        raise errors.EntryNotFoundError("404")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    write_pth(tmp_path / "pytorch_model.bin", timm())
    offered = {"pytorch_model.bin": tmp_path / "pytorch_model.bin"}
    arrays, origin = read_source("owner/name")
    assert same(arrays, timm()) and origin.source == "owner/name"
    assert asked == [("owner/name", "model.safetensors"), ("owner/name", "pytorch_model.bin")]
    for answers, words in (
        ({}, "has neither model.safetensors nor pytorch_model.bin"),
        ({"model.safetensors": errors.LocalEntryNotFoundError("offline\nmore")}, "the hub cannot be reached; check the name"),
        ({"model.safetensors": OSError("401 Client Error.\nmore")}, r"\(401 Client Error.\); check the name and the network"),
    ):
        offered = answers
        with pytest.raises(UserError, match=words) as caught:
            read_source("owner/name")
        assert "\n" not in str(caught.value)
    (tmp_path / "owner" / "name").mkdir(parents=True)  # what lies here comes before the hub
    asked.clear()
    with pytest.raises(UserError, match="no file of weights in it"):
        read_source("owner/name")
    assert not asked


# Encoders and their grids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [timm, hugging_face, google])
def test_encoders_carry_their_grid(make):
    ported = port.port(make())
    assert ported.kind == "encoder" and ported.weights["grid"].dtype == np.int32
    assert ported.weights["grid"].tolist() == [4, 4] and ported.description.grid == (4, 4)
    assert ported.metadata()["grid"] == "4x4" and "identities" not in ported.metadata()


def test_positions_resized_at_once_are_those_resized_when_loaded():
    at_once, later = port.port(timm(), (6, 3)), port.port(timm())
    expected = np.asarray(resize_positions(jnp.asarray(timm()["pos_embed"]), (4, 4), (6, 3)))
    np.testing.assert_array_equal(at_once.weights["pos_embed"], expected)
    assert at_once.weights["grid"].tolist() == [6, 3] and at_once.description.patches == 18
    (entry,) = (entry for entry in at_once.entries if entry.name == "pos_embed")
    assert entry.fate == "resized" and "4x4 to 6x3" in entry.note and entry.shape == (1, 17, WIDTH)
    params = {name: np.zeros_like(array) for name, array in at_once.weights.items() if name != "grid"}
    loaded = merge_encoder(unflatten(params), unflatten(later.weights), (6, 3))
    np.testing.assert_array_equal(loaded["pos_embed"], expected)
    kept = port.port(timm(), (4, 4))
    assert same(kept.weights, later.weights) and all(entry.fate == "used" for entry in kept.entries)


def test_positions_that_are_no_square_grid():
    arrays = timm(patches=16 * 8)
    with pytest.raises(UserError, match="128 positions are no square grid; say what grid they are, for example --grid=16x8"):
        port.port(arrays)
    with pytest.raises(UserError, match="no square grid"):
        port.port(arrays, (21, 10))
    ported = port.port(arrays, (16, 8))
    assert ported.weights["grid"].tolist() == [16, 8] and all(entry.fate == "used" for entry in ported.entries)
    np.testing.assert_array_equal(ported.weights["pos_embed"], arrays["pos_embed"])


def test_a_whole_model_keeps_its_grid():
    with pytest.raises(UserError, match="--grid is for encoders"):
        port.port(transreid(), (21, 10))
    with pytest.raises(UserError, match="no tensors"):
        port.port({})


PREFIXES = ["", "module.", "_orig_mod.", "model.", "net/", "module._orig_mod.", "_orig_mod.module.model.", "ema.model.module."]


@pytest.mark.parametrize("prefix", [*PREFIXES, "opt/target/"])
@pytest.mark.parametrize("make", [timm, google, hugging_face, transreid])
def test_what_stands_before_every_name_is_taken_off(make, prefix):
    ported = port.port({prefix + name: array for name, array in make().items()})
    assert ported.prefix == prefix and same(ported.weights, port.port(make()).weights)
    assert {entry.name for entry in ported.entries} == {prefix + name for name in make()}


def test_what_stands_before_some_names_stays():
    arrays = transreid()
    first = next(iter(arrays))
    with pytest.raises(UserError, match=r"tensors such as .* belong to no network known here"):
        port.port({f"model.{name}" if name == first else f"module.{name}": array for name, array in arrays.items()})
    with pytest.raises(UserError, match=r"tensors such as a\.b, a\.c belong to no network known here"):
        port.port({"a.b": np.zeros(1), "a.c": np.zeros(1)})
    with pytest.raises(UserError, match="these weights have this project's names already"):
        port.port({"params/backbone/x": np.zeros(1)})


def test_half_precision_is_reported():
    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in timm().items()}
    ported = port.port(arrays)
    assert all(array.dtype == np.float32 for name, array in ported.weights.items() if name != "grid")
    assert {(entry.dtype, entry.note) for entry in ported.entries} == {("bfloat16", "bfloat16 made float32")}


# What is written -------------------------------------------------------------------------------------------------------------


def test_written_and_read_again(tmp_path):
    source = tmp_path / "source.pth"
    write_pth(source, transreid())
    arrays, origin = read_source(str(source))
    ported = port.port(arrays)
    path = port.write_ported(tmp_path / "out", ported, origin)
    assert sorted(file.name for file in path.parent.iterdir()) == ["port.json", "weights.safetensors"]
    facts = {"format": "occreid_jax", "kind": "model", "family": "transreid", "identities": "5", "cameras": "6"}
    facts |= {"width": str(WIDTH), "depth": "2", "patches": "210", "jigsaw": "true"}
    for place in (path, path.parent):
        weights, metadata = port.read_ported(place)
        assert same(weights, {name: ported.weights[name] for name in weights}) and weights.keys() == ported.weights.keys()
        assert metadata == facts
    report = json.loads((tmp_path / "out" / "port.json").read_text())
    assert report["source"] == str(source) and report["format"] == "occreid_jax"
    assert report["sha256"] == {"source.pth": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert [tensor["name"] for tensor in report["tensors"]] == list(arrays)
    by_name = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert by_name["base.patch_embed.proj.weight"] == {
        "name": "base.patch_embed.proj.weight",
        "shape": [WIDTH, 3, PATCH, PATCH],
        "dtype": "float32",
        "fate": "used",
        "path": "params/backbone/patch_embed/kernel",
        "note": "",
    }
    assert by_name["base.fc.bias"]["fate"] == "left out" and "no forward pass" in by_name["base.fc.bias"]["note"]


def test_an_encoder_written_and_read_again(tmp_path):
    ported = port.port(timm(), (6, 3))
    port.write_ported(tmp_path, ported, NOWHERE)
    weights, metadata = port.read_ported(tmp_path)
    assert weights["grid"].tolist() == [6, 3] and metadata["grid"] == "6x3" and metadata["kind"] == "encoder"
    assert same(port.export(weights, metadata["family"]), port.export(ported.weights, "vit"))


def test_a_written_encoder_fits_this_projects(tmp_path):
    """What is written is what config.init.weights takes: `read_weights`, then `merge_encoder`."""
    path = port.write_ported(tmp_path, port.port(timm()), NOWHERE)
    encoder = ViT(Size(WIDTH, DEPTH, HEADS), (32, 16), patch=PATCH, stride=PATCH, cameras=3)
    images, cameras = jnp.zeros((1, 32, 16, 3)), jnp.zeros(1, jnp.int32)
    params = encoder.init(jax.random.key(0), images, cameras)["params"]
    merged = flatten(merge_encoder(params, read_weights(path), encoder.grid))
    expected = timm()
    np.testing.assert_array_equal(merged["block_01/mlp/fc1/kernel"], expected["blocks.1.mlp.fc1.weight"].T)
    assert merged["pos_embed"].shape == (1, 1 + 8 * 4, WIDTH)
    np.testing.assert_array_equal(merged["camera_embed"], params["camera_embed"])


def test_what_was_not_written_here_is_not_read(tmp_path):
    save_file(timm(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="not written by launch/port_weights.py"):
        port.read_ported(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"words")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        port.read_ported(tmp_path)
    with pytest.raises(UserError, match="absent: no such file"):
        port.read_ported(tmp_path / "absent")


def test_back_to_pytorch(tmp_path):
    arrays = transreid(dead=False)
    ported = port.port(transreid())
    exported = port.export(ported.weights, ported.family)
    assert same(exported, {name: arrays[name] for name in exported}) and exported.keys() == arrays.keys()
    paths = port.write_exported(tmp_path / "out", exported)
    assert [path.name for path in paths] == ["model.safetensors", "model.pth"]
    assert same(load_file(paths[0]), arrays) and same(read_pth(paths[1]), arrays)
    with safe_open(paths[0], "numpy") as file:
        assert file.metadata()["format"] == "pt"
    for path in (*paths, tmp_path / "out"):
        assert same(port.port(read_source(str(path))[0]).weights, ported.weights)


def test_parameters_that_cannot_be_exported():
    weights = port.port(transreid()).weights
    with pytest.raises(UserError, match="params/decoder/kernel has no place"):
        port.export(weights | {"params/decoder/kernel": Numbers()(2, 2)}, "transreid")
    with pytest.raises(UserError, match="base.cls_token is missing"):
        port.export({path: array for path, array in weights.items() if "cls_token" not in path}, "transreid")


# Folders of others are left alone -------------------------------------------------------------------------------------------


def test_own_folders_are_written_again_and_others_refused(tmp_path):
    ported, out = port.port(timm()), tmp_path / "out"
    exported = port.export(ported.weights, "vit")
    out.mkdir()
    port.write_ported(out, ported, NOWHERE)
    (out / ".weights.safetensors.123.tmp").write_bytes(b"")  # what a kill leaves
    port.write_ported(out, dataclasses.replace(ported, family="vit_google"), NOWHERE)
    assert port.read_ported(out)[1]["family"] == "vit_google"
    with pytest.raises(UserError, match="port.json, weights.safetensors, which this command did not write there"):
        port.write_exported(out, exported)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds notes.txt, which"):
        port.write_ported(out, ported, NOWHERE)
    for _ in range(2):
        port.write_exported(tmp_path / "back", exported)
    save_file(exported, tmp_path / "back" / "model.safetensors")  # of the same name, by someone else
    with pytest.raises(UserError, match="holds model.pth, model.safetensors, which"):
        port.write_exported(tmp_path / "back", exported)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: a file"):
        port.write_ported(tmp_path / "file", ported, NOWHERE)
    (tmp_path / "foreign").mkdir()
    for name, text in (("port.json", "{}"), ("weights.safetensors", "words")):
        (tmp_path / "foreign" / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}, which|holds {name}"):
            port.check_free(tmp_path / "foreign", port.PORTED_FILES)
