"""Checkpoints of CLIP-ReID and of its baseline, with a ViT or a ResNet for images, in both directions.

Source: Syliz517/CLIP-ReID, ``model/make_model_clipreid.py``, ``model/make_model.py`` (the baseline: no prompts, no text tower)
and ``model/clip/model.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.weights.families import Description, Family
from occreid_jax.weights.families.clip import (
    COUNTS,
    SCALE,
    TEXT,
    VISUAL,
    batch_norm_rules,
    is_resnet,
    resnet_rules,
    text_rules,
    text_shapes,
    visual_shapes,
    vit_rules,
)
from occreid_jax.weights.naming import (
    Arrays,
    Entry,
    LeftOut,
    Rule,
    check_shapes,
    export_arrays,
    found,
    import_arrays,
    to_name,
)

IMAGE, WORDS = "image_encoder.", "text_encoder."
CONTEXT, PREFIX, SUFFIX = "params/prompts/context", "extra/prompt/prefix", "extra/prompt/suffix"
CAMERAS, TOKENS = f"{VISUAL}camera_embed", f"{TEXT}token_embedding"
# What a model may have here and the official one does not store: parts of CLIP that training does not need, and what a run
# computed from the rest.
OURS = (TOKENS, SCALE, "extra/texts", "extra/tables/")
ENDS = ("", "_proj")  # heads on the features before and after the projection


def head_rules(number: int) -> tuple[Rule, ...]:
    """BNNeck and classifier ``number``."""
    head, end = f"heads/head_{number}/", ENDS[number]
    return (
        *batch_norm_rules(f"params/{head}neck/", f"extra/batch_stats/{head}neck/", f"bottleneck{end}."),
        Rule(f"params/{head}classifier/kernel", f"classifier{end}.weight", "linear"),
    )


def rules_of(resnet: bool) -> tuple[Rule, ...]:
    """All rules of a model with this image tower."""
    return (
        *(resnet_rules(IMAGE) if resnet else (*vit_rules(IMAGE), Rule(CAMERAS, "cv_embed"))),
        *text_rules(WORDS),
        Rule(SCALE, "logit_scale"),
        Rule(CONTEXT, "prompt_learner.cls_ctx"),
        Rule(PREFIX, "prompt_learner.token_prefix"),
        Rule(SUFFIX, "prompt_learner.token_suffix"),
        *(rule for number in range(len(ENDS)) for rule in head_rules(number)),
    )


def left_out(resnet: bool) -> tuple[LeftOut, ...]:
    """What is known and not used."""
    counts = LeftOut(r"(bottleneck(_proj)?|image_encoder\..*)\.num_batches_tracked", COUNTS)
    unused = LeftOut(r"cv_embed", "camera embedding, which the forward pass with a ResNet never reads")
    return (counts, unused) if resnet else (counts,)


def checked(weights: Mapping[str, np.ndarray], resnet: bool) -> Description:
    """The description of a model that has everything and nothing else; otherwise a `UserError`.

    The text tower and the prompts are there together or, as in the baseline, not at all. A token embedding and a temperature
    of CLIP, which the official model does not store, may be there.
    """
    rules = rules_of(resnet)
    shapes, description = visual_shapes(weights, rules)
    width, embed, cameras = description.width, description.embed, 0
    if CAMERAS in weights:
        cameras = found(weights, CAMERAS, rules, 2).shape[0]
        shapes[CAMERAS] = (cameras, width)
    identities = found(weights, "params/heads/head_0/classifier/kernel", rules, 2).shape[1]
    for number, size in enumerate((width, embed)):
        for rule in head_rules(number):
            shapes[rule.path] = (size, identities) if rule.path.endswith("kernel") else (size,)
    if any(path.startswith((TEXT, CONTEXT, PREFIX, SUFFIX)) for path in weights):
        more, description = text_shapes(weights, rules, description, tokens=TOKENS in weights)
        shapes |= more
        before = found(weights, PREFIX, rules, 3).shape[1]
        words = found(weights, CONTEXT, rules, 3).shape[1]
        after = description.text_positions - before - words
        if after < 1:
            raise UserError(
                f"{to_name(rules, PREFIX)} and {to_name(rules, CONTEXT)} take {before} and {words} of "
                f"{description.text_positions} text positions, which leaves none; this is another network"
            )
        text = description.text_width
        shapes |= {CONTEXT: (identities, words, text), PREFIX: (1, before, text), SUFFIX: (1, after, text)}
    if SCALE in weights:
        shapes[SCALE] = ()
    check_shapes(weights, shapes, rules)
    return dataclasses.replace(description, identities=identities, cameras=cameras)


def read(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`."""
    resnet = is_resnet(arrays, IMAGE)
    weights, entries = import_arrays(arrays, rules_of(resnet), left_out(resnet))
    return weights, entries, checked(weights, resnet)


def write(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.write`. The result lacks ``num_batches_tracked``, and of ``weights`` what is `OURS`: the official model has no
    place for it, and its ``load_param`` fails on names that it does not know."""
    weights = {path: array for path, array in weights.items() if not path.startswith(OURS)}
    resnet = is_resnet(weights, VISUAL)
    description = checked(weights, resnet)
    return *export_arrays(weights, rules_of(resnet)), description


def fits(names: Collection[str]) -> bool:
    return any(name.startswith(IMAGE) for name in names)


CLIP_REID = Family("clipreid", "model", "CLIP-ReID and its baseline", fits, read, write, methods=("clip_reid",))
