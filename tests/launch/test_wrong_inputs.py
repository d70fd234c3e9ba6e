"""Wrong inputs, given as a person gives them: one clear line, a status other than 0, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.launch.conftest import LAUNCH, ROOT, listing

BASELINE = ROOT / "configs" / "baseline.py"


def folders(root: Path, train, query, gallery, cameras: bool = False) -> Path:
    """A tree for the folder reader: role -> identities, two pictures each; with ``cameras``, all of camera 1."""
    for role, identities in (("train", train), ("query", query), ("gallery", gallery)):
        (root / role).mkdir(parents=True)
        for identity in identities:
            (root / role / identity).mkdir()
            for number in range(2):
                pixels = np.random.default_rng(number).integers(0, 255, (32, 16, 3), dtype=np.uint8)
                name = f"{number}_c1.jpg" if cameras else f"{number}.jpg"
                Image.fromarray(pixels).save(root / role / identity / name)
    return root


# The command line -----------------------------------------------------------------------------------------------------------

COMMAND_LINES = {
    "unknown key": (["--config.stages.main.bogus=1"], "there is no config.stages.main.bogus", "augment, epochs, optimizer"),
    "misspelt key": (["--config.stages.main.epoch=1"], "config.stages.main.epoch;", "did you mean config.stages.main.epochs?"),
    "misspelt group": (["--config.stage.main.epochs=1"], "did you mean config.stages.main.epochs?"),
    "key without its group": (["--config.learning_rate=1"], "did you mean config.stages.main.optimizer.learning_rate?"),
    "key below a number": (["--config.seed.first=1"], "config.seed is 0 and has no keys"),
    "group as a value": (["--config.data=5"], "config.data is a group of settings", "image_size"),
    "fraction for a whole number": (["--config.seed=1.5"], "config.seed=1.5", "a whole number", "--config.seed=0"),
    "text for a number": (["--config.stages.main.optimizer.learning_rate=fast"], "learning_rate=fast", "must be a number"),
    "text for a switch": (["--config.evaluation.flip=maybe"], "config.evaluation.flip=maybe", "true or false"),
    "two numbers for three": (["--config.evaluation.rerank=20,6"], "config.evaluation.rerank is '20,6'", "k1,k2,lambda"),
    "share above one": (["--config.evaluation.rerank=20,6,3"], "config.evaluation.rerank is '20,6,3'", "k1,k2,lambda"),
    "words for numbers": (["--config.evaluation.expansion=yes"], "config.evaluation.expansion is 'yes'", "k,alpha", "5,3"),
    "number switched off": (["--noconfig.seed"], "only true or false can be switched off"),
    "value missing": (["--config.seed"], "config.seed=", "a whole number"),
    "unknown choice of dtype": (["--config.dtype=float16"], "config.dtype is 'float16'", "auto, float32, bfloat16"),
    "unknown choice of resident": (["--config.data.resident=often"], "config.data.resident", "auto, always, never"),
    "negative seed": (["--config.seed=-1"], "config.seed is -1", "from 0"),
    "seed beyond 32 bits": (["--config.seed=99999999999999"], "config.seed is 99999999999999", "4294967295"),
    "no epochs": (["--config.stages.main.epochs=0"], "config.stages.main.epochs is 0", "at least 1"),
    "negative batch": (["--config.stages.main.sampler.batch_size=-4"], "batch_size is -4", "at least 1"),
    "no pixels to move": (["--config.method.stride=0"], "config.method.stride is 0", "at least 1"),
    "probability of two": (["--config.stages.main.augment.flip=2.0"], "augment.flip is 2.0", "from 0 to 1"),
    "not a number": (["--config.stages.main.optimizer.learning_rate=nan"], "learning_rate is nan", "finite"),
    "one number for four": (["--config.stages.main.augment.jitter=0.1"], "augment.jitter", "4 numbers: brightness"),
    "one side of a picture": (["--config.data.image_size=64"], "config.data.image_size is (64,)", "height,width"),
    "half a pixel": (["--config.data.image_size=64.5,32"], "config.data.image_size is (64.5, 32)", "whole numbers"),
    "patch larger than the picture": (["--config.method.patch=80"], "config.method.patch is 80", "image_size (128, 64)"),
    "damaged regular expression": (["--config.init.skip=("], "config.init.skip", "not a regular expression"),
    "weights and run together": (["--config.init.run=a", "--config.init.weights=b"], "config.init.run and config.init.weights"),
    "unknown method": (["--config.method.name=resnet"], "unknown method 'resnet'", "baseline"),
    "unknown backbone": (["--config.method.backbone=huge"], "config.method.backbone", "'huge'", "micro"),
    "unknown dataset": (["--config.data.name=markt1501"], "markt1501", "market1501"),
    "unknown size": (["--config.data.size=huge"], "'huge'", "demo"),
    "more devices than there are": (["--config.mesh.devices=64"], "config.mesh.devices is 64", "has 2", "0 takes all"),
    "unknown flag": (["--wrokdir=a"], "wrokdir", "Did you mean", "--help"),
    "stray word": (["fast"], "unexpected argument 'fast'", "--name=value"),
}


@pytest.mark.parametrize("case", COMMAND_LINES)
def test_command_line(launch, tmp_path, case):
    arguments, *words = COMMAND_LINES[case]
    launch("train.py", f"--config={BASELINE}", *arguments, folder=tmp_path).mistake(*words)
    assert listing(tmp_path) == []


CONFIG_FILES = {
    "no config": ([], "--config is missing", "--config=configs/baseline.py"),
    "config without a value": (["--config="], "--config=: no such file", "for example"),
    "absent file": (["--config=baselin.py"], "baselin.py: no such file", "did you mean baseline.py?"),
    "a folder": (["--config=."], "no such file"),
    "not Python": (["--config=notes.md"], "notes.md", "a config file is a Python file"),
    "no get_config": (["--config=empty.py"], "empty.py", "no function get_config"),
    "syntax error": (["--config=broken.py"], "broken.py, line 1", "mend the config file"),
    "error inside": (["--config=raises.py"], "raises.py, line 2", "ZeroDivisionError"),
    "returns nothing": (["--config=nothing.py"], "nothing.py", "returned NoneType instead of a ConfigDict"),
    "not built on base": (["--config=bare.py"], "the config has no", "configs/common.py"),
    "unknown argument": ([f"--config={BASELINE}:datset=folder"], "unknown config argument 'datset'", "dataset"),
    "argument of a wrong type": ([f"--config={BASELINE}:stride=wide"], "stride=wide", "should look like stride=0"),
    "argument with an unknown dataset": ([f"--config={BASELINE}:dataset=markt"], "unknown dataset 'markt'", "market1501"),
}


@pytest.mark.parametrize("case", CONFIG_FILES)
def test_config_file(launch, tmp_path, case):
    shutil.copy(BASELINE, tmp_path / "baseline.py")
    for name, text in {
        "notes.md": "get_config",
        "empty.py": "",
        "broken.py": "def get_config(:\n",
        "raises.py": "def get_config(arg=''):\n  return 1 / 0\n",
        "nothing.py": "def get_config(arg=''):\n  return None\n",
        "bare.py": "import ml_collections\ndef get_config(arg=''):\n  return ml_collections.ConfigDict(dict(seed=1))\n",
    }.items():
        (tmp_path / name).write_text(text)
    before = [name for name in listing(tmp_path) if "__pycache__" not in name]
    arguments, *words = CONFIG_FILES[case]
    launch("train.py", *arguments, folder=tmp_path).mistake(*words)
    assert [name for name in listing(tmp_path) if "__pycache__" not in name] == before


def test_as_a_process_of_its_own(tmp_path):
    """What the warm worker gives is what a person sees."""
    command = [sys.executable, str(LAUNCH / "train.py"), f"--config={BASELINE}", "--config.stages.main.epoch=1"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr == "error: there is no config.stages.main.epoch; did you mean config.stages.main.epochs?\n"


OTHER_COMMANDS = {
    "evaluate nothing": ("evaluate.py", [], "--workdir is missing"),
    "evaluate an empty folder": ("evaluate.py", ["--workdir=."], "no run there", "config.json is missing"),
    "evaluate with a config": ("evaluate.py", ["--workdir=.", f"--config={BASELINE}"], "--weights and --config go together"),
    "evaluate weights alone": ("evaluate.py", ["--weights=."], "--weights and --config go together"),
    "seeds that are words": ("seeds.py", [f"--config={BASELINE}", "--seeds=a,1"], "--seeds=a,1", "numbers", "--seeds=0,1,2"),
    "no seeds": ("seeds.py", [f"--config={BASELINE}", "--seeds="], "--seeds=:", "--seeds=0,1,2"),
    "the same seed twice": ("seeds.py", [f"--config={BASELINE}", "--seeds=1,1"], "different whole numbers"),
    "prepare nothing": ("prepare_data.py", [], "the first word must be one of synthetic, doctor, tables"),
    "prepare something unknown": ("prepare_data.py", ["render"], "the first word must be one of", "--help"),
    "nowhere to render to": ("prepare_data.py", ["synthetic"], "synthetic needs --out=DIR"),
    "unknown size": ("prepare_data.py", ["synthetic", "--out=a", "--size=big"], "--size=big", "demo|small|full"),
    "sheet that is no picture": ("prepare_data.py", ["synthetic", "--out=a", "--sheet=b.txt"], "--sheet=b.txt", ".png"),
    "flag file that is not there": ("train.py", ["--flagfile=absent.txt"], "absent.txt"),
    "negative seed": ("prepare_data.py", ["synthetic", "--out=a", "--seed=-1"], "--seed=-1", "non-negative"),
    "no dataset": ("prepare_data.py", ["tables", "--root=."], "tables needs --dataset=NAME and --root=DIR"),
    "unknown dataset": ("prepare_data.py", ["doctor", "--dataset=markt1501", "--root=."], "did you mean 'market1501'?"),
    "missing data": ("prepare_data.py", ["doctor", "--dataset=market1501", "--root=absent"], "absent is not a folder"),
}


@pytest.mark.parametrize("case", OTHER_COMMANDS)
def test_other_commands(launch, tmp_path, case):
    script, arguments, *words = OTHER_COMMANDS[case]
    launch(script, *arguments, folder=tmp_path).mistake(*words)
    assert listing(tmp_path) == []


# Data -----------------------------------------------------------------------------------------------------------------------

DATA = {
    "missing folder": ("nowhere", "none", "nowhere is not a folder", "train/, query/ and gallery/"),
    "no query folder": ("no_query", "none", "has no folder query"),
    "empty split": ("empty_query", "none", "the query split", "has no usable picture"),
    "names without a camera": ("good", "name", "no camera such as _c3", 'camera="none"'),
    "identities that nobody searches": ("strangers", "none", "none of the 2 query identities occurs in the gallery"),
    "one camera": ("one_camera", "name", "no query has a match at another camera", "camera numbers that differ"),
    "too few identities": ("good", "none", "a batch needs 4 identities", "has 3", "set sampler.batch_size to 12 or less"),
    "pictures that cannot be used": ("damaged", "none", "4 of 6 images cannot be used", "zero bytes", "Truncated", "4x4 pixels",
                                     "not an image", "replace or remove these files"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_data(launch, tiny, tmp_path, case):
    name, camera, *words = DATA[case]
    root, people = tmp_path / name, ("anna", "ben", "carl")
    if name != "nowhere":
        query = {"empty_query": (), "strangers": ("dora", "eva")}.get(name, people)
        folders(root, people, query, people, cameras=name == "one_camera")
    if name == "no_query":
        shutil.rmtree(root / "query")
    if name == "damaged":
        whole = (root / "train/anna/0.jpg").read_bytes()
        (root / "train/anna/0.jpg").write_bytes(b"")
        (root / "train/anna/1.jpg").write_bytes(whole[: len(whole) // 2])
        (root / "train/ben/0.jpg").write_text("no picture at all")
        Image.new("RGB", (4, 4)).save(root / "train/ben/1.jpg")
    before, run = listing(tmp_path), tmp_path / "run"
    config = f"{BASELINE}:dataset=folder,backbone=micro,stride=16"
    batch = [] if case == "too few identities" else ["--config.stages.main.sampler.batch_size=8"]
    arguments = [*tiny(config=config), f"--config.data.root={root}", f"--config.data.camera={camera}", f"--workdir={run}", *batch]
    launch("train.py", *arguments).mistake(*words)
    if name == "damaged":  # found when the first table is made: the run folder is there, but no part of a table
        left = [path for path in (root / ".tables").rglob("*") if not path.match("bits-*.txt")]
        assert not left and not list(run.glob("checkpoints/*/*"))
    else:
        assert listing(tmp_path) == before


def test_market_names(launch, tiny, market_root, tmp_path):
    shutil.copytree(market_root / "market1501", tmp_path / "market1501", ignore=shutil.ignore_patterns(".tables"))
    (tmp_path / "market1501" / "query" / "portrait.jpg").write_bytes(b"x")
    words = ("1 pictures are not named", "query/portrait.jpg", "rename or remove")
    launch("train.py", *tiny(), f"--config.data.root={tmp_path}", f"--workdir={tmp_path / 'run'}").mistake(*words)
    assert not (tmp_path / "run").exists()


def test_person_mask_needs_ground_truth(launch, tiny, tmp_path):
    arguments = tiny(argument=",person_mask=true")
    launch("train.py", *arguments, f"--workdir={tmp_path}").mistake("market1501", "has no body-part labels", "only synthetic")
    assert not list(tmp_path.glob("checkpoints/*/*"))


def test_batch_over_devices(launch, tiny, tmp_path):
    sampler = "--config.stages.main.sampler"
    odd = ["--config.mesh.devices=2", f"{sampler}.batch_size=5", f"{sampler}.images_per_identity=1"]
    words = ("batch_size 5 does not divide over 2 devices", "config.mesh.devices")
    launch("train.py", *tiny(*odd), f"--workdir={tmp_path / 'run'}").mistake(*words)
    assert listing(tmp_path) == []


def test_batch_of_broken_groups(launch, tiny, tmp_path):
    arguments = tiny("--config.stages.main.sampler.batch_size=6", f"--workdir={tmp_path / 'run'}")
    launch("train.py", *arguments).mistake("sampler.batch_size is 6", "a multiple of sampler.images_per_identity, 4")
    assert listing(tmp_path) == []


# Folders that cannot be written, files that cannot grow ---------------------------------------------------------------------


@pytest.mark.parametrize("place", ["below a file", "a file", "below /proc"])
def test_workdir_that_cannot_be_written(launch, tiny, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    workdir = {"below a file": tmp_path / "file" / "run", "a file": tmp_path / "file", "below /proc": "/proc/occreid/run"}[place]
    remedy = "is a file; name a folder" if place == "a file" else "choose another --workdir"
    launch("train.py", *tiny(f"--workdir={workdir}")).mistake(str(workdir), remedy)
    assert listing(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_cache_that_cannot_be_written(launch, tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    arguments = tiny(f"--config.data.cache={tmp_path / 'file' / 'tables'}", f"--workdir={tmp_path / 'run'}")
    launch("train.py", *arguments).mistake("cannot write the image table", "choose a cache folder that can be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_full_disk_while_tables_are_written(launch, tiny, tmp_path):
    arguments = tiny(f"--config.data.cache={tmp_path / 'tables'}", f"--workdir={tmp_path / 'run'}")
    launch("train.py", *arguments, limit=20_000).mistake("cannot write the image table", "File too large", "make room")
    assert [name for name in listing(tmp_path / "tables") if not name.startswith("bits-")] == []


def test_full_disk_while_a_checkpoint_is_written(launch, tiny, run_copy):
    steps = sorted(int(path.name) for path in (run_copy / "checkpoints" / "latest").iterdir() if path.name.isdigit())
    assert len(steps) == 2
    shutil.rmtree(run_copy / "checkpoints" / "latest" / str(steps[1]))
    shutil.rmtree(run_copy / "checkpoints" / "best" / str(steps[1]))
    arguments = tiny(f"--workdir={run_copy}")
    words = (f"{run_copy}/checkpoints", "could not be written (File too large)", "make room, then run the same command again")
    launch("train.py", *arguments, limit=40_000).mistake(*words)
    launch("evaluate.py", f"--workdir={run_copy}").fine()  # the checkpoint before it
    resumed = launch("train.py", *arguments).fine()
    assert f"going on from step {steps[0]} of {steps[1]}" in resumed.out


def test_full_disk_while_the_benchmark_is_rendered(launch, tmp_path):
    arguments = ("synthetic", f"--out={tmp_path / 'set'}")
    launch("prepare_data.py", *arguments, limit=1000).mistake(str(tmp_path / "set"), "File too large", "--out")
    assert listing(tmp_path) == []


def test_rendering_into_a_folder_that_holds_something_else(launch, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    launch("prepare_data.py", "synthetic", f"--out={tmp_path}").mistake("holds something that is no synthetic benchmark")
    assert listing(tmp_path) == ["thesis.txt"]


def test_rendering_below_a_file(launch, tmp_path):
    (tmp_path / "file").write_text("mine")
    launch("prepare_data.py", "synthetic", f"--out={tmp_path / 'file' / 'set'}").mistake("cannot be written", "--out")
    assert listing(tmp_path) == ["file"]


# Run folders ----------------------------------------------------------------------------------------------------------------


def test_run_of_another_config(launch, tiny, trained):
    before = listing(trained)
    arguments = tiny("--config.stages.main.epochs=7", "--config.seed=3", f"--workdir={trained}")
    words = ("holds a run of another config", "seed: 0 -> 3", "stages.main.epochs: 2 -> 7", "choose another --workdir")
    launch("train.py", *arguments).mistake(*words)
    assert listing(trained) == before


def test_run_on_another_training_set(launch, tiny, run_copy, market_root, tmp_path):
    shutil.copytree(market_root / "market1501", tmp_path / "market1501", ignore=shutil.ignore_patterns(".tables"))
    for picture in (tmp_path / "market1501" / "bounding_box_train").glob("0001_*"):
        picture.unlink()
    arguments = tiny(f"--config.data.root={tmp_path}", f"--workdir={run_copy}")
    words = ("holds a run on another training set", "identities: 16 -> 15", "--config.data.root")
    launch("train.py", *arguments).mistake(*words)


def test_a_mended_command_may_use_the_folder(launch, tiny, tmp_path):
    """A command that failed before it trained anything does not block its run folder."""
    arguments = tiny(f"--workdir={tmp_path}")
    weights = ("--config.init.weights=absent.safetensors", "absent.safetensors: no such file", "launch/port_weights.py")
    launch("train.py", *arguments, weights[0]).mistake(*weights[1:])
    assert (tmp_path / "config.json").exists()
    launch("train.py", *arguments, "--config.init.weights=other.safetensors").mistake("other.safetensors: no such file")


DAMAGES = {
    "config.json cut": ("config.json", '{"seed": 0,', "config.json", "not readable as JSON"),
    "config.json of something else": ("config.json", "[1, 2]", "instead of settings"),
    "config.json without keys": ("config.json", '{"seed": 0}', "the config has no"),
    "meta.json of something else": ("meta.json", '{"image_size": [32, 16]}', "meta.json", "not what a run writes"),
}


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_records(launch, tiny, run_copy, case, script):
    name, text, *words = DAMAGES[case]
    (run_copy / name).write_text(text)
    if script == "train.py" and case == "config.json without keys":
        words = ["holds a run of another config"]
    arguments = tiny(f"--workdir={run_copy}") if script == "train.py" else [f"--workdir={run_copy}"]
    before = listing(run_copy)
    launch(script, *arguments).mistake(*words)
    assert listing(run_copy) == before and (run_copy / name).read_text() == text


def test_damaged_metrics(launch, tiny, run_copy):
    path = run_copy / "metrics.jsonl"
    lines = path.read_text().splitlines()
    damaged = "\n".join(["half a li", *lines]) + "\n"
    path.write_text(damaged)
    launch("train.py", *tiny(f"--workdir={run_copy}")).mistake("metrics.jsonl: line 1 is damaged", "move the file away")
    assert path.read_text() == damaged
    path.write_text("\n".join(lines) + '\n{"step": 12, "los')  # what a kill leaves: nothing is lost by leaving it out
    launch("train.py", *tiny(f"--workdir={run_copy}")).fine()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [json.loads(line)["step"] for line in lines]


def cut(folder: Path) -> None:
    """Halves every file of a checkpoint."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_cut_checkpoint(launch, tiny, run_copy):
    steps = sorted(int(path.name) for path in (run_copy / "checkpoints" / "latest").iterdir() if path.name.isdigit())
    folder = run_copy / "checkpoints" / "latest" / str(steps[-1])
    cut(folder)
    words = (str(folder), "damaged", f"remove that folder to go on from step {steps[0]}")
    launch("evaluate.py", f"--workdir={run_copy}").mistake(*words)
    launch("train.py", *tiny(f"--workdir={run_copy}")).mistake(*words)
    shutil.rmtree(folder)  # the remedy helps
    assert f"going on from step {steps[0]}" in launch("train.py", *tiny(f"--workdir={run_copy}")).fine().out


def test_cut_arrays(launch, run_copy):
    """As above, with only the stored numbers cut."""
    folder = max((run_copy / "checkpoints" / "latest").iterdir(), key=lambda path: int(path.name))
    for data in (folder / "model").rglob("d"):
        cut(data)
    before = (run_copy / "results.json").read_text()
    launch("evaluate.py", f"--workdir={run_copy}").mistake(str(folder), "damaged", "remove that folder")
    assert (run_copy / "results.json").read_text() == before


def test_no_checkpoint(launch, run_copy):
    shutil.rmtree(run_copy / "checkpoints" / "best")
    before = (run_copy / "results.json").read_text()
    launch("evaluate.py", f"--workdir={run_copy}", "--best").mistake("no best checkpoint")
    shutil.rmtree(run_copy / "checkpoints")
    launch("evaluate.py", f"--workdir={run_copy}").mistake("no checkpoint", "let the run finish an epoch first")
    assert (run_copy / "results.json").read_text() == before


# Initial weights ------------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "absent": ("absent.safetensors", "absent.safetensors: no such file", "launch/port_weights.py"),
    "of another kind": ("weights.pth", "weights.pth", "launch/port_weights.py"),
    "damaged": ("damaged.safetensors", "not a readable safetensors file", "launch/port_weights.py"),
    "not ported": ("plain.safetensors", "plain.safetensors", "not written by launch/port_weights.py"),
    "of another model": ("other.safetensors", "missing", "1 unused: bogus", "cls_token (1, 1, 64) instead of (1, 1, 32)"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights(launch, tiny, tmp_path, case):
    name, *words = WEIGHTS[case]
    (tmp_path / "weights.pth").write_bytes(b"x")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    other = {"cls_token": np.zeros((1, 1, 64), np.float32), "bogus": np.zeros(2, np.float32)}
    save_file(other, tmp_path / "plain.safetensors")
    save_file(other, tmp_path / "other.safetensors", {"format": "occreid_jax", "kind": "encoder", "family": "vit"})
    run = tmp_path / "run"
    launch("train.py", *tiny(f"--config.init.weights={tmp_path / name}", f"--workdir={run}")).mistake(*words)
    assert not list(run.glob("checkpoints/*/*")) and not (run / "results.json").exists()


def test_initial_run_without_checkpoint(launch, tiny, tmp_path):
    (tmp_path / "before" / "checkpoints" / "latest").mkdir(parents=True)
    run = f"--workdir={tmp_path / 'run'}"
    words = ("no checkpoint there", "config.init.run must name the run folder")
    launch("train.py", *tiny(f"--config.init.run={tmp_path}", run)).mistake(*words)
    launch("train.py", *tiny(f"--config.init.run={tmp_path / 'before'}", run)).mistake("no complete checkpoint there")


def test_initial_run_that_is_damaged_or_another_model(launch, tiny, run_copy, tmp_path):
    wide = tiny(f"--config.init.run={run_copy}", "--config.method.backbone=demo", f"--workdir={tmp_path / 'wide'}")
    launch("train.py", *wide).mistake(f"the parameters of {run_copy} do not fit this model", "missing", "of another shape")
    for folder in (run_copy / "checkpoints" / "latest").iterdir():
        cut(folder)
    damaged = tiny(f"--config.init.run={run_copy}", f"--workdir={tmp_path / 'again'}")
    launch("train.py", *damaged).mistake(f"{run_copy}/checkpoints/latest", "not readable as a checkpoint")


# Settings that only the training can judge ------------------------------------------------------------------------------

SETTINGS = {
    "unknown optimiser": (["--config.stages.main.optimizer.name=lion"], "optimizer.name", "'lion'", "sgd, adam, adamw"),
    "unknown schedule": (["--config.stages.main.optimizer.schedule.name=step"], "schedule.name", "'step'", "cosine"),
    "unknown sampler": (["--config.stages.main.sampler.name=random"], "sampler.name is 'random'", "identity"),
    "groups that are no pairs": (["--config.stages.main.optimizer.groups=2"], "optimizer.groups", "(path regex, factor)"),
    "more batches a step than an epoch has": (["--config.loop.accumulate=500"], "stage 'main': config.loop.accumulate is 500"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(launch, tiny, tmp_path, case):
    arguments, *words = SETTINGS[case]
    launch("train.py", *tiny(*arguments, f"--workdir={tmp_path / 'run'}")).mistake(*words)
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert not list(tmp_path.glob("run/checkpoints/*/*")) and not (metrics.exists() and metrics.read_text())


# Evaluation of a good run -----------------------------------------------------------------------------------------------

EVALUATIONS = {
    "unknown dataset": (["--dataset=markt1501"], "did you mean 'market1501'?"),
    "dataset that is not there": (["--dataset=folder", "--root=absent"], "absent is not a folder"),
    "size of the benchmark not known": (["--dataset=synthetic", "--protocol=huge-occluded"], "huge", "demo, small, full"),
    "an unknown setting": (["--method=test_featur=after"], "unknown config argument 'test_featur'", "test_feature"),
    "a setting's wrong value": (["--method=label_smoothing=much"], "should look like label_smoothing="),
    "other parameters": (["--method=backbone=64x2x2"], "the method has other parameters than the run's", "train with them"),
}


@pytest.mark.parametrize("case", EVALUATIONS)
def test_evaluation(launch, trained, tmp_path, case):
    arguments, *words = EVALUATIONS[case]
    before = listing(trained)
    launch("evaluate.py", f"--workdir={trained}", *arguments, folder=tmp_path).mistake(*words)
    assert listing(trained) == before and listing(tmp_path) == []


def test_evaluation_leaves_a_training_at_work_alone(launch, run_copy):
    """Evaluating a run folder neither creates nor tidies up checkpoints: a training may be writing one."""
    unfinished = run_copy / "checkpoints" / "latest" / "99.orbax-checkpoint-tmp"
    unfinished.mkdir()
    launch("evaluate.py", f"--workdir={run_copy}").fine()
    assert unfinished.is_dir()


def test_evaluation_on_a_full_disk(launch, run_copy):
    before = {name: (run_copy / name).read_bytes() for name in ("results.json", "evaluation.npz")}
    names = listing(run_copy)
    launch("evaluate.py", f"--workdir={run_copy}", limit=1000).mistake("evaluation.npz: cannot be written", "make room")
    assert {name: (run_copy / name).read_bytes() for name in before} == before and listing(run_copy) == names


# Training that goes wrong ---------------------------------------------------------------------------------------------------


def test_loss_that_explodes(launch, tiny, market_root, tmp_path):
    """A learning rate that explodes after the first epoch: the checkpoint before it stays usable."""
    config = tmp_path / "explodes.py"
    config.write_text(
        "from configs import baseline\n"
        "def get_config(arg=''):\n"
        "  config = baseline.get_config('dataset=market1501,backbone=micro,stride=16')\n"
        "  config.stages.main.optimizer.schedule = dict(name='multistep', milestones=(2,), gamma=1e30, warmup_epochs=0,\n"
        "                                               warmup_factor=1.0)\n"
        "  return config\n"
    )
    run = tmp_path / "run"
    line = launch("train.py", *tiny(config=str(config)), f"--workdir={run}").mistake("is not finite", "lower learning rate")
    told = json.loads((run / "not_finite.json").read_text())
    good = max(int(path.name) for path in (run / "checkpoints" / "latest").iterdir() if path.name.isdigit())
    assert f"the last good checkpoint is step {good}" in line and f"loss of step {told['step']} " in line
    assert len(told["images"]) == 16 and told["images"][0] in line and told["step"] > good
    launch("evaluate.py", f"--workdir={run}").fine()


def test_seeds_stops_with_the_line_of_training(launch, tiny, tmp_path):
    finished = launch("seeds.py", *tiny(), "--config.mesh.devices=64", "--seeds=0", f"--workdir={tmp_path}")
    finished.mistake("config.mesh.devices is 64")
    assert "seed 0 ended with status 1" in finished.out and not (tmp_path / "seeds.json").exists()
