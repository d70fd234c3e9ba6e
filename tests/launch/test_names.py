"""File names whose bytes are no valid text: shown escaped wherever people read them, and nothing is lost because of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from occreid_jax.errors import legible, listed
from occreid_jax.files import read_json, write_json, write_text
from tests.launch.conftest import LAUNCH, ROOT

FOLDER = f"{ROOT / 'configs' / 'baseline.py'}:dataset=folder,backbone=micro,stride=16"
NAME = os.fsdecode(b"caf\xe9\xff.jpg")
SHOWN = r"caf\xe9\xff.jpg"


def test_words_for_such_names(tmp_path):
    assert legible(NAME) == SHOWN and legible(Path("a") / NAME) == f"a/{SHOWN}" and listed([NAME]) == SHOWN
    assert legible("plain é 猫") == "plain é 猫" and legible("\ud800") == r"\ud800"
    write_text(tmp_path / "page.html", f"<p>{NAME}</p>")
    assert (tmp_path / "page.html").read_text() == f"<p>{SHOWN}</p>"
    write_json(tmp_path / "names.json", [NAME])  # the way back to the file stays open
    assert (tmp_path / "names.json").read_bytes().isascii() and read_json(tmp_path / "names.json") == [NAME]


@pytest.fixture
def strange_root(tmp_path) -> Path:
    """A tree for the folder reader in which every folder of a person, every file and the root have such names."""
    root = tmp_path / os.fsdecode(b"set\xfe")
    for role in ("train", "query", "gallery"):
        for person in range(4):
            folder = root / role / os.fsdecode(b"p\xff%d" % person)
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = np.random.default_rng(person * 9 + number).integers(0, 255, (32, 16, 3), dtype=np.uint8)
                with open(folder / f"{number}{NAME}", "wb") as file:
                    Image.fromarray(pixels).save(file, "JPEG")
    return root


def test_a_whole_run_on_such_names(launch, tiny, strange_root, tmp_path):
    run, name = tmp_path / "run", rf"p\xff0/0{SHOWN}"
    arguments = tiny(f"--workdir={run}", "--config.report.enabled=true", config=FOLDER)
    root = f"--config.data.root={strange_root}"
    finished = launch("train.py", *arguments, root).fine()
    assert finished.out.splitlines()[-1].startswith("mAP ")
    assert f"query/{name}" in (run / "report" / "index.html").read_text(encoding="utf-8")
    assert read_json(run / "config.json")["data"]["root"] == str(strange_root)
    stored = np.load(run / "evaluation.npz")
    assert stored["query_names"][0] == f"query/{name}" and stored["gallery_names"][0] == f"gallery/{name}"
    launch("report.py", f"--workdir={run}").fine()
    launch("evaluate.py", f"--workdir={run}").fine()

    wrong = next((strange_root / "train").rglob("0*"))
    wrong.write_bytes(b"")
    line = launch("train.py", *arguments, root).mistake()
    told = rf"train/p\xff{str(wrong.parent)[-1]}/0{SHOWN} (zero bytes)"
    assert line == f"error: 1 of 16 images cannot be used: {told}; replace or remove these files"


def test_a_screen_that_knows_english_letters_alone(strange_root):
    (strange_root / "query" / "猫").mkdir()
    (strange_root / "query" / "猫" / "1.jpg").write_bytes(b"")
    command = [sys.executable, str(LAUNCH / "prepare_data.py"), "doctor", "--dataset=folder", f"--root={strange_root}"]
    told = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)})
    assert told.returncode == 0 and told.stderr == b"" and rb"query/\u732b/1.jpg (zero bytes)" in told.stdout


def test_names_in_the_record_of_a_loss_that_is_not_finite(launch, tiny, strange_root, tmp_path):
    rate = ["--config.stages.main.optimizer.learning_rate=1e30", "--config.stages.main.optimizer.schedule.warmup_epochs=0"]
    arguments = tiny(*rate, f"--workdir={tmp_path / 'run'}", config=FOLDER)
    line = launch("train.py", *arguments, f"--config.data.root={strange_root}").mistake("is not finite")
    told = json.loads((tmp_path / "run" / "not_finite.json").read_text())["images"]
    assert f"(first: {legible(told[0])})" in line and SHOWN in line


def test_a_run_folder_needs_a_name(launch, tiny, tmp_path):
    folder = f"{tmp_path}/{os.fsdecode(b'run' + bytes([0xFE]))}"
    line = launch("train.py", *tiny(f"--workdir={folder}")).mistake()
    words = "a run folder's name must be valid text (UTF-8); choose another --workdir"
    assert line == rf"error: {tmp_path}/run\xfe: {words}" and not Path(folder).exists()
