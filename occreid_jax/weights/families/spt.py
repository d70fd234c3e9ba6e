"""Checkpoints of SPT's selection network (SPS), which learns where the person is, in both directions.

Source: stone96123/SPT, ``model/make_model_pt.py`` and ``model/backbones/vit_pytorch.py`` (``TransReID_Mask``). SPT's
re-identification network has the names of TransReID's ViT baseline and belongs to that family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.weights.families import Description, Family
from occreid_jax.weights.families.clip import batch_norm_rules
from occreid_jax.weights.families.vit import encoder_rules, encoder_shapes
from occreid_jax.weights.naming import Arrays, Entry, LeftOut, Rule, check_shapes, export_arrays, found, import_arrays, to_name

SELECTION, STATISTICS = "params/selection/", "extra/batch_stats/selection/neck/"
ENCODER, HEAD = f"{SELECTION}encoder/", f"{SELECTION}head/"
DECISION, OFFSET, CLASSIFIER = f"{SELECTION}decision/kernel", f"{SELECTION}decision/bias", f"{HEAD}classifier/kernel"
MARKS = ("base.mixfc.",)  # what no other network here has
LEFT_OUT = (
    LeftOut(r"base\.fc\.(weight|bias)", "ImageNet classifier, which no forward pass uses"),
    LeftOut(r"bottleneck\.num_batches_tracked", "counts batches; nothing is computed with it"),
)
RULES = (
    *encoder_rules(ENCODER, "base."),
    Rule(DECISION, "base.mixfc.weight", "conv"),  # 1x1; its two axes of size 1 are added and removed below
    Rule(OFFSET, "base.mixfc.bias"),
    *batch_norm_rules(f"{HEAD}neck/", STATISTICS, "bottleneck."),
    Rule(CLASSIFIER, "classifier.weight", "linear"),
)


def checked(weights: Mapping[str, np.ndarray]) -> Description:
    """The description of a network that has everything and nothing else; otherwise a `UserError`. It knows no cameras."""
    shapes, description = encoder_shapes(weights, RULES, ENCODER)
    width = description.width
    inputs = found(weights, DECISION, RULES, 2).shape[0]
    if inputs % width or not inputs:
        told = f"{to_name(RULES, DECISION)} reads {inputs} channels, no multiple of the width {width}"
        raise UserError(f"{told}; this is another network")
    identities = found(weights, CLASSIFIER, RULES, 2).shape[1]
    shapes |= {DECISION: (inputs, 1), OFFSET: (1,), CLASSIFIER: (width, identities)}
    shapes |= {f"{HEAD}neck/{leaf}": (width,) for leaf in ("scale", "bias")}
    shapes |= {f"{STATISTICS}{leaf}": (width,) for leaf in ("mean", "var")}
    check_shapes(weights, shapes, RULES)
    return dataclasses.replace(description, identities=identities, cameras=0)


def read(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`."""
    weights, entries = import_arrays(arrays, RULES, LEFT_OUT)
    if DECISION in weights:
        kernel = weights[DECISION]
        if kernel.shape[:2] != (1, 1):
            raise UserError(f"{to_name(RULES, DECISION)} is no 1x1 convolution; this is another network")
        weights[DECISION] = kernel[0, 0]
    return weights, entries, checked(weights)


def write(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.write`. The result lacks ``num_batches_tracked`` and ``base.fc``."""
    description = checked(weights)
    return *export(weights), description


def export(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry]]:
    """Some or all arrays of the network under PyTorch names, unchecked."""
    return export_arrays({path: x[None, None] if path == DECISION else x for path, x in weights.items()}, RULES)


def fits(names: Collection[str]) -> bool:
    return any(name.startswith(MARKS) for name in names)


SPT = Family("spt", "part", "SPT's selection network", fits, read, write)
