"""What patch transfer does to a batch, for the report: recombined samples, how much of the person each of them loses, and how
much of the other person it shows instead."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from occreid_jax.augment import patch_transfer
from occreid_jax.augment.patch_transfer import Transfer
from occreid_jax.methods.locations import visible_shares
from occreid_jax.nn import vit
from occreid_jax.types import Batch

Array = jax.Array
SHOWN = 8  # recombined samples


def illustrate(
    rng: Array, batch: Batch, salient: Array, grid: tuple[int, int], transfer: Transfer, hole_of: str
) -> dict[str, Array]:
    """Pictures of recombined samples by their caption; where ``batch`` has ground truth (``parts``), the share of the person that
    each sample loses and, beside it, what holes of as many patches in random places would take; the share of the donor's person
    that is left in the sample, and 1 where more of the donor's person is shown than of the target's, otherwise 0 (NaN: not
    recombined).

    ``salient`` bool [B, h w] on ``grid``; ``hole_of`` says whose salient patches an image is shown through.
    """
    image, partner = batch["image"], transfer.partner
    owner = patch_transfer.hole_owner(partner, hole_of)
    pixels = vit.on_grid(salient.reshape(-1, *grid), image.shape[1:3]).reshape(len(image), -1)
    flat = image.reshape(len(image), -1, image.shape[-1])
    made = patch_transfer.recombine(flat, pixels, partner, hole_of).reshape(image.shape)
    salient_only = (flat * pixels[..., None]).reshape(image.shape)
    first = jnp.argsort(~transfer.used)[:SHOWN]
    panels = (image, image[partner], salient_only[owner], made)
    shown = {
        "salient patches": jnp.mean(salient, axis=-1),
        f"target, partner, salient patches of the {hole_of}, new sample": jnp.stack([x[first] for x in panels], axis=1),
    }
    if "parts" in batch:
        person = visible_shares(batch["parts"], grid).reshape(len(image), -1)
        used = jnp.where(transfer.used, 1.0, jnp.nan)
        random = jax.random.permutation(rng, salient, axis=1, independent=True)
        for name, holes in (("covered share of the person", salient), ("covered share, random patches", random)):
            left = jnp.sum(holes[owner] * person, axis=-1) / jnp.maximum(jnp.sum(person, axis=-1), 1e-6)
            shown[name] = used * (1 - left)
        donor = person[partner]
        kept, strange = jnp.sum(salient[owner] * person, axis=-1), jnp.sum(~salient[owner] * donor, axis=-1)
        shown["share of the donor's person left"] = used * strange / jnp.maximum(jnp.sum(donor, axis=-1), 1e-6)
        shown["donor > target"] = used * (strange > kept)
    return shown
