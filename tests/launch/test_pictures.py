"""People's own pictures through the commands: deep grey, other formats, damaged metadata, single pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.launch.conftest import ROOT

FOLDER = f"{ROOT / 'configs' / 'baseline.py'}:dataset=folder,backbone=micro,stride=16"
BITS = "16-bit, of which the lower 10 bits are used (the set has no larger value)"


@pytest.fixture
def own(tmp_path):
    """make(shots=): four people in every split as 16-bit grey pictures with values up to 800, one of the gallery's up to 1023."""

    def make(shots: int = 4):
        for role in ("train", "query", "gallery"):
            for person in range(4):
                folder = tmp_path / "set" / role / f"p{person}"
                folder.mkdir(parents=True)
                for shot in range(shots):
                    values = np.random.default_rng([person, shot]).integers(0, 800, (32, 16)).astype(np.uint16)
                    if (role, person, shot) == ("gallery", 3, 0):
                        values[0, 0] = 1023
                    Image.fromarray(values).save(folder / f"{shot}.png")
        return tmp_path / "set"

    return make


def test_ten_bits_keep_their_contrast(launch, tiny, own, tmp_path):
    root = own()
    arguments = tiny(f"--config.data.root={root}", f"--workdir={tmp_path / 'run'}", config=FOLDER)
    lines = launch("train.py", *arguments).fine().out.splitlines()
    for role in ("train", "query", "gallery"):
        assert f"{role}: 16 images converted to RGB: {BITS}" in lines
    tables = {}
    for index in (root / ".tables").glob("*/index.json"):
        facts = json.loads(index.read_text())
        tables[facts["names"][0]] = np.load(index.parent / "images.npy")
    values = np.random.default_rng([0, 0]).integers(0, 800, (32, 16))
    for role in ("train", "query", "gallery"):  # the same values are the same grey everywhere
        np.testing.assert_array_equal(tables[f"{role}/p0/0.png"][0], np.repeat(values[..., None] >> 2, 3, axis=2))
    told = launch("prepare_data.py", "doctor", "--dataset=folder", f"--root={root}").fine().out.splitlines()
    assert "16-bit images: the largest value of the set has 10 bits, of which the upper 8 are kept" in told
    made = ["tables", "--dataset=folder", f"--root={root}", "--height=32", "--width=16"]
    assert f"train: 16 images converted to RGB: {BITS}" in launch("prepare_data.py", *made).fine().out.splitlines()


def test_pictures_left_out_are_told(launch, tiny, own, tmp_path):
    root = own()
    for person in range(4):
        Image.open(root / "train" / f"p{person}" / "1.png").convert("RGB").save(root / "train" / f"p{person}" / "1.webp")
        (root / "train" / f"p{person}" / "1.png").unlink()
        (root / "train" / f"p{person}" / "2.png").rename(root / "train" / f"p{person}" / "2.heic")
    arguments = tiny(f"--config.data.root={root}", f"--workdir={tmp_path / 'run'}", config=FOLDER)
    lines = launch("train.py", *arguments).fine().out.splitlines()
    assert "note: train: PICTURES LEFT OUT: 4 .heic files cannot be decoded: save them as .png or .jpg" in lines
    assert any(line.startswith("  train        12 images       4 identities") for line in lines)


def test_single_pictures_and_batches_that_are_left_out(launch, tiny, own, tmp_path):
    more = ["--config.loop.accumulate=2", "--config.stages.main.sampler.batch_size=8", "--config.stages.main.epochs=3"]
    arguments = tiny(f"--config.data.root={own(1)}", *more, f"--workdir={tmp_path / 'run'}", config=FOLDER)
    lines = launch("train.py", *arguments).fine().out.splitlines()
    single = "4 of 4 training identities have a single picture: a batch holds 4 copies of it"
    assert f"note: stage 'main': {single}, and no pair of different pictures to bring together" in lines
    more[1] = "--config.stages.main.sampler.batch_size=4"
    arguments = tiny(f"--config.data.root={tmp_path / 'set'}", *more, f"--workdir={tmp_path / 'other'}", config=FOLDER)
    words = "sampler.batch_size is 4 with 4 images of each identity: a batch has one person and nobody to tell apart; set it to 8"
    assert launch("train.py", *arguments).mistake().startswith(f"error: {words}") and not (tmp_path / "other").exists()
