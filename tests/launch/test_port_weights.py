"""The command that brings weights from elsewhere here and back again, as a person runs it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from occreid_jax.weights import port
from occreid_jax.weights.pth import read_pth, write_pth
from tests.launch.conftest import listing
from tests.weights.checkpoints import WIDTH, google, same, timm, transreid

NAME = "port_weights.py"


def test_a_checkpoint_there_and_back(launch, tmp_path):
    write_pth(tmp_path / "transformer_120.pth", transreid())
    ours, back = tmp_path / "ours", tmp_path / "back"
    lines = launch(NAME, f"--source={tmp_path / 'transformer_120.pth'}", f"--out={ours}").fine().out.splitlines()
    assert len(lines) == len(transreid()) + 2
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines[:-2]}
    assert rows.keys() == transreid().keys()
    assert rows["base.sie_embed"] == ["6x1x8", "-> params/backbone/camera_embed"]
    assert rows["base.norm.bias"] == ["8", "left out: dead weight: with JPM the branches b1 and b2 stand in its place"]
    assert rows["bottleneck.num_batches_tracked"][0] == "scalar"
    assert "5 identities, 6 cameras, jigsaw patch module on" in lines[-2]
    assert (
        lines[-1] == f"written: {ours}/weights.safetensors ({len(rows)} tensors: {len(rows) - 21} used, 0 resized, 21 left out)"
    )
    assert listing(ours) == ["port.json", "weights.safetensors"]
    for _ in range(2):  # a folder that the command wrote is written again
        lines = launch(NAME, f"--source={ours}", "--to=pytorch", f"--out={back}").fine().out.splitlines()
    assert len(lines) == len(rows) - 21 + 2 and f"written: {back}/model.safetensors and {back}/model.pth" in lines[-1]
    expected = transreid(dead=False)
    assert same(load_file(back / "model.safetensors"), expected) and same(read_pth(back / "model.pth"), expected)


def test_a_compiled_model_inside_a_trainer(launch, tmp_path):
    prefix = "_orig_mod.model."
    save_file({prefix + name: array for name, array in timm().items()}, tmp_path / "compiled.safetensors")
    told = launch(NAME, f"--source={tmp_path / 'compiled.safetensors'}", f"--out={tmp_path / 'out'}").fine().out.splitlines()
    assert f"taken off, since it stands before every name: {prefix}" in told
    assert json.loads((tmp_path / "out" / "port.json").read_text())["prefix"] == prefix


def test_an_encoder_and_its_grid(launch, tmp_path):
    np.savez(tmp_path / "B_16.npz", **google())
    source, out = f"--source={tmp_path / 'B_16.npz'}", f"--out={tmp_path / 'out'}"
    kept = launch(NAME, source, out).fine().out
    assert "positions: 4x4, as they are in the source; another grid gets them resized when the weights are loaded" in kept
    resized = launch(NAME, source, out, "--grid=6x3").fine().out
    assert "resized -> pos_embed (4x4 to 6x3, bilinear)" in resized and "positions: 6x3, resized" in resized
    assert port.read_ported(tmp_path / "out")[0]["pos_embed"].shape == (1, 19, WIDTH)


def test_a_run_under_pytorchs_names(launch, trained, tmp_path):
    before = listing(trained)
    out = launch(NAME, f"--source={trained}", "--to=pytorch", f"--out={tmp_path / 'out'}").fine().out
    assert "16 identities" in out and "jigsaw patch module off" in out and listing(trained) == before
    arrays = read_pth(tmp_path / "out" / "model.pth")
    assert arrays["classifier.weight"].shape == (16, 32) and arrays["base.blocks.1.attn.qkv.weight"].shape == (96, 32)
    assert same(load_file(tmp_path / "out" / "model.safetensors"), arrays)
    # Back here, these are the very parameters of the run.
    from occreid_jax.train.start import read_run
    from occreid_jax.weights.trees import flatten

    stored = {path: np.asarray(array) for path, array in flatten(read_run(trained)).items()}
    ported = port.port(arrays)
    assert ported.family == "transreid" and same(ported.weights, {path: stored[path] for path in stored})


def test_a_memory_bank_there_and_back(launch, trained, tmp_path):
    write_pth(tmp_path / "memory.pth", {"any": np.arange(160, dtype=np.float32).reshape(5, 32)}, alone=True)
    ours, back = tmp_path / "ours", tmp_path / "back"
    told = launch(NAME, f"--source={tmp_path / 'memory.pth'}", "--bank=dpeformer", f"--out={ours}").fine().out.splitlines()
    assert told[0].split() == ["dpeformer_bank", "5x32", "->", "extra/bank"]
    assert told[1] == "the memory bank of DPEFormer: width 8, 5 identities"
    launch(NAME, f"--source={ours}", "--to=pytorch", f"--out={back}").fine()
    assert (back / "model.pth").read_bytes() == (tmp_path / "memory.pth").read_bytes()
    wrong = launch(NAME, f"--source={trained}", "--bank=fed", "--to=pytorch", f"--out={tmp_path / 'other'}")
    wrong.mistake(f"{trained}: a run of another method, whose models are those of TransReID", "leave --bank=fed out")
    assert not (tmp_path / "other").exists()


MISTAKES = {
    "no source": ([], "--source is missing"),
    "a source that is absent": (["--source=absent"], "absent: no such file or folder", "owner/name"),
    "a tensor that nobody knows": (["--source=unexplained.pth"], "unexplained.pth: 1 tensor is unexplained: base.extra"),
    "another network": (["--source=resnet.pth"], "resnet.pth: tensors such as conv1.weight", "belong to no network known"),
    "half of a file": (["--source=cut.pth"], "cut.pth: base.pos_embed is missing"),
    "a grid that is none": (["--source=vit.pth", "--grid=21"], "--grid=21: it must be ROWSxCOLUMNS"),
    "a grid for a whole model": (["--source=good.pth", "--grid=21x10"], "--grid is for encoders"),
    "a grid on the way back": (["--source=vit.pth", "--grid=21x10", "--to=pytorch"], "--grid has no effect with --to=pytorch"),
    "names of another world": (["--source=vit.pth", "--to=keras"], "keras", "pytorch"),
    "nothing to write back": (["--source=absent", "--to=pytorch"], "absent: no such file or folder"),
    "weights that were not ported": (["--source=foreign.safetensors", "--to=pytorch"], "not written by launch/port_weights.py"),
    "a bank without a word": (["--source=bank.pth"], "bank.pth: it holds one tensor without a name", "say whose with --bank"),
    "no bank": (["--source=good.pth", "--bank=fed"], "good.pth: it does not hold one tensor without a name", "leave --bank out"),
    "a named model": (["--source=foreign.safetensors", "--bank=fed"], "and no memory bank of fed; leave --bank=fed out"),
    "a bank of another shape": (["--source=odd.pth", "--bank=fed"], "odd.pth: fed_bank is 5x33; a bank has a row for every"),
    "a bank of none": (["--source=bank.pth", "--bank=transreid"], "--bank=transreid", "<fed|dpeformer>"),
    "a bank of weights": (["--source=vit.pth", "--bank=fed", "--to=pytorch"], "takes the bank of a run; of ported weights leave"),
    "no run": (["--source=norun", "--to=pytorch"], "norun: no run there (meta.json is missing)"),
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """A folder of files that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("wrong")
    good = transreid()
    write_pth(folder / "good.pth", good)
    write_pth(folder / "vit.pth", timm())
    write_pth(folder / "unexplained.pth", good | {"base.extra": np.zeros(3, np.float32)})
    write_pth(folder / "resnet.pth", {"conv1.weight": np.zeros((4, 3, 7, 7), np.float32)})
    write_pth(folder / "cut.pth", {name: array for name, array in good.items() if name != "base.pos_embed"})
    write_pth(folder / "bank.pth", {"any": np.zeros((5, 32), np.float32)}, alone=True)
    write_pth(folder / "odd.pth", {"any": np.zeros((5, 33), np.float32)}, alone=True)
    save_file(timm(), folder / "foreign.safetensors")
    (folder / "norun" / "checkpoints").mkdir(parents=True)
    (folder / "norun" / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(launch, wrong, case):
    arguments, *words = MISTAKES[case]
    before = listing(wrong)
    launch(NAME, *arguments, "--out=out", folder=wrong).mistake(*words)
    assert listing(wrong) == before


def test_folders_of_others_are_left_alone(launch, wrong, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for more in ([], ["--to=pytorch"]):
        finished = launch(NAME, "--source=good.pth", f"--out={tmp_path}", *more, folder=wrong)
        finished.mistake(f"{tmp_path}: holds notes.txt, which this command did not write there; choose another --out")
    assert listing(tmp_path) == ["notes.txt"]


def test_a_full_disk_leaves_nothing_half_written(launch, wrong, tmp_path):
    launch(NAME, "--source=good.pth", f"--out={tmp_path / 'out'}", folder=wrong, limit=15000).mistake(
        "cannot be written", "make room"
    )
    assert listing(tmp_path) == ["out"]
    report = launch(NAME, "--source=good.pth", f"--out={tmp_path / 'out'}", folder=wrong).fine()
    assert json.loads((tmp_path / "out" / "port.json").read_text())["source"] == "good.pth" and "written: " in report.out
