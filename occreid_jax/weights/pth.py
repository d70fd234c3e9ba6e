"""PyTorch checkpoints (.pth, .pt, .bin) without torch: `read_pth` and `write_pth`. Nothing in a file is ever executed.

A checkpoint is a pickle that names functions to call, and raw bytes beside it. The pickle is read by a machine that knows the
few names that tensors need, each of them bound to a function of this module; any other name ends the reading.
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

import ml_dtypes
import numpy as np

from occreid_jax.errors import UserError, listed
from occreid_jax.files import write_bytes

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # open the legacy format
LARGEST_PICKLE = 16 << 20  # bytes; a tensor takes about 200. A pickle can fill a hundredfold of its size in memory.
EXPANSION = 100  # what a file holds may take this many times its size, which is counted as 1 MiB at least
DEEPEST, LONGEST_NAME, MOST_ENTRIES = 64, 1000, 200_000  # dictionaries in each other, characters, entries

SAVE_AGAIN = "save the state_dict alone: torch.save(model.state_dict(), ...)"
NOT_TRUSTED = f"load it where you trust it and {SAVE_AGAIN}, or as safetensors"
FETCH_AGAIN = "fetch it or save it again"

_KINDS = {"Float": np.float32, "Double": np.float64, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16, "Long": np.int64}
_KINDS |= {"Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_, "storage.Untyped": np.uint8}
STORAGES = {f"torch.{kind}Storage": np.dtype(dtype) for kind, dtype in _KINDS.items()}
# Names that may stand in a checkpoint and mean nothing here.
PASSIVE = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128 storage.TypedStorage"
PASSIVE = {f"torch.{name}" for name in PASSIVE.split()}
# The operations of a pickle that saved tensors use.
OPERATIONS = """
   PROTO FRAME STOP MARK POP POP_MARK DUP GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
"""
OPERATIONS = [getattr(pickle, name)[0] for name in OPERATIONS.split()]


class _Problem(Exception):
    """What is wrong with a file, and what helps: `FETCH_AGAIN` unless it is stated."""


# A name in a pickle that may stand there: it cannot be called or changed.
_Global = collections.namedtuple("_Global", "name")
# ``count`` elements of ``dtype``, from element ``start`` of the raw data ``key``. Nothing is read yet.
_Storage = collections.namedtuple("_Storage", "dtype key start count")
# A view of a storage, in elements. Each number is one that a tensor can have; the storage may be too short for it.
_Tensor = collections.namedtuple("_Tensor", "storage offset size stride")


def _counts(values: Any) -> tuple[int, ...]:
    # Whole numbers can be of any length in a pickle: they are bounded before anything is computed with them.
    if type(values) not in (tuple, list) or len(values) > 64 or not all(type(n) is int and 0 <= n < 2**63 for n in values):
        raise _Problem("a tensor in it has a size, stride or offset that no tensor can have")
    return tuple(values)


def _tensor(storage, offset, size, stride, *_) -> _Tensor:
    size, stride, (offset,) = _counts(size), _counts(stride), _counts((offset,))
    if type(storage) is not _Storage or len(size) != len(stride):
        raise _Problem("a tensor in it is not described as torch does it")
    return _Tensor(storage, offset, size, stride)


def _mapping(pairs: list | None = None) -> dict:
    """What stands for an OrderedDict. ``pairs`` is emptied, so that one list, named many times, cannot fill the memory."""
    pairs = [] if pairs is None else pairs
    # Tuples in tuples are no keys: to hash them overruns the stack of the process if they are nested deep enough.
    if type(pairs) is not list or not all(type(key) in (str, int, float, bool, type(None)) for key, _ in pairs):
        raise _Problem("a dictionary in it has keys that are neither text nor numbers", NOT_TRUSTED)
    made = dict(pairs)
    pairs.clear()
    return made


FUNCTIONS: dict[str, Callable] = {"collections.OrderedDict": _mapping, "torch.Size": _counts}
FUNCTIONS |= {f"torch._utils._rebuild_{name}": _tensor for name in ("tensor", "tensor_v2")}
FUNCTIONS |= {"torch._utils._rebuild_parameter": lambda data, *_: data}
# What else training scripts save beside their tensors (milestones, a best score): read over, nothing is made of it.
BESIDE = ("collections.Counter", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "_codecs.encode")
FUNCTIONS |= dict.fromkeys(BESIDE, lambda *_: None)


class _Unpickler(pickle._Unpickler):
    """Reads numbers, text, containers and descriptions of tensors, and calls nothing but `FUNCTIONS`.

    It is the Python form of `pickle.Unpickler`. The form in C crashes on a key of tuples nested deep enough, and fills memory
    with zeros up to any index that a pickle states for its memo.
    """

    def __init__(self, content: bytes | memoryview):
        self.file = io.BytesIO(content[:LARGEST_PICKLE])
        super().__init__(self.file, encoding="utf-8")
        self.dtypes: dict[str, np.dtype] = {}  # of each storage that was named

    def load(self) -> Any:
        self.memo = {}
        try:
            return super().load()
        except Exception as error:
            if self.file.read(1):
                raise
            raise _Problem(f"its pickle is cut short, or larger than {LARGEST_PICKLE >> 20} MiB") from error

    def find_class(self, module: str, name: str) -> _Global:
        found = f"{module}.{name}"
        if not any(found in known for known in (FUNCTIONS, STORAGES, PASSIVE)):
            raise _Problem(f"its pickle names {found[:100]}, no tensor or plain container; nothing was executed", NOT_TRUSTED)
        return _Global(found)

    def persistent_load(self, pid: Any) -> _Storage:
        match pid[:6] if type(pid) is tuple else None:
            case ("storage", _Global(kind), str(key), _, int(count), *view) if kind in STORAGES:
                # The legacy format knows storages that are a part of another one.
                _, start, count = next(filter(None, view), (None, 0, count))
                self.dtypes.setdefault(key, STORAGES[kind])
                return _Storage(STORAGES[kind], key, *_counts((start, count)))
        raise _Problem("a storage in it is not described as torch does it, or has a type that is not read here", NOT_TRUSTED)

    def load_reduce(self):
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Global or function.name not in FUNCTIONS or type(arguments) is not tuple:
            raise _Problem("its pickle calls what is no function of tensors or containers; nothing was executed", NOT_TRUSTED)
        self.append(FUNCTIONS[function.name](*arguments[:8]))

    def load_build(self):
        self.stack.pop()  # attributes, such as the _metadata of a state_dict: not needed, and never set on anything

    def load_setitem(self):
        self.metastack.append(self.stack)  # as if a mark stood before the key
        self.stack = [self.stack.pop(-2), self.stack.pop()]
        self.load_setitems()

    def load_setitems(self):
        items = self.pop_mark()
        if type(self.stack[-1]) is not dict:
            raise _Problem("its pickle sets items of something that is no dictionary")
        self.stack[-1].update(_mapping(list(zip(items[::2], items[1::2], strict=True))))

    def refuse(self):
        raise _Problem("its pickle holds an operation that no tensor needs; nothing was executed", NOT_TRUSTED)

    dispatch = dict.fromkeys(range(256), refuse)
    dispatch |= {code: pickle._Unpickler.dispatch[code] for code in OPERATIONS}
    dispatch |= {pickle.REDUCE[0]: load_reduce, pickle.BUILD[0]: load_build}
    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}


def _read_zip(archive: zipfile.ZipFile, limit: int) -> dict[str, np.ndarray]:
    members = {member.filename: member for member in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise _Problem("its archive holds two files of one name")
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members.values()):
        raise _Problem("its archive is compressed in a way that torch does not use")
    # Sizes are those that the archive states: no more than that is ever unpacked.
    if sum(member.file_size for member in members.values()) > limit:
        raise _Problem(f"its archive unpacks to more than {EXPANSION} times its size")
    folders = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(folders) != 1:
        raise _Problem("it is a zip file without the one data.pkl of torch.save")
    folder = folders[0]
    script = any(name.startswith((f"{folder}constants.pkl", f"{folder}code/")) for name in members)

    def raw(name: str) -> bytes | None:
        return archive.read(f"{folder}{name}") if f"{folder}{name}" in members else None

    order = raw("byteorder") or b"little"
    if order not in (b"little", b"big"):
        raise _Problem("its byteorder is neither little nor big")
    from occreid_jax.weights.torchscript import read_module  # here, since it needs this module

    content = raw("data.pkl")
    top = {"state_dict": read_module(content)} if script else _Unpickler(content).load()
    return _arrays(top, lambda key: raw(f"data/{key}"), order.decode(), limit)


def _read_legacy(content: memoryview, limit: int) -> dict[str, np.ndarray]:
    machine = _Unpickler(content)
    if machine.load() != MAGIC or machine.load() != PROTOCOL:
        raise _Problem("it is a pickle, but not one of torch.save", NOT_TRUSTED)
    _, top, keys = machine.load(), machine.load(), machine.load()  # the first: sizes of types where it was written
    position, storages = machine.file.tell(), {}
    for key in keys:
        if type(key) is not str or key not in machine.dtypes:
            raise _Problem("it lists a storage that no tensor uses")
        (count,) = _counts(struct.unpack_from("<q", content, position))
        end = position + 8 + count * machine.dtypes[key].itemsize
        if end > len(content):
            raise _Problem(f"it ends within the storage {key[:100]}")
        storages[key] = content[position + 8 : end]
        position = end
    return _arrays(top, storages.get, "little", limit)  # as torch writes this format on every machine


def _tensors(group: Any) -> dict[str, _Tensor]:
    """The tensors in nested dictionaries and modules, by their names joined with dots; all else is left out."""
    found, waiting, entries = {}, [((), group)], 0
    while waiting:
        path, value = waiting.pop()
        value = getattr(value, "state", value)  # of a module in a TorchScript archive
        if type(value) is _Tensor and path:
            name = ".".join(path)
            if name in found or not _usable(name):
                raise _Problem(f"the name {name[:100]!r} is there twice or cannot be used")
            found[name] = value
        elif type(value) is dict:
            # A dictionary may hold itself, and thirty that each hold the next one twice have 2^30 names.
            entries += len(value)
            if len(path) > DEEPEST or sum(map(len, path)) > LONGEST_NAME or entries > MOST_ENTRIES:
                raise _Problem("its dictionaries hold each other, or are nested too deep", NOT_TRUSTED)
            waiting += [((*path, str(key)), value[key]) for key in reversed(value)]
    return found


def _usable(name: str) -> bool:
    return 0 < len(name) <= LONGEST_NAME and name.isprintable()


def _arrays(top: Any, raw: Callable[[str], Any], order: str, limit: int) -> dict[str, np.ndarray]:
    """The arrays in ``top``, of at most ``limit`` bytes. ``raw`` gives the bytes of a storage or None."""
    if type(top) is not dict:
        raise _Problem(f"it holds no dictionary of tensors but a {type(top).__name__.strip('_').lower()}", SAVE_AGAIN)
    tensors = _tensors(top.get("state_dict")) or _tensors(top.get("model")) or _tensors(top)
    if not tensors:
        raise _Problem(f"there are no tensors in it (its keys: {listed(str(key)[:40] for key in top) or 'none'})", SAVE_AGAIN)
    if sum(math.prod(tensor.size) * tensor.storage.dtype.itemsize for tensor in tensors.values()) > limit:
        raise _Problem(f"its tensors take more than {EXPANSION} times its size", NOT_TRUSTED)
    sharing = collections.defaultdict(list)  # names by storage, so that each storage is read once and dropped
    for name, tensor in tensors.items():
        sharing[tensor.storage.key].append(name)
    arrays: dict[str, Any] = dict.fromkeys(tensors)
    for key, names in sharing.items():
        if (content := raw(key)) is None:
            raise _Problem(f"the storage {key[:100]} of {names[0]} is missing")
        for name in names:
            arrays[name] = _array(name, tensors[name], content, order != sys.byteorder)
    prefix = "module." if all(name.startswith("module.") and name != "module." for name in arrays) else ""
    return {name.removeprefix(prefix): array for name, array in arrays.items()}


def _array(name: str, tensor: _Tensor, content: bytes | memoryview, swapped: bool) -> np.ndarray:
    (dtype, _, start, count), offset, size, strides = tensor
    if (start + count) * dtype.itemsize > len(content):
        raise _Problem(f"the storage of {name} is shorter than stated")
    if not math.prod(size):
        return np.zeros(size, dtype)
    last = offset + sum((length - 1) * stride for length, stride in zip(size, strides, strict=True))
    if last >= count:
        raise _Problem(f"{name} reaches beyond its storage")
    flat = np.frombuffer(content, f"u{dtype.itemsize}", last + 1 - offset, (start + offset) * dtype.itemsize)
    steps = [stride * dtype.itemsize if length > 1 else 0 for length, stride in zip(size, strides, strict=True)]
    values = np.array(np.lib.stride_tricks.as_strided(flat, size, steps, writeable=False), order="C")
    values = values.byteswap() if swapped else values
    return np.asarray(values != 0) if dtype == np.bool_ else values.view(dtype)  # any byte but 0 is true


def read_pth(path: str | Path) -> dict[str, np.ndarray]:
    """Named arrays of a PyTorch checkpoint, in its order: each of the tensor's shape and dtype, contiguous and its own copy.

    Reads what torch.save writes, in the zip format or the legacy one, and of what torch.jit.save writes the parameters and
    buffers, without the program; tensors are float64/32/16, bfloat16, int64/32/16/8, uint8 and bool. They are those of the entry
    ``state_dict``, else of ``model``, else of the whole file; names within nested dictionaries and modules are joined with dots,
    a ``module.`` that all names begin with is removed, and what is no tensor is left out.

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
                    return _read_zip(archive, limit)
            if start[:1] != pickle.PROTO:
                raise _Problem("it is in neither of the two formats of torch.save" if start else "it is empty")
            return _read_legacy(memoryview(file.read()), limit)
    except _Problem as problem:
        raise refused(*(*problem.args, FETCH_AGAIN)[:2]) from problem
    # A damaged file can fail anywhere in the readers of zip files and pickles, and with any error.
    except Exception as error:
        raise refused(f"cannot be read ({type(error).__name__}: {str(error)[:200]})", FETCH_AGAIN) from error


def _coded(value: Any) -> bytes:
    """The operations of a pickle that make a name, text, a whole number, or a tuple of them."""
    match value:
        case _Global(name):
            return pickle.GLOBAL + "\n".join([*name.rsplit(".", 1), ""]).encode()
        case str():
            return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
        case int():
            return pickle.LONG1 + bytes([len(pickle.encode_long(value))]) + pickle.encode_long(value)
    return pickle.MARK + b"".join(map(_coded, value)) + pickle.TUPLE


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of an OrderedDict of contiguous tensors, as torch.save writes it."""
    kinds = {dtype: _Global(kind) for kind, dtype in reversed(STORAGES.items())}  # reversed: uint8 is ByteStorage
    ordered = _coded(_Global("collections.OrderedDict")) + pickle.EMPTY_TUPLE + pickle.REDUCE
    pieces = [pickle.PROTO, b"\x02", ordered, pickle.MARK]
    for index, (name, array) in enumerate(arrays.items()):
        strides = [math.prod(max(length, 1) for length in array.shape[axis + 1 :]) for axis in range(array.ndim)]
        storage = _coded(("storage", kinds[array.dtype], str(index), "cpu", array.size)) + pickle.BINPERSID
        pieces += [_coded(name), _coded(_Global("torch._utils._rebuild_tensor_v2")), pickle.MARK, storage, _coded(0)]
        pieces += [_coded(array.shape), _coded(strides), pickle.NEWFALSE, ordered, pickle.TUPLE, pickle.REDUCE]
    return b"".join([*pieces, pickle.SETITEMS, pickle.STOP])


def write_pth(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes ``arrays`` so that torch.load(path, weights_only=True) gives an OrderedDict of tensors: same names, order and bits.

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

        add("data.pkl", _pickled(native))
        add("byteorder", sys.byteorder.encode())
        for index, array in enumerate(native.values()):
            add(f"data/{index}", array.tobytes())
        add("version", b"3\n")
    write_bytes(Path(path), buffer.getvalue())
