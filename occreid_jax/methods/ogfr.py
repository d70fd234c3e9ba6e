"""OGFR: an encoder that is told which parts are hidden; a teacher that erases patches of the clean picture by a learned policy; a
student that sees the picture with an obstacle and learns from the teacher; distances over the parts that both pictures show.

Source: "Occlusion-Guided Feature Purification via Reinforced Knowledge Distillation" (arXiv 2507.08520). No official code is
known: docs/methods/ogfr.md has the table of what the text leaves open and what is built, most rows a setting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.augment.obstacle import obstacle
from occreid_jax.augment.paste import LIBRARY
from occreid_jax.errors import UserError
from occreid_jax.evaluation import visibility_weighted
from occreid_jax.losses import distillation, policy
from occreid_jax.losses.identity import accuracy, cross_entropy
from occreid_jax.losses.metric import batch_hard_triplet
from occreid_jax.methods import locations
from occreid_jax.methods.base import SIDES, SMALLEST_TEMPERATURE, MethodBase, apart
from occreid_jax.methods.occlusion_aware import VIEW_PARTS, Encoded, OcclusionAware
from occreid_jax.nn import ogfr, vit
from occreid_jax.nn.heads import BNNeck
from occreid_jax.nn.layers import run, trunc_normal
from occreid_jax.parts import PARTS
from occreid_jax.types import Aux, Batch, Bound, Extra, Features, Meta, Params, PrepareContext, Stage
from occreid_jax.weights.trees import merge_encoder

Array = jax.Array

BRANCH_VIEW = {"teacher": "clean", "student": "occluded"}  # what a branch sees in training
ERASES = {"teacher": ("teacher",), "student": ("student",), "both": ("teacher", "student"), "none": ()}
REWARDS = ("batch", "dataset", "picture", "same_step")  # A, B, C and D of docs/methods/ogfr.md
NAMES = ("global", *(f"part_{number}" for number in range(1, len(PARTS))))  # what a branch gives, in the order of its tokens
CHOICES = {
    "erases": tuple(ERASES),
    "decoder": ogfr.DECODERS,
    "visibility_rule": ("argmax", "raw_cosine"),
    "test_pattern": ("labels", "whole", "estimate"),
    "unparsed": ("error", "whole", "estimate"),
    "triplet_feature": SIDES,
    "test_feature": SIDES,
    "policy.reward": REWARDS,
    "policy.reduction": policy.REDUCTIONS,
}
RANGES = (
    ("threshold", 0, None),
    ("pattern_dropout", 0, 1),
    ("visible_cells", 1, None),
    ("temperature", SMALLEST_TEMPERATURE, None),
    ("policy.refresh_every", 0, None),
    ("policy.random_keep", 0, 1),
    ("policy.certain", 1e-6, 1),
)


class Branch(NamedTuple):
    """What a branch makes of its view."""

    tokens: Array  # float32 [B, 9 + N, D]
    logits: Array | None  # float32 [B, N] of the agent's probability to keep a patch; None where it does not act
    kept: Array | None  # bool [B, N]; None where all are kept
    unmasked: Array | None = None  # float32 [B, D], its global feature with all patches kept; None unless the reward needs it


class Heads(NamedTuple):
    """Features of a branch after their necks and their logits, [B, 9, D] and [B, 9, C], and the statistics of the necks."""

    after: Array
    logits: Array
    statistics: Params


class OGFR(OcclusionAware):
    """Parameters: ``backbone`` (with ``part_tokens``), ``patterns`` float32 [2^C, D], ``agent``, ``teacher`` and ``student`` (a
    decoder each), ``heads``: a BNNeck each for "encoder", "global" and "part_1" .... With ``occlusion_aware=False`` the encoder
    and the head "global" alone; without ``distils`` there is no teacher, and a student only if it erases.

    ``extra``: ``batch_stats`` of the necks by who is normalised ("encoder", "teacher", "student": the necks' parameters are
    shared), and where an agent acts ``baseline``: by branch ``value`` float32 [] (or [images]) and ``count``, how often it was
    refreshed. The student and the encoder are all that the test feature needs.

    ``location``: in training what is erased: "truth" keeps the cells that show the person, "constant" those that most training
    pictures do, "random" ``policy.random_keep`` of all; at test time which parts count as visible, 0 or 1 from every source.
    """

    choices = CHOICES
    ranges = (*MethodBase.ranges, *RANGES)

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        self.check_parts()
        self.head, self.agent = BNNeck(meta.identities), ogfr.Agent(self.settings.policy.start)
        self.decoders = {name: self.decoder(name) for name in self.branches if self.distils or name in self.erasing}

    def check_parts(self) -> None:
        """Raises `UserError` for settings that cannot be had together."""
        if not self.aware and (self.distils or self.erasing):
            told = "leaves a plain ViT on occluded pictures; with it set distils=False and erases=none"
            raise UserError(f"config.method.occlusion_aware=False {told}")
        if not self.distils and "teacher" in self.erasing:
            told = "needs a teacher; set distils=True, or erases=student or none"
            raise UserError(f"config.method.erases={self.settings.erases} {told}")

    def decoder(self, branch: str) -> ogfr.Decoder:
        settings, erases = self.settings, branch in self.erasing
        return ogfr.Decoder(
            self.backbone.size, self.patches if erases else 0, erases and settings.decoder == "fixed",
            settings.fep_residual or not erases, settings.drop_path, settings.remat, self.dtype, self.attention,
        )  # fmt: skip

    @property
    def distils(self) -> bool:
        return self.settings.distils

    @property
    def branches(self) -> tuple[str, ...]:
        return tuple(BRANCH_VIEW) if self.distils else ("student",)

    @property
    def erasing(self) -> tuple[str, ...]:
        """Branches whose decoder purifies."""
        return ERASES[self.settings.erases]

    @property
    def acts(self) -> bool:
        """Whether an agent says what is erased."""
        return bool(self.erasing) and self.settings.policy.on

    @property
    def decoded(self) -> bool:
        """Whether the branches are more than the encoder's own tokens."""
        return bool(self.decoders)

    @property
    def names(self) -> tuple[str, ...]:
        """What a branch gives."""
        return NAMES if self.aware else NAMES[:1]

    # Labels and locations ---------------------------------------------------------------------------------------------

    @property
    def localises(self) -> locations.Localised | None:
        if not self.aware:
            return None
        if not self.acts:
            return locations.Localised("which parts are visible", ("test",))
        return locations.Localised("which patches are kept in training, which parts are visible at test time")

    def true_location(self, parts: Array) -> Array:
        """What is erased: the share of each patch's cell that shows the visible person, float32 [B, h, w]."""
        return locations.visible_shares(parts, self.backbone.grid)

    def true_location_at(self, parts: Array, when: str) -> Array:
        """In training `true_location`, at test time `true_visibility`."""
        return self.true_location(parts) if when == "train" else self.true_visibility(parts)

    # Parameters -------------------------------------------------------------------------------------------------------

    def stage(self, name: str, block) -> Stage:
        plain, settings = super().stage(name, block), self.settings
        augment = obstacle(block.augment, tuple(settings.mean), tuple(settings.std))
        shared = LIBRARY if block.augment.occlusion.kind == "obstacle" else ()
        decoders = len(self.decoders) * ogfr.decoder_flops(self.backbone.size, self.patches)
        flops = len(self.branches) * self.encoding_flops() + decoders
        told = "the agent erases nearly everything, or nearly nothing"
        bounds = tuple(Bound(f"{self.prefix(name)}kept", 0.02, 0.998, told) for name in self.erasing if self.acts)
        again = len(self.erasing) * decoders if settings.policy.reward == "same_step" and self.acts else 0.0
        return dataclasses.replace(
            plain, augment=augment, shared=shared, flops=flops, frozen_flops=again / max(len(self.decoders), 1), bounds=bounds,
            refresh_every=settings.policy.refresh_every if self.acts else 0,
        )  # fmt: skip

    def init(self, rng: Array) -> tuple[Params, Extra]:
        keys = iter(jax.random.split(rng, 5 + 1 + len(NAMES)))
        width = self.backbone.size.width
        images, one = jnp.zeros((1, *self.meta.image_size, 3)), jnp.zeros((1, width))
        params = {"backbone": self.backbone.init(next(keys), images, jnp.zeros(1, jnp.int32))["params"]}
        key_patterns, key_agent, key_teacher, key_student = (next(keys) for _ in range(4))
        if self.aware:
            params["patterns"] = trunc_normal()(key_patterns, (2**self.groups, width))
        if self.acts:
            params["agent"] = self.agent.init(key_agent, jnp.zeros((1, self.patches, ogfr.PART_TOKENS)))["params"]
        decoder_keys = {"teacher": key_teacher, "student": key_student}
        tokens = jnp.zeros((1, ogfr.FEATURES + self.patches, width))
        for name, decoder in self.decoders.items():
            params[name] = decoder.init(decoder_keys[name], tokens)["params"]
        made = {name: self.head.init(next(keys), one, False) for name in (*NAMES, "encoder")}
        own = (*self.names, *(("encoder",) if self.decoded else ()))
        params["heads"] = {name: made[name]["params"] for name in own}
        normalised = {branch: {name: made[name]["batch_stats"] for name in self.names} for branch in self.branches}
        if self.decoded:
            normalised["encoder"] = made["encoder"]["batch_stats"]
        extra = {"batch_stats": normalised}
        if self.acts and self.settings.policy.reward != "same_step":
            shape = (self.meta.images,) if self.settings.policy.reward == "picture" else ()
            extra["baseline"] = {name: {"value": jnp.zeros(shape), "count": jnp.zeros(())} for name in self.erasing}
        return params, extra

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        return params | {"backbone": merge_encoder(params["backbone"], weights, self.backbone.grid)}, extra

    def prepare(self, stage: Stage, epoch: int, context: PrepareContext) -> Extra:
        """The reward's baseline (Eq. 9): the running mean, over the refreshes of the stage, of how probable the true identity is
        when nothing is erased. Pictures are un-augmented and the necks have their running statistics."""
        if "baseline" not in context.extra:
            return context.extra
        probabilities, refreshed = context.pass_(self.unerased, self.training_inputs), {}
        for name, old in context.extra["baseline"].items():
            own = jnp.asarray(np.asarray(probabilities[name])[np.arange(len(context.labels)), context.labels])
            new = own if old["value"].ndim else jnp.mean(own)
            count = old["count"] if epoch else jnp.zeros(())  # a run that this one starts from left its own
            refreshed[name] = {"value": policy.running_mean(old["value"], new, count), "count": count + 1}
        return context.extra | {"baseline": refreshed}

    def unerased(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """Probabilities float32 [B, C] of the identities by branch that erases, with all patches kept."""
        encoded, found = self.encode(params, batch["image"], batch["camid"], self.patterns(params, batch)), {}
        for name in self.erasing:
            found[name] = jax.nn.softmax(self.recognised(params, extra, name, encoded), axis=-1)
        return found

    def recognised(self, params: Params, extra: Extra, branch: str, encoded: Encoded, kept: Array | None = None) -> Array:
        """Logits float32 [B, C] of a branch that keeps these patches, bool [B, N] or all; nothing is random or learns."""
        feature = self.decode(params, branch, encoded.tokens, kept)[:, :1]
        return self.normalised(params, extra["batch_stats"][branch], feature, names=NAMES[:1]).logits[:, 0]

    # Forward ----------------------------------------------------------------------------------------------------------

    def decode(
        self, params: Params, branch: str, tokens: Array, kept: Array | None = None, rng: Array | None = None
    ) -> Array:
        """Tokens [B, 9 + N, D] after a branch's decoder, float32; the same where it has none."""
        if branch not in self.decoders:
            return tokens
        rngs = None if rng is None else {"dropout": rng}
        return self.decoders[branch].apply({"params": params[branch]}, tokens, kept, rng is not None, rngs=rngs)

    def branch(
        self, params: Params, name: str, encoded: Encoded, rng: Array | None = None, scores: Array | None = None
    ) -> Branch:
        """A branch on what the encoder gives. In training the agent's decisions are drawn; without ``rng`` a patch is kept whose
        probability is at least a half. ``scores`` float32 [B, h, w] of another source decide in its place."""
        key_action, key_layers = (None, None) if rng is None else jax.random.split(rng)
        logits = kept = unmasked = None
        if name in self.erasing and self.acts:
            if scores is not None:
                level = 1 - self.settings.policy.random_keep if self.source("train") == "random" else 0.5
                kept = scores.reshape(len(scores), -1) >= level
            else:
                logits = self.agent.apply({"params": params["agent"]}, encoded.correlation)
                kept = logits >= 0 if rng is None else jax.random.bernoulli(key_action, jax.nn.sigmoid(logits))
                if rng is not None and self.settings.policy.reward == "same_step":
                    unmasked = jax.lax.stop_gradient(self.decode(params, name, encoded.tokens, None, key_layers)[:, 0])
        return Branch(self.decode(params, name, encoded.tokens, kept, key_layers), logits, kept, unmasked)

    def features(self, tokens: Array) -> Array:
        """[B, 9, D]: of the picture and of its parts, the first of a branch's tokens."""
        return tokens[:, : len(self.names)]

    def normalised(
        self, params: Params, statistics: Params, features: Array, train: bool = False, names: Sequence[str] | None = None
    ) -> Heads:
        """The heads on a branch's features [B, 9, D], in training with the statistics of the batch."""
        after, logits, changed = [], [], dict(statistics)
        for name, feature in zip(names or self.names, jnp.moveaxis(features, 1, 0), strict=True):
            (one, two), changed[name] = run(self.head, params["heads"][name], statistics[name], feature, train=train)
            after.append(one)
            logits.append(two)
        return Heads(jnp.stack(after, axis=1), jnp.stack(logits, axis=1), changed)

    # Losses -----------------------------------------------------------------------------------------------------------

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        """Weighted sum of `terms`. ``batch`` has ``image`` and ``occluded``, and ``parts`` and ``occluded_parts`` where the
        encoder is told what is hidden."""
        key_patterns, key_encoder, key_location, *keys = jax.random.split(rng, 5)
        views = [BRANCH_VIEW[name] for name in self.branches]
        seen = {}
        if self.aware:
            pattern_keys = jax.random.split(key_patterns, len(views))
            seen = {view: self.seen(batch, view, key) for view, key in zip(views, pattern_keys, strict=True)}
        encoded = self.encode_views(params, batch, views, seen, key_encoder)
        scores = self.location_of_views(batch, key_location, [VIEW_PARTS[view] for view in views]) if self.acts else None
        given = [None] * len(views)
        if scores is not None:  # of a picture without labels all is kept
            given = [jnp.where(seen[view].parsed[:, None, None], own, 1.0)
                     for view, own in zip(views, apart(scores, len(views)), strict=True)]  # fmt: skip
        found = {name: self.branch(params, name, encoded[view], key, own)
                 for name, view, key, own in zip(self.branches, views, keys, given, strict=False)}  # fmt: skip
        statistics = dict(extra["batch_stats"])
        heads = {}
        for name, branch in found.items():
            heads[name] = self.normalised(params, statistics[name], self.features(branch.tokens), True)
            statistics[name] = heads[name].statistics
        terms, metrics = self.terms(found, heads, batch["label"])
        if self.decoded:
            terms["identity_encoder"], statistics["encoder"] = self.encoder_identity(params, extra, encoded, batch["label"])
        if self.aware:
            terms["mask"] = self.mask_loss(encoded, seen, batch)
            metrics |= self.pattern_metrics(seen[views[-1]].patterns)
        policy_terms, policy_metrics = self.policy_terms(params, extra, found, heads, batch)
        terms |= policy_terms
        weights = self.weights()
        total = sum(weights[name] * value for name, value in terms.items())
        metrics |= terms | policy_metrics | {"covered": jnp.mean(batch["covered"])}
        return total, Aux(extra | {"batch_stats": statistics}, metrics)

    def weights(self) -> dict[str, float]:
        """Of every term (Eq. 23, and what it leaves out)."""
        own = self.settings
        return {
            "mse": own.mse_weight, "cosine": own.cosine_weight, "divergence": own.divergence_weight,
            "identity_student": own.student_id_weight if self.distils else 1.0, "identity_teacher": own.teacher_id_weight,
            "identity_encoder": own.encoder_id_weight, "triplet": own.triplet_weight, "mask": own.mask_weight,
            "policy": own.policy.weight,
        }  # fmt: skip

    def terms(
        self, found: Mapping[str, Branch], heads: Mapping[str, Heads], labels: Array
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """The terms of the branches by name, and metrics."""
        settings, terms = self.settings, {}
        for name, own in heads.items():
            terms[f"identity_{name}"] = self.identity(own.logits, labels)
        compared = next(iter(found))  # the teacher, where there is one
        sides = {"before": self.features(found[compared].tokens), "after": heads[compared].after}
        triplets = [
            batch_hard_triplet(feature, labels, settings.margin)
            for feature in jnp.moveaxis(sides[settings.triplet_feature], 1, 0)
        ]
        terms["triplet"] = triplets[0] + (sum(triplets[1:]) / (len(triplets) - 1) if len(triplets) > 1 else 0.0)
        metrics = {f"accuracy_{name}": accuracy(own.logits[:, 0], labels) for name, own in heads.items()}
        if self.distils:
            teacher, student = found["teacher"].tokens, found["student"].tokens
            told, logits = heads["teacher"].logits, heads["student"].logits
            if settings.distill_sg:
                teacher, told = jax.lax.stop_gradient((teacher, told))
            count = len(NAMES)
            terms |= {
                "mse": distillation.mean_squared(teacher, student),
                "cosine": distillation.cosine_distance(teacher[:, :count], student[:, :count]),
                "divergence": distillation.divergence(told, logits, settings.temperature),
            }
        return terms, metrics

    def identity(self, logits: Array, labels: Array) -> Array:
        """Cross entropy of logits [B, F, C], mean over features and pictures."""
        flat = logits.reshape(-1, logits.shape[-1])
        return cross_entropy(flat, jnp.repeat(labels, logits.shape[1]), self.settings.label_smoothing)

    def encoder_identity(
        self, params: Params, extra: Extra, encoded: Mapping[str, Encoded], labels: Array
    ) -> tuple[Array, Params]:
        """The sum over the views of the cross entropies of the encoder's class token (Eq. 20), each view normalised by itself;
        and the statistics of its neck."""
        total, statistics = 0.0, {"encoder": extra["batch_stats"]["encoder"]}
        for own in encoded.values():
            one = self.normalised(params, statistics, own.tokens[:, :1], True, ("encoder",))
            total, statistics = total + self.identity(one.logits, labels), one.statistics
        return total, statistics["encoder"]

    def policy_terms(
        self, params: Params, extra: Extra, found: Mapping[str, Branch], heads: Mapping[str, Heads], batch: Batch
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """The agent's loss, summed over the branches it acts in, and what it does. Nothing where another source decides."""
        settings, total, metrics = self.settings.policy, 0.0, {}
        for name, branch in found.items():
            start = self.prefix(name)
            if branch.kept is not None:
                metrics[f"{start}kept"] = jnp.mean(branch.kept.astype(jnp.float32))
            if branch.logits is None:
                continue
            score = self.true_probability(heads[name].logits[:, 0], batch["label"])
            baseline = self.baseline(params, extra, name, branch, batch)
            if settings.reward == "batch":
                score = jnp.broadcast_to(jnp.mean(score), score.shape)
            gain = policy.reward(score, baseline, settings.certain, centred=settings.centre)
            total = total + policy.policy_loss(branch.logits, branch.kept, gain, settings.reduction)
            metrics |= {
                f"{start}keep_probability": jnp.mean(jax.nn.sigmoid(branch.logits)),
                f"{start}entropy": policy.entropy(branch.logits),
                f"{start}reward": jnp.mean(gain),
                f"{start}score": jnp.mean(score),
                f"{start}baseline": jnp.mean(baseline),
            }
        return ({"policy": total} if any(branch.logits is not None for branch in found.values()) else {}), metrics

    def prefix(self, branch: str) -> str:
        """What the metrics of a branch begin with where two branches erase."""
        return "" if len(self.erasing) < 2 else f"{branch}_"

    def true_probability(self, logits: Array, labels: Array) -> Array:
        """Probability float32 [B] of the true identity."""
        own = jnp.arange(logits.shape[-1]) == labels[:, None]
        return jnp.sum(jnp.where(own, jax.nn.softmax(logits, axis=-1), 0.0), axis=-1)

    def baseline(self, params: Params, extra: Extra, name: str, branch: Branch, batch: Batch) -> Array:
        """What the reward compares with, float32 [] or [B]."""
        if branch.unmasked is not None:
            statistics = extra["batch_stats"][name]
            own = self.normalised(params, statistics, branch.unmasked[:, None], True, NAMES[:1])
            return self.true_probability(own.logits[:, 0], batch["label"])
        value = extra["baseline"][name]["value"]
        return jnp.take(value, batch["index"], mode="clip") if value.ndim else value

    # Evaluation and reports -------------------------------------------------------------------------------------------

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        """``global`` [B, D], ``parts`` [B, 8, D] and ``visible`` [B, 8], float32; of a plain ViT the global feature alone,
        [B, D]."""
        encoded = self.encode(params, batch["image"], batch["camid"], self.patterns(params, batch))
        features = self.features(self.branch(params, "student", encoded).tokens)
        if self.settings.test_feature == "after":
            features = self.normalised(params, extra["batch_stats"]["student"], features).after
        if not self.aware:
            return features[:, 0]
        return {"global": features[:, 0], "parts": features[:, 1:], "visible": self.visibility(encoded, batch, role)}

    def distance(self, query: Features, gallery: Features) -> Array:
        """Mean distance over the picture and the parts that both show (Eq. 25), float32 [Q, G]."""
        return visibility_weighted(query, gallery) if self.aware else super().distance(query, gallery)

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """``attention`` float32 [B, h, w] of the class token, sums to 1. Where the encoder knows parts ``correlation`` float32
        [B, 9, h, w], a softmax over background and parts, and "visible head" ... float32 [B]; where an agent acts ``keep``
        float32 [B, h, w], its probability to keep a patch, and ``erased`` bool, below a half."""
        grid = self.backbone.grid
        encoded = self.encode(params, batch["image"], batch["camid"], self.patterns(params, batch), cls_logits=True)
        shown = {"attention": self.attention_map(encoded.cls_logits[..., -self.patches :], grid)}
        if not self.aware:
            return shown
        maps = jnp.swapaxes(encoded.correlation, 1, 2).reshape(-1, ogfr.PART_TOKENS, *grid)
        shown["correlation"] = jax.nn.softmax(self.settings.correlation_scale * maps, axis=1)
        visible = self.visibility(encoded, batch, "query")
        shown |= {f"visible {part.replace('_', ' ')}": visible[:, number] for number, part in enumerate(PARTS[1:])}
        if self.acts:
            keep = jax.nn.sigmoid(self.agent.apply({"params": params["agent"]}, encoded.correlation)).reshape(-1, *grid)
            shown |= {"keep": keep, "erased": keep < 0.5}
        return shown

    def illustrate(self, params: Params, extra: Extra, batch: Batch, rng: Array) -> dict[str, Array]:
        """How probable the agent finds it to keep patches of pictures as they are, what one draw leaves of them, and what is to
        be earned by erasing."""
        if not self.acts:
            return {}
        image, grid = batch["image"], self.backbone.grid
        encoded = self.encode(params, image, batch["camid"], self.patterns(params, batch))
        logits = self.agent.apply({"params": params["agent"]}, encoded.correlation)
        kept = jax.random.bernoulli(rng, jax.nn.sigmoid(logits))
        pixels = vit.on_grid(kept.reshape(-1, *grid), image.shape[1:3])[..., None]
        return {
            "image, kept patches": jnp.stack([image, jnp.where(pixels, image, 0.0)], axis=1)[:8],
            "probability that a patch is kept": jax.nn.sigmoid(logits).reshape(-1),
        } | self.earned(params, extra, encoded, batch, kept, rng)

    def earned(
        self, params: Params, extra: Extra, encoded: Encoded, batch: Batch, kept: Array, rng: Array
    ) -> dict[str, Array]:
        """The probability of the true identity, float32 [B], by what is erased: the oracle ladder of the reward. NaN where it
        takes labels and a picture has none."""
        person = self.true_location(batch["parts"]).reshape(kept.shape) >= 0.5
        chance = jax.random.permutation(jax.random.fold_in(rng, 1), kept, axis=1, independent=True)
        drawn = {"nothing": None, "what the agent draws": kept, "as much at random": chance}
        labelled = {"all but the person": person, "the person": ~person}
        parsed = batch.get("parsed", jnp.ones(len(kept), bool))
        found = {}
        for erased, own in (drawn | labelled).items():
            logits = self.recognised(params, extra, self.erasing[0], encoded, own)
            told = self.true_probability(logits, batch["label"])
            name = f"probability of the true identity, erased: {erased}"
            found[name] = jnp.where(parsed, told, jnp.nan) if erased in labelled else told
        return found

    @property
    def grids(self) -> dict[str, tuple[int, int]]:
        return super().grids | {name: self.backbone.grid for name in self.erasing}

    def forward_flops(self) -> float:
        decoder = ogfr.decoder_flops(self.backbone.size, self.patches) if "student" in self.decoders else 0.0
        return self.encoding_flops() + decoder

