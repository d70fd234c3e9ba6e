"""Small random checkpoints of CLIP under names written out by hand."""

import numpy as np

from tests.weights.checkpoints import Numbers

WIDTH, DEPTH, PATCH, SIDE, EMBED = 8, 2, 4, 4, 6
TEXT_WIDTH, CONTEXT, VOCABULARY = 12, 10, 30
STEM, STAGES = 4, (2, 1, 1, 1)  # of the ResNet
POOL = 32 * STEM


def openai_block(start: str, draw: Numbers, width: int) -> dict[str, np.ndarray]:
    arrays = {f"{start}attn.in_proj_weight": draw(3 * width, width), f"{start}attn.in_proj_bias": draw(3 * width)}
    arrays |= {f"{start}attn.out_proj.weight": draw(width, width), f"{start}attn.out_proj.bias": draw(width)}
    for name in ("ln_1", "ln_2"):
        arrays |= {f"{start}{name}.weight": 1 + draw(width), f"{start}{name}.bias": draw(width)}
    arrays |= {f"{start}mlp.c_fc.weight": draw(4 * width, width), f"{start}mlp.c_fc.bias": draw(4 * width)}
    return arrays | {f"{start}mlp.c_proj.weight": draw(width, 4 * width), f"{start}mlp.c_proj.bias": draw(width)}


def image_vit(start: str, patches: int = SIDE * SIDE) -> dict[str, np.ndarray]:
    """The image ViT as OpenAI names it."""
    draw = Numbers(10)
    arrays = {
        f"{start}class_embedding": draw(WIDTH),
        f"{start}positional_embedding": draw(1 + patches, WIDTH),
        f"{start}proj": draw(WIDTH, EMBED),
        f"{start}conv1.weight": draw(WIDTH, 3, PATCH, PATCH),
    }
    for name in ("ln_pre", "ln_post"):
        arrays |= {f"{start}{name}.weight": 1 + draw(WIDTH), f"{start}{name}.bias": draw(WIDTH)}
    for i in range(DEPTH):
        arrays |= openai_block(f"{start}transformer.resblocks.{i}.", draw, WIDTH)
    return arrays


def image_resnet(start: str, patches: int = 4, counts: bool = False) -> dict[str, np.ndarray]:
    """The image ResNet as OpenAI names it; ``counts`` adds what nothing is computed with."""
    draw, arrays = Numbers(11), {}

    def convolution(name: str, norm: str, inputs: int, outputs: int, side: int) -> None:
        arrays[f"{start}{name}.weight"] = draw(outputs, inputs, side, side)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"{start}{norm}.{leaf}"] = draw(outputs)
        if counts:
            arrays[f"{start}{norm}.num_batches_tracked"] = np.array(7, np.int64)

    convolution("conv1", "bn1", 3, STEM // 2, 3)
    convolution("conv2", "bn2", STEM // 2, STEM // 2, 3)
    convolution("conv3", "bn3", STEM // 2, STEM, 3)
    inputs = STEM
    for stage, blocks in enumerate(STAGES, start=1):
        inside = STEM * 2 ** (stage - 1)
        for j in range(blocks):
            block = f"layer{stage}.{j}."
            convolution(f"{block}conv1", f"{block}bn1", inputs, inside, 1)
            convolution(f"{block}conv2", f"{block}bn2", inside, inside, 3)
            convolution(f"{block}conv3", f"{block}bn3", inside, 4 * inside, 1)
            if j == 0:
                convolution(f"{block}downsample.0", f"{block}downsample.1", inputs, 4 * inside, 1)
            inputs = 4 * inside
    arrays[f"{start}attnpool.positional_embedding"] = draw(1 + patches, POOL)
    for name, outputs in (("q", POOL), ("k", POOL), ("v", POOL), ("c", EMBED)):
        arrays |= {f"{start}attnpool.{name}_proj.weight": draw(outputs, POOL), f"{start}attnpool.{name}_proj.bias": draw(outputs)}
    return arrays


def text(start: str = "", tokens: bool = True) -> dict[str, np.ndarray]:
    """The text tower as OpenAI names it."""
    draw = Numbers(12)
    arrays = {f"{start}positional_embedding": draw(CONTEXT, TEXT_WIDTH), f"{start}text_projection": draw(TEXT_WIDTH, EMBED)}
    arrays |= {f"{start}ln_final.weight": 1 + draw(TEXT_WIDTH), f"{start}ln_final.bias": draw(TEXT_WIDTH)}
    if tokens:
        arrays[f"{start}token_embedding.weight"] = draw(VOCABULARY, TEXT_WIDTH)
    for i in range(DEPTH):
        arrays |= openai_block(f"{start}transformer.resblocks.{i}.", draw, TEXT_WIDTH)
    return arrays


def openai_vit() -> dict[str, np.ndarray]:
    return image_vit("visual.") | text() | {"logit_scale": np.array(4.6, np.float32)}


def openai_resnet() -> dict[str, np.ndarray]:
    return image_resnet("visual.") | text() | {"logit_scale": np.array(4.6, np.float32)}


HUGGING_FACE_TOWER = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_pre.": "pre_layrnorm.",
    "ln_post.": "post_layernorm.",
    "ln_final.": "final_layer_norm.",
    "transformer.resblocks.": "encoder.layers.",
}
HUGGING_FACE_BLOCK = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
HUGGING_FACE_BLOCK |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def hugging_face() -> dict[str, np.ndarray]:
    """`openai_vit` as transformers' conversion script names it."""
    arrays = {}
    for name, array in openai_vit().items():
        tower = "vision_model." if name.startswith("visual.") else "text_model."
        inner = name.removeprefix("visual.")
        if inner in ("proj", "text_projection", "logit_scale"):
            new = {"proj": "visual_projection.weight", "text_projection": "text_projection.weight"}.get(inner, inner)
            arrays[new] = array.T if array.ndim else array
            continue
        for table in (HUGGING_FACE_TOWER, HUGGING_FACE_BLOCK):
            for old, new in table.items():
                inner = inner.replace(old, new)
        if "in_proj_" in inner:
            for word, part in zip("qkv", np.split(array, 3), strict=True):
                arrays[tower + inner.replace("attn.in_proj_", f"self_attn.{word}_proj.")] = part
        else:
            arrays[tower + inner] = array
    return {name: np.array(array, order="C") for name, array in arrays.items()}


def timm_tower() -> dict[str, np.ndarray]:
    """The image tower of `openai_vit` as timm's ``_convert_openai_clip`` names it."""
    swaps = {"conv1": "patch_embed.proj", "positional_embedding": "pos_embed", "transformer.resblocks.": "blocks."}
    swaps |= {"ln_pre": "norm_pre", "ln_post": "norm", "ln_": "norm", "in_proj_": "qkv.", "out_proj": "proj"}
    swaps |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "class_embedding": "cls_token"}
    arrays = {}
    for name, array in image_vit("").items():
        if name == "proj":
            arrays |= {"head.weight": np.ascontiguousarray(array.T), "head.bias": np.zeros(EMBED, np.float32)}
            continue
        for old, new in swaps.items():
            name = name.replace(old, new)
        arrays[name] = {"cls_token": array[None, None] if array.ndim == 1 else array, "pos_embed": array[None]}.get(name, array)
    return arrays
