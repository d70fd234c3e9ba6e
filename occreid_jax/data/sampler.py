"""Which images make up which batch: int32 index arrays, pure functions of (labels, seed, epoch), in numpy on the host.

The order of the data is therefore known before training starts, does not depend on the number of devices or processes, and a
resumed run needs nothing but its step number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from occreid_jax.errors import DataError


def training_labels(pids: np.ndarray) -> np.ndarray:
    """Identity numbers [N] -> labels int32 [N] in 0 .. identities - 1, in ascending order of the identity number."""
    return np.unique(np.asarray(pids), return_inverse=True)[1].reshape(-1).astype(np.int32)


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))


def _draw_identities(chunks: np.ndarray, identities_per_batch: int, generator: np.random.Generator) -> np.ndarray:
    """Which identities meet in which batch, int64 [steps, P]. ``chunks`` int64 [identities]: how many groups each one has."""
    left = chunks.copy()
    available = np.flatnonzero(left > 0)
    rows = []
    while len(available) >= identities_per_batch:
        chosen = available[generator.choice(len(available), identities_per_batch, replace=False)]
        rows.append(chosen)
        left[chosen] -= 1
        if not left[chosen].all():
            available = available[left[available] > 0]
    return np.array(rows, np.int64).reshape(-1, identities_per_batch)


def identity_batches(
    labels: np.ndarray, identities_per_batch: int, images_per_identity: int, seed: int, epoch: int
) -> np.ndarray:
    """Batches of P identities with K images each (Hermans et al., 2017), by the rule of the PyTorch originals.

    Every identity's images are shuffled and cut into groups of K; an incomplete group is dropped, and an identity with fewer
    than K images gets one group drawn with replacement. P identities are drawn without replacement among those that have a
    group left, until fewer than P remain: so the number of steps varies a little from epoch to epoch.
    (``RandomIdentitySampler`` in the ``datasets/sampler.py`` of TransReID, CLIP-ReID, DPM and FED.)

    Args:
      labels: integers [N].
      seed, epoch: not negative; the result depends on nothing else.

    Returns:
      int32 [steps, P * K] rows of ``labels``; the K images of an identity are next to each other.
    """
    group = images_per_identity
    _, inverse, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    chunks = np.maximum(counts // group, 1)
    generator = _generator(seed, epoch)
    # The identities are drawn first, so that the number of steps is known without shuffling any image.
    identities = _draw_identities(chunks, identities_per_batch, generator)

    # Shuffling inside every identity at once: a sort by (identity, random key).
    order = np.lexsort((generator.random(len(inverse)), inverse))
    starts = np.cumsum(counts) - counts
    within = np.arange(group)
    # groups[first[i] + j] holds the rows of identity i's j-th group
    first = np.cumsum(chunks) - chunks
    owner = np.repeat(np.arange(len(counts)), chunks)
    number = np.arange(len(owner)) - first[owner]
    positions = starts[owner][:, None] + number[:, None] * group + within
    short = counts[owner] < group
    redrawn = generator.integers(0, counts[owner][:, None], size=positions.shape)
    positions = np.where(short[:, None], starts[owner][:, None] + redrawn, positions)
    groups = order[positions]

    used = _running_count(identities.reshape(-1), len(counts))
    return groups[first[identities.reshape(-1)] + used].reshape(len(identities), -1).astype(np.int32)


def _running_count(values: np.ndarray, kinds: int) -> np.ndarray:
    """How often ``values[i]`` occurs before position i, int64 [len(values)]."""
    order = np.argsort(values, kind="stable")
    totals = np.bincount(values, minlength=kinds)
    starts = np.cumsum(totals) - totals
    counts = np.empty(len(values), np.int64)
    counts[order] = np.arange(len(values)) - starts[values[order]]
    return counts


def uniform_batches(count: int, batch_size: int, seed: int, epoch: int, remainder: str = "drop", most: int = 0) -> np.ndarray:
    """Every image once, in random order: int32 [steps, batch_size].

    ``remainder="drop"`` leaves the last incomplete batch out; ``"pad"`` fills it up with index -1 (a row that is not valid).
    ``most`` ends an epoch after so many batches, each time with other images; 0 takes all.
    """
    order = _generator(seed, epoch).permutation(count).astype(np.int32)
    if remainder == "pad":
        order = np.concatenate([order, np.full(-count % batch_size, -1, np.int32)])
    elif remainder != "drop":
        raise DataError(f'sampler.remainder is {remainder!r}: it should be "drop" or "pad"')
    steps = min(len(order) // batch_size, most or len(order))
    return order[: steps * batch_size].reshape(steps, batch_size)


def make_sampler(block: Any, labels: np.ndarray) -> Callable[[int, int], np.ndarray]:
    """The function (seed, epoch) -> int32 [steps, B] that a config block asks for.

    Args:
      block: has ``name`` ("identity" or "uniform") and ``batch_size``; "identity" also has ``images_per_identity``, and
        "uniform" may have ``remainder`` ("drop", the default, or "pad") and ``most``, the batches of an epoch at most (0: all).
      labels: integers [N].

    Raises:
      DataError: a setting that cannot be met with these labels.
    """
    _check(block, labels)
    labels = np.asarray(labels)
    if block.name == "identity":
        images = block.images_per_identity
        return lambda seed, epoch: identity_batches(labels, block.batch_size // images, images, seed, epoch)
    remainder, most = getattr(block, "remainder", "drop"), getattr(block, "most", 0)
    return lambda seed, epoch: uniform_batches(len(labels), block.batch_size, seed, epoch, remainder, most)


def _check(block: Any, labels: np.ndarray) -> None:
    size = block.batch_size
    if size < 1:
        raise DataError(f"sampler.batch_size is {size}: it should be 1 or more")
    if block.name == "identity":
        images = block.images_per_identity
        if images < 1 or size % images:
            raise DataError(f"sampler.batch_size is {size}: it should be a multiple of sampler.images_per_identity, {images}")
        identities = len(np.unique(labels))
        _check_pairs(size, images, identities)
        if identities < size // images:
            remedy = f"set sampler.batch_size to {identities * images} or less"
            raise DataError(
                f"a batch needs {size // images} identities ({size} images, {images} each) but the training set has "
                f"{identities}: {remedy}"
            )
    elif block.name == "uniform":
        remainder, most = getattr(block, "remainder", "drop"), getattr(block, "most", 0)
        if most < 0:
            raise DataError(f"sampler.most is {most}: it should be a number of batches, or 0 for all")
        if remainder not in ("drop", "pad"):
            raise DataError(f'sampler.remainder is {remainder!r}: it should be "drop" or "pad"')
        if len(labels) == 0 or (remainder == "drop" and len(labels) < size):
            raise DataError(f"a batch needs {size} images but the training set has {len(labels)}: lower sampler.batch_size")
    else:
        raise DataError(f'sampler.name is {block.name!r}: it should be "identity" or "uniform"')


def _check_pairs(size: int, images: int, identities: int) -> None:
    """A batch by identities exists for its pairs: of the same person and of two. Without them a triplet loss is 0 throughout."""
    alone = "or, where no pictures are compared, sampler.name to uniform"
    if identities < 2:
        raise DataError(f"the training set has {identities} identities: there is nobody to tell apart, add pictures of others")
    if images < 2:
        raise DataError(
            "sampler.images_per_identity is 1: a batch has no two pictures of a person to bring together; set it to 2 or more, "
            f"{alone}"
        )
    if size // images < 2:
        raise DataError(
            f"sampler.batch_size is {size} with {images} images of each identity: a batch has one person and nobody to tell "
            f"apart; set it to {2 * images} or more, {alone}"
        )


def notes(block: Any, labels: np.ndarray) -> tuple[str, ...]:
    """What a user should know of the batches that `make_sampler` will draw, in words; empty if nothing is odd."""
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    singles = int((counts == 1).sum())
    if block.name != "identity" or not singles:
        return ()
    return (
        f"{singles:,} of {len(counts):,} training identities have a single picture: a batch holds {block.images_per_identity} "
        "copies of it, and no pair of different pictures to bring together",
    )


def steps_per_epoch(block: Any, labels: np.ndarray, seed: int, epochs: int | range) -> tuple[int, ...]:
    """How many rows ``make_sampler(block, labels)(seed, epoch)`` has, for every epoch (a count, or a range of epochs).

    Cheap (no image is shuffled) and remembered, so that every schedule can be laid out before training starts.
    """
    _check(block, labels)
    epochs = range(epochs) if isinstance(epochs, int) else epochs
    if block.name == "uniform":
        count, size = len(labels), block.batch_size
        steps = -(-count // size) if getattr(block, "remainder", "drop") == "pad" else count // size
        return (min(steps, getattr(block, "most", 0) or steps),) * len(epochs)
    images = block.images_per_identity
    counts = np.unique(np.asarray(labels), return_counts=True)[1].astype(np.int64)
    chunks = np.maximum(counts // images, 1).tobytes()
    return tuple(_identity_steps(chunks, block.batch_size // images, seed, epoch) for epoch in epochs)


@functools.lru_cache(maxsize=8192)
def _identity_steps(chunks: bytes, identities_per_batch: int, seed: int, epoch: int) -> int:
    counts = np.frombuffer(chunks, np.int64)
    return len(_draw_identities(counts, identities_per_batch, _generator(seed, epoch)))
