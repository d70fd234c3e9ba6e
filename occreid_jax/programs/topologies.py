"""Chips by the name of their topology, without one at hand: the compilers of TPUs and of NVIDIA GPUs need none.

A TPU's compiler comes with ``libtpu``; its topologies are named as Google Cloud names slices ("v5e:2x4"). For GPUs the CUDA
plug-in compiles for a card that a text describes (h100_sxm.txtpb, from XLA's ``xla/backends/gpu/target_config/specs``).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import jax
from jax.experimental import topologies

from occreid_jax import distributed
from occreid_jax.distributed import Devices
from occreid_jax.errors import UserError

FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "8x8x4")
TPUS = {"v4": CUBES, "v5e": FLAT, "v5p": CUBES, "v6e": FLAT, "tpu7x": CUBES}  # generation -> shapes
GPUS = {"h100": ("1", "2", "4", "8")}  # card -> how many on one host
KNOWN = tuple(f"{name}:{shape}" for name, shapes in (TPUS | GPUS).items() for shape in shapes)
OPTIONS = {"v4": {"chip_config_name": "megacore"}}  # both cores as one device, as JAX shows them on such a machine
# The TPU compiler looks for the machine's own chips, complains of finding none, and lets one process at a time use them.
QUIET = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_MIN_LOG_LEVEL": "3",
}
# The GPU compiler would time kernels on the card to choose among them.
DEVICELESS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}


def is_gpu(name: str) -> bool:
    """Whether a topology is one of GPUs."""
    return name.partition(":")[0] in GPUS


def compiler_options(name: str) -> dict[str, bool | int]:
    """What the compiler must be told where there is no device."""
    return dict(DEVICELESS) if is_gpu(name) else {}


def open_topology(name: str, **options: bool) -> Devices:
    """The mesh over all chips of the topology ``name``, such as "v5e:2x4" or "h100:8"; ``options`` are the switches of `Devices`.

    Raises `UserError` for a name that is not in `KNOWN`, and where the compiler is not installed.
    """
    if name not in KNOWN:
        listed = "; ".join(f"{each}: {' '.join(shapes)}" for each, shapes in (TPUS | GPUS).items())
        raise UserError(f"topology '{name}' is unknown; name and shape with a colon between, as in v5e:2x4, of {listed}")
    return distributed.over(gpus(name) if is_gpu(name) else tpus(name), **options)


def tpus(name: str) -> list[jax.Device]:
    """The chips of a TPU slice."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"topology '{name}' needs the TPU compiler: pip install -e \".[tpu]\"; it works without a TPU")
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    options = OPTIONS.get(name.partition(":")[0], {})
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)


def gpus(name: str) -> list[jax.Device]:
    """The cards of one host."""
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise UserError(f"topology '{name}' needs the CUDA compiler: pip install -e \".[cuda]\"; it works without a GPU")
    card, _, count = name.partition(":")
    target = (Path(__file__).parent / f"{card}_sxm.txtpb").read_text()
    shape = f"1x1x{count}"  # slices x hosts x cards
    return list(topologies.get_topology_desc(platform="cuda", target_config=target, topology=shape).devices)
