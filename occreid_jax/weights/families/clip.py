"""CLIP's two towers, the image's a ViT or a ResNet: the names of OpenAI and open_clip, of Hugging Face, and of timm.

Sources: openai/CLIP ``clip/model.py``, open_clip ``transformer.py`` and ``modified_resnet.py``, transformers ``models/clip``,
timm ``vision_transformer.py`` (``_convert_openai_clip``). Two things are not in the tensors: the number of heads, which is a
64th of the width in OpenAI's, and the activation, which is QuickGELU in OpenAI's and exact GELU in most that LAION trained.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.weights.families import Description, Family
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

VISUAL, TEXT, SCALE = "params/visual/", "params/text/", "params/logit_scale"
STATISTICS = "extra/batch_stats/visual/"  # of the ResNet
POSITIONS = (f"{VISUAL}pos_embed", f"{VISUAL}attnpool/pos_embed")  # of the two kinds of image tower
CHANNELS, STAGES, EXPANSION = 3, 4, 4  # of the ResNet: its stages, and how much wider a block's output is than its inside

OPENAI_BLOCK = {
    "norm1": "ln_1.",
    "norm2": "ln_2.",
    "attn/qkv": "attn.in_proj_",
    "attn/proj": "attn.out_proj.",
    "mlp/fc1": "mlp.c_fc.",
    "mlp/fc2": "mlp.c_proj.",
}
HUGGING_FACE_BLOCK = {
    "norm1": "layer_norm1.",
    "norm2": "layer_norm2.",
    "attn/qkv": tuple(f"self_attn.{word}_proj." for word in "qkv"),
    "attn/proj": "self_attn.out_proj.",
    "mlp/fc1": "mlp.fc1.",
    "mlp/fc2": "mlp.fc2.",
}
COUNTS = "counts batches; nothing is computed with it"
SIZE = "a size, which the shapes of the other tensors tell"
BUFFER = "follows from the number of positions"


# Rules: pairs of paths here and names elsewhere. A function's ``name`` is what stands before the names, with its final dot. -----


def norm_rules(path: str, name: str) -> tuple[Rule, ...]:
    """A LayerNorm; both with their final separator."""
    return Rule(f"{path}scale", f"{name}weight"), Rule(f"{path}bias", f"{name}bias")


def dense_rules(path: str, name: str) -> tuple[Rule, ...]:
    """An ``nn.Linear`` with a bias."""
    return Rule(f"{path}kernel", f"{name}weight", "linear"), Rule(f"{path}bias", f"{name}bias")


def batch_norm_rules(path: str, statistics: str, name: str) -> tuple[Rule, ...]:
    """A BatchNorm, whose statistics lie below ``statistics``."""
    return (
        *norm_rules(path, name),
        Rule(f"{statistics}mean", f"{name}running_mean"),
        Rule(f"{statistics}var", f"{name}running_var"),
    )


def vit_rules(name: str) -> tuple[Rule, ...]:
    """The image ViT as OpenAI names it."""
    return (
        Rule(f"{VISUAL}patch_embed/kernel", f"{name}conv1.weight", "conv"),
        Rule(f"{VISUAL}cls_token", f"{name}class_embedding", "token"),
        Rule(f"{VISUAL}pos_embed", f"{name}positional_embedding", "table"),
        *norm_rules(f"{VISUAL}norm_pre/", f"{name}ln_pre."),
        *block_rules(f"{VISUAL}block_{{i:02d}}/", f"{name}transformer.resblocks.{{i}}.", OPENAI_BLOCK),
        *norm_rules(f"{VISUAL}norm/", f"{name}ln_post."),
        Rule(f"{VISUAL}projection", f"{name}proj"),
    )


def resnet_rules(name: str) -> tuple[Rule, ...]:
    """The image ResNet as OpenAI names it."""
    rules = []
    for number in range(1, 4):
        for ours, theirs in (("", ""), ("layer{k}_{j}/", "layer{k}.{j}.")):
            rules.append(Rule(f"{VISUAL}{ours}conv{number}/kernel", f"{name}{theirs}conv{number}.weight", "conv"))
            norm = f"{ours}bn{number}/"
            rules += batch_norm_rules(f"{VISUAL}{norm}", f"{STATISTICS}{norm}", f"{name}{theirs}bn{number}.")
    ours, theirs = "layer{k}_{j}/downsample_", f"{name}layer{{k}}.{{j}}.downsample."
    rules.append(Rule(f"{VISUAL}{ours}conv/kernel", f"{theirs}0.weight", "conv"))
    rules += batch_norm_rules(f"{VISUAL}{ours}bn/", f"{STATISTICS}{ours}bn/", f"{theirs}1.")
    rules.append(Rule(f"{VISUAL}attnpool/pos_embed", f"{name}attnpool.positional_embedding", "table"))
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "c_proj")):
        rules += dense_rules(f"{VISUAL}attnpool/{ours}/", f"{name}attnpool.{theirs}.")
    return tuple(rules)


def text_rules(name: str) -> tuple[Rule, ...]:
    """The text tower as OpenAI names it."""
    return (
        Rule(f"{TEXT}token_embedding", f"{name}token_embedding.weight"),
        Rule(f"{TEXT}pos_embed", f"{name}positional_embedding"),
        *block_rules(f"{TEXT}block_{{i:02d}}/", f"{name}transformer.resblocks.{{i}}.", OPENAI_BLOCK),
        *norm_rules(f"{TEXT}norm/", f"{name}ln_final."),
        Rule(f"{TEXT}projection", f"{name}text_projection"),
    )


def is_resnet(names: Collection[str], start: str) -> bool:
    """Whether the image tower below ``start``, a name or a path, is a ResNet."""
    return any(name.startswith((f"{start}layer", f"{start}attnpool")) for name in names)


# Shapes -------------------------------------------------------------------------------------------------------------------------

Shapes = dict[str, tuple[int, ...]]


def vit_shapes(weights: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> tuple[Shapes, Description]:
    """Paths and shapes of the image ViT, by its width, blocks, positions and projection, and its description."""
    shapes, description = encoder_shapes(weights, rules, VISUAL)
    width, embed = description.width, found(weights, f"{VISUAL}projection", rules, 2).shape[1]
    del shapes[f"{VISUAL}patch_embed/bias"]
    shapes |= {f"{VISUAL}block_{number:02d}/attn/qkv/bias": (3 * width,) for number in range(description.depth)}
    shapes |= {f"{VISUAL}norm_pre/scale": (width,), f"{VISUAL}norm_pre/bias": (width,), f"{VISUAL}projection": (width, embed)}
    side = shapes[f"{VISUAL}patch_embed/kernel"][0]
    return shapes, dataclasses.replace(description, tower="vit", embed=embed, patch=side)


def resnet_shapes(weights: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> tuple[Shapes, Description]:
    """Paths and shapes of the image ResNet, by the width of its stem, its blocks, positions and projection."""
    width = found(weights, f"{VISUAL}conv3/kernel", rules, 4).shape[3]
    shapes: Shapes = {}

    def convolution(layer: str, norm: str, side: int, inputs: int, outputs: int) -> None:
        shapes[f"{VISUAL}{layer}/kernel"] = (side, side, inputs, outputs)
        shapes.update({f"{VISUAL}{norm}/{leaf}": (outputs,) for leaf in ("scale", "bias")})
        shapes.update({f"{STATISTICS}{norm}/{leaf}": (outputs,) for leaf in ("mean", "var")})

    inputs = CHANNELS
    for number, outputs in enumerate((width // 2, width // 2, width), start=1):
        convolution(f"conv{number}", f"bn{number}", 3, inputs, outputs)
        inputs = outputs
    stages = []
    for stage in range(1, STAGES + 1):
        start = f"{VISUAL}layer{stage}_"
        numbers = [int(match[1]) for path in weights if (match := re.match(rf"{start}(\d{{1,4}})/", path))]
        stages.append(1 + max(numbers, default=0))
        inside = width * 2 ** (stage - 1)
        for number in range(stages[-1]):
            block, outputs = f"layer{stage}_{number}/", EXPANSION * inside
            convolution(f"{block}conv1", f"{block}bn1", 1, inputs, inside)
            convolution(f"{block}conv2", f"{block}bn2", 3, inside, inside)
            convolution(f"{block}conv3", f"{block}bn3", 1, inside, outputs)
            if number == 0:
                convolution(f"{block}downsample_conv", f"{block}downsample_bn", 1, inputs, outputs)
            inputs = outputs
    pool = f"{VISUAL}attnpool/"
    patches = found(weights, f"{pool}pos_embed", rules, 3).shape[1] - 1
    embed = found(weights, f"{pool}out/kernel", rules, 2).shape[1]
    shapes[f"{pool}pos_embed"] = (1, 1 + patches, inputs)
    for name, outputs in (("query", inputs), ("key", inputs), ("value", inputs), ("out", embed)):
        shapes |= {f"{pool}{name}/kernel": (inputs, outputs), f"{pool}{name}/bias": (outputs,)}
    if patches < 1:
        raise UserError("the attention pool has no positions for pixels; this is another network")
    return shapes, Description(inputs, sum(stages), patches, tower="resnet", embed=embed, stages=tuple(stages))


def visual_shapes(weights: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> tuple[Shapes, Description]:
    """Paths and shapes of either image tower."""
    return (resnet_shapes if is_resnet(weights, VISUAL) else vit_shapes)(weights, rules)


def text_shapes(
    weights: Mapping[str, np.ndarray], rules: Sequence[Rule], description: Description, tokens: bool = True
) -> tuple[Shapes, Description]:
    """Paths and shapes of the text tower, and ``description`` with its sizes. Without ``tokens`` it has no token embedding."""
    positions, width = found(weights, f"{TEXT}pos_embed", rules, 2).shape
    hidden = found(weights, f"{TEXT}block_00/mlp/fc1/kernel", rules, 2).shape[1]
    depth = 1 + max(int(match[1]) for path in weights if (match := re.match(rf"{TEXT}block_(\d{{1,4}})/", path)))
    shapes: Shapes = {f"{TEXT}pos_embed": (positions, width), f"{TEXT}projection": (width, description.embed)}
    shapes |= {f"{TEXT}norm/scale": (width,), f"{TEXT}norm/bias": (width,)}
    for number in range(depth):
        shapes |= block_shapes(f"{TEXT}block_{number:02d}/", width, hidden, True)
    facts = dict(text_width=width, text_depth=depth, text_positions=positions)
    if tokens:
        facts["vocabulary"] = found(weights, f"{TEXT}token_embedding", rules, 2).shape[0]
        shapes[f"{TEXT}token_embedding"] = (facts["vocabulary"], width)
    return shapes, dataclasses.replace(description, **facts)


def checked(weights: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> Description:
    """The description of both towers, or of an image tower alone, that has everything and nothing else; or a `UserError`."""
    shapes, description = visual_shapes(weights, rules)
    if any(path.startswith((TEXT, SCALE)) for path in weights):
        more, description = text_shapes(weights, rules, description)
        shapes |= {**more, SCALE: ()}
    check_shapes(weights, shapes, rules)
    return description


# OpenAI and open_clip -----------------------------------------------------------------------------------------------------------


def openai_rules(resnet: bool) -> tuple[Rule, ...]:
    """Both towers as OpenAI names them."""
    return (*(resnet_rules if resnet else vit_rules)("visual."), *text_rules(""), Rule(SCALE, "logit_scale"))


OPENAI_LEFT_OUT = (
    LeftOut(r"(input_resolution|context_length|vocab_size)", SIZE),
    LeftOut(r"(.*\.)?attn_mask", BUFFER),
    LeftOut(r"visual\..*\.num_batches_tracked", COUNTS),
)


def read_openai(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`. A file may hold the image tower alone."""
    rules = openai_rules(is_resnet(arrays, "visual."))
    weights, entries = import_arrays(arrays, rules, OPENAI_LEFT_OUT)
    return weights, entries, checked(weights, rules)


def write_openai(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.write`: OpenAI's names, whatever names the weights came with. ``grid`` has no counterpart there, and the
    result lacks ``num_batches_tracked`` and the sizes that OpenAI stores."""
    weights = {path: array for path, array in weights.items() if path != "grid"}
    rules = openai_rules(is_resnet(weights, VISUAL))
    description = checked(weights, rules)
    return *export_arrays(weights, rules), description


# Hugging Face -------------------------------------------------------------------------------------------------------------------

HUGGING_FACE_CLS = "vision_model.embeddings.class_embedding"
HUGGING_FACE_RULES = (
    Rule(f"{VISUAL}patch_embed/kernel", "vision_model.embeddings.patch_embedding.weight", "conv"),
    Rule(f"{VISUAL}cls_token", HUGGING_FACE_CLS, "token"),
    Rule(f"{VISUAL}pos_embed", "vision_model.embeddings.position_embedding.weight", "table"),
    *norm_rules(f"{VISUAL}norm_pre/", "vision_model.pre_layrnorm."),  # the spelling is theirs
    *block_rules(f"{VISUAL}block_{{i:02d}}/", "vision_model.encoder.layers.{i}.", HUGGING_FACE_BLOCK),
    *norm_rules(f"{VISUAL}norm/", "vision_model.post_layernorm."),
    Rule(f"{VISUAL}projection", "visual_projection.weight", "linear"),
    Rule(f"{TEXT}token_embedding", "text_model.embeddings.token_embedding.weight"),
    Rule(f"{TEXT}pos_embed", "text_model.embeddings.position_embedding.weight"),
    *block_rules(f"{TEXT}block_{{i:02d}}/", "text_model.encoder.layers.{i}.", HUGGING_FACE_BLOCK),
    *norm_rules(f"{TEXT}norm/", "text_model.final_layer_norm."),
    Rule(f"{TEXT}projection", "text_projection.weight", "linear"),
    Rule(SCALE, "logit_scale"),
)
HUGGING_FACE_LEFT_OUT = (LeftOut(r"(vision|text)_model\.embeddings\.position_ids", BUFFER),)


def read_hugging_face(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`. A file may hold the image tower alone."""
    weights, entries = import_arrays(arrays, HUGGING_FACE_RULES, HUGGING_FACE_LEFT_OUT)
    return weights, entries, checked(weights, HUGGING_FACE_RULES)


# timm, which has the image tower alone and turns its projection into a classifier -----------------------------------------------

TIMM_RULES = (
    *encoder_rules(VISUAL),
    *norm_rules(f"{VISUAL}norm_pre/", "norm_pre."),
    Rule(f"{VISUAL}projection", "head.weight", "linear"),
)
NO_PROJECTION = "without it the tower is no CLIP; take the weights of OpenAI, open_clip or Hugging Face"


def read_timm(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`. Raises `UserError` if the projection was dropped or replaced by a classifier."""
    if "head.weight" not in arrays:
        raise UserError(f"head.weight is missing, which holds the projection of CLIP's image tower; {NO_PROJECTION}")
    if "head.bias" in arrays and np.any(np.asarray(arrays["head.bias"]) != 0):
        raise UserError(f"head is a classifier (its bias is not zero) in the place of the projection; {NO_PROJECTION}")
    left_out = (LeftOut(r"head\.bias", "zeros: the projection has no bias"),)
    weights, entries = import_arrays(arrays, TIMM_RULES, left_out)
    return weights, entries, checked(weights, TIMM_RULES)


def is_openai(names: Collection[str]) -> bool:
    return "visual.conv1.weight" in names or "token_embedding.weight" in names


def is_hugging_face(names: Collection[str]) -> bool:
    return HUGGING_FACE_CLS in names


def is_timm(names: Collection[str]) -> bool:
    return {"cls_token", "patch_embed.proj.weight", "norm_pre.weight"} <= set(names)


OPENAI = Family("clip", "clip", "CLIP of OpenAI and open_clip", is_openai, read_openai, write_openai)
HUGGING_FACE = Family("clip_huggingface", "clip", "CLIP of Hugging Face", is_hugging_face, read_hugging_face, write_openai)
TIMM = Family("clip_timm", "clip", "CLIP's image ViT as timm names it", is_timm, read_timm, write_openai)
