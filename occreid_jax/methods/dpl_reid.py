"""DPL-ReID: CLIP-ReID with occluders pasted where they belong, two prompts per identity, and a second network beside CLIP's.

Source: "Dual-Prompt CLIP with Hybrid Visual Encoders for Occluded Person Re-Identification" (arXiv 2605.19527). There is no
official code; docs/methods/dpl_reid.md says what the paper leaves open and what is done here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.augment import appearance, image_keys, rwoa
from occreid_jax.augment.paste import COVERED, LIBRARY
from occreid_jax.errors import UserError
from occreid_jax.methods.base import with_statistics
from occreid_jax.methods.clip_reid import ClipReID, Views
from occreid_jax.methods.prompt_learning import PROMPTS
from occreid_jax.nn import clip, gated_fusion, heads, lsnet
from occreid_jax.nn.layers import run
from occreid_jax.nn.prompt import insert, occluded_prompt
from occreid_jax.nn.text_fusion import FUSIONS, TextFusion
from occreid_jax.types import Aux, Batch, Extra, Meta, Params, PrepareContext, Stage, Update
from occreid_jax.weights.trees import flatten, merge, rows_of

Array = jax.Array

TEMPLATES = ("full", "occluded", "both")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SCALARS = "^(fusion/alpha|wgff/beta)$"
BRANCH = "^(lsnet|wgff|fusion)/"
RANGES = (
    ("occluded_words", 1, None), ("occluder_words", 1, None), ("variants", 1, None), ("alpha", 0, 1), ("wgff.beta", 0.01, 0.99),
)  # fmt: skip
PICTURES, TEXTS = ("whole", "covered"), ("full", "occluded")  # rows and columns of the table of agreements
VARIANTS = "occluded_feature"


class DplReID(ClipReID):
    """Parameters beside CLIP-ReID's: ``prompts/occluded_x`` and ``occluded_y``, ``fusion`` of texts, ``lsnet`` and ``wgff``.

    ``extra`` beside CLIP-ReID's: ``occluded_prompt`` (embeddings round the learned words), ``occluded_texts`` [identities, E],
    ``agreement`` [2, 2] and the tables ``occluded_feature`` [images, variants E] and ``was_occluded`` bool [images, variants].
    What a switch turns off has none of these, and with all three off this is CLIP-ReID to the last bit.

    ``config.method.templates``: "full" (CLIP-ReID's prompt), "occluded" or "both"; ``wgff.on``: LSNet and the fusion; the
    augmentation is that of the stages, ``augment.occlusion``.
    """

    choices = ClipReID.choices | {
        "templates": TEMPLATES,
        "text_fusion": FUSIONS,
        "wgff.network": tuple(lsnet.SIZES),
        "wgff.offsets": lsnet.RULES,
    }
    ranges = (*ClipReID.ranges, *RANGES)

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        settings = self.settings
        self.occluded_prompt = occluded_prompt(settings.occluded_words, settings.occluder_words)
        self.fusion = TextFusion(settings.text_fusion, settings.alpha)
        self.lsnet = lsnet.LSNet(lsnet.size_of(settings.wgff.network), settings.wgff.offsets, dtype=self.dtype)
        grid, side = lsnet.last_grid(tuple(meta.image_size)), self.lsnet.size.table
        if self.fuses and settings.wgff.offsets == "subgrid" and max(grid) > side:
            told = f"LSNet's attention knows offsets of {side}x{side} positions, and these pictures have {grid[0]}x{grid[1]}"
            raise UserError(f"config.method.wgff.offsets is 'subgrid', but {told}; set bicubic")
        wide = settings.wgff
        self.wgff = (
            gated_fusion.WeightedFusion(wide.beta, self.dtype) if self.is_vit
            else gated_fusion.GatedFusion(wide.gate_bias, self.dtype)
        )  # fmt: skip

    @property
    def fuses(self) -> bool:
        return self.settings.wgff.on

    @property
    def branches(self) -> tuple[str, ...]:
        """Which of `TEXTS` are learned."""
        if not self.settings.text:
            return ()
        return TEXTS if self.settings.templates == "both" else (self.settings.templates,)

    @property
    def learns_occluded(self) -> bool:
        return "occluded" in self.branches

    # Stages -----------------------------------------------------------------------------------------------------------

    def stage(self, name: str, block) -> Stage:
        if name == PROMPTS:
            return self.dual_stage(super().stage(name, block), block) if self.learns_occluded else super().stage(name, block)
        together = block.sampler.get("images_per_identity", 1)
        mean, std = tuple(self.settings.mean), tuple(self.settings.std)
        augment = rwoa.occluding(block.augment, mean, std, together)
        shared = LIBRARY if block.augment.occlusion.kind in rwoa.PASTED else ()
        optimizers = ((SCALARS, block.scalar_optimizer), (BRANCH, block.branch_optimizer), ("", block.optimizer))
        trainable = "^(visual|heads|lsnet|wgff|fusion)/"
        update = Update(trainable=trainable, optimizer=optimizers, frozen=heads.FROZEN_BIAS)
        plain = super().stage(name, block)
        return dataclasses.replace(plain, updates=(update,), augment=augment, shared=shared)

    def dual_stage(self, plain: Stage, block) -> Stage:
        """The first stage with features of occluded pictures: one variant of each is drawn at every visit."""

        def augment(rng: Array, batch: dict) -> dict:
            variants = batch[VARIANTS].reshape(len(batch[VARIANTS]), self.settings.variants, -1)
            number = jax.random.randint(rng, (len(variants),), 0, variants.shape[1])
            return batch | {VARIANTS: jnp.take_along_axis(variants, number[:, None, None], axis=1)[:, 0]}

        lengths = {"full": self.prompt.length, "occluded": self.occluded_prompt.length}
        half = 0.5 * sum(clip.text_flops(self.size, lengths[branch]) for branch in self.branches)
        inputs = ("feature", VARIANTS)
        return dataclasses.replace(plain, augment=augment, inputs=inputs, flops=half, frozen_flops=half)

    @property
    def occlusion(self):
        """The block that says how pictures of the first stage's second branch are hidden."""
        return self.config.stages[PROMPTS].augment.occlusion

    def prepare(self, stage: Stage, epoch: int, context: PrepareContext) -> Extra:
        """Stage 1: features of all training images, and of their occluded variants. Stage 2: all texts, and how they agree."""
        extra = super().prepare(stage, epoch, context)
        if not self.learns_occluded:
            return extra
        if stage.name == PROMPTS:
            shared = LIBRARY if self.occlusion.kind in rwoa.PASTED else ()
            features, used = context.pass_(
                lambda params, extra, batch: self.occluded_features(params, extra, batch, context.rng), shared=shared
            )
            features = jnp.asarray(features.reshape(len(features), -1), jnp.float32)
            tables = {VARIANTS: features, "was_occluded": jnp.asarray(used)}
            return extra | {"tables": extra["tables"] | tables}
        extra = extra | {"occluded_texts": self.all_texts(self.occluded_texts, context)}
        return extra | {"agreement": jnp.asarray(self.agreements(extra, context.labels))}

    def occluded_features(self, params: Params, extra: Extra, batch: Batch, rng: Array) -> tuple[Array, Array]:
        """Features float32 [B, variants, E] of pictures with something in front, and whether there is, bool [B, variants].

        ``batch`` is one of `PrepareContext.pass_`: pictures normalised, and the library. What a picture gets depends on its row
        alone.
        """
        mean, std = jnp.asarray(self.settings.mean), jnp.asarray(self.settings.std)
        images = jnp.clip(batch["image"] * std + mean, 0.0, 1.0)
        count = len(images)
        given = {name: batch[name] for name in LIBRARY if name in batch}
        if self.occlusion.kind == "cutmix":  # far enough that neighbours, who are one person, are not each other's partners
            given[rwoa.PARTNER] = rwoa.partners(images, count // 2)

        def variant(number: Array) -> tuple[Array, Array]:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(rng, number), batch["index"])
            hidden, used = rwoa.hide_all(self.occlusion, tuple(self.settings.mean), tuple(self.settings.std), keys, images, given)
            image = jnp.where(used[:, None, None, None], (hidden.image - mean) / std, batch["image"])
            return self.projected(params, extra, {**batch, "image": image}), used

        features, used = jax.lax.map(variant, jnp.arange(self.settings.variants))
        return jnp.swapaxes(features, 0, 1), jnp.swapaxes(used, 0, 1)

    def agreements(self, extra: Extra, labels: np.ndarray) -> np.ndarray:
        """float32 [2, 2]: the share of `PICTURES` whose nearest text among all identities', one of `TEXTS`, is their own.

        Of pictures that the first stage left out (``config.method.held_out``), or of all where it left out none. Texts of a
        template that is not learned, and covered pictures where there are none, give NaN.
        """
        rows = np.arange(len(labels))
        chosen = np.asarray(self.is_held_out(rows)) if self.settings.held_out else np.ones(len(rows), bool)
        tables = {name: np.asarray(extra["tables"][name]) for name in ("feature", VARIANTS, "was_occluded")}
        covered = tables["was_occluded"][chosen]
        variants = tables[VARIANTS].reshape(*tables["was_occluded"].shape, -1)
        own = np.broadcast_to(labels[chosen][:, None], covered.shape)[covered]
        pictures = ((tables["feature"][chosen], labels[chosen]), (variants[chosen][covered], own))
        texts = (extra["texts"] if "full" in self.branches else None, extra["occluded_texts"])
        found = np.full((2, 2), np.nan, np.float32)
        for row, (features, people) in enumerate(pictures):
            for column, text in enumerate(texts):
                if text is not None and len(people):
                    found[row, column] = np.mean(np.argmax(features @ np.asarray(text).T, axis=1) == people)
        return found

    # Parameters -------------------------------------------------------------------------------------------------------

    def init(self, rng: Array) -> tuple[Params, Extra]:
        """CLIP-ReID's values come from the same keys as there."""
        params, extra = super().init(rng)
        keys = iter(jax.random.split(jax.random.fold_in(rng, 1), 9))
        if self.learns_occluded:
            words, around = self.init_occluded(next(keys))
            params = params | {"prompts": params["prompts"] | words}
            tables = extra["tables"] | around.pop("tables")
            extra = extra | around | {"tables": tables}
        width = self.size.embed
        if self.branches == TEXTS:
            texts = jnp.zeros((2, width))
            fusion = self.fusion.init(next(keys), texts, texts)
            params = params | {"fusion": fusion["params"]}
        if self.fuses:
            values, statistics = lsnet.initial_values(self.lsnet.size, next(keys))
            wgff = self.wgff.init(next(keys), *self.fusion_inputs())
            params = params | {"lsnet": values, "wgff": wgff["params"]}
            extra = with_statistics(extra, lsnet=statistics)
        return params, extra

    def init_occluded(self, key: Array) -> tuple[Params, Extra]:
        """The words of the second template, its fixed embeddings, and the tables of its stage."""
        (slots_x, slots_y), length = self.occluded_prompt.slots, len(self.occluded_prompt.ids)
        width, embed, people = self.size.text.width, self.size.embed, self.meta.identities
        keys = jax.random.split(key, 3)

        def normal(key: Array, *shape: int) -> Array:
            return 0.02 * jax.random.normal(key, shape)

        rows = 1 if self.settings.shared_occluder_words else people
        words = {
            "occluded_x": normal(keys[0], people, len(slots_x), width),
            "occluded_y": normal(keys[1], rows, len(slots_y), width),
        }
        shape = (self.meta.images, self.settings.variants)
        # Side by side: with two short last axes a TPU would copy the whole table at every step.
        tables = {VARIANTS: jnp.zeros((shape[0], shape[1] * embed)), "was_occluded": jnp.zeros(shape, bool)}
        return words, {
            "occluded_prompt": normal(keys[2], length, width),
            "occluded_texts": jnp.zeros((people, embed)),
            "agreement": jnp.zeros((2, 2)),
            "tables": tables,
        }

    def fusion_inputs(self) -> tuple[Array, ...]:
        """Zeros of the shapes that the fusion takes, for one image."""
        late, projected, pooled = (jnp.zeros((1, width)) for width in (*self.widths, self.lsnet.size.widths[-1]))
        if self.is_vit:
            return late, projected, pooled
        return jnp.zeros((1, *self.visual.grid, self.widths[0])), projected, pooled[:, None, None], pooled

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        params, extra = super().load_pretrained(params, extra, weights)
        if not self.learns_occluded:
            return params, extra
        table = np.asarray(flatten(weights)["params/text/token_embedding"])  # is there: CLIP-ReID has asked for it
        embedded = table[rows_of(self.occluded_prompt.ids, len(table))]
        given = merge({"words": extra["occluded_prompt"]}, {"words": embedded}, source="the prompt's words")
        return params, extra | {"occluded_prompt": given["words"]}

    # Forward ----------------------------------------------------------------------------------------------------------

    def views(
        self, params: Params, extra: Extra, batch: Batch, train: bool = False, cameras: bool = True
    ) -> tuple[Views, Extra]:
        """CLIP-ReID's three features, the last two mixed with LSNet's or gated by them."""
        if not self.fuses:
            return super().views(params, extra, batch, train, cameras)
        other, extra = self.look_around(params, extra, batch["image"], train)
        if self.is_vit:
            views, extra = super().views(params, extra, batch, train, cameras)
            late, projected = self.wgff.apply({"params": params["wgff"]}, views.late, views.projected, other.pooled)
            return views._replace(late=late, projected=projected), extra
        out, extra = self.maps(params, extra, batch, train)
        last = out.layer4.astype(jnp.float32)
        gated, projected = self.wgff.apply({"params": params["wgff"]}, last, out.pooled, other.stages[3], other.pooled)
        early = jnp.mean(out.layer3.astype(jnp.float32), axis=(1, 2))
        return Views(early, jnp.mean(gated, axis=(1, 2)), projected), extra

    def look_around(self, params: Params, extra: Extra, images: Array, train: bool) -> tuple[lsnet.LSNetOutput, Extra]:
        """What LSNet makes of the same pictures, normalised as it knows them."""
        given = tuple(self.settings.mean), tuple(self.settings.std)
        if given != IMAGENET:
            mean, std = (jnp.asarray(each, jnp.float32) for each in given)
            images = appearance.normalise(images * std + mean, *IMAGENET)
        statistics = extra["batch_stats"]["lsnet"]
        moves = train and not self.settings.wgff.frozen_norms
        out, statistics = run(self.lsnet, params["lsnet"], statistics, images, train=moves)
        return out, with_statistics(extra, lsnet=statistics)

    def projected(self, params: Params, extra: Extra, batch: Batch) -> Array:
        """CLIP's own feature: prompts are learned without LSNet."""
        return super().views(params, extra, batch, cameras=False)[0].projected

    def occluded_texts(self, params: Params, extra: Extra, labels: Array) -> Array:
        """Text features float32 [B, E] of identities int32 [B] in the second template."""
        prompt = self.occluded_prompt
        words = params["prompts"]
        spare = words["occluded_y"]
        occluders = jnp.broadcast_to(spare, (len(labels), *spare.shape[1:])) if len(spare) == 1 else spare[labels]
        embeddings = insert(extra["occluded_prompt"][: prompt.length], prompt.slots[0], words["occluded_x"][labels])
        embeddings = insert(embeddings, prompt.slots[1], occluders)
        return self.text.apply({"params": params["text"]}, embeddings, prompt.eot, method="encode")

    def stage_texts(self, params: Params, extra: Extra) -> Extra:
        if self.branches == TEXTS:
            fused = self.fusion.apply({"params": params["fusion"]}, extra["texts"], extra["occluded_texts"])
            return extra | {"texts": fused}
        return extra | {"texts": extra["occluded_texts"]} if self.learns_occluded else extra

    # Losses -----------------------------------------------------------------------------------------------------------

    def prompt_loss(self, params: Params, extra: Extra, batch: Batch) -> tuple[Array, Aux]:
        """Eq. 5: both contrastive losses of every branch, each against its own pictures and texts."""
        if not self.learns_occluded:
            return super().prompt_loss(params, extra, batch)
        total, metrics, labels = 0.0, {}, batch["label"]
        for branch in self.branches:
            texts, features = (self.texts, "feature") if branch == "full" else (self.occluded_texts, VARIANTS)
            loss, found = self.contrast(batch[features], texts(params, extra, labels), batch)
            start = "" if branch == "full" else "occluded_"
            total, metrics = total + loss, metrics | {f"{start}{name}": value for name, value in found.items()}
        return total, Aux(extra, metrics)

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        total, aux = super().loss(params, extra, batch, rng, stage, t)
        if stage.name == PROMPTS:
            return total, aux
        told = {name: jnp.mean(batch[name]) for name in ("occluded", "covered") if name in batch}
        if "alpha" in params.get("fusion", {}):
            told["text_weight"] = jnp.clip(params["fusion"]["alpha"], 0.0, 1.0)
        if self.fuses and self.is_vit:
            told["clip_weight"] = jax.nn.sigmoid(params["wgff"]["beta"])
        return total, Aux(aux.extra, aux.metrics | told)

    # What a report shows ----------------------------------------------------------------------------------------------

    def measures(self, params: Params, extra: Extra) -> dict[str, float]:
        found = {}
        if self.learns_occluded:
            table = np.asarray(extra["agreement"])
            found = {
                f"{text} texts, {picture} pictures": float(table[row, column])
                for row, picture in enumerate(PICTURES) for column, text in enumerate(TEXTS)
            }  # fmt: skip
        if "alpha" in params.get("fusion", {}):
            found["text weight"] = float(np.clip(params["fusion"]["alpha"], 0.0, 1.0))
        if self.fuses and self.is_vit:
            found["CLIP's weight"] = float(jax.nn.sigmoid(params["wgff"]["beta"]))
        return {name: value for name, value in found.items() if np.isfinite(value)}

    @property
    def illustration_shared(self) -> tuple[str, ...]:
        """Tables that `illustrate` needs whole."""
        kind = self.config.stages["finetune"].augment.occlusion.kind
        return LIBRARY if kind in rwoa.PASTED else ()

    def illustrate(self, params: Params, extra: Extra, batch: Batch, rng: Array) -> dict[str, Array]:
        """Pictures before and after something was pasted and its colours matched, and what matching does to the pasted pixels;
        the agreement of texts and pictures."""
        found = {}
        if self.learns_occluded:
            found["agreement: rows whole and covered pictures, columns full and occluded texts"] = extra["agreement"]
        if not self.illustration_shared or LIBRARY[0] not in batch:
            return found
        settings = self.config.stages["finetune"].augment.occlusion
        mean, std = tuple(self.settings.mean), tuple(self.settings.std)
        images = jnp.clip(batch["image"] * jnp.asarray(std) + jnp.asarray(mean), 0.0, 1.0)
        hidden, used = rwoa.hide_all(settings, mean, std, image_keys(rng, len(images)), images, batch)
        first = jnp.argsort(~used, stable=True)  # those that got something first
        rows = jnp.stack([images, hidden.pasted, hidden.image], axis=1)[first]
        found["clean, pasted, matched"] = appearance.normalise(rows, mean, std)
        return found | matching(images, hidden, used)

    def forward_flops(self) -> float:
        flops = super().forward_flops()
        if not self.fuses:
            return flops
        size = self.lsnet.size
        rows, columns = lsnet.last_grid(tuple(self.meta.image_size))
        places = 1 if self.is_vit else rows * columns
        dense = 2.0 * size.widths[-1] * (places * self.widths[0] + self.widths[1])
        return flops + lsnet.forward_flops(size, tuple(self.meta.image_size)) + dense


def matching(images: Array, hidden: rwoa.Hidden, used: Array) -> dict[str, Array]:
    """How far the pasted pixels of every picture are from the picture's own colours, in mean and in deviation, before and after
    they were matched: float32 [B] each, means over channels, in shares of the full range; NaN where nothing was pasted."""
    inside = (hidden.alpha > COVERED).astype(jnp.float32)[..., None]
    count = jnp.maximum(jnp.sum(inside, axis=(1, 2)), 1.0)
    own_mean, own_deviation = jnp.mean(images, axis=(1, 2)), jnp.std(images, axis=(1, 2))
    shown = used & (jnp.sum(inside, axis=(1, 2, 3)) > 0)
    found = {}
    for when, pictures in (("before", hidden.pasted), ("after", hidden.image)):
        mean = jnp.sum(pictures * inside, axis=(1, 2)) / count
        square = jnp.sum(jnp.square(pictures - mean[:, None, None]) * inside, axis=(1, 2)) / count
        for what, value, own in (("mean", mean, own_mean), ("deviation", jnp.sqrt(square), own_deviation)):
            far = jnp.mean(jnp.abs(value - own), axis=-1)
            found[f"pasted pixels' {what} from the picture's, {when} matching"] = jnp.where(shown, far, jnp.nan)
    return found


