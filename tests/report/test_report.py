"""The page as a whole: every section, nothing from outside, the evaluator's own ranks, and mistakes as one line."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from occreid_jax.errors import UserError
from occreid_jax.evaluation.metrics import JUNK
from occreid_jax.files import read_json, write_json
from occreid_jax.report import write_report
from occreid_jax.report.samples import RANKS, WORDS, choose_queries
from occreid_jax.report.summary import covered_chart
from occreid_jax.train.records import read_evaluation

SECTIONS = ("results", "curves", "rankings", "attention", "samples", "config")


class Page(HTMLParser):
    """All tags in order, with a check that they nest."""

    EMPTY = {"meta", "img", "br", "line", "circle", "rect", "polyline", "image"}

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def section(text: str, name: str) -> str:
    return re.search(rf'<section id="{name}">(.*?)</section>', text, re.S).group(1)


def test_page_has_every_section_and_needs_nothing_else(make_run):
    path = write_report(*make_run())
    assert path.name == "index.html" and path.parent.name == "report"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert [attributes["id"] for attributes in page.all("section")] == list(SECTIONS)
    assert not re.search(r"https?:|@import|url\(|<script|<link|<iframe", text)
    sources = [attributes["src"] for attributes in page.all("img")]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("aria-label") for attributes in page.all("svg"))
    assert all(attributes["href"].removeprefix("#") in SECTIONS for attributes in page.all("a"))
    with Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2]))) as picture:
        assert picture.size == (16, 32)
    assert "example &lt;method&gt; on example/std@1, seed 3" in text  # names are escaped
    assert "loss over the steps of stage main" in section(text, "curves")
    assert "Learning curve" in text and "CMC" in text
    assert "By kind of occlusion" in section(text, "results")
    assert re.search(r"By how much of the person is covered.*<td>20 to 30 %</td>", section(text, "results"), re.S)


def test_the_covered_share_is_drawn_from_two_tenths_on():
    rows = {"20 to 30 %": {"queries": 3, "mAP": 40.0, "rank1": 50.0}, "30 to 40 %": {"queries": 1, "mAP": 20.0, "rank1": 0.0}}
    chart = str(covered_chart({"per_covered": rows}))
    assert "mAP and rank-1 in percent over the share of the person that is covered" in chart and "<polyline" in chart
    assert covered_chart({"per_covered": dict(list(rows.items())[:1])}) == ""


def test_borders_and_ranks_follow_the_stored_lists(make_run):
    workdir, setup, params, extra = make_run()
    text = write_report(workdir, setup, params, extra).read_text(encoding="utf-8")
    stored = read_evaluation(workdir)
    chosen = [row for _, rows in choose_queries(stored["queries"], 6, 3) for row in rows]
    blocks = re.findall(r'<div class="ranking">(.*?)</div>', section(text, "rankings"), re.S)
    assert len(blocks) == len(chosen) == 6
    seen = set()
    for block, query in zip(blocks, chosen, strict=True):
        first, *others = Page(block).all("img")
        assert first["title"] == setup.dataset.query.names[query]
        assert [image["title"] for image in others] == [
            setup.dataset.gallery.names[row] for row in stored["ranked_indices"][query, :RANKS]
        ]
        flags = stored["ranked_flags"][query, :RANKS]
        assert [image["class"] for image in others] == [WORDS[int(flag)] for flag in flags]
        captions = re.findall(r"<figcaption>(\d+|not counted)", block)
        expected = [str(1 + np.count_nonzero(flags[:place] != JUNK)) for place in range(len(flags))]
        assert captions == ["not counted" if flag == JUNK else rank for flag, rank in zip(flags, expected, strict=True)]
        seen |= {image["class"] for image in others}
    assert seen == {"right", "wrong", "junk"}


def test_queries_are_chosen_once_each_and_the_same_again():
    records = np.zeros(30, [("average_precision", np.float64), ("valid", np.bool_)])
    records["average_precision"] = np.random.default_rng(1).random(30)
    records["valid"] = np.arange(30) != 4
    groups = choose_queries(records, 13, seed=0)
    assert [len(rows) for _, rows in groups] == [5, 4, 4]
    rows = np.concatenate([rows for _, rows in groups])
    assert len(set(rows)) == 13 and 4 not in rows
    rising = np.sort(records["average_precision"][records["valid"]])
    assert np.array_equal(records["average_precision"][groups[0][1]], rising[:5])
    assert np.array_equal(records["average_precision"][groups[1][1]], rising[::-1][:4])
    again = choose_queries(records, 13, seed=0)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(groups, again, strict=True))
    assert choose_queries(records, 0, seed=0) == []
    assert sum(len(rows) for _, rows in choose_queries(records, 100, seed=0)) == 29


def test_attention_is_measured_against_the_truth(make_run):
    text = section(write_report(*make_run()).read_text(encoding="utf-8"), "attention")
    # Attention lies evenly on the upper half, of which three quarters are visible; the mask covers the left half of everything.
    cells = re.findall(r"<tr><td>([^<]+)</td><td>(\d+) %</td><td>(\d+) %</td></tr>", text)
    assert [(name.split()[0], a, b) for name, a, b in cells] == [
        ("attention", "75", "75"), ("selected", "38", "38"), ("the", "38", "38"),
    ]  # fmt: skip
    assert "score 0.75" in text and "object (pole), 25 % covered" in text
    assert "none" not in re.findall(r"camera \d; (\w+)", text)  # only queries that something covers
    assert len(Page(text).all("img")) == 6 * 4  # six occluded queries: picture, attention, mask, truth


def test_real_data_has_no_truth_beside_it(make_run):
    text = write_report(*make_run(truth=False)).read_text(encoding="utf-8")
    attention = section(text, "attention")
    assert len(Page(attention).all("img")) == 8 * 3
    assert "ground truth" not in attention and "weight on the visible person" not in attention
    assert "By kind of occlusion" not in text and 'class="badge"' not in text
    assert "licence and the privacy" in text


def test_method_without_maps(make_run):
    text = write_report(*make_run(maps=False)).read_text(encoding="utf-8")
    assert "no maps to show" in section(text, "attention")


def test_method_without_stages(make_run):
    text = write_report(*make_run(stages=False)).read_text(encoding="utf-8")
    assert "no training metrics" in section(text, "curves")
    assert "None to show" in section(text, "samples")
    Page(text)


def test_scores_against_the_truth_stand_beside_those_of_the_untrained_network(make_run):
    workdir, setup, params, extra = make_run()
    results = read_json(workdir / "results.json")
    results["selection"] = {"attention": {"auroc": 0.8125, "person_cells": 37.5}, "selected": {"precision": None}}
    write_json(workdir / "results.json", results)

    def rows(text):
        return re.findall(r"<tr><td>(.*?)</td><td class=\"words\">(.*?)</td><td>(.*)</td></tr>", text)

    plain = section(write_report(workdir, setup, params, extra).read_text(encoding="utf-8"), "results")
    assert [(name, value) for name, _, value in rows(plain)] == [("attention", "0.8125"), ("", "37.5"), ("selected", "-")]
    assert "<th>untrained</th>" not in plain
    write_json(workdir / "untrained.json", results | {"selection": {"attention": {"auroc": 0.5, "person_cells": 37.5}}})
    both = section(write_report(workdir, setup, params, extra).read_text(encoding="utf-8"), "results")
    assert [value for _, _, value in rows(both)] == ["0.8125</td><td>0.5", "37.5</td><td>37.5", "-</td><td>-"]


def test_the_ladder_stands_in_the_page(make_run):
    workdir, setup, params, extra = make_run()
    results = read_json(workdir / "results.json")
    assert "What the location is worth" not in write_report(workdir, setup, params, extra).read_text(encoding="utf-8")
    rungs = {source: {"mAP": 10.0 * number, "rank1": 50.0} for number, source in enumerate(("learned", "constant", "truth"))}
    results["ladder"] = {"localises": "stripes", "test": rungs | {"share_of_gap": {"mAP": -1.0, "rank1": None}}}
    write_json(workdir / "results.json", results)
    text = section(write_report(workdir, setup, params, extra).read_text(encoding="utf-8"), "results")
    assert "Located: stripes." in text and text.count("another source") == 1
    rows = re.findall(r"<tr><td class=\"words\">(.*?)</td><td>(.*)</td><td>(.*)</td></tr>", text)
    assert rows[:3] == [("learned", "0.0", "50.0"), ("constant", "10.0", "50.0"), ("truth", "20.0", "50.0")]
    assert rows[3] == ("share of the gap closed", "-1", "-")


def test_every_view_of_an_augmented_batch_is_shown(make_run):
    text = section(write_report(*make_run()).read_text(encoding="utf-8"), "samples")
    alts = [attributes["alt"] for attributes in Page(text).all("img")]
    assert len(alts) == 3 * 5  # three pictures: the original, and two draws of two views
    assert alts[3] == "draw 2 of image of the same picture" and alts[4] == "draw 2 of second_view of the same picture"


@pytest.mark.parametrize("name", ["results.json", "evaluation.npz"])
def test_missing_results_say_what_to_run(make_run, name):
    workdir, setup, params, extra = make_run()
    (workdir / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing; run launch/evaluate.py --workdir="):
        write_report(workdir, setup, params, extra)


def test_results_of_other_parameters_or_pictures_are_refused(make_run):
    workdir, setup, params, extra = make_run()
    with pytest.raises(UserError, match="other parameters"):
        write_report(workdir, setup, {"scale": params["scale"] + 1}, extra)
    stored = read_evaluation(workdir)
    np.savez(workdir / "evaluation.npz", **(stored | {"gallery_names": stored["gallery_names"][::-1]}))
    with pytest.raises(UserError, match="other gallery pictures"):
        write_report(workdir, setup, params, extra)


def test_a_failed_rebuild_leaves_the_old_report(make_run, monkeypatch):
    workdir, setup, params, extra = make_run()
    path = write_report(workdir, setup, params, extra)
    path.write_text("old")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_space)
        with pytest.raises(UserError, match="No space left"):
            write_report(workdir, setup, params, extra)
    assert path.read_text() == "old" and os.listdir(path.parent) == ["index.html"]
    write_report(workdir, setup, params, extra)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>") and os.listdir(path.parent) == ["index.html"]


def test_command_names_the_missing_file_in_one_line(tmp_path):
    command = Path(__file__).parents[2] / "launch" / "report.py"
    done = subprocess.run([sys.executable, command, f"--workdir={tmp_path}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error:") and done.stderr.count("\n") == 1 and "config.json is missing" in done.stderr
