"""Features of a whole split, on any number of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from occreid_jax.distributed import Devices
from occreid_jax.parts import flip_parts
from occreid_jax.passes import run_pass
from occreid_jax.types import Features, Method


@functools.lru_cache(maxsize=8)
def make_embed(method: Method, devices: Devices, role: str, flip: bool = False, compared: bool = False):
    """The jitted function (params, extra, raw batch) -> features; ``flip`` averages those of the picture and its mirror image.

    ``compared`` gives what `Method.embed_compared` does. Kept, so that a training that evaluates often traces it once.
    """
    function = method.embed_compared if compared else method.embed

    def embed(params, extra, batch):
        features = function(params, extra, method.transform(batch), role)
        if not flip:
            return features
        mirrored = batch | {"image": batch["image"][:, :, ::-1]}
        mirrored |= {"parts": flip_parts(batch["parts"][:, :, ::-1])} if "parts" in batch else {}
        other = function(params, extra, method.transform(mirrored), role)
        return jax.tree.map(lambda a, b: (a + b) / 2, features, other)

    return jax.jit(embed, in_shardings=(devices.replicated, devices.replicated, devices.rows), out_shardings=devices.replicated)


def embed_split(
    method: Method,
    params: Any,
    extra: Any,
    columns: Mapping[str, np.ndarray],
    role: str,
    batch_size: int,
    devices: Devices,
    flip: bool = False,
    progress: Callable[[int, int], None] | None = None,
    compared: bool = False,
) -> Features:
    """Features of every row of ``columns`` in order: the method's pytree of numpy arrays [N, ...].

    ``role`` is "query" or "gallery". The last batch is padded, so one shape is compiled. ``compared`` as in `make_embed`.
    """
    embed = make_embed(method, devices, role, flip, compared)
    return run_pass(lambda batch: embed(params, extra, batch), columns, batch_size, devices, progress)
