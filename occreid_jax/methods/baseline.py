"""ViT baseline: encoder, BNNeck, identity cross entropy and batch-hard triplet on the feature before the neck.

Source: the baseline of He et al., "TransReID", ICCV 2021, section 3.1; sheet of the baselines, sections 1 to 3.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.losses.identity import accuracy, cross_entropy
from occreid_jax.losses.metric import batch_hard_triplet
from occreid_jax.methods.base import MethodBase
from occreid_jax.nn import heads, vit
from occreid_jax.parts import visible_person
from occreid_jax.types import Aux, Batch, Extra, Features, Meta, Params, Stage
from occreid_jax.weights.trees import merge_encoder

Array = jax.Array


class Baseline(MethodBase):
    """The neck's side of the triplet loss and of the test feature is a setting: the originals take both before it.

    ``config.method.person_mask`` is an oracle: everything but the visible person is blanked, from ground-truth maps.
    """

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        for name in ("triplet_feature", "test_feature"):
            if self.settings[name] not in ("before", "after"):
                raise UserError(f"config.method.{name} is '{self.settings[name]}'; it must be one of before, after")
        self.backbone = self.vit()
        self.head = heads.BNNeck(meta.identities)

    def stage(self, name: str, block) -> Stage:
        return dataclasses.replace(super().stage(name, block), inputs=self.evaluation_inputs)

    @property
    def evaluation_inputs(self) -> tuple[str, ...]:
        return ("image", "parts") if self.settings.person_mask else ("image",)

    def init(self, rng: Array) -> tuple[Params, Extra]:
        key_backbone, key_head = jax.random.split(rng)
        images = jnp.zeros((1, *self.meta.image_size, 3))
        backbone = self.backbone.init(key_backbone, images, jnp.zeros(1, jnp.int32))
        head = self.head.init(key_head, jnp.zeros((1, self.backbone.size.width)), False)
        return {"backbone": backbone["params"], "head": head["params"]}, {"batch_stats": head["batch_stats"]}

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        return params | {"backbone": merge_encoder(params["backbone"], weights, self.backbone.grid)}, extra

    def images(self, batch: Batch) -> Array:
        """The normalised pictures, blanked outside the visible person if the oracle is on."""
        if not self.settings.person_mask:
            return batch["image"]
        return jnp.where(visible_person(batch["parts"])[..., None], batch["image"], 0.0)

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        """Identity cross entropy on the logits plus batch-hard triplet, each with its weight from the config."""
        features = self.backbone.apply(
            {"params": params["backbone"]}, self.images(batch), batch["camid"], True, rngs={"drop_path": rng}
        ).cls
        (normalised, logits), updated = self.head.apply(
            {"params": params["head"], "batch_stats": extra["batch_stats"]}, features, True, mutable=["batch_stats"]
        )
        identity = cross_entropy(logits, batch["label"], self.settings.label_smoothing)
        compared = normalised if self.settings.triplet_feature == "after" else features
        triplet = batch_hard_triplet(compared, batch["label"], self.settings.margin)
        total = self.settings.identity_weight * identity + self.settings.triplet_weight * triplet
        metrics = {"identity": identity, "triplet": triplet, "accuracy": accuracy(logits, batch["label"])}
        return total, Aux(extra | updated, metrics)

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        """The cls feature before or after the neck, float32 [B, D]."""
        features = self.backbone.apply({"params": params["backbone"]}, self.images(batch), batch["camid"]).cls
        if self.settings.test_feature == "before":
            return features
        return self.head.apply({"params": params["head"], "batch_stats": extra["batch_stats"]}, features, False)[0]

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """``attention`` float32 [B, h, w]: what the cls token of the last block looks at, mean over heads, sums to 1."""
        out = self.backbone.apply({"params": params["backbone"]}, self.images(batch), batch["camid"], return_cls_logits=True)
        attention = jax.nn.softmax(out.cls_logits, axis=-1)[..., 1:].mean(axis=1)
        attention = attention / attention.sum(axis=-1, keepdims=True)
        return {"attention": attention.reshape(-1, *self.backbone.grid)}

    def forward_flops(self) -> float:
        return vit.forward_flops(self.backbone.size, self.meta.image_size, self.backbone.patch, self.backbone.stride)
