"""The embedded benchmark that `occreid_jax.synthetic` renders: Market-1501's layout with ground truth beside it.

::

    root/bounding_box_train/  query/  bounding_box_test/       JPEG pictures
    root/truth/<folder>/<stem>.png                             body-part labels, see occreid_jax.data.parsing
    root/truth/index.csv                                       occlusion and viewpoint of every picture
    root/benchmark.json                                        size, split, seed, version, counts

Results on it are always called synthetic: the protocol's name begins with that word.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path

from occreid_jax.data.readers.files import list_pictures, require_folders
from occreid_jax.data.readers.market1501 import FOLDERS, TREE, read_market_layout
from occreid_jax.errors import DataError
from occreid_jax.types import Dataset

_KEYS = ("size", "split", "seed", "version")


def read(root: Path, need_train: bool = True) -> Dataset:
    """Opens a rendered benchmark.

    Raises:
      DataError: no benchmark.json, a damaged one, pictures missing, or whatever `read_market_layout` finds wrong.
    """
    require_folders(root, (), f"a rendered benchmark: benchmark.json, truth/, {TREE}")
    path = root / "benchmark.json"
    try:
        facts = json.loads(path.read_text())
        missing = [key for key in _KEYS if key not in facts]
    except FileNotFoundError:
        raise DataError(f"{root} has no benchmark.json, so it is not a rendered benchmark: render it again") from None
    except (ValueError, TypeError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}): render the benchmark again") from None
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: render the benchmark again")
    _check_complete(root, facts.get("counts") or {})
    # Other people are drawn from another seed, so results do not compare; the usual seed, 0, is not spelled out.
    seed = f"-seed{facts['seed']}" if facts["seed"] else ""
    name = f"synthetic-{facts['size']}-{facts['split']}{seed}"
    # The seed draws the cameras, the same for every size and split but "pretrain", which has others, and two networks of them.
    of_their_own = "-pretrain" if facts["size"] == "pretrain" else ""
    cameras = f"synthetic{of_their_own}{seed}"
    dataset = read_market_layout(root, need_train, name, f"{name}/std@{facts['version']}", cameras, truth=root / "truth")
    if of_their_own:
        tested = {role: dataclasses.replace(getattr(dataset, role), cameras=f"{cameras}-test") for role in ("query", "gallery")}
        dataset = dataclasses.replace(dataset, **tested)
    return dataclasses.replace(dataset, notes=(f"rendered pictures, no real people; seed {facts['seed']}", *dataset.notes))


def _check_complete(root: Path, counts: dict[str, int]) -> None:
    """Compares the pictures on disk with the counts that the renderer wrote down; a half-copied set would score differently."""
    for folder in FOLDERS.values():
        if folder in counts and (root / folder).is_dir():
            found = len(list_pictures(root / folder, collections.Counter()))
            if found != counts[folder]:
                raise DataError(
                    f"{root / folder} holds {found:,} pictures but benchmark.json says {counts[folder]:,}: "
                    "render the benchmark again"
                )
