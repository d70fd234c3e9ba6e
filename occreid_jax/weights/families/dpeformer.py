"""Checkpoints of DPEFormer's official code, in both directions.

Source: zhangxin06/DPEFormer, ``model/make_model_zx.py`` (``build_transformer``) and ``model/backbones/vit_pytorch.py``
(``fbm_qkv``). The model is ``preset=official`` of configs/dpeformer.py: no neck of the global feature, necks of the parts that
serve the final head as well. The memory bank is no part of a checkpoint: its training saves it as a bare tensor in a file of its
own (transformermemory_EPOCH.pth).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from occreid_jax.nn.blending import SUB_WIDTH
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

PARTS = 4  # fixed in the official model
BACKBONE, HEADS, STATISTICS, BANK = "params/backbone/", "params/heads/", "extra/batch_stats/", "extra/bank"
CAMERAS = f"{BACKBONE}camera_embed"
MARKS = ("attention_global.", "REM_zx.")  # what no other network here has
UNUSED = "which the official code makes and no forward pass uses"
LEFT_OUT = (
    LeftOut(r"base\.fc\.(weight|bias)", "ImageNet classifier, which no forward pass uses"),
    LeftOut(r"bottleneck_\w+(\.\d+)?\.num_batches_tracked", "counts batches; nothing is computed with it"),
    LeftOut(r"bottleneck_global\..*", f"neck of the global feature, {UNUSED}"),
    LeftOut(r"bottleneck_local\.[89]\..*", f"further necks, {UNUSED}"),
    LeftOut(r"bottleneck_local_stage2\..*", f"second necks, {UNUSED}"),
    LeftOut(r"classifier_local\.[012389]\..*", f"further classifiers of parts, {UNUSED}"),
    LeftOut(r"classifier(1_2|1_3|2)\..*", f"classifier of other numbers of parts, {UNUSED}"),
    LeftOut(r"b2\.\d+\..*", f"copies of the last block and norm, {UNUSED}"),
    LeftOut(r"ffn[23]\..*", f"FED's feed-forward layers, {UNUSED}"),
    LeftOut(r"attention_global\.\d+\.(param|norm[12]\..*|attn\..*)", f"second set of a blending module, {UNUSED}"),
    LeftOut(r"attention_global\.\d+\.Block\.attn\.param", f"weight of an attention, {UNUSED}"),
    LeftOut(r"REM_zx\.\d+\..*", "module of Table VIII, which the official training never uses"),
)


def blending_rules(path: str, name: str) -> tuple[Rule, ...]:
    """A `SubVectorBlending` below ``path`` and ``name``."""
    block = f"{name}Block."
    norms = (("norm_query", "norm1"), ("norm_global", "norm2"), ("norm_mlp", "norm3"))
    return (
        Rule(f"{path}pos_embedding", f"{name}pos_embed"),
        *(Rule(f"{path}{ours}/scale", f"{block}{theirs}.weight") for ours, theirs in norms),
        *(Rule(f"{path}{ours}/bias", f"{block}{theirs}.bias") for ours, theirs in norms),
        Rule(f"{path}query/kernel", f"{block}attn.q.weight", "linear"),
        Rule(f"{path}key_value/kernel", f"{block}attn.kv.weight", "linear"),
        *dense_rules(f"{path}out/", f"{block}attn.proj."),
        *dense_rules(f"{path}fc1/", f"{block}mlp.fc1."),
        *dense_rules(f"{path}fc2/", f"{block}mlp.fc2."),
    )


def relation_rules(path: str, name: str) -> tuple[Rule, ...]:
    """A `RelationEnrichment` below ``path`` and ``name``."""
    layers = ("conv_query", "conv_part", "conv_value", "linear1", "linear2")
    dense = (dense_rules(f"{path}{layer}/", f"{name}{layer}.") for layer in layers)
    return (Rule(f"{path}share", f"{name}param"), *(rule for rules in dense for rule in rules))


def stripe_neck_rules() -> tuple[Rule, ...]:
    """The necks of the four stripes, which are one BatchNorm of four times the width here."""
    leaves = (("params/heads/memory/neck/scale", "weight"), ("params/heads/memory/neck/bias", "bias"))
    leaves += tuple((f"{STATISTICS}memory/neck/{ours}", f"running_{ours}") for ours in ("mean", "var"))
    return tuple(
        Rule(path, f"bottleneck_local.{part}.{leaf}", part=part, pieces=PARTS) for path, leaf in leaves for part in range(PARTS)
    )


RULES = (
    *encoder_rules(BACKBONE, "base."),
    Rule(CAMERAS, "base.sie_embed", "rows"),
    *blending_rules("params/fbm_{p}/", "attention_global.{p}."),
    *stripe_neck_rules(),
    *(
        rule
        for part in range(PARTS)
        for rule in (
            *batch_norm_rules(f"{HEADS}part_{part}/neck/", f"{STATISTICS}part_{part}/neck/", f"bottleneck_local.{PARTS + part}."),
            Rule(f"{HEADS}part_{part}/classifier/kernel", f"classifier_local.{PARTS + part}.weight", "linear"),
        )
    ),
    Rule(f"{HEADS}memory/classifier/kernel", "classifier1.weight", "linear"),
    Rule(f"{HEADS}final/classifier/kernel", "classifier1_4.weight", "linear"),
    Rule(f"{HEADS}global/classifier/kernel", "classifier3.weight", "linear"),
)


def blending_shapes(path: str, width: int) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of a blending module of features of this width."""
    sub = (SUB_WIDTH, SUB_WIDTH)
    shapes = {f"{path}pos_embedding": (1, width // SUB_WIDTH, SUB_WIDTH)}
    shapes |= {f"{path}norm_{name}/{leaf}": (SUB_WIDTH,) for name in ("query", "global", "mlp") for leaf in ("scale", "bias")}
    shapes |= {f"{path}query/kernel": sub, f"{path}key_value/kernel": (SUB_WIDTH, 2 * SUB_WIDTH)}
    shapes |= {f"{path}{name}/kernel": sub for name in ("out", "fc1", "fc2")}
    return shapes | {f"{path}{name}/bias": (SUB_WIDTH,) for name in ("out", "fc1", "fc2")}


def neck_shapes(head: str, width: int) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of the neck of a head."""
    shapes = {f"{HEADS}{head}/neck/{leaf}": (width,) for leaf in ("scale", "bias")}
    return shapes | {f"{STATISTICS}{head}/neck/{leaf}": (width,) for leaf in ("mean", "var")}


def checked(weights: Mapping[str, np.ndarray]) -> Description:
    """The description of a model that has everything and nothing else; otherwise a `UserError`."""
    shapes, description = encoder_shapes(weights, RULES, BACKBONE)
    width, cameras = description.width, 0
    if CAMERAS in weights:
        cameras = found(weights, CAMERAS, RULES, 2).shape[0]
        shapes[CAMERAS] = (cameras, width)
    identities = found(weights, f"{HEADS}global/classifier/kernel", RULES, 2).shape[1]
    shapes |= {f"{HEADS}{head}/classifier/kernel": (PARTS * width, identities) for head in ("memory", "final")}
    shapes |= {f"{HEADS}global/classifier/kernel": (width, identities)} | neck_shapes("memory", PARTS * width)
    for part in range(PARTS):
        shapes |= blending_shapes(f"params/fbm_{part}/", width) | neck_shapes(f"part_{part}", width)
        shapes[f"{HEADS}part_{part}/classifier/kernel"] = (width, identities)
    check_shapes(weights, shapes, RULES)
    return dataclasses.replace(description, identities=identities, cameras=cameras)


def read(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`."""
    weights, entries = import_arrays(arrays, RULES, LEFT_OUT)
    return weights, entries, checked(weights)


def write(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.write`. The result lacks what `LEFT_OUT` names, which the official model keeps as it made it, and the memory
    bank of a run. A model with parts that the official one does not have is refused."""
    weights = {path: array for path, array in weights.items() if path != BANK}
    possible = "model with an ImageNet ViT and the blending and heads of preset=official"
    refuse_nameless(weights, RULES, ("backbone", "heads", "fbm_0"), "DPEFormer's", possible)
    description = checked(weights)
    return *export(weights), description


def export(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry]]:
    """Some or all arrays of a model, or their gradients, under PyTorch names, unchecked."""
    return export_arrays(weights, RULES)


def fits(names: Collection[str]) -> bool:
    return any(name.startswith(MARKS) for name in names)


DPEFORMER = Family("dpeformer", "model", "DPEFormer", fits, read, write, methods=("dpeformer",))
