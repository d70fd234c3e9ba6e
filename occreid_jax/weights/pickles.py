"""The pickle inside a PyTorch checkpoint, read by a machine that knows the few names that tensors need, each of them bound to a
function of this module; any other name ends the reading. Nothing in a file is ever executed.

`pth` and `torchscript` read whole files with it.
"""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

LARGEST_PICKLE = 16 << 20  # bytes; a tensor takes about 200. A pickle can fill a hundredfold of its size in memory.

SAVE_AGAIN = "save the state_dict alone: torch.save(model.state_dict(), ...)"
NOT_TRUSTED = f"load it where you trust it and {SAVE_AGAIN}, or as safetensors"

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


class Problem(Exception):
    """What is wrong with a file, and what helps; without the second to fetch it again."""


# A name in a pickle that may stand there: it cannot be called or changed.
Name = collections.namedtuple("Name", "name")
# ``count`` elements of ``dtype``, from element ``start`` of the raw data ``key``. Nothing is read yet.
Storage = collections.namedtuple("Storage", "dtype key start count")
# A view of a storage, in elements. Each number is one that a tensor can have; the storage may be too short for it.
Tensor = collections.namedtuple("Tensor", "storage offset size stride")


def counts(values: Any) -> tuple[int, ...]:
    """Sizes, strides or offsets as a pickle has them, checked."""
    # Whole numbers can be of any length in a pickle: they are bounded before anything is computed with them.
    if type(values) not in (tuple, list) or len(values) > 64 or not all(type(n) is int and 0 <= n < 2**63 for n in values):
        raise Problem("a tensor in it has a size, stride or offset that no tensor can have")
    return tuple(values)


def tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """What stands for torch's function that rebuilds a tensor: the view is described, and nothing is read."""
    size, stride, (offset,) = counts(size), counts(stride), counts((offset,))
    if type(storage) is not Storage or len(size) != len(stride):
        raise Problem("a tensor in it is not described as torch does it")
    return Tensor(storage, offset, size, stride)


def mapping(pairs: list | None = None) -> dict:
    """What stands for an OrderedDict. ``pairs`` is emptied, so that one list, named many times, cannot fill the memory."""
    pairs = [] if pairs is None else pairs
    # Tuples in tuples are no keys: to hash them overruns the stack of the process if they are nested deep enough.
    if type(pairs) is not list or not all(type(key) in (str, int, float, bool, type(None)) for key, _ in pairs):
        raise Problem("a dictionary in it has keys that are neither text nor numbers", NOT_TRUSTED)
    made = dict(pairs)
    pairs.clear()
    return made


FUNCTIONS: dict[str, Callable] = {"collections.OrderedDict": mapping, "torch.Size": counts}
FUNCTIONS |= {f"torch._utils._rebuild_{name}": tensor for name in ("tensor", "tensor_v2")}
FUNCTIONS |= {"torch._utils._rebuild_parameter": lambda data, *_: data}
# What else training scripts save beside their tensors (milestones, a best score): read over, nothing is made of it.
BESIDE = ("collections.Counter", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "_codecs.encode")
FUNCTIONS |= dict.fromkeys(BESIDE, lambda *_: None)


class Unpickler(pickle._Unpickler):
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
            raise Problem(f"its pickle is cut short, or larger than {LARGEST_PICKLE >> 20} MiB") from error

    def find_class(self, module: str, name: str) -> Name:
        found = f"{module}.{name}"
        if not any(found in known for known in (FUNCTIONS, STORAGES, PASSIVE)):
            raise Problem(f"its pickle names {found[:100]}, no tensor or plain container; nothing was executed", NOT_TRUSTED)
        return Name(found)

    def persistent_load(self, pid: Any) -> Storage:
        match pid[:6] if type(pid) is tuple else None:
            case ("storage", Name(kind), str(key), _, int(count), *view) if kind in STORAGES:
                # The legacy format knows storages that are a part of another one.
                _, start, count = next(filter(None, view), (None, 0, count))
                self.dtypes.setdefault(key, STORAGES[kind])
                return Storage(STORAGES[kind], key, *counts((start, count)))
        raise Problem("a storage in it is not described as torch does it, or has a type that is not read here", NOT_TRUSTED)

    def load_reduce(self):
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Name or function.name not in FUNCTIONS or type(arguments) is not tuple:
            raise Problem("its pickle calls what is no function of tensors or containers; nothing was executed", NOT_TRUSTED)
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
            raise Problem("its pickle sets items of something that is no dictionary")
        self.stack[-1].update(mapping(list(zip(items[::2], items[1::2], strict=True))))

    def refuse(self):
        raise Problem("its pickle holds an operation that no tensor needs; nothing was executed", NOT_TRUSTED)

    dispatch = dict.fromkeys(range(256), refuse)
    dispatch |= {code: pickle._Unpickler.dispatch[code] for code in OPERATIONS}
    dispatch |= {pickle.REDUCE[0]: load_reduce, pickle.BUILD[0]: load_build}
    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}
