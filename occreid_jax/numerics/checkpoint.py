"""A user's own PyTorch checkpoint beside the features that PyTorch computed with it: did the weights arrive?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from occreid_jax import distributed, methods
from occreid_jax.cameras import MEAN, of_network
from occreid_jax.data.decode import decode_image, in_order
from occreid_jax.errors import UserError, listed
from occreid_jax.evaluation.embed import embed_split
from occreid_jax.nn.clip import VISUAL
from occreid_jax.nn.vit import SIZES, Size, grid_size
from occreid_jax.train.start import place_weights
from occreid_jax.types import Meta
from occreid_jax.weights.port import Ported

UNIT = 1e-3  # features whose lengths are all this close to 1 were normalised


@dataclasses.dataclass(frozen=True)
class TorchFeatures:
    """What a PyTorch script saved: ``names`` of image files [N], ``features`` float32 [N, D], ``camids`` int32 [N] or None."""

    names: list[str]
    features: np.ndarray
    camids: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How the features of one checkpoint agree."""

    images: int
    dimensions: int
    normalised: bool  # whether the stored features had unit length, so that both were compared normalised
    error: float  # largest absolute difference
    relative: float  # the same over the largest absolute stored value
    cosine: float  # least cosine between the two features of an image
    worst: str  # name of the image with the largest difference


def read_torch_features(path: str | Path) -> TorchFeatures:
    """Reads the .npz file of a PyTorch script: keys ``names``, ``features`` and, for models with cameras, ``camids``."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; save one with numpy.savez(path, names=..., features=...)")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npz file of plain arrays ({error}); save names as a list of text") from error
    lacking = [name for name in ("names", "features") if name not in arrays]
    if lacking:
        raise UserError(f"{path}: has no {listed(lacking)}; save one with numpy.savez(path, names=..., features=...)")
    names, features, camids = arrays["names"], arrays["features"], arrays.get("camids")
    if features.ndim != 2 or names.shape != features.shape[:1] or not len(names):
        raise UserError(f"{path}: features {features.shape} and names {names.shape} must be [N, D] and [N], N at least 1")
    if not np.isfinite(features).all():
        raise UserError(f"{path}: features hold nan or infinity; save them in float32")
    if camids is not None and (camids.shape != names.shape or camids.dtype.kind not in "iu" or camids.min() < 0):
        raise UserError(f"{path}: camids must be {len(names)} whole numbers from 0, as the network was given them")
    return TorchFeatures([str(name) for name in names], features.astype(np.float32), camids)


def config_arguments(config: Any, ported: Ported, given: Collection[str]) -> list[str]:
    """What the checkpoint's tensors tell of its network, as arguments of the method's config: "stride=12", "camera=true" ...

    ``config`` is the method's for the same pictures, without them; ``given`` are the keys that the user has set.
    """
    about, settings = ported.description, config.method
    found: dict[str, Any] = {"camera": bool(about.cameras), "jpm": bool(about.jigsaw), "text": about.text_width is not None}
    has_bias = any(path.endswith("attn/qkv/bias") for path in ported.weights)
    for name, clip in VISUAL.items():  # before the others: these have the sizes of some of them, and a way into the texts' space
        blocks = clip.visual.depth if isinstance(clip.visual, Size) else sum(clip.visual.depths)
        same_tower = isinstance(clip.visual, Size) == (about.tower == "vit")
        if same_tower and (blocks, clip.embed, clip.patch) == (about.depth, about.embed, about.patch or clip.patch):
            found.setdefault("backbone", name)
    for name, size in SIZES.items():
        if (size.width, size.depth, size.qkv_bias) == (about.width, about.depth, has_bias):
            found.setdefault("backbone", name)
    patch = about.patch or settings.get("patch", 16)
    image_size = tuple(config.data.image_size)
    strides = [side for side in range(patch, 0, -1) if math.prod(grid_size(image_size, patch, side)) == about.patches]
    if strides and about.tower != "resnet":
        found["stride"] = strides[0]
    return [f"{key}={str(value).lower()}" for key, value in found.items() if key in settings and key not in given]


def read_images(folder: str | Path, names: list[str], image_size: tuple[int, int]) -> np.ndarray:
    """The named files as the test transform sees them: uint8 [N, H, W, 3], resized by Pillow's bilinear filter."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --images must name the one that the features' names are relative to")
    paths = [folder / name for name in names]
    decoded = list(in_order(lambda path: decode_image(path, image_size, "bilinear"), paths))
    bad = [f"{path.name} ({each.problem})" for path, each in zip(paths, decoded, strict=True) if each.pixels is None]
    if bad:
        raise UserError(f"{folder}: {len(bad)} of {len(names)} pictures cannot be used: {listed(bad)}")
    return np.stack([each.pixels for each in decoded])


def compare_features(config: Any, ported: Ported, stored: TorchFeatures, images: np.ndarray, task=None) -> Agreement:
    """Embeds ``images`` with the ported weights in float32 and compares with the stored features.

    ``config`` is that of the method, ``images`` uint8 [N, H, W, 3]. Raises `UserError` if the weights do not fit it or the
    features have another length.
    """
    about = ported.description
    if ported.kind == "part":
        raise UserError(f"these weights ({ported.family}) are a part of a model, which alone gives no features to compare")
    if about.cameras and stored.camids is None:
        raise UserError(f"this model has vectors for {about.cameras} cameras; store 'camids' beside the features")
    config.dtype = "float32"
    meta = Meta(about.identities or 1, about.cameras or 0, tuple(config.data.image_size), images=0)
    told = np.full(len(images), MEAN, np.int32)
    if about.cameras:
        remedy = "store them as the network was given them"
        told = of_network(meta, embedding=True).by_number(stored.camids, "camids (from 0)", remedy)
    method = methods.create(config, meta)
    params, extra = jax.jit(method.init)(jax.random.key(0))
    params, extra = place_weights(method, params, extra, ported.weights, ported.kind, source=f"the weights ({ported.family})")
    columns = {"image": images, "camid": told}
    devices = distributed.devices(1)
    with jax.default_matmul_precision("highest"):
        own = embed_split(method, params, extra, columns, "query", min(32, len(images)), devices, False, task)
    own = np.asarray(own["feature"] if isinstance(own, Mapping) else own)  # a mask stands beside it in some methods
    if own.shape != stored.features.shape:
        raise UserError(f"the stored features have {stored.features.shape[1]} dimensions, this method's {own.shape[1]}")
    return agreement(own, stored)


def agreement(own: np.ndarray, stored: TorchFeatures) -> Agreement:
    """Differences of features [N, D]; normalised ones are compared normalised."""
    lengths = np.linalg.norm(stored.features, axis=1)
    normalised = bool(np.abs(lengths - 1.0).max() < UNIT)
    if normalised:
        own = own / np.linalg.norm(own, axis=1, keepdims=True)
    apart = np.abs(own.astype(np.float64) - stored.features)
    cosines = (own * stored.features).sum(1) / np.maximum(np.linalg.norm(own, axis=1) * lengths, 1e-30)
    worst = int(apart.max(axis=1).argmax())
    largest = float(np.abs(stored.features).max())
    return Agreement(
        len(own),
        own.shape[1],
        normalised,
        float(apart.max()),
        float(apart.max() / largest),
        float(cosines.min()),
        stored.names[worst],
    )
