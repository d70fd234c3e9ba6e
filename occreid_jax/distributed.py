"""Processes, devices and shardings: the only file that touches `jax.distributed`.

Three shardings serve everything: ``replicated`` (state and tables), ``rows`` (a batch over the devices) and ``steps`` (a chunk
[k, B] of batches over the devices); the optimiser's state has its own if that is to be spread. The mesh is Auto: the compiler
places the collectives.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from occreid_jax.errors import UserError

SMALL = 2**14  # elements of an array that is not worth being spread: a collective of its own would cost more

# What makes the TPU compiler send sums of gradients in pieces beside the backward pass, instead of all of them after it.
OVERLAP = MappingProxyType({
    "xla_enable_async_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_jf_crs_combiner_threshold_in_bytes": 2**20,  # gradients that travel together are never sent beside other work
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Devices:
    """A one-axis mesh and its shardings."""

    mesh: Mesh
    replicated: NamedSharding
    rows: NamedSharding
    steps: NamedSharding
    shard_optimizer: bool = False  # whether each device keeps and updates a piece of the optimiser's state
    overlap: bool = False  # whether gradients of TPUs are summed beside the backward pass

    @property
    def count(self) -> int:
        return self.mesh.devices.size

    @property
    def compiler_options(self) -> dict[str, Any]:
        """What the compiler of a training step is told: `OVERLAP` where that is asked for, on TPUs alone."""
        return dict(OVERLAP) if self.overlap and self.mesh.devices.flat[0].platform == "tpu" else {}

    def optimizer(self, state: Any) -> Any:
        """The sharding of every array of an optimiser's state: with ``shard_optimizer`` over the devices along the first axis
        that divides by their number, where there is one and the array is not small."""

        def one(x) -> NamedSharding:
            axis = next((axis for axis, side in enumerate(x.shape) if side % self.count == 0), None)
            if not self.shard_optimizer or axis is None or x.size < SMALL:
                return self.replicated
            return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "data"))

        return jax.tree.map(one, state)


def switches(mesh: Any) -> dict[str, bool]:
    """Those of `Devices` as the config block ``mesh`` has them; runs that are older than a switch have it off."""
    return {name: bool(mesh.get(name, False)) for name in ("shard_optimizer", "overlap")}


def initialise() -> None:
    """Joins the other processes if the environment says there are any. Must run before the first use of a device.

    ``OCCREID_COORDINATOR`` (host:port), ``OCCREID_PROCESSES`` and ``OCCREID_PROCESS`` describe the job; the value ``auto`` of
    OCCREID_COORDINATOR leaves all three to JAX (SLURM, TPU pods). Without them the run is one process: JAX's own detection
    misfires inside partial cluster environments.
    """
    coordinator = os.environ.get("OCCREID_COORDINATOR", "")
    if not coordinator:
        return
    if coordinator == "auto":
        jax.distributed.initialize()
        return
    try:
        processes, process = int(os.environ["OCCREID_PROCESSES"]), int(os.environ["OCCREID_PROCESS"])
    except (KeyError, ValueError) as error:
        raise UserError("OCCREID_COORDINATOR is set: OCCREID_PROCESSES and OCCREID_PROCESS must be numbers beside it") from error
    jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)


def devices(count: int = 0, **options: bool) -> Devices:
    """The mesh over ``count`` devices (0: all); ``options`` are the switches of `Devices`."""
    found = jax.devices()
    if count > len(found):
        raise UserError(f"config.mesh.devices is {count} but this machine has {len(found)}; 0 takes all")
    return over(found[: count or len(found)], **options)


def over(found: Sequence[jax.Device], **options: bool) -> Devices:
    """The mesh over the given devices; they need not be those of this machine, see `occreid_jax.programs.topologies`."""
    mesh = Mesh(np.array(found), ("data",))
    shardings = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",), (None, "data")))
    return Devices(mesh, *shardings, **options)


def is_lead() -> bool:
    """True in the one process that writes files and prints."""
    return jax.process_index() == 0


def in_lead(work: Callable[[], Any]) -> Any:
    """``work()`` in the lead process, None in the others. A `UserError` there is raised in all of them, so that none waits."""
    if jax.process_count() == 1:
        return work()
    result, told = None, np.zeros(2048, np.uint8)
    if is_lead():
        try:
            result = work()
        except UserError as error:
            text = str(error).encode("utf-8", "backslashreplace")[: len(told)]
            told[: len(text)] = np.frombuffer(text, np.uint8)
    told = bytes(np.asarray(multihost_utils.broadcast_one_to_all(told))).rstrip(b"\0")
    if told:
        raise UserError(told.decode("utf-8", "replace"))
    return result


def place(tree, sharding):
    """Host or device arrays -> device arrays under one sharding, or under a tree of them of the same structure.

    Every process must hold the same values; JAX's own comparison of whole arrays between processes is avoided.
    """

    def one(x, sharding):
        if isinstance(x, jax.Array):
            if jax.process_count() == 1:
                return jax.device_put(x, sharding)
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(one(jax.random.key_data(x), sharding))
            if not x.is_fully_addressable:
                return jax.jit(lambda x: x, out_shardings=sharding)(x)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    shardings = jax.tree.map(lambda _: sharding, tree) if isinstance(sharding, NamedSharding) else sharding
    return jax.tree.map(one, tree, shardings)


class StopRequest:
    """Remembers SIGTERM and SIGINT so that the loop can stop between two steps. A second SIGINT stops at once.

    Use as a context manager; ``requested(step)`` is the signal's number or 0, the same in every process. With several processes
    JAX's own notifier catches SIGTERM in any of them and lets all agree on a step, so no handler may be put in its place.
    """

    def __init__(self):
        self.signal = 0
        self.previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if jax.process_count() > 1:
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self.previous[number] = signal.signal(number, self.remember)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def remember(self, number: int, _frame) -> None:
        if self.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def requested(self, step: int) -> int:
        if jax.process_count() == 1:
            return self.signal
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
