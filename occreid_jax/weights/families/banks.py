"""Memory banks that the official trainings of FED and of DPEFormer leave in a file of their own: one tensor without a name, a row
for every identity.

Source: ``processor/processor.py`` of ZacharyWang-007/FED-Occluded-ReID and of zhangxin06/DPEFormer, which save the ``features``
of the memory in ``hm.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.weights.families import Description, Family
from occreid_jax.weights.naming import Arrays, Entry, Rule, export_arrays, import_arrays, refuse_nameless

PARTS = 4  # stripes, whose features stand side by side in a row
PATHS = {"fed": "extra/bank/erased", "dpeformer": "extra/bank"}


def name_of(method: str) -> str:
    """What the tensor is called here; also the name of its family."""
    return f"{method}_bank"


def rules(method: str) -> tuple[Rule, ...]:
    return (Rule(PATHS[method], name_of(method)),)


def checked(method: str, weights: Mapping[str, np.ndarray]) -> Description:
    path = PATHS[method]
    shape = weights[path].shape if path in weights else ()
    if len(shape) != 2 or not all(shape) or shape[1] % PARTS:
        size = "x".join(map(str, shape)) or "one number"
        raise UserError(
            f"{name_of(method)} is {size}; a bank has a row for every identity, of the features of {PARTS} stripes side by side"
        )
    return Description(shape[1] // PARTS, None, None, identities=shape[0])


def read(method: str, arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`."""
    weights, entries = import_arrays(arrays, rules(method), ())
    return weights, entries, checked(method, weights)


def write(method: str, weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.write`. Of a run it takes the banks alone; more than the one that the official code has are refused."""
    banks = {path: array for path, array in weights.items() if not path.startswith(("params/", "extra/batch_stats/"))}
    refuse_nameless(banks, rules(method), ("bank",), f"{method}'s", "run with the one memory bank of the official code")
    description = checked(method, banks)
    return *export_arrays(banks, rules(method)), description


def fits(method: str, names: Collection[str]) -> bool:
    return set(names) == {name_of(method)}


def family(method: str, title: str) -> Family:
    own = (functools.partial(function, method) for function in (fits, read, write))
    return Family(name_of(method), "part", f"the memory bank of {title}", *own)


FED, DPEFORMER = family("fed", "FED"), family("dpeformer", "DPEFormer")
