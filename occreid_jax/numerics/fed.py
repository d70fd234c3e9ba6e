"""FED: its memory, contrastive losses, stripe labels and search alone, and the whole network with one training step.

The network is `FED` with the settings of the official code, and its weights take the same way as a user's checkpoint, through
`occreid_jax.weights.families`. Outputs that begin with "fixedattn." belong to the same weights with the heads joined properly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from occreid_jax import methods
from occreid_jax.augment.npo import visible_by_difference
from occreid_jax.banks import info_nce, update_bank
from occreid_jax.methods.fed import FED
from occreid_jax.nn.fed import search, similarities
from occreid_jax.nn.pooling import part_pool
from occreid_jax.numerics.dpm import official_names, official_weights
from occreid_jax.numerics.encoders import backbone_of, encoder_settings, norms
from occreid_jax.numerics.kind import NUMBER, Kind, grouped
from occreid_jax.numerics.settings import reproduction
from occreid_jax.types import Meta, Stage
from occreid_jax.vectors import unit_vectors
from occreid_jax.weights.families import fed
from occreid_jax.weights.reference import Comparison, ReferenceFile
from occreid_jax.weights.trees import flatten

FIXED = "fixedattn."
NEIGHBOURS = 8  # fixed in the official model, which searches for one more
FLOOR = 1e-6  # fixed in ``model/hm.py`` and ``loss/infonce.py``
HEADS = ("erased", "diffused", "global")
STEP = r"train\.(loss|grad|bn\d|memory)"  # outputs that need the gradient or come after the step
STAGE = Stage("main", 1, None, (), lambda rng, batch: batch)


# Memory -----------------------------------------------------------------------------------------------------------------------


def compare_units(file: ReferenceFile) -> Iterator[Comparison]:
    """``hm.mKEEP``: contrastive loss of features against a memory that keeps this share, its gradient and the memory afterwards;
    ``infonce``: the loss of features that have unit length already, with a gradient that passes no normalisation;
    ``mask_generation2``: labels of stripes from their mean change; ``feature_search_train`` and ``_eval``: neighbours, the first
    numbers of each."""
    features, bank = jnp.asarray(file.input("x")), jnp.asarray(file.input("memory"))
    labels, temperature = jnp.asarray(file.input("label"), jnp.int32), float(file.config["temp"])

    def loss(x):
        return jnp.mean(info_nce(x, bank, labels, temperature, FLOOR))

    for stem, parts in grouped(file.outputs).items():
        if found := re.fullmatch(rf"hm\.m({NUMBER})", stem):
            value, slope = jax.value_and_grad(loss)(features)
            computed = {"loss": value, "grad": slope, "memory_after": update_bank(bank, features, labels, float(found[1]))}
        elif stem == "infonce":
            computed = unit_contrast(features, bank, labels, temperature)
        else:
            continue
        for part in parts:
            if part in computed:
                yield file.compare(f"{stem}.{part}", computed[part])

    def rows(names):
        return unit_vectors(bank)[search(features, bank, NEIGHBOURS, names)]

    others = {
        "mask_generation2": visible_by_difference(jnp.asarray(file.input("pooled"))),
        "feature_search_train": rows(labels),
        "feature_search_eval": rows(None),
    }
    for key, array in others.items():
        if key in file.outputs:
            shown = file.outputs[key].shape[-1]
            yield file.compare(key, array[..., :shown])


def unit_contrast(features: jax.Array, bank: jax.Array, labels: jax.Array, temperature: float) -> dict[str, jax.Array]:
    """``loss`` of features [B, D] brought to unit length before, and ``grad``, which passes no normalisation."""

    def plain(x):
        logits = jnp.matmul(x, unit_vectors(bank).T) / temperature
        chosen = jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], axis=-1)
        return -jnp.mean(jnp.log(chosen + FLOOR))

    normalised = unit_vectors(features)
    value = jnp.mean(info_nce(normalised, bank, labels, temperature, FLOOR))
    return {"loss": value, "grad": jax.grad(plain)(normalised)}


# The network ------------------------------------------------------------------------------------------------------------------


def official_settings(config: Mapping[str, Any], backbone: str) -> ConfigDict:
    """A config of this project's `FED` that is the official model and its losses, in float32 and without dropping."""
    model = config["cfg"]["MODEL"]
    identity = model["ID_LOSS_WEIGHT"]
    changes = encoder_settings(model, backbone) | dict(
        parts=config.get("parts", 4),
        neighbours=config.get("instances", NEIGHBOURS + 1) - 1,
        bank_keep=config.get("momentum", 0.2),
        temperature=config.get("temp", 0.05),
        floor=FLOOR,
        erased_weight=identity,
        diffused_weight=identity,
        global_weight=identity,
    )
    return reproduction("fed:dataset=occluded_duke,preset=official", changes)


def occluded_batch(file: ReferenceFile, parts: int) -> dict[str, jax.Array]:
    """The stored clean pictures, copies with the noise ``fed_occluder`` inside the boxes of the config, and the stripes' labels
    from the mean absolute difference, summed over colours."""
    clean = file.images()
    occluder, occluded = file.tagged("fed_occluder", clean.shape), clean.copy()
    for number, (top, bottom, left, right) in enumerate(file.config["boxes_y0y1x0x1"]):
        occluded[number, :, top:bottom, left:right] = occluder[number, :, top:bottom, left:right]
    change = np.abs(occluded - clean).sum(axis=1, keepdims=True)
    means = part_pool(jnp.asarray(change.reshape(len(clean), -1, 1)), parts)[..., 0]
    return {
        "image": jnp.asarray(clean.transpose(0, 2, 3, 1)),
        "occluded": jnp.asarray(occluded.transpose(0, 2, 3, 1)),
        "visible": visible_by_difference(means),
        "change": means,
        "camid": jnp.asarray(file.inputs.get("cam_label", np.zeros(len(clean))), jnp.int32),
        "label": jnp.asarray(file.input("label"), jnp.int32),
    }


def compare(file: ReferenceFile) -> Iterator[Comparison]:
    config = official_settings(file.config, backbone_of(file))
    about = file.config
    meta = Meta(about["num_classes"], about.get("cameras", 1), (about["H"], about["W"]), about["B"])
    params, extra = official_weights(file, fed)
    batch = occluded_batch(file, config.method.parts)
    for start, scramble in (("", True), (FIXED, False)):
        names = [key.removeprefix(start) for key in file.outputs if key.startswith(start)]
        if not names:
            continue
        config.method.scramble = scramble
        method = methods.create(config, meta)
        bank = file.tagged("fed_memory", (meta.identities, config.method.parts * method.backbone.size.width))
        extra = extra | {"bank": {"erased": jnp.asarray(bank)}}
        computed = {f"{start}eval.{key}": value for key, value in evaluated(method, params, extra, batch).items()}
        computed |= {f"{start}train.{key}": value for key, value in seen(method, params, extra, batch).items()}
        if any(re.match(STEP, name) for name in names):
            computed |= {f"{start}train.{key}": value for key, value in trained(method, params, extra, batch, file).items()}
        for key, array in computed.items():
            if key in file.outputs:
                yield file.compare(key, array)


def diffused(method: FED, params: Any, bank: jax.Array, feature: jax.Array, scores: jax.Array, labels=None) -> dict[str, Any]:
    """What `FED.diffuse` does step by step, from the feature [B, P D] after the necks: neighbours and cosines, what the attention
    gives, and both FFNs."""
    index = search(feature, bank, method.neighbours, labels)
    _, kept = method.fdm.apply(
        {"params": params["fdm"]}, feature, scores, unit_vectors(bank)[index], mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name in ("attend", "ffn1", "ffn2"),
    )  # fmt: skip
    steps = {name: each["__call__"][0] for name, each in kept["intermediates"].items()}
    return {
        "search_idx": index,
        "search_sim": similarities(feature, bank),
        "diffusion": steps["attend"],
        "ffn2": steps["ffn1"],  # the paper's FFN 1 and 2
        "ffn3": steps["ffn2"],
    }


def evaluated(method: FED, params: Any, extra: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What the network gives for the clean pictures, step by step."""

    @jax.jit
    def run(params, extra, batch):
        encoded = method.encode(params, batch["image"], batch["camid"])
        found = method.test_features(params, extra, batch)
        out = {"global_tok1": encoded.whole, "parts": encoded.parts, "oem": encoded.scores}
        out["memory_only"], _ = method.after_necks(params, extra["batch_stats"], encoded.parts)
        out |= {"x1_bn": found["erased"], "x1_recons_bn": found["diffused"]}
        return out | diffused(method, params, extra["bank"]["erased"], found["erased"], encoded.scores)

    return run(params, extra, batch)


def seen(method: FED, params: Any, extra: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Features, logits and scores of both views with the statistics of the batch."""
    labels = batch["label"]

    @jax.jit
    def run(params, extra, batch):
        bank, statistics, out = extra["bank"]["erased"], extra["batch_stats"], {"mask": batch["visible"]}
        for view, name in ((1, "image"), (2, "occluded")):
            encoded = method.encode(params, batch[name], batch["camid"])
            feature, _ = method.after_necks(params, statistics, encoded.erased, True)
            steps = diffused(method, params, bank, feature, encoded.scores, labels)
            after, _ = method.after_necks(params, statistics, steps["ffn3"], True, second=True)
            own = jnp.any(search(feature, bank, method.neighbours + 1) == labels[:, None], axis=-1)
            out |= {f"feat{view}_bn": feature, f"feat{view}_recons_bn": after, f"oem{view}": encoded.scores}
            out |= {f"search_idx{view}": steps["search_idx"], f"search_sim{view}": steps["search_sim"]}
            out |= {f"diffusion{view}": steps["diffusion"], f"label_in_top9_{view}": own}
            inputs = (("erased", feature), ("diffused", after), ("global", encoded.whole))
            for number, (head, x) in enumerate(inputs):
                out[f"score{2 * number + view - 1}"] = method.logits(params, head, x)
        return out

    return run(params, extra, batch)


def trained(method: FED, params: Any, extra: Any, batch: Mapping[str, jax.Array], file: ReferenceFile) -> dict[str, Any]:
    """One training step: losses, gradients, and statistics and memory afterwards."""
    identities = np.unique(np.asarray(batch["label"]))

    @jax.jit
    def run(params, extra, batch):
        return jax.value_and_grad(method.loss, has_aux=True)(params, extra, batch, jax.random.key(0), STAGE, 0.0)

    (value, aux), gradients = run(params, extra, batch)
    terms = aux.metrics
    identity = {head: 0.5 * (terms[f"identity_{head}_clean"] + terms[f"identity_{head}_occluded"]) for head in HEADS}
    losses = {
        "total": value,
        "mse_ones": terms["score_clean"],
        "mse_mask": terms["score_occluded"],
        "contrast_f1": terms["contrast_erased_clean"],
        "contrast_f2": terms["contrast_erased_occluded"],
        "nce_r1": terms["contrast_diffused_clean"],
        "nce_r2": terms["contrast_diffused_occluded"],
        "id_stage1": identity["erased"],
        "id_recons": identity["diffused"],
        "id_global": identity["global"],
    }
    out = {f"loss.{name}": loss for name, loss in losses.items()}
    out["memory_after_rows"] = aux.extra["bank"]["erased"][identities]
    named = official_names(gradients, "params", fed)
    out["grad_norms_f64"] = norms(named, file.config["grad_norm_names"])
    out |= {"grad_oem0_w2": named["mask_detection.0.2.weight"], "grad_classifier3": named["classifier3.weight"]}
    for path, array in flatten(aux.extra["batch_stats"]["necks"]).items():
        part, leaf = re.fullmatch(r"neck_(\d+)/(mean|var)", path).groups()
        out[f"bn{part}.running_{leaf}_after"] = array
    return out


def recognises(file: ReferenceFile) -> bool:
    return "eval.oem" in file.outputs and fed.fits([entry.name for entry in file.state])


UNITS = Kind(lambda file: {"x", "memory", "pooled"} <= file.inputs.keys(), compare_units)
NETWORK = Kind(recognises, compare)
