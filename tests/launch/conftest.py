"""Launch commands as a person runs them: arguments in, exit status and both streams out."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from occreid_jax import synthetic

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCH = ROOT / "launch"


@dataclasses.dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    out: str
    err: str

    def mistake(self, *words: str) -> str:
        """The one line of a command that a user's mistake ended; every one of ``words`` must stand in it."""
        assert self.status not in (0, None) and self.status > 0, (self.status, self.out, self.err)
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.err
        assert "Traceback" not in self.out + self.err
        for word in words:
            assert word.lower() in lines[0].lower(), f"'{word}' is not in: {lines[0]}"
        return lines[0]

    def fine(self) -> Finished:
        """The command, which must have succeeded without a word on stderr."""
        assert self.status == 0 and self.err == "", (self.status, self.out[-2000:], self.err)
        return self


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """``launch("train.py", *arguments, folder=, limit=, bound=, NAME=)`` runs a command in a warm process. ``limit`` is the
    largest file; with ``bound``, permissions hold as for everybody; names in capitals are added to the environment."""
    outputs = tmp_path_factory.mktemp("outputs")
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    worker = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "worker.py"), str(LAUNCH)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert worker.stdout.readline() == "ready\n"
    count = 0

    def run(script: str, *arguments, folder: Path = outputs, limit: int = 0, bound: bool = False, **environment) -> Finished:
        nonlocal count
        count += 1
        output = outputs / f"{count:03d}"
        request = {
            "script": str(LAUNCH / script),
            "arguments": [str(argument) for argument in arguments],
            "folder": str(folder),
            "limit": limit,
            "bound": bound,
            "environment": environment,
            "output": str(output),
        }
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
        status = int(worker.stdout.readline())
        return Finished(status, output.with_suffix(".out").read_text(), output.with_suffix(".err").read_text())

    yield run
    worker.stdin.close()
    worker.wait(30)


@pytest.fixture(scope="session")
def tiny(market_root):
    """Arguments of a training that takes seconds: two epochs, a micro backbone, pictures of 32x16."""

    def arguments(*more: str, config: str = "", argument: str = "", root: str | Path = "", size: str = "32,16") -> list[str]:
        config = config or f"{ROOT / 'configs' / 'baseline.py'}:dataset=market1501,backbone=micro,stride=16{argument}"
        return [
            f"--config={config}",
            f"--config.data.root={root or market_root}",
            f"--config.data.image_size={size}",
            "--config.stages.main.epochs=2",
            "--config.stages.main.sampler.batch_size=16",
            "--config.mesh.devices=1",
            "--config.evaluation.batch_size=24",
            "--config.evaluation.untrained=false",
            "--config.report.enabled=false",
            *more,
        ]

    return arguments


@pytest.fixture(scope="session")
def trained(launch, tiny, tmp_path_factory) -> Path:
    """The run folder of a finished tiny training; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    finished = launch("train.py", *tiny(f"--workdir={folder}")).fine()
    assert "mAP" in finished.out.splitlines()[-1]
    return folder


@pytest.fixture
def run_copy(trained, tmp_path) -> Path:
    """A copy of the trained run folder that may be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """The set "demo" with a few small pictures; commands take it for the whole one."""
    root = tmp_path_factory.mktemp("data")
    few = dict(train_identities=8, train_images=40, test_identities=6, query_images=12, gallery_images=36)
    few |= dict(distractor_identities=1, distractor_images=2, junk_images=1)
    size = dataclasses.replace(synthetic.SIZES["demo"], height=64, width=32, **few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(synthetic.SIZES, "demo", size)
        synthetic.generate(root / "synthetic" / f"demo-occluded-0-v{synthetic.VERSION}", "demo", "occluded")
    return root


def listing(folder: Path) -> list[str]:
    """Every file and folder below ``folder``."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))
