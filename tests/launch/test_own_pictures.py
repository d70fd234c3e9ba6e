"""From a flat folder of crops under made-up names to a trained model and a ranked page, by the commands that the README shows."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import numpy as np
import pytest

from occreid_jax import synthetic
from tests.launch.conftest import ROOT

PEOPLE = (
    "ada ben cleo dan eve finn gwen hal ines jon kim leo mia ned ola pat quin ros sam tia uma vic wes xia yan zoe abe bea cal dot"
)


@pytest.fixture
def crops(tmp_path):
    """300 rendered crops of 30 people in one folder, as gate<camera>_<name>_<number>.jpg."""
    source = synthetic.generate(tmp_path / "rendered", "demo", "occluded", 0, lambda done, total: None)
    own: dict[str, list] = {}
    for path in sorted((source / "bounding_box_train").iterdir()):
        own.setdefault(path.name[:4], []).append(path)
    root = tmp_path / "crops"
    root.mkdir()
    rich = [paths for paths in own.values() if len(paths) >= 10]
    for name, paths in zip(PEOPLE.split(), rich, strict=False):
        for number, path in enumerate(paths[:10]):
            camera = re.search(r"_c(\d+)", path.name)[1]
            shutil.copy(path, root / f"gate{camera}_{name}_{number:03d}.jpg")
    assert len(list(root.iterdir())) == 300
    return root


def commands(root, workdir) -> list[list[str]]:
    """Those of the README that begin with own pictures, with the user's folders in them."""
    text = (ROOT / "README.md").read_text()
    block = next(block for block in re.findall(r"```\n(.*?)```", text, re.S) if "people --root=DIR" in block)
    lines = [line.partition("  #")[0].replace("DIR", str(root)).replace("runs/own", str(workdir)) for line in block.splitlines()]
    found = [shlex.split(line) for line in lines if line]
    assert all(line[0] == "python" for line in found) and len(found) == 3
    return [line[1:] for line in found]


@pytest.mark.slow
def test_the_readme_leads_to_a_ranked_page(crops, launch, tmp_path):
    workdir = tmp_path / "run"
    look, keep, train = commands(crops, workdir)
    told = launch(look[0].removeprefix("launch/"), *look[1:]).fine().out
    assert "300 pictures of 30 people, 10 to 10 each" in told and "6 cameras" in told and not (crops / "people.csv").exists()
    launch(keep[0].removeprefix("launch/"), *keep[1:]).fine()
    arguments = [part.replace("--config=", f"--config={ROOT}/") for part in train[1:]]
    last = launch(train[0].removeprefix("launch/"), *arguments).fine().out.splitlines()[-1]
    assert "(folder/cameras-by-table@1)" in last
    results = json.loads((workdir / "results.json").read_text())
    assert results["queries"] >= 30 and results["mAP"] > results["untrained_mAP"]
    page = (workdir / "report" / "index.html").read_text()
    assert page.count("data:image/jpeg") > 50


def test_own_pictures_through_the_commands(launch, tiny, tmp_path, people_root):
    """A flat folder of the tiny set's pictures, with the smallest network: preview, table, training."""
    root = tmp_path / "flat"
    root.mkdir()
    for path in sorted(people_root.rglob("*.jpg")):
        person, camera = path.name[:4], re.search(r"_c(\d)", path.name)[1]
        shutil.copy(path, root / f"gate{camera}_p{person}_{path.parent.parent.name}{path.stem[-9:-3]}.jpg")
    (root / "holiday.jpg").write_bytes((root / "gate1_p0001_train000000.jpg").read_bytes())
    pattern = "--pattern={camera}_{identity}_*"
    told = launch("prepare_data.py", "people", f"--root={root}", pattern).fine().out
    assert "NOT READ: 1 pictures that name nobody: holiday.jpg" in told and "nothing is written" in told
    launch("prepare_data.py", "people", f"--root={root}").mistake("no picture was understood", "--pattern")
    launch("prepare_data.py", "people", f"--root={root}", pattern, "--write").fine()
    launch("prepare_data.py", "people", f"--root={root}", pattern, "--write").mistake("people.csv is there already; remove it")
    rows = (root / "people.csv").read_text().splitlines()
    assert rows[0] == "path,identity,camera,split" and len(rows) == 1 + 216
    assert np.unique([row.split(",")[1] for row in rows[1:]]).size == 24
    config = f"{ROOT / 'configs' / 'baseline.py'}:dataset=folder,backbone=micro,stride=16"
    arguments = tiny(f"--workdir={tmp_path / 'run'}", config=config, root=root)
    assert "(folder/cameras-by-table@1)" in launch("train.py", *arguments).fine().out.splitlines()[-1]
