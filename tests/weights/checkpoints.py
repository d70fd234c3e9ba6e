"""Small random checkpoints of every family under names written out by hand, and the encoders run in numpy as their sources do."""

import numpy as np
from scipy.special import erf

WIDTH, DEPTH, HEADS, HIDDEN, PATCH, SIDE = 8, 2, 2, 32, 4, 4


class Numbers:
    """Random arrays of about the size that trained weights have."""

    def __init__(self, seed: int = 0):
        self.random = np.random.default_rng(seed)

    def __call__(self, *shape) -> np.ndarray:
        return (0.5 * self.random.standard_normal(shape)).astype(np.float32)


def torch_block(start: str, draw: Numbers, hidden: int = HIDDEN, qkv_bias: bool = True) -> dict[str, np.ndarray]:
    """A block as timm and TransReID name it."""
    arrays = {
        f"{start}norm1.weight": 1 + draw(WIDTH),
        f"{start}norm1.bias": draw(WIDTH),
        f"{start}attn.qkv.weight": draw(3 * WIDTH, WIDTH),
        f"{start}attn.qkv.bias": draw(3 * WIDTH),
        f"{start}attn.proj.weight": draw(WIDTH, WIDTH),
        f"{start}attn.proj.bias": draw(WIDTH),
        f"{start}norm2.weight": 1 + draw(WIDTH),
        f"{start}norm2.bias": draw(WIDTH),
        f"{start}mlp.fc1.weight": draw(hidden, WIDTH),
        f"{start}mlp.fc1.bias": draw(hidden),
        f"{start}mlp.fc2.weight": draw(WIDTH, hidden),
        f"{start}mlp.fc2.bias": draw(WIDTH),
    }
    if not qkv_bias:
        del arrays[f"{start}attn.qkv.bias"]
    return arrays


def timm(start: str = "", patches: int = SIDE * SIDE, prefix_rows: int = 1, depth: int = DEPTH, **block) -> dict[str, np.ndarray]:
    """An encoder as timm names it, without its head."""
    draw = Numbers()
    arrays = {f"{start}cls_token": draw(1, 1, WIDTH), f"{start}pos_embed": draw(1, prefix_rows + patches, WIDTH)}
    arrays |= {f"{start}patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH), f"{start}patch_embed.proj.bias": draw(WIDTH)}
    for i in range(depth):
        arrays |= torch_block(f"{start}blocks.{i}.", draw, **block)
    return arrays | {f"{start}norm.weight": 1 + draw(WIDTH), f"{start}norm.bias": draw(WIDTH)}


def hugging_face(start: str = "vit.") -> dict[str, np.ndarray]:
    """An encoder as Hugging Face names it."""
    draw = Numbers(1)
    embeddings = f"{start}embeddings."
    arrays = {
        f"{embeddings}cls_token": draw(1, 1, WIDTH),
        f"{embeddings}position_embeddings": draw(1, 1 + SIDE * SIDE, WIDTH),
        f"{embeddings}patch_embeddings.projection.weight": draw(WIDTH, 3, PATCH, PATCH),
        f"{embeddings}patch_embeddings.projection.bias": draw(WIDTH),
    }
    for i in range(DEPTH):
        layer = f"{start}encoder.layer.{i}."
        for name, shape in (
            ("attention.attention.query", (WIDTH, WIDTH)),
            ("attention.attention.key", (WIDTH, WIDTH)),
            ("attention.attention.value", (WIDTH, WIDTH)),
            ("attention.output.dense", (WIDTH, WIDTH)),
            ("intermediate.dense", (HIDDEN, WIDTH)),
            ("output.dense", (WIDTH, HIDDEN)),
            ("layernorm_before", (WIDTH,)),
            ("layernorm_after", (WIDTH,)),
        ):
            arrays |= {f"{layer}{name}.weight": draw(*shape), f"{layer}{name}.bias": draw(shape[0])}
    return arrays | {f"{start}layernorm.weight": 1 + draw(WIDTH), f"{start}layernorm.bias": draw(WIDTH)}


def google() -> dict[str, np.ndarray]:
    """An encoder in Google's names and layouts."""
    draw, size = Numbers(2), WIDTH // HEADS
    arrays = {
        "cls": draw(1, 1, WIDTH),
        "embedding/kernel": draw(PATCH, PATCH, 3, WIDTH),
        "embedding/bias": draw(WIDTH),
        "Transformer/posembed_input/pos_embedding": draw(1, 1 + SIDE * SIDE, WIDTH),
        "Transformer/encoder_norm/scale": 1 + draw(WIDTH),
        "Transformer/encoder_norm/bias": draw(WIDTH),
    }
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}/"
        attention = f"{block}MultiHeadDotProductAttention_1/"
        for word in ("query", "key", "value"):
            arrays |= {f"{attention}{word}/kernel": draw(WIDTH, HEADS, size), f"{attention}{word}/bias": draw(HEADS, size)}
        arrays |= {f"{attention}out/kernel": draw(HEADS, size, WIDTH), f"{attention}out/bias": draw(WIDTH)}
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{block}{norm}/scale": 1 + draw(WIDTH), f"{block}{norm}/bias": draw(WIDTH)}
        arrays |= {f"{block}MlpBlock_3/Dense_0/kernel": draw(WIDTH, HIDDEN), f"{block}MlpBlock_3/Dense_0/bias": draw(HIDDEN)}
        arrays |= {f"{block}MlpBlock_3/Dense_1/kernel": draw(HIDDEN, WIDTH), f"{block}MlpBlock_3/Dense_1/bias": draw(WIDTH)}
    return arrays


def transreid(jigsaw: bool = True, cameras: int = 6, identities: int = 5, dead: bool = True, **block) -> dict[str, np.ndarray]:
    """A checkpoint of TransReID as its training writes it; ``dead`` adds what no forward pass reads."""
    draw, arrays = Numbers(3), timm("base.", patches=21 * 10, **block)
    if cameras:
        arrays["base.sie_embed"] = draw(cameras, 1, WIDTH)
    if jigsaw:
        for branch in ("b1", "b2"):
            arrays |= torch_block(f"{branch}.0.", draw, **block)
            arrays |= {f"{branch}.1.weight": draw(WIDTH), f"{branch}.1.bias": draw(WIDTH)}
    for end in ("", "_1", "_2", "_3", "_4") if jigsaw else ("",):
        arrays[f"classifier{end}.weight"] = draw(identities, WIDTH)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            arrays[f"bottleneck{end}.{leaf}"] = draw(WIDTH)
        if dead:
            arrays[f"bottleneck{end}.num_batches_tracked"] = np.array(7, np.int64)
    if dead:
        return arrays | {"base.fc.weight": draw(10, WIDTH), "base.fc.bias": draw(10)}
    if jigsaw:
        unused = (f"base.blocks.{DEPTH - 1}.", "base.norm.")
        arrays = {name: array for name, array in arrays.items() if not name.startswith(unused)}
    return arrays


def batch_norm(name: str, width: int, draw: Numbers, counts: bool) -> dict[str, np.ndarray]:
    """A BatchNorm of PyTorch; ``counts`` adds what nothing is computed with."""
    arrays = {f"{name}.{leaf}": draw(width) for leaf in ("weight", "bias", "running_mean")}
    arrays[f"{name}.running_var"] = 1 + draw(width) ** 2
    return arrays | ({f"{name}.num_batches_tracked": np.array(7, np.int64)} if counts else {})


def dpm(cameras: int = 6, identities: int = 5, levels: int = DEPTH, dead: bool = True) -> dict[str, np.ndarray]:
    """A checkpoint of DPM as its training writes it, whose mask generator reads ``levels`` blocks."""
    draw, arrays = Numbers(5), timm("base.", patches=21 * 10)
    if cameras:
        arrays["base.sie_embed"] = draw(cameras, 1, WIDTH)
    inputs = levels * WIDTH
    for place, outputs in ((0, 2 * WIDTH), (2, WIDTH), (4, WIDTH)):
        name = f"base.ConvLayer.{place}"
        arrays |= {f"{name}.0.weight": draw(outputs, inputs, 3, 3), f"{name}.0.bias": draw(outputs)}
        arrays |= batch_norm(f"{name}.1", outputs, draw, dead)
        inputs = outputs
    arrays |= {"base.attfc.weight": draw(WIDTH, WIDTH), "base.attfc.bias": draw(WIDTH)}
    if dead:
        arrays |= {"base.fc.weight": Numbers()(10, WIDTH), "base.fc.bias": Numbers()(10)}
    return arrays | {"classifier.weight": draw(identities, WIDTH)} | batch_norm("bottleneck", WIDTH, draw, dead)


def spt_selection(identities: int = 5, levels: int = DEPTH, dead: bool = True) -> dict[str, np.ndarray]:
    """A checkpoint of SPT's selection network as its training writes it."""
    draw, arrays = Numbers(6), timm("base.", patches=21 * 10)
    arrays |= {"base.mixfc.weight": draw(1, levels * WIDTH, 1, 1), "base.mixfc.bias": draw(1)}
    if dead:
        arrays |= {"base.fc.weight": Numbers()(10, WIDTH), "base.fc.bias": Numbers()(10)}
    return arrays | {"classifier.weight": draw(identities, WIDTH)} | batch_norm("bottleneck", WIDTH, draw, dead)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a)


# The encoder in numpy, float64, with what differs between the sources given as functions ---------------------------------


def normalised(x, scale, bias):
    deviation = x - x.mean(-1, keepdims=True)
    return deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def attend(query, key, value):
    """[B, T, heads, size] three times -> [B, T, heads, size]."""
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value)


def encode(images, patches, cls, positions, blocks, norm):
    """Tokens [B, 1 + N, D] after the final norm; ``patches(piece)`` embeds a piece [B, PATCH, PATCH, 3]."""
    steps = range(0, SIDE * PATCH, PATCH)
    x = np.stack([patches(images[:, y : y + PATCH, z : z + PATCH]) for y in steps for z in steps], axis=1)
    x = np.concatenate([np.broadcast_to(cls, (len(x), 1, WIDTH)), x], axis=1) + positions
    for norm1, attention, norm2, first, second in blocks:
        x = x + attention(normalised(x, *norm1))
        hidden = first(normalised(x, *norm2))
        x = x + second(0.5 * hidden * (1 + erf(hidden / np.sqrt(2))))
    return normalised(x, *norm)


def dense(arrays, name):
    """``nn.Linear``: x W^T + b."""
    return lambda x: x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]


def torch_patches(arrays, name):
    return lambda piece: np.einsum("bhwc,ochw->bo", piece, arrays[f"{name}.weight"]) + arrays[f"{name}.bias"]


def pair(arrays, name, first="weight"):
    return arrays[f"{name}{first}"], arrays[f"{name}bias"]


def run_timm(a, images):
    def attention(start):
        def run(x):
            qkv = dense(a, f"{start}qkv")(x).reshape(*x.shape[:2], 3, HEADS, -1).transpose(2, 0, 1, 3, 4)
            return dense(a, f"{start}proj")(attend(*qkv).reshape(x.shape))

        return run

    blocks = [
        (
            pair(a, f"blocks.{i}.norm1."),
            attention(f"blocks.{i}.attn."),
            pair(a, f"blocks.{i}.norm2."),
            dense(a, f"blocks.{i}.mlp.fc1"),
            dense(a, f"blocks.{i}.mlp.fc2"),
        )
        for i in range(DEPTH)
    ]
    return encode(images, torch_patches(a, "patch_embed.proj"), a["cls_token"], a["pos_embed"], blocks, pair(a, "norm."))


def run_hugging_face(a, images):
    def attention(start):
        def run(x):
            separate = [dense(a, f"{start}attention.{word}")(x) for word in ("query", "key", "value")]
            out = attend(*(y.reshape(*x.shape[:2], HEADS, -1) for y in separate))
            return dense(a, f"{start}output.dense")(out.reshape(x.shape))

        return run

    blocks = []
    for layer in (f"vit.encoder.layer.{i}." for i in range(DEPTH)):
        norms = pair(a, f"{layer}layernorm_before."), pair(a, f"{layer}layernorm_after.")
        mlp = dense(a, f"{layer}intermediate.dense"), dense(a, f"{layer}output.dense")
        blocks.append((norms[0], attention(f"{layer}attention."), norms[1], *mlp))
    patches = torch_patches(a, "vit.embeddings.patch_embeddings.projection")
    cls, positions = a["vit.embeddings.cls_token"], a["vit.embeddings.position_embeddings"]
    return encode(images, patches, cls, positions, blocks, pair(a, "vit.layernorm."))


def run_google(a, images):
    def attention(start):
        def run(x):
            words = ("query", "key", "value")
            out = attend(*(np.einsum("btD,Dhd->bthd", x, a[f"{start}{w}/kernel"]) + a[f"{start}{w}/bias"] for w in words))
            return np.einsum("bthd,hdD->btD", out, a[f"{start}out/kernel"]) + a[f"{start}out/bias"]

        return run

    def kernel(name):
        return lambda x: x @ a[f"{name}/kernel"] + a[f"{name}/bias"]

    blocks = []
    for block in (f"Transformer/encoderblock_{i}/" for i in range(DEPTH)):
        norms = pair(a, f"{block}LayerNorm_0/", "scale"), pair(a, f"{block}LayerNorm_2/", "scale")
        mlp = kernel(f"{block}MlpBlock_3/Dense_0"), kernel(f"{block}MlpBlock_3/Dense_1")
        blocks.append((norms[0], attention(f"{block}MultiHeadDotProductAttention_1/"), norms[1], *mlp))

    def patches(piece):
        return np.einsum("bhwc,hwco->bo", piece, a["embedding/kernel"]) + a["embedding/bias"]

    positions = a["Transformer/posembed_input/pos_embedding"]
    return encode(images, patches, a["cls"], positions, blocks, pair(a, "Transformer/encoder_norm/", "scale"))
