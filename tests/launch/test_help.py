"""``--help``: flags, what every config takes after its colon, and the settings to change, all from the places that hold them."""

from __future__ import annotations

import importlib

import pytest

from configs import common
from occreid_jax.config import flatten
from tests.launch.conftest import LAUNCH, ROOT
from tests.launch.test_homes import CONFIGS, WITH_FLAGS

WITH_CONFIG = [name for name in WITH_FLAGS if "define_config" in (LAUNCH / name).read_text()]


def words(text: str) -> str:
    return " ".join(text.split())


def arguments_of(module, monkeypatch) -> dict:
    """What a config hands to the parser of its argument, with defaults."""
    taken = {}

    def stop(arg, **defaults):
        taken.update(defaults)
        raise ValueError

    with monkeypatch.context() as patch, pytest.raises(ValueError):
        patch.setattr(common, "parse_arg", stop)
        module.get_config()
    return taken


@pytest.mark.parametrize("script", WITH_CONFIG)
def test_every_command_with_a_config_lists_them_all(launch, monkeypatch, script):
    out = words(launch(script, "--help").fine().out)
    assert "--config= config file, with its arguments after a colon: configs/baseline.py:dataset=market1501" in out
    configs = ["clip_pretraining"] if script == "pretrain_clip.py" else CONFIGS  # that command has one, and shows all of it
    for name in configs:
        module = importlib.import_module(f"configs.{name}")
        taken = arguments_of(module, monkeypatch)
        told = ", ".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in taken.items())
        assert taken and f"configs/{name}.py: {words(module.__doc__)[:40]}" in out and words(told) in out
    assert f"dataset is one of {', '.join(common.DATASETS)}" in out


def test_settings_for_a_first_run(launch):
    lines = launch("train.py", "--help").fine().out.splitlines()
    assert "  --workdir=                            run folder (default: runs/<method>-<dataset>)" in lines
    assert "  --config.data.cache=                  decoded tables; empty: <root>/.tables" in lines
    assert "  --config.mesh.devices=0               0: all devices" in lines
    assert "  --config.data.image_size=128,64" in lines and "  --config.stages.main.epochs=20" in lines
    assert lines[-1] == "All settings of a config: --config=configs/baseline.py --help"


@pytest.mark.parametrize("name", CONFIGS)
def test_all_settings_of_a_config(launch, name):
    path = ROOT / "configs" / f"{name}.py"
    out = launch("train.py", f"--config={path}:size=small", "--help").fine().out
    module = importlib.import_module(f"configs.{name}")
    assert f"{path}: {module.__doc__.splitlines()[0]}" in out
    assert f"After the colon of --config={path}:, as name=value with commas between (here with their defaults):" in out
    values = flatten(module.get_config("size=small").to_dict())
    listed = [line.split("=")[0].strip() for line in out.splitlines() if line.startswith("  --config.")]
    assert listed == [f"--config.{key}" for key in sorted(values)]
    assert f"  --config.evaluation.batch_size={values['evaluation.batch_size']}" in out.splitlines()


def test_words_stand_with_the_setting_that_they_are_about(launch):
    out = launch("train.py", f"--config={ROOT / 'configs' / 'baseline.py'}", "--help").fine().out.splitlines()
    flip = "average the features of a picture and of its mirror image"
    assert f"  --config.evaluation.flip=false        {flip}" in out and "  --config.stages.main.augment.flip=0.5" in out
    assert sum(flip in line for line in out) == 1


def test_help_about_a_config_that_is_not_there(launch, tmp_path):
    line = launch("train.py", "--config=baselin.py", "--help", folder=tmp_path).mistake()
    assert line == "error: --config=baselin.py: no such file; for example --config=configs/baseline.py"
    line = launch("train.py", f"--config={ROOT / 'configs' / 'fed.py'}:row=nothing", "--help").mistake("row=nothing: unknown row")
    assert "known: " in line


@pytest.mark.parametrize("script", [name for name in WITH_FLAGS if name not in WITH_CONFIG])
def test_commands_without_a_config(launch, script):
    out = launch(script, "--help").fine().out
    assert out.startswith(ast_doc(script)) and "Flags:\n  --" in out and "--config.seed" not in out


def ast_doc(script: str) -> str:
    import ast

    return ast.get_docstring(ast.parse((LAUNCH / script).read_text()))
