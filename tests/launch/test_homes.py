"""``~`` is the home directory in every path of every command and config; and what happens where no home is known."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from occreid_jax.errors import UserError
from occreid_jax.files import at_home
from tests.launch.conftest import LAUNCH, ROOT, listing

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "common"))


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("~", "/home/eve"),
        ("~/set", "/home/eve/set"),
        ("~root/set", f"{os.path.expanduser('~root')}/set"),
        ("~/a,b/c, ~/d", "/home/eve/a,b/c,/home/eve/d"),
        ("runs/~/x", "runs/~/x"),
        ("./~/x", "./~/x"),
        ("~ 100 pictures, Flickr", "~ 100 pictures, Flickr"),
        ("", ""),
        (None, None),
        (3, 3),
        (["~/a", "b"], ["/home/eve/a", "b"]),
        (("~/a", 1), ("/home/eve/a", 1)),
    ],
)
def test_what_is_a_path_below_the_home_directory(monkeypatch, given, wanted):
    monkeypatch.setenv("HOME", "/home/eve")
    assert at_home(given) == wanted


def test_users_that_do_not_exist():
    with pytest.raises(UserError, match=r"^~nobody_here/x: there is no user 'nobody_here'; give the path in full$"):
        at_home("~nobody_here/x")


def leaves(config, prefix=()):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, (*prefix, key))
        elif isinstance(value, str):
            yield (*prefix, key)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_text_of_every_config(monkeypatch, name):
    """Whatever key holds a path, now or later: no list of such keys exists that could be forgotten."""
    monkeypatch.setenv("HOME", "/home/eve")
    config = importlib.import_module(f"configs.{name}").get_config().lock()
    paths = list(leaves(config))
    assert {("data", "root"), ("data", "cache"), ("init", "weights"), ("init", "run")} <= set(paths)

    def block(path):
        found = config
        for key in path[:-1]:
            found = found[key]
        return found

    for path in paths:
        block(path)[path[-1]] = "~/x"
    at_home(config)
    assert {block(path)[path[-1]] for path in paths} == {"/home/eve/x"}


WITH_FLAGS = sorted(path.name for path in LAUNCH.glob("*.py") if "DEFINE_" in path.read_text() and path.stem != "command")


@pytest.mark.parametrize("script", WITH_FLAGS)
def test_every_flag_of_every_command(script):
    """Texts among the flags, single ones and lists, are seen to by what every command runs through."""
    program = (
        "import runpy, sys; from absl import flags; import command\n"
        f"module = runpy.run_path({str(LAUNCH / script)!r}, run_name='module')\n"
        "texts = [name for name in flags.FLAGS if type(flags.FLAGS[name]) in (flags.Flag, flags.MultiFlag)\n"
        "         and type(flags.FLAGS[name].parser) in (flags.ArgumentParser, flags.ListParser)]\n"
        "for name in texts:\n"
        "    flags.FLAGS[name].value = ['~/x'] if isinstance(flags.FLAGS[name].value, list) else '~/x'\n"
        "flags.FLAGS.mark_as_parsed(); command.paths_at_home()\n"
        "print({str(flags.FLAGS[name].value).strip(\"[']\") for name in texts})"
    )
    environment = os.environ | {"HOME": "/home/eve", "PYTHONPATH": f"{LAUNCH}:{ROOT}"}
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert finished.stdout == "{'/home/eve/x'}\n", finished.stderr
    assert "command.run(main" in (LAUNCH / script).read_text()


def test_a_run_below_the_home_directory(launch, tiny, market_root, tmp_path):
    (tmp_path / "here").mkdir()
    shutil.copytree(market_root / "market1501", tmp_path / "set" / "market1501", ignore=shutil.ignore_patterns(".tables"))
    shutil.copy(ROOT / "configs" / "baseline.py", tmp_path / "mine.py")
    config = "~/mine.py:dataset=market1501,backbone=micro,stride=16"
    arguments = [*tiny(config=config), "--config.data.root=~/set", "--config.data.cache", "~/tables", "--workdir=~/runs/x"]
    inside = dict(folder=tmp_path / "here", HOME=str(tmp_path))
    launch("train.py", *arguments, **inside).fine()
    told = json.loads((tmp_path / "runs/x/config.json").read_text())["data"]
    assert (told["root"], told["cache"]) == (str(tmp_path / "set"), str(tmp_path / "tables"))
    assert listing(tmp_path / "here") == [] and list((tmp_path / "tables").glob("*/images.npy"))
    launch("evaluate.py", "--workdir=~/runs/x", **inside).fine()
    launch("train.py", *tiny("--workdir=~nobody_here/x")).mistake("~nobody_here/x: there is no user 'nobody_here'")


def homeless(temporary: Path, *arguments: str) -> subprocess.CompletedProcess:
    """A command without HOME, under a user that the system does not know."""
    program = (
        "import pwd, runpy, sys\n"
        "def unknown(number): raise KeyError(number)\n"
        f"pwd.getpwuid = unknown; sys.path.insert(0, {str(LAUNCH)!r}); sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "JAX_COMPILATION_CACHE_DIR")}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment)


def test_no_home_at_all(tiny, tmp_path):
    cache = f"{tmp_path}/occreid_jax-{os.getuid()}"
    note = f"note: no home directory is known (HOME is not set); caches are kept in {cache}\n"
    told = homeless(tmp_path, str(LAUNCH / "train.py"), "--help")
    assert "--workdir" in told.stdout and told.stderr == ""
    arguments = tiny(f"--workdir={tmp_path / 'run'}", f"--config.data.cache={tmp_path / 'tables'}")
    told = homeless(tmp_path, str(LAUNCH / "train.py"), *arguments)
    assert told.returncode == 0 and told.stderr == note
    assert "mAP" in told.stdout.splitlines()[-1] and Path(cache, "occreid_jax", "compiled").is_dir()
    told = homeless(tmp_path, str(LAUNCH / "train.py"), *tiny("--workdir=~/run"))
    assert told.stderr.splitlines()[-1] == (
        "error: ~/run: the home directory is not known (HOME is not set); give the path in full"
    )
