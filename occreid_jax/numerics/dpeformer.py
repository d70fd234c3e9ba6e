"""DPEFormer: its selection, blending, memory and pasting alone, and the whole network with one training step.

The network is `DPEFormer` with ``preset=official``, and its weights take the same way as a user's checkpoint, through
`occreid_jax.weights.families`. Outputs that begin with "fixedattn." belong to the same weights with the heads joined properly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax import methods
from occreid_jax.augment.roa import placement
from occreid_jax.banks import identity_means, info_nce, update_bank
from occreid_jax.errors import UserError
from occreid_jax.losses.identity import cross_entropy
from occreid_jax.methods.dpeformer import DPEFormer
from occreid_jax.nn import pooling, selection
from occreid_jax.nn.heads import FROZEN_BIAS
from occreid_jax.nn.sub_vectors import RelationEnrichment, SubVectorBlending
from occreid_jax.numerics.dpm import official_names, official_weights
from occreid_jax.numerics.encoders import backbone_of, encoder_settings, norms
from occreid_jax.numerics.fed import unit_contrast
from occreid_jax.numerics.kind import Kind
from occreid_jax.numerics.settings import reproduction
from occreid_jax.types import Meta, Stage
from occreid_jax.weights.families import dpeformer
from occreid_jax.weights.naming import export_arrays, import_arrays
from occreid_jax.weights.reference import Comparison, ReferenceFile
from occreid_jax.weights.trees import flatten, unflatten

FIXED = "fixedattn."
HEADS = 2  # of the official blending
FLOOR, OCCLUDED = 1e-6, 0.3  # fixed in ``loss/hm.py`` and ``processor.py``
WEIGHTS = {"memory": 0.5, "final": 0.5, "global": 2.0, "part": 0.25}  # of the official sum of means over lists of logits
BLENDING, RELATION = (rules("", "") for rules in (dpeformer.blending_rules, dpeformer.relation_rules))
STAGE = Stage("main", 1, None, (), lambda rng, batch: batch)


# Units ------------------------------------------------------------------------------------------------------------------------


def compare_units(file: ReferenceFile) -> Iterator[Comparison]:
    """``sel.CASE``: which tokens are selected and what they are pooled to; ``fbm`` and ``rem``: a blending module and REM;
    ``bank`` and ``infonce``: the memory; ``id``: the sum of identity losses; ``roa``: pasted objects."""
    computed: dict[str, Any] = {}
    for case in file.config["cases"]:
        computed |= selected(file, case)
    for start, scramble in (("fbm", True), (f"{FIXED}fbm", False)):
        for count in file.config["fbm_batches"]:
            module = SubVectorBlending(HEADS, scramble)
            computed |= enriched(file, module, f"{start}.b{count}", count, "attention_global.0.", BLENDING, "fbm_grad_names")
    count = file.config["fbm_batches"][0]
    computed |= enriched(file, RelationEnrichment(), f"rem.b{count}", count, "REM_zx.0.", RELATION, "rem_grad_names")
    computed |= remembered(file) | identities(file)
    computed |= {f"roa.{number}": pasted(file, number) for number in range(len(file.input("roa.draws")))}
    for key, array in computed.items():
        if key in file.outputs:
            yield file.compare(key, array)


def selected(file: ReferenceFile, case: str) -> dict[str, Any]:
    """One case of the selection: tokens [B, N, D], the global feature [B, D] or in its place their first."""
    tokens = jnp.asarray(file.input(f"sel.{case}.tokens"))
    whole = jnp.asarray(file.inputs.get(f"sel.{case}.global", tokens[:, 0]))
    rule = dict(least=file.config["least_tokens"], parts=file.config["parts"], order="rank", normalise=False)
    found = selection.select_tokens(whole, tokens, zero_based=True, by_batch=True, **rule)
    pooled = pooling.pool(found.weights, tokens)
    weight = jnp.asarray(file.tagged(f"dpe.{case}.w", pooled.shape))

    def loss(tokens):
        chosen = selection.select_tokens(whole, tokens, zero_based=True, by_batch=True, **rule)
        return jnp.sum(pooling.pool(chosen.weights, tokens) * weight)

    fewest = int(found.between[0])
    ranks = jnp.asarray(np.argsort(np.argsort(-np.asarray(found.scores), axis=1, kind="stable"), axis=1))
    bins = pooling.bins_of(ranks, found.selected, found.count, jnp.arange(fewest), fewest)
    out = described(found) | {
        "proxy": same_token(tokens, found.proxy, file.outputs[f"sel.{case}.proxy"]),
        "pooled": pooled,
        "result": pooling.pool(bins, tokens),
        "grad_tokens": jax.grad(loss)(tokens),
    }
    return {f"sel.{case}.{name}": array for name, array in out.items()}


def same_token(tokens: jax.Array, found: jax.Array, stored: np.ndarray) -> np.ndarray:
    """Places int [B] of a token in each image: the stored ones where these hold the very same numbers, and where a file stores
    -1, since copies of a token share the place."""
    own, other = (np.take_along_axis(np.asarray(tokens), np.asarray(x)[:, None, None], axis=1) for x in (found, stored))
    return np.where((own == other).all(axis=(1, 2)) | (stored < 0), stored, np.asarray(found))


def described(found: selection.Selection) -> dict[str, np.ndarray]:
    """A selection as the files store it: the official number of tokens is that of the gap, counted from 0."""
    scores, count = np.asarray(found.scores), np.asarray(found.count)
    order = np.argsort(-scores, axis=1, kind="stable")
    return {
        "proxy": np.asarray(found.proxy),
        "k0": np.asarray(found.by_gap),
        "k": count,
        "min_value": np.asarray(found.between[0]),
        "scores_sorted": -np.sort(-scores, axis=1),
        "order": np.where(np.arange(scores.shape[1]) < count[:, None], order, -1),
    }


def enriched(
    file: ReferenceFile, module: Any, stem: str, count: int, name: str, rules: tuple, grad_names: str
) -> dict[str, Any]:
    """A module on the first ``count`` of the stored pairs of features: result, and gradients of a weighted sum."""
    arrays = {key.removeprefix(name): array for key, array in file.weights() if key.startswith(name)}
    left_out = [key for key in arrays if not any(rule.to_path(key) for rule in rules)]
    params = {path: jnp.asarray(x) for path, x in import_arrays(
        {key: array for key, array in arrays.items() if key not in left_out}, rules)[0].items()}  # fmt: skip
    part, whole, weight = (jnp.asarray(file.tagged(tag, (8, file.config["W"]))[:count]) for tag in TAGS)

    @jax.jit
    def run(params, part, whole):
        def loss(params, part, whole):
            result, kept = module.apply(
                {"params": unflatten(params)}, part, whole, mutable=["intermediates"],
                capture_intermediates=lambda inner, _: inner.name == "out",
            )  # fmt: skip
            return jnp.sum(result * weight), (result, kept)

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, part, whole)

    (_, (result, kept)), (slopes, by_part, by_whole) = run(params, part, whole)
    named = export_arrays({path: np.asarray(x) for path, x in slopes.items()}, rules)[0]
    out = {"y": result, "grad_part": by_part, "grad_global": by_whole, "grad_norms_f64": norms(named, file.config[grad_names])}
    out |= {f"grad.{key}": array for key, array in named.items()}
    if "out" in kept.get("intermediates", {}):
        out["attention_out"] = kept["intermediates"]["out"]["__call__"][0]
    return {f"{stem}.{key}": array for key, array in out.items()}


TAGS = ("dpe_part", "dpe_global", "dpe_w")


def remembered(file: ReferenceFile) -> dict[str, Any]:
    """The memory: its start, the contrastive losses of clean and occluded features with gradients, and what it is afterwards."""
    about, labels = file.config, jnp.asarray(file.input("bank.label"), jnp.int32)
    shape = (about["B"], about["DM"])
    trained = file.tagged("dpe_train_features", (3 * about["C"], about["DM"]))
    bank = jnp.asarray(identity_means(trained, file.input("bank.pids"), about["C"]))
    own = {share: share * bank[labels] for share in (0.2, 0.1)}

    def contrast(feature):
        return jnp.mean(info_nce(feature, bank, labels, about["temp"], FLOOR))

    def both(x1, x2):
        clean, occluded = contrast(own[0.2] + x1), contrast(own[0.1] + x2)
        return clean + OCCLUDED * occluded, (clean, occluded)

    x1, x2 = (jnp.asarray(file.tagged(tag, shape)) for tag in ("dpe_x1", "dpe_x2"))
    (total, (clean, occluded)), slopes = jax.value_and_grad(both, (0, 1), has_aux=True)(x1, x2)
    plain = unit_contrast(own[0.2] + x1, bank, labels, about["temp"])
    return {
        "bank.init": bank,
        "bank.loss_clean": clean,
        "bank.loss_occluded": occluded,
        "bank.loss": total,
        "bank.grad_x1": slopes[0],
        "bank.grad_x2": slopes[1],
        "bank.after": update_bank(bank, own[0.2] + x1, labels, about["momentum"]),
    } | {f"infonce.{name}": value for name, value in plain.items()}


def identities(file: ReferenceFile) -> dict[str, Any]:
    """The sum of identity losses over fourteen logits, with gradients of four of them."""
    about, labels = file.config, jnp.asarray(file.input("bank.label"), jnp.int32)
    logits = [3.0 * jnp.asarray(file.tagged(f"dpe_logits{number}", (about["B"], about["C"]))) for number in range(14)]
    heads = ("memory", "memory", "final", "final", "global", "global", *("part",) * 8)

    def kinds(logits):
        terms = [0.5 * WEIGHTS[head] * cross_entropy(x, labels) for head, x in zip(heads, logits, strict=True)]
        return sum(terms[:4]), sum(terms[4:6]), sum(terms[6:])

    stripes, whole, parts = kinds(logits)
    slopes = jax.grad(lambda logits: sum(kinds(logits)))(logits)
    out = {"stripes_and_final": stripes, "global_times_2": whole, "parts": parts, "total": stripes + whole + parts}
    return {f"id.{key}": value for key, value in (out | {f"grad_logits{n}": x for n, x in enumerate(slopes)}).items()}


def pasted(file: ReferenceFile, number: int) -> np.ndarray:
    """An object pasted as the official code does, in the place that `placement` finds: mirrored, resized without antialiasing,
    and seen through wherever a channel is exactly 0."""
    person, cut = file.input(f"roa.person{number}"), file.input(f"roa.cut{number}")
    height, width, side, corner = (int(x) for x in file.input("roa.draws")[number])
    if cut.shape[:2] != (height, width):
        raise UserError(f"{file.path}: roa.cut{number} is {cut.shape[0]}x{cut.shape[1]}, roa.draws says {height}x{width}")
    tall = height > 2 * width
    share = side / person.shape[1 if tall else 0]
    place = jnp.int32(2 if tall and corner in (1, 3) else 1 if not tall and corner in (2, 3) else 0)
    box = placement(jnp.array([height, width]), jnp.float32(share + 1e-6), place, *person.shape[:2])
    top, left, height, width = (int(x) for x in box)
    layer = cv2.resize(cv2.flip(cut, 1), (width, height), interpolation=cv2.INTER_LINEAR)
    result = person.copy()
    inside = result[top : top + height, left : left + width]
    inside[...] = np.where(layer == 0, inside, layer)
    return result


# The network ------------------------------------------------------------------------------------------------------------------


def official_method(file: ReferenceFile, **changes: Any) -> DPEFormer:
    """The method of the file's official config, with further settings (dotted keys)."""
    about, model = file.config, file.config["cfg"]["MODEL"]
    told = {
        "parts": about["parts"],
        "selection.least": about["least_tokens"],
        "memory.temperature": about["temp"],
        "memory.keep": about["momentum"],
    }
    config = reproduction(
        "dpeformer:dataset=occluded_duke,preset=official", encoder_settings(model, backbone_of(file)) | told | changes
    )
    return methods.create(config, Meta(about["num_classes"], 1, (about["H"], about["W"]), about["B"]))


def pictures(file: ReferenceFile) -> tuple[np.ndarray, np.ndarray]:
    """Clean and occluded images float32 [B, 3, H, W]: boxes of patches are one patch each, plus a share of noise."""
    about, raw = file.config, file.images()
    clean = boxed(raw, about["clean_boxes_r0r1c0c1"], file.tagged("dpe_patch", (len(raw), 3, 16, 16)), about["eps"] * raw)
    noise = about["eps"] * file.tagged("dpe_occluder", raw.shape)
    occluded = boxed(
        clean, about["occluder_boxes_r0r1c0c1"], file.tagged("dpe_occluder_patch", (len(raw), 3, 16, 16)), noise
    )
    for name, images in (("clean", clean), ("occluded", occluded)):
        if not np.allclose(images.sum(axis=(1, 2, 3), dtype=np.float64), file.input(f"{name}_sums_f64"), rtol=1e-6):
            raise UserError(f"{file.path}: the recipe gives other {name} images than the file was made with")
    return clean, occluded


def boxed(images: np.ndarray, boxes: list, patches: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Copies whose boxes (rows r0:r1, columns c0:c1 of the patch grid, or None) hold one patch in every cell, plus ``noise``."""
    changed = images.copy()
    for number, box in enumerate(boxes):
        if box is not None:
            rows, columns = slice(16 * box[0], 16 * box[1]), slice(16 * box[2], 16 * box[3])
            tiles = np.tile(patches[number], (1, box[1] - box[0], box[3] - box[2]))
            changed[number, :, rows, columns] = tiles + noise[number, :, rows, columns]
    return changed


def compare(file: ReferenceFile) -> Iterator[Comparison]:
    method = official_method(file)
    params, extra = official_weights(file, dpeformer)
    extra = extra | {"bank": jnp.asarray(file.tagged("dpe_memory", (method.meta.identities, 4 * method.backbone.size.width)))}
    clean, occluded = (jnp.asarray(images.transpose(0, 2, 3, 1)) for images in pictures(file))
    labels = jnp.asarray(file.input("label"), jnp.int32)
    batch = {"image": clean, "occluded": occluded, "covered": jnp.zeros(len(clean)), "label": labels, "camid": 0 * labels}
    computed = {f"eval.{key}": value for key, value in evaluated(method, params, extra, clean).items()}
    computed["eval.recon_rem"] = recombined(file, method, params, extra, computed)
    first = evaluated(method, params, extra, clean[:2])
    computed |= {f"eval_first2.{key}": value for key, value in first.items()}
    computed |= {f"train.{key}": value for key, value in trained(method, params, extra, batch, file).items()}
    joined = official_method(file, **{"blending.scramble": False})
    computed |= {f"{FIXED}eval.{key}": value for key, value in evaluated(joined, params, extra, clean).items()}
    computed |= {f"{FIXED}train.{key}": value for key, value in trained(joined, params, extra, batch, file).items()}
    for key, array in computed.items():
        if key in file.outputs:
            yield file.compare(key, array)


def evaluated(method: DPEFormer, params: Any, extra: Any, images: jax.Array) -> dict[str, Any]:
    """What the network gives for a batch of pictures, step by step."""

    @jax.jit
    def run(params, extra, images):
        camids = jnp.zeros(len(images), jnp.int32)
        tokens = method.backbone.apply({"params": params["backbone"]}, images, camids)
        encoded = method.encode(params, images, camids)
        after = method.normalised(params, extra["batch_stats"], method.features(encoded)).features
        out = {"global_tok1": encoded.whole, "cls": tokens.cls, "tokens_mean": tokens.tokens[:, 1:].mean(axis=1)}
        out |= {"parts": encoded.memory, "x1_bn": after["memory"], "pooled": encoded.pooled, "fbm": encoded.parts}
        return out | {"x1_new": after["final"]}, encoded.selection

    out, found = run(params, extra, images)
    return out | described(found) | {"parts": out["parts"].reshape(len(images), method.parts, -1)}


def recombined(file: ReferenceFile, method: DPEFormer, params: Any, extra: Any, computed: Mapping[str, Any]) -> jax.Array:
    """The final feature [B, P D] with REM in place of blending."""
    pooled, whole, parts = computed["eval.pooled"], computed["eval.global_tok1"], []
    arrays = dict(file.weights())
    for part in range(method.parts):
        name = f"REM_zx.{part}."
        own = {key.removeprefix(name): array for key, array in arrays.items() if key.startswith(name)}
        tree = unflatten({path: jnp.asarray(x) for path, x in import_arrays(own, RELATION)[0].items()})
        parts.append(RelationEnrichment().apply({"params": tree}, pooled[:, part], whole))
    features = {"memory": computed["eval.x1_bn"], "global": whole, "final": jnp.concatenate(parts, axis=-1)}
    features |= {f"part_{part}": feature for part, feature in enumerate(parts)}
    return method.normalised(params, extra["batch_stats"], features).features["final"]


def trained(method: DPEFormer, params: Any, extra: Any, batch: Mapping[str, jax.Array], file: ReferenceFile) -> dict[str, Any]:
    """One training step: selection, features and logits of both views, losses, gradients, statistics and memory afterwards."""

    @jax.jit
    def run(params, extra, batch):
        images = jnp.stack([batch["image"], batch["occluded"]], axis=1).reshape(-1, *batch["image"].shape[1:])
        encoded = method.encode(params, images, jnp.repeat(batch["camid"], 2), jax.random.key(0), views=2)
        views = method.classified(params, extra, method.features(encoded))
        (value, aux), gradients = jax.value_and_grad(method.loss, has_aux=True)(
            params, extra, batch, jax.random.key(0), STAGE, 0.0
        )
        return encoded, views, value, aux, gradients

    encoded, views, value, aux, gradients = run(params, extra, batch)
    out: dict[str, Any] = {}
    for number, view in enumerate(views.values(), start=1):
        found = jax.tree.map(lambda x, first=number - 1: x[first::2], encoded.selection)
        out |= {f"{key}{number}": array for key, array in described(found).items()}
        out |= {f"pooled{number}": encoded.pooled[number - 1 :: 2]}
        out |= {f"feat{number}_bn": view.features["memory"], f"feat{number}_new": view.features["final"]}
        out |= {f"score{2 * place + number - 1}": view.logits[head] for place, head in enumerate(("memory", "final", "global"))}
        out |= {f"score{6 + 4 * (number - 1) + part}": view.logits[f"part_{part}"] for part in range(4)}
    terms = aux.metrics
    out |= {
        "loss.total": value,
        "loss.contrast_f1": terms["contrastive_clean"],
        "loss.contrast_f2": terms["contrastive_occluded"],
        "loss.id_stripes_and_final": terms["identity_memory"] + terms["identity_final"],
        "loss.id_global": terms["identity_global"] / method.settings.identity_weights["global"],
        "loss.id_parts": terms["identity_part"],
        "memory_after_rows": aux.extra["bank"][np.unique(np.asarray(batch["label"]))],
    }
    moving = {path: array for path, array in flatten(gradients).items() if not re.search(FROZEN_BIAS, path)}
    named = official_names(unflatten(moving), "params", dpeformer)
    blending = "attention_global.{}.{}".format
    out |= {
        "grad_norms_f64": norms(named, file.config["grad_norm_names"]),
        "grad_fbm0_q": named[blending(0, "Block.attn.q.weight")],
        "grad_fbm0_kv": named[blending(0, "Block.attn.kv.weight")],
        "grad_fbm3_pos": named[blending(3, "pos_embed")],
        "grad_fbm3_fc1": named[blending(3, "Block.mlp.fc1.weight")],
        "grad_pos_tok0_3": named["base.pos_embed"][0, :3],
        "grad_classifier3": named["classifier3.weight"][np.asarray(batch["label"])[:1]],
    }
    statistics = official_names({"batch_stats": aux.extra["batch_stats"]}, "extra", dpeformer)
    return out | {f"{name}_after": array for name, array in statistics.items()}


def units(file: ReferenceFile) -> bool:
    return {"bank.label", "roa.draws"} <= file.inputs.keys()


def network(file: ReferenceFile) -> bool:
    return "eval.fbm" in file.outputs and dpeformer.fits([entry.name for entry in file.state])


UNITS = Kind(units, compare_units)
NETWORK = Kind(network, compare)
