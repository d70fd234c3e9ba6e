"""What the renderer gives a training beside pictures: captions of the embedded benchmark and the default library of occluders.

The renderer draws with OpenCV, so it is imported on first use: runs on real datasets do not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from occreid_jax.data import occluders
from occreid_jax.data.captions import read_captions
from occreid_jax.train.log import Reporter
from occreid_jax.types import Dataset
from occreid_jax.vocabulary import tiny_vocabulary

RENDERED, RENDERED_VERSION = 540, 1  # pictures of the default library; the version goes up with every change of a pixel


def caption_table(dataset: Dataset, role: str, seed: int) -> np.ndarray:
    """Sentences that are true of every picture, as rows of the tiny CLIP's vocabulary: int32 [N, variants, L].

    A row ends with the end token, the largest number in it; L is the longest sentence's length. Raises `DataError` if the
    dataset has no captions.
    """
    pictures = read_captions(dataset, role)  # first: other datasets have none and need no renderer
    from occreid_jax import synthetic

    vocabulary, names = tiny_vocabulary(), getattr(dataset, role).names
    variants = [
        synthetic.caption_variants(picture.attributes, picture.occluder, seed, name)
        for picture, name in zip(pictures, names, strict=True)
    ]
    rows = vocabulary.rows(vocabulary.tokenize([text for texts in variants for text in texts]))
    length = int(rows.argmax(axis=1).max()) + 1
    return np.ascontiguousarray(rows[:, :length]).reshape(len(names), -1, length)


def rendered_occluders(seed: int, progress: Callable[[int, int], None], limit: int = RENDERED) -> Iterator[occluders.Occluder]:
    """The objects of `synthetic.loose_occluders` as entries of a library."""
    from occreid_jax import synthetic

    for number, (name, pixels) in enumerate(synthetic.loose_occluders(seed, limit), start=1):
        yield occluders.Occluder(name, occluders.cut_out(pixels), f"occreid_jax.synthetic, seed {seed}", "Apache-2.0")
        progress(number, limit)


def rendered_library(cache: Path, seed: int, reporter: Reporter) -> occluders.Library:
    """The default library, rendered below the folder ``cache`` if it is not there."""
    from occreid_jax import synthetic

    folder = cache / f"occluders-{seed}-v{synthetic.VERSION}.{RENDERED_VERSION}"
    if (folder / "library.json").is_file():
        return occluders.read_library(folder)
    with reporter.task("rendering occluders", RENDERED) as task:
        return occluders.write_library(folder, rendered_occluders(seed, task))
