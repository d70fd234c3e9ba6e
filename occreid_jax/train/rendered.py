"""What the renderer gives a training beside pictures: captions of the embedded benchmark and the default library of occluders.

The renderer draws with OpenCV, so it is imported on first use: runs on real datasets do not need it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from occreid_jax.data import occluders
from occreid_jax.data.captions import read_captions
from occreid_jax.train.log import Reporter
from occreid_jax.types import Dataset
from occreid_jax.vocabulary import tiny_vocabulary

PROMPTS = ("closed_facts", "closed_kinds", "open_facts")
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


def fact_table(dataset: Dataset, role: str) -> np.ndarray:
    """What can be told of every picture one by one: int32 [N, facts], the numbers of the sentences of `prompt_tables`, of the
    closed facts and on of the open ones; -1 where there is nothing to tell.

    Raises `DataError` if the dataset has no captions.
    """
    pictures = read_captions(dataset, role)
    from occreid_jax import synthetic

    number = {pair: row for row, pair in enumerate(
        (fact, value) for fact, values in synthetic.fact_prompts().items() for value in values)}  # fmt: skip
    told = [synthetic.facts(picture.attributes, picture.occluder).items() for picture in pictures]
    return np.array([[number.get(pair, -1) for pair in pairs] for pairs in told], np.int32)


def prompt_tables() -> dict[str, np.ndarray]:
    """The sentences of `synthetic.fact_prompts` as rows of the tiny CLIP's vocabulary.

    ``closed_facts`` int32 [C, L] are those of facts with few values, ``closed_kinds`` int32 [C] says which fact each tells, and
    ``open_facts`` int32 [O, L] are those of the others.
    """
    from occreid_jax import synthetic

    vocabulary, found, kinds = tiny_vocabulary(), {True: [], False: []}, []
    for kind, values in enumerate(synthetic.fact_prompts().values()):
        closed = len(values) <= synthetic.CLOSED
        found[closed] += values.values()
        kinds += len(values) * [kind] if closed else []
    rows = {closed: vocabulary.rows(vocabulary.tokenize(texts)) for closed, texts in found.items()}
    cut = {closed: np.ascontiguousarray(each[:, : int(each.argmax(axis=1).max()) + 1]) for closed, each in rows.items()}
    return dict(zip(PROMPTS, (cut[True], np.array(kinds, np.int32), cut[False]), strict=True))


def rendered_occluders(
    seed: int, progress: Callable[[int, int], None], limit: int = RENDERED, people: int = 0
) -> Iterator[occluders.Occluder]:
    """``limit`` objects of `synthetic.loose_occluders` and ``people`` of `synthetic.loose_people` as entries of a library."""
    from occreid_jax import synthetic

    drawn = itertools.chain(synthetic.loose_occluders(seed, limit), synthetic.loose_people(seed, people))
    for number, (name, pixels) in enumerate(drawn, start=1):
        yield occluders.Occluder(name, occluders.cut_out(pixels), f"occreid_jax.synthetic, seed {seed}", "Apache-2.0")
        progress(number, limit + people)


def rendered_frames(seed: int, progress: Callable[[int, int], None], limit: int = RENDERED) -> Iterator[occluders.Occluder]:
    """``limit`` frames of `synthetic.standing_occluders` as entries of a library."""
    from occreid_jax import synthetic

    for number, (name, pixels) in enumerate(synthetic.standing_occluders(seed, limit), start=1):
        yield occluders.Occluder(name, pixels, f"occreid_jax.synthetic, seed {seed}", "Apache-2.0", "overlay")
        progress(number, limit)


def rendered_library(
    cache: Path, seed: int, reporter: Reporter, people: int = 0, frames: bool = False
) -> occluders.Library:
    """The default library, with so many ``people`` beside its objects, or that of whole ``frames``, which has people among its
    kinds; rendered below the folder ``cache`` if it is not there."""
    from occreid_jax import synthetic

    told = "-frames" if frames else f"-{people}-people" if people else ""
    folder = cache / f"occluders-{seed}{told}-v{synthetic.VERSION}.{RENDERED_VERSION}"
    if (folder / "library.json").is_file():
        return occluders.read_library(folder)
    if frames:
        with reporter.task("rendering occluders", RENDERED) as task:
            return occluders.write_library(folder, rendered_frames(seed, task), occluders.FRAME_SIDE)
    with reporter.task("rendering occluders", RENDERED + people) as task:
        return occluders.write_library(folder, rendered_occluders(seed, task, people=people))
