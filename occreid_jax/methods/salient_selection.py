"""Salient patch selection (SPS): a network of its own that learns, from identities alone, which patches show the person.

Source: DPM++ (arXiv 2605.06637) Eq. 3, 4, 22, 23; Tan et al., "Occluded Person Re-identification via Saliency-Guided Patch
Transfer", AAAI 2024, official ``TransReID_Mask`` and ``make_loss_pt.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.losses.identity import accuracy, cross_entropy
from occreid_jax.losses.metric import batch_hard_triplet
from occreid_jax.losses.regularisers import OVER, budget, overlap
from occreid_jax.methods.base import apart, encoder_flops, side_by_side
from occreid_jax.nn import heads, vit
from occreid_jax.nn.layers import run
from occreid_jax.nn.mask_generator import DecisionLayer, patch_maps, scaled_levels
from occreid_jax.types import Batch, Bound, Params
from occreid_jax.weights.trees import merge_encoder

Array = jax.Array
CHOICES = {"masking": ("scale", "keep"), "budget_over": OVER}
RANGES = (("stride", 0, None), ("budget_share", 0, 1))
"""What the settings of the network may be, as `MethodBase.choices` and ``ranges`` of the method that has one."""
SATURATED = Bound(
    "mean_saliency", 0.05, 0.95,
    "nearly every patch is salient, or none, and a saturated sigmoid hardly comes back; set "
    "config.method.selection.level_norm=True or a lower config.stages.selection.decision_optimizer.learning_rate",
)  # fmt: skip
THRESHOLD = 0.5  # of the saliency, from which on a patch is salient


class SalientSelection:
    """Parameters ``encoder``, ``decision`` and ``head``; state: the statistics of the head's BatchNorm. Knows no cameras.

    ``settings`` is ``config.method.selection``. The network sees an image three times: as it is, with its patch tokens scaled
    by their saliency s, and with them scaled by 1 - s. A scaled token still carries its position.
    """

    def __init__(self, encoder: vit.ViT, identities: int, settings):
        self.encoder, self.settings = encoder, settings
        try:
            self.levels = scaled_levels(settings.levels, encoder.size.depth)
        except ValueError as error:
            raise UserError(f"config.method.selection.levels: {error}") from error
        self.decision = DecisionLayer(len(self.levels), settings.level_norm)
        self.head = heads.BNNeck(identities)

    def init(self, rng: Array) -> tuple[Params, Params]:
        """Initial parameters and batch statistics."""
        key_encoder, key_decision, key_head = jax.random.split(rng, 3)
        width, patches = self.encoder.size.width, self.encoder.grid[0] * self.encoder.grid[1]
        head = self.head.init(key_head, jnp.zeros((1, width)), False)
        params = {
            "encoder": self.encoder.init(key_encoder, jnp.zeros((1, *self.encoder.image_size, 3)))["params"],
            "decision": self.decision.init(key_decision, jnp.zeros((1, patches, len(self.levels) * width)))["params"],
            "head": head["params"],
        }
        return params, head["batch_stats"]

    def load_pretrained(self, params: Params, weights: Mapping[str, np.ndarray]) -> Params:
        """An encoder's or a CLIP's weights in place of the encoder's initial values."""
        return params | {"encoder": merge_encoder(params["encoder"], weights, self.encoder.grid)}

    def encode(self, params: Params, patches: Array, rng: Array | None = None) -> vit.ViTOutput:
        train = rng is not None
        return self.encoder.apply(
            {"params": params["encoder"]}, patches, None, train, method="from_patches", rngs={"dropout": rng} if train else None
        )

    def decide(self, params: Params, taps: tuple[Array, ...], detach: bool = False) -> Array:
        """Saliency float32 [B, N] in (0, 1) from the outputs of all blocks; ``detach`` lets no gradient into the encoder."""
        maps = patch_maps(taps, self.levels)
        maps = jax.lax.stop_gradient(maps) if detach else maps
        return jax.nn.sigmoid(self.decision.apply({"params": params["decision"]}, maps))

    def saliency(self, params: Params, images: Array) -> Array:
        """Saliency float32 [B, N] of normalised images [B, H, W, 3], for use: nothing is learned through it."""
        patches = self.encoder.apply({"params": params["encoder"]}, images, method="embed_patches")
        return jax.lax.stop_gradient(self.decide(params, self.encode(params, patches).taps))

    def mask(self, saliency: Array, grid: tuple[int, int]) -> Array:
        """Salient patches bool [B, h w] on another network's ``grid``."""
        maps = (saliency >= THRESHOLD).reshape(-1, *self.encoder.grid)
        return vit.on_grid(maps, grid).reshape(len(maps), -1)

    def scale(self, saliency: Array) -> Array:
        """What multiplies the tokens: the saliency, or with ``masking="keep"`` 0 or 1 with the saliency's gradient."""
        if self.settings.masking == "scale":
            return saliency
        hard = (saliency >= THRESHOLD).astype(saliency.dtype)
        return hard + saliency - jax.lax.stop_gradient(saliency)

    def loss_flops(self) -> float:
        """Floating-point operations of one picture's forward passes in `loss`: three, of which two begin after the patches."""
        encoder = self.encoder
        embedding = vit.embedding_flops(encoder.size, encoder.image_size, encoder.patch, encoder.stride)
        return 3 * encoder_flops(encoder) - 2 * embedding

    def loss(
        self, params: Params, statistics: Params, batch: Batch, rng: Array
    ) -> tuple[Array, Params, dict[str, Array]]:
        """Loss of an augmented batch, new batch statistics, metrics.

        The batch statistics take three steps, in the order of the official code: whole image, salient part, the rest.
        """
        settings, labels = self.settings, batch["label"]
        key_whole, key_parts = jax.random.split(rng)
        patches = self.encoder.apply({"params": params["encoder"]}, batch["image"], method="embed_patches")
        whole = self.encode(params, patches, key_whole)
        saliency = self.decide(params, whole.taps, settings.detach)
        shares = (self.scale(share)[..., None].astype(patches.dtype) for share in (saliency, 1.0 - saliency))
        parts = self.encode(params, side_by_side([patches * share for share in shares]), key_parts)
        logits = []
        for feature in (whole.cls, *apart(parts.cls, 2)):
            (_, each), statistics = run(self.head, params["head"], statistics, feature, train=True)
            logits.append(each)
        terms = {
            "identity": cross_entropy(logits[0], labels, settings.label_smoothing),
            "masked_identity": cross_entropy(logits[1], labels, settings.label_smoothing),
            "triplet": batch_hard_triplet(whole.cls, labels, settings.margin),
            "budget": budget(saliency, settings.budget_share, settings.budget_over),
            "overlap": overlap(logits[0], logits[2]),
        }
        total = (
            settings.identity_weight * terms["identity"]
            + settings.masked_weight * terms["masked_identity"]
            + settings.triplet_weight * terms["triplet"]
            + settings.budget_weight * terms["budget"]
            + settings.overlap_weight * terms["overlap"]
        )
        metrics = terms | {
            "accuracy": accuracy(logits[0], labels),
            "masked_accuracy": accuracy(logits[1], labels),
            "rest_accuracy": accuracy(logits[2], labels),
            "mean_saliency": jnp.mean(saliency),
            "selected": jnp.mean(saliency >= THRESHOLD),
        }
        return total, statistics, metrics
