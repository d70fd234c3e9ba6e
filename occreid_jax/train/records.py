"""What an evaluation leaves in the run folder: results.json and the per-query records behind it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from occreid_jax.data.fingerprint import fingerprint
from occreid_jax.errors import UserError, legible
from occreid_jax.evaluation.evaluate import Evaluation
from occreid_jax.files import read_json, write_bytes, write_json, write_text
from occreid_jax.types import Dataset


def write_evaluation(workdir: Path, evaluation: Evaluation, dataset: Dataset) -> None:
    """``evaluation.npz`` (per-query records, ranked lists, image names) and then ``results.json``, which also tells the
    `pictures_hash` of the test set. A ``ladder`` that stands there of the same parameters is kept."""
    metrics = evaluation.metrics
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        queries=metrics.queries,
        cmc=metrics.cmc,
        ranked_indices=metrics.ranked_indices,
        ranked_flags=metrics.ranked_flags,
        query_names=np.array([legible(name) for name in dataset.query.names]),
        gallery_names=np.array([legible(name) for name in dataset.gallery.names]),
    )
    write_bytes(Path(workdir) / "evaluation.npz", buffer.getvalue())
    path, results = Path(workdir) / "results.json", evaluation.results | {"pictures_sha256": pictures_hash(dataset)}
    old = read_json(path) if path.is_file() else {}
    if "ladder" in old and old.get("parameters_sha256") == results["parameters_sha256"]:
        results["ladder"] = old["ladder"]
    write_json(path, results)


def write_unparsed(workdir: Path, absent: Mapping[str, Sequence[str]]) -> None:
    """``without_labels.txt``: the pictures that have no body-part labels, a line each with their split; no file if there are
    none. ``absent`` is `Setup.unparsed`."""
    path = Path(workdir) / "without_labels.txt"
    if lines := [f"{role} {legible(name)}\n" for role, names in absent.items() for name in names]:
        write_text(path, "".join(lines))
    else:
        path.unlink(missing_ok=True)


def pictures_hash(dataset: Dataset) -> str:
    """The `fingerprint` of query and gallery, SHA-256: it tells test sets apart, wherever they lie."""
    return fingerprint(dataset.query, dataset.gallery)


def same_test_set(workdir: Path, dataset: Dataset) -> bool | None:
    """Whether the results in a folder are those of exactly this test set and protocol, whatever else was set; None if there are
    no results, or older ones that do not tell."""
    path = Path(workdir) / "results.json"
    results = read_json(path) if path.is_file() else {}
    if "pictures_sha256" not in results:
        return None
    protocols = (protocol.split("+")[0] for protocol in (str(results.get("protocol")), dataset.protocol))
    return len(set(protocols)) == 1 and results["pictures_sha256"] == pictures_hash(dataset)


def read_evaluation(workdir: Path) -> dict[str, np.ndarray]:
    """The arrays that `write_evaluation` stored."""
    path = Path(workdir) / "evaluation.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not readable ({error}); run launch/evaluate.py on this folder first") from error
