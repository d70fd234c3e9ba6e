"""What a compiled program needs and is estimated to take, as one plain dictionary that JSON can hold.

Bytes and FLOPs are those of one chip. The compiler of TPUs notes estimated cycles beside most instructions; there are none for
gathers, loops, collectives, copies that run beside other work, and scalars. A collective's time is counted instead: the bytes
that a chip sends for it in a ring, over what its links carry. The step is the sum of both, as if nothing ran side by side.
"""

from __future__ import annotations

import collections
from typing import Any

from occreid_jax.chips import Chip, chip_of
from occreid_jax.programs import hlo
from occreid_jax.programs.compiled import EMBED, Program, needed_bytes
from occreid_jax.programs.hlo import Instruction, Text, collective_kind

PHASES = ("forward", "backward", "update", "augmentation", "other")
SMALL = 2**20  # bytes: shorter gathers, scatters, sorts and copies are not listed by themselves
FEW = 64  # bytes: shorter results are scalars, which need no estimate
LISTED = 12  # dearest instructions
# Kinds of instructions that cost nothing, or next to nothing: they need no estimate.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "copy-done", "slice-done",
    "after-all", "opt-barrier",
}  # fmt: skip


def phase_of(scope: str, training: bool = True) -> str:
    """Which part of a program a scope belongs to."""
    parts = scope.split("/")
    if not training:
        return "forward" if "/" in scope else "other"
    if "augment" in parts:
        return "augmentation"
    if "update" in parts:
        return "update"
    return "backward" if "transpose(" in scope else "forward" if "jvp(" in scope else "other"


def figures(program: Program, text: Text) -> dict[str, Any]:
    """All figures of ``program``, whose read HLO is ``text``."""
    devices = program.devices.mesh.devices
    chip = chip_of(devices.flat[0].device_kind)
    cost = program.executable.cost_analysis() or {}
    products = product_figures(text)
    compiled_flops = cost.get("flops", 0.0) or sum(products["flops"].values())
    sent = collective_figures(text, devices.size, chip)
    found = {
        "program": program.name,
        "chips": devices.size,
        "device": devices.flat[0].device_kind,
        "batch_size": program.facts.batch_size,
        "compile_seconds": program.seconds,
        "memory": memory_figures(program, chip),
        "flops": {
            "compiler": compiled_flops,
            "analytic": program.flops,
            "ratio": compiled_flops / program.flops if program.flops else None,
        },
        "accessed_bytes": cost.get("bytes accessed"),
        "estimate": estimate(program, text, chip, sum(row["ring_seconds"] for row in sent)),
        "collectives": sent,
        "products": products,
    }
    return found | notable(text)


def memory_figures(program: Program, chip: Chip) -> dict[str, float]:
    """Bytes of one chip: arguments, results that are no arguments any more, work space, code, peak and its share of the chip."""
    memory = program.executable.memory_analysis()
    needed = needed_bytes(program.executable)
    return {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "work": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "peak": needed,
        "chip": chip.memory,
        "share": needed / chip.memory,
    }


def estimate(program: Program, text: Text, chip: Chip, ring_seconds: float) -> dict[str, Any] | None:
    """Times in seconds; None where the compiler estimates nothing (GPUs)."""
    cycles, training = collections.Counter(), program.name != EMBED
    for each in text.top:
        cycles[phase_of(each.scope, training)] += each.cycles
    if not sum(cycles.values()):
        return None
    seconds = sum(cycles.values()) / chip.clock
    step = seconds + ring_seconds
    dearest = sorted((each for each in text.top if each.cycles), key=lambda each: -each.cycles)[:LISTED]
    return {
        "phases": {phase: cycles[phase] / chip.clock for phase in PHASES},
        "compute_seconds": seconds,
        "ring_seconds": ring_seconds,
        "step_seconds": step,
        "images_per_second": program.facts.batch_size / step,
        "utilisation": program.flops / step / chip.flops,
        "without_estimate": without_estimate(text),
        "dearest": [described(each) | {"seconds": each.cycles / chip.clock} for each in dearest],
    }


def without_estimate(text: Text) -> dict[str, int]:
    """How many instructions of each kind make arrays of more than a few numbers, and have no estimate; collectives left out."""
    found = collections.Counter()
    for each in text.top:
        if each.cycles or each.kind in FREE or each.nbytes < FEW:
            continue
        inside = list(text.inside(each)) if each.kind == "fusion" else []
        kinds = {one.kind for one in inside}  # a fusion is named after the gather or scatter that it is made for
        if not any(map(collective_kind, (each, *inside))):
            found[next((kind for kind in ("gather", "scatter") if kind in kinds), each.kind)] += 1
    return dict(found.most_common())


def collective_figures(text: Text, count: int, chip: Chip) -> list[dict[str, Any]]:
    """One row for each kind of collective and type of numbers, the largest first."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for each in text.collectives():
        kind, results = collective_kind(each), hlo.collective_results(each)
        for dtype in sorted({array.dtype for array in results}):
            nbytes = hlo.total_bytes(array for array in results if array.dtype == dtype)
            row = rows.setdefault((kind, dtype), dict(kind=kind, dtype=dtype, count=0, bytes=0.0, link_bytes=0.0))
            row["count"] += 1
            row["bytes"] += nbytes
            row["link_bytes"] += hlo.link_bytes(kind, nbytes, count)
    for row in rows.values():
        row["ring_seconds"] = row["link_bytes"] / chip.ring
    return sorted(rows.values(), key=lambda row: -row["link_bytes"])


def product_figures(text: Text) -> dict[str, Any]:
    """FLOPs of matrix products by the type of their operands, and the float32 ones by where they come from."""
    flops, wide = collections.Counter(), collections.Counter()
    for each in text.instructions:
        if found := hlo.product_flops(text, each):
            flops[found[1]] += found[0]
            if found[1] == "f32":
                wide[each.scope] += found[0]
    total = sum(flops.values())
    rows = [{"scope": scope, "flops": value, "share": value / total} for scope, value in wide.most_common()]
    return {"flops": dict(flops.most_common()), "float32": rows}


def notable(text: Text) -> dict[str, list[dict[str, Any]]]:
    """Loops, and gathers, scatters, sorts and layout copies of at least `SMALL` bytes."""
    found = {name: [] for name in ("loops", "gathers", "scatters", "sorts", "copies")}
    for each in text.instructions:
        if each.kind == "while":
            found["loops"].append(described(each))
        elif each.nbytes >= SMALL and each.kind in ("gather", "scatter", "sort"):
            found[f"{each.kind}s"].append(described(each))
    for each in text.top:
        if each.kind in ("copy", "transpose", "reshape") and each.nbytes >= SMALL:
            found["copies"].append(described(each))
    return {name: sorted(rows, key=lambda row: -row["bytes"]) for name, rows in found.items()}


def described(instruction: Instruction) -> dict[str, Any]:
    """An instruction as plain values."""
    made, nbytes = instruction.arrays, instruction.nbytes
    shape = " ".join(map(str, made[:4])) + (" ..." if len(made) > 4 else "")
    return dict(kind=instruction.kind, name=instruction.name, shape=shape, bytes=nbytes, scope=instruction.scope)
