"""Places that cannot be read, written or reached: one line each, with the remedy that helps there."""

from __future__ import annotations

import shutil

import pytest

from tests.launch.conftest import listing

PERMISSION = "give yourself permission to read it, or name another place"
LINK = "a link there leads nowhere, or back to itself: remove it, or name what it should lead to"


@pytest.fixture
def closed(tmp_path):
    """Makes a folder or file that nobody may read; opened again at the end, so that it can be removed."""
    shut = []

    def close(path, mode=0o000):
        shut.append((path, path.stat().st_mode))
        path.chmod(mode)
        return path

    yield close
    for path, mode in reversed(shut):
        path.chmod(mode)


@pytest.fixture
def own_root(market_root, tmp_path):
    return shutil.copytree(market_root, tmp_path / "set", ignore=shutil.ignore_patterns(".tables"))


def test_a_folder_of_pictures_that_may_not_be_read(launch, tiny, own_root, closed, tmp_path):
    folder = closed(own_root / "market1501" / "query")
    arguments = tiny(f"--config.data.root={own_root}", f"--workdir={tmp_path / 'run'}")
    line = launch("train.py", *arguments, bound=True).mistake()
    assert line == f"error: {folder}: cannot be read (Permission denied); {PERMISSION}" and not (tmp_path / "run").exists()


def test_a_root_that_may_not_be_entered(launch, tiny, own_root, closed, tmp_path):
    closed(own_root)
    arguments = tiny(f"--config.data.root={own_root}", f"--workdir={tmp_path / 'run'}")
    line = launch("train.py", *arguments, bound=True).mistake("Permission denied", PERMISSION)
    assert str(own_root) in line and not (tmp_path / "run").exists()


def test_a_picture_that_may_not_be_read(launch, tiny, own_root, closed, tmp_path):
    picture = closed(sorted((own_root / "market1501" / "query").iterdir())[0])
    arguments = tiny(f"--config.data.root={own_root}", f"--workdir={tmp_path / 'run'}")
    words = f"1 of 24 images cannot be used: query/{picture.name} (Permission denied); replace or remove these files"
    assert launch("train.py", *arguments, bound=True).mistake() == f"error: {words}"


@pytest.mark.parametrize("mode, remedy", [(0o000, "choose another --workdir"), (0o555, "choose another --workdir")])
def test_a_place_for_runs_that_is_closed(launch, tiny, closed, tmp_path, mode, remedy):
    (tmp_path / "runs").mkdir()
    closed(tmp_path / "runs", mode)
    line = launch("train.py", *tiny(f"--workdir={tmp_path / 'runs' / 'x'}"), bound=True).mistake("Permission denied")
    assert str(tmp_path / "runs" / "x") in line and line.endswith(remedy if mode else PERMISSION)


@pytest.mark.parametrize("script", ["evaluate.py", "report.py"])
def test_a_run_that_may_not_be_read(launch, run_copy, closed, script):
    closed(run_copy / "config.json")
    line = launch(script, f"--workdir={run_copy}", bound=True).mistake("config.json", "Permission denied")
    assert "Traceback" not in line
    closed(run_copy)
    launch(script, f"--workdir={run_copy}", bound=True).mistake(str(run_copy), "Permission denied", PERMISSION)


@pytest.mark.parametrize("mode", [0o000, 0o555])
def test_a_cache_that_is_closed(launch, tiny, closed, tmp_path, mode):
    (tmp_path / "tables").mkdir()
    closed(tmp_path / "tables", mode)
    arguments = tiny(f"--config.data.cache={tmp_path / 'tables'}", f"--workdir={tmp_path / 'run'}")
    line = launch("train.py", *arguments, bound=True).mistake("cannot write the image table", "Permission denied")
    assert line.endswith("choose a cache folder that can be written")


# Links ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def loop(tmp_path):
    """A link to itself."""
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path / "loop"


LOOPS = {
    "workdir": ("train.py", ["--workdir={}"], f"{{}}: cannot be written (File exists); {LINK}"),
    "below workdir": ("train.py", ["--workdir={}/x"], f"{{}}/x: cannot be written (Too many levels of symbolic links); {LINK}"),
    "data.root": ("train.py", ["--config.data.root={}"], "{} is not a folder: it should hold bounding_box_train/, "),
    "data.cache": ("train.py", ["--config.data.cache={}"], "cannot write the image table under {} (File exists): {} is a link "),
    "init.weights": ("train.py", ["--config.init.weights={}"], "{}: no such file; launch/port_weights.py writes one"),
    "init.run": ("train.py", ["--config.init.run={}"], "{}: no checkpoint there; config.init.run must name the run folder of a "),
    "config": ("train.py", ["--config={}.py"], "--config={}.py: no such file; "),
    "evaluate": ("evaluate.py", ["--workdir={}"], "{}: no run there (config.json is missing); "),
    "report": ("report.py", ["--workdir={}"], "{}: no run there (config.json is missing); "),
    "source": ("port_weights.py", ["--source={}", "--out={}-out"], "{}: no such file or folder; "),
    "out": ("prepare_data.py", ["occluders", "--out={}", "--count=2"], f"{{}}: cannot be written (Not a directory); {LINK}"),
    "render": ("prepare_data.py", ["synthetic", "--out={}"], "{}: cannot be written ("),
    "doctor": ("prepare_data.py", ["doctor", "--dataset=folder", "--root={}"], "{} is not a folder: it should hold train/, "),
    "list": ("prepare_data.py", ["occluders", "--from=list", "--list={}", "--source=a", "--licence=b", "--out={}-out"],
             "{}: cannot be read ("),
    "reference": ("compare_numerics.py", ["--reference={}"], "{}: no such reference file"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOOPS)
def test_a_link_to_itself(launch, tiny, loop, tmp_path, case):
    script, given, words = LOOPS[case]
    (tmp_path / "loop.py").symlink_to("loop.py")
    given = [argument.replace("{}", str(loop)) for argument in given]
    workdir = [] if case == "workdir" else [f"--workdir={tmp_path / 'run'}"]
    arguments = [*tiny(), *workdir, *given] if script == "train.py" else given
    line = launch(script, *arguments, folder=tmp_path).mistake()
    assert line.startswith(f"error: {words.replace('{}', str(loop))}"), line
    assert loop.is_symlink() and "loop-out" not in listing(tmp_path)
