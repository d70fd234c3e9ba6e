"""Data set readers: ``open_dataset("market1501", root)`` -> `occreid_jax.types.Dataset`.

A reader is a function ``read(root, need_train, **options) -> Dataset`` in a file of its own and one line in `READERS`. It looks
at file names only; images are opened by `occreid_jax.data.table`. Every reader ends with `checks.check_dataset`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from pathlib import Path

from occreid_jax.errors import DataError
from occreid_jax.types import Dataset

READERS = {
    "market1501": "occreid_jax.data.readers.market1501:read",
    "dukemtmc": "occreid_jax.data.readers.dukemtmc:read",
    "occluded_duke": "occreid_jax.data.readers.occluded_duke:read",
    "occluded_reid": "occreid_jax.data.readers.occluded_reid:read",
    "occluded_market": "occreid_jax.data.readers.occluded_market:read",
    "p_dukemtmc": "occreid_jax.data.readers.p_dukemtmc:read",
    "partial_reid": "occreid_jax.data.readers.partial_reid:read",
    "msmt17": "occreid_jax.data.readers.msmt17:read",
    "folder": "occreid_jax.data.readers.folder:read",
    "synthetic": "occreid_jax.data.readers.synthetic:read",
}


def open_dataset(name: str, root: Path | str, need_train: bool = True, **options) -> Dataset:
    """Finds the files of a data set and checks that they make a benchmark.

    Args:
      name: a key of `READERS`.
      root: the folder that the data set lies in; each reader says which trees it knows.
      need_train: False where the set is only to be evaluated: a training set may be missing then, and is an empty split.
      options: the reader's own options, for example ``camera="name"`` of the folder reader.

    Raises:
      DataError: unknown name or option, missing folder, files that cannot be understood, or a set on which no result could
        be computed.
    """
    if name not in READERS:
        close = difflib.get_close_matches(name, READERS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(f"there is no data set {name!r}: {hint}known are {', '.join(sorted(READERS))}")
    module, function = READERS[name].split(":")
    read = getattr(importlib.import_module(module), function)
    known = list(inspect.signature(read).parameters)[2:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise DataError(
            f"data set {name!r} has no option {', '.join(map(repr, unknown))}: it takes {', '.join(known) or 'no options'}"
        )
    return read(Path(root).expanduser(), need_train, **options)
