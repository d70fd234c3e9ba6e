"""CLIP-ReID: learn words for every identity, then fine-tune CLIP's image encoder towards the texts they make.

Source: Li et al., "CLIP-ReID: Exploiting Vision-Language Model for Image Re-Identification without Concrete Text Labels", AAAI
2023, and its code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.losses.identity import accuracy
from occreid_jax.losses.totals import clip_reid_terms
from occreid_jax.methods.base import SIDES, encoder_flops, with_statistics
from occreid_jax.methods.prompt_learning import PROMPTS, PromptLearning
from occreid_jax.nn import clip, heads, vit
from occreid_jax.nn.clip_resnet import ResNetOutput, resnet_flops
from occreid_jax.nn.layers import run
from occreid_jax.types import Aux, Batch, Extra, Features, Meta, Params, PrepareContext, Stage, Update
from occreid_jax.weights.trees import merge_clip

Array = jax.Array

FINETUNE = "finetune"
"""Name of the second stage; the one-stage baseline (``config.method.text = False``) has it alone."""


class Views(NamedTuple):
    """The three features of an image that losses compare, float32, before any neck."""

    early: Array  # [B, D] cls token before the last block, or mean of the third stage's map
    late: Array  # [B, D] cls token after the final norm, or mean of the last map
    projected: Array  # [B, E] in the space that texts share


class ClipReID(PromptLearning):
    """Parameters: ``visual``, ``heads`` and, with texts, those of `PromptLearning`. ``extra``: ``batch_stats`` and its own."""

    order = (PROMPTS, FINETUNE)
    choices = {"test_feature": SIDES, "backbone": tuple(clip.VISUAL)}

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        settings = self.settings
        self.set_prompts(settings.backbone)
        self.is_vit = isinstance(self.size.visual, vit.Size)
        try:
            self.visual = self.tower()
            self.grid = self.visual.grid
        except ValueError as error:
            raise UserError(f"config.method.backbone: {error}") from error
        self.heads = heads.BNNecks(meta.identities)

    def tower(self):
        settings, image_size = self.settings, tuple(self.meta.image_size)
        if not self.is_vit:
            if settings.camera:
                raise ValueError("the ResNet has no camera embedding; set camera=false")
            return clip.clip_resnet(settings.backbone, image_size, dtype=self.dtype)
        cameras = self.meta.cameras if settings.camera else 0
        return clip.clip_visual(
            settings.backbone, image_size, settings.stride, cameras, settings.camera_scale,
            remat=settings.remat, dtype=self.dtype, attention_kernel=self.attention, apart_rows=self.apart_rows,
            registers=settings.get("registers", 0),  # older runs have none
        )  # fmt: skip

    # Stages -----------------------------------------------------------------------------------------------------------

    def stage(self, name: str, block) -> Stage:
        if name == PROMPTS:
            return self.prompt_stage(block)
        update = Update(trainable="^(visual|heads)/", optimizer=block.optimizer, frozen=heads.FROZEN_BIAS)
        return dataclasses.replace(super().stage(name, block), updates=(update,))

    def prepare(self, stage: Stage, epoch: int, context: PrepareContext) -> Extra:
        """Stage 1: projected features of all training images, without cameras. Stage 2: the texts of all identities."""
        if not self.settings.text:
            return context.extra
        return self.prepare_features(context) if stage.name == PROMPTS else self.prepare_texts(context)

    # Parameters -------------------------------------------------------------------------------------------------------

    def init(self, rng: Array) -> tuple[Params, Extra]:
        key_visual, key_heads, key_text, key_prompt = jax.random.split(rng, 4)
        images = jnp.zeros((1, *self.meta.image_size, 3))
        arguments = (jnp.zeros(1, jnp.int32),) if self.is_vit else ()
        visual = self.visual.init(key_visual, images, *arguments)
        widths = self.widths
        head = self.heads.init(key_heads, [jnp.zeros((1, width)) for width in widths], False)
        params = {"visual": visual["params"], "heads": head["params"]}
        extra = {"batch_stats": {"heads": head["batch_stats"]}}
        if not self.is_vit:
            extra["batch_stats"]["visual"] = visual["batch_stats"]
        if self.settings.text:
            prompts, around = self.init_prompts(key_text, key_prompt)
            params, extra = params | prompts, extra | around
        return params, extra

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of the two features that have heads: late and projected."""
        size = self.size.visual
        return (size.width if self.is_vit else 32 * size.width), self.size.embed

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        """CLIP's towers, and the embeddings of the prompt's fixed words; identities' words keep their initial values."""
        return merge_clip(params, extra, weights, self.grid, self.prompt)

    # Forward ----------------------------------------------------------------------------------------------------------

    def views(
        self, params: Params, extra: Extra, batch: Batch, train: bool = False, cameras: bool = True
    ) -> tuple[Views, Extra]:
        """The three features of every image, and ``extra`` with the ResNet's new batch statistics in training."""
        if self.is_vit:
            visual = self.visual if cameras else self.visual.clone(cameras=0)
            out = visual.apply({"params": params["visual"]}, batch["image"], batch["camid"], train)
            return Views(out.taps[-2][:, 0].astype(jnp.float32), out.cls, out.projected[:, 0]), extra
        out, extra = self.maps(params, extra, batch, train)
        early, late = (jnp.mean(x.astype(jnp.float32), axis=(1, 2)) for x in (out.layer3, out.layer4))
        return Views(early, late, out.pooled), extra

    def maps(self, params: Params, extra: Extra, batch: Batch, train: bool = False) -> tuple[ResNetOutput, Extra]:
        """What the ResNet makes of every image, its pool for the image alone, and ``extra`` with new statistics in training."""
        statistics = extra["batch_stats"]["visual"]
        out, statistics = run(self.visual, params["visual"], statistics, batch["image"], train=train, all_tokens=False)
        return out, with_statistics(extra, visual=statistics)

    def projected(self, params: Params, extra: Extra, batch: Batch) -> Array:
        return self.views(params, extra, batch, cameras=False)[0].projected

    # Losses -----------------------------------------------------------------------------------------------------------

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        if stage.name == PROMPTS:
            return self.prompt_loss(params, extra, batch)
        settings, labels = self.settings, batch["label"]
        views, extra = self.views(params, extra, batch, train=True)
        (_, logits), statistics = run(self.heads, params["heads"], extra["batch_stats"]["heads"], views[1:], train=True)
        extra = with_statistics(extra, heads=statistics)
        image_text = self.image_text_logits(views.projected, self.stage_texts(params, extra)) if settings.text else None
        terms = clip_reid_terms(logits, views, image_text, labels, settings.margin, settings.label_smoothing)
        total = (
            settings.identity_weight * terms.identity
            + settings.triplet_weight * terms.triplet
            + settings.image_text_weight * terms.image_text
        )
        metrics = {"identity": terms.identity, "triplet": terms.triplet, "accuracy": accuracy(logits[0], labels)}
        if settings.text:
            metrics |= {"image_text": terms.image_text, "text_accuracy": accuracy(image_text, labels)}
        return total, Aux(extra, metrics)

    def stage_texts(self, params: Params, extra: Extra) -> Extra:
        """``extra`` with the ``texts`` [identities, E] that images are compared with in the second stage."""
        return extra

    # Evaluation -------------------------------------------------------------------------------------------------------

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        """The late and the projected feature side by side, before or after their necks, float32 [B, D + E]."""
        features = self.views(params, extra, batch)[0][1:]
        if self.settings.test_feature == "after":
            (features, _), _ = run(self.heads, params["heads"], extra["batch_stats"]["heads"], features)
        return jnp.concatenate(features, axis=-1)

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """``attention`` float32 [B, h, w], sums to 1: the last block's cls token, or the strength of the ResNet's last map."""
        if self.is_vit:
            out = self.visual.apply({"params": params["visual"]}, batch["image"], batch["camid"], return_cls_logits=True)
            return {"attention": self.attention_map(out.cls_logits[..., 1:], self.grid)}
        out, _ = run(self.visual, params["visual"], extra["batch_stats"]["visual"], batch["image"])
        strength = jnp.linalg.norm(out.layer4.astype(jnp.float32), axis=-1)
        return {"attention": strength / jnp.maximum(strength.sum(axis=(1, 2), keepdims=True), 1e-12)}

    def forward_flops(self) -> float:
        if not self.is_vit:
            return resnet_flops(self.size.visual, self.meta.image_size, self.size.embed, all_tokens=False)
        return encoder_flops(self.visual)
