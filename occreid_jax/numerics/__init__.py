"""Reproduces reference files: outputs of official PyTorch code that this package must agree with.

`compare_file(path)` recognises what kind of outputs a file holds, by its content and not by its name, computes every one of them
with this package and compares. A new kind is a `Kind` in a file here and one line in `KINDS`.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path

import jax

from occreid_jax.errors import UserError
from occreid_jax.numerics.kind import Kind
from occreid_jax.weights.reference import Comparison, ReferenceFile

KINDS = {
    "losses of TransReID": "occreid_jax.numerics.losses:TRANSREID",
    "losses of CLIP-ReID": "occreid_jax.numerics.losses:CLIP_REID",
    "losses of torchreid and fast-reid": "occreid_jax.numerics.losses:OTHER",
    "metrics of features": "occreid_jax.numerics.rankings:FEATURES",
    "metrics of distances": "occreid_jax.numerics.rankings:DISTANCES",
    "re-ranking": "occreid_jax.numerics.rankings:RERANKING",
    "optimiser": "occreid_jax.numerics.optimisers:OPTIMISER",
    "schedules": "occreid_jax.numerics.optimisers:SCHEDULES",
    "trajectory": "occreid_jax.numerics.trajectories:TRAJECTORY",
    "TransReID": "occreid_jax.numerics.encoders:TRANSREID",
    "jigsaw order": "occreid_jax.numerics.encoders:JIGSAW",
    "CLIP-ReID": "occreid_jax.numerics.clip_reid:CLIP_REID",
    "CLIP text tower": "occreid_jax.numerics.clip_text:CLIP_TEXT",
    "positions": "occreid_jax.numerics.encoders:POSITIONS",
    "DPM heads": "occreid_jax.numerics.dpm:HEADS",
    "masked matching": "occreid_jax.numerics.dpm:MATCHING",
    "DPM": "occreid_jax.numerics.dpm:DPM",
    "SPT losses": "occreid_jax.numerics.spt:LOSSES",
    "SPT selection": "occreid_jax.numerics.spt:SELECTION",
    "SPT saliency": "occreid_jax.numerics.spt:SALIENCY",
    "SPT re-identification": "occreid_jax.numerics.spt:REIDENTIFICATION",
    "FED units": "occreid_jax.numerics.fed:UNITS",
    "FED": "occreid_jax.numerics.fed:NETWORK",
    "DPEFormer units": "occreid_jax.numerics.dpeformer:UNITS",
    "DPEFormer": "occreid_jax.numerics.dpeformer:NETWORK",
    "small-kernel aggregation": "occreid_jax.numerics.lsnet:AGGREGATION",
    "LSNet": "occreid_jax.numerics.lsnet:LSNET",
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one file."""

    kind: str  # a key of `KINDS`
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        return all(comparison.passed for comparison in self.comparisons)

    @property
    def worst_noise(self) -> float:
        """Largest error in units of the official code's rounding error; nan if the file stores none."""
        return max((each.noise_multiple for each in self.comparisons if not math.isnan(each.noise_multiple)), default=math.nan)


def load(name: str) -> Kind:
    """The kind that `KINDS` names."""
    module, _, attribute = KINDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def recognise(file: ReferenceFile) -> str:
    """The name of the one kind that knows ``file``; `UserError` if none or several do."""
    found = [name for name in KINDS if load(name).recognises(file)]
    if not found:
        raise UserError(f"{file.path}: no comparison knows this kind of file; known: {', '.join(KINDS)}")
    if len(found) > 1:
        raise UserError(f"{file.path}: several comparisons claim this file: {', '.join(found)}")
    return found[0]


PRODUCTS = {"float64": "F64_F64_F64", "float32": "highest"}
"""How matrix products of float32 arrays are summed, as `jax.default_matmul_precision` names it."""


def compare_file(path: str | Path, products: str = "float64") -> Result:
    """Computes every output of the file and compares it.

    ``products`` is a key of `PRODUCTS`. With "float64" the sums inside matrix products are exact to float32, and what is compared
    are the formulas: a scalar for which the official rounding happened to be tiny cannot fail for the order of a sum. "float32"
    adds this machine's own rounding, which is what a run has. All arrays are float32 in both.

    An output that its kind did not compare counts as failed, so nothing passes by omission. `UserError` for a file that cannot be
    read, is of no known kind, or lacks something that its outputs need; any other exception is a fault of this program.
    """
    file = ReferenceFile(path)
    name = recognise(file)
    with jax.default_matmul_precision(PRODUCTS[products]):
        comparisons = list(load(name).compare(file))
    compared = {comparison.key for comparison in comparisons}
    for key in file.outputs:
        if key not in compared:
            comparisons.append(Comparison(key, math.inf, math.nan, 0.0, 0.0, "not compared"))
    return Result(name, tuple(comparisons))
