"""Checkpoints of TransReID and of its ViT baseline, in both directions.

Source: damo-cv/TransReID, ``model/make_model.py`` (``build_transformer``, ``build_transformer_local``) and
``model/backbones/vit_pytorch.py``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping

import numpy as np

from occreid_jax.weights.families import Description, Family, dpeformer, dpm, fed, spt
from occreid_jax.weights.families.vit import block_shapes, encoder_rules, encoder_shapes
from occreid_jax.weights.naming import (
    Arrays,
    Entry,
    LeftOut,
    Rule,
    block_rules,
    check_shapes,
    export_arrays,
    found,
    import_arrays,
)

HEADS = 5  # with the jigsaw patch module: the whole picture and four groups of patches
BACKBONE, JIGSAW = "params/backbone/", "params/jpm/"
LEFT_OUT = (
    LeftOut(r"base\.fc\.(weight|bias)", "ImageNet classifier, which no forward pass uses"),
    LeftOut(r"bottleneck(_\d)?\.num_batches_tracked", "counts batches; nothing is computed with it"),
)


def head_rules(number: int) -> tuple[Rule, ...]:
    """BNNeck and classifier ``number``; the margin losses ArcFace, CosFace and circle keep theirs under the same name."""
    end = f"_{number}" if number else ""
    head, statistics = f"params/heads/head_{number}/", f"extra/batch_stats/head_{number}/neck/"
    rules = [
        Rule(f"{head}neck/scale", f"bottleneck{end}.weight"),
        Rule(f"{head}neck/bias", f"bottleneck{end}.bias"),
        Rule(f"{statistics}mean", f"bottleneck{end}.running_mean"),
        Rule(f"{statistics}var", f"bottleneck{end}.running_var"),
        Rule(f"{head}classifier/kernel", f"classifier{end}.weight", "linear"),
    ]
    if number == 0:
        rules.append(Rule(f"{head}classifier/kernel", "classifier.W"))  # AM-softmax stores [width, identities]
    return tuple(rules)


def branch_rules(branch: str, name: str) -> tuple[Rule, ...]:
    """A branch of the jigsaw patch module: a block and a LayerNorm in one ``nn.Sequential``."""
    return (
        *block_rules(f"{JIGSAW}{branch}/block/", f"{name}.0."),
        Rule(f"{JIGSAW}{branch}/norm/scale", f"{name}.1.weight"),
        Rule(f"{JIGSAW}{branch}/norm/bias", f"{name}.1.bias"),
    )


RULES = (
    *encoder_rules(BACKBONE, "base."),
    Rule(f"{BACKBONE}camera_embed", "base.sie_embed", "rows"),
    *branch_rules("global", "b1"),
    *branch_rules("local", "b2"),
    *(rule for number in range(HEADS) for rule in head_rules(number)),
)


def dead_weight(names: Collection[str]) -> tuple[LeftOut, ...]:
    """What of the encoder is never run when the jigsaw patch module is on: the last block and the norm that follows it.

    Both are in a file together or not at all: files written from here lack them, and there the last block is in use.
    """
    numbers = [int(match[1]) for name in names if (match := re.match(r"base\.blocks\.(\d{1,4})\.", name))]
    if "b1.1.weight" not in names or "base.norm.weight" not in names or not numbers:
        return ()
    reason = "dead weight: with JPM the branches b1 and b2 stand in its place"
    return LeftOut(rf"base\.blocks\.{max(numbers)}\..*", reason), LeftOut(r"base\.norm\.(weight|bias)", reason)


def checked(weights: Mapping[str, np.ndarray]) -> Description:
    """The description of a model that has everything and nothing else; otherwise a `UserError`."""
    jigsaw = any(path.startswith(JIGSAW) for path in weights)
    shapes, encoder = encoder_shapes(weights, RULES, BACKBONE, final_norm=not jigsaw)
    width, cameras = encoder.width, 0
    if f"{BACKBONE}camera_embed" in weights:
        cameras = found(weights, f"{BACKBONE}camera_embed", RULES, 2).shape[0]
        shapes[f"{BACKBONE}camera_embed"] = (cameras, width)
    if jigsaw:
        hidden = shapes[f"{BACKBONE}block_00/mlp/fc1/kernel"][1]
        bias = f"{BACKBONE}block_00/attn/qkv/bias" in shapes
        for branch in ("global", "local"):
            shapes |= block_shapes(f"{JIGSAW}{branch}/block/", width, hidden, bias)
            shapes |= {f"{JIGSAW}{branch}/norm/{leaf}": (width,) for leaf in ("scale", "bias")}
    identities = found(weights, "params/heads/head_0/classifier/kernel", RULES, 2).shape[1]
    for number in range(HEADS if jigsaw else 1):
        for rule in head_rules(number):
            shapes[rule.path] = (width, identities) if rule.path.endswith("kernel") else (width,)
    check_shapes(weights, shapes, RULES)
    return dataclasses.replace(encoder, depth=encoder.depth + int(jigsaw), identities=identities, cameras=cameras, jigsaw=jigsaw)


def read(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`."""
    weights, entries = import_arrays(arrays, RULES, (*LEFT_OUT, *dead_weight(set(arrays))))
    return weights, entries, checked(weights)


def write(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.write`. The result lacks what no forward pass reads: ``num_batches_tracked``, ``base.fc``, and with JPM the
    last block of ``base`` and ``base.norm``. The official ``load_param`` copies what it is given and keeps the rest."""
    description = checked(weights)
    return *export_arrays(weights, RULES), description


def fits(names: Collection[str]) -> bool:
    # Successors of this network have its names and some of their own.
    if any(family.fits(names) for family in (dpm, spt, fed, dpeformer)):
        return False
    return {"base.cls_token", "base.patch_embed.proj.weight"} <= set(names)


TRANSREID = Family("transreid", "model", "TransReID and its ViT baseline", fits, read, write, methods=("transreid", "baseline"))
