"""What an evaluation leaves in the run folder: results.json and the per-query records behind it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from occreid_jax.errors import UserError, legible
from occreid_jax.evaluation.evaluate import Evaluation
from occreid_jax.files import write_bytes, write_json
from occreid_jax.types import Dataset


def write_evaluation(workdir: Path, evaluation: Evaluation, dataset: Dataset) -> None:
    """``evaluation.npz`` (per-query records, ranked lists, image names) and then ``results.json``."""
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
    write_json(Path(workdir) / "results.json", evaluation.results)


def read_evaluation(workdir: Path) -> dict[str, np.ndarray]:
    """The arrays that `write_evaluation` stored."""
    path = Path(workdir) / "evaluation.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not readable ({error}); run launch/evaluate.py on this folder first") from error
