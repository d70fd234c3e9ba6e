"""TransReID and its ViT baseline as whole networks: features, logits, losses, gradients, BatchNorm statistics; and the parts of
them that stand alone, the jigsaw order and the resizing of positions.

The official config of a file becomes a config of this project, and its weights take the same way as a user's checkpoint, through
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
from occreid_jax.methods.baseline import MARGINS
from occreid_jax.methods.transreid import TransReID
from occreid_jax.nn.jpm import jigsaw_order
from occreid_jax.nn.layers import Block
from occreid_jax.nn.vit import resize_positions
from occreid_jax.numerics.kind import Kind
from occreid_jax.numerics.settings import reproduction
from occreid_jax.types import Meta
from occreid_jax.weights.families import transreid
from occreid_jax.weights.naming import export_arrays, to_path
from occreid_jax.weights.reference import Comparison, ReferenceFile
from occreid_jax.weights.trees import flatten, unflatten

BACKBONES = {
    "vit_base_patch16_224_TransReID": "base",
    "deit_base_patch16_224_TransReID": "base",
    "deit_small_patch16_224_TransReID": "small",
    "vit_small_patch16_224_TransReID": "wide_small",
}
SMOOTHING = 0.1  # epsilon of CrossEntropyLabelSmooth, where a config says "on" only
GRADIENTS = {
    "grad_cls_token": "base.cls_token",
    "grad_classifier": "classifier.weight",
    "grad_sie": "base.sie_embed",
}


def backbone_of(file: ReferenceFile) -> str:
    """The encoder that a file's official config names."""
    kind = file.config["cfg"]["MODEL"]["TRANSFORMER_TYPE"]
    if kind not in BACKBONES:
        raise UserError(f"{file.path}: unknown TRANSFORMER_TYPE {kind!r}; known: {', '.join(BACKBONES)}")
    return BACKBONES[kind]


def encoder_settings(model: Mapping[str, Any], backbone: str) -> dict[str, Any]:
    """Settings of the ViT ``backbone`` as the block MODEL of an official config has them, without dropping anything."""
    rows, columns = model["STRIDE_SIZE"]
    if rows != columns:
        raise UserError(f"strides {rows} and {columns} differ between rows and columns; this network has one stride")
    return dict(
        backbone=backbone,
        stride=rows,
        camera=model["SIE_CAMERA"],
        camera_scale=model["SIE_COE"],
        drop_path=0.0,
    )


def official_settings(cfg: Mapping[str, Any], backbone: str) -> ConfigDict:
    """A config of this project's `TransReID` that is an official one's model and losses, in float32 and without dropping."""
    model, solver = cfg["MODEL"], cfg["SOLVER"]
    changes = encoder_settings(model, backbone) | dict(
        jpm=model["JPM"],
        parts=model["DEVIDE_LENGTH"],
        shift=model["SHIFT_NUM"],
        shuffle_groups=model["SHUFFLE_GROUP"],
        rearrange=model["RE_ARRANGE"],
        label_smoothing=SMOOTHING if model["IF_LABELSMOOTH"] == "on" else 0.0,
        identity_loss=model["ID_LOSS_TYPE"],
        cosine_scale=solver["COSINE_SCALE"],
        cosine_margin=solver["COSINE_MARGIN"],
        margin=None if model["NO_MARGIN"] else solver["MARGIN"],
        identity_weight=model["ID_LOSS_WEIGHT"],
        triplet_weight=model["TRIPLET_LOSS_WEIGHT"],
    )
    return reproduction("transreid:dataset=occluded_duke", changes)


def official_model(file: ReferenceFile, backbone: str) -> tuple[TransReID, Any, Any]:
    """``(method, params, extra)`` with the file's weights, ported as a checkpoint is."""
    config = file.config
    meta = Meta(config["num_classes"], config["cameras"], (config["H"], config["W"]), config.get("B", config.get("batch")))
    method = methods.create(official_settings(config["cfg"], backbone), meta)
    weights, _, _ = transreid.read({name: array for name, array in file.weights() if array is not None})
    trees = unflatten({path: jnp.asarray(array) for path, array in weights.items()})
    return method, trees["params"], trees["extra"]


def official_names(params: Any, extra: Any = None) -> dict[str, np.ndarray]:
    """Arrays of parameters, gradients or statistics under their PyTorch names and in PyTorch's layout."""
    named = {f"params/{path}": np.asarray(array) for path, array in flatten(params).items()}
    if extra is not None:
        named |= {f"extra/{path}": np.asarray(array) for path, array in flatten(extra).items()}
    return export_arrays(named, transreid.RULES)[0]


def norms(arrays: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    """L2 norm of every named array, float64; nan for those that are not there."""
    return np.array([np.linalg.norm(arrays[name].astype(np.float64)) if name in arrays else np.nan for name in names])


def known_names(file: ReferenceFile) -> bool:
    """Whether every weight of the file belongs to TransReID or its baseline."""
    names = [entry.name for entry in file.state]
    known = [name for name in names if any(re.fullmatch(kind.pattern, name) for kind in transreid.LEFT_OUT)]
    return transreid.fits(names) and all(name in known or to_path(transreid.RULES, name) for name in names)


def recognises(file: ReferenceFile) -> bool:
    # SPT's re-identification network has the same weights, and partners for its patches.
    return "eval.feat_before" in file.outputs and "slabel" not in file.inputs and known_names(file)


def compare(file: ReferenceFile) -> Iterator[Comparison]:
    method, params, extra = official_model(file, backbone_of(file))
    batch = {
        "image": jnp.asarray(file.images().transpose(0, 2, 3, 1)),
        "camid": jnp.asarray(file.input("cam_label"), jnp.int32),
        "label": jnp.asarray(file.input("label"), jnp.int32),
    }
    computed = {f"eval.{key}": value for key, value in evaluated(method, params, extra, batch).items()}
    computed |= {f"train.{key}": value for key, value in trained(method, params, extra, batch, file).items()}
    for key, value in computed.items():
        if key in file.outputs:
            yield file.compare(key, value)


def evaluated(method: TransReID, params: Any, extra: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Features before and after the necks, and the residual stream after every block that runs."""
    jigsaw = method.settings.jpm

    @jax.jit
    def run(params, extra, batch):
        depth = method.backbone.size.depth - jigsaw
        tokens, taps, _ = method.backbone.apply(
            {"params": params["backbone"]}, batch["image"], batch["camid"], False, depth, method="trunk"
        )
        out = {"base_tokens_img0": tokens[0]}
        for number, tap in enumerate(taps, start=1):
            out |= {f"block{number}_cls": tap[:, 0], f"block{number}_meantok": tap.mean(axis=1)}
        if jigsaw:
            _, kept = method.jpm.apply(
                {"params": params["jpm"]}, tokens, False, mutable=["intermediates"],
                capture_intermediates=lambda module, _: isinstance(module, Block),
            )  # fmt: skip
            tap = kept["intermediates"]["global"]["block"]["__call__"][0][0]
            out |= {"b1_block_cls": tap[:, 0], "b1_block_meantok": tap.mean(axis=1)}
        out["feat_before"] = method.embed(params, extra, batch, "query")
        method.settings.test_feature = "after"
        out["feat_after"] = method.embed(params, extra, batch, "query")
        method.settings.test_feature = "before"
        return out

    return run(params, extra, batch)


def trained(method: TransReID, params: Any, extra: Any, batch: Mapping[str, jax.Array], file: ReferenceFile) -> dict[str, Any]:
    """One training step's features, logits, loss, gradients and new statistics, named as the file's outputs after "train."."""

    @jax.jit
    def run(params, extra, batch):
        features, logits = trained_heads(method, params, extra, batch)
        (value, aux), gradients = jax.value_and_grad(method.loss, has_aux=True)(
            params, extra, batch, jax.random.key(0), None, 0.0
        )
        return features, logits, value, aux.extra, gradients

    features, logits, value, after, gradients = run(params, extra, batch)
    out = {"loss": value}
    for number, (feature, logit) in enumerate(zip(features, logits, strict=True)):
        end = number if method.settings.jpm else ""
        out |= {f"feat{end}": feature, f"score{end}": logit}
    named = official_names(gradients)
    named["classifier.W"] = named["classifier.weight"].T  # what AM-softmax calls it
    out["grad_norms_f64"] = norms(named, file.config["grad_norm_names"])
    out["grad_pos_tok0_3"] = named["base.pos_embed"][0, :3]
    out |= {key: named[name] for key, name in GRADIENTS.items() if name in named}
    statistics = official_names(params, after)
    return out | {f"{name}_after": array for name, array in statistics.items() if ".running_" in name}


def trained_heads(method: TransReID, params: Any, extra: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
    """Features before the necks and the logits that the identity loss sees, with batch statistics."""
    features = method.features(params, batch, jax.random.key(0))
    (normalised, logits), _ = method.heads.apply(
        {"params": params["heads"], "batch_stats": extra["batch_stats"]}, features, True, mutable=["batch_stats"]
    )
    if method.settings.identity_loss in MARGINS:
        logits = method.margin_logits(params, normalised, batch["label"])
    return features, logits


JIGSAW_KEY = r"n(\d+)_s(\d+)_g(\d+)"


def compare_jigsaw(file: ReferenceFile) -> Iterator[Comparison]:
    """Shuffled tokens: key nN_sSHIFT_gGROUPS, N counts the cls token, which the result lacks."""
    for key, reference in file.outputs.items():
        if numbers := re.fullmatch(JIGSAW_KEY, key):
            count, shift, groups = map(int, numbers.groups())
            tokens = file.tagged("shuffle", (reference.shape[0], count, reference.shape[2]))
            yield file.compare(key, tokens[:, 1 + jigsaw_order(count - 1, shift, groups)])


def compare_positions(file: ReferenceFile) -> Iterator[Comparison]:
    """Resized tables: ``HxW`` from the input ``posemb``, or ``clip_<name>`` from ``posemb_<name>`` to the grid of the config."""
    for key in file.outputs:
        if numbers := re.fullmatch(r"(\d+)x(\d+)", key):
            source, grid = file.input("posemb"), (int(numbers[1]), int(numbers[2]))
        elif name := re.fullmatch(r"clip_(\w+)", key):
            source, grid = file.input(f"posemb_{name[1]}"), (file.config["h"], file.config["w"])
        else:
            continue
        table = jnp.asarray(source if source.ndim == 3 else source[None])
        side = int(round((table.shape[1] - 1) ** 0.5))
        resized = resize_positions(table, (side, side), grid)
        yield file.compare(key, resized if source.ndim == 3 else resized[0])


TRANSREID = Kind(recognises, compare)
JIGSAW = Kind(lambda file: all(re.fullmatch(JIGSAW_KEY, key) for key in file.outputs), compare_jigsaw)
POSITIONS = Kind(lambda file: any(name.startswith("posemb") for name in file.inputs), compare_positions)
