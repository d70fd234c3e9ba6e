"""PyTorch checkpoints without torch: what is written is read again, and a hostile or damaged file is refused in one line."""

import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from occreid_jax.errors import UserError
from occreid_jax.weights.pth import MAGIC, read_pth, write_pth

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(name) for name in "float64 float32 float16 int64 int32 int16 int8 uint8 bool".split()] + [BFLOAT16]
KINDS = dict(
    zip([dtype.name for dtype in DTYPES], "Double Float Half Long Int Short Char Byte Bool BFloat16".split(), strict=True)
)
START = b"\x80\x02"


def every_dtype() -> dict[str, np.ndarray]:
    """Random bits of every dtype, some of them nan, in several shapes."""
    draw = np.random.default_rng(0)
    arrays = {}
    for dtype in DTYPES:
        for shape in ((), (3,), (2, 3, 4), (0, 5)):
            bits = draw.integers(0, 2 if dtype == np.bool_ else 256, (*shape, dtype.itemsize), np.uint8)
            arrays[f"{dtype.name}.{len(shape)}.{shape[0] if shape else 1}"] = bits.view(dtype)[..., 0]
    return arrays


def assert_same(found, expected):
    """Same names, order, dtypes, shapes and bits."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes(), name
        assert found[name].flags.c_contiguous and found[name].flags.writeable, name


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def group(*pieces: bytes) -> bytes:
    return b"(" + b"".join(pieces) + b"t"


def tensor(key, kind, count, size, stride, offset=0, view=b"", function=b"_rebuild_tensor_v2") -> bytes:
    """The operations that describe one tensor; ``view`` is the sixth entry of the legacy format."""
    storage = group(text("storage"), b"ctorch\n%sStorage\n" % kind.encode(), text(key), text("cpu"), number(count), view) + b"Q"
    numbers = [group(*map(number, values)) for values in (size, stride)]
    return b"ctorch._utils\n" + function + b"\n" + group(storage, number(offset), *numbers, b"\x89}") + b"R"


def plain(key: str, array: np.ndarray, view: bytes = b"") -> bytes:
    strides = [step // array.itemsize for step in array.strides]
    return tensor(key, KINDS[array.dtype.name], array.size, array.shape, strides, view=view)


def mapping(entries: dict[str, bytes]) -> bytes:
    return b"ccollections\nOrderedDict\n)R(" + b"".join(text(name) + value for name, value in entries.items()) + b"u"


def write_legacy(path, body: bytes, storages: dict[str, np.ndarray]) -> None:
    parts = [pickle.dumps(value, 2) for value in (MAGIC, 1001, {"little_endian": True})]
    parts += [START + body + b".", pickle.dumps(list(storages), 2)]
    parts += [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    path.write_bytes(b"".join(parts))


def write_zip(path, body: bytes, storages: dict[str, np.ndarray], compression=zipfile.ZIP_STORED, others=()) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("some/data.pkl", START + body + b".")
        for key, array in storages.items():
            archive.writestr(f"some/data/{key}", array.tobytes())
        for name, content in dict(others).items():
            archive.writestr(f"some/{name}", content)


@pytest.fixture(params=["zip", "legacy"])
def write(request, tmp_path):
    """Writes a file of either format by hand, from the operations of its object and its storages, and gives its path."""
    path, function = tmp_path / f"{request.param}.pth", write_zip if request.param == "zip" else write_legacy
    return lambda body, storages=(): function(path, body, dict(storages)) or path


def refusal(path) -> str:
    """The one line with which ``path`` is refused."""
    with pytest.raises(UserError) as caught:
        read_pth(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and ";" in line and line.isprintable() and len(line) < 600
    return line


def test_round_trip(tmp_path):
    arrays = every_dtype()
    write_pth(tmp_path / "a.pth", arrays)
    assert_same(read_pth(tmp_path / "a.pth"), arrays)
    write_pth(tmp_path / "b.pth", arrays)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


def test_other_layouts_are_written_as_they_look(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_pth(tmp_path / "a.pth", {"x": array.astype(">f4"), "y": array.T, "z": array[::-1, ::2]})
    assert_same(read_pth(tmp_path / "a.pth"), {"x": array, "y": array.T, "z": array[::-1, ::2]})


def test_what_cannot_be_written(tmp_path):
    for name, array in (("x", np.zeros(2, np.complex64)), ("x", np.array(["a"])), ("a\nb", np.zeros(1)), ("", np.zeros(1))):
        with pytest.raises(UserError, match="dtype|cannot name"):
            write_pth(tmp_path / "a.pth", {name: array})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_pth(tmp_path / "file" / "a.pth", {"x": np.zeros(1)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("view", [b"", b"N"])
def test_every_dtype_from_files_by_hand(write, view):
    arrays = every_dtype()
    body = mapping({name: plain(str(index), array, view) for index, (name, array) in enumerate(arrays.items())})
    assert_same(read_pth(write(body, {str(index): array for index, array in enumerate(arrays.values())})), arrays)


def test_views_of_one_storage(write):
    values = np.arange(24, dtype=np.float32)
    body = mapping(
        {
            "whole": tensor("s", "Float", 24, (4, 6), (6, 1)),
            "turned": tensor("s", "Float", 24, (6, 4), (1, 6)),
            "part": tensor("s", "Float", 24, (2, 3), (6, 2), offset=7),
            "last": tensor("s", "Float", 24, (), (), offset=23, function=b"_rebuild_tensor"),
            "repeated": tensor("s", "Float", 24, (5, 2), (0, 1), offset=4),
            "of a part": tensor("s", "Float", 24, (2,), (1,), offset=1, view=group(text("v"), number(10), number(3))),
        }
    )
    grid = values.reshape(4, 6)
    expected = {"whole": grid, "turned": grid.T, "part": grid[1:3, 1::2], "last": values[23]}
    expected |= {"repeated": np.tile(values[4:6], (5, 1)), "of a part": values[11:13]}
    assert_same(read_pth(write(body, {"s": values})), expected)


def test_a_big_endian_file(tmp_path):
    arrays = every_dtype()
    body = mapping({name: plain(str(index), array) for index, (name, array) in enumerate(arrays.items())})
    swapped = {str(index): np.atleast_1d(array).byteswap() for index, array in enumerate(arrays.values())}
    write_zip(tmp_path / "a.pth", body, swapped, others={"byteorder": b"big"})
    assert_same(read_pth(tmp_path / "a.pth"), arrays)
    write_zip(tmp_path / "a.pth", body, swapped, others={"byteorder": b"middle"})
    assert "neither little nor big" in refusal(tmp_path / "a.pth")


def test_nested_checkpoints_and_prefixes(write):
    x, y = np.arange(3.0, dtype=np.float32), np.arange(4)
    storages = {"0": x, "1": y}
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + plain("0", x) + b"\x88}tR"
    state = mapping({"module.x": parameter, "module.y": plain("1", y)}) + b"}" + text("_metadata") + b"}sb"
    extra = {"epoch": b"K\x03", "best": b"G" + struct.pack(">d", 0.5), "note": text("n"), "none": b"N", "list": b"]K\x01a"}
    extra |= {"dtype": b"ctorch\nfloat16\n", "size": b"ctorch\nSize\n((K\x01K\x02ttR", "optimizer": mapping({"m": plain("1", y)})}
    for key in ("state_dict", "model"):
        assert_same(read_pth(write(mapping(extra | {key: state}), storages)), {"x": x, "y": y})
    both = mapping({"model": mapping({"z": plain("1", y)}), "state_dict": state})
    assert_same(read_pth(write(both, storages)), {"x": x, "y": y})
    other = mapping({"net": state, "more": b"}K\x07" + plain("1", y) + b"s"})
    assert_same(read_pth(write(other, storages)), {"net.module.x": x, "net.module.y": y, "more.7": y})
    # Python 2 wrote an OrderedDict with a list of pairs.
    pairs = b"ccollections\nOrderedDict\n(]](U\x01x" + parameter + b"eatR"
    assert_same(read_pth(write(pairs, {"0": x})), {"x": x})


def test_files_without_tensors_name_their_keys(write):
    assert "its keys: epoch, a b" in refusal(write(mapping({"epoch": b"K\x03", "a\nb": b"N"})))
    assert "its keys: none" in refusal(write(b"}"))
    assert "but a list" in refusal(write(b"]"))
    alone = write(tensor("0", "Float", 1, (1,), (1,)), {"0": np.zeros(1, np.float32)})
    assert "it holds one tensor without a name; of a memory bank say whose with --bank" in refusal(alone)


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def called(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + group(*arguments) + b"R"


HOSTILE = {
    "os.system": lambda command: called("os", "system", text(command)),
    "posix.system": lambda command: short("posix") + short("system") + b"\x93" + group(text(command)) + b"R",
    "builtins.eval": lambda command: called("builtins", "eval", text(f"__import__('os').system({command!r})")),
    "builtins.exec": lambda command: called("builtins", "exec", text(f"import os; os.system({command!r})")),
    "subprocess.Popen": lambda command: called("subprocess", "Popen", text(command)),
    "torch.hub.load": lambda command: called("torch.hub", "load", text(command)),
    "builtins.getattr": lambda command: called("builtins", "getattr", b"ccollections\nOrderedDict\n", text("fromkeys")),
    "OrderedDict.__init__.__globals__": lambda _: short("collections") + short("OrderedDict.__init__.__globals__") + b"\x93",
    "copyreg._reconstructor": lambda command: called("copyreg", "_reconstructor", b"cos\nsystem\n", b"cbuiltins\nobject\n", b"N"),
    "numpy.core.multiarray._reconstruct": lambda command: called("numpy.core.multiarray", "_reconstruct", b"N", b"N"),
    "torch.nn.modules.linear.Linear": lambda command: b"ctorch.nn.modules.linear\nLinear\n)\x81}b",
    "holds an operation": lambda command: b"(" + text(command) + b"ios\nsystem\n",
    "its pickle calls what": lambda command: b"ctorch\nFloatStorage\n" + group(text(command)) + b"R",
    "calls what is no function": lambda command: text("x") + group(text(command)) + b"R",
}


@pytest.mark.parametrize("named", HOSTILE)
def test_nothing_is_executed(write, tmp_path, named):
    mark = tmp_path / "executed"
    body = HOSTILE[named](f"touch {mark}")
    for wrapped in (body, mapping({"x": body}), b"}" + body + b"b"):
        line = refusal(write(wrapped))
        assert named in line and "nothing was executed" in line and "torch.save(model.state_dict(), ...)" in line
        assert not mark.exists()


def test_what_scripts_save_beside_their_tensors_is_read_over(write):
    """Milestones of a schedule and a best score as numpy stores it."""
    score = called("numpy.core.multiarray", "scalar", called("numpy", "dtype", text("f8"), b"K\x00", b"K\x01"), b"U\x01x")
    beside = {"milestones": called("collections", "Counter", b"}"), "best": score}
    array = np.arange(3, dtype=np.float32)
    path = write(mapping({"state_dict": mapping({"x": plain("0", array)})} | beside), {"0": array})
    np.testing.assert_array_equal(read_pth(path)["x"], array)


ONE = {"0": np.arange(6, dtype=np.float32)}
WRONG = {
    "storage 9 of x is missing": mapping({"x": tensor("9", "Float", 6, (6,), (1,))}),
    "storage of x is shorter": mapping({"x": tensor("0", "Float", 7, (7,), (1,))}),
    "x reaches beyond its storage": mapping({"x": tensor("0", "Float", 6, (2, 3), (4, 1))}),
    "size, stride or offset": mapping({"x": tensor("0", "Float", 6, (6,), (-1,), offset=5)}),
    "no tensor can have": mapping({"x": tensor("0", "Float", 6, (-6,), (1,))}),
    "offset that no": mapping({"x": tensor("0", "Float", 6, (2,), (1,), offset=-2)}),
    "more than 100 times": mapping({"x": tensor("0", "Float", 6, (1 << 20, 1 << 20), (0, 0))}),
    "x reaches beyond": mapping({"x": tensor("0", "Float", 6, (2,), (1 << 61,))}),
    "stride or offset": mapping({"x": tensor("0", "Float", 6, (1 << 70,), (1,))}),
    "cannot be read": mapping({"x": tensor("0", "Float", 6, (0, 1 << 62, 1 << 62), (1, 1, 1))}),
    "not described": mapping({"x": tensor("0", "Float", 6, (6,), ())}),
    "is there twice": mapping({"x.y": plain("0", ONE["0"]), "x": mapping({"y": plain("0", ONE["0"])})}),
    "cannot be used": mapping({"x\ny": plain("0", ONE["0"])}),
    "there are no tensors": mapping({"x": b"]" * 100_000 + b"a" * 99_999}),
    "nested too deep": mapping({"x": b"}" + (text("x") + b"}") * 100_000 + b"s" * 100_000}),
    "hold each other": b"}q\x00" + text("x") + b"h\x00s",
    "are nested too": b"}q\x00" + b"0" + b"".join(b"}(K\x01h\x00K\x02h\x00uq\x000" for _ in range(40)) + b"h\x00",
    "neither text nor numbers": b"})" + b"\x85" * 400_000 + b"K\x01s",  # crashes the reader in C
    "there are no tensors in": b"}r\xff\xff\xff\xff",  # takes 64 GB in the reader in C
    "its pickle is cut short": b"}" + text("x") + b"\x8e" + struct.pack("<Q", 1 << 60),
    "larger than 16 MiB": b"}B" + struct.pack("<I", 17 << 20) + bytes(17 << 20) + b"0",
    "in it (its keys: 1": b"}" + pickle.dumps(1 << 1000, 2)[2:-1] + b"NsK\x01Ns",
    "is no dictionary": b"]K\x01K\x02s",
    "cannot be read (TypeError": mapping({"x": b"ctorch._utils\n_rebuild_tensor_v2\n)R"}),
    "cannot be read (IndexError": b"R",
    "a storage in it is not described": mapping({"x": group(text("module"), text("x")) + b"Q"}),
}


@pytest.mark.parametrize("named", WRONG)
def test_wrong_files(write, named):
    assert named in refusal(write(WRONG[named], ONE if text("0") in WRONG[named] else {}))


def test_wrong_archives(tmp_path):
    path, good = tmp_path / "a.pth", mapping({"x": plain("0", ONE["0"])})
    for extra in ("constants.pkl", "code/__torch__.py"):
        write_zip(path, good, ONE, others={extra: b"import os"})
        assert "TorchScript archive that holds no module" in refusal(path)
    write_zip(path, good, {"0": np.zeros(30 << 20, np.float32)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20 and "unpacks to more than 100 times" in refusal(path)
    write_zip(path, good, ONE, zipfile.ZIP_BZIP2)
    assert "compressed in a way" in refusal(path)
    with pytest.warns(UserWarning, match="Duplicate"):
        write_zip(path, good, ONE, others={"data/0": bytes(24)})
    assert "two files of one name" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("/data.pkl", START + good + b".")
        archive.writestr("../../data/0", ONE["0"].tobytes())
    assert "the storage 0 of x is missing" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "text")
    assert "without the one data.pkl" in refusal(path)
    write_zip(path, good, ONE, zipfile.ZIP_DEFLATED)  # compressed, but not much
    assert_same(read_pth(path), {"x": ONE["0"]})


def test_files_of_another_kind(tmp_path):
    assert "no such weights file" in refusal(tmp_path / "absent.pth")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "a.pth").write_bytes(b"")
    assert "is empty" in refusal(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_text("<html>404: not found</html>")
    assert "neither of the two formats" in refusal(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"x": 1}))
    assert "not one of torch.save" in refusal(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(START + HOSTILE["os.system"](f"touch {tmp_path / 'executed'}") + b".")
    assert "os.system" in refusal(tmp_path / "a.pth") and not (tmp_path / "executed").exists()


def test_truncated_files(write):
    path = write(mapping({"x": plain("0", ONE["0"])}), ONE)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refusal(path)


def test_flipped_bits(write):
    draw = random.Random(0)
    path = write(mapping({"a.x": plain("0", ONE["0"]), "a.y": tensor("0", "Float", 6, (3, 2), (1, 3))}), ONE)
    content, refused = path.read_bytes(), 0
    for _ in range(800):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= draw.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            assert all(isinstance(array, np.ndarray) for array in read_pth(path).values())
        except UserError as error:
            assert str(error).isprintable()
            refused += 1
    assert refused > 300


@pytest.mark.torch
def test_against_torch(tmp_path):
    torch = pytest.importorskip("torch")
    path, values = tmp_path / "a.pth", torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    state = {dtype.name: (50 * values).abs().to(getattr(torch, dtype.name)) for dtype in DTYPES}
    state |= {"turned": values.T, "part": values[1:3, 1::2], "wide": values[0].expand(3, 6), "scalar": values[0, 0]}
    state |= {"parameter": torch.nn.Parameter(values[1]), "none": values[:0]}

    def arrays(tensors):
        flat = {name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy() for name, tensor in tensors.items()}
        return {name: flat[name].view(str(tensor.dtype)[6:]).reshape(tensor.shape) for name, tensor in tensors.items()}

    model = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.BatchNorm1d(3))
    model(values).sum().backward()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    whole = {"model": torch.nn.DataParallel(model).state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    for zipped in (True, False):
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        assert_same(read_pth(path), arrays(state))
        torch.save(whole, path, _use_new_zipfile_serialization=zipped)
        assert_same(read_pth(path), arrays(model.state_dict()))
        torch.save(model, path, _use_new_zipfile_serialization=zipped)
        assert "torch.nn.modules.container.Sequential" in refusal(path)
    write_pth(path, every_dtype())
    loaded = torch.load(path, weights_only=True)
    assert type(loaded) is OrderedDict
    assert_same(arrays(loaded), every_dtype())
