"""Pretraining of a small CLIP from nothing, on rendered pictures and the sentences that are true of them.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 2; patches
are left out at random in the first stage as in Li et al., "Scaling Language-Image Pre-training via Masking" (FLIP), CVPR 2023.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from occreid_jax.errors import UserError
from occreid_jax.losses.contrastive import paired_contrastive
from occreid_jax.methods.base import MethodBase, encoder_flops
from occreid_jax.nn import vit
from occreid_jax.nn.clip import clip_size, clip_text, clip_visual, text_flops
from occreid_jax.types import Aux, Batch, Extra, Features, Meta, Params, Stage
from occreid_jax.vectors import unit_vectors
from occreid_jax.vocabulary import tiny_vocabulary

Array = jax.Array

TOKENS = 28  # of the longest sentence of a rendered set, with start and end; for utilisation alone
FIRST_SCALE, LARGEST_SCALE = math.log(1 / 0.07), math.log(100.0)  # of the cosines, as logarithms; CLIP's own


class ClipPretraining(MethodBase):
    """Parameters: ``visual`` (ViT), ``text`` (transformer over the reduced vocabulary) and ``logit_scale`` float32 [].

    A batch's ``caption`` int32 [B, variants, L] are rows of the vocabulary; each step takes one sentence of every picture. The
    feature of a picture is its normalised projection, so that a run's own evaluation ranks people it has never seen.
    """

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        settings = self.settings
        try:
            self.size = clip_size(settings.backbone)
            self.visual = clip_visual(
                settings.backbone, meta.image_size, settings.stride, from_scratch=settings.from_scratch, dtype=self.dtype,
                attention_kernel=self.attention,
            )  # fmt: skip
            self.text = clip_text(settings.backbone, len(tiny_vocabulary()), dtype=self.dtype)
        except ValueError as error:
            raise UserError(f"config.method.backbone: {error}") from error
        for name, block in config.stages.items():
            if not 0 < block.keep_patches <= 1:
                raise UserError(
                    f"config.stages.{name}.keep_patches is {block.keep_patches}; it must be a share above 0, at most 1"
                )

    def stage(self, name: str, block) -> Stage:
        """Pictures and sentences; a share ``keep_patches`` of the patches passes the image tower."""
        visual, size = self.visual, self.visual.size
        text = text_flops(self.size, TOKENS)
        if block.keep_patches == 1.0:
            flops = encoder_flops(visual)
        else:
            embedding = vit.embedding_flops(size, visual.image_size, visual.patch, visual.stride)
            blocks = size.depth * vit.block_flops(size, 1 + self.kept(block.keep_patches))
            flops = embedding + blocks + 2.0 * size.width * visual.projection_width
        return dataclasses.replace(super().stage(name, block), inputs=("image", "caption"), flops=flops + text)

    def kept(self, share: float) -> int:
        """Patches of a picture that pass the image tower."""
        return max(1, round(share * self.visual.grid[0] * self.visual.grid[1]))

    def init(self, rng: Array) -> tuple[Params, Extra]:
        key_visual, key_text = jax.random.split(rng)
        visual = self.visual.init(key_visual, jnp.zeros((1, *self.meta.image_size, 3)))
        text = self.text.init(key_text, jnp.zeros((1, 3), jnp.int32))
        scale = jnp.asarray(FIRST_SCALE, jnp.float32)
        return {"visual": visual["params"], "text": text["params"], "logit_scale": scale}, {}

    def image_features(self, params: Params, images: Array, rng: Array | None = None, keep: float = 1.0) -> Array:
        """Normalised pictures [B, H, W, 3] -> unit features float32 [B, E], from a random share ``keep`` of the patches."""
        if keep == 1.0:
            out = self.visual.apply({"params": params["visual"]}, images).projected[:, 0]
        else:
            patches = self.visual.grid[0] * self.visual.grid[1]
            order = jnp.argsort(jax.random.uniform(rng, (images.shape[0], patches)), axis=1)
            kept = order[:, : self.kept(keep)]
            out = self.visual.apply({"params": params["visual"]}, images, kept, method=some_patches)
        return unit_vectors(out)

    def text_features(self, params: Params, rows: Array) -> Array:
        """Rows of the vocabulary int32 [B, L] -> unit features float32 [B, E]."""
        return unit_vectors(self.text.apply({"params": params["text"]}, rows))

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        """CLIP's symmetric loss of one sentence per picture. One identity, or one sentence, makes no negative pair."""
        key_patches, key_sentence = jax.random.split(rng)
        captions, labels = batch["caption"], batch["label"]
        chosen = jax.random.randint(key_sentence, (captions.shape[0],), 0, captions.shape[1])
        rows = jnp.take_along_axis(captions, chosen[:, None, None], axis=1)[:, 0]
        images = self.image_features(params, batch["image"], key_patches, self.config.stages[stage.name].keep_patches)
        texts = self.text_features(params, rows)
        same = (labels[:, None] == labels) | (rows[:, None] == rows).all(axis=-1)
        scale = jnp.exp(jnp.minimum(params["logit_scale"], LARGEST_SCALE))
        value, logits = paired_contrastive(images, texts, scale, same)
        hits = jnp.mean((jnp.argmax(logits, axis=1) == jnp.arange(len(logits))).astype(jnp.float32))
        return value, Aux(extra, {"accuracy": hits, "scale": scale})

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        return self.image_features(params, batch["image"])

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """``attention`` float32 [B, h, w]: what the cls token of the last block looks at, mean over heads, sums to 1."""
        out = self.visual.apply({"params": params["visual"]}, batch["image"], return_cls_logits=True)
        return {"attention": self.attention_map(out.cls_logits[..., 1:], self.visual.grid)}

    def forward_flops(self) -> float:
        return encoder_flops(self.visual)


def some_patches(visual: vit.ViT, images: Array, kept: Array) -> Array:
    """The projected cls token float32 [B, E] from the patches whose rows int32 [B, K] are ``kept``."""
    x = visual.assemble(visual.embed_patches(images))
    x = jnp.concatenate([x[:, :1], jnp.take_along_axis(x[:, 1:], kept[..., None], axis=1)], axis=1)
    x, _, _ = visual.blocks(x, True)
    return visual.project(visual.finish(x[:, :1]))[:, 0]
