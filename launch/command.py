"""What every command shares: flags parsed with one-line errors, user mistakes as one line, quiet libraries, the compile cache."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # configs are imported from the checkout
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
HOMELESS = os.path.expanduser("~") == "~"  # no HOME, and a user that the system does not know: a container under any number
if HOMELESS:  # other libraries keep their caches there too
    os.environ.setdefault("XDG_CACHE_HOME", str(Path(tempfile.gettempdir()) / f"occreid_jax-{os.getuid()}"))
CACHE = os.environ["XDG_CACHE_HOME"] if HOMELESS else os.path.expanduser("~/.cache")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(CACHE) / "occreid_jax" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import config_argument  # noqa: E402
import help_text  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from ml_collections import ConfigDict, config_flags  # noqa: E402
from ml_collections.config_flags.tuple_parser import TupleParser  # noqa: E402

from occreid_jax.errors import UserError, legible  # noqa: E402
from occreid_jax.files import STORAGE, at_home, remedy  # noqa: E402

USAGE = 2  # exit status of a wrong command line
MISTAKE = 1  # exit status of a user's mistake found later


class LastTuple(flags.ArgumentParser):
    """Values separated by commas. A flag given twice counts once, as every other flag does: with ml_collections' own parser the
    values of both would be joined."""

    def parse(self, argument):
        return TupleParser().parse(argument)

    def flag_type(self) -> str:
        return "tuple"


config_flags.register_flag_parser_for_type(tuple, LastTuple())


def define_config(default: str | None = None) -> flags.FlagHolder:
    """The ``--config`` flag; single values are changed with ``--config.key=value``."""
    words = "config file, with its arguments after a colon: configs/baseline.py:dataset=market1501"
    try:
        holder = config_flags.DEFINE_config_file("config", default, words)
    except flags.Error as error:  # it opens a --flagfile at once
        fail(f"{str(error).removeprefix('ERROR:: ')}; --flagfile must name a file of flags", USAGE)
    parser = flags.FLAGS["config"].parser
    load = parser.parse

    def load_from_home(path: str) -> ConfigDict:
        return load(at_home(path))

    parser.parse = load_from_home
    return holder


def fail(message: str, status: int) -> None:
    """Prints one line and leaves."""
    print(f"error: {' '.join(legible(message).split())}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status) if status > 128 else sys.exit(status)


def parse(arguments: list[str], words: bool = False) -> list[str]:
    """absl's parser with every mistake as one line. Arguments that are no flags are one, unless ``words`` allows them."""
    logging.set_verbosity(logging.FATAL)  # what goes wrong is told once, here
    if help_text.asked(arguments):
        give_help(arguments)
    try:
        rest = flags.FLAGS(arguments)
    except Exception as error:  # a config file is a program: loading it can fail in any way
        refuse(arguments, error)
    given = "config" in flags.FLAGS and any(argument.lstrip("-").startswith("config") for argument in arguments[1:])
    if given and not isinstance(flags.FLAGS["config"].value, ConfigDict):
        refuse(arguments, None)  # a file that is missing or unreadable is told only when the config is used
    if len(rest) > 1 and not words:
        fail(f"unexpected argument '{rest[1]}'; flags look like --name=value", USAGE)
    return rest


def give_help(arguments: list[str]) -> None:
    """Prints what ``--help`` asks for and leaves."""
    try:
        print(help_text.text(arguments, ROOT))
    except (config_argument.Wrong, UserError) as wrong:
        fail(str(wrong), USAGE)
    sys.exit(0)


def refuse(arguments: list[str], error: Exception | None) -> None:
    """Says what is wrong with a command line and leaves."""
    if "config" in flags.FLAGS and (wrong := config_argument.explain(arguments)):
        fail(wrong, USAGE)
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if missing := re.match(r"flag --(\w+)=None: Flag --\1 must have a value", text):
        text = f"--{missing[1]} is missing"
    fail(f"{text}; --help lists the flags", USAGE)


def call(arguments: list[str]) -> int:
    """Runs a command and gives its exit status. A request to stop is handed on, so that it can save what it has."""
    process = subprocess.Popen(arguments)

    def hand_on(*_) -> None:
        process.send_signal(signal.SIGTERM)

    earlier = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def run(main: Callable[..., int | None], words: bool = False) -> None:
    """Runs ``main`` after the flags are parsed. `UserError` becomes one line and exit status 1; other errors keep their
    traceback, since they are ours to mend. With ``words``, arguments that are no flags are allowed and ``main`` gets them."""
    from occreid_jax import config as configuration

    def guarded(rest: list[str]) -> int | None:
        logging.set_verbosity(logging.FATAL)  # once more: parsing sets the flag's default
        # A compile cache that cannot be read or written costs time and nothing else.
        warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
        warnings.filterwarnings("ignore", module="PIL")  # damaged metadata is told in a note of the data set
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the screen cannot show is shown escaped
        if HOMELESS:
            print(f"note: no home directory is known (HOME is not set); caches are kept in {CACHE}", file=sys.stderr, flush=True)
        try:
            paths_at_home()
            if "config" in flags.FLAGS and flags.FLAGS.config is not None:  # some commands do without one
                configuration.validate(flags.FLAGS.config)  # before anything slow is imported, opened or rendered
            return main(*([rest[1:]] if words else []))
        except UserError as error:
            fail(str(error), MISTAKE)
        except OSError as error:
            if error.errno not in STORAGE:
                raise
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror}; {remedy(error)}", MISTAKE)
        except (RuntimeError, AssertionError) as error:
            if not traceback.extract_tb(error.__traceback__)[-1].filename.endswith("xla_bridge.py"):
                raise
            fail(no_device(error), MISTAKE)  # JAX opens its devices there, some kinds of failure with a bare assertion
        except KeyboardInterrupt:
            fail("interrupted", 130)

    sys.unraisablehook = unraisable
    app.run(guarded, flags_parser=functools.partial(parse, words=words))


def paths_at_home() -> None:
    """Every text among the flags, and in the config: ``~`` at the start of a path is the home directory."""
    for name in flags.FLAGS:
        if (changed := at_home(flags.FLAGS[name].value)) != flags.FLAGS[name].value:
            flags.FLAGS[name].value = changed


def no_device(error: Exception) -> str:
    """One line for JAX's failure to open the devices that the environment asks for."""
    told = str(error).strip().splitlines()
    asked = os.environ.get("JAX_PLATFORMS", "")
    who = f"JAX_PLATFORMS={asked}" if asked else "JAX"
    remedy = "unset JAX_PLATFORMS to take what this machine has, or install" if asked else "install"
    why = f" ({told[0]})" if told else ""
    return f"{who}: no such device can be used here{why}; {remedy} JAX for it: pip install 'occreid_jax[cuda]' or '[tpu]'"


def unraisable(what) -> None:
    """Python's own report of an exception that nobody can catch, but for those that tensorstore's threads meet after a write
    that failed: their event loop is gone. The failure itself is raised by orbax."""
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


def default_workdir(config) -> Path:
    """runs/<method>-<dataset>, with size and split for the embedded benchmark."""
    data = config.data
    dataset = "-".join(filter(None, (data.name, data.size, data.split)))
    return Path("runs") / f"{config.method.name}-{dataset}"
