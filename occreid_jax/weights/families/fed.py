"""Checkpoints of FED, in both directions.

Source: ZacharyWang-007/FED-Occluded-ReID, ``model/make_model.py`` (``build_transformer``), ``model/perceiver.py``
(``trans_ffn3``) and ``model/backbones/vit_pytorch.py``. The official ffn2 and ffn3 are the paper's first and second FFN. The
memory bank is no part of a checkpoint: its training saves it as a bare tensor in a file of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping

import numpy as np

from occreid_jax.weights.families import Description, Family
from occreid_jax.weights.families.clip import batch_norm_rules, dense_rules
from occreid_jax.weights.families.vit import encoder_rules, encoder_shapes
from occreid_jax.weights.naming import (
    Arrays,
    Entry,
    LeftOut,
    Rule,
    check_shapes,
    export_arrays,
    found,
    import_arrays,
    refuse_nameless,
)

BACKBONE, OEM, NECKS, FDM, HEADS = (f"params/{name}/" for name in ("backbone", "oem", "necks", "fdm", "heads"))
CAMERAS = f"{BACKBONE}camera_embed"
STATISTICS, BANK = "extra/batch_stats/necks/", "extra/bank/"
MARKS = ("mask_detection.", "cross_attention.")  # what no other network here has
CLASSIFIERS = {"classifier_erased": "classifier1", "classifier_diffused": "classifier2", "classifier_global": "classifier3"}
LEFT_OUT = (
    LeftOut(r"base\.fc\.(weight|bias)", "ImageNet classifier, which no forward pass uses"),
    LeftOut(r"bottleneck_local\.\d+\.num_batches_tracked", "counts batches; nothing is computed with it"),
    LeftOut(r"bottleneck_local_stage2\..*", "second necks, which the official code makes and never calls"),
    LeftOut(r"classifier_local\..*", "classifiers of single stripes, whose logits enter no loss"),
)
REDUCTION, EXPANSION = 4, 4  # of the width inside OEM and inside the FFNs


def ffn_rules(path: str, name: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{path}norm/scale", f"{name}layers2.norm.weight"),
        Rule(f"{path}norm/bias", f"{name}layers2.norm.bias"),
        *dense_rules(f"{path}fc1/", f"{name}layers2.fn.net.0."),
        *dense_rules(f"{path}fc2/", f"{name}layers2.fn.net.3."),
    )


RULES = (
    *encoder_rules(BACKBONE, "base."),
    Rule(CAMERAS, "base.sie_embed", "rows"),
    *dense_rules(f"{OEM}oem_{{p}}/compress/", "mask_detection.{p}.0."),
    Rule(f"{OEM}oem_{{p}}/norm/scale", "mask_detection.{p}.1.weight"),
    Rule(f"{OEM}oem_{{p}}/norm/bias", "mask_detection.{p}.1.bias"),
    *dense_rules(f"{OEM}oem_{{p}}/score/", "mask_detection.{p}.2."),
    *batch_norm_rules(f"{NECKS}neck_{{p}}/", f"{STATISTICS}neck_{{p}}/", "bottleneck_local.{p}."),
    Rule(f"{FDM}attend/query/kernel", "cross_attention.q.weight", "linear"),
    Rule(f"{FDM}attend/key_value/kernel", "cross_attention.kv.weight", "linear"),
    *dense_rules(f"{FDM}attend/out/", "cross_attention.proj."),
    *ffn_rules(f"{FDM}ffn1/", "ffn2."),
    *ffn_rules(f"{FDM}ffn2/", "ffn3."),
    *(Rule(f"{HEADS}{ours}/kernel", f"{theirs}.weight", "linear") for ours, theirs in CLASSIFIERS.items()),
)


def layer(path: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of a linear layer."""
    return {f"{path}kernel": (inputs, outputs)} | ({f"{path}bias": (outputs,)} if bias else {})


def norm(path: str, width: int, leaves: tuple[str, ...] = ("scale", "bias")) -> dict[str, tuple[int, ...]]:
    return {f"{path}{leaf}": (width,) for leaf in leaves}


def checked(weights: Mapping[str, np.ndarray]) -> Description:
    """The description of a model that has everything and nothing else; otherwise a `UserError`."""
    shapes, description = encoder_shapes(weights, RULES, BACKBONE)
    width, cameras = description.width, 0
    if CAMERAS in weights:
        cameras = found(weights, CAMERAS, RULES, 2).shape[0]
        shapes[CAMERAS] = (cameras, width)
    numbers = [int(match[1]) for path in weights if (match := re.match(rf"{OEM}oem_(\d{{1,4}})/", path))]
    parts = 1 + max(numbers, default=0)
    for part in range(parts):
        start = f"{OEM}oem_{part}/"
        shapes |= layer(f"{start}compress/", width, width // REDUCTION) | layer(f"{start}score/", width // REDUCTION, 1)
        shapes |= norm(f"{start}norm/", width // REDUCTION) | norm(f"{NECKS}neck_{part}/", width)
        shapes |= norm(f"{STATISTICS}neck_{part}/", width, ("mean", "var"))
    wide, hidden = parts * width, EXPANSION * width
    for name, outputs in (("query", wide), ("key_value", 2 * wide), ("out", wide)):
        shapes |= layer(f"{FDM}attend/{name}/", wide, outputs, name == "out")
    for ffn in ("ffn1", "ffn2"):
        start = f"{FDM}{ffn}/"
        shapes |= norm(f"{start}norm/", width) | layer(f"{start}fc1/", width, 2 * hidden) | layer(f"{start}fc2/", hidden, width)
    identities = found(weights, f"{HEADS}classifier_global/kernel", RULES, 2).shape[1]
    for name in CLASSIFIERS:
        shapes |= layer(f"{HEADS}{name}/", width if name == "classifier_global" else wide, identities, False)
    check_shapes(weights, shapes, RULES)
    return dataclasses.replace(description, identities=identities, cameras=cameras)


def read(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`."""
    weights, entries = import_arrays(arrays, RULES, LEFT_OUT)
    return weights, entries, checked(weights)


def write(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.write`. The result lacks what `LEFT_OUT` names, which the official model keeps as it made it, and the memory
    banks of a run. A model with parts that FED does not have (separate necks, a neck of the global feature) is refused."""
    weights = {path: array for path, array in weights.items() if not path.startswith(BANK)}
    possible = "model with an ImageNet ViT, necks=shared and global_neck=False"
    refuse_nameless(weights, RULES, ("backbone",), "FED's", possible)
    description = checked(weights)
    return *export(weights), description


def export(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry]]:
    """Any of the model's arrays, or their gradients, under their PyTorch names and in PyTorch's layout."""
    return export_arrays(weights, RULES)


def fits(names: Collection[str]) -> bool:
    return any(name.startswith(MARKS) for name in names)


FED = Family("fed", "model", "FED", fits, read, write, methods=("fed",))
