"""Configs as data: checks that need no files, plain dictionaries, and the difference of two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from occreid_jax.errors import UserError

CHOICES = {
    "dtype": ("auto", "float32", "bfloat16"),
    "data.train_filter": ("bicubic", "bilinear"),
    "data.test_filter": ("bicubic", "bilinear"),
    "data.resident": ("auto", "always", "never"),
    "data.camera": ("none", "name"),
}
POSITIVE = ("loop.steps_per_call", "loop.accumulate", "loop.log_every", "checkpoint.keep", "evaluation.batch_size")
NOT_NEGATIVE = ("seed", "mesh.devices", "checkpoint.every_epochs", "evaluation.every_epochs", "data.synthetic_seed")


def lookup(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path."""
    for key in path.split("."):
        config = config[key]
    return config


def validate(config: ConfigDict) -> None:
    """Raises `UserError`, naming the key, for values that cannot work whatever the data is."""
    for path, choices in CHOICES.items():
        if lookup(config, path) not in choices:
            raise UserError(f"config.{path} is '{lookup(config, path)}'; it must be one of {', '.join(choices)}")
    for paths, least in ((POSITIVE, 1), (NOT_NEGATIVE, 0)):
        for path in paths:
            if lookup(config, path) < least:
                raise UserError(f"config.{path} is {lookup(config, path)}; it must be at least {least}")
    size = tuple(config.data.image_size)
    if len(size) != 2 or min(size) < 8:
        raise UserError(f"config.data.image_size is {size}; it must be (height, width) in pixels, at least 8 each")
    for name, stage in config.stages.items():
        if stage.epochs < 1:
            raise UserError(f"config.stages.{name}.epochs is {stage.epochs}; it must be at least 1")


def to_dict(config: Any) -> Any:
    """A ConfigDict as plain dictionaries, lists and scalars that JSON can hold."""
    if isinstance(config, Mapping | ConfigDict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    return config


def from_dict(values: Mapping[str, Any]) -> ConfigDict:
    """The reverse of `to_dict`: lists become tuples again."""

    def convert(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: convert(entry) for key, entry in value.items()}
        return tuple(convert(entry) for entry in value) if isinstance(value, list) else value

    return ConfigDict(convert(values))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries -> {"data.name": "synthetic", ...}."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ, as "key: old -> new", sorted."""
    old, new = flatten(old), flatten(new)
    absent = "absent"
    return [
        f"{key}: {old.get(key, absent)} -> {new.get(key, absent)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]
