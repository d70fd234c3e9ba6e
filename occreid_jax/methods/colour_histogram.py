"""Colour histogram: no parameters, no training. The yardstick that says how much of a benchmark colour alone solves."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from occreid_jax.methods.base import MethodBase
from occreid_jax.parts import visible_person
from occreid_jax.types import Batch, Extra, Features, Params

Array = jax.Array


class ColourHistogram(MethodBase):
    """Joint RGB histogram of the whole picture, compared by the Hellinger distance.

    ``config.method.bins`` cells per channel; with ``config.method.person_mask`` only the visible person's pixels count.
    """

    ranges = (("bins", 1, 256),)

    @property
    def evaluation_inputs(self) -> tuple[str, ...]:
        return ("image", "parts") if self.settings.person_mask else ("image",)

    def init(self, rng: Array) -> tuple[Params, Extra]:
        return {}, {}

    def transform(self, batch: dict) -> dict:
        """Pixels stay bytes: a histogram needs no normalisation."""
        return batch

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        """Square roots of the histogram's shares, float32 [B, bins ** 3]; their Euclidean distance is Hellinger's."""
        bins = self.settings.bins
        pixels = batch["image"].astype(jnp.int32) * bins // 256
        cells = (pixels[..., 0] * bins + pixels[..., 1]) * bins + pixels[..., 2]
        weights = jnp.ones(cells.shape, jnp.float32)
        if self.settings.person_mask:
            weights = visible_person(batch["parts"]).astype(jnp.float32)

        def one(cells: Array, weights: Array) -> Array:
            return jax.ops.segment_sum(weights.reshape(-1), cells.reshape(-1), bins**3)

        counts = jax.vmap(one)(cells, weights)
        return jnp.sqrt(counts / jnp.maximum(counts.sum(axis=-1, keepdims=True), 1.0))
