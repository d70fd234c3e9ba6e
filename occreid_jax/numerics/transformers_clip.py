"""CLIP's two towers beside Hugging Face's PyTorch implementation, block by block, with the same weights, pictures and texts.

The weights take the same way as a user's: the model's state dict through `occreid_jax.weights.port`. PyTorch computes in float32;
with bfloat16 only this package's products are rounded, and the difference is what training in bfloat16 loses.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.nn.clip import VISUAL, TextTransformer, clip_visual
from occreid_jax.nn.layers import Block, gelu, quick_gelu
from occreid_jax.nn.vit import Size
from occreid_jax.vectors import unit_vectors
from occreid_jax.weights.port import port
from occreid_jax.weights.trees import unflatten

ALLOWED = {"float32": 1e-5, "bfloat16": 2e-2}  # largest error of anything compared, as a share of its size
RANDOM, SMALL = "random", "tiny"  # a source, and the network of `VISUAL` that it is of unless it names another: random:vit_b16
SEED, BATCH = 0, 3
SIDE = 224  # of the square pictures in random networks, about: a multiple of the patch
ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}
EARLIEST_END = 2  # eos_token_id in old configs, which means: the largest id of a row


@dataclasses.dataclass(frozen=True)
class Comparison:
    """``name`` of what was compared, its largest error, and the size that this is a share of, see `compare`."""

    name: str
    error: float
    largest: float

    @property
    def relative(self) -> float:
        return self.error / self.largest if self.largest else (0.0 if self.error == 0 else math.inf)


def compare(source: str = RANDOM, dtype: str = "float32") -> tuple[str, list[Comparison]]:
    """What the source holds in words, and one comparison for each block, both features and the logits.

    ``source`` is a hub id, a folder that transformers can open, or "random", optionally with the name of a network: random
    weights from a fixed seed. Errors are shares of the largest value that PyTorch computed, except those of the logits in
    bfloat16, which are shares of the temperature: random pictures and texts are nearly orthogonal, so that their logits are
    small differences of large numbers, and the rounding of the features alone is some percent of them.

    Raises `UserError` if PyTorch is absent, or the source is no CLIP that this package can run.
    """
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"--against=transformers needs {module}, which is not installed: pip install {module}")
    model = open_model(source)
    arrays = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    ported = port(arrays)
    pictures, ids = inputs(model.config)
    theirs = run_torch(model, pictures, ids)
    ours = run_jax(model.config, ported.weights, pictures, ids, jnp.dtype(dtype))
    if theirs.keys() != ours.keys():
        raise UserError(f"{source}: this version of transformers gives other outputs than are compared here")
    largest = {name: float(np.abs(value).max()) for name, value in theirs.items()}
    if dtype != "float32":
        largest["logits"] = float(np.exp(arrays["logit_scale"]))
    return str(ported.description), [
        Comparison(name, float(np.abs(ours[name].astype(np.float64) - value).max()), largest[name])
        for name, value in theirs.items()
    ]


def open_model(source: str) -> Any:
    """Hugging Face's CLIPModel in float32, ready to run."""
    import transformers

    kind, _, name = source.partition(":")
    if kind == RANDOM:
        return random_model(name or SMALL)
    transformers.utils.logging.disable_progress_bar()
    try:
        # Some files hold the text tower or the image tower alone; the other one would be random numbers.
        model, loaded = transformers.CLIPModel.from_pretrained(source, output_loading_info=True)
    except Exception as error:  # files that are absent or damaged, other networks, and whatever the network stack raises
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--source={source}: transformers cannot open it as a CLIPModel ({text}); check the name") from error
    if loaded["missing_keys"] or loaded["mismatched_keys"]:
        raise UserError(f"--source={source}: it lacks weights of a CLIPModel; give a whole CLIP with both towers")
    return model.float().eval()


def random_model(name: str) -> Any:
    """A CLIPModel of the sizes of network ``name``. Biases and scales of norms, which start as zeros and ones, are random too."""
    import torch
    import transformers

    known = [name for name, clip in VISUAL.items() if isinstance(clip.visual, Size)]
    if name not in known:
        raise UserError(f"--source={RANDOM}:{name}: unknown network; known: {', '.join(known)}")
    clip = VISUAL[name]

    def tower(size: Size) -> dict[str, int]:
        return dict(
            hidden_size=size.width,
            intermediate_size=size.mlp_ratio * size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            projection_dim=clip.embed,
        )

    vision = tower(clip.visual) | dict(image_size=SIDE // clip.patch * clip.patch, patch_size=clip.patch)
    config = transformers.CLIPConfig(text_config=tower(clip.text), vision_config=vision, projection_dim=clip.embed)
    torch.manual_seed(SEED)
    model = transformers.CLIPModel(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape)
    return model


def end_token(text: Any) -> int:
    """The id that ends a text; in random texts it is the largest, so that both ways of finding it agree."""
    return text.vocab_size - 1 if text.eos_token_id == EARLIEST_END else text.eos_token_id


def inputs(config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pictures float32 [B, S, S, 3] and token ids int32 [B, L], each text of another length and padded with 0."""
    random, text = np.random.default_rng(SEED), config.text_config
    side, length = config.vision_config.image_size, text.max_position_embeddings
    pictures = random.standard_normal((BATCH, side, side, 3), np.float32)
    ids = random.integers(1, end_token(text), (BATCH, length), np.int32)
    for row, end in enumerate(np.linspace(length // 4, length - 1, BATCH).astype(int)):
        ids[row, end], ids[row, end + 1 :] = end_token(text), 0
    return pictures, ids


def run_torch(model: Any, pictures: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of every block [B, T, D], features of pictures and texts [B, E] before normalising, and logits [B, B]."""
    import torch

    values, tokens = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()), torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        image = model.vision_model(pixel_values=values, output_hidden_states=True)
        text = model.text_model(input_ids=tokens, output_hidden_states=True)
        out = blocks("image", image.hidden_states[1:]) | {"image features": model.visual_projection(image.pooler_output)}
        out |= blocks("text", text.hidden_states[1:]) | {"text features": model.text_projection(text.pooler_output)}
        out["logits"] = model(input_ids=tokens, pixel_values=values).logits_per_image
    return {name: array.numpy() for name, array in out.items()}


def blocks(tower: str, outputs: Any) -> dict[str, Any]:
    """The blocks' outputs by name."""
    return {f"{tower} block {number}": output for number, output in enumerate(outputs, start=1)}


def size_of(tower: Any) -> Size:
    """The size of a tower by its config; `UserError` if it is one that this package does not have."""
    ratio, rest = divmod(tower.intermediate_size, tower.hidden_size)
    if rest:
        raise UserError(
            "the width of an MLP in this network is no multiple of its tower's width; such networks are not known here"
        )
    return Size(tower.hidden_size, tower.num_hidden_layers, tower.num_attention_heads, ratio)


def run_jax(
    config: Any, weights: Mapping[str, np.ndarray], pictures: np.ndarray, ids: np.ndarray, dtype: jnp.dtype
) -> dict[str, np.ndarray]:
    """The same from this package's networks, float32, with products in ``dtype``."""
    vision, text = config.vision_config, config.text_config
    if text.hidden_act != "quick_gelu" or vision.hidden_act not in ACTIVATIONS:
        raise UserError(f"the activations {vision.hidden_act} and {text.hidden_act} are not those of OpenAI's CLIP, quick_gelu")
    visual = clip_visual(
        "vit_b16",
        pictures.shape[1:3],
        stride=vision.patch_size,
        dtype=dtype,
        size=size_of(vision),
        patch=vision.patch_size,
        projection_width=config.projection_dim,
        activation=ACTIVATIONS[vision.hidden_act],
        epsilon=vision.layer_norm_eps,
    )
    embed, length = config.projection_dim, text.max_position_embeddings
    textual = TextTransformer(size_of(text), embed, length, text.vocab_size, text.layer_norm_eps, dtype=dtype)
    params = unflatten({path.removeprefix("params/"): array for path, array in weights.items() if path.startswith("params/")})

    @jax.jit
    def run(params, pictures, ids):
        image = visual.apply({"params": params["visual"]}, pictures)
        words, kept = textual.apply(
            {"params": params["text"]}, ids, mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, Block),
        )  # fmt: skip
        taps = kept["intermediates"]
        picture = image.projected[:, 0]
        out = blocks("image", image.taps) | {"image features": picture}
        out |= blocks("text", [taps[f"block_{i:02d}"]["__call__"][0][0] for i in range(text.num_hidden_layers)])
        out |= {"text features": words, "logits": jnp.exp(params["logit_scale"]) * unit_vectors(picture) @ unit_vectors(words).T}
        return {name: array.astype(jnp.float32) for name, array in out.items()}

    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(params, pictures, ids))
