"""What every kind of reference file offers, and how its keys are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from occreid_jax.weights.reference import Comparison, ReferenceFile

NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
"""Pattern of a number in a key, such as 0.3, -1 or 5e-06."""


class Kind(NamedTuple):
    """One kind of reference file."""

    recognises: Callable[[ReferenceFile], bool]  # looks at names of outputs and inputs and at the config only
    compare: Callable[[ReferenceFile], Iterator[Comparison]]  # computes and compares every output that it can


def first_words(file: ReferenceFile) -> set[str]:
    """The outputs' names up to the first dot."""
    return {key.partition(".")[0] for key in file.outputs}


def grouped(keys: Iterable[str]) -> dict[str, list[str]]:
    """Keys by what stands before their last dot: ``{"a.b": ["loss", "grad"]}`` for ``a.b.loss`` and ``a.b.grad``."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        stem, _, part = key.rpartition(".")
        groups.setdefault(stem, []).append(part)
    return groups


def words(text: str, **patterns: str) -> dict[str, str] | None:
    """Reads ``text``, words joined by "_", each of which one pattern must match as a whole, each pattern at most once.

    The value of a name is the pattern's first group, or the whole word without one: ``words("m0.3_easy", margin=r"m(.+)",
    easy="easy")`` is ``{"margin": "0.3", "easy": "easy"}``. None for a text with another word.
    """
    found: dict[str, str] = {}
    for word in filter(None, text.split("_")):
        for name, pattern in patterns.items():
            match = re.fullmatch(pattern, word)
            if match and name not in found:
                found[name] = match[1] if match.re.groups else word
                break
        else:
            return None
    return found
