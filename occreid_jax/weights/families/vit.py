"""ImageNet encoders: the names of timm and DeiT, of Hugging Face, and of Google's .npz files.

Sources: timm ``models/vision_transformer.py`` and ``models/deit.py``, the ``load_param`` of TransReID's ``vit_pytorch.py``,
transformers ``models/vit``, google-research/vision_transformer ``models_vit.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.weights.families import Description, Family
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
    to_name,
)

CLASSIFIER = "classifier of the pretraining"
BEFORE_CLASSIFIER = "layer between encoder and classifier of the pretraining"
DISTILLATION = "this encoder has no distillation token"
DROPPED_ROW = "row 1 dropped: it is the distillation token's position"
CHANNELS = 3


def encoder_rules(path: str = "", name: str = "", block: str = "blocks.{i}.") -> tuple[Rule, ...]:
    """The rules of a ViT as timm names it, below ``path`` and ``name`` (empty, or with their final separator)."""
    return (
        Rule(f"{path}patch_embed/kernel", f"{name}patch_embed.proj.weight", "conv"),
        Rule(f"{path}patch_embed/bias", f"{name}patch_embed.proj.bias"),
        Rule(f"{path}cls_token", f"{name}cls_token"),
        Rule(f"{path}pos_embed", f"{name}pos_embed"),
        *block_rules(f"{path}block_{{i:02d}}/", f"{name}{block}"),
        Rule(f"{path}norm/scale", f"{name}norm.weight"),
        Rule(f"{path}norm/bias", f"{name}norm.bias"),
    )


def block_shapes(path: str, width: int, hidden: int, qkv_bias: bool) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of a transformer block below ``path``."""
    shapes = {f"{path}{norm}/{leaf}": (width,) for norm in ("norm1", "norm2") for leaf in ("scale", "bias")}
    for module, inputs, outputs in (
        ("attn/qkv", width, 3 * width),
        ("attn/proj", width, width),
        ("mlp/fc1", width, hidden),
        ("mlp/fc2", hidden, width),
    ):
        shapes[f"{path}{module}/kernel"] = (inputs, outputs)
        if qkv_bias or module != "attn/qkv":
            shapes[f"{path}{module}/bias"] = (outputs,)
    return shapes


def encoder_shapes(
    weights: Mapping[str, np.ndarray], rules: Sequence[Rule], path: str = "", final_norm: bool = True
) -> tuple[dict[str, tuple[int, ...]], Description]:
    """Paths and shapes that the encoder in ``weights`` must have by its width, its number of blocks and its positions.

    Raises `UserError` if a tensor that tells these is missing.
    """
    width = found(weights, f"{path}cls_token", rules, 3).shape[-1]
    patches = found(weights, f"{path}pos_embed", rules, 3).shape[1] - 1
    if patches < 1:
        raise UserError(f"{to_name(rules, f'{path}pos_embed')} has no positions for patches; this is another network")
    side = found(weights, f"{path}patch_embed/kernel", rules, 4).shape[0]
    hidden = found(weights, f"{path}block_00/mlp/fc1/kernel", rules, 2).shape[1]
    numbers = [int(match[1]) for name in weights if (match := re.match(rf"{re.escape(path)}block_(\d{{1,4}})/", name))]
    depth = 1 + max(numbers)
    shapes = {
        f"{path}patch_embed/kernel": (side, side, CHANNELS, width),
        f"{path}patch_embed/bias": (width,),
        f"{path}cls_token": (1, 1, width),
        f"{path}pos_embed": (1, 1 + patches, width),
    }
    bias = any(name.startswith(f"{path}block_") and name.endswith("/attn/qkv/bias") for name in weights)
    for number in range(depth):
        shapes |= block_shapes(f"{path}block_{number:02d}/", width, hidden, bias)
    if final_norm:
        shapes |= {f"{path}norm/scale": (width,), f"{path}norm/bias": (width,)}
    return shapes, Description(width, depth, patches)


def checked(weights: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> Description:
    """The description of an encoder that has everything and nothing else; otherwise a `UserError`."""
    shapes, description = encoder_shapes(weights, rules)
    check_shapes(weights, shapes, rules)
    return description


def patch_kernel(array: np.ndarray, name: str) -> np.ndarray:
    """A patch kernel [out, 3 * side * side], as files before 2020's end have it, -> [out, 3, side, side]."""
    side = round((array.shape[1] / CHANNELS) ** 0.5)
    if side < 1 or CHANNELS * side * side != array.shape[1]:
        raise UserError(f"{name} has {array.shape[1]} columns, which are no square patches of {CHANNELS} channels")
    return array.reshape(-1, CHANNELS, side, side)


def prepare(
    arrays: Mapping[str, np.ndarray], kernel: str, positions: str, distillation: str
) -> dict[str, tuple[np.ndarray, str]]:
    """Other arrays for a flat patch kernel and for positions with a row for a distillation token, each with a note."""
    prepared = {}
    if kernel in arrays and arrays[kernel].ndim == 2:
        prepared[kernel] = patch_kernel(arrays[kernel], kernel), "flat patches reshaped"
    if distillation in arrays and positions in arrays and arrays[positions].ndim == 3:
        table = arrays[positions]
        prepared[positions] = np.concatenate([table[:, :1], table[:, 2:]], axis=1), DROPPED_ROW
    return prepared


TIMM_RULES = encoder_rules()
TIMM_LEFT_OUT = (
    LeftOut(r"head\.(weight|bias)", CLASSIFIER),
    LeftOut(r"head_dist\.(weight|bias)", DISTILLATION),
    LeftOut(r"dist_token", DISTILLATION),
    LeftOut(r"fc_norm\.(weight|bias)", "normalises the mean of all tokens, which is not taken here"),
    LeftOut(r"pre_logits\..*", BEFORE_CLASSIFIER),
)


def read_timm(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`."""
    prepared = prepare(arrays, "patch_embed.proj.weight", "pos_embed", "dist_token")
    weights, entries = import_arrays(arrays, TIMM_RULES, TIMM_LEFT_OUT, prepared)
    return weights, entries, checked(weights, TIMM_RULES)


def write_encoder(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.write`: timm's names, whatever names the encoder came with. ``grid`` has no counterpart there."""
    weights = {path: array for path, array in weights.items() if path != "grid"}
    description = checked(weights, TIMM_RULES)
    return *export_arrays(weights, TIMM_RULES), description


HUGGING_FACE_BLOCK = {
    "norm1": "layernorm_before.",
    "norm2": "layernorm_after.",
    "attn/qkv": tuple(f"attention.attention.{word}." for word in ("query", "key", "value")),
    "attn/proj": "attention.output.dense.",
    "mlp/fc1": "intermediate.dense.",
    "mlp/fc2": "output.dense.",
}
"""Names in files on the hub."""
HUGGING_FACE_LAYER = {
    "norm1": "layernorm_before.",
    "norm2": "layernorm_after.",
    "attn/qkv": tuple(f"attention.{word}_proj." for word in "qkv"),
    "attn/proj": "attention.o_proj.",
    "mlp/fc1": "mlp.fc1.",
    "mlp/fc2": "mlp.fc2.",
}
"""Names that transformers 5 gives the parameters in memory."""
HUGGING_FACE_CLS = r"(vit\.|deit\.|)embeddings\.cls_token"
HUGGING_FACE_LEFT_OUT = (
    LeftOut(r"(cls_|)classifier\.(weight|bias)", CLASSIFIER),
    LeftOut(r"distillation_classifier\.(weight|bias)", DISTILLATION),
    LeftOut(r"(vit\.|deit\.|)embeddings\.distillation_token", DISTILLATION),
    LeftOut(r"(vit\.|deit\.|)pooler\.dense\.(weight|bias)", BEFORE_CLASSIFIER),
)


def read_hugging_face(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`."""
    first = next(match[1] for name in arrays if (match := re.fullmatch(HUGGING_FACE_CLS, name)))
    embeddings = f"{first}embeddings."
    if any(name.startswith(f"{first}layers.") for name in arrays):
        blocks = block_rules("block_{i:02d}/", first + "layers.{i}.", HUGGING_FACE_LAYER)
    else:
        blocks = block_rules("block_{i:02d}/", first + "encoder.layer.{i}.", HUGGING_FACE_BLOCK)
    kernel, positions = f"{embeddings}patch_embeddings.projection.weight", f"{embeddings}position_embeddings"
    rules = (
        Rule("patch_embed/kernel", kernel, "conv"),
        Rule("patch_embed/bias", f"{embeddings}patch_embeddings.projection.bias"),
        Rule("cls_token", f"{embeddings}cls_token"),
        Rule("pos_embed", positions),
        *blocks,
        Rule("norm/scale", f"{first}layernorm.weight"),
        Rule("norm/bias", f"{first}layernorm.bias"),
    )
    prepared = prepare(arrays, kernel, positions, f"{embeddings}distillation_token")
    weights, entries = import_arrays(arrays, rules, HUGGING_FACE_LEFT_OUT, prepared)
    return weights, entries, checked(weights, rules)


def google_block(path: str, name: str) -> tuple[Rule, ...]:
    """The rules of one of Google's blocks: kernels lie as they do here, but attention has an axis of heads."""
    rules = []
    for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
        rules += [Rule(f"{path}{ours}/{leaf}", f"{name}{theirs}/{leaf}") for leaf in ("scale", "bias")]
    attention = f"{name}MultiHeadDotProductAttention_1/"
    for part, word in enumerate(("query", "key", "value")):
        rules.append(Rule(f"{path}attn/qkv/kernel", f"{attention}{word}/kernel", "heads_kernel", part))
        rules.append(Rule(f"{path}attn/qkv/bias", f"{attention}{word}/bias", "heads_bias", part))
    rules.append(Rule(f"{path}attn/proj/kernel", f"{attention}out/kernel", "heads_output"))
    rules.append(Rule(f"{path}attn/proj/bias", f"{attention}out/bias"))
    for ours, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
        rules += [Rule(f"{path}mlp/{ours}/{leaf}", f"{name}MlpBlock_3/{theirs}/{leaf}") for leaf in ("kernel", "bias")]
    return tuple(rules)


GOOGLE_RULES = (
    Rule("patch_embed/kernel", "embedding/kernel"),
    Rule("patch_embed/bias", "embedding/bias"),
    Rule("cls_token", "cls"),
    Rule("pos_embed", "Transformer/posembed_input/pos_embedding"),
    *google_block("block_{i:02d}/", "Transformer/encoderblock_{i}/"),
    Rule("norm/scale", "Transformer/encoder_norm/scale"),
    Rule("norm/bias", "Transformer/encoder_norm/bias"),
)
GOOGLE_LEFT_OUT = (LeftOut(r"head/(kernel|bias)", CLASSIFIER), LeftOut(r"pre_logits/(kernel|bias)", BEFORE_CLASSIFIER))


def read_google(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`."""
    weights, entries = import_arrays(arrays, GOOGLE_RULES, GOOGLE_LEFT_OUT)
    return weights, entries, checked(weights, GOOGLE_RULES)


def is_timm(names: Collection[str]) -> bool:
    # timm names CLIP's image tower alike, but for a norm before the blocks that no other encoder has.
    return {"cls_token", "patch_embed.proj.weight"} <= set(names) and "norm_pre.weight" not in names


def is_hugging_face(names: Collection[str]) -> bool:
    return any(re.fullmatch(HUGGING_FACE_CLS, name) for name in names)


def is_google(names: Collection[str]) -> bool:
    return {"cls", "embedding/kernel"} <= set(names)


TIMM = Family("vit", "encoder", "ImageNet ViT and DeiT as timm names them", is_timm, read_timm, write_encoder)
HUGGING_FACE = Family(
    "vit_huggingface", "encoder", "ViT and DeiT of Hugging Face", is_hugging_face, read_hugging_face, write_encoder
)
GOOGLE = Family("vit_google", "encoder", "Google's ViT in .npz", is_google, read_google, write_encoder)
