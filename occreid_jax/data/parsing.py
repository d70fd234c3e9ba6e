"""Reading the ground truth that the renderer writes beside a synthetic set; `occreid_jax.parts` says what a label means."""

from __future__ import annotations

import csv
import dataclasses

from occreid_jax.errors import DataError
from occreid_jax.types import Dataset

_COLUMNS = ("folder", "name", "pid", "camid", "occlusion", "occluder", "covered_fraction", "viewpoint")


@dataclasses.dataclass(frozen=True)
class TruthRecord:
    """One line of truth/index.csv: what the renderer knows of one picture."""

    folder: str
    name: str  # base name of the picture
    pid: int
    camid: int
    occlusion: str  # "none", "object", "person" or "crop" (a side of the picture cuts the person)
    occluder: str  # what covers the person, or the side that is cut; empty if nothing is
    covered_fraction: float  # share of the whole person that is covered or lies outside the picture, 0 .. 1
    viewpoint: str


def read_truth(dataset: Dataset, split_name: str) -> tuple[TruthRecord, ...]:
    """What the renderer knows of every picture of a split, in the split's order.

    Args:
      dataset: a synthetic set (``dataset.truth`` is not None).
      split_name: ``"train"``, ``"query"`` or ``"gallery"``.

    Raises:
      DataError: the set has no ground truth, the file is missing or damaged, or a picture has no line in it.
    """
    split = getattr(dataset, split_name)
    if dataset.truth is None:
        raise DataError(f"{dataset.name} has no ground truth: only synthetic sets have")
    path = dataset.truth / "index.csv"
    records: dict[str, TruthRecord] = {}
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}: render the benchmark again")
            for row in reader:
                record = TruthRecord(
                    folder=row["folder"],
                    name=row["name"],
                    pid=int(row["pid"]),
                    camid=int(row["camid"]),
                    occlusion=row["occlusion"],
                    occluder=row["occluder"],
                    covered_fraction=float(row["covered_fraction"]),
                    viewpoint=row["viewpoint"],
                )
                records[f"{record.folder}/{record.name}"] = record
    except FileNotFoundError:
        raise DataError(f"{path} is missing: render the benchmark again") from None
    except DataError:
        raise
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}): render the benchmark again") from None
    absent = [name for name in split.names if name not in records]
    if absent:
        raise DataError(f"{path} has no line for {len(absent):,} pictures such as {absent[0]}: render the benchmark again")
    return tuple(records[name] for name in split.names)
