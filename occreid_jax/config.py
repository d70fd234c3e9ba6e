"""Configs as data: checks that need no files, plain dictionaries, and the difference of two."""

from __future__ import annotations

import fnmatch
import importlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from occreid_jax.cameras import CHOICES as CAMERAS
from occreid_jax.errors import UserError, listed

Range = tuple[str, float, float | None]  # pattern of keys, least, most

CHOICES = {
    "dtype": ("auto", "float32", "bfloat16"),
    "attention": ("auto", "xla", "apart"),
    "data.train_filter": ("bicubic", "bilinear"),
    "data.test_filter": ("bicubic", "bilinear"),
    "data.resident": ("auto", "always", "never"),
    "data.camera": ("none", "name"),
    "evaluation.camera": CAMERAS,
}
# Keys that every command reads; a config that lacks one was not built on configs/common.py.
REQUIRED = (
    "seed", "dtype", "data.name", "data.root", "data.cache", "data.size", "data.split", "data.synthetic_seed", "data.camera",
    "data.image_size", "data.train_filter", "data.test_filter", "data.resident", "mesh.devices", "loop.steps_per_call",
    "loop.accumulate", "loop.log_every", "checkpoint.every_epochs", "checkpoint.keep", "evaluation.every_epochs",
    "evaluation.batch_size", "evaluation.flip", "evaluation.rerank", "evaluation.expansion",
    "evaluation.untrained", "init.weights", "init.run", "init.skip",
    "report.enabled", "report.queries", "report.samples", "method.name", "stages",
)  # fmt: skip
# (pattern of keys, least, most); most may be None. Keys that a config does not have are passed over. Those of ``method`` stand in
# the methods, see `occreid_jax.methods.base`.
RANGES = (
    ("seed", 0, 2**32 - 1),
    ("data.synthetic_seed", 0, 2**32 - 1),
    ("mesh.devices", 0, None),
    ("loop.*", 1, None),
    ("checkpoint.keep", 1, None),
    ("*.every_epochs", 0, None),
    ("evaluation.batch_size", 1, None),
    ("report.queries", 0, None),
    ("report.samples", 0, None),
    ("stages.*.epochs", 1, None),
    ("stages.*.sampler.batch_size", 1, None),
    ("stages.*.sampler.images_per_identity", 1, None),
    ("stages.*.augment.flip", 0, 1),
    ("stages.*.augment.erasing", 0, 1),
    ("stages.*.augment.pad", 0, None),
    ("stages.*optimizer.learning_rate", 0, None),
    ("stages.*optimizer.momentum", 0, 1),
    ("stages.*optimizer.*decay", 0, None),
    ("stages.*optimizer.clip_norm", 0, None),
    ("stages.*optimizer.schedule.warmup_epochs", 0, None),
)
# Texts that are empty or hold numbers: key -> (their names, an example, the largest value of the last)
TEXTS = {
    "evaluation.rerank": ("k1,k2,lambda", "20,6,0.3", 1.0),
    "evaluation.expansion": ("k,alpha", "5,3", math.inf),
}
# Tuples of numbers: (pattern of keys, how many, what they are)
NUMBERS = (
    ("stages.*.augment.jitter", 4, "brightness, contrast, saturation and hue"),
)

# Settings of methods that older runs know by another name: (method, old key) -> key
RENAMED = {("clip_reid", "network"): "backbone"}


def shipped(text: str) -> ConfigDict:
    """The config that ``configs/<name>.py`` of this checkout gives for "name:arguments", locked. `UserError` outside of one."""
    name, _, arguments = text.partition(":")
    try:
        module = importlib.import_module(f"configs.{name}")
    except ModuleNotFoundError as error:
        raise UserError("this needs the configs of a checkout; run it inside one") from error
    return module.get_config(arguments).lock()


def validate(config: ConfigDict) -> None:
    """Raises `UserError`, naming the key, for values that cannot work whatever the data is."""
    values = flatten(to_dict(config))
    if missing := [path for path in REQUIRED if path not in values and path not in config]:
        raise UserError(f"the config has no {listed(missing)}; a config file must build on base() of configs/common.py")
    for path, choices in CHOICES.items():
        if path in values and values[path] not in choices:
            raise UserError(f"config.{path} is '{values[path]}'; it must be one of {', '.join(choices)}")
    for path, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{path} is {value}; it must be a finite number")
        if fnmatch.fnmatchcase(path, "stages.*optimizer.groups") and not all(is_group(entry) for entry in value):
            raise UserError(f"config.{path} is {tuple(value)}; it must be (path regex, factor) pairs like ('head', 10.0)")
    check_numbers(values, NUMBERS)
    check_ranges(values, RANGES)
    for path, (names, example, most) in TEXTS.items():
        whole = ",".join([r"[1-9]\d{0,5}"] * names.count(","))
        found = re.fullmatch(rf"{whole},(\d+(?:\.\d+)?)", values[path])
        if values[path] and not (found and float(found[1]) <= most):
            raise UserError(f"config.{path} is '{values[path]}'; it must be empty or {names} such as {example}")
    size = tuple(config.data.image_size)
    if len(size) != 2 or not all(type(side) is int and side >= 8 for side in size):
        raise UserError(f"config.data.image_size is {size}; it must be height,width in pixels, whole numbers of at least 8")
    if values["init.run"] and values["init.weights"]:
        raise UserError("config.init.run and config.init.weights exclude each other; give one")
    check_regex("init.skip", values["init.skip"])


def check_numbers(values: Mapping[str, Any], numbers: Sequence[tuple[str, int, str]]) -> None:
    """Raises `UserError` for a value of a flat config that should be a tuple of so many numbers and is none."""
    for path, value in values.items():
        for pattern, count, words in numbers:
            if fnmatch.fnmatchcase(path, pattern) and not (len(value) == count and all(map(is_number, value))):
                raise UserError(f"config.{path} is {tuple(value)}; it must be {count} numbers: {words}")


def check_ranges(values: Mapping[str, Any], ranges: Sequence[Range]) -> None:
    """Raises `UserError` for a number of a flat config that lies outside; of other values and of other keys it says nothing."""
    for path, value in values.items():
        for pattern, least, most in ranges:
            outside = is_number(value) and (value < least or (most is not None and value > most))
            if outside and fnmatch.fnmatchcase(path, pattern):
                bounds = f"at least {least}" if most is None else f"from {least} to {most}"
                raise UserError(f"config.{path} is {value}; it must be {bounds}")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_group(entry: Any) -> bool:
    """Whether an entry of an optimiser's ``groups`` is a pair of path regex and learning-rate factor."""
    if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str) and is_number(entry[1])):
        return False
    check_regex("stages.<name>.optimizer.groups", entry[0])
    return True


def check_regex(path: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"config.{path}: '{pattern}' is not a regular expression ({error})") from error


def to_dict(config: Any) -> Any:
    """A ConfigDict as plain dictionaries, lists and scalars that JSON can hold."""
    if isinstance(config, Mapping | ConfigDict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    return config


def from_dict(values: Mapping[str, Any]) -> ConfigDict:
    """The reverse of `to_dict`: lists become tuples again, and settings of older runs get the names of `RENAMED`.

    Raises `UserError` if ``values`` is no dictionary.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"config.json holds a {type(values).__name__} instead of settings; it is not the one that a run wrote")

    def convert(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: convert(entry) for key, entry in value.items()}
        return tuple(convert(entry) for entry in value) if isinstance(value, list) else value

    config = ConfigDict(convert(values))
    for (name, old), new in RENAMED.items():
        method = config.get("method", {})
        if method.get("name") == name and old in method:
            method[new] = method[old]
            del method[old]
    return config


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
