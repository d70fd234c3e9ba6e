"""FED: features of horizontal stripes, weighted by how much of the person each shows (OEM), and diffused with features of other
people (FDM), against memory banks of identity centres.

Source: Wang et al., "Feature Erasing and Diffusion Network for Occluded Person Re-Identification", CVPR 2022, and its official
code. Where the two differ, or the code does what its author cannot have meant, the choice is a setting. Notation as in
`occreid_jax.nn.fed`: P stripes of width D; h and r are the erased and the diffused feature of an image after their necks, [P D].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.augment.npo import npo
from occreid_jax.augment.paste import LIBRARY, OCCLUDED_PARTS
from occreid_jax.banks import RULES, identity_means, info_nce, update_bank
from occreid_jax.errors import UserError
from occreid_jax.losses.identity import accuracy, cross_entropy
from occreid_jax.losses.metric import batch_hard_triplet
from occreid_jax.methods import locations
from occreid_jax.methods.base import SIDES, SMALLEST_TEMPERATURE, MethodBase, apart, encoder_flops, side_by_side
from occreid_jax.nn.fed import FFNS, FeatureDiffusion, OcclusionErasing, PartNecks, feature_diffusion_flops, search
from occreid_jax.nn.heads import classifier
from occreid_jax.nn.layers import BatchNorm, run
from occreid_jax.nn.pooling import part_pool
from occreid_jax.types import Aux, Batch, Extra, Features, Meta, Params, PrepareContext, Stage
from occreid_jax.vectors import unit_vectors
from occreid_jax.weights.trees import merge_encoder

Array = jax.Array

VIEW_PARTS = {"clean": "parts", "occluded": OCCLUDED_PARTS}  # a view's body-part labels, where they are asked for
VIEWS = tuple(VIEW_PARTS)
CHOICES = {
    "global_token": ("cls", "first_patch"),
    "global_feature": SIDES,
    "necks": ("shared", "separate", "none"),
    "attention_width": ("stripe", "feature"),
    "bank_rule": RULES,
    "bank_first": ("pooled", "erased"),
    "bank_second": ("copy", "diffused"),
    "ffn": FFNS,
    "test_feature": ("erased", "diffused", "global"),
}
RANGES = (
    ("parts", 1, None),
    ("neighbours", 1, None),
    ("attention_heads", 1, None),
    ("bank_keep", 0, 1),
    ("temperature", SMALLEST_TEMPERATURE, None),
    ("floor", 0, 1),
    ("least_weight", 0, 1),
)


class Encoded(NamedTuple):
    """What the encoder and OEM give for a batch, float32."""

    whole: Array  # [B, D] the global feature
    parts: Array  # [B, P, D] means of the stripes' tokens
    scores: Array  # [B, P] how much of each stripe is seen, as OEM says; ones without it
    given: Array | None  # [B, P] what the stripes are multiplied with, where it is not these scores
    cls_logits: Array | None  # [B, heads, 1 + N] what the last block's cls token looks at; None unless asked for

    @property
    def weights(self) -> Array:
        """[B, P] what the stripes are multiplied with."""
        return self.scores if self.given is None else self.given

    @property
    def erased(self) -> Array:
        return self.weights[..., None] * self.parts


class Trained(NamedTuple):
    """What the losses of a training batch see, by view, or by kind ("erased", "diffused", and of logits "global") and view."""

    compared: dict[str, Array]  # [B, D] global features on the side of the neck that the triplet loss takes
    features: dict[tuple[str, str], Array]  # [B, P D] after the necks
    logits: dict[tuple[str, str], Array]  # [B, identities]
    statistics: Params  # of the necks, after all of them


class FED(MethodBase):
    """Parameters: ``backbone`` and ``heads``; ``oem``, ``fdm``, ``necks``, ``second_necks`` and ``neck`` (of the global feature)
    where the settings have them.

    ``extra``: ``batch_stats``, and with ``local`` the memory ``bank`` float32 [identities, P D]: one, "erased", or with FDM and
    without ``shared_bank`` a second one, "diffused". Nothing but the encoder, OEM and the necks is needed for the test feature.

    ``location``: where the numbers come from that stripes, and in FDM what is taken, are multiplied with. "truth" is the share of
    the person in a stripe that nothing covers, which OEM is to find; its labels and its loss stay, whatever the source is.
    """

    choices = CHOICES
    ranges = (*MethodBase.ranges, *RANGES)

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        settings = self.settings
        self.backbone = self.vit()
        width = self.backbone.size.width
        if not settings.local and (settings.oem or settings.fdm or settings.test_feature != "global"):
            raise UserError("config.method.local=False leaves the global feature; set oem=False, fdm=False, test_feature=global")
        if settings.test_feature == "diffused" and not settings.fdm:
            raise UserError("config.method.test_feature=diffused needs config.method.fdm=True")
        if settings.fdm and meta.identities < 2:
            raise UserError("config.method.fdm=True needs two identities or more")
        if settings.parts * width % settings.attention_heads:
            wide = f"the width {settings.parts} x {width} of the features"
            raise UserError(f"config.method.attention_heads={settings.attention_heads} does not divide {wide}")
        self.neighbours = min(settings.neighbours, meta.identities - 1)
        wide = width * (settings.parts if settings.attention_width == "feature" else 1)
        scale = (wide / settings.attention_heads) ** -0.5 if settings.attention_scale is None else settings.attention_scale
        self.oem, self.necks, self.neck = OcclusionErasing(), PartNecks(), BatchNorm()
        self.fdm = FeatureDiffusion(settings.attention_heads, scale, settings.scramble, settings.ffn, self.dtype)
        self.head = classifier(meta.identities)

    @property
    def localises(self) -> locations.Localised | None:
        return locations.Localised("what is seen of each stripe (OEM)") if self.settings.oem else None

    def true_location(self, parts: Array) -> Array:
        """float32 [B, P, 1]: the share of the person in each stripe that nothing covers, see `locations.uncovered_shares`."""
        return locations.uncovered_shares(parts, (self.settings.parts, 1))

    def views(self, stage: str) -> tuple[str, ...]:
        """The pictures of an image that a stage sees, in the order in which the necks meet them."""
        if self.settings.clean:
            return VIEWS
        return VIEWS[:1] if self.config.stages[stage].augment.occlusion.kind == "none" else VIEWS[1:]

    def stage(self, name: str, block) -> Stage:
        occlusion = block.augment.occlusion
        if occlusion.parts != self.settings.parts:
            told = f"config.method.parts={self.settings.parts}: both number the stripes"
            raise UserError(f"config.stages.{name}.augment.occlusion.parts={occlusion.parts} differs from {told}")
        augment = npo(block.augment, tuple(self.settings.mean), tuple(self.settings.std))
        shared = LIBRARY if occlusion.kind == "npo" else ()
        flops = len(self.views(name)) * (encoder_flops(self.backbone) + self.diffusion_flops())
        return dataclasses.replace(super().stage(name, block), augment=augment, shared=shared, flops=flops)

    # Parameters -------------------------------------------------------------------------------------------------------

    def init(self, rng: Array) -> tuple[Params, Extra]:
        settings, keys = self.settings, jax.random.split(rng, 8)
        width, parts = self.backbone.size.width, settings.parts
        images, one, stripes = jnp.zeros((1, *self.meta.image_size, 3)), jnp.zeros((1, width)), jnp.zeros((1, parts, width))
        all_parts = stripes.reshape(1, -1)
        params = {"backbone": self.backbone.init(keys[0], images, jnp.zeros(1, jnp.int32))["params"]}
        necks, inputs = {}, {"global": one}
        if settings.global_neck:
            necks["neck"] = self.neck.init(keys[1], one, False)
        if settings.local:
            inputs["erased"] = all_parts
            if settings.necks != "none":
                necks["necks"] = self.necks.init(keys[1], stripes, False)
        if settings.oem:
            params["oem"] = self.oem.init(keys[2], stripes)["params"]
        if settings.fdm:
            inputs["diffused"] = all_parts
            params["fdm"] = self.fdm.init(keys[3], all_parts, jnp.zeros((1, parts)), all_parts[:, None])["params"]
            if settings.necks == "separate":
                necks["second_necks"] = self.necks.init(keys[1], stripes, False)
        kernels = {name: self.head.init(key, x)["params"] for key, (name, x) in zip(keys[4:], inputs.items(), strict=False)}
        params["heads"] = {f"classifier_{name}": kernel for name, kernel in kernels.items()}
        params |= {name: variables["params"] for name, variables in necks.items()}
        extra = {"batch_stats": {name: variables["batch_stats"] for name, variables in necks.items()}}
        if settings.local:
            names = ("erased", "diffused") if settings.fdm and not settings.shared_bank else ("erased",)
            extra["bank"] = {name: jnp.zeros((self.meta.identities, parts * width)) for name in names}
        return params, extra

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        return params | {"backbone": merge_encoder(params["backbone"], weights, self.backbone.grid)}, extra

    def prepare(self, stage: Stage, epoch: int, context: PrepareContext) -> Extra:
        """The banks at the stage's start: the mean of every identity's un-augmented images, in the feature after the necks and,
        by default, before OEM. The second bank is a copy of the first, or with ``bank_second`` made of diffused features."""
        if not self.settings.local:
            return context.extra

        def first(params: Params, extra: Extra, batch: Batch) -> Array:
            encoded = self.encode(params, batch["image"], batch["camid"], location=self.location_of(batch, "train"))
            parts = encoded.erased if self.settings.bank_first == "erased" else encoded.parts
            return self.after_necks(params, extra["batch_stats"], parts)[0]

        def centres(function) -> Array:
            features = np.asarray(context.pass_(function, self.training_inputs))
            means = jnp.asarray(identity_means(features, context.labels, self.meta.identities))
            return unit_vectors(means) if self.settings.bank_unit else means

        bank = {"erased": centres(first)}
        if "diffused" in context.extra["bank"]:
            bank["diffused"] = bank["erased"]
            if self.settings.bank_second == "diffused":
                bank["diffused"] = centres(lambda p, e, b: self.test_features(p, e | {"bank": bank}, b, "train")["diffused"])
        return context.extra | {"bank": bank}

    # Forward ----------------------------------------------------------------------------------------------------------

    def encode(
        self, params: Params, images: Array, camids: Array, rng: Array | None = None, return_cls_logits: bool = False,
        location: Array | None = None,
    ) -> Encoded:  # fmt: skip
        """Global feature, stripes and scores of normalised images [B, H, W, 3]; ``rng`` is given in training. ``location``
        float32 [B, P, 1] stands in for the learned scores where stripes are multiplied with them."""
        train = rng is not None
        out = self.backbone.apply(
            {"params": params["backbone"]}, images, camids, train, return_cls_logits, rngs={"dropout": rng} if train else None
        )
        whole = out.tokens[:, 0 if self.settings.global_token == "cls" else 1]
        parts = part_pool(out.tokens[:, 1:], self.settings.parts)
        scores = self.oem.apply({"params": params["oem"]}, parts) if self.settings.oem else jnp.ones(parts.shape[:2])
        given, least = None if location is None else location[..., 0], self.settings.get("least_weight", 0.0)
        if least:
            given = least + (1 - least) * (scores if given is None else given)
        return Encoded(whole, parts, scores, given, out.cls_logits)

    def after_necks(
        self, params: Params, statistics: Params, parts: Array, train: bool = False, second: bool = False
    ) -> tuple[Array, Params]:
        """Stripes [B, P, D] after their necks, flat [B, P D], and all statistics after it; ``second`` for diffused ones."""
        if self.settings.necks == "none":
            return parts.reshape(len(parts), -1), statistics
        name = "second_necks" if second and self.settings.necks == "separate" else "necks"
        parts, changed = run(self.necks, params[name], statistics[name], parts, train=train)
        return parts.reshape(len(parts), -1), statistics | {name: changed}

    def diffuse(self, params: Params, bank: Array, feature: Array, weights: Array, labels: Array | None = None) -> Array:
        """FDM: features h [B, P D] and their weights [B, P] -> stripes [B, P, D], with the nearest centres of other identities
        (of any, where no ``labels`` int32 [B] are known)."""
        memory = jax.lax.stop_gradient(bank)
        memory = unit_vectors(memory) if self.settings.memory_unit else memory
        memory = memory[search(feature, bank, self.neighbours, labels)]
        return self.fdm.apply({"params": params["fdm"]}, feature, weights, memory)

    def whole_feature(self, params: Params, statistics: Params, whole: Array, train: bool = False) -> tuple[Array, Params]:
        """The global feature [B, D] after its neck, if it has one, and all statistics."""
        if not self.settings.global_neck:
            return whole, statistics
        whole, changed = run(self.neck, params["neck"], statistics["neck"], whole, train=train)
        return whole, statistics | {"neck": changed}

    def logits(self, params: Params, name: str, feature: Array) -> Array:
        return self.head.apply({"params": params["heads"][f"classifier_{name}"]}, feature)

    # Losses -----------------------------------------------------------------------------------------------------------

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        """Weighted sum of `terms`. ``batch`` has ``image``, ``occluded`` and ``visible`` float32 [B, P], the stripes' labels."""
        labels, views = batch["label"], self.encode_views(params, batch, rng, self.views(stage.name))
        trained = self.trained(params, extra, views, labels)
        terms = self.terms(trained, views, extra, batch)
        total = sum(weight * value for weight, value in terms.values())
        metrics = {name: value for name, (_, value) in terms.items()}
        *_, last = views
        metrics["accuracy"] = accuracy(trained.logits["erased" if self.settings.local else "global", last], labels)
        if self.settings.oem:
            metrics |= {f"mean_score_{view}": jnp.mean(encoded.scores) for view, encoded in views.items()}
            seen = batch["visible"] if last == "occluded" else jnp.ones_like(batch["visible"])
            metrics["score_accuracy"] = jnp.mean((views[last].scores > 0.5) == (seen > 0.5))
        extra = extra | {"batch_stats": trained.statistics}
        if self.settings.local:
            extra["bank"] = self.updated_bank(extra["bank"], trained.features, batch, next(iter(views)))
        return total, Aux(extra, metrics)

    def encode_views(self, params: Params, batch: Batch, rng: Array, views: tuple[str, ...]) -> dict[str, Encoded]:
        """What the encoder makes of every view of a batch, in one pass."""
        pictures = {"clean": batch["image"], "occluded": batch["occluded"]}
        images = side_by_side([pictures[view] for view in views])
        location = self.location_of_views(batch, rng, [VIEW_PARTS[view] for view in views])
        encoded = self.encode(params, images, jnp.repeat(batch["camid"], len(views)), rng, location=location)
        return dict(zip(views, apart(encoded, len(views)), strict=True))

    def trained(self, params: Params, extra: Extra, views: Mapping[str, Encoded], labels: Array) -> Trained:
        """Features and logits of a training batch. The views go through the necks one after the other: erased features of the
        clean and of the occluded picture, then diffused ones."""
        settings, statistics = self.settings, extra["batch_stats"]
        compared, features, logits = {}, {}, {}
        for view, encoded in views.items():
            normalised, statistics = self.whole_feature(params, statistics, encoded.whole, True)
            logits["global", view] = self.logits(params, "global", normalised)
            compared[view] = normalised if settings.global_feature == "after" else encoded.whole
        if settings.local:
            for view, encoded in views.items():
                features["erased", view], statistics = self.after_necks(params, statistics, encoded.erased, True)
        if settings.fdm:
            for view, encoded in views.items():
                diffused = self.diffuse(params, extra["bank"]["erased"], features["erased", view], encoded.weights, labels)
                features["diffused", view], statistics = self.after_necks(params, statistics, diffused, True, second=True)
        logits |= {(name, view): self.logits(params, name, feature) for (name, view), feature in features.items()}
        return Trained(compared, features, logits, statistics)

    def terms(
        self, trained: Trained, views: Mapping[str, Encoded], extra: Extra, batch: Batch
    ) -> dict[str, tuple[float, Array]]:
        """Weight and value of every term, by its kind and view: "triplet_clean", "score_occluded", "identity_erased_clean" ..."""
        settings, labels, count, terms = self.settings, batch["label"], len(views), {}
        if settings.triplet_weight:
            for view, feature in trained.compared.items():
                value = batch_hard_triplet(feature, labels, settings.margin)
                terms[f"triplet_{view}"] = settings.triplet_weight / count, value
        if settings.oem:
            for view, encoded in views.items():
                value = jnp.mean(jnp.square(encoded.scores - (batch["visible"] if view == "occluded" else 1.0)))
                terms[f"score_{view}"] = settings.score_weights[VIEWS.index(view)], value
        for (name, view), feature in trained.features.items():
            bank = extra["bank"].get(name, extra["bank"]["erased"])
            value = jnp.mean(info_nce(feature, bank, labels, settings.temperature, settings.floor))
            terms[f"contrast_{name}_{view}"] = settings[f"{name}_contrast"][VIEWS.index(view)], value
        for (name, view), logits in trained.logits.items():
            value = cross_entropy(logits, labels, settings.label_smoothing)
            terms[f"identity_{name}_{view}"] = settings[f"{name}_weight"] / count, value
        return terms

    def updated_bank(
        self, bank: Mapping[str, Array], features: Mapping[tuple[str, str], Array], batch: Batch, view: str
    ) -> Params:
        """The banks after a step, moved by the features of a view, the clean pictures where there are any. One that both kinds
        share takes the diffused first."""
        settings, moved = self.settings, dict(bank)
        for name in ("diffused", "erased"):
            if (name, view) in features:
                target = name if name in bank else "erased"
                feature = unit_vectors(features[name, view]) if settings.bank_unit else features[name, view]
                rows = update_bank(moved[target], feature, batch["label"], settings.bank_keep, settings.bank_rule)
                moved[target] = unit_vectors(rows) if settings.bank_unit else rows
        return moved

    # Evaluation and reports -------------------------------------------------------------------------------------------

    def test_features(self, params: Params, extra: Extra, batch: Batch, role: str = "query") -> dict[str, Array]:
        """The features of a transformed batch by name: "global" [B, D], "erased" [B, P D] and, with FDM, "diffused" [B, P D]."""
        statistics, settings = extra["batch_stats"], self.settings
        encoded = self.encode(params, batch["image"], batch["camid"], location=self.location_of(batch, role))
        after, _ = self.whole_feature(params, statistics, encoded.whole)
        features = {"global": after if settings.global_feature == "after" else encoded.whole}
        if settings.local:
            features["erased"], _ = self.after_necks(params, statistics, encoded.erased)
        if settings.fdm:
            diffused = self.diffuse(params, extra["bank"]["erased"], features["erased"], encoded.weights)
            features["diffused"], _ = self.after_necks(params, statistics, diffused, second=True)
        return features

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        """The feature that ``test_feature`` names, float32 [B, P D] or [B, D]. "diffused" needs the bank that training left."""
        return self.test_features(params, extra, batch, role)[self.settings.test_feature]

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """``attention`` float32 [B, h, w] of the cls token, sums to 1; with OEM ``visibility`` float32 [B, P, 1], what the
        stripes are multiplied with, and each stripe's beside it, from the top, float32 [B]."""
        grid, location = self.backbone.grid, self.location_of(batch, "query")
        encoded = self.encode(params, batch["image"], batch["camid"], return_cls_logits=True, location=location)
        shown = {"attention": self.attention_map(encoded.cls_logits[..., 1:], grid)}
        if self.settings.oem:
            shown["visibility"] = encoded.weights[:, :, None]
            shown |= {f"stripe {number} score": score for number, score in enumerate(encoded.weights.T, start=1)}
        return shown

    def illustrate(self, params: Params, extra: Extra, batch: Batch, rng: Array) -> dict[str, Array]:
        """How OEM scores the stripes of pictures as they are."""
        if not self.settings.oem:
            return {}
        return {"scores of all stripes": self.encode(params, batch["image"], batch["camid"]).scores.reshape(-1)}

    def forward_flops(self) -> float:
        return encoder_flops(self.backbone) + (self.diffusion_flops() if self.settings.test_feature == "diffused" else 0.0)

    def diffusion_flops(self) -> float:
        """Floating-point operations of FDM on one image; 0 without it."""
        settings, width = self.settings, self.backbone.size.width
        return feature_diffusion_flops(width, settings.parts, self.neighbours, settings.ffn) if settings.fdm else 0.0
