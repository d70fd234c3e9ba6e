"""What every command shares: flags parsed with one-line errors, user mistakes as one line, quiet libraries, the compile cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # configs are imported from the checkout
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("~/.cache/occreid_jax/compiled").expanduser()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

USAGE = 2  # exit status of a wrong command line
MISTAKE = 1  # exit status of a user's mistake found later


def define_config(default: str | None = None) -> flags.FlagHolder:
    """The ``--config`` flag; single values are changed with ``--config.key=value``."""
    return config_flags.DEFINE_config_file(
        "config", default, "config file, with its argument after a colon: configs/baseline.py:dataset=market1501"
    )


def fail(message: str, status: int) -> None:
    """Prints one line and leaves."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status) if status > 128 else sys.exit(status)


def parse(arguments: list[str]) -> list[str]:
    """absl's parser with every mistake as one line."""
    try:
        rest = flags.FLAGS(arguments)
    except flags.Error as error:
        fail(f"{str(error).splitlines()[0]}; --help lists the flags", USAGE)
    except (AttributeError, KeyError) as error:
        fail(f"unknown config key {str(error).strip(chr(34))}; the config file shows the keys", USAGE)
    except (TypeError, ValueError, FileNotFoundError, ImportError, OSError) as error:
        fail(str(error).splitlines()[0], USAGE)
    if len(rest) > 1:
        fail(f"unexpected argument '{rest[1]}'; flags look like --name=value", USAGE)
    return rest


def run(main: Callable[[], int | None]) -> None:
    """Runs ``main`` after the flags are parsed. `UserError` becomes one line and exit status 1; other errors keep their
    traceback, since they are ours to mend."""
    from occreid_jax.errors import UserError

    def guarded(_) -> int | None:
        logging.set_verbosity(logging.ERROR)
        try:
            return main()
        except UserError as error:
            fail(str(error), MISTAKE)
        except KeyboardInterrupt:
            fail("interrupted", 130)

    app.run(guarded, flags_parser=parse)


def default_workdir(config) -> Path:
    """runs/<method>-<dataset>, with size and split for the embedded benchmark."""
    data = config.data
    dataset = "-".join(filter(None, (data.name, data.size, data.split)))
    return Path("runs") / f"{config.method.name}-{dataset}"
