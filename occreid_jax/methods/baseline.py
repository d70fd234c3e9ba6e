"""ViT baseline: encoder, BNNeck, identity loss and batch-hard triplet on the feature before the neck.

Source: the baseline of He et al., "TransReID", ICCV 2021, section 3.1, and its code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.losses.identity import accuracy
from occreid_jax.losses.margin import am_softmax, arcface, circle, cosface
from occreid_jax.losses.totals import transreid_terms
from occreid_jax.methods.base import SIDES, MethodBase, encoder_flops
from occreid_jax.nn import heads
from occreid_jax.nn.layers import run
from occreid_jax.parts import visible_person
from occreid_jax.types import Aux, Batch, Extra, Features, Meta, Params, Stage
from occreid_jax.weights.trees import merge_encoder

Array = jax.Array

MARGINS = {"arcface": arcface, "cosface": cosface, "amsoftmax": am_softmax, "circle": circle}
"""Identity losses that put a margin between cosines, beside plain "softmax"."""


class Baseline(MethodBase):
    """Parameters: ``backbone`` and ``heads``, one head per feature that `features` returns (here one).

    The neck's side of the triplet loss and of the test feature is a setting: the originals take both before it.
    ``config.method.person_mask`` is an oracle: everything but the visible person is blanked, from ground-truth maps.
    """

    choices = {"triplet_feature": SIDES, "test_feature": SIDES, "identity_loss": ("softmax", *MARGINS)}
    branches = 1  # features that are trained with losses of their own

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        self.backbone = self.vit()
        self.heads = heads.BNNecks(meta.identities)

    def stage(self, name: str, block) -> Stage:
        return dataclasses.replace(super().stage(name, block), inputs=self.evaluation_inputs)

    @property
    def evaluation_inputs(self) -> tuple[str, ...]:
        return ("image", "parts") if self.settings.person_mask else ("image",)

    def init(self, rng: Array) -> tuple[Params, Extra]:
        key_encoder, key_heads = jax.random.split(rng)
        features = [jnp.zeros((1, self.backbone.size.width))] * self.branches
        variables = self.heads.init(key_heads, features, False)
        return self.init_encoder(key_encoder) | {"heads": variables["params"]}, {"batch_stats": variables["batch_stats"]}

    def init_encoder(self, rng: Array) -> Params:
        """Initial parameters of everything before the heads."""
        images = jnp.zeros((1, *self.meta.image_size, 3))
        return {"backbone": self.backbone.init(rng, images, jnp.zeros(1, jnp.int32))["params"]}

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        return params | {"backbone": merge_encoder(params["backbone"], weights, self.backbone.grid)}, extra

    def images(self, batch: Batch) -> Array:
        """The normalised pictures, blanked outside the visible person if the oracle is on."""
        if not self.settings.person_mask:
            return batch["image"]
        return jnp.where(visible_person(batch["parts"])[..., None], batch["image"], 0.0)

    def features(self, params: Params, batch: Batch, rng: Array | None = None) -> tuple[Array, ...]:
        """The features before their necks, float32 [B, D] each, the global one first. ``rng`` is given in training."""
        train = rng is not None
        out = self.backbone.apply(
            {"params": params["backbone"]}, self.images(batch), batch["camid"], train, rngs={"dropout": rng} if train else None
        )
        return (out.cls,)

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        """Identity loss and batch-hard triplet of every feature, each kind with its weight from the config."""
        settings, labels = self.settings, batch["label"]
        features = self.features(params, batch, rng)
        (normalised, logits), statistics = run(self.heads, params["heads"], extra["batch_stats"], features, train=True)
        compared = normalised if settings.triplet_feature == "after" else features
        trained = self.margin_logits(params, normalised, labels) if settings.identity_loss in MARGINS else logits
        identity, triplet = transreid_terms(trained, compared, labels, settings.margin, settings.label_smoothing)
        total = settings.identity_weight * identity + settings.triplet_weight * triplet
        metrics = {"identity": identity, "triplet": triplet, "accuracy": accuracy(logits[0], labels)}
        return total, Aux(extra | {"batch_stats": statistics}, metrics)

    def margin_logits(self, params: Params, normalised: Sequence[Array], labels: Array) -> list[Array]:
        """Logits [B, C] of every head with the chosen margin at the labels; the classifiers' rows are class centres."""
        margin, settings = MARGINS[self.settings.identity_loss], self.settings
        kernels = [params["heads"][f"head_{number}"]["classifier"]["kernel"] for number in range(len(normalised))]
        pairs = zip(normalised, kernels, strict=True)
        return [margin(x, kernel.T, labels, settings.cosine_scale, settings.cosine_margin) for x, kernel in pairs]

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        """The features before or after their necks side by side, the local ones divided by their number, float32 [B, D]."""
        features = self.features(params, batch)
        if self.settings.test_feature == "after":
            (features, _), _ = run(self.heads, params["heads"], extra["batch_stats"], features)
        whole, *local = features
        return jnp.concatenate([whole, *(each / len(local) for each in local)], axis=-1)

    def cls_logits(self, params: Params, batch: Batch) -> Array:
        """What the cls token of the last block looks at, before the softmax, float32 [B, heads, 1 + N]."""
        return self.backbone.apply(
            {"params": params["backbone"]}, self.images(batch), batch["camid"], return_cls_logits=True
        ).cls_logits

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """``attention`` float32 [B, h, w]: what the cls token of the last block looks at, mean over heads, sums to 1."""
        return {"attention": self.attention_map(self.cls_logits(params, batch)[..., 1:], self.backbone.grid)}

    def forward_flops(self) -> float:
        return encoder_flops(self.backbone)
