"""Says in one line what is wrong with ``--config=FILE:ARGUMENT`` and with the ``--config.key=value`` that follow it.

ml_collections reports such mistakes with a traceback, with half a key or only when the config is read. The command line is
looked at here once more, after it was refused.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from occreid_jax.errors import UserError
from occreid_jax.files import at_home

EXAMPLE = "--config=configs/baseline.py"
KINDS = {bool: "true or false", int: "a whole number", float: "a number", tuple: "values separated by commas"}


class Wrong(Exception):
    """What is wrong, in one line."""


def explain(arguments: list[str]) -> str:
    """The first mistake in ``arguments`` that concerns the config; empty if there is none."""
    try:
        given = config_value(arguments)
        if given is None:
            return f"--config is missing; give a config file, for example {EXAMPLE}"
        config = load(at_home(given))
        for path, text in overrides(arguments):
            check_override(config, path, text)
    except (Wrong, UserError) as wrong:
        return str(wrong)
    return ""


def config_value(arguments: list[str]) -> str | None:
    """What ``--config`` names; None if the flag is not there."""
    value = None
    for number, argument in enumerate(arguments):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
            value = match[1] if match[1] is not None else "".join(arguments[number + 1 : number + 2])
    return value


def overrides(arguments: list[str]) -> Iterator[tuple[str, str | None]]:
    """(dotted path, value as text) of every ``--config.path=value``; the value is None for ``--noconfig.path``."""
    for number, argument in enumerate(arguments):
        if match := re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL):
            follows = "".join(arguments[number + 1 : number + 2])
            yield match[2], None if match[1] else match[3] if match[3] is not None else follows


def load(given: str) -> ConfigDict:
    """Runs the config file. Raises `Wrong` if there is none, if it fails or if it gives something else than a config."""
    path, _, argument = given.partition(":")
    module = load_module(path)
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except ValueError as error:
        raise Wrong(f"--config={given}: {error}") from error
    except Exception as error:
        raise Wrong(f"{place(error, path)}; mend the config file") from error
    if not isinstance(config, ConfigDict):
        raise Wrong(f"--config={path}: get_config returned {type(config).__name__} instead of a ConfigDict; mend the config file")
    return config


def load_module(path: str) -> ModuleType:
    """The config file as a module. Raises `Wrong` if there is none, if it fails or if it has no ``get_config``."""
    if not Path(path).is_file():
        folder = Path(path).parent
        names = [str(file) for file in sorted(folder.glob("*.py"))] if folder.is_dir() else []
        close = difflib.get_close_matches(path, names, 1, 0.7)
        raise Wrong(f"--config={path}: no such file; {f'did you mean {close[0]}?' if close else f'for example {EXAMPLE}'}")
    if Path(path).suffix != ".py":
        raise Wrong(f"--config={path}: a config file is a Python file with a function get_config, for example {EXAMPLE}")
    try:
        spec = importlib.util.spec_from_file_location("occreid_config", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as error:  # a config file is a program and can fail in any way
        raise Wrong(f"{place(error, path)}; mend the config file") from error
    if not hasattr(module, "get_config"):
        raise Wrong(f"--config={path}: the file has no function get_config; a config file must have one, see {EXAMPLE}")
    return module


def place(error: Exception, path: str) -> str:
    """File, line, kind and text of an exception that a config file raised."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}, line {error.lineno}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path.lstrip("./"))]
    line = f", line {frames[-1].lineno}" if frames else ""
    return f"{path}{line}: {type(error).__name__}: {error}"


def check_override(config: ConfigDict, path: str, text: str | None) -> None:
    """Raises `Wrong` unless ``path`` is a key of ``config`` that takes ``text``."""
    value: Any = config
    keys = path.split(".")
    for number, key in enumerate(keys):
        if not isinstance(value, ConfigDict) or key not in value:
            raise Wrong(f"there is no config.{path}; {nearest(config, keys, number, value)}")
        value = value[key]
    if isinstance(value, ConfigDict):
        raise Wrong(f"config.{path} is a group of settings; set one of them: {', '.join(value)}")
    if value is None:
        raise Wrong(f"config.{path} is None in the config file, so its type is not known; change it in the file")
    if text is None:
        if not isinstance(value, bool):
            raise Wrong(f"--noconfig.{path}: only true or false can be switched off; config.{path} is {value!r}")
        return
    kind = next((kind for kind in KINDS if isinstance(value, kind)), None)
    if kind is not None and not readable(kind, text):
        shown = ",".join(map(str, value)) if kind is tuple else str(value).lower() if kind is bool else value
        raise Wrong(f"config.{path}={text}: it must be {KINDS[kind]}, for example --config.{path}={shown}")


def readable(kind: type, text: str) -> bool:
    """Whether ``text`` stands for a value of ``kind``. Tuples are read by the flag itself."""
    try:
        if kind is bool:
            return text.lower() in ("true", "t", "1", "false", "f", "0")
        if kind is int:
            int(text, 16) if text.startswith("0x") else int(text)
        elif kind is float:
            float(text)
        elif kind is tuple:
            return not (" " in text and "(" not in text)
    except ValueError:
        return False
    return True


def nearest(config: ConfigDict, keys: list[str], number: int, group: Any) -> str:
    """The key that was probably meant by ``keys``, whose entry ``number`` is not in ``group``; or the keys that are there."""
    above, names = keys[:number], list(dotted(config))
    if isinstance(group, ConfigDict):
        meant = [".".join((*above, key, *keys[number + 1 :])) for key in difflib.get_close_matches(keys[number], group, 3, 0.6)]
        elsewhere = [name for name in names if name.rsplit(".", 1)[-1] == keys[-1]]  # the right key of another group
        close = [name for name in meant if name in names] or difflib.get_close_matches(".".join(keys), elsewhere, 1, 0.0)
        if close:
            return f"did you mean config.{close[0]}?"
        return f"{'.'.join(('config', *above))} has {', '.join(group)}"
    return f"config.{'.'.join(above)} is {group!r} and has no keys below it"


def dotted(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Every key of a config, groups included, as a dotted path."""
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, ConfigDict):
            yield from dotted(value, f"{prefix}{key}.")
