"""Running a jitted function over a whole table, in order, on any number of devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from occreid_jax.distributed import Devices, place


def run_pass(
    function: Callable[[dict], Any],
    columns: Mapping[str, np.ndarray],
    batch_size: int,
    devices: Devices,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Applies ``function`` to batches of ``columns`` (arrays [N, ...]) and joins the results: a pytree of numpy [N, ...].

    ``function(batch)`` must be jitted and map [B, ...] to a pytree of [B, ...]. The last batch is padded with copies of row 0,
    marked in ``batch["valid"]`` and cut off again, so only one shape is compiled. One batch is in flight while the next is read.
    """
    total = len(next(iter(columns.values())))
    batch_size = -(-min(batch_size, total) // devices.count) * devices.count
    results, pending = [], None

    def collect(item) -> None:
        output, count = item
        results.append(jax.tree.map(lambda x: np.asarray(jax.device_get(x))[:count], output))

    for start in range(0, total, batch_size):
        rows = np.arange(start, start + batch_size)
        valid = rows < total
        rows = np.where(valid, rows, 0)
        batch = {name: np.ascontiguousarray(column[rows]) for name, column in columns.items()}
        batch |= {"index": rows.astype(np.int32), "valid": valid}
        output = function(place(batch, devices.rows))
        if pending is not None:
            collect(pending)
        pending = (output, int(valid.sum()))
        if progress is not None:
            progress(min(start + batch_size, total), total)
    collect(pending)
    return jax.tree.map(lambda *pieces: np.concatenate(pieces), *results)
