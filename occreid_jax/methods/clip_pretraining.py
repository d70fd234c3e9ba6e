"""Pretraining of a small CLIP on rendered pictures and the sentences that are true of them.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 2; patches
are left out at random in the first stage as in Li et al., "Scaling Language-Image Pre-training via Masking" (FLIP), CVPR 2023.
Beside the captions, pictures may be told single facts: attributes as classes that prompts stand for, as in Yang et al., "Unified
Contrastive Learning in Image-Text-Label Space" (UniCL), CVPR 2022.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.losses.contrastive import MASKED, paired_contrastive
from occreid_jax.methods.base import MethodBase, encoder_flops
from occreid_jax.nn import vit
from occreid_jax.nn.clip import clip_size, clip_text, clip_visual, text_flops
from occreid_jax.types import Aux, Batch, Extra, Features, Meta, Params, Stage
from occreid_jax.vectors import unit_vectors
from occreid_jax.vocabulary import tiny_vocabulary
from occreid_jax.weights.trees import flatten, merge, merge_encoder, unflatten

Array = jax.Array

ANCHORS = "anchors"  # parameters that the weights which ship do not have
TOKENS = 28  # of the longest sentence of a rendered set, with start and end; for utilisation alone
FIRST_SCALE, LARGEST_SCALE = math.log(1 / 0.07), math.log(100.0)  # of the cosines, as logarithms; CLIP's own


class ClipPretraining(MethodBase):
    """Parameters: ``visual`` (ViT), ``text`` (transformer over the reduced vocabulary), ``logit_scale`` float32 [], and with
    ``facts`` C the ``anchors`` float32 [C, E], which training alone needs.

    A batch's ``caption`` int32 [B, variants, L] are rows of the vocabulary; each step takes one sentence of every picture. For
    ``facts`` see `fact_losses`. The feature of a picture is its normalised projection, so that a run's own evaluation ranks
    people it has never seen.
    """

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        settings = self.settings
        self.facts = settings.get("facts", 0)  # older runs have none
        try:
            self.size = clip_size(settings.backbone)
            self.visual = clip_visual(
                settings.backbone, meta.image_size, settings.stride, from_scratch=settings.from_scratch, dtype=self.dtype,
                attention_kernel=self.attention, apart_rows=self.apart_rows, registers=settings.get("registers", 0),
            )  # fmt: skip
            self.text = clip_text(settings.backbone, len(tiny_vocabulary()), dtype=self.dtype)
        except ValueError as error:
            raise UserError(f"config.method.backbone: {error}") from error
        for name, block in config.stages.items():
            if not 0 < block.keep_patches <= 1:
                raise UserError(
                    f"config.stages.{name}.keep_patches is {block.keep_patches}; it must be a share above 0, at most 1"
                )

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        """A whole CLIP of the same widths over the same vocabulary; its patches and positions may be of another grid."""
        given, path = flatten(weights), "params/visual/patch_embed/kernel"
        if path in given:
            given[path] = resample_patches(np.asarray(given[path]), self.visual.patch)
        visual = merge_encoder(params["visual"], given, self.visual.grid)
        given = {name.removeprefix("params/"): value for name, value in given.items() if name.startswith("params/")}
        others = {name: value for name, value in unflatten(given).items() if name != "visual"}
        own = {name: value for name, value in params.items() if name not in ("visual", ANCHORS)}
        return params | {"visual": visual} | merge(own, others, source="pretrained weights"), extra

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
        return dataclasses.replace(super().stage(name, block), inputs=self.inputs, shared=self.shared, flops=flops + text)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Tables of the training set that a step reads."""
        return ("image", "caption", "facts") if self.facts else ("image", "caption")

    @property
    def shared(self) -> tuple[str, ...]:
        """Sentences that every step compares with, see `occreid_jax.train.rendered.prompt_tables`."""
        return ("closed_facts", "closed_kinds", "open_facts") if self.facts else ()

    def kept(self, share: float) -> int:
        """Patches of a picture that pass the image tower."""
        return max(1, round(share * self.visual.grid[0] * self.visual.grid[1]))

    def init(self, rng: Array) -> tuple[Params, Extra]:
        key_visual, key_text = jax.random.split(rng)
        visual = self.visual.init(key_visual, jnp.zeros((1, *self.meta.image_size, 3)))
        text = self.text.init(key_text, jnp.zeros((1, 3), jnp.int32))
        scale = jnp.asarray(FIRST_SCALE, jnp.float32)
        params = {"visual": visual["params"], "text": text["params"], "logit_scale": scale}
        if self.facts:
            params[ANCHORS] = jax.random.normal(jax.random.fold_in(rng, 1), (self.facts, self.size.embed))
        return params, {}

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
        metrics = {"accuracy": hits, "scale": scale}
        if self.facts:
            losses = self.fact_losses(params, images, scale, batch, jax.random.fold_in(key_sentence, 1))
            metrics |= {"caption_loss": value} | losses
            value += losses["open_loss"] + self.settings.closed_weight * losses["closed_loss"] + losses["anchor_loss"]
        return value, Aux(extra, metrics)

    def fact_losses(self, params: Params, images: Array, scale: Array, batch: Batch, rng: Array) -> dict[str, Array]:
        """Pictures' unit features [B, E] against sentences of one fact: float32 scalars by name.

        Of a fact with few values (``closed_facts``) every picture is told which of them is its own: the cross entropy of a
        classification by prompts, mean over all that is told. Of the others (``open_facts``) every picture brings one sentence,
        and CLIP's loss compares it with the pictures of which it is not true.

        A text tower that has seen captions alone gives "a man" and "a woman" one feature, since the large colours tell captions
        apart; then neither tower has a gradient by which to learn the difference. So every closed sentence is also told from all
        the others by an anchor of its own, a learned vector (``anchor_loss``).
        """
        facts, sentences, kinds = batch["facts"], batch["closed_facts"], batch["closed_kinds"]
        if len(sentences) != self.facts:
            there = f"there are {len(sentences)} sentences of closed facts"
            raise UserError(f"config.method.facts is {self.facts}, but {there}; set that")
        texts, anchors = self.text_features(params, sentences), unit_vectors(params[ANCHORS])
        losses = {
            "closed_loss": facts_loss(scale * images @ texts.T, kinds, facts),
            "anchor_loss": -jnp.mean(jnp.diagonal(jax.nn.log_softmax(scale * texts @ anchors.T))),
        }
        chosen = jnp.argmax(jax.random.uniform(rng, facts.shape) * (facts >= len(sentences)), axis=1)
        own = jnp.take_along_axis(facts, chosen[:, None], axis=1)[:, 0]
        texts = self.text_features(params, batch["open_facts"][jnp.maximum(own - len(sentences), 0)])
        losses["open_loss"], _ = paired_contrastive(images, texts, scale, facts[:, chosen] == own)
        return losses

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        return self.image_features(params, batch["image"])

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """``attention`` float32 [B, h, w]: what the cls token of the last block looks at, mean over heads, sums to 1."""
        out = self.visual.apply({"params": params["visual"]}, batch["image"], return_cls_logits=True)
        return {"attention": self.attention_map(out.cls_logits[..., 1:], self.visual.grid)}

    def forward_flops(self) -> float:
        return encoder_flops(self.visual)


def resample_patches(kernel: np.ndarray, side: int) -> np.ndarray:
    """The kernel [P, P, 3, D] of a patch embedding for patches of ``side`` pixels, float32 [side, side, 3, D].

    A patch has the embedding that the old kernel gives the patch resized to P pixels, bilinearly: FlexiViT's resampling (Beyer et
    al., CVPR 2023, section 3.4), exact for smaller patches.
    """
    larger = jax.image.resize(jnp.eye(side), (kernel.shape[0], side), "bilinear")
    return np.asarray(jnp.einsum("ia,jb,ijcd->abcd", larger, larger, kernel))


def facts_loss(logits: Array, kinds: Array, facts: Array) -> Array:
    """Cross entropy of sentences of which one of every kind is true, float32 scalar.

    ``logits`` [B, C] of pictures x sentences, ``kinds`` int32 [C] says which of F facts a sentence tells, and ``facts`` int32
    [B, F] which sentence of each kind is true of a picture; -1, and C or more, count nothing. Mean over what counts.
    """
    told = (facts >= 0) & (facts < len(kinds))
    alike = kinds == jnp.arange(facts.shape[1])[:, None]  # [F, C]
    totals = jax.nn.logsumexp(jnp.where(alike, logits[:, None], MASKED), axis=-1)
    own = jnp.take_along_axis(logits, jnp.where(told, facts, 0), axis=1)
    return jnp.sum(jnp.where(told, totals - own, 0.0)) / jnp.maximum(told.sum(), 1)


def some_patches(visual: vit.ViT, images: Array, kept: Array) -> Array:
    """The projected cls token float32 [B, E] from the patches whose rows int32 [B, K] are ``kept``, and all registers."""
    patches = visual.embed_patches(images)
    x, last = visual.assemble(patches), 1 + patches.shape[1]
    x = jnp.concatenate([x[:, :1], jnp.take_along_axis(x[:, 1:last], kept[..., None], axis=1), x[:, last:]], axis=1)
    x, _, _ = visual.blocks(x, True)
    return visual.project(visual.finish(x[:, :1]))[:, 0]
