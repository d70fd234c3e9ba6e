"""What the vendors' data sheets say of accelerators: peaks, memory and links. One table for measured and for estimated speed."""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One device as JAX shows it."""

    flops: float  # dense bfloat16 peak in FLOP/s, without sparsity
    bandwidth: float  # of its memory, bytes/s
    memory: float  # bytes
    ring: float  # bytes/s that leave it in a ring both ways round: two links of a TPU, all NVLinks of a GPU
    clock: float  # Hz, of the cycles that the TPU compiler estimates; of GPUs the boost clock


# By the beginning of JAX's name of the device. Sources: the system architecture pages of Cloud TPU (v4, v5e, v5p, v6e, 7x: the
# two devices of a 7x chip share its figures) and NVIDIA's data sheets (A100 80GB SXM, H100 SXM, H200 SXM). Of links they give
# all together: a TPU has 4 (v5e, v6e) or 6 of them. Clocks of TPUs are those that explain the peaks of their matrix units.
CHIPS = {
    "NVIDIA A100": Chip(312e12, 2039e9, 80 * GIB, 300e9, 1.41e9),
    "NVIDIA H100": Chip(989e12, 3352e9, 80 * GIB, 450e9, 1.98e9),
    "NVIDIA H200": Chip(989e12, 4800e9, 141 * GIB, 450e9, 1.98e9),
    "TPU v4": Chip(275e12, 1228e9, 32 * GIB, 100e9, 1.05e9),
    "TPU v5 lite": Chip(197e12, 819e9, 16 * GIB, 100e9, 1.5e9),
    "TPU v5e": Chip(197e12, 819e9, 16 * GIB, 100e9, 1.5e9),
    "TPU v5": Chip(459e12, 2765e9, 95 * GIB, 200e9, 1.75e9),
    "TPU v6": Chip(918e12, 1640e9, 32 * GIB, 224e9, 1.75e9),
    "TPU7x": Chip(1154e12, 3690e9, 96 * GIB, 100e9, 1.9e9),
}


def chip_of(kind: str) -> Chip | None:
    """The data sheet of a device by ``device_kind``; None where there is none (CPUs). The longest name that fits counts."""
    names = [name for name in CHIPS if kind.startswith(name)]
    return CHIPS[max(names, key=len)] if names else None
