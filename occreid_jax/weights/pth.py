"""PyTorch checkpoints (.pth, .pt, .bin) without torch: `read_pth` and `write_pth`. Nothing in a file is ever executed.

A checkpoint is a pickle that names functions to call, and raw bytes beside it. `pickles` reads the one, this module the other.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from occreid_jax.errors import UserError, listed
from occreid_jax.files import write_bytes
from occreid_jax.weights.pickles import NOT_TRUSTED, SAVE_AGAIN, STORAGES, Name, Problem, Tensor, Unpickler, counts
from occreid_jax.weights.torchscript import read_module

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # open the legacy format
EXPANSION = 100  # what a file holds may take this many times its size, which is counted as 1 MiB at least
DEEPEST, LONGEST_NAME, MOST_ENTRIES = 64, 1000, 200_000  # dictionaries in each other, characters, entries
FETCH_AGAIN = "fetch it or save it again"


def _read_zip(archive: zipfile.ZipFile, limit: int, alone: str) -> dict[str, np.ndarray]:
    members = {member.filename: member for member in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise Problem("its archive holds two files of one name")
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members.values()):
        raise Problem("its archive is compressed in a way that torch does not use")
    # Sizes are those that the archive states: no more than that is ever unpacked.
    if sum(member.file_size for member in members.values()) > limit:
        raise Problem(f"its archive unpacks to more than {EXPANSION} times its size")
    folders = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(folders) != 1:
        raise Problem("it is a zip file without the one data.pkl of torch.save")
    folder = folders[0]
    script = any(name.startswith((f"{folder}constants.pkl", f"{folder}code/")) for name in members)

    def raw(name: str) -> bytes | None:
        return archive.read(f"{folder}{name}") if f"{folder}{name}" in members else None

    order = raw("byteorder") or b"little"
    if order not in (b"little", b"big"):
        raise Problem("its byteorder is neither little nor big")
    content = raw("data.pkl")
    top = {"state_dict": read_module(content)} if script else Unpickler(content).load()
    return _arrays(top, lambda key: raw(f"data/{key}"), order.decode(), limit, alone)


def _read_legacy(content: memoryview, limit: int, alone: str) -> dict[str, np.ndarray]:
    machine = Unpickler(content)
    if machine.load() != MAGIC or machine.load() != PROTOCOL:
        raise Problem("it is a pickle, but not one of torch.save", NOT_TRUSTED)
    _, top, keys = machine.load(), machine.load(), machine.load()  # the first: sizes of types where it was written
    position, storages = machine.file.tell(), {}
    for key in keys:
        if type(key) is not str or key not in machine.dtypes:
            raise Problem("it lists a storage that no tensor uses")
        (count,) = counts(struct.unpack_from("<q", content, position))
        end = position + 8 + count * machine.dtypes[key].itemsize
        if end > len(content):
            raise Problem(f"it ends within the storage {key[:100]}")
        storages[key] = content[position + 8 : end]
        position = end
    return _arrays(top, storages.get, "little", limit, alone)  # as torch writes this format on every machine


def _tensors(group: Any) -> dict[str, Tensor]:
    """The tensors in nested dictionaries and modules, by their names joined with dots; all else is left out."""
    found, waiting, entries = {}, [((), group)], 0
    while waiting:
        path, value = waiting.pop()
        value = getattr(value, "state", value)  # of a module in a TorchScript archive
        if type(value) is Tensor and path:
            name = ".".join(path)
            if name in found or not _usable(name):
                raise Problem(f"the name {name[:100]!r} is there twice or cannot be used")
            found[name] = value
        elif type(value) is dict:
            # A dictionary may hold itself, and thirty that each hold the next one twice have 2^30 names.
            entries += len(value)
            if len(path) > DEEPEST or sum(map(len, path)) > LONGEST_NAME or entries > MOST_ENTRIES:
                raise Problem("its dictionaries hold each other, or are nested too deep", NOT_TRUSTED)
            waiting += [((*path, str(key)), value[key]) for key in reversed(value)]
    return found


def _usable(name: str) -> bool:
    return 0 < len(name) <= LONGEST_NAME and name.isprintable()


def _arrays(top: Any, raw: Callable[[str], Any], order: str, limit: int, alone: str) -> dict[str, np.ndarray]:
    """The arrays in ``top``, of at most ``limit`` bytes. ``raw`` gives the bytes of a storage or None. See `read_pth`."""
    if type(top) is Tensor:
        if not alone:
            raise Problem("it holds one tensor without a name", f"of a memory bank say whose with --bank, else {SAVE_AGAIN}")
        top = {alone: top}
    elif alone:
        raise Problem("it does not hold one tensor without a name, as the file of a memory bank does", "leave --bank out")
    if type(top) is not dict:
        raise Problem(f"it holds no dictionary of tensors but a {type(top).__name__.strip('_').lower()}", SAVE_AGAIN)
    tensors = _tensors(top.get("state_dict")) or _tensors(top.get("model")) or _tensors(top)
    if not tensors:
        raise Problem(f"there are no tensors in it (its keys: {listed(str(key)[:40] for key in top) or 'none'})", SAVE_AGAIN)
    if sum(math.prod(tensor.size) * tensor.storage.dtype.itemsize for tensor in tensors.values()) > limit:
        raise Problem(f"its tensors take more than {EXPANSION} times its size", NOT_TRUSTED)
    sharing = collections.defaultdict(list)  # names by storage, so that each storage is read once and dropped
    for name, tensor in tensors.items():
        sharing[tensor.storage.key].append(name)
    arrays: dict[str, Any] = dict.fromkeys(tensors)
    for key, names in sharing.items():
        if (content := raw(key)) is None:
            raise Problem(f"the storage {key[:100]} of {names[0]} is missing")
        for name in names:
            arrays[name] = _array(name, tensors[name], content, order != sys.byteorder)
    prefix = "module." if all(name.startswith("module.") and name != "module." for name in arrays) else ""
    return {name.removeprefix(prefix): array for name, array in arrays.items()}


def _array(name: str, tensor: Tensor, content: bytes | memoryview, swapped: bool) -> np.ndarray:
    (dtype, _, start, count), offset, size, strides = tensor
    if (start + count) * dtype.itemsize > len(content):
        raise Problem(f"the storage of {name} is shorter than stated")
    if not math.prod(size):
        return np.zeros(size, dtype)
    last = offset + sum((length - 1) * stride for length, stride in zip(size, strides, strict=True))
    if last >= count:
        raise Problem(f"{name} reaches beyond its storage")
    flat = np.frombuffer(content, f"u{dtype.itemsize}", last + 1 - offset, (start + offset) * dtype.itemsize)
    steps = [stride * dtype.itemsize if length > 1 else 0 for length, stride in zip(size, strides, strict=True)]
    values = np.array(np.lib.stride_tricks.as_strided(flat, size, steps, writeable=False), order="C")
    values = values.byteswap() if swapped else values
    return np.asarray(values != 0) if dtype == np.bool_ else values.view(dtype)  # any byte but 0 is true


def read_pth(path: str | Path, alone: str = "") -> dict[str, np.ndarray]:
    """Named arrays of a PyTorch checkpoint, in its order: each of the tensor's shape and dtype, contiguous and its own copy.

    Reads what torch.save writes, in the zip format or the legacy one, and of what torch.jit.save writes the parameters and
    buffers, without the program; tensors are float64/32/16, bfloat16, int64/32/16/8, uint8 and bool. They are those of the entry
    ``state_dict``, else of ``model``, else of the whole file; names within nested dictionaries and modules are joined with dots,
    a ``module.`` that all names begin with is removed, and what is no tensor is left out. A file that holds one tensor and no
    name for it is taken, and no other, if ``alone`` says what to call it.

    Raises `UserError`, one line, if the file is absent, damaged, of another kind, without tensors, or names anything but tensors
    and plain containers. Nothing in it is executed in any case.
    """
    path = Path(path)

    def refused(text: str, remedy: str) -> UserError:
        return UserError("".join(letter if letter.isprintable() else "?" for letter in f"{path}: {text}; {remedy}"))

    if not path.is_file():
        raise refused("is a folder" if path.is_dir() else "no such weights file", "name a file that torch.save has written")
    try:
        with open(path, "rb") as file:
            start, limit = file.read(4), EXPANSION * max(path.stat().st_size, 1 << 20)
            file.seek(0)
            if start == b"PK\x03\x04":
                with zipfile.ZipFile(file) as archive:
                    return _read_zip(archive, limit, alone)
            if start[:1] != pickle.PROTO:
                raise Problem("it is in neither of the two formats of torch.save" if start else "it is empty")
            return _read_legacy(memoryview(file.read()), limit, alone)
    except Problem as problem:
        raise refused(*(*problem.args, FETCH_AGAIN)[:2]) from problem
    # A damaged file can fail anywhere in the readers of zip files and pickles, and with any error.
    except Exception as error:
        raise refused(f"cannot be read ({type(error).__name__}: {str(error)[:200]})", FETCH_AGAIN) from error


def _coded(value: Any) -> bytes:
    """The operations of a pickle that make a name, text, a whole number, or a tuple of them."""
    match value:
        case Name(name):
            return pickle.GLOBAL + "\n".join([*name.rsplit(".", 1), ""]).encode()
        case str():
            return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
        case int():
            return pickle.LONG1 + bytes([len(pickle.encode_long(value))]) + pickle.encode_long(value)
    return pickle.MARK + b"".join(map(_coded, value)) + pickle.TUPLE


def _pickled(arrays: Mapping[str, np.ndarray], alone: bool) -> bytes:
    """The pickle of an OrderedDict of contiguous tensors, as torch.save writes it, or of the one tensor ``alone``."""
    kinds = {dtype: Name(kind) for kind, dtype in reversed(STORAGES.items())}  # reversed: uint8 is ByteStorage
    ordered = _coded(Name("collections.OrderedDict")) + pickle.EMPTY_TUPLE + pickle.REDUCE
    pieces = [pickle.PROTO, b"\x02"] + ([] if alone else [ordered, pickle.MARK])
    for index, (name, array) in enumerate(arrays.items()):
        strides = [math.prod(max(length, 1) for length in array.shape[axis + 1 :]) for axis in range(array.ndim)]
        storage = _coded(("storage", kinds[array.dtype], str(index), "cpu", array.size)) + pickle.BINPERSID
        pieces += [] if alone else [_coded(name)]
        pieces += [_coded(Name("torch._utils._rebuild_tensor_v2")), pickle.MARK, storage, _coded(0)]
        pieces += [_coded(array.shape), _coded(strides), pickle.NEWFALSE, ordered, pickle.TUPLE, pickle.REDUCE]
    return b"".join([*pieces, b"" if alone else pickle.SETITEMS, pickle.STOP])


def write_pth(path: str | Path, arrays: Mapping[str, np.ndarray], alone: bool = False) -> None:
    """Writes ``arrays`` so that torch.load(path, weights_only=True) gives an OrderedDict of tensors: same names, order and bits.
    With ``alone`` the only one of them is all that the file holds, and its name is lost.

    Arrays of any shape, float64/32/16, bfloat16, int64/32/16/8, uint8 or bool. Equal arrays give equal files, written whole or
    not at all. Raises `UserError` for another dtype, a name that `read_pth` does not take, or a file that cannot be written.
    """
    native = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        native[name] = np.asarray(array, array.dtype.newbyteorder("="), order="C")
        if native[name].dtype not in STORAGES.values():
            raise UserError(f"{path}: {name} has dtype {array.dtype}; write float, bfloat16, int, uint8 or bool arrays")
        if not _usable(name):
            raise UserError(f"{path}: {name[:100]!r} cannot name a tensor; use 1 to {LONGEST_NAME} printable characters")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, content: bytes) -> None:
            member = zipfile.ZipInfo(f"archive/{name}")  # dated 1980
            member.create_system = 0  # equal arrays give equal files
            # An extra field aligns the data to 64 bytes: 30 bytes of header, the name, 4 bytes of field header, padding.
            padding = -(buffer.tell() + 34 + len(member.filename)) % 64
            member.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
            archive.writestr(member, content)

        add("data.pkl", _pickled(native, alone))
        add("byteorder", sys.byteorder.encode())
        for index, array in enumerate(native.values()):
            add(f"data/{index}", array.tobytes())
        add("version", b"3\n")
    write_bytes(Path(path), buffer.getvalue())
