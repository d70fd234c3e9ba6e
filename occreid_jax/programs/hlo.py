"""The text of an optimised program (HLO) as instructions: what they make, how many bytes, what the compiler notes of them."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0}  # of one number, where the type's name does not say it
ARRAY = re.compile(r"\b(pred|token|opaque|bf16|[suf]\d+\w*)\[([\d,]*)\]")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(?.*\{$")
COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast",
)  # fmt: skip


class Array(NamedTuple):
    """One array of a shape."""

    dtype: str
    sides: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.sides)

    @property
    def nbytes(self) -> float:
        """Without the padding of a layout in tiles."""
        return self.size * bits(self.dtype) / 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.sides))}]"


class Instruction(NamedTuple):
    """One line of a program."""

    computation: str  # the function that it stands in
    name: str
    shape: str  # one array or a tuple of them, with layouts
    kind: str
    rest: str  # operands and notes

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays that it makes, outermost tuple flat."""
        return arrays(self.shape)

    @property
    def nbytes(self) -> float:
        return sum(array.nbytes for array in self.arrays)

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions that it reads."""
        return tuple(re.findall(r"%([\w.-]+)", self.rest.partition(")")[0]))

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 where it makes none."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.rest)
        return int(found[1]) if found else 0

    @property
    def scope(self) -> str:
        """Where in the source's functions it comes from, as in ``jvp(ViT)/block_00/attn/dot_general``; empty if not noted."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return found[1].partition("/")[2] or found[1] if found else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Computations that it runs."""
        return tuple(re.findall(r"(?:calls|body|condition|to_apply)=%?([\w.-]+)", self.rest))


class Text:
    """A whole program."""

    def __init__(self, text: str):
        self.instructions: list[Instruction] = []
        self.entry = computation = ""
        for line in text.splitlines():
            if found := HEAD.match(line):
                computation = found[2]
                self.entry = computation if found[1] else self.entry
            elif found := LINE.match(line):
                self.instructions.append(Instruction(computation, *found.groups()))

    @functools.cached_property
    def by_computation(self) -> dict[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            found.setdefault(instruction.computation, []).append(instruction)
        return found

    @functools.cached_property
    def by_name(self) -> dict[tuple[str, str], Instruction]:
        """(computation, name) -> instruction."""
        return {(each.computation, each.name): each for each in self.instructions}

    def operand(self, instruction: Instruction, number: int) -> Instruction | None:
        """What an instruction reads at place ``number``; None if it is not there."""
        names = instruction.operands
        return self.by_name.get((instruction.computation, names[number])) if number < len(names) else None

    @property
    def top(self) -> list[Instruction]:
        """Instructions of the entry: each fusion counts once, for all that is inside."""
        return self.by_computation.get(self.entry, [])

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """All instructions of the computations that an instruction runs, and of those that they run."""
        for name in instruction.called:
            for each in self.by_computation.get(name, []):
                yield each
                yield from self.inside(each)

    def collectives(self) -> Iterator[Instruction]:
        """Every collective once: one that runs beside other work is printed in each fusion that it overlaps, on one channel."""
        seen = set()
        for each in self.instructions:
            kind, channel = collective_kind(each), re.search(r"channel_id=(\d+)", each.rest)
            key = (kind, channel[1] if channel else each.name)
            if kind and key not in seen:
                seen.add(key)
                yield each


def bits(dtype: str) -> int:
    """Bits of one number."""
    return BITS[dtype] if dtype in BITS else int(re.search(r"\d+", dtype)[0])


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays in a piece of text."""
    return tuple(Array(dtype, tuple(int(x) for x in sides.split(",") if x)) for dtype, sides in ARRAY.findall(shape))


def collective_kind(instruction: Instruction) -> str:
    """The kind of a collective, "all-reduce" for "all-reduce-start" as well; empty for every other instruction."""
    kind = instruction.kind.removesuffix("-start")
    return kind if kind in COLLECTIVES else ""


def collective_results(instruction: Instruction) -> tuple[Array, ...]:
    """The arrays that a collective brings: one that is only started also names what it reads, and its counters."""
    made = instruction.arrays
    if not instruction.kind.endswith("-start") or instruction.kind == "all-reduce-start":
        return made
    if instruction.kind == "collective-permute-start":
        return made[1:2]
    return made[len(made) // 2 :]


def product_flops(text: Text, instruction: Instruction) -> tuple[float, str] | None:
    """Floating-point operations of a matrix product or convolution, and the wider type of its operands; None for the rest."""
    library = instruction.kind == "custom-call" and "__cublas" in instruction.rest
    if not library and instruction.kind not in ("dot", "convolution"):
        return None
    read = operand_arrays(text, instruction)
    if len(read) < 2:
        return None
    out, (left, right) = instruction.arrays[0], read[:2]
    if instruction.kind == "convolution":
        return 2.0 * out.size * convolution_depth(instruction.rest, right), wider(left, right)
    pattern = r'lhs_contracting_dimensions":\[([^\]]*)' if library else r"lhs_contracting_dims=\{([\d,]*)\}"
    axes = [int(x) for x in re.findall(r"\d+", re.search(pattern, instruction.rest)[1])]
    return 2.0 * out.size * math.prod(left.sides[axis] for axis in axes), wider(left, right)


def wider(left: Array, right: Array) -> str:
    """The type of a product's operands; where one of them is of whole numbers or truth values, that of the other."""
    return max((left.dtype, right.dtype), key=lambda dtype: (dtype.startswith(("f", "bf")), bits(dtype)))


def operand_arrays(text: Text, instruction: Instruction) -> tuple[Array, ...]:
    """First array of each operand, from the instruction's own line where it says them, else from where they are made."""
    if inline := arrays(instruction.rest.partition("), ")[0]):
        return inline
    read = (text.operand(instruction, number) for number in range(len(instruction.operands)))
    return tuple(each.arrays[0] for each in read if each is not None and each.arrays)


def convolution_depth(rest: str, kernel: Array) -> float:
    """Products that are summed into one number of a convolution's result; those with zeros between inputs are left out."""
    labels = re.search(r"dim_labels=(\S+?)_(\S+?)->(\w+)", rest)[2]
    summed = math.prod(side for side, label in zip(kernel.sides, labels, strict=True) if label != "o")
    window = re.search(r"window=\{([^}]*)\}", rest)
    dilation = re.search(r"lhs_dilate=([\dx]+)", window[1]) if window else None
    return summed / math.prod(int(x) for x in dilation[1].split("x")) if dilation else float(summed)


def link_bytes(kind: str, result_bytes: float, count: int) -> float:
    """Bytes that one of ``count`` chips sends for a collective whose result on a chip has ``result_bytes``, in a ring."""
    if kind == "all-reduce":
        return result_bytes * 2 * (count - 1) / count
    if kind == "reduce-scatter":
        return result_bytes * (count - 1)
    if kind == "collective-permute":
        return result_bytes
    return result_bytes * (count - 1) / count


def total_bytes(found: Iterable[Array]) -> float:
    return sum(array.nbytes for array in found)
