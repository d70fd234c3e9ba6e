"""The same batches as `occreid_jax.data.resident`, read through Grain when the tables do not fit on the device.

Element i of the Grain pipeline is the table row ``indices.flat[i]``: a pure function of the position. So there is no iterator
state to save; a resumed run gives the step to start from. Threads, not processes: the rows are memory-mapped and need no
decoding, and worker processes would split the batches among themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import grain
import numpy as np


class _Rows:
    """What Grain reads from: element i is row ``positions[i]`` of every table."""

    def __init__(self, tables: Mapping[str, np.ndarray], positions: np.ndarray):
        self._tables, self._positions = tables, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        position = self._positions[index]
        row = max(int(position), 0)
        element = {name: table[row] for name, table in self._tables.items()}
        return element | {"index": np.int32(row), "valid": np.bool_(position >= 0)}


def stream_batches(
    tables: Mapping[str, np.ndarray],
    indices: np.ndarray,
    start_step: int = 0,
    chunk: int = 1,
    num_threads: int = 2,
    prefetch: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
    """Chunks of batches, in order.

    Args:
      tables: name -> [N, ...] arrays, for example memory maps.
      indices: int32 [steps, B] rows from the sampler; -1 is a row that only pads. On several processes, hand over this
        process's columns.
      start_step: the row of ``indices`` to begin with.
      chunk: how many batches come at once; the last chunk is shorter if they do not divide.
      num_threads: threads that read ahead.
      prefetch: chunks that are read ahead.

    Yields:
      name -> [k, B, ...] of the tables' dtypes, with ``index`` int32 [k, B] and ``valid`` bool [k, B] as
      `occreid_jax.data.resident.gather` gives them.
    """
    indices = np.asarray(indices)
    if start_step >= len(indices):
        return iter(())
    size = indices.shape[1]
    rows = grain.MapDataset.source(_Rows(tables, indices[start_step:].reshape(-1)))
    # One stack of k * B rows and then a view: batching twice would copy every pixel twice.
    chunks = rows.batch(chunk * size).map(
        lambda batch: {name: value.reshape(-1, size, *value.shape[1:]) for name, value in batch.items()}
    )
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return iter(chunks.to_iter_dataset(options))
