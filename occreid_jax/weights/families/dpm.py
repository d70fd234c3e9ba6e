"""Checkpoints of DPM, in both directions.

Source: stone96123/DPM, ``model/make_model.py`` (``build_transformer``, ``MArcface``) and ``model/backbones/vit_pytorch.py``. The
network is TransReID's ViT baseline with a mask generator (``ConvLayer``, ``attfc``); its classifier holds the prototypes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from occreid_jax.errors import UserError
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
    to_name,
)

VISUAL, GENERATOR, NECK, PROTOTYPES = "params/visual/", "params/mask_generator/", "params/neck/", "params/prototypes/weight"
CAMERAS = f"{VISUAL}camera_embed"
STATISTICS = "extra/batch_stats/"
CONVOLUTIONS = 3  # ``ConvLayer`` has them at 0, 2 and 4; between them stand poolings
MARKS = ("base.ConvLayer.", "base.attfc.")  # what no other network here has
LEFT_OUT = (
    LeftOut(r"base\.fc\.(weight|bias)", "ImageNet classifier, which no forward pass uses"),
    LeftOut(r"(bottleneck|base\.ConvLayer\.\d\.1)\.num_batches_tracked", "counts batches; nothing is computed with it"),
)


def generator_rules() -> tuple[Rule, ...]:
    """Convolutions with their BatchNorms, and the linear map to a mask."""
    rules = []
    for number in range(CONVOLUTIONS):
        name, norm = f"base.ConvLayer.{2 * number}", f"mask_generator/bn_{number}/"
        rules += [Rule(f"{GENERATOR}conv_{number}/kernel", f"{name}.0.weight", "conv")]
        rules += [Rule(f"{GENERATOR}conv_{number}/bias", f"{name}.0.bias")]
        rules += batch_norm_rules(f"params/{norm}", f"{STATISTICS}{norm}", f"{name}.1.")
    return (*rules, *dense_rules(f"{GENERATOR}fc/", "base.attfc."))


RULES = (
    *encoder_rules(VISUAL, "base."),
    Rule(CAMERAS, "base.sie_embed", "rows"),
    *generator_rules(),
    *batch_norm_rules(NECK, f"{STATISTICS}neck/", "bottleneck."),
    Rule(PROTOTYPES, "classifier.weight"),
)


def generator_shapes(weights: Mapping[str, np.ndarray], width: int) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of the mask generator of an encoder of this width; it may read any number of levels."""
    first = f"{GENERATOR}conv_0/kernel"
    inputs = found(weights, first, RULES, 4).shape[2]
    if inputs % width or not inputs:
        told = f"{to_name(RULES, first)} reads {inputs} channels, no multiple of the width {width}"
        raise UserError(f"{told}; this is another network")
    shapes: dict[str, tuple[int, ...]] = {}
    for number, outputs in enumerate((2 * width, width, width)):
        norm = f"mask_generator/bn_{number}/"
        shapes[f"{GENERATOR}conv_{number}/kernel"] = (3, 3, inputs, outputs)
        shapes[f"{GENERATOR}conv_{number}/bias"] = (outputs,)
        shapes |= {f"params/{norm}{leaf}": (outputs,) for leaf in ("scale", "bias")}
        shapes |= {f"{STATISTICS}{norm}{leaf}": (outputs,) for leaf in ("mean", "var")}
        inputs = outputs
    return shapes | {f"{GENERATOR}fc/kernel": (width, width), f"{GENERATOR}fc/bias": (width,)}


def checked(weights: Mapping[str, np.ndarray]) -> Description:
    """The description of a model that has everything and nothing else; otherwise a `UserError`.

    Without a mask generator it is the ViT baseline with its classifier as prototypes, SPT's re-identification network.
    """
    shapes, description = encoder_shapes(weights, RULES, VISUAL)
    width, cameras = description.width, 0
    if CAMERAS in weights:
        cameras = found(weights, CAMERAS, RULES, 2).shape[0]
        shapes[CAMERAS] = (cameras, width)
    if any(path.startswith((GENERATOR, f"{STATISTICS}mask_generator/")) for path in weights):
        shapes |= generator_shapes(weights, width)
    shapes |= {f"{NECK}{leaf}": (width,) for leaf in ("scale", "bias")}
    shapes |= {f"{STATISTICS}neck/{leaf}": (width,) for leaf in ("mean", "var")}
    identities = found(weights, PROTOTYPES, RULES, 2).shape[0]
    check_shapes(weights, shapes | {PROTOTYPES: (identities, width)}, RULES)
    return dataclasses.replace(description, identities=identities, cameras=cameras)


def read(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`."""
    weights, entries = import_arrays(arrays, RULES, LEFT_OUT)
    return weights, entries, checked(weights)


def write(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.write`. The result lacks ``num_batches_tracked`` and ``base.fc``, which the official model keeps as it made
    them. A model with parts that DPM does not have (texts, prompts, a selection network, CLIP's tower) is refused."""
    possible = "model with an ImageNet ViT, transfer.on=false, text=false and mask_level_norm=false"
    refuse_nameless(weights, RULES, ("visual", "mask_generator"), "DPM's", possible)
    description = checked(weights)
    return *export(weights), description


def export(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry]]:
    """Some or all arrays of a model under PyTorch names, unchecked."""
    return export_arrays(weights, RULES)


def fits(names: Collection[str]) -> bool:
    return any(name.startswith(MARKS) for name in names)


DPM = Family("dpm", "model", "DPM", fits, read, write, methods=("dpm_pp",))
