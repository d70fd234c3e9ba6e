"""From image files to batches: everything between a data set on disk and the arrays that a training step gathers.

Public, each from its own module (the names below can also be imported from this package):

* `readers`   ``open_dataset(name, root)`` finds the files and checks that they make a benchmark -> ``Dataset``
* `decode`    one image file -> uint8 [H, W, 3]; what is wrong with files that cannot be read
* `table`     ``build_table(split, image_size, resize_filter, cache)`` decodes once -> a uint8 [N, H, W, 3] memory map;
  ``build_parts_table`` does the same for the body-part labels of a synthetic set
* `sampler`   ``make_sampler(block, labels)(seed, epoch)`` -> int32 [steps, B]; ``steps_per_epoch``; ``training_labels``
* `resident`  ``device_tables`` copies tables to the devices, ``gather`` takes a batch from them, ``fits`` says if they fit
* `stream`    ``stream_batches`` gives the same batches from the memory maps when the tables do not fit
* `parsing`   body-part labels: names, visibility, mirror image, and the ground truth of the synthetic sets
* `doctor`    ``examine(dataset)`` says in words what a data set holds and what is odd about it

A user's mistake raises `DataError`, whose message is one line with the remedy.
"""

from __future__ import annotations

import importlib

from occreid_jax.errors import DataError

_PUBLIC = {
    "open_dataset": "readers",
    "build_table": "table",
    "build_parts_table": "table",
    "make_sampler": "sampler",
    "steps_per_epoch": "sampler",
    "training_labels": "sampler",
    "device_tables": "resident",
    "gather": "resident",
    "fits": "resident",
    "stream_batches": "stream",
    "read_truth": "parsing",
    "examine": "doctor",
}

__all__ = ["DataError", *_PUBLIC]


def __getattr__(name: str):
    # Lazy, so that a reader can be used without loading JAX and Grain.
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
