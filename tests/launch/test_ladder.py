"""launch/ladder.py on a rendered set of a few people: the rungs, what they are made of, and that they stay in results.json."""

from __future__ import annotations

import pytest

from configs import fed
from occreid_jax.files import read_json, write_json
from occreid_jax.methods.locations import SOURCES, share_of_gap
from occreid_jax.train.ladder import shares, with_sources
from tests.launch.conftest import ROOT


def arguments(tiny, people, workdir, name: str, *more: str) -> list[str]:
    config = f"{ROOT / 'configs' / name}:backbone=micro,pretrained=false"
    kind = "--config.stages.main.augment.occlusion.kind=erasing"  # no library has to be rendered
    return tiny(f"--workdir={workdir}", kind, "--config.stages.main.epochs=1", *more, config=config, root=people, size="64,32")


def test_sources_of_a_copy():
    config = fed.get_config()
    assert with_sources(config, test="truth").method.location.to_dict() == {"train": "learned", "test": "truth"}
    assert config.method.location.test == "learned"
    del config.method.location  # as in runs that are older than the setting
    assert with_sources(config, train="random").method.location.to_dict() == {"train": "random"}


def test_shares_of_rungs():
    order = ("constant", "learned", "truth", "random")
    rungs = {source: {"mAP": 10.0 * number, "rank1": 7.0} for number, source in enumerate(order)}
    assert shares(rungs) == {"mAP": 0.5, "rank1": None}


def test_a_method_that_localises_nothing(launch, trained):
    line = launch("ladder.py", f"--workdir={trained}").mistake()
    assert line == f"error: {trained}: method 'baseline' localises nothing with the settings of this run, so it has no ladder"


def test_sets_without_ground_truth(launch, tiny, tmp_path):
    config = f"{ROOT / 'configs' / 'fed.py'}:dataset=market1501,backbone=micro,stride=16"
    more = ("--config.method.location.train=constant", f"--workdir={tmp_path / 'run'}")
    line = launch("train.py", *tiny(*more, config=config)).mistake("market1501 has no body-part labels, which this config asks")
    assert "set config.method.location to learned or random" in line and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_ladder_of_a_run(launch, tiny, people, tmp_path):
    run = tmp_path / "run"
    launch("train.py", *arguments(tiny, people, run, "fed.py")).fine()
    plain = read_json(run / "results.json")
    out = launch("ladder.py", f"--workdir={run}").fine().out
    assert "what is seen of each stripe (OEM), synthetic-demo-occluded/std@1" in out and out.count("share of the gap closed") == 1
    found = read_json(run / "results.json")
    test = found["ladder"]["test"]
    assert list(test) == [*SOURCES, "share_of_gap"] and {key: found[key] for key in plain} == plain
    assert test["learned"] == {"mAP": plain["mAP"], "rank1": plain["rank1"]}
    assert test["random"] != test["truth"] != test["constant"]
    assert test["share_of_gap"]["mAP"] == share_of_gap(*(test[source]["mAP"] for source in ("learned", "constant", "truth")))
    for source in ("truth", "constant"):  # the same network evaluated by itself
        launch("evaluate.py", f"--workdir={run}", f"--method=location.test={source}").fine()
        assert read_json(run / "evaluations" / f"location.test={source}" / "results.json")["mAP"] == test[source]["mAP"]
    launch("evaluate.py", f"--workdir={run}").fine()  # again: the ladder stays
    assert read_json(run / "results.json")["ladder"] == found["ladder"]
    launch("report.py", f"--workdir={run}").fine()
    assert "What the location is worth" in (run / "report" / "index.html").read_text()
    # A ladder of other parameters goes with them.
    write_json(run / "results.json", found | {"parameters_sha256": "0"})
    launch("ladder.py", f"--workdir={run}").mistake("no results of the last checkpoint; run launch/evaluate.py")
    launch("evaluate.py", f"--workdir={run}").fine()
    assert "ladder" not in read_json(run / "results.json")


@pytest.mark.slow
def test_siblings_differ_in_the_source_alone_and_are_trained_once(launch, tiny, people, tmp_path):
    run = tmp_path / "run"
    launch("train.py", *arguments(tiny, people, run, "dpeformer.py")).fine()
    launch("ladder.py", f"--workdir={run}", "--train").fine()
    ladder = read_json(run / "results.json")["ladder"]
    assert set(ladder) == {"localises", "test", "train", "both"} and ladder["train"]["learned"] == ladder["both"]["learned"]
    own = read_json(run / "config.json")
    for source in ("random", "constant", "truth"):
        theirs = read_json(run / "ladder" / source / "config.json")
        assert theirs["method"]["location"] == {"train": source, "test": "learned"}
        theirs["method"]["location"]["train"], theirs["report"]["enabled"] = "learned", own["report"]["enabled"]
        assert theirs == own
        assert ladder["train"][source]["mAP"] == read_json(run / "ladder" / source / "results.json")["mAP"]
    (run / "ladder" / "truth" / "results.json").unlink()  # cut at the end: it goes on, and finished ones are not opened again
    again = launch("ladder.py", f"--workdir={run}", "--train").fine().out
    assert again.count("going on from step") == 1 and "compiling" not in again
    assert read_json(run / "results.json")["ladder"]["train"] == ladder["train"]
