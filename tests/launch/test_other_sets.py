"""Runs on sets with unknown cameras or none, and evaluated on other sets: what people do with their own pictures."""

import json

import pytest

from .conftest import ROOT

TRANSREID = ROOT / "configs" / "transreid.py"
REPORT = ("--config.report.enabled=true", "--config.report.queries=3")
NOT_TRAINED = (
    "cameras 2, 5 (query and gallery) had no picture in training (with cameras 1, 3 of market1501): they get the mean of the "
    "trained camera vectors (config.evaluation.camera)"
)
NO_CAMERAS = (
    "query and gallery pictures have no cameras: they get the mean of the trained camera vectors (config.evaluation.camera)"
)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def notes(finished, *words):
    """The note lines of a command that hold one of the words."""
    return [line for line in finished.out.splitlines() if line.startswith("note: ") and any(word in line for word in words)]


@pytest.fixture(scope="module")
def gap_run(launch, tiny, gap_root, tmp_path_factory):
    """(run folder, what the command said): TransReID trained on cameras 1 and 3, tested on 1, 2, 3 and 5."""
    folder = tmp_path_factory.mktemp("runs") / "gap"
    config = f"{TRANSREID}:dataset=market1501,backbone=micro,stride=16"
    return folder, launch("train.py", *tiny(*REPORT, f"--workdir={folder}", config=config, root=gap_root, size="64,32")).fine()


@pytest.fixture(scope="module")
def people_run(launch, tiny, people_root, tmp_path_factory):
    """(run folder, what the command said): TransReID trained on people's own pictures without cameras."""
    folder = tmp_path_factory.mktemp("runs") / "people"
    config = f"{TRANSREID}:dataset=folder,backbone=micro,stride=16"
    return folder, launch("train.py", *tiny(*REPORT, f"--workdir={folder}", config=config, root=people_root, size="64,32")).fine()


def test_cameras_that_were_not_in_training(launch, gap_run):
    folder, trained = gap_run
    assert notes(trained, "camera") == [f"note: {NOT_TRAINED}"]
    before = results(folder)
    assert before["protocol"] == "market1501/std@1+camera=auto"
    again = launch("evaluate.py", f"--workdir={folder}").fine()
    assert notes(again, "camera") == [f"note: {NOT_TRAINED}"]
    assert {**results(folder), "seconds": 0} == {**before, "seconds": 0, "untrained_mAP": None}
    launch("evaluate.py", f"--workdir={folder}", "--camera=own").mistake(
        "camera=own: camera 2 of market1501 (query) had no picture in training", "auto, mean or zero"
    )
    launch("evaluate.py", f"--workdir={folder}", "--camera=both").mistake("config.evaluation.camera", "own", "dpm")
    launch("evaluate.py", f"--workdir={folder}", "--camera=mean").fine()
    assert results(folder / "evaluations" / "camera-mean")["protocol"] == "market1501/std@1+camera=mean"
    launch("report.py", f"--workdir={folder}").fine()
    assert "+camera=auto" in (folder / "report" / "index.html").read_text()


def test_own_pictures_without_cameras(launch, people_run):
    folder, trained = people_run
    off = "note: the training set has no cameras, so the method's camera embedding is off (config.method.camera)"
    assert notes(trained, "camera embedding") == [off]
    before = results(folder)
    assert before["protocol"] == "folder/no-cameras@1"
    for more in ((), ("--flip",), ("--best",)):
        assert notes(launch("evaluate.py", f"--workdir={folder}", *more).fine(), "camera embedding") == [off]
    assert {**results(folder), "seconds": 0} == {**before, "seconds": 0}
    launch("report.py", f"--workdir={folder}").fine()


def test_a_run_with_cameras_on_a_set_without(launch, gap_run, people_root):
    folder, _ = gap_run
    other = launch("evaluate.py", f"--workdir={folder}", "--dataset=folder", f"--root={people_root}").fine()
    assert notes(other, "mean of") == [f"note: {NO_CAMERAS}"]
    assert "folder/no-cameras@1+camera=mean" in other.out.splitlines()[-1]
