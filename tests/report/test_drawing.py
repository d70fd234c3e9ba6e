"""Overlays, charts and the command to run again, each on its own."""

from __future__ import annotations

import shlex
import sys
import types
import xml.etree.ElementTree as ElementTree

import numpy as np
from ml_collections import ConfigDict

from occreid_jax.config import to_dict
from occreid_jax.report import curves, pictures, summary
from occreid_jax.report.inspection import share_on

PICTURE = np.full((8, 4, 3), (200, 40, 40), np.uint8)


def test_heat_is_brightest_where_the_map_is_highest():
    values = np.zeros((4, 2), np.float32)
    values[0] = 1.0
    out = pictures.heat_overlay(PICTURE, values).astype(int).sum(axis=-1)
    assert out.shape == (8, 4) and out[0].min() > out[7].max() + 200


def test_an_even_map_shows_no_structure_and_odd_values_do_no_harm():
    assert len(np.unique(pictures.heat_overlay(PICTURE, np.full((4, 2), 0.125)).reshape(-1, 3), axis=0)) == 1
    for values in (np.zeros((4, 2)), np.full((4, 2), np.nan), -np.ones((4, 2)), np.array([[np.inf, 0.0]])):
        assert pictures.heat_overlay(PICTURE, values).dtype == np.uint8


def test_mask_keeps_the_colours_of_chosen_cells():
    mask = np.zeros((4, 2), bool)
    mask[1, 0] = True
    out = pictures.mask_overlay(PICTURE, mask)
    assert np.array_equal(out[2:4, :2], PICTURE[2:4, :2])
    assert (out[0] < 60).all() and (np.ptp(out[0], axis=-1) == 0).all()


def test_truth_has_an_outline_and_a_covering_colour():
    visible, covering = np.zeros((8, 4), bool), np.zeros((8, 4), bool)
    visible[:5], covering[6:] = True, True
    out = pictures.truth_overlay(PICTURE, visible, covering)
    assert (out[0, 0] == pictures.OUTLINE).all() and np.array_equal(out[2, 1], PICTURE[2, 1])
    assert out[7, 0, 2] > out[7, 0, 0] and np.ptp(out[5, 0]) == 0


def test_denormalise_undoes_the_test_transform():
    values = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    normalised = (values / 255.0 - mean) / std
    assert np.array_equal(pictures.denormalise(normalised, mean, std), values)


def test_share_on_the_visible_person():
    visible = np.zeros((8, 4), bool)
    visible[:3] = True  # the whole first row of cells and half of the second
    assert share_on(np.full((4, 2), 0.125), visible) == visible.mean()
    assert share_on(np.array([[1.0, 1.0], [0, 0], [0, 0], [0, 0]]), visible) == 1.0
    assert share_on(np.array([[False] * 2, [True] * 2, [False] * 2, [False] * 2]), visible) == 0.5
    assert np.isnan(share_on(np.zeros((4, 2)), visible)) and np.isnan(share_on(-np.ones((4, 2)), visible))


def test_charts_are_well_formed_and_leave_out_what_is_not_finite():
    first, second = curves.Series("a<b", [1, 2, 3], [1.0, np.nan, 2.0]), curves.Series("c", [1, 2], [3, 4])
    root = ElementTree.fromstring(curves.line_chart([first, second], "alt", "step"))
    lines = root.findall("polyline")
    assert [len(line.get("points").split()) for line in lines] == [2, 2]
    assert curves.line_chart([curves.Series("a", [1], [np.nan])], "alt", "step") == ""
    long = curves.line_chart([curves.Series("a", range(10_000), np.ones(10_000))], "alt", "step")
    assert len(ElementTree.fromstring(long).find("polyline").get("points").split()) == curves.POINTS
    bars = ElementTree.fromstring(curves.histogram([0, 3, 1], [0, 1, 2, 3], "alt", "x", mark=1.5)).findall("rect")
    heights = [float(bar.get("height")) for bar in bars]
    assert heights[0] == 0 and np.isclose(heights[1], 3 * heights[2], rtol=0.01)


def test_ticks_are_round_and_inside():
    assert curves.ticks(0, 100, 4) == [0, 25, 50, 75, 100]
    assert np.allclose(curves.ticks(4.71, 4.98, 4), [4.8, 4.9])
    assert curves.ticks(3, 3, 4) == [3]
    assert [curves.label(value) for value in (0.25, 300, 12_000, 1_500_000, 1e-16)] == ["0.25", "300", "12k", "1.5M", "0"]


def words(command: str) -> list[str]:
    """What a shell makes of a command over several lines."""
    return shlex.split(command.replace("\\\n", " "))


def test_run_again_repeats_exactly_what_differs_from_the_config_file(monkeypatch):
    def get_config(argument: str) -> ConfigDict:
        assert argument == "dataset=example"
        return ConfigDict(
            {"seed": 0, "data": {"name": "example", "size": "", "split": "", "image_size": (8, 8)}, "method": {"name": "shown"},
             "report": {"queries": 12}}
        )  # fmt: skip

    module = types.ModuleType("configs.shown")
    module.get_config = get_config
    monkeypatch.setitem(sys.modules, "configs", types.ModuleType("configs"))
    monkeypatch.setitem(sys.modules, "configs.shown", module)
    stored = to_dict(get_config("dataset=example"))
    start = ["python", "launch/train.py", "--config=configs/shown.py:dataset=example"]
    assert words(summary.run_again(stored)) == [*start, "--workdir=NEW_FOLDER"]
    stored |= {"seed": 2, "report": {"queries": 3}}
    stored["data"]["image_size"] = [16, 8]
    changed = ["--config.data.image_size=(16, 8)", "--config.seed=2"]
    assert words(summary.run_again(stored)) == [*start, *changed, "--workdir=NEW_FOLDER"]
    assert summary.run_again(stored | {"more": 1}) == ""
    assert summary.run_again(stored | {"method": {"name": "unknown"}}) == ""


def test_stage_settings_mark_what_differs():
    names, rows = summary.stage_settings({"stages": {"one": {"epochs": 2, "a": {"b": 1}}, "two": {"epochs": 3, "a": {"b": 1}}}})
    assert names == ["one", "two"]
    assert rows == [("epochs", ["2", "3"], True), ("a.b", ["1", "1"], False)]
