"""Random streams. Every number in the benchmark comes from a stream named by (seed, namespace, numbers); nothing is global."""

from __future__ import annotations

import zlib

import numpy as np

NAMESPACES = ("train", "test", "distractor", "pretrain", "pretrain_test")
"""Sets of people that never share an outfit, see `occreid_jax.synthetic.people.sample_people`."""


def stream(seed: int, namespace: str, *numbers: int) -> np.random.Generator:
    """Return the generator of one thing, for example ``stream(0, "train/image", pid, image_number)``.

    Args:
        seed: the seed of the whole benchmark, not negative.
        namespace: any string; different strings give unrelated streams.
        numbers: whole numbers >= 0 that tell apart the things inside the namespace.
    """
    entropy = [seed, zlib.crc32(namespace.encode()), *numbers]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
