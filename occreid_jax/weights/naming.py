"""Names and layouts of parameters elsewhere and here: tables of rules that are read in both directions.

A rule pairs a path of this project with the name of a tensor elsewhere and says how the numbers are laid out there. Layouts only
move numbers and never compute with them, so that a round trip is equal bit for bit. A network is a tuple of rules; its
transformer blocks come from `block_rules`, which every family of checkpoints shares.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from occreid_jax.errors import UserError, listed

USED, RESIZED, LEFT_OUT = "used", "resized", "left out"
PARTS = 3  # arrays that make a fused one: query, key and value, in this order
ROUNDED = ("float16", "bfloat16", "float64")  # what becomes float32; the first two lose nothing by it

Arrays = dict[str, np.ndarray]


class Layout(NamedTuple):
    """How a tensor lies elsewhere (``shape``, in words; a number must be met exactly) and the way from there and back.

    ``leave`` is None where the way back would need to know the number of heads.
    """

    shape: tuple[str | int, ...] | None
    enter: Callable[[np.ndarray], np.ndarray]
    leave: Callable[[np.ndarray], np.ndarray] | None


LAYOUTS = {
    "same": Layout(None, lambda x: x, lambda x: x),
    "linear": Layout(("out", "in"), lambda x: x.T, lambda x: x.T),
    "conv": Layout(
        ("out", "in", "height", "width"), lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
    ),  # OIHW <-> HWIO
    "token": Layout(("width",), lambda x: x[None, None], lambda x: x[0, 0]),
    "table": Layout(("rows", "width"), lambda x: x[None], lambda x: x[0]),
    "rows": Layout(("rows", 1, "width"), lambda x: x[:, 0], lambda x: x[:, None]),
    "heads_kernel": Layout(("in", "heads", "size"), lambda x: x.reshape(x.shape[0], x.shape[1] * x.shape[2]), None),
    "heads_bias": Layout(("heads", "size"), lambda x: x.reshape(-1), None),
    "heads_output": Layout(("heads", "size", "out"), lambda x: x.reshape(x.shape[0] * x.shape[1], x.shape[2]), None),
}


@functools.cache
def pattern(template: str) -> re.Pattern:
    """``blocks.{i}.norm1`` -> the regular expression of the names it stands for."""
    pieces = re.split(r"\{(\w+)(?::\w+)?\}", template)
    # Four digits are enough for any network; a number without end in a damaged name would cost its memory.
    return re.compile("".join(rf"(?P<{piece}>\d{{1,4}})" if k % 2 else re.escape(piece) for k, piece in enumerate(pieces)))


def translate(text: str, template: str, other: str) -> str | None:
    """``other`` filled with the numbers that ``text`` has where ``template`` has fields; None if it is no such text."""
    match = pattern(template).fullmatch(text)
    if match is None:
        return None
    numbers = {field: int(value) for field, value in match.groupdict().items()}
    # Numbers have one spelling: block_0 is not another name of block_00.
    return other.format(**numbers) if template.format(**numbers) == text else None


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter, or one of each block: ``path`` here, ``name`` elsewhere, both with fields such as ``{i}`` or ``{i:02d}``.

    ``part`` says that the tensor is one of ``pieces`` that lie side by side on the last axis here; of three: query, key, value.
    """

    path: str
    name: str
    layout: str = "same"
    part: int | None = None
    pieces: int = PARTS

    def to_path(self, name: str) -> str | None:
        """The path of the tensor ``name``; None if this rule is not about it."""
        return translate(name, self.name, self.path)

    def to_name(self, path: str) -> str | None:
        """The reverse of `to_path`."""
        return translate(path, self.path, self.name)

    def import_array(self, array: np.ndarray, name: str = "") -> np.ndarray:
        """``array`` as it lies here. Raises `UserError`, with ``name``, if it has no such shape."""
        layout = LAYOUTS[self.layout]
        if layout.shape is not None:
            fits = len(layout.shape) == array.ndim and all(
                isinstance(word, str) or word == size for word, size in zip(layout.shape, array.shape, strict=True)
            )
            if not fits:
                expected = ", ".join(map(str, layout.shape))
                raise UserError(
                    f"{name or self.name} has shape {array.shape}, which is not [{expected}]; this is another network"
                )
        return np.asarray(layout.enter(array), order="C")

    def export_array(self, array: np.ndarray) -> np.ndarray:
        """The reverse of `import_array`; of a fused array, this rule's part."""
        leave = LAYOUTS[self.layout].leave
        if leave is None:
            raise ValueError(f"layout '{self.layout}' has no way back: the number of heads is not stored")
        if self.part is not None:
            array = np.split(array, self.pieces, axis=-1)[self.part]
        return np.asarray(leave(array), order="C")


BLOCK = {
    "norm1": "norm1.",
    "norm2": "norm2.",
    "attn/qkv": "attn.qkv.",
    "attn/proj": "attn.proj.",
    "mlp/fc1": "mlp.fc1.",
    "mlp/fc2": "mlp.fc2.",
}
"""Names inside a transformer block as timm, TransReID and its successors write them, up to ``weight`` and ``bias``."""


def block_rules(path: str, name: str, names: Mapping[str, str | Sequence[str]] = BLOCK) -> tuple[Rule, ...]:
    """The rules of a transformer block below ``path`` and ``name`` (templates; both end where the block's own names begin).

    ``names`` has the keys of `BLOCK` and gives for each what stands before ``weight`` and ``bias``; three names for
    ``attn/qkv`` where query, key and value are separate. Another network needs only its own ``names``, for example
    ``{"attn/qkv": "attn.in_proj_", "norm1": "ln_1.", ...}`` for those after CLIP.
    """
    rules = []
    for module, given in names.items():
        leaf, layout = ("scale", "same") if module.startswith("norm") else ("kernel", "linear")
        separate = not isinstance(given, str)
        for part, inner in enumerate(given if separate else (given,)):
            number = part if separate else None
            rules.append(Rule(f"{path}{module}/{leaf}", f"{name}{inner}weight", layout, number))
            rules.append(Rule(f"{path}{module}/bias", f"{name}{inner}bias", "same", number))
    return tuple(rules)


class LeftOut(NamedTuple):
    """Tensors that are known and not used: a regular expression for their whole names, and why."""

    pattern: str
    reason: str


class Entry(NamedTuple):
    """What became of one tensor: ``fate`` is one of USED, RESIZED, LEFT_OUT; ``shape`` and ``dtype`` are those of the source."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    fate: str
    path: str = ""  # empty if it was left out
    note: str = ""  # why it was left out, or what was done to it


def to_path(rules: Iterable[Rule], name: str) -> tuple[str, Rule] | None:
    """Path and rule of the tensor ``name``: the first rule that is about it."""
    return next(((path, rule) for rule in rules if (path := rule.to_path(name)) is not None), None)


def to_name(rules: Iterable[Rule], path: str) -> str:
    """The tensor behind ``path`` (of a fused one, the first), or ``path`` itself where no rule is about it."""
    return next((name for rule in rules if (name := rule.to_name(path)) is not None), path)


def as_float32(array: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    """``array`` as float32 and a note if it was not. Raises `UserError` for numbers that are no plain floats."""
    if array.dtype == np.float32:
        return array, ""
    if array.dtype.name not in ROUNDED:
        raise UserError(f"{name} holds {array.dtype.name} numbers; only weights in floating point can be used")
    return array.astype(np.float32), f"{array.dtype.name} made float32"


def import_arrays(
    arrays: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    left_out: Sequence[LeftOut] = (),
    prepared: Mapping[str, tuple[np.ndarray, str]] | None = None,
) -> tuple[Arrays, list[Entry]]:
    """Tensors under their names -> arrays float32 under paths, and what became of each tensor.

    ``prepared`` gives other arrays in place of some tensors, each with a note of what was done. Raises `UserError` for a tensor
    that is neither in the rules nor in ``left_out``, for two tensors of one path, and for a missing part of a fused one.
    """
    weights, entries, sources, parts, unexplained = {}, [], {}, {}, []
    for name, original in arrays.items():
        about = original.shape, original.dtype.name
        reason = next((kind.reason for kind in left_out if re.fullmatch(kind.pattern, name)), None)
        if reason is not None:
            entries.append(Entry(name, *about, LEFT_OUT, "", reason))
            continue
        found = to_path(rules, name)
        if found is None:
            unexplained.append(name)
            continue
        path, rule = found
        array, done = (prepared or {}).get(name, (original, ""))
        array, changed = as_float32(array, name)
        place = (path, rule.part)
        if place in sources:
            raise UserError(f"{sources[place]} and {name} are both {path}; remove one of them from the file")
        sources[place] = name
        array = rule.import_array(array, name)
        fused = "" if rule.part is None else f"part {rule.part + 1} of {rule.pieces}"
        entries.append(Entry(name, *about, USED, path, ", ".join(filter(None, (fused, done, changed)))))
        if rule.part is None:
            weights[path] = array
        else:
            parts.setdefault(path, {})[rule.part] = array
    if unexplained:
        count = f"{len(unexplained)} tensor{'s are' if len(unexplained) > 1 else ' is'} unexplained"
        raise UserError(f"{count}: {listed(unexplained)}; these weights belong to another network than their other names say")
    return weights | {path: join(path, found, rules, sources) for path, found in parts.items()}, entries


def join(path: str, found: Mapping[int, np.ndarray], rules: Sequence[Rule], sources: Mapping[tuple, str]) -> np.ndarray:
    """The fused array of ``path``: its parts side by side on the last axis."""
    present = sources[(path, min(found))]
    names = {rule.part: name for rule in rules if (name := rule.to_name(path)) is not None}
    for part, name in sorted(names.items()):
        if part not in found:
            raise UserError(f"{name} is missing, which goes with {present}; the file is not complete, fetch it again")
    shapes = {array.shape for array in found.values()}
    if len(shapes) > 1:
        raise UserError(f"{present} and what goes with it have different shapes {sorted(shapes)}; this is another network")
    return np.concatenate([found[part] for part in sorted(found)], axis=-1)


def refuse_nameless(
    weights: Mapping[str, np.ndarray], rules: Sequence[Rule], networks: Sequence[str], whose: str, possible: str
) -> None:
    """Raises `UserError` with the parts of a model that no rule names; within ``networks`` the module is told as well."""

    def part(path: str) -> str:
        names = path.removeprefix("params/").removeprefix("extra/").removeprefix("batch_stats/").split("/")
        return "/".join(names[: 2 if names[0] in networks else 1])

    if foreign := sorted({part(path) for path in weights if to_name(rules, path) == path}):
        verb = "has" if len(foreign) == 1 else "have"
        raise UserError(f"{listed(foreign)} {verb} no names in {whose} checkpoints; what can be written is a {possible}")


def export_arrays(weights: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> tuple[Arrays, list[Entry]]:
    """The reverse of `import_arrays`; where several rules name a path the first counts. Raises `UserError` without a rule."""
    arrays, entries = {}, []
    for path, array in weights.items():
        fitting = [(name, rule) for rule in rules if (name := rule.to_name(path)) is not None]
        if not fitting:
            raise UserError(f"{path} has no PyTorch name; these parameters belong to another method")
        fused = fitting[0][1].part is not None
        for name, rule in fitting if fused else fitting[:1]:
            arrays[name] = rule.export_array(array)
            entries.append(Entry(name, arrays[name].shape, arrays[name].dtype.name, USED, path))
    return arrays, entries


def found(weights: Mapping[str, np.ndarray], path: str, rules: Sequence[Rule], dims: int) -> np.ndarray:
    """``weights[path]``, which must be there and have ``dims`` axes; otherwise a `UserError` with its name elsewhere."""
    if path not in weights:
        raise UserError(f"{to_name(rules, path)} is missing; the file is not complete or holds another network")
    if weights[path].ndim != dims:
        raise UserError(f"{to_name(rules, path)} has {weights[path].ndim} axes instead of {dims}; this is another network")
    return weights[path]


def check_shapes(weights: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], rules: Sequence[Rule]) -> None:
    """Raises `UserError` unless ``weights`` holds exactly the paths of ``expected`` with their shapes."""
    for path, shape in expected.items():
        array = found(weights, path, rules, len(shape))
        if array.shape != shape:
            text = f"{to_name(rules, path)} is {array.shape} here, where the other tensors ask for {shape}"
            raise UserError(f"{text}; this is another network")
    for path in weights:
        if path not in expected:
            raise UserError(f"{to_name(rules, path)} has no place beside the other tensors; this is another network")
