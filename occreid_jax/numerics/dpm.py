"""DPM: its masked head and head enrichment alone, its matching at test time, and the whole network.

The network is `DPMPP` with the settings of DPM's code, and its weights take the same way as a user's checkpoint, through
`occreid_jax.weights.families`.
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
from occreid_jax.errors import UserError
from occreid_jax.losses.identity import cross_entropy
from occreid_jax.losses.margin import angular_margin
from occreid_jax.losses.prototypes import masked_cosines
from occreid_jax.losses.regularisers import head_enrich
from occreid_jax.methods.dpm_pp import DPMPP, METRIC
from occreid_jax.numerics.encoders import backbone_of, encoder_settings, norms
from occreid_jax.numerics.kind import NUMBER, Kind, grouped
from occreid_jax.numerics.rankings import COSINE_LIMIT, compare_metrics
from occreid_jax.numerics.settings import reproduction
from occreid_jax.types import Meta, Stage
from occreid_jax.vectors import unit_vectors
from occreid_jax.weights.families import dpm
from occreid_jax.weights.reference import Comparison, ReferenceFile
from occreid_jax.weights.trees import flatten, unflatten

IDENTITY_SHARE = 0.5  # of each of the two cross entropies, fixed in DPM's ``make_loss``
STAGE = Stage(METRIC, 1, None, (), lambda rng, batch: batch)


# Losses -----------------------------------------------------------------------------------------------------------------------


def compare_heads(file: ReferenceFile) -> Iterator[Comparison]:
    """``mMARGIN``: plain and masked logits, and the cross entropy of these with its gradients by feature, mask and prototypes;
    ``orth``: head enrichment of attention logits [B, heads, N] and its gradient."""
    labels = jnp.asarray(file.input("label"), jnp.int32)
    features, weight = jnp.asarray(file.input("x")), jnp.asarray(file.input("weight"))
    masks, scale = jax.nn.sigmoid(jnp.asarray(file.input("mask_logit"))), float(file.config["s"])
    for stem, parts in grouped(file.outputs).items():
        if stem == "orth":
            value, slope = jax.value_and_grad(head_enrich)(jnp.asarray(file.input("attn_logit")), "official")
            computed = {"loss": value, "grad": slope}
        elif found := re.fullmatch(rf"m({NUMBER})", stem):

            def loss(x, m, w, margin=float(found[1])):
                logits = angular_margin(masked_cosines(x, w, m), labels, scale, margin)
                return cross_entropy(logits, labels), logits

            (value, logits), slopes = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(features, masks, weight)
            computed = {"plain_logits": jnp.matmul(features, weight.T), "masked_logits": logits, "ce_masked": value}
            computed |= dict(zip(("grad_x", "grad_mask", "grad_weight"), slopes, strict=True))
        else:
            continue
        for part in parts:
            if part in computed:
                yield file.compare(f"{stem}.{part}", computed[part])


# Matching ---------------------------------------------------------------------------------------------------------------------


def compare_matching(file: ReferenceFile) -> Iterator[Comparison]:
    """Distances [Q, G] of queries and gallery, stored one behind the other, with CMC and mAP: the whole gallery is seen through
    each query's mask. ``norm``: the features are brought to unit length before; ``raw``: they are given as they are."""
    count = int(file.config["num_query"])
    masks = jnp.asarray(file.input("mask"))[:count]
    for stem, parts in grouped(file.outputs).items():
        if stem not in ("norm", "raw"):
            continue
        features = jnp.asarray(file.input("feat"))
        features = unit_vectors(features) if stem == "norm" else features
        cosines = masked_cosines(features[:count], features[count:], masks)
        if "distmat" in parts:
            yield file.compare(f"{stem}.distmat", jnp.arccos(jnp.clip(cosines, -1 + COSINE_LIMIT, 1 - COSINE_LIMIT)))
        yield from compare_metrics(file, stem, parts, np.asarray(2.0 - 2.0 * cosines))  # what `DPMPP.distance` ranks by


# The network ------------------------------------------------------------------------------------------------------------------


def official_settings(cfg: Mapping[str, Any], backbone: str, recipe: str) -> ConfigDict:
    """A config of this project's `DPMPP` that is the model and the losses of an official config, in float32 and without
    dropping. ``recipe`` is the code that the config belongs to: "dpm" or "spt"."""
    model, solver = cfg["MODEL"], cfg["SOLVER"]
    for key, wanted in (("IF_LABELSMOOTH", "off"), ("ID_LOSS_TYPE", "softmax"), ("JPM", False)):
        if model[key] != wanted:
            raise UserError(f"MODEL.{key} is {model[key]!r}; the official code trains DPM with {wanted!r} alone")
    margin, share = None if model["NO_MARGIN"] else solver["MARGIN"], IDENTITY_SHARE if recipe == "dpm" else 1.0
    changes = encoder_settings(model, backbone) | {
        "identity_weight": share * model["ID_LOSS_WEIGHT"],
        "masked_weight": share * model["ID_LOSS_WEIGHT"],
        "triplet_weight": model["TRIPLET_LOSS_WEIGHT"],
        "margin": margin,
        "cosine_scale": solver["COSINE_SCALE"],
        "cosine_margin": solver["COSINE_MARGIN"],
        "selection.identity_weight": model["ID_LOSS_WEIGHT"],
        "selection.masked_weight": model["ID_LOSS_WEIGHT"],
        "selection.triplet_weight": model["TRIPLET_LOSS_WEIGHT"],
        "selection.margin": margin,
    }
    return reproduction(f"dpm_pp:dataset=occluded_duke,recipe={recipe},triplet=soft", changes)


def official_method(file: ReferenceFile, recipe: str = "dpm") -> DPMPP:
    """The method of the file's official config, which is one of DPM or of SPT."""
    about = file.config
    meta = Meta(about["num_classes"], about["cameras"], (about["H"], about["W"]), about["B"])
    return methods.create(official_settings(about["cfg"], backbone_of(file), recipe), meta)


def official_weights(file: ReferenceFile, family) -> tuple[Any, Any]:
    """``(params, extra)`` of the file's weights, ported as a checkpoint of ``family`` is."""
    weights, _, _ = family.read({name: array for name, array in file.weights() if array is not None})
    trees = unflatten({path: jnp.asarray(array) for path, array in weights.items()})
    return trees["params"], trees["extra"]


def official_batch(file: ReferenceFile) -> dict[str, jax.Array]:
    return {
        "image": jnp.asarray(file.images().transpose(0, 2, 3, 1)),
        "camid": jnp.asarray(file.input("cam_label"), jnp.int32),
        "label": jnp.asarray(file.input("label"), jnp.int32),
    }


def official_names(tree: Any, start: str, family) -> dict[str, np.ndarray]:
    """Parameters or gradients (``start`` "params") or ``extra`` under their PyTorch names and in PyTorch's layout; ``family`` is
    the module of their checkpoints."""
    return family.export({f"{start}/{path}": np.asarray(array) for path, array in flatten(tree).items()})[0]


def embedded(method: DPMPP, params: Any, extra: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Test features [B, D] from both sides of the neck."""
    out = {}
    for side in ("after", "before"):
        method.settings.test_feature = side
        found = method.embed(params, extra, batch, "gallery")
        out[f"feat_{side}"] = found["feature"] if isinstance(found, Mapping) else found
    return out


def compare(file: ReferenceFile) -> Iterator[Comparison]:
    method = official_method(file)
    params, extra = official_weights(file, dpm)
    batch = official_batch(file)
    computed = {f"eval.{key}": value for key, value in evaluated(method, params, extra, batch).items()}
    computed |= {f"train.{key}": value for key, value in trained(method, params, extra, batch, file).items()}
    for key in file.outputs:
        if channels := re.fullmatch(r"eval\.conv_in_img0_ch(\d+)_(\d+)_(\d+)", key):  # first, end, step
            yield file.compare(key, computed["eval.maps"][0, ..., slice(*map(int, channels.groups()))].transpose(2, 0, 1))
        elif key in computed:
            yield file.compare(key, computed[key])


def evaluated(method: DPMPP, params: Any, extra: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Blocks, features, masks and what leads to them: ``maps`` [B, h, w, L D] is what the generator reads, ``conv_out`` [B, D]
    its maps after the last pooling."""

    @jax.jit
    def run(params, extra, batch):
        taps = method.visual.apply({"params": params["visual"]}, batch["image"], batch["camid"]).taps
        encoded = method.encode(params, batch)
        variables = {"params": params["mask_generator"], "batch_stats": extra["batch_stats"]["mask_generator"]}
        masks, kept = method.mask_generator.apply(
            variables, encoded.maps, False, mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "bn_2",
        )  # fmt: skip
        pooled = jax.nn.relu(kept["intermediates"]["bn_2"]["__call__"][0]).max(axis=(1, 2))
        out = {f"block{number}_cls": tap[:, 0] for number, tap in enumerate(taps, start=1)}
        out |= {"global": encoded.feature, "maps": encoded.maps, "conv_out": pooled, "mask": masks}
        return out | {"orth_attn": encoded.cls_logits} | embedded(method, params, extra, batch)

    return run(params, extra, batch)


def trained(method: DPMPP, params: Any, extra: Any, batch: Mapping[str, jax.Array], file: ReferenceFile) -> dict[str, Any]:
    """One joint training step: features, masks, logits, loss, gradients and new statistics. The official loop makes two such
    steps on a batch, one for all but the generator and one for the generator; each is this one."""
    settings, labels = method.settings, batch["label"]

    @jax.jit
    def run(params, extra, batch):
        encoded = method.encode(params, batch, jax.random.key(0))
        feature, _ = method.after_neck(params, extra, encoded.feature, True)
        masks, _ = method.mask(params, extra, encoded.maps, True)
        weight = params["prototypes"]["weight"]
        margined = angular_margin(masked_cosines(feature, weight, masks), labels, settings.cosine_scale, settings.cosine_margin)
        out = {"feat": encoded.feature, "mask": masks, "orth_attn": encoded.cls_logits, "Mscore": margined}
        out["score"] = jnp.matmul(feature, weight.T)
        (value, aux), gradients = jax.value_and_grad(method.loss, has_aux=True)(
            params, extra, batch, jax.random.key(0), STAGE, 0.0
        )
        return out | {"loss": value, "hem_loss": aux.metrics["head_enrich"]}, aux.extra, gradients

    out, after, gradients = run(params, extra, batch)
    named = official_names(gradients, "params", dpm)
    out["grad_norms_f64"] = norms(named, file.config["grad_norm_names"])
    out["grad_attfc_rows0_8"] = named["base.attfc.weight"][:8]
    out["grad_classifier"] = named["classifier.weight"]
    for name, array in official_names(after, "extra", dpm).items():
        out[re.sub(r"^base\.ConvLayer\.(\d)\.1\.", r"convbn\1.", name) + "_after"] = array
    return out


def recognises(file: ReferenceFile) -> bool:
    return "eval.feat_before" in file.outputs and dpm.fits([entry.name for entry in file.state])


def matches(file: ReferenceFile) -> bool:
    return {"feat", "mask"} <= file.inputs.keys() and any(key.endswith(".distmat") for key in file.outputs)


HEADS = Kind(lambda file: {"mask_logit", "attn_logit"} <= file.inputs.keys(), compare_heads)
MATCHING = Kind(matches, compare_matching)
DPM = Kind(recognises, compare)
