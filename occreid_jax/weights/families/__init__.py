"""Families of checkpoints: whose names a file uses, and the way from these names to this project's paths and back.

A new one is a file here that makes a `Family`, and one line in `FAMILIES`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Collection, Mapping

import numpy as np

from occreid_jax.errors import UserError, listed
from occreid_jax.weights.naming import Arrays, Entry

FAMILIES = {
    "vit": "occreid_jax.weights.families.vit:TIMM",
    "vit_huggingface": "occreid_jax.weights.families.vit:HUGGING_FACE",
    "vit_google": "occreid_jax.weights.families.vit:GOOGLE",
    "transreid": "occreid_jax.weights.families.transreid:TRANSREID",
    "clip": "occreid_jax.weights.families.clip:OPENAI",
    "clip_huggingface": "occreid_jax.weights.families.clip:HUGGING_FACE",
    "clip_timm": "occreid_jax.weights.families.clip:TIMM",
    "clipreid": "occreid_jax.weights.families.clip_reid:CLIP_REID",
    "dpm": "occreid_jax.weights.families.dpm:DPM",
    "spt": "occreid_jax.weights.families.spt:SPT",
    "fed": "occreid_jax.weights.families.fed:FED",
    "dpeformer": "occreid_jax.weights.families.dpeformer:DPEFORMER",
    "fed_bank": "occreid_jax.weights.families.banks:FED",
    "lsnet": "occreid_jax.weights.families.lsnet:LSNET",
    "dpeformer_bank": "occreid_jax.weights.families.banks:DPEFORMER",
}
OURS = ("params/", "extra/", "block_00/")  # what this project's own names begin with


@dataclasses.dataclass(frozen=True)
class Description:
    """What the tensors tell of their model. None: this kind of model has no such thing, or the tensors do not tell it."""

    width: int  # of the image features before a projection
    depth: int | None  # blocks between an image and its features
    patches: int | None  # positions without the cls token
    grid: tuple[int, int] | None = None  # rows and columns of the positions
    identities: int | None = None
    cameras: int | None = None  # 0: no camera embedding
    jigsaw: bool | None = None  # whether the jigsaw patch module (JPM) is on
    tower: str | None = None  # of CLIP, whose images go through a "vit" or a "resnet"
    embed: int | None = None  # numbers in CLIP's projected features of images and texts
    patch: int | None = None  # side of a patch in pixels
    stages: tuple[int, ...] | None = None  # blocks in each stage of a ResNet
    text_width: int | None = None  # of CLIP's text tower; None with a ``tower``: there is no text tower
    text_depth: int | None = None
    text_positions: int | None = None  # the longest text, in tokens
    vocabulary: int | None = None  # rows of the token embedding

    def metadata(self) -> dict[str, str]:
        """The known facts as strings, as safetensors files keep them; grids as ``16x8``."""
        facts = {name: value for name, value in vars(self).items() if value is not None}
        return {
            name: "x".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() for name, value in facts.items()
        }

    def __str__(self) -> str:
        grid = f" in {self.grid[0]} rows of {self.grid[1]}" if self.grid else ""
        facts = [f"width {self.width}"]
        if self.depth is not None:
            facts += [f"depth {self.depth}", f"{self.patches} positions{grid}"]
        if self.tower is not None:
            form = f"ViT of patch {self.patch}" if self.stages is None else f"ResNet of {'-'.join(map(str, self.stages))} blocks"
            text = f"text of width {self.text_width} and depth {self.text_depth}" if self.text_width else "no text tower"
            facts = [form, *facts, f"projected to {self.embed}", text]
        if self.identities is not None:
            facts.append(f"{self.identities} identities")
        if self.cameras is not None:
            facts.append(f"{self.cameras} cameras" if self.cameras else "no camera embedding")
        if self.jigsaw is not None:
            facts.append(f"jigsaw patch module {'on' if self.jigsaw else 'off'}")
        return ", ".join(facts)


@dataclasses.dataclass(frozen=True)
class Family:
    """Checkpoints of one origin.

    ``kind`` is "encoder" (weights to start from, paths without prefix), "clip" (weights to start from, paths below ``params/``
    and ``extra/``), "model" (a trained model, paths below ``params/`` and ``extra/``) or "part" (some whole networks of a
    trained model, paths like a model's; the model's other networks keep their values). ``title`` says in words whose files
    they are. ``fits(names)`` recognises the names; ``read(arrays)`` gives arrays under this project's paths, what became of
    each tensor, and the description; ``write(weights)`` gives arrays under PyTorch names with an entry for each, and the
    description. Both raise `UserError` on anything that they cannot place. ``methods`` are those whose runs can be written;
    runs hold whole models, so a part has none.
    """

    name: str
    kind: str
    title: str
    fits: Callable[[Collection[str]], bool]
    read: Callable[[Mapping[str, np.ndarray]], tuple[Arrays, list[Entry], Description]]
    write: Callable[[Mapping[str, np.ndarray]], tuple[Arrays, list[Entry], Description]]
    methods: tuple[str, ...] = ()


def open_family(name: str) -> Family:
    """The family called ``name``."""
    if name not in FAMILIES:
        raise UserError(f"no family of checkpoints is called '{name}'; known are {', '.join(FAMILIES)}")
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def known() -> str:
    """The families for an error message."""
    return "; ".join(f"{name}: {open_family(name).title}" for name in FAMILIES)


def recognise(names: Collection[str]) -> Family:
    """The one family whose names these are. Raises `UserError` if there is none, or more than one."""
    names = frozenset(names)
    if any(name.startswith(OURS) for name in names):
        raise UserError("these weights have this project's names already; only --to=pytorch has anything to do with them")
    fitting = [family for family in map(open_family, FAMILIES) if family.fits(names)]
    if not fitting:
        raise UserError(f"tensors such as {listed(sorted(names), 3)} belong to no network known here ({known()})")
    if len(fitting) > 1:
        text = " and of ".join(f"{family.name} ({family.title})" for family in fitting)
        raise UserError(f"the file has tensors of {text}; keep those of one network in it (known are {', '.join(FAMILIES)})")
    return fitting[0]


def for_method(method: str) -> Family:
    """The family under whose names runs of ``method`` are written."""
    able = {name: family for family in map(open_family, FAMILIES) for name in family.methods}
    if method not in able:
        raise UserError(f"runs of the method '{method}' have no PyTorch names; those of {', '.join(sorted(able))} have")
    return able[method]
