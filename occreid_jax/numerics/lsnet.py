"""LSNet and its small-kernel aggregation: maps of every stage, logits, loss, gradients.

The files add an ImageNet classifier, which nothing here uses otherwise: a batch norm and a linear layer on the mean.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.losses.identity import cross_entropy
from occreid_jax.nn.layers import BatchNorm
from occreid_jax.nn.lsnet import LSNet, LSNetOutput, offset_numbers
from occreid_jax.nn.small_kernels import aggregate
from occreid_jax.numerics.encoders import norms
from occreid_jax.numerics.kind import Kind
from occreid_jax.weights.families import lsnet
from occreid_jax.weights.families.clip import batch_norm_rules, dense_rules
from occreid_jax.weights.naming import export_arrays
from occreid_jax.weights.reference import Comparison, ReferenceFile
from occreid_jax.weights.trees import flatten, unflatten

HEAD = (
    *batch_norm_rules("params/head/bn/", "extra/batch_stats/head/bn/", "head.bn."),
    *dense_rules("params/head/l/", "head.l."),
)
RULES = (*lsnet.NETWORK, *HEAD)
GRADIENTS = {  # of the first block of their kind, so many rows
    "grad_biases_stage4": ("blocks4.3.mixer.m.attention_biases", 4),
    "grad_lkp_cv4": ("blocks2.3.mixer.lkp.cv4.weight", 16),
}


def compare_aggregation(file: ReferenceFile) -> Iterator[Comparison]:
    """Forward and both gradients, maps in PyTorch's order of axes."""
    x, kernels, slope = (jnp.asarray(file.input(name)) for name in ("x", "w", "grad_out"))
    out, back = jax.vjp(aggregate, x.transpose(0, 2, 3, 1), kernels.transpose(0, 3, 4, 2, 1))
    by_x, by_kernels = back(slope.transpose(0, 2, 3, 1))
    yield file.compare("out", out.transpose(0, 3, 1, 2))
    yield file.compare("grad_x", by_x.transpose(0, 3, 1, 2))
    yield file.compare("grad_w", by_kernels.transpose(0, 4, 3, 1, 2))


def official_network(file: ReferenceFile) -> tuple[LSNet, Any, Any]:
    """``(network, params, statistics)`` with the file's weights, ported as a checkpoint is, and its classifier beside them."""
    arrays = {name: array for name, array in file.weights() if array is not None}
    weights, _, _ = lsnet.read(arrays)
    head = {
        path: rule.import_array(arrays[name]) for rule in HEAD for name in arrays if (path := rule.to_path(name)) is not None
    }
    trees = unflatten({path: jnp.asarray(array) for path, array in (weights | head).items()})
    return LSNet(lsnet.size_of(weights)), trees["params"], trees["extra"]["batch_stats"]


def classify(params: Any, statistics: Any, pooled: jax.Array, train: bool) -> jax.Array:
    variables = {"params": params["head"]["bn"], "batch_stats": statistics["head"]["bn"]}
    normalised, _ = BatchNorm().apply(variables, pooled, train, mutable=["batch_stats"])
    return jnp.matmul(normalised, params["head"]["l"]["kernel"]) + params["head"]["l"]["bias"]


def evaluated(network: LSNet, params: Any, statistics: Any, images: jax.Array) -> dict[str, Any]:
    """Maps and logits at test time."""

    @jax.jit
    def run(params, statistics, images):
        out: LSNetOutput = network.apply({"params": params["lsnet"], "batch_stats": statistics["lsnet"]}, images)
        found = {f"stage{number}": x.transpose(0, 3, 1, 2) for number, x in enumerate(out.stages, start=1)}
        found["stage1_img0"] = found["stage1"][0]
        found["patch_embed_img0"] = out.stem[0].transpose(2, 0, 1)
        found["patch_embed_gap"] = out.stem.mean(axis=(1, 2))
        return found | {"gap": out.pooled, "logits": classify(params, statistics, out.pooled, False)}

    return run(params, statistics, images)


def trained(network: LSNet, params: Any, statistics: Any, images: jax.Array, file: ReferenceFile) -> dict[str, Any]:
    """Logits and loss with batch statistics in float32, gradients in float64.

    Thousands of activations lie near the zero of a ReLU. Where rounding turns one of them over, gradients change by parts in a
    thousand, and the official rounding errors hold no such turn for some files and one for others.
    """
    labels = jnp.asarray(file.input("label"), jnp.int32)

    @functools.partial(jax.jit, static_argnums=0)
    def run(network, params, statistics, images):
        def loss(params):
            variables = {"params": params["lsnet"], "batch_stats": statistics["lsnet"]}
            out, _ = network.apply(variables, images, True, mutable=["batch_stats"])
            logits = classify(params, statistics, out.pooled, True)
            return cross_entropy(logits, labels, 0.0), logits

        (value, logits), slopes = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, value, slopes

    logits, value, _ = run(network, params, statistics, images)
    with jax.enable_x64():
        exact = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), (params, statistics, images))
        *_, slopes = run(network.clone(dtype=jnp.float64), *exact)
    named = export_arrays({f"params/{path}": np.asarray(x) for path, x in flatten(slopes).items()}, RULES)[0]
    out = {"logits": logits, "loss": value, "grad_norms_f64": norms(named, file.config["grad_norm_names"])}
    return out | {key: np.squeeze(named[name])[:rows] for key, (name, rows) in GRADIENTS.items()}


def compare(file: ReferenceFile) -> Iterator[Comparison]:
    network, params, statistics = official_network(file)
    images = jnp.asarray(file.images().transpose(0, 2, 3, 1))
    computed: dict[str, Any] = {}
    if "attention_bias_idxs" in file.outputs:
        computed["attention_bias_idxs"] = offset_numbers((network.size.table,) * 2, network.size.table)
    for prefix, rule in (("", "subgrid"), ("subgrid.", "subgrid"), ("bicubic.", "bicubic")):
        wanted = [key for key in file.outputs if key.startswith(f"{prefix}eval." if prefix else ("eval.", "train."))]
        if not wanted:
            continue
        ruled = network.clone(rule=rule)
        found = evaluated(ruled, params, statistics, images)
        computed |= {f"{prefix}eval.{key}": value for key, value in found.items()}
        if f"{prefix}train.loss" in file.outputs:
            computed |= {f"{prefix}train.{key}": value for key, value in trained(ruled, params, statistics, images, file).items()}
    for key, value in computed.items():
        if key in file.outputs:
            yield file.compare(key, value)


def recognises(file: ReferenceFile) -> bool:
    return lsnet.fits([entry.name for entry in file.state])


def recognises_aggregation(file: ReferenceFile) -> bool:
    return {"out", "grad_x", "grad_w"} <= set(file.outputs) and {"x", "w", "grad_out"} <= set(file.inputs)


AGGREGATION = Kind(recognises_aggregation, compare_aggregation)
LSNET = Kind(recognises, compare)
