"""DPM++: prototypes of identities compared under a mask of what an image shows, anchored to texts, on samples with patches
transferred between images.

Source: "DPM++: Dynamic Masked Metric Learning for Occluded Person Re-identification" (arXiv 2605.06637), which joins and extends
CLIP-ReID (AAAI 2023), DPM (Tan et al., ACM MM 2022) and SPT (Tan et al., AAAI 2024). Every choice that the paper leaves open or
that the official code of the parts makes otherwise is a setting; docs/methods/dpm_pp.md has the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.augment import patch_transfer
from occreid_jax.errors import UserError
from occreid_jax.losses import prototypes
from occreid_jax.losses.regularisers import head_correlation
from occreid_jax.methods import locations, masked_metric, salient_selection
from occreid_jax.methods.base import CLIP, LOCATION_KEY, SIDES, encoder_flops, with_statistics
from occreid_jax.methods.masked_metric import Encoded, MaskedMetric
from occreid_jax.methods.prompt_learning import PROMPTS
from occreid_jax.methods.salient_selection import SalientSelection
from occreid_jax.methods.salient_transfer import Recombination, SalientTransfer
from occreid_jax.nn import clip, heads, vit
from occreid_jax.nn.layers import BatchNorm
from occreid_jax.nn.mask_generator import MaskGenerator, mask_generator_flops, patch_maps, scaled_levels
from occreid_jax.types import Aux, Batch, Extra, Features, Meta, Params, PrepareContext, Stage, Update
from occreid_jax.weights.trees import merge_clip, merge_encoder

Array = jax.Array

SELECTION, METRIC = "selection", "metric"
"""Names of the second and third stage; the first is `prompt_learning.PROMPTS`."""
BEFORE, AFTER, TEXT_SPACE = "before the neck", "after the neck", "in the space of the texts"
MASKED, UNMASKED = "masked", "unmasked"
"""Words of `DPMPP.comparisons`."""
REMEDIES = {
    PROMPTS: "set config.method.text=False",
    SELECTION: "name weights of the selection network after those of the encoder in config.init.weights, or set "
    "config.method.transfer.on=False",
}
CHOICES = {
    "camera_tokens": ("cls", "all"),
    "test_feature": SIDES,
    **masked_metric.CHOICES,
    **{f"transfer.{key}": words for key, words in patch_transfer.CHOICES.items()},
    **{f"selection.{key}": words for key, words in salient_selection.CHOICES.items()},
}
RANGES = (
    *masked_metric.RANGES,
    *((f"transfer.{key}", least, most) for key, least, most in patch_transfer.RANGES),
    *((f"selection.{key}", least, most) for key, least, most in salient_selection.RANGES),
)


class DPMPP(MaskedMetric):
    """Parameters: ``visual``, ``neck``, ``prototypes/weight`` [identities, D]; ``mask_generator`` with ``mask``; ``text`` and
    ``prompts`` with ``text``; ``selection`` with ``transfer``; ``projected_head`` with ``clip_reid_heads``.

    The last stage alone decides what is compared at test time: the feature of an image, and for queries the mask.

    ``location``: which patches of a picture are salient for the transfer. "truth" are the cells of which the visible person (as
    before random erasing) fills at least half, "constant" those that are so in the mean of the training set; chance takes every
    other one. All meet the threshold of the learned saliency, so that the number of salient patches is the source's own. Without
    the learned one there is no selection network and no second stage.
    """

    order = (PROMPTS, SELECTION, METRIC)
    choices = CHOICES
    ranges = (*MaskedMetric.ranges, *RANGES)

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
        self.selection = self.transfer = None
        if settings.transfer.on:
            if self.source("train") == "learned":
                stride = settings.selection.stride or settings.stride
                self.selection = SalientSelection(self.encoder(stride, projected=False), meta.identities, settings.selection)
            sampler = config.stages[METRIC].sampler if METRIC in config.stages else {}
            together = sampler.get("images_per_identity", 1)  # such a sampler puts them side by side
            self.transfer = SalientTransfer(settings.transfer, self.selection, self.visual.grid, together)

    @property
    def in_text_space(self) -> bool:
        return self.settings.mask_space == "text"

    @property
    def localises(self) -> locations.Localised | None:
        on = self.settings.transfer.on
        return locations.Localised("which patches show the person, for their transfer (SPS)", ("train",)) if on else None

    def true_location(self, parts: Array) -> Array:
        """float32 [B, h, w]: the share of each patch that shows the person, see `locations.visible_shares`."""
        return locations.visible_shares(parts, self.visual.grid)

    @property
    def generates(self) -> bool:
        """Whether masks come from the generator: with ``unit_mask`` the masked branch is there, and its masks are ones."""
        return self.settings.mask and not self.settings.unit_mask

    @property
    def refines(self) -> bool:
        """Whether a picture's mask is multiplied with its own feature, whatever it is compared with."""
        return self.settings.mask_side != "prototype"

    @property
    def alternates(self) -> bool:
        return self.settings.alternating and self.generates

    @property
    def grids(self) -> dict[str, tuple[int, int]]:
        return super().grids | ({"selection/encoder": self.selection.encoder.grid} if self.selection is not None else {})

    def encoder(self, stride: int, cameras: int = 0, projected: bool = True) -> vit.ViT:
        """The image encoder with ``stride``; ``projected`` adds the way into CLIP's text space where that is used."""
        settings, changes = self.settings, {}
        if projected and self.needs_text_space:
            changes["projection_width"] = clip.clip_size(settings.backbone.removeprefix(CLIP)).embed
        return self.vit(stride=stride, cameras=cameras, camera_tokens=settings.camera_tokens, **changes)

    # Stages -----------------------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        """Those of the config that are not idle. `UserError` if one is missing whose result nothing else brings."""
        init = self.config.init
        for name, brought in ((PROMPTS, init.run), (SELECTION, init.run or "," in init.weights)):
            if name not in self.idle and name not in self.config.stages and not brought:
                raise UserError(
                    f"this config has no stage '{name}', and what it would learn comes from nowhere else; {REMEDIES[name]}"
                )
        return super().stages()

    @property
    def idle(self) -> frozenset[str]:
        switches = {PROMPTS: self.settings.text, SELECTION: self.selection is not None}
        return frozenset(name for name, on in switches.items() if not on)

    def stage(self, name: str, block) -> Stage:
        if name == PROMPTS:
            return self.prompt_stage(block)
        pictures = super().stage(name, block)
        frozen = heads.FROZEN_BIAS
        if name == SELECTION:
            by_part = (("decision/", block.decision_optimizer), ("", block.optimizer))
            update = Update("^selection/", by_part, frozen)
            bounds = (salient_selection.SATURATED,)
            return dataclasses.replace(pictures, updates=(update,), bounds=bounds, **self.stage_flops(name))
        if self.transfer is not None:
            self.transfer.check_shares(block.sampler.batch_size, f"config.stages.{METRIC}.sampler.batch_size")
        mask = ("^mask_generator/", block.mask_optimizer)
        others = (("^(neck|prototypes|projected_head)/", block.head_optimizer), ("", block.optimizer))
        trained = "^(visual|neck|prototypes|projected_head)/"
        updates = (Update("^(visual|neck|prototypes|projected_head|mask_generator)/", (mask, *others), frozen),)
        if self.alternates:
            updates = (Update(trained, others, frozen), Update(mask[0], mask[1]))
        return dataclasses.replace(pictures, updates=updates, **self.stage_flops(name))

    def prepare(self, stage: Stage, epoch: int, context: PrepareContext) -> Extra:
        """Image features before the prompts are learned; before the last stage the texts of all identities, which serve as
        anchors, and where the prototypes start."""
        if stage.name == PROMPTS:
            return self.prepare_features(context)
        if stage.name == SELECTION:
            return context.extra
        extra = self.prepare_prototypes(context)
        return extra | {"texts": self.prepare_texts(context)["texts"]} if self.settings.text else extra

    def start(self, stage: Stage, params: Params, extra: Extra) -> Params:
        """Prototypes that begin as `prepare` has found them."""
        if stage.name != METRIC or self.settings.prototype_start == "xavier":
            return params
        return params | {"prototypes": {"weight": extra["prototype_start"]}}

    # Parameters -------------------------------------------------------------------------------------------------------

    def init(self, rng: Array) -> tuple[Params, Extra]:
        key_visual, key_prototypes, key_mask, key_head, key_selection, key_text, key_prompt = jax.random.split(rng, 7)
        width, identities = self.visual.size.width, self.meta.identities
        images = jnp.zeros((1, *self.meta.image_size, 3))
        visual = self.visual.init(key_visual, images, jnp.zeros(1, jnp.int32))
        neck = self.neck.init(jax.random.fold_in(key_prototypes, 1), jnp.zeros((1, width)), False)
        initial = jax.nn.initializers.xavier_uniform()(key_prototypes, (identities, width))
        params = {"visual": visual["params"], "neck": neck["params"], "prototypes": {"weight": initial}}
        statistics = {"neck": neck["batch_stats"]}
        extra = {"prototype_start": jnp.zeros_like(initial)}  # filled at the beginning of the last stage
        if self.generates:
            maps = jnp.zeros((1, *self.visual.grid, len(self.levels) * width))
            generator = self.mask_generator.init(key_mask, maps, False)
            params["mask_generator"], statistics["mask_generator"] = generator["params"], generator["batch_stats"]
        if self.settings.clip_reid_heads:
            head = self.projected_head.init(key_head, jnp.zeros((1, self.visual.projection_width)), False)
            params["projected_head"], statistics["projected_head"] = head["params"], head["batch_stats"]
        if self.selection is not None:
            params["selection"], statistics["selection"] = self.selection.init(key_selection)
        if self.settings.text:
            prompts, texts = self.init_prompts(key_text, key_prompt)
            params, extra = params | prompts, extra | texts
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
            patches = self.transfer.recombine(patches, salient, partner)
        out = visual.apply(
            variables, patches, batch["camid"], train, True, method="from_patches", rngs={"dropout": rng} if train else None
        )
        early = out.taps[-2] if len(out.taps) > 1 else out.taps[-1]
        maps = patch_maps(out.taps, self.levels).reshape(len(patches), *visual.grid, -1)
        projected = out.projected[:, 0] if self.needs_text_space else None
        return Encoded(out.cls, projected, early[:, 0].astype(jnp.float32), maps, out.cls_logits[..., 1:])

    def recombination(self, params: Params, batch: Batch, rng: Array) -> Recombination:
        """Partners for the images of a batch and what they leave out of the losses; empty without transfer."""
        if self.transfer is None:
            return Recombination()
        location = self.location(batch, "train", jax.random.fold_in(rng, LOCATION_KEY))
        return self.transfer.recombination(params, batch, rng, location)

    def projected(self, params: Params, extra: Extra, batch: Batch) -> Array:
        return self.encode(params, batch, cameras=False).projected

    # Losses -----------------------------------------------------------------------------------------------------------

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        if stage.name == PROMPTS:
            return self.prompt_loss(params, extra, batch)
        if stage.name == SELECTION:
            statistics = extra["batch_stats"]["selection"]
            total, statistics, metrics = self.selection.loss(params["selection"], statistics, batch, rng)
            return total, Aux(with_statistics(extra, selection=statistics), metrics)
        return self.metric_loss(params, extra, batch, rng, stage, t)

    # Evaluation -------------------------------------------------------------------------------------------------------

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        """``feature`` float32 [B, D] and, for queries, ``mask`` float32 [B, D]; the feature alone if nothing is masked.

        Masks are made for the gallery as well if they refine features, or if re-ranking asks for distances among its pictures.
        """
        return self.embed_compared(params, extra, batch, role)[0]

    def embed_compared(self, params: Params, extra: Extra, batch: Batch, role: str) -> tuple[Features, Features]:
        """What `embed` gives, and by the names of `spaces` every feature float32 [B, D], with ``mask`` as there."""
        settings, encoded = self.settings, self.encode(params, batch)
        needed = role == "query" or self.refines or bool(self.config.evaluation.rerank)
        masks = {"mask": self.mask(params, extra, encoded.maps)[0]} if self.generates and needed else {}
        if self.in_text_space:
            found = {TEXT_SPACE: encoded.projected}
            feature = encoded.projected
        else:
            found = {BEFORE: encoded.feature, AFTER: self.after_neck(params, extra, encoded.feature)[0]}
            feature = found[AFTER if settings.test_feature == "after" else BEFORE]
        beside = found | masks
        if settings.test_projected and not self.in_text_space:  # which no mask is made for
            feature = jnp.concatenate([feature, encoded.projected], axis=-1)
            # A mask is learned up to a factor, see `masked_cosines`; of rms 1 it leaves the two halves their weights.
            masks = {name: side_by_ones(mask, encoded.projected) for name, mask in masks.items()}
        return {"feature": feature} | masks if self.generates and settings.test_mask else feature, beside

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the features that can be compared."""
        return (TEXT_SPACE,) if self.in_text_space else (BEFORE, AFTER)

    @property
    def comparisons(self) -> tuple[str, ...]:
        """Masked and unmasked, before and after the neck."""
        words = (MASKED, UNMASKED) if self.generates else (UNMASKED,)
        return tuple(f"{word}, {space}" for word in words for space in self.spaces)

    def compare(self, name: str, query: Features, gallery: Features) -> Array:
        word, space = name.split(", ")
        if word == UNMASKED:
            return super().distance(query[space], gallery[space])
        return self.distance(*({"feature": each[space], "mask": each.get("mask")} for each in (query, gallery)))

    def distance(self, query: Features, gallery: Features) -> Array:
        """2 - 2 cos, [Q, G], where the whole gallery is seen through each query's mask (3.3.4): not symmetric.

        Where masks refine features (``mask_side`` "feature" or "both"), those of the gallery are refined by their own.
        The official code takes arccos of the cosine clipped to +-(1 - 1e-5), which ranks alike.
        """
        if not isinstance(query, Mapping):
            return super().distance(query, gallery)
        settings, own = self.settings, gallery["mask"] if self.refines else None
        return 2.0 - 2.0 * prototypes.masked_cosines(
            query["feature"], gallery["feature"], query["mask"], settings.mask_side, settings.mask_order, own
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
        if self.generates:
            shown["mask mean"] = self.mask(params, extra, encoded.maps)[0].mean(axis=-1)
        return shown

    def illustrate(self, params: Params, extra: Extra, batch: Batch, rng: Array) -> dict[str, Array]:
        """How alike the heads look, what masks are made of, which samples the transfer makes and how much it covers."""
        encoded = self.encode(params, batch)
        shown = {"correlation of the heads": head_correlation(encoded.cls_logits).mean(axis=0)}
        if self.generates:
            masks, _ = self.mask(params, extra, encoded.maps)
            shown |= {"mask values": masks[:, :: max(1, masks.shape[1] // 32)].reshape(-1)}
            shown |= {"spread of a mask": masks.std(axis=-1), "spread of a mask value": masks.std(axis=0)}
        if self.transfer is None:
            return shown
        return shown | self.transfer.illustrate(params, batch, rng, self.location_of(batch, "train"))

    def forward_flops(self) -> float:
        return encoder_flops(self.visual) + self.mask_flops()

    def mask_flops(self) -> float:
        """Floating-point operations of one image's mask; 0 without masks."""
        if not self.generates:
            return 0.0
        width = self.visual.size.width
        return mask_generator_flops(len(self.levels) * width, width, self.mask_generator.features, self.visual.grid)

    def stage_flops(self, name: str) -> dict[str, float]:
        """The fields ``flops`` and ``frozen_flops`` of the second and third stage.

        The selection network's pass in the third stage has no way back. Of two alternating updates each takes the way there, and
        both together once the way back: to the encoder in the first, to the mask generator's own weights in the second.
        """
        if name == SELECTION:
            return {"flops": self.selection.loss_flops(), "frozen_flops": 0.0}
        frozen = 0.0 if self.selection is None else encoder_flops(self.selection.encoder)
        if self.alternates:
            frozen = 2 * frozen + self.forward_flops()
        return {"flops": self.forward_flops(), "frozen_flops": frozen}


def side_by_ones(masks: Array, others: Array) -> Array:
    """float32 [B, D + E]: masks [B, D], each brought to a root mean square of 1, beside ones for ``others`` [B, E]."""
    rms = jnp.sqrt(jnp.mean(jnp.square(masks), axis=-1, keepdims=True))
    return jnp.concatenate([masks / jnp.maximum(rms, 1e-12), jnp.ones_like(others)], axis=-1)
