"""DPM++: prototypes of identities compared under a mask of what an image shows, anchored to texts, on samples with patches
transferred between images.

Source: "DPM++: Dynamic Masked Metric Learning for Occluded Person Re-identification" (arXiv 2605.06637), which joins and extends
CLIP-ReID (AAAI 2023), DPM (Tan et al., ACM MM 2022) and SPT (Tan et al., AAAI 2024). Every choice that the paper leaves open or
that the official code of the parts makes otherwise is a setting; docs/methods/dpm_pp.md has the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.augment import patch_transfer
from occreid_jax.augment.patch_transfer import Transfer
from occreid_jax.errors import UserError
from occreid_jax.losses import prototypes
from occreid_jax.losses.identity import accuracy, cross_entropy
from occreid_jax.losses.margin import BEYOND, angular_margin
from occreid_jax.losses.metric import batch_hard_triplet, l2_normalise
from occreid_jax.losses.regularisers import REDUCTIONS, head_correlation, head_enrich
from occreid_jax.methods import salient_selection
from occreid_jax.methods.base import CLIP, SIDES
from occreid_jax.methods.prompt_learning import PROMPTS, PromptLearning
from occreid_jax.methods.salient_selection import SalientSelection
from occreid_jax.nn import clip, heads, vit
from occreid_jax.nn.layers import BatchNorm
from occreid_jax.nn.mask_generator import POOLINGS, MaskGenerator, mask_generator_flops, patch_maps, scaled_levels
from occreid_jax.parts import visible_person
from occreid_jax.types import Aux, Batch, Extra, Features, Meta, Params, PrepareContext, Stage, Update
from occreid_jax.weights.trees import merge_clip, merge_encoder

Array = jax.Array

SELECTION, METRIC = "selection", "metric"
"""Names of the second and third stage; the first is `prompt_learning.PROMPTS`."""
REMEDIES = {
    PROMPTS: "set config.method.text=False",
    SELECTION: "name weights of the selection network after those of the encoder in config.init.weights, or set "
    "config.method.transfer.on=False",
}
TRANSFER = {
    "partners": patch_transfer.PARTNERS,
    "threshold_on": patch_transfer.COMPARED,
    "hole_of": patch_transfer.HOLES,
    "fallback": patch_transfer.FALLBACKS,
    "ignore_negatives": ("symmetric", "anchor", "none"),
}
CHOICES = {
    "camera_tokens": ("cls", "all"),
    "anchor_logits": ("product", "cosine"),
    "beyond": BEYOND,
    "head_reduction": REDUCTIONS,
    "mask_pooling": POOLINGS,
    "mask_space": ("visual", "text"),
    "mask_side": prototypes.SIDES,
    "mask_order": prototypes.ORDERS,
    "test_feature": SIDES,
    **{f"transfer.{key}": words for key, words in TRANSFER.items()},
    **{f"selection.{key}": words for key, words in salient_selection.CHOICES.items()},
}
RANGES = (
    ("anchor_epochs", 0, None),
    ("transfer.probability", 0, 1),
    ("transfer.top_share", 0, 1),
    ("transfer.roll_step", 1, None),
    ("transfer.least_area", 0, None),
    *((f"selection.{key}", least, most) for key, least, most in salient_selection.RANGES),
)
COSINE_SCALE = 100.0  # of anchor_logits "cosine"


class Encoded(NamedTuple):
    """What the encoder gives for a batch, float32 unless said."""

    feature: Array  # [B, D] cls token after the final norm
    projected: Array | None  # [B, E] the same in the space of the texts; None without one
    early: Array  # [B, D] cls token before the last block
    maps: Array  # [B, h, w, L D] patch tokens of several blocks, before any norm; in the compute type
    cls_logits: Array  # [B, heads, N] what the last block's cls token says to the patches, before the softmax


class DPMPP(PromptLearning):
    """Parameters: ``visual``, ``neck``, ``prototypes/weight`` [identities, D]; ``mask_generator`` with ``mask``; ``text`` and
    ``prompts`` with ``text``; ``selection`` with ``transfer``; ``projected_head`` with ``clip_reid_heads``.

    The last stage alone decides what is compared at test time: the feature of an image, and for queries the mask.
    """

    order = (PROMPTS, SELECTION, METRIC)
    choices = CHOICES
    ranges = (*PromptLearning.ranges, *RANGES)

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        settings = self.settings
        is_clip = settings.backbone.startswith(CLIP)
        self.needs_text_space = settings.text or settings.clip_reid_heads or settings.test_projected or self.in_text_space
        if self.needs_text_space and not is_clip:
            raise UserError(
                f"config.method.backbone={settings.backbone} has no text space; with it set text=false, mask_space=visual, "
                "clip_reid_heads=false and test_projected=false"
            )
        if self.in_text_space and not (settings.text and settings.mask):
            raise UserError("config.method.mask_space=text masks the text prototypes; it needs text=true and mask=true")
        self.visual = self.encoder(settings.stride, cameras=meta.cameras if settings.camera else 0)
        if settings.text:
            self.set_prompts(settings.backbone.removeprefix(CLIP))
        self.neck = BatchNorm()
        self.projected_head = heads.BNNeck(meta.identities)
        width = self.visual.size.width
        try:
            self.levels = scaled_levels(settings.mask_levels, self.visual.size.depth)
        except ValueError as error:
            raise UserError(f"config.method.mask_levels: {error}") from error
        features = self.visual.projection_width if self.in_text_space else width
        self.mask_generator = MaskGenerator(
            width, features, len(self.levels), settings.mask_pooling, settings.mask_level_norm, self.dtype
        )
        self.selection = None
        if settings.transfer.on:
            stride = settings.selection.stride or settings.stride
            self.selection = SalientSelection(self.encoder(stride, projected=False), meta.identities, settings.selection)
            self.try_transfer()

    @property
    def in_text_space(self) -> bool:
        return self.settings.mask_space == "text"

    def encoder(self, stride: int, cameras: int = 0, projected: bool = True) -> vit.ViT:
        """The image encoder with ``stride``; ``projected`` adds the way into CLIP's text space where that is used."""
        settings, changes = self.settings, {}
        if projected and self.needs_text_space:
            changes["projection_width"] = clip.clip_size(settings.backbone.removeprefix(CLIP)).embed
        return self.vit(stride=stride, cameras=cameras, camera_tokens=settings.camera_tokens, **changes)

    def try_transfer(self) -> None:
        """Raises `UserError` for settings of the transfer that do not exist or do not go together."""
        masks, labels = np.ones((2, np.prod(self.visual.grid)), bool), np.arange(2)
        try:
            jax.eval_shape(lambda key: self.partners(key, jnp.asarray(masks), jnp.asarray(labels)), jax.random.key(0))
        except (ValueError, TypeError) as error:
            raise UserError(f"config.method.transfer: {error}") from error

    # Stages -----------------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        """Those of the config that the switches leave something to do in."""
        idle = {PROMPTS: not self.settings.text, SELECTION: self.selection is None}
        init = self.config.init
        for name, brought in ((PROMPTS, init.run), (SELECTION, init.run or "," in init.weights)):
            if not idle[name] and name not in self.config.stages and not brought:
                raise UserError(
                    f"this config has no stage '{name}', and what it would learn comes from nowhere else; {REMEDIES[name]}"
                )
        return tuple(stage for stage in super().stages() if not idle.get(stage.name, False))

    def stage(self, name: str, block) -> Stage:
        if name == PROMPTS:
            return self.prompt_stage(block)
        pictures = super().stage(name, block)
        frozen = heads.FROZEN_BIAS
        if name == SELECTION:
            by_part = (("decision/", block.decision_optimizer), ("", block.optimizer))
            update = Update("^selection/", by_part, frozen)
            return dataclasses.replace(pictures, updates=(update,))
        mask = ("^mask_generator/", block.mask_optimizer)
        others = (("^(neck|prototypes|projected_head)/", block.head_optimizer), ("", block.optimizer))
        trained = "^(visual|neck|prototypes|projected_head)/"
        updates = (Update("^(visual|neck|prototypes|projected_head|mask_generator)/", (mask, *others), frozen),)
        if self.settings.alternating and self.settings.mask:
            updates = (Update(trained, others, frozen), Update(mask[0], mask[1]))
        return dataclasses.replace(pictures, updates=updates)

    def prepare(self, stage: Stage, epoch: int, context: PrepareContext) -> Extra:
        """Image features before the prompts are learned; the texts of all identities before they serve as anchors."""
        if not self.settings.text or stage.name == SELECTION:
            return context.extra
        return self.prepare_features(context) if stage.name == PROMPTS else self.prepare_texts(context)

    # Parameters -------------------------------------------------------------------------------------------------------

    def init(self, rng: Array) -> tuple[Params, Extra]:
        keys = jax.random.split(rng, 7)
        width, identities = self.visual.size.width, self.meta.identities
        images = jnp.zeros((1, *self.meta.image_size, 3))
        visual = self.visual.init(keys[0], images, jnp.zeros(1, jnp.int32))
        neck = self.neck.init(keys[1], jnp.zeros((1, width)), False)
        initial = jax.nn.initializers.xavier_uniform()(keys[1], (identities, width))
        params = {"visual": visual["params"], "neck": neck["params"], "prototypes": {"weight": initial}}
        statistics = {"neck": neck["batch_stats"]}
        extra = {}
        if self.settings.mask:
            maps = jnp.zeros((1, *self.visual.grid, len(self.levels) * width))
            generator = self.mask_generator.init(keys[2], maps, False)
            params["mask_generator"], statistics["mask_generator"] = generator["params"], generator["batch_stats"]
        if self.settings.clip_reid_heads:
            head = self.projected_head.init(keys[3], jnp.zeros((1, self.visual.projection_width)), False)
            params["projected_head"], statistics["projected_head"] = head["params"], head["batch_stats"]
        if self.selection is not None:
            params["selection"], statistics["selection"] = self.selection.init(keys[4])
        if self.settings.text:
            prompts, extra = self.init_prompts(keys[5], keys[6])
            params |= prompts
        return params, extra | {"batch_stats": statistics}

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        """An encoder or a CLIP for the encoder and for the selection network, which both start from it."""
        if self.settings.text:
            params, extra = merge_clip(params, extra, weights, self.visual.grid, self.prompt)
        else:
            params = params | {"visual": merge_encoder(params["visual"], weights, self.visual.grid)}
        if self.selection is not None:
            params = params | {"selection": self.selection.load_pretrained(params["selection"], weights)}
        return params, extra

    # Forward ----------------------------------------------------------------------------------------------------------

    def encode(
        self, params: Params, batch: Batch, rng: Array | None = None, salient: Array | None = None,
        partner: Array | None = None, cameras: bool = True,
    ) -> Encoded:  # fmt: skip
        """The encoder on a batch; with ``salient`` bool [B, N] and ``partner`` int32 [B] on recombined patch tokens."""
        visual = self.visual if cameras else self.visual.clone(cameras=0)
        variables, train = {"params": params["visual"]}, rng is not None
        patches = visual.apply(variables, batch["image"], method="embed_patches")
        if partner is not None:
            patches = patch_transfer.recombine(patches, salient, partner, self.settings.transfer.hole_of)
        out = visual.apply(
            variables, patches, batch["camid"], train, True, method="from_patches", rngs={"dropout": rng} if train else None
        )
        early = out.taps[-2] if len(out.taps) > 1 else out.taps[-1]
        maps = patch_maps(out.taps, self.levels).reshape(len(patches), *visual.grid, -1)
        projected = out.projected[:, 0] if self.needs_text_space else None
        return Encoded(out.cls, projected, early[:, 0].astype(jnp.float32), maps, out.cls_logits[..., 1:])

    def projected(self, params: Params, extra: Extra, batch: Batch) -> Array:
        return self.encode(params, batch, cameras=False).projected

    def mask(self, params: Params, extra: Extra, maps: Array, train: bool = False) -> tuple[Array, Params]:
        """Masks float32 [B, D] in (0, 1) and the generator's new statistics."""
        statistics = extra["batch_stats"]["mask_generator"]
        variables = {"params": params["mask_generator"], "batch_stats": statistics}
        if not train:
            return self.mask_generator.apply(variables, maps, False), statistics
        masks, updated = self.mask_generator.apply(variables, maps, True, mutable=["batch_stats"])
        return masks, updated["batch_stats"]

    def after_neck(self, params: Params, extra: Extra, feature: Array, train: bool = False) -> tuple[Array, Params]:
        """Features [B, D] after the neck and its new statistics."""
        variables = {"params": params["neck"], "batch_stats": extra["batch_stats"]["neck"]}
        if not train:
            return self.neck.apply(variables, feature, False), extra["batch_stats"]["neck"]
        feature, updated = self.neck.apply(variables, feature, True, mutable=["batch_stats"])
        return feature, updated["batch_stats"]

    def partners(self, rng: Array, salient: Array, labels: Array, **changes) -> Transfer:
        """`patch_transfer.choose_partners` with the settings of ``config.method.transfer``."""
        own = ("on", "hole_of", "ignore_identity", "ignore_negatives")
        settings = {key: value for key, value in self.settings.transfer.items() if key not in own} | changes
        return patch_transfer.choose_partners(rng, salient, self.visual.grid, labels, **settings)

    # Losses -----------------------------------------------------------------------------------------------------------

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        if stage.name == PROMPTS:
            return self.prompt_loss(params, extra, batch)
        if stage.name == SELECTION:
            statistics = extra["batch_stats"]["selection"]
            total, statistics, metrics = self.selection.loss(params["selection"], statistics, batch, rng)
            return total, Aux(with_statistics(extra, selection=statistics), metrics)
        return self.metric_loss(params, extra, batch, rng, stage, t)

    def metric_loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        """The third stage (Eq. 24): anchors, plain and masked prototypes, triplet, head enrichment."""
        settings, labels = self.settings, batch["label"]
        key_transfer, key_encoder = jax.random.split(rng)
        salient, transfer, left_out, ignored = None, None, None, None
        if self.selection is not None:
            with jax.named_scope("transfer"):
                saliency = self.selection.saliency(params["selection"], batch["image"])
                salient = self.selection.mask(saliency, self.visual.grid)
                transfer = self.partners(key_transfer, salient, labels)
            if settings.transfer.ignore_identity:
                left_out = patch_transfer.left_out_identity(labels, transfer)
            if settings.transfer.ignore_negatives != "none":
                symmetric = settings.transfer.ignore_negatives == "symmetric"
                ignored = patch_transfer.ignored_negatives(labels, transfer, symmetric)
        encoded = self.encode(params, batch, key_encoder, salient, transfer and transfer.partner)
        feature, neck = self.after_neck(params, extra, encoded.feature, True)
        statistics = {"neck": neck}

        def classify(logits: Array, smoothing: float) -> Array:
            return cross_entropy(logits, labels, smoothing, left_out=left_out)

        weight = params["prototypes"]["weight"]
        logits = jnp.matmul(feature, weight.T, precision=jax.lax.Precision.HIGHEST)
        identity = classify(logits, settings.label_smoothing)
        triplet = batch_hard_triplet(encoded.feature, labels, settings.margin, ignored=ignored)
        metrics = {"accuracy": accuracy(logits, labels)}
        if settings.clip_reid_heads:
            variables = {"params": params["projected_head"], "batch_stats": extra["batch_stats"]["projected_head"]}
            (_, more), updated = self.projected_head.apply(variables, encoded.projected, True, mutable=["batch_stats"])
            statistics["projected_head"] = updated["batch_stats"]
            identity = identity + classify(more, settings.label_smoothing)
            for other in (encoded.early, encoded.projected):
                triplet = triplet + batch_hard_triplet(other, labels, settings.margin, ignored=ignored)
        total = settings.identity_weight * identity + settings.triplet_weight * triplet
        metrics |= {"identity": identity, "triplet": triplet}
        if settings.mask:
            masks, statistics["mask_generator"] = self.mask(params, extra, encoded.maps, True)
            compared, centres = (encoded.projected, extra["texts"]) if self.in_text_space else (feature, weight)
            cosines = prototypes.masked_cosines(compared, centres, masks, settings.mask_side, settings.mask_order)
            margined = angular_margin(cosines, labels, settings.cosine_scale, settings.cosine_margin, beyond=settings.beyond)
            masked = classify(margined, settings.masked_smoothing)
            total = total + settings.masked_weight * masked
            metrics |= {"masked_identity": masked, "masked_accuracy": accuracy(cosines, labels)}
            metrics |= {"mask_mean": jnp.mean(masks), "mask_deviation": jnp.mean(jnp.std(masks, axis=-1))}
        attention = encoded.cls_logits
        attention = jax.nn.softmax(attention, axis=-1) if settings.head_softmax else attention
        enrich = head_enrich(attention, settings.head_reduction)
        total = total + settings.head_weight * enrich
        metrics["head_enrich"] = enrich
        if settings.text:
            texts = self.anchor_logits(encoded.projected, extra)
            anchor = classify(texts, settings.label_smoothing)
            metrics |= {"anchor": anchor, "anchor_accuracy": accuracy(texts, labels)}
            if settings.anchor_epochs:
                anchor = jnp.where(t < settings.anchor_epochs / stage.epochs, anchor, 0.0)
            total = total + settings.anchor_weight * anchor
        if transfer is not None:
            metrics |= {"transferred": jnp.mean(transfer.used), "selected": jnp.mean(salient)}
        return total, Aux(with_statistics(extra, **statistics), metrics)

    def anchor_logits(self, projected: Array, extra: Extra) -> Array:
        """Logits [B, identities] against the texts: plain products (Eq. 13 as CLIP-ReID's code has it), or scaled cosines."""
        if self.settings.anchor_logits == "product":
            return self.image_text_logits(projected, extra)
        texts = l2_normalise(extra["texts"])
        return COSINE_SCALE * jnp.matmul(l2_normalise(projected), texts.T, precision=jax.lax.Precision.HIGHEST)

    # Evaluation -------------------------------------------------------------------------------------------------------

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        """``feature`` float32 [B, D] and, for queries, ``mask`` float32 [B, D]; the feature alone if nothing is masked.

        Masks are made for the gallery as well if re-ranking asks for distances among its pictures.
        """
        settings, encoded = self.settings, self.encode(params, batch)
        feature = encoded.projected if self.in_text_space else encoded.feature
        if settings.test_feature == "after" and not self.in_text_space:
            feature, _ = self.after_neck(params, extra, feature)
        wide = settings.test_projected and not self.in_text_space
        if wide:
            feature = jnp.concatenate([feature, encoded.projected], axis=-1)
        if not (settings.mask and settings.test_mask):
            return feature
        if role != "query" and not self.config.evaluation.rerank:
            return {"feature": feature}
        masks, _ = self.mask(params, extra, encoded.maps)
        if wide:
            masks = jnp.concatenate([masks, jnp.ones_like(encoded.projected)], axis=-1)
        return {"feature": feature, "mask": masks}

    def distance(self, query: Features, gallery: Features) -> Array:
        """2 - 2 cos, [Q, G], where the whole gallery is seen through each query's mask (3.3.4): not symmetric.

        The official code takes arccos of the cosine clipped to +-(1 - 1e-5), which ranks alike.
        """
        if not isinstance(query, Mapping):
            return super().distance(query, gallery)
        settings = self.settings
        return 2.0 - 2.0 * prototypes.masked_cosines(
            query["feature"], gallery["feature"], query["mask"], settings.mask_side, settings.mask_order
        )

    # Reports ----------------------------------------------------------------------------------------------------------

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """``attention`` float32 [B, h, w] of the cls token, sums to 1; with the selection network ``saliency`` float32 [B, h, w]
        and ``selected`` bool [B, h, w]; with masks ``mask mean`` float32 [B]."""
        encoded = self.encode(params, batch)
        shown = {"attention": self.attention_map(encoded.cls_logits, self.visual.grid)}
        if self.selection is not None:
            saliency = self.selection.saliency(params["selection"], batch["image"])
            shown["saliency"] = saliency.reshape(-1, *self.selection.encoder.grid)
            shown["selected"] = self.selection.mask(saliency, self.visual.grid).reshape(-1, *self.visual.grid)
        if self.settings.mask:
            shown["mask mean"] = self.mask(params, extra, encoded.maps)[0].mean(axis=-1)
        return shown

    def illustrate(self, params: Params, extra: Extra, batch: Batch, rng: Array) -> dict[str, Array]:
        """How alike the heads look, what masks are made of, which samples the transfer makes and how much it covers."""
        encoded = self.encode(params, batch)
        shown = {"correlation of the heads": head_correlation(encoded.cls_logits).mean(axis=0)}
        if self.settings.mask:
            masks, _ = self.mask(params, extra, encoded.maps)
            shown |= {"mask values": masks[:, :: max(1, masks.shape[1] // 32)].reshape(-1)}
            shown |= {"spread of a mask": masks.std(axis=-1), "spread of a mask value": masks.std(axis=0)}
        return shown | (self.illustrate_transfer(params, batch, rng) if self.selection is not None else {})

    def illustrate_transfer(self, params: Params, batch: Batch, rng: Array) -> dict[str, Array]:
        """Pictures of recombined samples and, from ground truth, the share of the person that each loses; every image that has
        a partner is recombined. Beside it, holes of as many patches in random places."""
        image, grid = batch["image"], self.visual.grid
        key_partner, key_random = jax.random.split(rng)
        salient = self.selection.mask(self.selection.saliency(params["selection"], image), grid)
        transfer = self.partners(key_partner, salient, batch["label"], probability=1.0)
        used = jnp.where(transfer.used, 1.0, jnp.nan)
        shown = {"salient patches": jnp.mean(salient, axis=-1)}
        pixels = vit.on_grid(salient.reshape(-1, *grid), image.shape[1:3]).reshape(len(image), -1)
        flat = image.reshape(len(image), -1, image.shape[-1])
        hole_of = self.settings.transfer.hole_of
        made = patch_transfer.recombine(flat, pixels, transfer.partner, hole_of).reshape(image.shape)
        salient_only = (flat * pixels[..., None]).reshape(image.shape)
        first = jnp.argsort(~transfer.used)[:8]
        panels = (image, image[transfer.partner], salient_only[transfer.partner], made)
        shown["target, partner, salient patches of the partner, new sample"] = jnp.stack([x[first] for x in panels], axis=1)
        if "parts" in batch:
            person = visible_person(batch["parts"]).astype(jnp.float32)
            person = jax.image.resize(person, (len(person), *grid), "linear").reshape(len(person), -1)
            lost = lambda holes: 1 - jnp.sum(holes * person, -1) / jnp.maximum(jnp.sum(person, -1), 1e-6)  # noqa: E731
            random = jax.random.permutation(key_random, salient, axis=1, independent=True)
            holes = transfer.partner if hole_of == "partner" else jnp.arange(len(image))
            shown["covered share of the person"] = used * lost(salient[holes])
            shown["covered share, random patches"] = used * lost(random[holes])
        return shown

    def forward_flops(self) -> float:
        visual, width = self.visual, self.visual.size.width
        total = vit.forward_flops(visual.size, self.meta.image_size, visual.patch, visual.stride)
        if self.settings.mask:
            total += mask_generator_flops(len(self.levels) * width, width, self.mask_generator.features, visual.grid)
        return total


def with_statistics(extra: Extra, **changed: Params) -> Extra:
    """``extra`` with other batch statistics under the given names."""
    return extra | {"batch_stats": extra["batch_stats"] | changed}
