"""Compiling for chips that are not there: one line for every mistake; what is printed and written for the smallest program."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest

from occreid_jax.errors import UserError
from occreid_jax.programs import compiled, topologies
from tests.launch.conftest import ROOT

HERE = importlib.util.find_spec("libtpu") is not None
needs_compiler = pytest.mark.skipif(not HERE, reason="libtpu is not installed: pip install -e '.[tpu]'")
CONFIG = f"--config={ROOT / 'configs' / 'baseline.py'}:dataset=market1501,backbone=micro"


@pytest.mark.parametrize("name", ["v5e:2x3", "v9:2x2", "v5e", "h100:3", "h100"])
def test_unknown_topologies_are_told_with_those_that_work(name):
    with pytest.raises(UserError, match=rf"^topology '{name}' is unknown; .*v5e: 2x2 2x4 .* 16x16;.*h100: 1 2 4 8$"):
        topologies.open_topology(name)


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x4", "tpu"), ("h100:8", "cuda")])
def test_a_compiler_that_is_missing(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = rf'^topology \'{name}\' needs the {extra.upper()} compiler: pip install -e "\.\[{extra}\]"; it works without'
    with pytest.raises(UserError, match=told):
        topologies.open_topology(name)


def test_what_a_gpu_compiler_is_told():
    assert topologies.compiler_options("v5e:2x4") == {}
    assert topologies.compiler_options("h100:8") == {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}


def test_words_about_a_program_that_is_too_large():
    told = "RESOURCE_EXHAUSTED: ... required for HLO temporaries (54.22G) exceeds available HBM (15.75G)."
    remedy = "smaller --batch, --config.method.remat=true where the method has it, --config.mesh.shard_optimizer=true"
    remedy += ", or more chips"
    assert compiled.too_large("main", told) == f"main: needs 54.22 of 15.75 GiB of a chip: {remedy}"
    assert compiled.too_large("main", "RESOURCE_EXHAUSTED") == f"main: needs more memory than a chip has: {remedy}"


def test_shallow_networks_are_deep_again_afterwards():
    from occreid_jax.nn import clip, vit

    before = dict(vit.SIZES), dict(clip.VISUAL)
    with compiled.shallow(3):
        assert (vit.SIZES["base"].depth, vit.SIZES["micro"].depth) == (3, 2)
        assert clip.VISUAL["vit_b16"].text.depth == 3 and clip.VISUAL["rn50"].visual == before[1]["rn50"].visual
    assert (dict(vit.SIZES), dict(clip.VISUAL)) == before
    with compiled.shallow(0):
        assert dict(vit.SIZES) == before[0]


def test_the_topology_is_missing(launch):
    launch("compile.py", CONFIG).mistake("--topology is missing")


@needs_compiler
@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--stage=prompts", "this config has no stage 'prompts'; it has main, embed"),
        ("--batch=30", "stage 'main': a batch of 30 does not divide over 4 chips; give --batch=32, or another multiple of 4"),
        ("--options=fast", "--options=fast: give NAME=VALUE"),
    ],
)
def test_wrong_arguments(launch, argument, told):
    launch("compile.py", CONFIG, "--topology=v5e:2x2", argument).mistake(told)


@needs_compiler
@pytest.mark.slow
def test_an_embedding_for_four_chips(launch, tmp_path):
    """Small pictures, so that this takes seconds; stderr must be silent, though the compiler looks for a machine's own chips."""
    arguments = ["--config.data.image_size=32,16", "--topology=v5e:2x2", "--stage=embed", "--batch=16"]
    arguments += [f"--json={tmp_path / 'found.json'}", f"--dump={tmp_path / 'dump'}"]
    out = launch("compile.py", CONFIG, *arguments).fine().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["topology"], found["dtype"]) == ("v5e:2x2", "bfloat16")  # "auto" asks not what this machine has
    (row,) = found["programs"]
    assert (row["program"], row["chips"], row["device"], row["batch_size"]) == ("embed", 4, "TPU v5 lite", 16)
    assert row["memory"]["chip"] == 16 * 2**30 and row["memory"]["arguments"] > 4 * 32 * 16 * 3
    features = 16 * 32 * 4  # the whole batch's, float32, on every chip
    assert [(each["kind"], each["bytes"]) for each in row["collectives"]] == [("all-gather", features)]
    assert sum(row["estimate"]["phases"].values()) == pytest.approx(row["estimate"]["compute_seconds"]) and row["loops"] == []
    assert "4 x TPU v5 lite (v5e:2x2)" in out and "embed: batch 16 (4 a chip)" in out and "images/s" in out
    assert os.listdir(tmp_path / "dump") == ["baseline-embed.hlo"]
