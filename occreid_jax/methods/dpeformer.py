"""DPEFormer: patch tokens selected by their similarity to a proxy, pooled into parts, each blended with the global feature; a
memory of identities guides the encoder on clean images and on their occluded twins.

Source: "Dynamic Patch-aware Enrichment Transformer for Occluded Person Re-Identification" (arXiv 2402.10435). No official code is
known; where the paper is silent, the values are those of FED (CVPR 2022) and TransReID, whose code it builds on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax import banks
from occreid_jax.augment.paste import LIBRARY
from occreid_jax.augment.roa import roa
from occreid_jax.errors import UserError
from occreid_jax.losses.identity import accuracy, cross_entropy
from occreid_jax.methods.base import SIDES, SMALLEST_TEMPERATURE, MethodBase, encoder_flops
from occreid_jax.nn import blending, heads, pooling, selection, vit
from occreid_jax.nn.layers import run
from occreid_jax.types import Aux, Batch, Extra, Features, Meta, Params, PrepareContext, Stage
from occreid_jax.weights.trees import merge_encoder

Array = jax.Array

DESCRIPTORS = ("final", "parts_all", "parts_selected")
CHOICES = {
    "descriptor": DESCRIPTORS,
    "test_feature": SIDES,
    "selection.proxy": selection.PROXIES,
    "selection.order": selection.ORDERS,
    "memory.rule": banks.RULES,
}
RANGES = (
    ("parts", 1, None),
    ("selection.least", 0, None),
    ("selection.fixed", 0, None),
    ("blending.heads", 1, None),
    ("memory.keep", 0, 1),
    ("memory.temperature", SMALLEST_TEMPERATURE, None),
    ("memory.floor", 0, 1),
)
TOKENS = 128  # of a 256x128 image with patches of 16: what the numbers of selected tokens in the config refer to
PASTED = ("roa", "cut_and_paste")  # kinds of occlusion that need a library of objects


class Encoded(NamedTuple):
    """What the network makes of a batch, float32 unless said; P parts of width D."""

    cls: Array  # [B, D] cls token after the final norm
    memory: Array  # [B, P D] all patch tokens, pooled in P stripes from top to bottom
    pooled: Array  # [B, P, D] the selected tokens, pooled
    parts: Array  # [B, P, D] the same, each blended with the cls token
    selection: selection.Selection
    cls_logits: Array | None  # [B, heads, 1 + N] of the last block, before the softmax; None unless asked for

    @property
    def final(self) -> Array:
        return self.parts.reshape(len(self.parts), -1)


class DPEFormer(MethodBase):
    """Parameters: ``backbone``, ``fbm_0`` ... one per part, ``heads`` with a BNNeck each for "memory", "global", "final" and
    "part_0" .... State: ``batch_stats`` of the necks, ``bank`` [identities, P D] (and ``final_bank`` with ``memory.also_final``).

    A training batch holds ``image`` (clean) and ``occluded`` (its twin); both pass the network as one batch, clean ones first.
    ``config.method.part_branch`` off leaves the encoder, the memory and two heads: the paper's baseline.
    """

    choices = CHOICES
    ranges = (*MethodBase.ranges, *RANGES)

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        settings = self.settings
        self.backbone = self.vit()
        self.parts = settings.parts
        width, tokens = self.backbone.size.width, int(np.prod(self.backbone.grid))
        if not settings.part_branch and (settings.descriptor != "parts_all" or settings.memory.also_final):
            raise UserError(
                "config.method.part_branch=false leaves nothing but the stripes of all tokens; with it set descriptor=parts_all "
                "and memory.also_final=false"
            )
        self.blends = settings.part_branch and settings.blending.on
        if self.blends and width % blending.SUB_WIDTH:
            raise UserError(
                f"config.method.backbone={settings.backbone} has features of {width} numbers, which cannot be cut into "
                f"sub-vectors of {blending.SUB_WIDTH}; set config.method.blending.on=False"
            )
        if tokens < 3:
            raise UserError(f"config.method.patch and stride leave {tokens} tokens of an image, too few to select from")
        counts = settings.selection.least, settings.selection.fixed
        self.least, self.fixed = (int(count * tokens / TOKENS + 0.5) for count in counts)
        if settings.selection.fixed:
            self.fixed = max(self.fixed, 1)
        if not self.selects:
            self.fixed = tokens
        self.blending = blending.FeatureBlending(settings.blending.heads, settings.blending.shared, self.dtype)
        self.head = heads.BNNeck(meta.identities)

    @property
    def selects(self) -> bool:
        return self.settings.part_branch and self.settings.selection.on

    @property
    def bank_heads(self) -> dict[str, str]:
        """The memory banks, each with the head whose feature it remembers."""
        return {"bank": "memory"} | ({"final_bank": "final"} if self.settings.memory.also_final else {})

    def stage(self, name: str, block) -> Stage:
        """Clean images and their occluded twins; without ``config.method.occluded`` clean images alone."""
        plain = super().stage(name, block)
        if not self.settings.occluded:
            return plain
        augment = roa(block.augment, tuple(self.settings.mean), tuple(self.settings.std))
        shared = LIBRARY if block.augment.occlusion.kind in PASTED else ()
        return dataclasses.replace(plain, augment=augment, shared=shared, flops=2 * plain.flops)

    # Parameters and memory --------------------------------------------------------------------------------------------

    def init(self, rng: Array) -> tuple[Params, Extra]:
        key_encoder, key_blending, key_heads = jax.random.split(rng, 3)
        width = self.backbone.size.width
        images = jnp.zeros((1, *self.meta.image_size, 3))
        params = {"backbone": self.backbone.init(key_encoder, images, jnp.zeros(1, jnp.int32))["params"], "heads": {}}
        if self.blends:
            for part, key in enumerate(jax.random.split(key_blending, self.parts)):
                params[f"fbm_{part}"] = self.blending.init(key, *[jnp.zeros((1, width))] * 2)["params"]
        widths = {"memory": self.parts * width, "global": width}
        if self.settings.part_branch:
            widths |= {"final": self.parts * width} | {f"part_{part}": width for part in range(self.parts)}
        statistics = {}
        for (name, size), key in zip(widths.items(), jax.random.split(key_heads, len(widths)), strict=True):
            variables = self.head.init(key, jnp.zeros((1, size)), False)
            params["heads"][name], statistics[name] = variables["params"], variables["batch_stats"]
        empty = {name: jnp.zeros((self.meta.identities, self.parts * width)) for name in self.bank_heads}
        return params, {"batch_stats": statistics} | empty

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        return params | {"backbone": merge_encoder(params["backbone"], weights, self.backbone.grid)}, extra

    def prepare(self, stage: Stage, epoch: int, context: PrepareContext) -> Extra:
        """Fills the memory before training: the mean feature of every identity over its un-augmented images."""
        features = context.pass_(self.remembered)
        means = {name: banks.identity_means(features[name], context.labels, self.meta.identities) for name in self.bank_heads}
        return context.extra | {name: jnp.asarray(rows) for name, rows in means.items()}

    def remembered(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """For every memory bank what it remembers of each image, float32 [B, P D]."""
        features = self.features(self.encode(params, batch["image"], batch["camid"]))
        after = self.settings.memory.after_neck
        return {
            name: self.after_neck(params, extra, head, features[head]) if after else features[head]
            for name, head in self.bank_heads.items()
        }

    # Forward ----------------------------------------------------------------------------------------------------------

    def encode(
        self, params: Params, images: Array, camids: Array, rng: Array | None = None, cls_logits: bool = False
    ) -> Encoded:
        """The network on normalised images [B, H, W, 3]. ``rng`` is given in training."""
        settings, train = self.settings, rng is not None
        out = self.backbone.apply(
            {"params": params["backbone"]}, images, camids, train, cls_logits, rngs={"dropout": rng} if train else None
        )
        cls, tokens = out.cls, out.tokens[:, 1:]
        rule = settings.selection
        selected = selection.select_tokens(
            cls, tokens, least=self.least, parts=self.parts, fixed=self.fixed, proxy=rule.proxy,
            order=rule.order if self.selects else "spatial",
            ignore_first_gap=rule.ignore_first_gap, normalise=rule.normalise,
        )  # fmt: skip
        memory = pooling.part_pool(tokens, self.parts)
        pooled = pooling.pool(selected.weights, tokens)
        parts = pooled
        if self.blends:
            whole = jax.lax.stop_gradient(cls) if settings.blending.detach_cls else cls
            blended = [
                self.blending.apply({"params": params[f"fbm_{part}"]}, pooled[:, part], whole) for part in range(self.parts)
            ]
            parts = jnp.stack(blended, axis=1)
        return Encoded(cls, memory.reshape(len(memory), -1), pooled, parts, selected, out.cls_logits)

    def features(self, encoded: Encoded) -> dict[str, Array]:
        """What each head classifies, by the head's name."""
        named = {"memory": encoded.memory, "global": encoded.cls}
        if self.settings.part_branch:
            named |= {"final": encoded.final} | {f"part_{part}": encoded.parts[:, part] for part in range(self.parts)}
        return named

    def after_neck(self, params: Params, extra: Extra, head: str, feature: Array) -> Array:
        """A feature [B, D] after the neck of a head, with the running statistics."""
        (normalised, _), _ = run(self.head, params["heads"][head], extra["batch_stats"][head], feature)
        return normalised

    def classify(
        self, params: Params, extra: Extra, features: dict[str, Array], calls: int
    ) -> tuple[dict[str, Array], dict[str, Array], Params]:
        """Training: (features after their necks, logits, new statistics). The batch passes the necks in ``calls`` equal pieces,
        one after the other, each normalised by its own statistics."""
        normalised, logits, statistics = {}, {}, dict(extra["batch_stats"])
        for name, feature in features.items():
            outputs = []
            for piece in jnp.split(feature, calls):
                output, statistics[name] = run(self.head, params["heads"][name], statistics[name], piece, train=True)
                outputs.append(output)
            normalised[name], logits[name] = (jnp.concatenate(pieces) for pieces in zip(*outputs, strict=True))
        return normalised, logits, statistics

    # Losses -----------------------------------------------------------------------------------------------------------

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        """Cross entropy of every head, mean over both views, and the contrastive loss against the memory (Eq. 14 to 16).

        The memory is that of before the step; clean images alone enter it (Eq. 13).
        """
        settings, memory, labels = self.settings, self.settings.memory, batch["label"]
        images, camids, views = batch["image"], batch["camid"], 1
        if settings.occluded:
            images, camids, views = jnp.concatenate([images, batch["occluded"]]), jnp.concatenate([camids, camids]), 2
        encoded = self.encode(params, images, camids, rng)
        features = self.features(encoded)
        normalised, logits, statistics = self.classify(params, extra, features, views if settings.neck_per_view else 1)
        changed = {"batch_stats": statistics}

        def classified(logits: Array) -> Array:
            return cross_entropy(logits, labels, settings.label_smoothing)

        weights = (1.0, settings.occluded_identity_weight)[:views]
        identity = sum(over_views(classified, values, weights) for values in logits.values()) / sum(weights)
        total = settings.identity_weight * identity
        metrics = {"identity": identity}
        for name, head in self.bank_heads.items():
            compared = (normalised if memory.after_neck else features)[head]

            def contrast(feature: Array, bank: Array = extra[name]) -> Array:
                return jnp.mean(banks.info_nce(feature, bank, labels, memory.temperature, memory.floor))

            contrastive = over_views(contrast, compared, (1.0, memory.occluded_weight)[:views])
            total = total + memory.weight * contrastive
            metrics["contrastive" if name == "bank" else "final_contrastive"] = contrastive
            changed[name] = banks.update_bank(extra[name], compared[: len(labels)], labels, memory.keep, memory.rule)

        own = jnp.split(logits["final" if settings.part_branch else "memory"], views)
        metrics |= dict(zip(("accuracy", "occluded_accuracy"), (accuracy(each, labels) for each in own), strict=False))
        metrics |= self.selection_metrics(encoded.selection)
        if settings.occluded:
            metrics["covered"] = jnp.mean(batch["covered"])
        return total, Aux(extra | changed, metrics)

    def selection_metrics(self, selected: selection.Selection) -> dict[str, Array]:
        """How many tokens are selected; by the gaps alone, how often one and how often less than the minimum, where gaps decide.
        Nothing where all tokens are taken."""
        if not self.selects:
            return {}
        metrics = {"selected": selected.count}
        if not self.fixed:
            metrics |= {
                "selected_before_minimum": selected.by_gap,
                "share_of_one": selected.by_gap == 1,
                "share_raised": selected.count > selected.by_gap,
            }
        return {name: jnp.mean(values.astype(jnp.float32)) for name, values in metrics.items()}

    # Evaluation and reports -------------------------------------------------------------------------------------------

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        """The descriptor float32 [B, P D]: blended parts, all tokens in stripes, or selected tokens pooled (Table VI).

        After a neck: pooled tokens that no head was trained on take that of the memory, whose features they are like.
        """
        encoded = self.encode(params, batch["image"], batch["camid"])
        descriptor = self.settings.descriptor
        if descriptor == "final" or (descriptor == "parts_selected" and not self.blends):
            feature, head = encoded.final, "final"
        elif descriptor == "parts_selected":
            feature, head = encoded.pooled.reshape(encoded.memory.shape), "memory"
        else:
            feature, head = encoded.memory, "memory"
        return self.after_neck(params, extra, head, feature) if self.settings.test_feature == "after" else feature

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """``attention`` float32 [B, h, w] of the cls token, sums to 1; ``scores`` float32 [B, h, w], similarity to the proxy, not
        below 0; ``selected`` bool [B, h, w]; ``k`` and ``k by the gap`` float32 [B], tokens selected and before the minimum."""
        encoded = self.encode(params, batch["image"], batch["camid"], cls_logits=True)
        selected, grid = encoded.selection, self.backbone.grid
        return {
            "attention": self.attention_map(encoded.cls_logits[..., 1:], grid),
            "scores": jnp.maximum(selected.scores, 0.0).reshape(-1, *grid),
            "selected": selected.selected.reshape(-1, *grid),
            "k": selected.count.astype(jnp.float32),
            "k by the gap": selected.by_gap.astype(jnp.float32),
        }

    def illustrate(self, params: Params, extra: Extra, batch: Batch, rng: Array) -> dict[str, Array]:
        """How many tokens are selected, how often the gap behind the proxy wins (k = 1) and the minimum acts, and what is left of
        a picture."""
        image, grid = batch["image"], self.backbone.grid
        selected = self.encode(params, image, batch["camid"]).selection
        pixels = vit.on_grid(selected.selected.reshape(-1, *grid), image.shape[1:3])[..., None]
        return {
            "image, selected tokens": jnp.stack([image, jnp.where(pixels, image, 0.0)], axis=1)[:8],
            "selected tokens k": selected.count.astype(jnp.float32),
            "k before the minimum": selected.by_gap.astype(jnp.float32),
            "share of k = 1": (selected.by_gap == 1).astype(jnp.float32),
            "share clipped to the minimum": (selected.count > selected.by_gap).astype(jnp.float32),
        }

    def forward_flops(self) -> float:
        blended = blending.feature_blending_flops(self.backbone.size.width, self.settings.blending.heads)
        return encoder_flops(self.backbone) + self.parts * self.blends * blended


def over_views(function: Callable[[Array], Array], values: Array, weights: tuple[float, ...]) -> Array:
    """Weighted sum of a mean over each view; ``values`` [V B, ...] holds the views one after the other."""
    return sum(weight * function(view) for weight, view in zip(weights, jnp.split(values, len(weights)), strict=True))
