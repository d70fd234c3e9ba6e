"""An encoder that is told which parts of the person are hidden (OGFR's OA-ViT): labels, patterns, correlation maps, visibility.

What of `occreid_jax.methods.ogfr` has to do with parts. Source: arXiv 2507.08520, sections 3.1, 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.augment.paste import OCCLUDED_PARTS
from occreid_jax.errors import UserError
from occreid_jax.losses import distillation
from occreid_jax.methods import occlusion_labels
from occreid_jax.methods.base import MethodBase, apart, encoder_flops, side_by_side
from occreid_jax.nn import ogfr
from occreid_jax.parts import PARTS
from occreid_jax.types import Batch, Meta, Params

Array = jax.Array

LABELS = ("parts", "parsed")  # body-part labels, and whether a picture has any
VIEW_PARTS = {"clean": "parts", "occluded": OCCLUDED_PARTS}  # a view's body-part labels


class Encoded(NamedTuple):
    """What the encoder makes of a batch, float32."""

    tokens: Array  # [B, 9 + N, D] class token, parts and patches; [B, 1 + N, D] of a plain ViT
    correlation: Array | None  # [B, N, 9] cosines of patches with background and parts
    cls_logits: Array | None  # [B, heads, T] of the last block, before the softmax; None unless asked for


class Seen(NamedTuple):
    """What the labels of a view say."""

    patterns: Array  # int32 [B], rows of the table of patterns
    parsed: Array  # bool [B], which pictures have labels


class OcclusionAware(MethodBase):
    """Parameters: ``backbone`` with ``part_tokens``, and ``patterns`` float32 [2^C, D]; with ``occlusion_aware=False`` a plain
    ViT that knows no parts."""

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        self.groups = self.settings.groups
        if self.groups not in occlusion_labels.GROUPS:
            known = ", ".join(map(str, occlusion_labels.GROUPS))
            raise UserError(f"config.method.groups is {self.groups}; it must be one of {known}")
        self.backbone = self.vit(extra_tokens=ogfr.PART_TOKENS if self.aware else 0)
        self.patches = int(np.prod(self.backbone.grid))

    @property
    def aware(self) -> bool:
        return self.settings.occlusion_aware

    @property
    def training_inputs(self) -> tuple[str, ...]:
        return unique(super().training_inputs, LABELS if self.aware else ())

    @property
    def evaluation_inputs(self) -> tuple[str, ...]:
        return unique(super().evaluation_inputs, LABELS if self.aware and self.settings.test_pattern == "labels" else ())

    def label_map(self, parts: Array) -> Array:
        """Labels uint8 [B, h, w] on the grid that cells are counted on."""
        return occlusion_labels.label_map(parts, tuple(self.settings.label_grid))

    def patterns_of_labels(self, labels: Array) -> Array:
        """Rows of the table of patterns, int32 [B], of label maps [B, h, w]."""
        settings = self.settings
        hidden = occlusion_labels.hidden_groups(labels, self.groups, settings.threshold, settings.inclusive)
        return occlusion_labels.pattern_index(hidden)

    def patterns(self, params: Params, batch: Batch) -> Array | None:
        """Rows of the table of patterns at test time, int32 [B]: from the pictures' labels, 0 (nothing is hidden) or, in a pass
        of its own, from what the network takes for visible; pictures without labels get one of the latter two."""
        if not self.aware:
            return None
        settings, given = self.settings, self.settings.test_pattern
        whole = jnp.zeros(len(batch["image"]), jnp.int32)
        has_labels = given == "labels" and "parts" in batch
        fallback, parsed = settings.unparsed if given == "labels" else given, batch.get("parsed")
        rows = whole
        if fallback == "estimate" and not (has_labels and parsed is None):
            maps = self.maps(self.encode(params, batch["image"], batch["camid"], whole).correlation)
            shares = jax.nn.softmax(settings.correlation_scale * maps, axis=1)
            rows = self.patterns_of_labels(occlusion_labels.shown_groups(shares, self.groups))
        if not has_labels:
            return rows
        labelled = self.patterns_of_labels(self.label_map(batch["parts"]))
        return labelled if parsed is None else jnp.where(parsed, labelled, rows)

    def seen(self, batch: Batch, view: str, key: Array) -> Seen:
        """What the labels of a view say in training; ``pattern_dropout`` of the pictures are told that nothing is hidden."""
        labels = self.label_map(batch[VIEW_PARTS[view]])
        parsed = batch.get("parsed", jnp.ones(len(labels), bool))
        dropped = jax.random.bernoulli(key, self.settings.pattern_dropout, parsed.shape)
        return Seen(jnp.where(parsed & ~dropped, self.patterns_of_labels(labels), 0), parsed)

    def maps(self, correlation: Array) -> Array:
        """Correlations [B, N, 9] as maps float32 [B, 9, h, w] on the grid of the labels, bilinear as torch's interpolation."""
        grid = [min(cells, side) for cells, side in zip(self.settings.label_grid, self.meta.image_size, strict=True)]
        return self.resized(correlation, tuple(grid))

    def resized(self, correlation: Array, grid: tuple[int, int]) -> Array:
        """`maps` on any grid."""
        maps = jnp.swapaxes(correlation, 1, 2).reshape(len(correlation), -1, *self.backbone.grid)
        return jax.image.resize(maps, (*maps.shape[:2], *grid), "bilinear", antialias=False)

    def true_visibility(self, parts: Array) -> Array:
        """float32 [B, 8, 1]: 1 for a part of which ``threshold`` cells or more are seen (with ``inclusive`` more than that)."""
        settings = self.settings
        hidden = occlusion_labels.hidden_groups(self.label_map(parts), len(PARTS) - 1, settings.threshold, settings.inclusive)
        return 1.0 - hidden.astype(jnp.float32)[..., None]

    def encode(
        self, params: Params, images: Array, camids: Array, patterns: Array | None, rng: Array | None = None,
        cls_logits: bool = False,
    ) -> Encoded:  # fmt: skip
        """The encoder on normalised images [B, H, W, 3] whose ``patterns`` int32 [B] are hidden; ``rng`` is given in training."""
        vectors = None
        if self.aware:
            vectors = self.settings.pattern_scale * jnp.take(params["patterns"], patterns, axis=0, mode="clip")
        tokens, logits = self.backbone.apply(
            {"params": params["backbone"]}, images, camids, vectors, rng is not None, cls_logits,
            rngs=None if rng is None else {"dropout": rng}, method=ogfr.encode,
        )  # fmt: skip
        if not self.aware:
            return Encoded(tokens, None, logits)
        parts, patches = tokens[:, 1 : 1 + ogfr.PART_TOKENS], tokens[:, 1 + ogfr.PART_TOKENS :]
        kept = jnp.concatenate([tokens[:, :1], tokens[:, 2:]], axis=1)  # the background serves the correlation alone
        return Encoded(kept, ogfr.correlation(patches, parts), logits)

    def encode_views(
        self, params: Params, batch: Batch, views: Sequence[str], seen: Mapping[str, Seen], rng: Array
    ) -> dict[str, Encoded]:
        """What the encoder makes of every view of a batch, in one pass."""
        pictures = {"clean": batch["image"], "occluded": batch["occluded"]}
        images = side_by_side([pictures[view] for view in views])
        patterns = side_by_side([seen[view].patterns for view in views]) if self.aware else None
        encoded = self.encode(params, images, jnp.repeat(batch["camid"], len(views)), patterns, rng)
        return dict(zip(views, apart(encoded, len(views)), strict=True))

    def mask_loss(self, encoded: Mapping[str, Encoded], seen: Mapping[str, Seen], batch: Batch) -> Array:
        """Cross entropy of the correlation maps against the labels (Eq. 21), mean over the views."""
        losses, grid = [], tuple(self.settings.mask_loss_grid)
        for view, own in encoded.items():
            labels = occlusion_labels.label_map(batch[VIEW_PARTS[view]], grid)
            maps = self.resized(own.correlation, labels.shape[1:])
            losses.append(distillation.map_cross_entropy(maps, labels, self.settings.correlation_scale, seen[view].parsed))
        return sum(losses) / len(losses)

    def pattern_metrics(self, patterns: Array) -> dict[str, Array]:
        """How many pictures of the last view are told that nothing is hidden, and how many that each coarse part is."""
        names = occlusion_labels.GROUP_NAMES[self.groups]
        bits = {f"hidden_{name}": (patterns >> bit) & 1 for bit, name in enumerate(reversed(names))}
        return {name: jnp.mean(value.astype(jnp.float32)) for name, value in (bits | {"whole": patterns == 0}).items()}

    def visibility(self, encoded: Encoded, batch: Batch, role: str) -> Array:
        """Which parts are visible, float32 [B, 8], 0 or 1: those that ``visible_cells`` cells of the correlation map show."""
        if (given := self.location_of(batch, role)) is not None:
            return (given[..., 0] >= 0.5).astype(jnp.float32)
        maps = self.maps(encoded.correlation)
        if self.settings.visibility_rule == "raw_cosine":  # the words of Eq. 24
            cells = maps[:, 1:] > 0
        else:
            cells = jnp.argmax(maps, axis=1)[:, None] == jnp.arange(1, len(PARTS))[:, None, None]
        return (jnp.sum(cells, axis=(2, 3)) >= self.settings.visible_cells).astype(jnp.float32)

    def encoding_flops(self) -> float:
        own = encoder_flops(self.backbone)
        return own + ogfr.correlation_flops(self.backbone.size, self.patches) if self.aware else own


def unique(*groups: Sequence[str]) -> tuple[str, ...]:
    """The names of all groups, each once, in their order."""
    return tuple(dict.fromkeys(name for group in groups for name in group))
