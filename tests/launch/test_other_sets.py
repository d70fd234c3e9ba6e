"""Runs on sets with unknown cameras or none, and evaluated on other sets: what people do with their own pictures."""

import html
import json
import shutil
from pathlib import Path

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
    before = (folder / "results.json").read_bytes()
    other = launch("evaluate.py", f"--workdir={folder}", "--dataset=folder", f"--root={people_root}").fine()
    assert notes(other, "mean of") == [f"note: {NO_CAMERAS}"]
    assert "folder/no-cameras@1+camera=mean" in other.out.splitlines()[-1]
    assert (folder / "results.json").read_bytes() == before


# Where results go ---------------------------------------------------------------------------------------------------------


def written(finished):
    """The folder that an evaluation wrote into."""
    (line,) = [line for line in finished.out.splitlines() if line.startswith("written: ")]
    return Path(line.removeprefix("written: ")).parent


def kept(folder):
    return {name: (folder / name).read_bytes() for name in ("results.json", "evaluation.npz")}


def test_results_of_other_pictures_never_replace_the_runs_own(launch, people_run, people_root, tmp_path):
    folder, _ = people_run
    own = kept(folder)
    others = []
    for name, people in (("fewer", 4), ("fewest", 2)):
        root = tmp_path / name
        for role in ("train", "query", "gallery"):
            (root / role).mkdir(parents=True)
            for person in sorted((people_root / role).iterdir())[: people if role != "train" else None]:
                (root / role / person.name).symlink_to(person)
        for more in ((), ("--flip",)):
            others.append(written(launch("evaluate.py", f"--workdir={folder}", f"--root={root}", *more).fine()))
            assert results(others[-1])["queries"] == 3 * people
    assert len(set(others)) == 4 and all(other.parent == folder / "evaluations" for other in others)
    assert [other.name.split("-")[0] for other in others] == ["folder"] * 4
    assert others[1].name == f"{others[0].name}-flip"
    assert kept(folder) == own
    launch("report.py", f"--workdir={folder}").fine()
    launch("report.py", f"--workdir={folder}", f"--root={tmp_path / 'fewer'}").mistake("other query pictures", "--root")


def test_a_set_that_was_moved_is_still_the_runs_own(launch, people_run, people_root, tmp_path):
    folder, _ = people_run
    shutil.copytree(people_root, tmp_path / "moved")
    assert written(launch("evaluate.py", f"--workdir={folder}", f"--root={tmp_path / 'moved'}").fine()) == folder
    launch("report.py", f"--workdir={folder}", f"--root={tmp_path / 'moved'}").fine()


def test_results_without_a_hash_are_told_by_their_place(launch, people_run, people_root, tmp_path):
    """Results of older versions do not tell their pictures."""
    folder = Path(shutil.copytree(people_run[0], tmp_path / "run"))
    old = {name: value for name, value in results(folder).items() if name != "pictures_sha256"}
    (folder / "results.json").write_text(json.dumps(old))
    shutil.copytree(people_root, tmp_path / "copy")
    out = written(launch("evaluate.py", f"--workdir={folder}", f"--root={tmp_path / 'copy'}").fine())
    assert out.parent == folder / "evaluations" and json.loads((folder / "results.json").read_text()) == old
    assert written(launch("evaluate.py", f"--workdir={folder}").fine()) == folder
    assert "pictures_sha256" in results(folder)


# Test sets alone ----------------------------------------------------------------------------------------------------------


def test_a_test_set_is_enough_for_an_evaluation(launch, tiny, people_run, people_root, gap_run, gap_root, tmp_path):
    """Also for the run's own set, which is recognised, and for its report, which shows no training pictures then."""
    folder, alone = people_run[0], tmp_path / "people"
    for role in ("query", "gallery"):
        shutil.copytree(people_root / role, alone / role)
    before = results(folder)
    finished = launch("evaluate.py", f"--workdir={folder}", f"--root={alone}").fine()
    assert notes(finished, "there is no") == ["note: there is no train/, so this set can be evaluated and not trained on"]
    assert written(finished) == folder and results(folder) == before | {"seconds": results(folder)["seconds"]}
    launch("report.py", f"--workdir={folder}", f"--root={alone}").fine()
    shutil.copytree(gap_root / "query", tmp_path / "gap" / "query")
    shutil.copytree(gap_root / "bounding_box_test", tmp_path / "gap" / "bounding_box_test")
    assert written(launch("evaluate.py", f"--workdir={gap_run[0]}", f"--root={tmp_path / 'gap'}").fine()) == gap_run[0]
    config = f"{TRANSREID}:dataset=folder,backbone=micro,stride=16"
    train = tiny(f"--workdir={tmp_path / 'run'}", config=config, root=alone, size="64,32")
    launch("train.py", *train).mistake("has no folder train")


# What the doctor calls a problem ------------------------------------------------------------------------------------------


def test_problems_of_the_pictures_are_told(launch, tiny, market_root, tmp_path):
    """Queries copied into the gallery, a person of the training set in the test set, a query without a match."""
    root = tmp_path / "faulty"
    shutil.copytree(market_root / "market1501", root)
    shutil.copy(root / "query" / "0017_c1s1_000000_00.jpg", root / "bounding_box_test" / "0017_c2s1_000000_00.jpg")
    shutil.copy(root / "query" / "0018_c1s1_000000_00.jpg", root / "bounding_box_train" / "0018_c1s1_000009_00.jpg")
    for path in (root / "bounding_box_test").glob("0024_c[23]*"):
        path.unlink()
    lines = [
        "problem: 1 queries have no match at another camera and will be skipped: query/0024_c1s1_000000_00.jpg",
        "problem: 1 identities are in the training set and in the test set: 18",
        "problem: files that are in query and in gallery and that the camera rule does not leave out: 1 (for example "
        "query/0017_c1s1_000000_00.jpg = bounding_box_test/0017_c2s1_000000_00.jpg)",
        "problem: files that are in train and in query: 1 (for example bounding_box_train/0018_c1s1_000009_00.jpg = "
        "query/0018_c1s1_000000_00.jpg)",
    ]
    folder = tmp_path / "run"
    trained = launch("train.py", *tiny("--config.report.enabled=true", f"--workdir={folder}", root=root)).fine()
    again = launch("evaluate.py", f"--workdir={folder}").fine()
    for finished in (trained, again):
        assert [line for line in finished.out.splitlines() if line.startswith("problem: ")] == lines
    page = (folder / "report" / "index.html").read_text()
    assert all(html.escape(line) in page for line in lines)


def test_first_hits_that_are_tied_are_told(launch, people_run, people_root, tmp_path):
    """Every picture of query and gallery is the same file."""
    first = next((people_root / "query").rglob("*.jpg"))
    for role in ("query", "gallery"):
        for person in (people_root / role).iterdir():
            (tmp_path / role / person.name).mkdir(parents=True)
            for picture in person.iterdir():
                shutil.copy(first, tmp_path / role / person.name / picture.name)
    finished = launch("evaluate.py", f"--workdir={people_run[0]}", f"--root={tmp_path}").fine()
    assert finished.out.splitlines()[-2] == (
        "note: the features of all pictures are nearly equal (mean cosine 1.000000); 24 of 24 first hits are exactly as far as "
        "another person's picture: their order is chance"
    )


@pytest.mark.slow  # renders the benchmark
def test_a_run_on_real_pictures_is_tested_on_the_embedded_benchmark(launch, gap_run, tmp_path):
    folder, _ = gap_run
    arguments = [f"--workdir={folder}", "--dataset=synthetic", f"--root={tmp_path}"]
    launch("evaluate.py", *arguments, "--protocol=demo").mistake("size and a split, such as small-holistic")
    assert "(synthetic-demo-holistic/std@" in launch("evaluate.py", *arguments, "--protocol=demo-holistic").fine().out
    assert "(synthetic-demo-occluded/std@" in launch("evaluate.py", *arguments).fine().out
