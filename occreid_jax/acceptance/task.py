"""What every part is told: where its run lies, how long it may take, and at which size the machine is looked at."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from occreid_jax import methods
from occreid_jax.config import shipped
from occreid_jax.types import Meta, Method, Stage

PICTURES = 1024  # in the made-up training table
SMALL_IMAGE, SMALL_BATCH = (64, 32), 16
IDENTITIES, CAMERAS = 751, 6  # of Market-1501


@dataclasses.dataclass(frozen=True)
class Task:
    """``out`` is the folder of the whole acceptance, ``root`` the checkout, ``ends`` a time of the monotonic clock."""

    out: Path
    root: Path
    ends: float
    published: bool  # published sizes in place of micro encoders on small pictures
    demos: tuple[str, ...]  # configs to train at demo size in the minutes left
    only: tuple[str, ...] = ()  # methods whose steps are looked at; none: all

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()

    def stages(self, dtype: str, published: bool) -> Iterator[tuple[str, Method, Stage]]:
        """(config, method, stage) of every stage of the methods, the ViT baseline first and what is no method of ReID last."""
        for name in sorted(self.only or methods.NAMES, key=lambda name: (name != "baseline", name == "clip_pretraining", name)):
            config = settings(name, dtype, published)
            method = methods.create(config, Meta(IDENTITIES, CAMERAS, tuple(config.data.image_size), PICTURES))
            for stage in method.stages():
                yield name, method, stage


def settings(name: str, dtype: str, published: bool) -> ConfigDict:
    """The shipped config of a method: as published for Market-1501, or its demo with a micro encoder on small pictures."""
    config = shipped(f"{name}:dataset=market1501" if published else name).unlock()
    config.dtype = dtype
    if published:
        return config
    if "backbone" in config.method:
        config.method.backbone = "clip_micro" if config.method.backbone.startswith("clip_") else "micro"
    if "wgff" in config.method:
        config.method.wgff.network = "micro"
    config.data.image_size = SMALL_IMAGE
    for stage in config.stages.values():
        stage.sampler.batch_size = SMALL_BATCH
    return config


def accelerator() -> bool:
    """Whether JAX runs on anything but the processor."""
    return jax.default_backend() != "cpu"
