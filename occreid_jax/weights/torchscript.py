"""TorchScript archives, such as OpenAI's CLIP: their tensors without their program, which is neither read nor executed.

An archive of torch.jit.save is a zip file as torch.save writes it, whose data.pkl holds modules in place of a dictionary. Each
is an object of a class ``__torch__.*`` that the program in ``code/`` describes; here it is a container of its attributes. The
tensors in constants.pkl have no names and belong to the program.
"""

from __future__ import annotations

import pickle
import re
from typing import Any

from occreid_jax.weights.pickles import NOT_TRUSTED, SAVE_AGAIN, Name, Problem, Unpickler

CLASS = re.compile(r"__torch__(\.\w+)+")
# What wraps a list or a dictionary with the type of its entries; the value is the first argument.
CONTAINERS = {f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")}
CONTAINERS |= {"torch.jit._pickle.restore_type_tag"}


class Module:
    """A module in an archive: ``state`` holds its attributes by name, and nothing can be done with it."""

    __slots__ = ("state",)

    def __init__(self):
        self.state: dict[str, Any] = {}


class ScriptUnpickler(Unpickler):
    """Reads what `Unpickler` reads, modules, and typed lists and dictionaries."""

    def find_class(self, module: str, name: str) -> Name:
        found = f"{module}.{name}"
        return Name(found) if CLASS.fullmatch(found) or found in CONTAINERS else super().find_class(module, name)

    def load_newobj(self):
        arguments, kind = self.stack.pop(), self.stack.pop()
        if type(kind) is not Name or not CLASS.fullmatch(kind.name) or arguments != ():
            raise Problem("its pickle makes an object that is no module; nothing was executed", NOT_TRUSTED)
        self.append(Module())

    def load_build(self):
        if type(self.stack[-2]) is not Module:
            return super().load_build()
        state = self.stack.pop()
        if type(state) is not dict or not all(type(key) is str for key in state):
            raise Problem("a module in it keeps its attributes in another form than a dictionary", SAVE_AGAIN)
        self.stack[-1].state = state  # not copied: one dictionary may be the state of many modules

    def load_reduce(self):
        function = self.stack[-2]
        if type(function) is not Name or function.name not in CONTAINERS:
            return super().load_reduce()
        arguments = self.stack.pop()
        if type(arguments) is not tuple or not arguments or type(arguments[0]) not in (list, dict):
            raise Problem("its pickle gives a type to what is no list or dictionary", NOT_TRUSTED)
        self.stack[-1] = arguments[0]

    dispatch = Unpickler.dispatch | {
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.REDUCE[0]: load_reduce,
    }


def read_module(content: bytes) -> Module:
    """The outermost module of a data.pkl."""
    top = ScriptUnpickler(content).load()
    if type(top) is not Module:
        kind = type(top).__name__.strip("_").lower()
        raise Problem(f"it is a TorchScript archive that holds no module but a {kind}", SAVE_AGAIN)
    return top
