"""The stage that methods built on CLIP begin with: learned words for every identity, against cached features of both towers.

Source: Li et al., "CLIP-ReID", AAAI 2023, section 3.2 and ``PromptLearner``; DPM++ (arXiv 2605.06637) Eq. 11, 12.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.losses.contrastive import image_text_contrastive
from occreid_jax.methods.base import MethodBase
from occreid_jax.nn import clip
from occreid_jax.nn.prompt import insert, person_prompt
from occreid_jax.types import Aux, Batch, Extra, Params, PrepareContext, Stage, Update

Array = jax.Array

PROMPTS = "prompts"
"""Name of the stage."""
SPREAD, SHARES = 617, 1000  # scatters image numbers over 1000 shares: neighbours are pictures of one person


class PromptLearning(MethodBase):
    """Parameters ``text`` and ``prompts/context`` [identities, words, W] of a method, and what is done with them.

    ``extra``: ``prompt`` (embeddings around the learned words), ``texts`` [identities, E] that later stages compare with, and
    the table of image features that this stage trains on. The token embedding of CLIP's text tower is not kept: nothing but the
    fixed words of the prompt ever goes through it.

    A subclass calls `set_prompts` in its constructor and defines `projected`.
    """

    ranges = (*MethodBase.ranges, ("words", 1, None), ("held_out", 0, 1))

    def set_prompts(self, backbone: str) -> None:
        """Takes the text tower of CLIP's ``backbone`` and ``config.method.words`` learned words."""
        self.size = clip.clip_size(backbone)
        self.text = clip.clip_text(backbone, dtype=self.dtype)
        self.prompt = person_prompt(self.settings.words)

    def projected(self, params: Params, extra: Extra, batch: Batch) -> Array:
        """Image features float32 [B, E] that the prompts are learned against: test transform, no cameras."""
        raise AttributeError(f"{type(self).__name__} must define projected")

    def prompt_stage(self, block) -> Stage:
        """The stage: nothing but the words moves, and batches are rows of the feature table.

        One text of a picture passes the tower. Its weights stay as they are, so that the way back costs as much as the way
        there, half of what it costs elsewhere.
        """
        update = Update(trainable="^prompts/", optimizer=block.optimizer)
        half = 0.5 * clip.text_flops(self.size, self.prompt.length)
        return Stage(
            PROMPTS, block.epochs, block.sampler, (update,), lambda rng, batch: batch, ("feature",), flops=half, frozen_flops=half
        )

    def init_prompts(self, key_text: Array, key_prompt: Array) -> tuple[Params, Extra]:
        """Initial ``text`` and ``prompts``, and their part of ``extra``."""
        width = self.size.text.width
        length, (slots,) = len(self.prompt.ids), self.prompt.slots

        def normal(key: Array, *shape: int) -> Array:
            return 0.02 * jax.random.normal(key, shape)

        keys = jax.random.split(key_prompt, 3)
        embeddings = jnp.zeros((1, self.prompt.length, width))
        params = {
            "text": self.text.init(key_text, embeddings, self.prompt.eot, method="encode")["params"],
            "prompts": {"context": normal(keys[0], self.meta.identities, len(slots), width)},
        }
        extra = {
            "prompt": {
                "prefix": normal(keys[1], 1, slots[0], width),
                "suffix": normal(keys[2], 1, length - slots[-1] - 1, width),
            },
            "texts": jnp.zeros((self.meta.identities, self.size.embed)),
            "tables": {"feature": jnp.zeros((self.meta.images, self.size.embed))},
        }
        return params, extra

    def prepare_features(self, context: PrepareContext) -> Extra:
        """Before the stage: features of all training images."""
        features = context.pass_(self.projected)
        return context.extra | {"tables": {"feature": jnp.asarray(features, jnp.float32)}}

    def prepare_texts(self, context: PrepareContext) -> Extra:
        """After the stage: the texts of all identities, which stay as they are from then on."""
        return context.extra | {"texts": self.all_texts(self.texts, context)}

    def all_texts(self, texts: Callable[[Params, Extra, Array], Array], context: PrepareContext) -> Array:
        """``texts(params, extra, labels)`` of all identities, float32 [identities, E]."""
        labels = np.arange(self.meta.identities)
        encode = jax.jit(lambda params, extra, labels: texts(params, extra, labels))
        size = min(len(labels), 64)
        padded = np.resize(labels, -(-len(labels) // size) * size).reshape(-1, size)
        found = np.concatenate([np.asarray(encode(context.params, context.extra, rows)) for rows in padded])
        return jnp.asarray(found[: len(labels)])

    def texts(self, params: Params, extra: Extra, labels: Array) -> Array:
        """Text features float32 [B, E] of identities int32 [B]: the prompt with their learned words."""
        (slots,), length = self.prompt.slots, self.prompt.length
        fixed = jnp.zeros((length, self.size.text.width))
        fixed = fixed.at[: slots[0]].set(extra["prompt"]["prefix"][0])
        fixed = fixed.at[slots[-1] + 1 :].set(extra["prompt"]["suffix"][0, : length - slots[-1] - 1])
        embeddings = insert(fixed, slots, params["prompts"]["context"][labels])
        return self.text.apply({"params": params["text"]}, embeddings, self.prompt.eot, method="encode")

    @staticmethod
    def image_text_logits(projected: Array, extra: Extra) -> Array:
        """Plain products [B, identities] of image features and the fixed texts: no normalisation, no temperature."""
        return jnp.matmul(projected, extra["texts"].T, precision=jax.lax.Precision.HIGHEST)

    def prompt_loss(self, params: Params, extra: Extra, batch: Batch) -> tuple[Array, Aux]:
        """Image to text and text to image, both supervised contrastive, on cached features.

        With ``config.method.held_out`` a share of the images takes no part in the loss; ``held_out_accuracy`` says how many of
        them find a text of their identity first among those of the batch.
        """
        total, metrics = self.contrast(batch["feature"], self.texts(params, extra, batch["label"]), batch)
        return total, Aux(extra, metrics)

    def contrast(self, features: Array, texts: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
        """Loss and metrics of `prompt_loss` for image ``features`` [B, E] and the ``texts`` [B, E] of their identities."""
        labels, valid = batch["label"], batch["valid"]
        held_out = self.is_held_out(batch["index"])
        total = image_text_contrastive(features, texts, labels, valid=valid & ~held_out)
        logits = jnp.where(valid[None], jnp.matmul(features, texts.T, precision=jax.lax.Precision.HIGHEST), -jnp.inf)
        right = labels[jnp.argmax(logits, axis=1)] == labels

        def share(chosen: Array) -> Array:
            return jnp.sum(right & chosen) / jnp.maximum(jnp.sum(chosen), 1)

        metrics = {"text_accuracy": share(valid & ~held_out)}
        if self.settings.held_out:
            metrics["held_out_accuracy"] = share(valid & held_out)
        return total, metrics

    def is_held_out(self, index: Array) -> Array:
        """bool [N]: which rows of the training table, int [N], take no part in this stage's loss."""
        return index * SPREAD % SHARES < round(self.settings.held_out * SHARES)
