"""What only a whole training batch shows (`Method.illustrate`): rows of pictures, matrices and numbers, of one run or of several.

Float arrays are told apart by shape: [n, k, H, W, 3] is n rows of k pictures, [h, h] a matrix, [n] numbers. Names mean nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.data.sampler import make_sampler
from occreid_jax.errors import UserError
from occreid_jax.files import write_json
from occreid_jax.report.curves import histogram, matrix_chart
from occreid_jax.report.pictures import data_uri, denormalise
from occreid_jax.train.setup import Setup

ROWS = 8  # of pictures that are drawn
HEIGHT = 192  # pixels of a picture; keeps the file small
BINS = 24
Beside = tuple[Path, Callable[[], tuple[Setup, Any, Any]]]  # another run's folder, and what opens it


@dataclasses.dataclass(frozen=True)
class Illustrations:
    """What the template shows of `Method.illustrate`."""

    entries: list[dict[str, Any]]  # one per caption
    stage: str  # whose sampler drew the batch
    pictures: int  # in the batch
    labels: list[str]  # of the runs, this one first; empty if there is no other


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """The arrays of one run and how its pictures were normalised."""

    label: str
    arrays: dict[str, np.ndarray]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def illustrate(workdir: Path, setup: Setup, params: Any, extra: Any, beside: Sequence[Beside] = ()) -> Illustrations | None:
    """Runs `Method.illustrate` on one batch and draws it; None if there is nothing to show.

    ``beside`` names other runs: theirs are taken with their own network, data tables and settings on the same training pictures
    with the same random key, and drawn beside. Writes <workdir>/illustrations.json, or removes an old one if there is nothing.
    Raises `UserError` if there is no batch that other runs could be shown on, or if they have other training pictures.
    """
    stages = setup.method.stages()
    if not stages or stages[-1].sampler is None:
        if beside:
            raise UserError(f"{workdir}: this run trains nothing, so it has no training batch to show {beside[0][0]} on")
        return None
    if not len(setup.dataset.train):
        if beside:
            raise UserError(f"{workdir}: its training pictures are gone, so there is no batch to show {beside[0][0]} on")
        return None
    stage, seed = stages[-1], setup.config.seed
    rows = make_sampler(stage.sampler, setup.labels)(seed, 0)[0]
    names = labels([workdir, *(folder for folder, _ in beside)])
    sources = [source(names[0], setup, params, extra, rows, seed)]
    for name, (folder, opened) in zip(names[1:], beside, strict=True):
        other, *model = opened()
        if other.dataset.train.names != setup.dataset.train.names:
            ours, theirs = setup.dataset, other.dataset
            raise UserError(
                f"{folder}: its training pictures ({theirs.protocol}, {len(theirs.train):,}) are not those of {workdir} "
                f"({ours.protocol}, {len(ours.train):,}); choose a run on the same dataset"
            )
        sources.append(source(name, other, *model, rows, seed))
    path = Path(workdir) / "illustrations.json"
    captions = list(dict.fromkeys(caption for each in sources for caption in each.arrays))
    if not captions:
        path.unlink(missing_ok=True)
        return None
    measured = [{caption: measures(values) for caption, values in each.arrays.items() if values.ndim < 3} for each in sources]
    write_json(path, {
        "stage": stage.name,
        "pictures": len(rows),
        "illustrations": measured[0],
        "beside": dict(zip(names[1:], measured[1:], strict=True)),
    })  # fmt: skip
    entries = [entry(caption, [each for each in sources if caption in each.arrays], bool(beside)) for caption in captions]
    return Illustrations(entries, stage.name, len(rows), names if beside else [])


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart, one name of each at least."""
    parts = [Path(folder).absolute().parts for folder in folders]
    for length in range(1, max(len(each) for each in parts) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{each[-1]} ({number})" for number, each in enumerate(parts, start=1)]  # a folder that is named twice


def source(label: str, setup: Setup, params: Any, extra: Any, rows: np.ndarray, seed: int) -> Source:
    """`Method.illustrate` on the training pictures ``rows`` int32 [B] (-1 only fills the batch), with a run's own tables.

    Tables are read only if the method has something to show. Raises `TypeError` for an array of no known shape.
    """
    method, settings = setup.method, setup.config.method
    valid = rows >= 0
    rows = np.where(valid, rows, 0).astype(np.int32)
    truth = setup.dataset.truth is not None
    key = jax.random.key(seed)

    names: list[str] = []  # in the method's order: dictionaries come out of a jitted function sorted

    def arrays(params, extra, batch, key):
        shown = method.illustrate(params, extra, method.transform(batch), key)
        names[:] = list(shown)
        for name, values in shown.items():
            if not known(values):
                raise TypeError(f"illustrate: '{name}' is {values.dtype} {values.shape}, neither pictures, matrix nor numbers")
        return [values.astype(jnp.float32) for values in shown.values()]

    batch = {"label": setup.labels[rows], "camid": setup.camids("train")[rows], "index": rows, "valid": valid}
    shape = (len(rows), *setup.meta.image_size)
    abstract = batch | {"image": jax.ShapeDtypeStruct((*shape, 3), np.uint8)}
    labels = {"parts": jax.ShapeDtypeStruct(shape, np.uint8), "parsed": jax.ShapeDtypeStruct(shape[:1], np.bool_)}
    asked = {name for stage in method.stages() for name in stage.inputs} | ({"parts"} if truth else set())
    labels = {name: each for name, each in labels.items() if name in asked}
    shared = setup.shared(method.illustration_shared)
    abstract |= labels | {name: jax.ShapeDtypeStruct(table.shape, table.dtype) for name, table in shared.items()}
    found = []
    if jax.eval_shape(arrays, params, extra, abstract, key):
        columns = setup.columns("train", ("image", *labels), setup.config.data.train_filter)
        batch |= {name: np.ascontiguousarray(columns[name][rows]) for name in ("image", *labels)}
        found = jax.device_get(jax.jit(arrays)(params, extra, batch | shared, key))
    return Source(label, dict(zip(names, found, strict=True)), tuple(settings.mean), tuple(settings.std))


def known(values: Any) -> bool:
    """Whether an array is rows of pictures [n, k, H, W, 3], a matrix [h, h] or numbers [n], of floats."""
    shape = values.shape
    pictures = len(shape) == 5 and shape[4] == 3
    matrix = len(shape) == 2 and shape[0] == shape[1]
    return jnp.issubdtype(values.dtype, jnp.floating) and (pictures or matrix or len(shape) == 1) and 0 not in shape


def measures(values: np.ndarray) -> dict[str, Any]:
    """What illustrations.json tells of a matrix or of numbers; what does not exist is None.

    Numbers [n]: ``mean``, ``std`` (of the population) and ``count`` of those that are finite. A matrix [h, h]: ``size``, its
    ``minimum`` and ``maximum``, and ``mean_absolute_off_diagonal``, all over finite values.
    """
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    if values.ndim == 1:
        told = {"mean": float(finite.mean()), "std": float(finite.std())} if len(finite) else {"mean": None, "std": None}
        return told | {"count": len(finite)}
    others = values[~np.eye(len(values), dtype=bool)]
    others = np.abs(others[np.isfinite(others)])
    return {
        "mean_absolute_off_diagonal": float(others.mean()) if len(others) else None,
        "minimum": float(finite.min()) if len(finite) else None,
        "maximum": float(finite.max()) if len(finite) else None,
        "size": len(values),
    }


# Drawing ------------------------------------------------------------------------------------------------------------------


def entry(caption: str, sources: Sequence[Source], several: bool) -> dict[str, Any]:
    """One caption for the template: ``groups`` of pictures and ``charts``, each with the run's label if there are ``several``."""
    groups, charts = [], []
    edges = common_edges([each.arrays[caption] for each in sources if each.arrays[caption].ndim == 1])
    for each in sources:
        values, label = each.arrays[caption], each.label if several else ""
        place = f"{caption}, {label}" if several else caption
        if values.ndim == 5:
            groups.append({"label": label, **picture_rows(caption, place, values, each.mean, each.std)})
        else:
            drawn = matrix(place, values) if values.ndim == 2 else numbers(place, values, edges)
            charts.append({"label": label, **drawn})
    return {"caption": caption, "groups": groups, "charts": charts}


def picture_rows(caption: str, place: str, values: np.ndarray, mean: tuple, std: tuple) -> dict[str, Any]:
    """The first `ROWS` rows of pictures [n, k, H, W, 3], each with a word of the caption if it has k of them."""
    words = [word.strip() for word in caption.split(",")]
    words = words if len(words) == values.shape[1] and all(words) else [""] * values.shape[1]
    rows = [
        [
            {
                "uri": data_uri(denormalise(picture, mean, std), HEIGHT),
                "caption": word,
                "alt": f"{word or f'picture {number}'}, row {line} of {place}",
            }
            for number, (picture, word) in enumerate(zip(row, words, strict=True), start=1)
        ]
        for line, row in enumerate(values[:ROWS], start=1)
    ]
    return {"rows": rows, "note": f"the first {len(rows)} of {len(values)}" if len(rows) < len(values) else ""}


def matrix(place: str, values: np.ndarray) -> dict[str, Any]:
    told = measures(values)
    spread = told["mean_absolute_off_diagonal"]
    note = f"range {short(told['minimum'])} to {short(told['maximum'])}, mean absolute off-diagonal value {short(spread)}"
    alt = f"{place}: matrix of {len(values)} x {len(values)} values, {note}"
    return {"chart": matrix_chart(np.asarray(values, np.float32), alt), "note": note}


def numbers(place: str, values: np.ndarray, edges: np.ndarray | None) -> dict[str, Any]:
    told, left_out = measures(values), np.count_nonzero(~np.isfinite(values))
    note = f"{told['count']} values, mean {short(told['mean'])}, standard deviation {short(told['std'])}"
    note += f"; {left_out} left out" if left_out else ""
    if not told["count"]:
        return {"chart": "", "note": f"no value; {left_out} left out"}
    counts, _ = np.histogram(values[np.isfinite(values)].astype(np.float64), bins=edges)
    chart = histogram(
        counts, edges, f"histogram of {place}: {note}", "value", mark=told["mean"], mark_text=f"mean {short(told['mean'])}"
    )
    return {"chart": chart, "note": note}


def common_edges(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """Edges [BINS + 1] of histograms that can be compared; None if there is no finite value."""
    finite = np.concatenate([np.zeros(0), *(values[np.isfinite(values)] for values in arrays)]).astype(np.float64)
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        room = 0.5 * max(abs(low), abs(high)) or 0.5
        low, high = low - room, high + room
    return np.linspace(low, high, BINS + 1)


def short(value: float | None) -> str:
    return "-" if value is None else f"{0.0 if abs(value) < 5e-7 else value:.3g}"
