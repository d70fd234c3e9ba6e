"""Patch transfer inside a batch, guided by a selection network: who lends what to whom, and what of it the losses leave out.

Source: DPM++ (arXiv 2605.06637) Eq. 5 to 7 and section 3.4; Tan et al., "Occluded Person Re-identification via Saliency-Guided
Patch Transfer", AAAI 2024. The rules themselves stand in `occreid_jax.augment.patch_transfer`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.augment import patch_transfer
from occreid_jax.augment.patch_transfer import Transfer
from occreid_jax.errors import UserError
from occreid_jax.methods import transfer_illustrations
from occreid_jax.methods.salient_selection import THRESHOLD, SalientSelection
from occreid_jax.types import Batch, Params

Array = jax.Array
OWN = ("on", "among", "hole_of", "ignore_identity", "ignore_negatives")
"""Settings of a transfer that `patch_transfer.choose_partners` does not take."""


class Recombination(NamedTuple):
    """How the images of a batch are recombined, and what of it the losses leave out; None where nothing is."""

    salient: Array | None = None  # bool [B, N]
    transfer: Transfer | None = None
    left_out: Array | None = None  # int32 [B], the identity that counts in no cross entropy of a row, see `cross_entropy`
    ignored: Array | None = None  # bool [B, B], pairs that are no negatives

    @property
    def partner(self) -> Array | None:
        return None if self.transfer is None else self.transfer.partner


class SalientTransfer:
    """``settings`` is ``config.method.transfer``, ``grid`` that of the patches which are recombined; ``together`` neighbours in a
    batch show one identity. Raises `UserError` for settings that do not exist or do not go together.

    Without a ``selection`` network scores of another source are given, see `salient`.
    """

    def __init__(self, settings, selection: SalientSelection | None, grid: tuple[int, int], together: int):
        self.settings, self.selection, self.grid, self.together = settings, selection, grid, together
        masks, labels = np.ones((2, np.prod(grid)), bool), np.arange(2)
        try:
            jax.eval_shape(lambda key: self.partners(key, jnp.asarray(masks), jnp.asarray(labels)), jax.random.key(0))
        except (ValueError, TypeError) as error:
            raise UserError(f"config.method.transfer: {error}") from error

    def shares(self, count: int) -> int | None:
        """The number of shares of a batch of ``count`` images, see `patch_transfer.fewest_shares`."""
        return patch_transfer.fewest_shares(count, self.settings.get("among", 0), self.together)

    def check_shares(self, size: int, remedy: str) -> None:
        """Raises `UserError` if a batch of ``size`` cannot be cut into the shares among which partners are chosen."""
        if self.shares(size) is None:
            among = self.settings.among
            raise UserError(
                f"config.method.transfer.among={among}: batches of {size} pictures cannot be cut into equal shares of at most "
                f"{among} with two whole identities each; set a larger number, 0 for the whole batch, or another {remedy}"
            )

    def partners(self, rng: Array, salient: Array, labels: Array, **changes) -> Transfer:
        """`patch_transfer.choose_in_shares` with the settings of ``config.method.transfer``."""
        settings = {key: value for key, value in self.settings.items() if key not in OWN} | changes
        return patch_transfer.choose_in_shares(rng, salient, self.grid, labels, shares=self.shares(len(labels)), **settings)

    def salient(self, params: Params, images: Array, location: Array | None = None) -> Array:
        """Salient patches bool [B, h w] of normalised images: by the parameters ``params["selection"]`` of the selection network,
        or where the scores ``location`` float32 [B, h, w] reach the same threshold."""
        if location is not None:
            return (location >= THRESHOLD).reshape(len(location), -1)
        return self.selection.mask(self.selection.saliency(params["selection"], images), self.grid)

    def recombination(self, params: Params, batch: Batch, rng: Array, location: Array | None = None) -> Recombination:
        """Partners for the images of a batch and what they leave out of the losses; ``location`` as in `salient`."""
        settings, labels = self.settings, batch["label"]
        with jax.named_scope("transfer"):
            salient = self.salient(params, batch["image"], location)
            transfer = self.partners(rng, salient, labels)
        left_out, ignored = None, None
        if settings.ignore_identity:
            left_out = patch_transfer.left_out_identity(labels, transfer)
        if settings.ignore_negatives != "none":
            ignored = patch_transfer.ignored_negatives(labels, transfer, settings.ignore_negatives == "symmetric")
        return Recombination(salient, transfer, left_out, ignored)

    def recombine(self, patches: Array, salient: Array, partner: Array) -> Array:
        """`patch_transfer.recombine` of patch tokens [B, h w, D] in the shares of the batch."""
        return patch_transfer.recombine(patches, salient, partner, self.settings.hole_of, self.shares(len(partner)))

    def illustrate(self, params: Params, batch: Batch, rng: Array, location: Array | None = None) -> dict[str, Array]:
        """`transfer_illustrations.illustrate` of a batch in which every image that has a partner is recombined."""
        key_partner, key_random = jax.random.split(rng)
        salient = self.salient(params, batch["image"], location)
        transfer = self.partners(key_partner, salient, batch["label"], probability=1.0)
        return transfer_illustrations.illustrate(key_random, batch, salient, self.grid, transfer, self.settings.hole_of)
