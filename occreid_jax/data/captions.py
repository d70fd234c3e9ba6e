"""What the renderer says of every person of a synthetic set: attributes, and one English sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from occreid_jax.data.parsing import read_truth
from occreid_jax.errors import DataError
from occreid_jax.files import read_json
from occreid_jax.types import Dataset


class Described(NamedTuple):
    """One picture: who is on it, in words, and what stands in front."""

    attributes: Mapping[str, Any]  # as `occreid_jax.synthetic.captions` takes them
    caption: str  # of the identity: what cannot be seen from this side is told as well
    occluder: str  # what covers the person: an object's name or "person"; empty if nothing does, or the picture's edge


def read_captions(dataset: Dataset, split_name: str) -> tuple[Described, ...]:
    """What is known of every picture of a split ("train", "query" or "gallery"), in the split's order.

    Raises:
      DataError: the set has no captions, the files are missing or damaged, or a picture's identity is not described there
        (a benchmark's distractors are not).
    """
    if dataset.truth is None:
        raise DataError(f"{dataset.name} has no captions: only synthetic sets have, take dataset=synthetic")
    split, path = getattr(dataset, split_name), dataset.truth / "identities.json"
    known = read_json(path)
    absent = [name for name, pid in zip(split.names, split.pids, strict=True) if str(pid) not in known]
    if absent:
        raise DataError(f"{path} describes nobody for {len(absent):,} pictures such as {absent[0]}: take another split")
    found = []
    for record, pid in zip(read_truth(dataset, split_name), split.pids, strict=True):
        try:
            entry = known[str(pid)]
            occluder = record.occluder if record.occlusion in ("object", "person") else ""
            found.append(Described(dict(entry["attributes"]), str(entry["caption"]), occluder))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error!r} of identity {pid}): render the benchmark again") from None
    return tuple(found)
