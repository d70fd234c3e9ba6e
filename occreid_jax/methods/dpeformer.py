"""DPEFormer: patch tokens selected by their similarity to a proxy, pooled into parts, each blended with the global feature; a
memory of identities guides the encoder on clean images and on their occluded twins.

Source: "Dynamic Patch-aware Enrichment Transformer for Occluded Person Re-Identification" (arXiv 2402.10435) and its official
code, zhangxin06/DPEFormer, which leaves the text in many places: docs/methods/dpeformer.md has the table, every row a setting.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from occreid_jax import banks
from occreid_jax.augment.paste import LIBRARY, OCCLUDED_PARTS
from occreid_jax.augment.roa import PASTED, roa
from occreid_jax.errors import UserError
from occreid_jax.losses.identity import accuracy, cross_entropy
from occreid_jax.methods import locations
from occreid_jax.methods.base import SIDES, SMALLEST_TEMPERATURE, MethodBase, apart, encoder_flops, side_by_side
from occreid_jax.nn import blending, heads, pooling, selection, sub_vectors, vit
from occreid_jax.nn.layers import run
from occreid_jax.types import Aux, Batch, Extra, Features, Meta, Params, PrepareContext, Stage
from occreid_jax.weights.trees import merge_encoder

Array = jax.Array

DESCRIPTORS = ("final", "parts_all", "parts_selected")
VIEW_PARTS = {"clean": "parts", "occluded": OCCLUDED_PARTS}  # a view's body-part labels, where they are asked for
VIEWS = tuple(VIEW_PARTS)
BLENDINGS = ("paper", "sub_vector", "relation")
CHOICES = {
    "global_token": ("cls", "first_patch"),
    "necks": ("separate", "shared"),
    "blending.kind": BLENDINGS,
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


class Encoded(NamedTuple):
    """What the network makes of a batch, float32 unless said; P parts of width D."""

    whole: Array  # [B, D] the global feature: the cls token after the final norm, or the first patch
    memory: Array  # [B, P D] all patch tokens, pooled in P stripes from top to bottom
    pooled: Array  # [B, P, D] the selected tokens, pooled
    parts: Array  # [B, P, D] the same, each blended with the global feature
    selection: selection.Selection
    cls_logits: Array | None  # [B, heads, 1 + N] of the last block, before the softmax; None unless asked for

    @property
    def final(self) -> Array:
        return self.parts.reshape(len(self.parts), -1)


class Normalised(NamedTuple):
    """Features of the heads after their necks and their logits, by head, and the statistics of the necks."""

    features: dict[str, Array]
    logits: dict[str, Array]
    statistics: Params


class DPEFormer(MethodBase):
    """Parameters: ``backbone``, ``fbm_0`` ... one per part, ``heads`` with a BNNeck each for "memory", "global", "final" and
    "part_0" .... State: ``batch_stats`` of the necks, ``bank`` [identities, P D] (and ``final_bank`` with ``memory.also_final``).
    Without ``global_neck``, and with ``necks="shared"`` for the final head, a head is a classifier alone.

    A training batch holds ``image`` (clean) and ``occluded`` (its twin); both pass the network as one batch, side by side.
    ``config.method.part_branch`` off leaves the encoder, the memory and two heads: the paper's baseline.

    ``location``: by which scores tokens are ranked. As many are selected as the learned similarities say, or ``selection.fixed``,
    and they are pooled alike, so that sources differ in which tokens they take and in nothing else. "truth" is the share of a
    token's cell that shows the visible person; cells without any follow in their own order.
    """

    choices = CHOICES
    ranges = (*MethodBase.ranges, *RANGES)

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        settings = self.settings
        self.backbone = self.vit()
        self.parts = settings.parts
        tokens = int(np.prod(self.backbone.grid))
        if not settings.part_branch and (settings.descriptor != "parts_all" or settings.memory.also_final):
            raise UserError(
                "config.method.part_branch=false leaves nothing but the stripes of all tokens; with it set descriptor=parts_all "
                "and memory.also_final=false"
            )
        self.blends = settings.part_branch and settings.blending.on
        if settings.selection.order == "stripes" and settings.selection.by_batch:
            told = "pools inside fixed stripes, selection.by_batch=true into as many bins as tokens"
            raise UserError(f"config.method.selection.order=stripes {told}; set order to spatial or rank, or by_batch=false")
        if tokens < 3:
            raise UserError(f"config.method.patch and stride leave {tokens} tokens of an image, too few to select from")
        least, fixed = settings.selection.least, settings.selection.fixed
        self.least = min(least, tokens) if settings.selection.absolute else scaled(least, tokens)
        self.fixed = tokens if not self.selects else max(scaled(fixed, tokens), 1) if fixed else 0
        self.blending = self.blending_module()
        self.head, self.classifier = heads.BNNeck(meta.identities), heads.classifier(meta.identities)

    @property
    def localises(self) -> locations.Localised | None:
        dynamic = self.selects and self.settings.selection.fixed < TOKENS
        return locations.Localised("which tokens show the person (DPSM)") if dynamic else None

    def true_location(self, parts: Array) -> Array:
        """float32 [B, h, w]: the share of each token's cell that shows the visible person, see `locations.visible_shares`."""
        return locations.visible_shares(parts, self.backbone.grid)

    def blending_module(self) -> nn.Module:
        """What enriches a part's feature by the global one."""
        rule, width = self.settings.blending, self.backbone.size.width
        if self.blends and rule.kind != "relation" and width % blending.SUB_WIDTH:
            raise UserError(
                f"config.method.backbone={self.settings.backbone} has features of {width} numbers, which cannot be cut into "
                f"sub-vectors of {blending.SUB_WIDTH}; set config.method.blending.on=False"
            )
        if rule.kind == "relation":
            return sub_vectors.RelationEnrichment(self.dtype)
        if rule.kind == "paper":
            return blending.FeatureBlending(rule.heads, rule.shared, self.dtype)
        if blending.SUB_WIDTH % rule.heads:
            raise UserError(f"config.method.blending.heads={rule.heads} does not divide the {blending.SUB_WIDTH} of a sub-vector")
        return sub_vectors.SubVectorBlending(rule.heads, rule.scramble, self.dtype)

    @property
    def selects(self) -> bool:
        return self.settings.part_branch and self.settings.selection.on

    @property
    def neckless(self) -> tuple[str, ...]:
        """Heads that are a classifier alone: the global one, and the final one where it takes what the parts' necks give."""
        final = ("final",) if self.settings.necks == "shared" and self.settings.part_branch else ()
        return final + (() if self.settings.global_neck else ("global",))

    @property
    def views(self) -> tuple[str, ...]:
        return VIEWS if self.settings.occluded else VIEWS[:1]

    @property
    def bank_heads(self) -> dict[str, str]:
        """The memory banks, each with the head whose feature it remembers."""
        return {"bank": "memory"} | ({"final_bank": "final"} if self.settings.memory.also_final else {})

    def stage(self, name: str, block) -> Stage:
        """Clean images and their occluded twins; without ``config.method.occluded`` clean images alone."""
        plain = super().stage(name, block)
        if not self.settings.occluded:
            return plain
        together = block.sampler.get("images_per_identity", 1)
        augment = roa(block.augment, tuple(self.settings.mean), tuple(self.settings.std), together)
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
            if name in self.neckless:
                params["heads"][name] = {"classifier": self.classifier.init(key, jnp.zeros((1, size)))["params"]}
                continue
            variables = self.head.init(key, jnp.zeros((1, size)), False)
            params["heads"][name], statistics[name] = variables["params"], variables["batch_stats"]
        empty = {name: jnp.zeros((self.meta.identities, self.parts * width)) for name in self.bank_heads}
        return params, {"batch_stats": statistics} | empty

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        return params | {"backbone": merge_encoder(params["backbone"], weights, self.backbone.grid)}, extra

    def prepare(self, stage: Stage, epoch: int, context: PrepareContext) -> Extra:
        """Fills the memory before training: the mean feature of every identity over its un-augmented images."""
        features = context.pass_(self.remembered, self.training_inputs)
        means = {name: banks.identity_means(features[name], context.labels, self.meta.identities) for name in self.bank_heads}
        return context.extra | {name: jnp.asarray(rows) for name, rows in means.items()}

    def remembered(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """For every memory bank what it remembers of each image, float32 [B, P D]."""
        location = self.location_of(batch, "train")
        encoded = self.encode(params, batch["image"], batch["camid"], valid=batch.get("valid"), location=location)
        features = self.features(encoded)
        if self.settings.memory.after_neck:
            features = self.normalised(params, extra["batch_stats"], features).features
        return {name: features[head] for name, head in self.bank_heads.items()}

    # Forward ----------------------------------------------------------------------------------------------------------

    def encode(
        self, params: Params, images: Array, camids: Array, rng: Array | None = None, cls_logits: bool = False,
        views: int = 1, valid: Array | None = None, location: Array | None = None,
    ) -> Encoded:  # fmt: skip
        """The network on normalised images [B, H, W, 3]. ``rng`` is given in training. ``views`` images that stand side by side
        belong together; each view is a batch of its own to whatever looks at a whole batch. ``valid`` bool [B] is False for
        images that only pad the batch. ``location`` float32 [B, h, w] ranks the tokens in place of the learned similarities."""
        train = rng is not None
        out = self.backbone.apply(
            {"params": params["backbone"]}, images, camids, train, cls_logits, rngs={"dropout": rng} if train else None
        )
        tokens = out.tokens[:, 1:]
        whole = out.cls if self.settings.global_token == "cls" else tokens[:, 0].astype(jnp.float32)
        memory = pooling.part_pool(tokens, self.parts)
        ranked_by = None if location is None else location.reshape(len(location), -1)
        if views == 1:
            selected, pooled, parts = self.enrich(params, whole, tokens, ranked_by, valid)
        else:
            by_view = jax.tree.map(lambda x: x.reshape(-1, views, *x.shape[1:]), (whole, tokens, ranked_by))
            found = jax.vmap(functools.partial(self.enrich, params), in_axes=1, out_axes=1)(*by_view)
            selected, pooled, parts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
        return Encoded(whole, memory.reshape(len(memory), -1), pooled, parts, selected, out.cls_logits)

    def enrich(
        self, params: Params, whole: Array, tokens: Array, ranked_by: Array | None = None, valid: Array | None = None
    ) -> tuple[selection.Selection, Array, Array]:
        """Which tokens [B, N, D] are selected, their means by part, and these blended with the global feature, [B, P, D] each."""
        rule = self.settings.selection
        selected = selection.select_tokens(
            whole, tokens, least=self.least, parts=self.parts, fixed=self.fixed, proxy=rule.proxy,
            order=rule.order if self.selects else "spatial", ignore_first_gap=rule.ignore_first_gap,
            normalise=rule.normalise, zero_based=rule.zero_based, by_batch=rule.by_batch and self.selects, valid=valid,
            ranked_by=ranked_by,
        )  # fmt: skip
        pooled = pooling.pool(selected.weights, tokens)
        if not self.blends:
            return selected, pooled, pooled
        whole = jax.lax.stop_gradient(whole) if self.settings.blending.detach_cls else whole
        parts = [self.blending.apply({"params": params[f"fbm_{part}"]}, pooled[:, part], whole) for part in range(self.parts)]
        return selected, pooled, jnp.stack(parts, axis=1)

    def features(self, encoded: Encoded) -> dict[str, Array]:
        """What each head classifies, by the head's name."""
        named = {"memory": encoded.memory, "global": encoded.whole}
        if self.settings.part_branch:
            named |= {"final": encoded.final} | {f"part_{part}": encoded.parts[:, part] for part in range(self.parts)}
        return named

    def normalised(self, params: Params, statistics: Params, features: Mapping[str, Array], train: bool = False) -> Normalised:
        """The heads on features [B, D] of one view, in training with the statistics of the batch."""
        after, logits, statistics, own = {}, {}, dict(statistics), params["heads"]
        for name, feature in features.items():
            if name not in self.neckless:
                (after[name], logits[name]), statistics[name] = run(self.head, own[name], statistics[name], feature, train=train)
        parts = [after[name] for name in features if name.startswith("part_")]
        for name in self.neckless:
            after[name] = jnp.concatenate(parts, axis=-1) if name == "final" else features[name]
            logits[name] = self.classifier.apply({"params": own[name]["classifier"]}, after[name])
        return Normalised(after, logits, statistics)

    def classified(self, params: Params, extra: Extra, features: Mapping[str, Array]) -> dict[str, Normalised]:
        """Training: `normalised` of every view; ``features`` [V B, D] have the views of an image side by side. The views pass the
        necks one after the other, clean ones first, each normalised by its own statistics, or as one batch."""
        statistics, found, count = extra["batch_stats"], {}, len(self.views)
        if not self.settings.neck_per_view:
            whole = self.normalised(params, statistics, features, True)
            views = apart(whole.features, count), apart(whole.logits, count)
            return {view: Normalised(*each, whole.statistics) for view, *each in zip(self.views, *views, strict=True)}
        for view, own in zip(self.views, apart(features, count), strict=True):
            found[view] = self.normalised(params, statistics, own, True)
            statistics = found[view].statistics
        return found

    # Losses -----------------------------------------------------------------------------------------------------------

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        """Cross entropy of every head, mean over both views, and the contrastive loss against the memory (Eq. 14 to 16).

        The memory is that of before the step; clean images alone enter it (Eq. 13).
        """
        labels, count = batch["label"], len(self.views)
        images = side_by_side([batch["image"], batch["occluded"]] if self.settings.occluded else [batch["image"]])
        camids = side_by_side([batch["camid"], batch.get("occluded_camid", batch["camid"])][:count])
        location = self.location_of_views(batch, rng, [VIEW_PARTS[view] for view in self.views])
        encoded = self.encode(params, images, camids, rng, views=count, location=location)
        features = self.features(encoded)
        views = self.classified(params, extra, features)
        identity, metrics = self.identity(views, labels)
        contrastive, remembered, contrasts = self.contrastive(extra, features, views, labels)
        own = "final" if self.settings.part_branch else "memory"
        metrics |= contrasts
        metrics |= {("accuracy" if view == "clean" else "occluded_accuracy"): accuracy(each.logits[own], labels)
                    for view, each in views.items()}  # fmt: skip
        metrics |= self.selection_metrics(encoded.selection)
        if self.settings.occluded:
            metrics["covered"] = jnp.mean(batch["covered"])
        changed = {"batch_stats": views[self.views[-1]].statistics} | remembered
        return identity + contrastive, Aux(extra | changed, metrics)

    def identity(self, views: Mapping[str, Normalised], labels: Array) -> tuple[Array, dict[str, Array]]:
        """Weighted sum of the heads' cross entropies, each a mean over the views; metrics: that sum, and its kinds of heads."""
        settings, kinds = self.settings, {}
        shares = (1.0, settings.occluded_identity_weight)[: len(views)]
        for head in views["clean"].logits:
            terms = [cross_entropy(each.logits[head], labels, settings.label_smoothing) for each in views.values()]
            value = sum(share * term for share, term in zip(shares, terms, strict=True)) / sum(shares)
            kind = head.partition("_")[0]
            kinds[kind] = kinds.get(kind, 0.0) + settings.identity_weights[kind] * value
        total = sum(kinds.values())
        return total, {"identity": total} | {f"identity_{kind}": value for kind, value in kinds.items()}

    def contrastive(
        self, extra: Extra, features: Mapping[str, Array], views: Mapping[str, Normalised], labels: Array
    ) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        """The weighted contrastive loss of every memory, the memories after the step, and metrics."""
        memory, total, moved, metrics = self.settings.memory, 0.0, {}, {}
        for bank, head in self.bank_heads.items():
            compared = [
                each.features[head] if memory.after_neck else features[head][number :: len(views)]
                for number, each in enumerate(views.values())
            ]
            terms = [jnp.mean(banks.info_nce(x, extra[bank], labels, memory.temperature, memory.floor)) for x in compared]
            value = sum(share * term for share, term in zip((1.0, memory.occluded_weight)[: len(terms)], terms, strict=True))
            total = total + memory.weight * value
            start = "" if bank == "bank" else "final_"
            metrics[f"{start}contrastive"] = value
            metrics |= {f"{start}contrastive_{view}": term for view, term in zip(views, terms, strict=True)}
            moved[bank] = banks.update_bank(extra[bank], compared[0], labels, memory.keep, memory.rule)
        return total, moved, metrics

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
        rule = self.settings.selection
        if self.selects and rule.by_batch and not rule.by_batch_at_test:
            raise UserError(
                "config.method.selection.by_batch=true: what a picture gives would depend on the pictures beside it; set "
                "config.method.selection.by_batch_at_test=true to compare as the official code does, or by_batch=false"
            )
        location = self.location_of(batch, role)
        encoded = self.encode(params, batch["image"], batch["camid"], valid=batch.get("valid"), location=location)
        features, descriptor = self.features(encoded), self.settings.descriptor
        head = "final" if descriptor == "final" or (descriptor == "parts_selected" and not self.blends) else "memory"
        if descriptor == "parts_selected" and self.blends:
            features["memory"] = encoded.pooled.reshape(encoded.memory.shape)
        if self.settings.test_feature == "before":
            return features[head]
        return self.normalised(params, extra["batch_stats"], features).features[head]

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """``attention`` float32 [B, h, w] of the cls token, sums to 1; ``scores`` float32 [B, h, w] that rank the tokens, not
        below 0; ``selected`` bool [B, h, w]; ``k`` and ``k by the gap`` float32 [B], tokens selected and before the minimum."""
        location = self.location_of(batch, "query")
        encoded = self.encode(params, batch["image"], batch["camid"], cls_logits=True, location=location)
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
        width, rule = self.backbone.size.width, self.settings.blending
        blended = {
            "paper": blending.feature_blending_flops(width, rule.heads),
            "sub_vector": sub_vectors.sub_vector_flops(width),
            "relation": sub_vectors.relation_flops(width),
        }[rule.kind]
        return encoder_flops(self.backbone) + self.parts * self.blends * blended


def scaled(count: int, tokens: int) -> int:
    """A number of 128 tokens as the same share of ``tokens``."""
    return int(count * tokens / TOKENS + 0.5)
