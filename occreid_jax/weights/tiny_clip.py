"""The tiny CLIP as it ships: both towers in one file of ported weights, stored as float16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from occreid_jax.files import write_bytes, write_json
from occreid_jax.nn.clip import Clip
from occreid_jax.weights.families import Description
from occreid_jax.weights.port import FORMAT, WEIGHTS
from occreid_jax.weights.trees import flatten

CARD = "card.json"
FAMILY, KIND = "tiny_clip", "clip"
ASSETS = {"tiny": "tiny_clip", "tiny_fine": "tiny_clip_fine"}  # folder of each network's weights
PARTS = ("visual", "text", "logit_scale")  # of the parameters: what is stored


def halved(params: Any) -> Any:
    """``params`` as they will be after they were stored as float16: float32 arrays of those values."""
    return jax.tree.map(lambda x: np.asarray(jax.device_get(x)).astype(np.float16).astype(np.float32), params)


def write_tiny_clip(
    out: str | Path, params: Mapping[str, Any], size: Clip, grid: tuple[int, int], card: Mapping[str, Any]
) -> Path:
    """Writes ``weights.safetensors`` and ``card.json`` into the folder ``out`` and returns the path of the weights.

    ``params`` has `PARTS`; ``grid`` are the rows and columns of the image tower's positions. The
    file is read by `occreid_jax.weights.port.read_ported`, which gives float32. `UserError` if it cannot be written.
    """
    text = params["text"]
    description = Description(
        size.visual.width, size.visual.depth, grid[0] * grid[1], grid, tower="vit", embed=size.embed, patch=size.patch,
        text_width=size.text.width, text_depth=size.text.depth, text_positions=text["pos_embed"].shape[0],
        vocabulary=text["token_embedding"].shape[0],
    )  # fmt: skip
    arrays = {name: np.asarray(jax.device_get(value), np.float16) for name, value in flatten({"params": params}).items()}
    arrays["grid"] = np.array(grid, np.int32)
    heads = {"heads": str(size.visual.heads), "text_heads": str(size.text.heads)}
    metadata = {"format": FORMAT, "kind": KIND, "family": FAMILY, **description.metadata(), **heads}
    write_bytes(Path(out) / WEIGHTS, save(arrays, metadata))
    write_json(Path(out) / CARD, dict(card))
    return Path(out) / WEIGHTS
