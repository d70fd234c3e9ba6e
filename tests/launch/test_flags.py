"""Flags that ml_collections reads in a way of its own."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest

from tests.launch.conftest import LAUNCH, ROOT
from tests.launch.test_homes import CONFIGS

BASELINE = ROOT / "configs" / "baseline.py"


def tuples(config, prefix="config"):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from tuples(value, f"{prefix}.{key}")
        elif isinstance(value, tuple):
            yield f"{prefix}.{key}"


def test_the_last_of_several_tuples_counts(launch, tmp_path):
    """For every key of every config that holds a tuple, given twice with "=" and once apart."""
    program = tmp_path / "show.py"
    program.write_text(
        "import json, command\n"
        "CONFIG = command.define_config()\n"
        "def main():\n"
        "    print(json.dumps({key: value for key, value in CONFIG.value.to_dict().items()}, default=str))\n"
        "if __name__ == '__main__':\n"
        "    command.run(main)\n"
    )
    found = 0
    for name in CONFIGS:
        config = importlib.import_module(f"configs.{name}").get_config()
        for key in tuples(config):
            value = config
            for part in key.split(".")[1:]:
                value = value[part]
            text = json.dumps(value)[1:-1] if value and not isinstance(value[0], tuple) else "('a', 1.0), ('b', 2.0)"
            arguments = [f"--{key}=7,8", f"--{key}=9", f"--{key}", f"({text},)"]
            shown = json.loads(launch(str(program), f"--config={ROOT / 'configs' / name}.py", *arguments).fine().out)
            for part in key.split(".")[1:]:
                shown = shown[part]
            assert shown == json.loads(json.dumps(value)) or key.endswith("groups") and shown == [["a", 1.0], ["b", 2.0]], key
            found += 1
    assert found > 20


@pytest.mark.parametrize("arguments, size", [(["=32,16", "=64,32"], (64, 32)), (["=32,16", "=32,16"], (32, 16))])
def test_the_size_of_pictures_given_twice(launch, tmp_path, arguments, size):
    given = [f"--config.data.image_size{argument}" for argument in arguments]
    last = ["--config.method.patch=80", f"--workdir={tmp_path / 'run'}"]  # too large, so that the size is told
    launch("train.py", f"--config={BASELINE}", *given, *last).mistake(f"config.data.image_size {size}")


@pytest.mark.parametrize("asked", ["cuda", "abacus"])  # JAX fails in two ways: with an assertion, and with words of its own
def test_no_accelerator(tmp_path, asked):
    command = [sys.executable, str(LAUNCH / "port_weights.py"), "--source=absent.pth", f"--out={tmp_path / 'out'}"]
    environment = os.environ | {"JAX_PLATFORMS": asked, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert told.returncode == 1 and told.stdout == "" and len(told.stderr.splitlines()) == 1
    assert told.stderr.startswith(f"error: JAX_PLATFORMS={asked}: no such device can be used here")
    remedy = "; unset JAX_PLATFORMS to take what this machine has, or install JAX for it: "
    remedy += "pip install 'occreid_jax[cuda]' or '[tpu]'"
    assert told.stderr.endswith(f"{remedy}\n") and not (tmp_path / "out").exists()
