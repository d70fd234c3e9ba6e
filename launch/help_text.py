"""What ``--help`` prints: the command's own text, its flags, what a config takes after the colon, and the settings to change.

Nothing of the configs is written down here. What a config takes is what its ``get_config`` hands to `configs.common.parse_arg`;
settings and their values are those of the config that it returns; words about them are the comments beside them in its source.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import config_argument
from absl import flags
from ml_collections import ConfigDict

ASKING = re.compile(r"--?(help|helpfull|helpshort|h|\?)")
WIDTH = 118
# Of some sixty settings, those that a first run of one's own needs.
NEWCOMER = (
    "seed", "data.root", "data.cache", "data.image_size", "data.occluders", "mesh.devices", "init.weights", "init.run",
    "evaluation.every_epochs", "evaluation.batch_size", "report.enabled", "stages.main.epochs", "stages.main.sampler.batch_size",
    "stages.main.optimizer.learning_rate",
)  # fmt: skip


def asked(arguments: list[str]) -> bool:
    """Whether a command line asks for help."""
    return any(ASKING.fullmatch(argument) for argument in arguments[1:])


def text(arguments: list[str], root: Path) -> str:
    """The whole help. Raises `config_argument.Wrong` if ``--config`` names no config."""
    parts = [inspect.cleandoc(sys.modules["__main__"].__doc__ or ""), "\n".join(["Flags:", *own_flags()])]
    if "config" in flags.FLAGS:
        default = flags.FLAGS["config"].default_as_str.strip("'")  # the default itself is the config, not its file
        given = config_argument.config_value(arguments) or default
        parts += of_all_configs(root) if given == "None" else of_config(given)
    return "\n\n".join(parts)


def own_flags() -> Iterator[str]:
    """The flags that the command defines, and ``--config``."""
    found = {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    if "config" in flags.FLAGS:
        found = {"config": flags.FLAGS["config"]} | found
    for name, flag in found.items():
        default = "" if flag.default in (None, "", [], 0) else f" (default: {flag.default_as_str.strip(chr(39))})"
        shown = f"--[no]{name}" if flag.boolean else f"--{name}="
        yield described(shown, f"{flag.help}{default}")


def of_config(given: str) -> list[str]:
    """Paragraphs about one config: its own text, its arguments, and all its settings."""
    path = given.partition(":")[0]
    module, config = config_argument.load_module(path), config_argument.load(given)
    lines = [described(f"--config.{name}={shown(value)}", words) for name, value, words in settings(config, module)]
    return [
        f"{path}: {inspect.cleandoc(module.__doc__ or '')}",
        "\n".join([f"After the colon of --config={path}:, as name=value with commas between (here with their defaults):",
                   *arguments_of(module), f"  {datasets()}"]),
        "\n".join([f"Settings of {given} and their values:", *lines]),
    ]  # fmt: skip


def of_all_configs(root: Path) -> list[str]:
    """Paragraphs about every config that comes with the package, and the settings for a first run."""
    paths = sorted(path for path in (root / "configs").glob("*.py") if path.stem not in ("__init__", "common"))
    parts = ["Configs, what they take after the colon and its defaults; as in --config=configs/baseline.py:size=small,stride=16:"]
    for path in paths:
        module = config_argument.load_module(str(path))
        first = inspect.cleandoc(module.__doc__ or "").partition("\n")[0]
        parts.append("\n".join([f"configs/{path.name}: {first}", *arguments_of(module)]))
    example = root / config_argument.EXAMPLE.removeprefix("--config=")
    module, config = config_argument.load_module(str(example)), config_argument.load(str(example))
    known = {name: (value, words) for name, value, words in settings(config, module)}
    lines = [described(f"--config.{name}={shown(known[name][0])}", known[name][1]) for name in NEWCOMER]
    end = f"All settings of a config: {config_argument.EXAMPLE} --help"
    return [*parts, datasets(), "\n".join([f"Settings to change first (values of {example.relative_to(root)}):", *lines]), end]


def arguments_of(module) -> Iterator[str]:
    """What a config takes after the colon, with defaults."""
    from configs import common

    known, parse = {}, common.parse_arg

    def remember(arg, **defaults):
        known.update(defaults | known)  # a config may read it twice, the second time with what it has found
        return parse(arg, **defaults)

    common.parse_arg = remember
    try:
        module.get_config()
    finally:
        common.parse_arg = parse
    yield from wrapped("  ", ", ".join(f"{name}={shown(value)}" for name, value in known.items()) or "nothing")


def datasets() -> str:
    """What ``dataset`` may be."""
    from configs import common

    return f"dataset is one of {', '.join(common.DATASETS)}"


def settings(config: ConfigDict, module) -> Iterator[tuple[str, object, str]]:
    """(dotted name, value, words) of every single value of a config."""
    words = comments(module)
    for name in config_argument.dotted(config):
        value = config
        for key in name.split("."):
            value = value[key]
        if not isinstance(value, ConfigDict):
            yield name, value, words_for(name, words)


def comments(module) -> dict[str, str]:
    """Setting -> the comment beside it in configs/common.py or in the config's file; names with two comments are left out.

    What stands inside ``config.block = dict(...)`` is named block.setting, everything else by its name alone.
    """
    from configs import common

    found: dict[str, set[str]] = {}
    block = ""
    for line in f"{inspect.getsource(common)}\n{Path(module.__file__).read_text(encoding='utf-8')}".splitlines():
        if start := re.match(r"\s*config\.(\w+) = dict\(", line):
            block = f"{start[1]}."
        code, mark, comment = line.rpartition("  # ")
        name = re.match(r".*\b(\w+)\s*=" if start else r"\s*(?:config\.)?(\w+)\s*=(?!=)", code)
        if mark and name and not comment.startswith(("noqa", "fmt")):
            found.setdefault(block + name[1], set()).add(comment.strip())
        if line.strip() == ")" or (start and code.rstrip().endswith(")")):
            block = ""
    return {name: one.pop() for name, one in found.items() if len(one) == 1}


def words_for(name: str, words: dict[str, str]) -> str:
    """What `comments` found for a dotted name: of its block first, then of its last name in any place."""
    block, last = name.partition(".")[0], name.rpartition(".")[2]
    return words.get(name) or words.get(f"{block}.{last}") or words.get(last, "")


def shown(value) -> str:
    """A value as it is typed."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def described(name: str, words: str) -> str:
    """A name and its words in two columns, or the words below it if it is long."""
    first = f"  {name:<38}" if len(name) < 37 else f"  {name}\n{'':40}"
    body = textwrap.wrap(" ".join(words.split()), WIDTH - 40) or [""]
    return "\n".join([first + body[0], *(f"{'':40}{line}" for line in body[1:])]).rstrip()


def wrapped(indent: str, words: str) -> list[str]:
    return textwrap.wrap(words, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
