"""Tables that live in device memory, replicated: a batch is then a gather inside the training step.

Replicated on purpose: gathering rows of a replicated table by an index that is sharded over the devices needs no communication,
whereas a table sharded over the devices would cost an all-reduce of the whole batch at every step.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def device_tables(tables: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """Copies host tables to the devices.

    Args:
      tables: name -> array [N, ...], for example a memory map; every process must hold the same ones.
      sharding: how to lay them out, normally replicated (``NamedSharding(mesh, PartitionSpec())``).

    Returns:
      name -> global array of the same shape and dtype.
    """
    return {
        name: jax.make_array_from_callback(table.shape, sharding, lambda index, table=table: np.ascontiguousarray(table[index]))
        for name, table in tables.items()
    }


def gather(tables: Mapping[str, Any], index: jax.Array) -> dict[str, jax.Array]:
    """One batch from resident tables; call it inside ``jit``.

    Args:
      tables: name -> [N, ...].
      index: int32 [B] rows; -1 is a row that only pads the batch.

    Returns:
      name -> [B, ...], with ``index`` int32 [B] and ``valid`` bool [B]. A padding row shows row 0 and is not valid.
    """
    valid = index >= 0
    rows = jnp.where(valid, index, 0)
    batch = {name: jnp.take(table, rows, axis=0, mode="clip") for name, table in tables.items()}
    return batch | {"index": rows, "valid": valid}


def fits(nbytes: int, device: jax.Device, share: float = 0.5) -> bool:
    """Whether ``nbytes`` of tables may take their place in a device's memory.

    They may take ``share`` of what is free; the rest is for parameters and activations. A CPU device has no counter, so there
    the memory that the system calls available counts. A device that says nothing is taken to be large enough.
    """
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return nbytes <= share * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if device.platform == "cpu":
        available = available_memory()
        return available is None or nbytes <= share * available
    return True


def available_memory() -> int | None:
    """Bytes of main memory that this process may still take, or None where the system does not say."""
    amounts = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                amounts.append(int(line.split()[1]) * 1024)
    except OSError:
        try:
            amounts.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (ValueError, OSError):
            pass
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()  # a container's limit, or "max"
        if limit.isdigit():
            amounts.append(int(limit))
    except OSError:
        pass
    return min(amounts, default=None)
