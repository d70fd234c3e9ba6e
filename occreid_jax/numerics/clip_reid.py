"""CLIP-ReID as a whole network, with ViT or ResNet-50: towers, features, texts, both stages' losses and gradients."""

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
from occreid_jax.losses.contrastive import supervised_contrastive
from occreid_jax.methods.clip_reid import FINETUNE, ClipReID
from occreid_jax.nn.prompt import tokenize
from occreid_jax.numerics.encoders import SMOOTHING, norms
from occreid_jax.numerics.kind import Kind
from occreid_jax.numerics.settings import reproduction
from occreid_jax.types import Meta, Stage
from occreid_jax.weights.families import clip_reid
from occreid_jax.weights.naming import export_arrays
from occreid_jax.weights.reference import Comparison, ReferenceFile
from occreid_jax.weights.trees import flatten, unflatten

NETWORKS = {"ViT-B-16": "vit_b16", "RN50": "rn50"}
GRADIENTS = {
    "grad_cv_embed": "cv_embed",
    "grad_classifier_proj": "classifier_proj.weight",
    "grad_conv1": "image_encoder.conv1.weight",
}
ROWS = {"grad_proj_rows0_8": ("image_encoder.proj", 8), "grad_pos_tok0_3": ("image_encoder.positional_embedding", 3)}


def official_settings(cfg: Mapping[str, Any]) -> ConfigDict:
    """A config of this project's `ClipReID` that is an official one's model and losses, in float32."""
    model, solver = cfg["MODEL"], cfg["SOLVER"]
    if model["NAME"] not in NETWORKS:
        raise UserError(f"unknown MODEL.NAME {model['NAME']!r}; known: {', '.join(NETWORKS)}")
    rows, columns = model["STRIDE_SIZE"]
    if rows != columns:
        raise UserError(f"strides {rows} and {columns} differ between rows and columns; this network has one stride")
    changes = dict(
        stride=rows,
        camera=model["SIE_CAMERA"] and model["NAME"] != "RN50",
        camera_scale=model["SIE_COE"],
        label_smoothing=SMOOTHING if model["IF_LABELSMOOTH"] == "on" else 0.0,
        margin=None if model["NO_MARGIN"] else solver["MARGIN"],
        identity_weight=model["ID_LOSS_WEIGHT"],
        triplet_weight=model["TRIPLET_LOSS_WEIGHT"],
        image_text_weight=model["I2T_LOSS_WEIGHT"],
    )
    return reproduction(f"clip_reid:dataset=market1501,backbone={NETWORKS[model['NAME']]}", changes)


def official_model(file: ReferenceFile) -> tuple[ClipReID, Any, Any]:
    """``(method, params, extra)`` with the file's weights, ported as a checkpoint is."""
    config = file.config
    meta = Meta(config["num_classes"], config["cameras"], (config["H"], config["W"]), images=0)
    method = methods.create(official_settings(config["cfg"]), meta)
    weights, _, _ = clip_reid.read({name: array for name, array in file.weights() if array is not None})
    trees = unflatten({path: jnp.asarray(array) for path, array in weights.items()})
    return method, trees["params"], trees["extra"] | {"texts": jnp.zeros((meta.identities, method.size.embed))}


def compare(file: ReferenceFile) -> Iterator[Comparison]:
    method, params, extra = official_model(file)
    images = jnp.asarray(file.images().transpose(0, 2, 3, 1))
    batch = {"image": images, "camid": jnp.zeros(len(images), jnp.int32)}
    if "cam_label" in file.inputs:
        batch["camid"] = jnp.asarray(file.input("cam_label"), jnp.int32)
    computed = {f"eval.{key}": value for key, value in evaluated(method, params, extra, batch).items()}
    if "label" in file.inputs:
        batch["label"] = jnp.asarray(file.input("label"), jnp.int32)
        computed |= prompted(method, params, extra, batch, file)
        extra = extra | {"texts": computed["eval.text_all"]}
        computed |= {f"train.{key}": value for key, value in trained(method, params, extra, batch, file).items()}
    if "prompt" in file.config:
        ids = tokenize([file.config["prompt"]])
        computed |= {"tokens": ids, "eot_index": ids.argmax(axis=1)}
    for key, value in computed.items():
        if key in file.outputs:
            yield file.compare(key, value)


def evaluated(method: ClipReID, params: Any, extra: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Encoder outputs and features before and after the necks."""

    @jax.jit
    def run(params, extra, batch):
        out = towers(method, params, extra, batch)
        out["get_image"] = method.views(params, extra, batch, cameras=False)[0].projected
        for side in ("after", "before"):
            method.settings.test_feature = side
            out[f"feat_{side}"] = method.embed(params, extra, batch, "query")
        return out

    return run(params, extra, batch)


def towers(method: ClipReID, params: Any, extra: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What the image tower gives on its way, in PyTorch's order of axes."""
    variables = {"params": params["visual"]}
    if not method.is_vit:
        variables["batch_stats"] = extra["batch_stats"]["visual"]
        found = method.visual.apply(variables, batch["image"])
        maps = {"layer3": found.layer3, "layer4": found.layer4}
        out = {f"enc_{name}_img0": x[0].transpose(2, 0, 1) for name, x in maps.items()}
        out |= {f"enc_{name}_gap": x.mean(axis=(1, 2)) for name, x in maps.items()}
        return out | {"enc_attnpool_img0": found.tokens[0], "enc_attnpool_tok0": found.pooled}
    found = method.visual.apply(variables, batch["image"], batch["camid"])
    out = {f"block{number}_cls": tap[:, 0] for number, tap in enumerate(found.taps, start=1)}
    for name, x in {"x11": found.taps[-2], "x12": found.tokens, "proj": found.projected}.items():
        out |= {f"enc_{name}_img0": x[0], f"enc_{name}_cls": x[:, 0], f"enc_{name}_meantok": x.mean(axis=1)}
    return out


def prompted(method: ClipReID, params: Any, extra: Any, batch: Mapping[str, jax.Array], file: ReferenceFile) -> dict[str, Any]:
    """Texts, and the first stage's two losses with their gradient with respect to the learned words that occur."""
    labels = batch["label"]
    named = jnp.asarray(file.input("text_labels"), jnp.int32)

    @jax.jit
    def run(params, extra, batch):
        features = method.views(params, extra, batch, cameras=False)[0].projected

        def losses(context):
            texts = method.texts(params | {"prompts": {"context": context}}, extra, labels)
            parts = (
                supervised_contrastive(features, texts, labels, labels),
                supervised_contrastive(texts, features, labels, labels),
            )
            return sum(parts), parts

        (_, parts), slopes = jax.value_and_grad(losses, has_aux=True)(params["prompts"]["context"])
        texts = method.texts(params, extra, jnp.arange(method.meta.identities))
        return texts, method.texts(params, extra, named), parts, slopes

    texts, chosen, (image_to_text, text_to_image), slopes = run(params, extra, batch)
    stored = file.outputs.get("stage1.grad_cls_ctx")
    rows = np.unique(np.asarray(labels)) if stored is None or len(stored) < method.meta.identities else slice(None)
    return {
        "eval.text_all": texts,
        "eval.get_text": chosen,
        "stage1.loss_i2t": image_to_text,
        "stage1.loss_t2i": text_to_image,
        "stage1.grad_cls_ctx": np.asarray(slopes)[rows],
    }


def trained(method: ClipReID, params: Any, extra: Any, batch: Mapping[str, jax.Array], file: ReferenceFile) -> dict[str, Any]:
    """One step of the second stage: features, logits, loss, gradients and new statistics."""
    stage = Stage(FINETUNE, 1, None, (), lambda rng, batch: batch)
    moving = {name: params[name] for name in ("visual", "heads")}

    @jax.jit
    def run(moving, extra, batch):
        everything = params | moving
        views, _ = method.views(everything, extra, batch, train=True)
        (_, logits), _ = method.heads.apply(
            {"params": moving["heads"], "batch_stats": extra["batch_stats"]["heads"]}, views[1:], True, mutable=["batch_stats"]
        )

        def loss(moving):
            return method.loss(params | moving, extra, batch, jax.random.key(0), stage, 0.0)

        (value, aux), gradients = jax.value_and_grad(loss, has_aux=True)(moving)
        return views, logits, method.image_text_logits(views.projected, extra), value, aux.extra, gradients

    views, logits, image_text, value, after, gradients = run(moving, extra, batch)
    out = {
        "cls_score": logits[0],
        "cls_score_proj": logits[1],
        "feat_last": views.early,
        "feat": views.late,
        "feat_proj": views.projected,
        "i2t_logits": image_text,
        "loss": value,
    }
    named = official_names(method, gradients)
    out["grad_norms_f64"] = norms(named, file.config["grad_norm_names"])
    out |= {key: named[name] for key, name in GRADIENTS.items() if name in named}
    out |= {key: named[name][:count] for key, (name, count) in ROWS.items() if name in named}
    statistics = {f"extra/batch_stats/{path}": np.asarray(x) for path, x in flatten(after["batch_stats"]).items()}
    statistics = export_arrays(statistics, clip_reid.rules_of(not method.is_vit))[0]
    return out | {f"{name}_after": array for name, array in statistics.items() if name.startswith("bottleneck")}


def official_names(method: ClipReID, tree: Any) -> dict[str, np.ndarray]:
    """Parameters or gradients under their PyTorch names and in PyTorch's layout."""
    named = {f"params/{path}": np.asarray(array) for path, array in flatten(tree).items()}
    return export_arrays(named, clip_reid.rules_of(not method.is_vit))[0]


def recognises(file: ReferenceFile) -> bool:
    names = {entry.name for entry in file.state}
    return (
        "eval.feat_before" in file.outputs
        and {"prompt_learner.cls_ctx", "classifier_proj.weight"} <= names
        and not any(re.match(r"ConvLayer|attfc", name) for name in names)
    )


CLIP_REID = Kind(recognises, compare)
