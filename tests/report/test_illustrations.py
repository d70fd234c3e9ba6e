"""What a training batch shows: its numbers, the page's section, runs side by side, and mistakes as one line."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from occreid_jax import config as configuration
from occreid_jax.errors import UserError
from occreid_jax.files import read_json, write_json
from occreid_jax.report import curves, illustrations, write_report
from occreid_jax.types import Split


def inside(text: str) -> str:
    return re.search(r'<section id="inside">(.*?)</section>', text, re.S).group(1)


def test_the_page_draws_every_kind_and_a_file_holds_the_numbers(make_run):
    workdir, setup, params, extra = make_run(batch_shows=True)
    text = write_report(workdir, setup, params, extra).read_text(encoding="utf-8")
    assert '<a href="#inside">Inside the method</a>' in text
    shown = inside(text)
    assert re.findall(r"<h3>(.*?)</h3>", shown) == ["whole, part"]
    assert re.findall(r"<figcaption><b>(.*?)\.</b>", shown) == ["correlation", "brightness"]
    assert shown.count("<figcaption>whole</figcaption>") == shown.count("<figcaption>part</figcaption>") == 4
    assert "range -0.1 to 1, mean absolute off-diagonal value 0.2" in shown and "3 values, mean " in shown
    assert "1 left out" in shown
    stored = read_json(workdir / "illustrations.json")
    assert stored["stage"] == "main" and stored["pictures"] == 4 and stored["beside"] == {}
    told = stored["illustrations"]
    assert list(told) == ["correlation", "brightness"]
    assert told["correlation"] == pytest.approx({"mean_absolute_off_diagonal": 0.2, "minimum": -0.1, "maximum": 1.0, "size": 3})
    rows = np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, 0]))).permutation(6)[1:4]  # what seed 3 draws
    table = setup.columns("train", ("image",), "bicubic")["image"][rows]
    values = (table / 255.0 - 0.5).mean(axis=(1, 2, 3)) / 0.5
    assert told["brightness"] == pytest.approx({"mean": values.mean(), "std": values.std(), "count": 3}, abs=1e-5)
    # the pictures are those of the batch, in its order, and the second one of each row shows the labelled half
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)" alt="part, row (\d)', shown)
    assert [line for _, line in pictures] == ["1", "2", "3", "4"]
    with Image.open(io.BytesIO(base64.b64decode(pictures[1][0]))) as picture:
        pixels = np.asarray(picture, float)
    assert abs(pixels[:12] - table[0][:12]).mean() < 12 and abs(pixels[20:] - 128).max() < 12


def test_without_anything_to_show_nothing_is_read_or_written(make_run):
    workdir, setup, params, extra = make_run()
    write_json(workdir / "illustrations.json", {})  # of an older version of the method
    assert "#inside" not in write_report(workdir, setup, params, extra).read_text(encoding="utf-8")
    assert not (workdir / "illustrations.json").exists()
    assert ("train", "parts", "") not in setup.opened


def test_methods_without_stages_or_truth(make_run):
    assert "Inside" not in write_report(*make_run(stages=False, batch_shows=True)).read_text(encoding="utf-8")
    text = write_report(*make_run(truth=False, batch_shows=True, name="real")).read_text(encoding="utf-8")
    assert "whole, part" in inside(text)


def test_runs_stand_side_by_side_on_the_same_pictures(make_run):
    workdir, *run = make_run(batch_shows=True)
    other, *model = make_run(batch_shows=True, name="other", scale=-0.5)
    text = inside(write_report(workdir, *run, beside=[(other, lambda: model)]).read_text(encoding="utf-8"))
    assert re.findall(r"<b>(\w+)", text) == ["run", "other"] * 3
    assert "mean absolute off-diagonal value 0.2" in text and "mean absolute off-diagonal value 0.1" in text
    stored = read_json(workdir / "illustrations.json")
    ours, theirs = stored["illustrations"], stored["beside"]["other"]
    assert theirs["correlation"]["minimum"] == pytest.approx(-0.5)
    assert theirs["brightness"]["mean"] == pytest.approx(-0.5 * ours["brightness"]["mean"])  # the same pictures


def test_runs_that_cannot_stand_side_by_side(make_run, tmp_path):
    workdir, setup, *model = make_run(batch_shows=True)
    split = setup.dataset.train
    fewer = Split(split.root, split.names[:4], split.pids[:4], split.camids[:4])
    other = dataclasses.replace(setup, dataset=dataclasses.replace(setup.dataset, train=fewer, protocol="other/std@1"))
    with pytest.raises(UserError, match=r"elsewhere: its training pictures \(other/std@1, 4\) are not those of .*run \(example"):
        write_report(workdir, setup, *model, beside=[(Path("elsewhere"), lambda: (other, *model))])
    workdir, *run = make_run(stages=False, name="untrained")
    with pytest.raises(UserError, match="untrained: this run trains nothing, so it has no training batch to show elsewhere on"):
        write_report(workdir, *run, beside=[(Path("elsewhere"), lambda: (other, *model))])


def test_a_padded_batch_says_which_rows_are_padding(make_run):
    _, setup, params, extra = make_run()
    seen = {}

    def illustrate(params, extra, batch, rng):
        seen.update({name: value.shape for name, value in batch.items()})
        return {"rows": jnp.where(batch["valid"], batch["index"], jnp.nan).astype(jnp.bfloat16)}

    setup.method.illustrate = illustrate
    source = illustrations.source("run", setup, params, extra, np.array([4, 2, -1, -1], np.int32), 0)
    assert np.array_equal(source.arrays["rows"], [4, 2, np.nan, np.nan], equal_nan=True)
    assert source.arrays["rows"].dtype == np.float32
    assert seen == {"image": (4, 32, 16, 3), "parts": (4, 32, 16)} | dict.fromkeys(("label", "camid", "index", "valid"), (4,))


def test_other_shapes_and_types_are_a_mistake_of_the_method(make_run):
    _, setup, params, extra = make_run()
    for shape, dtype in (((2, 3), float), ((2, 2, 2), float), ((3,), int), ((1, 2, 8, 4, 1), float), ((0,), float)):
        setup.method.illustrate = lambda *_, shape=shape, dtype=dtype: {"thing": jnp.zeros(shape, dtype)}
        with pytest.raises(TypeError, match="illustrate: 'thing' is .* neither pictures, matrix nor numbers"):
            illustrations.source("run", setup, params, extra, np.arange(4, dtype=np.int32), 0)


def test_numbers_leave_out_what_is_not_finite():
    told = illustrations.measures(np.array([1.0, np.nan, 3.0, np.inf], np.float32))
    assert told == {"mean": 2.0, "std": 1.0, "count": 2}
    assert illustrations.measures(np.array([np.nan])) == {"mean": None, "std": None, "count": 0}
    single = illustrations.measures(np.array([[0.5]]))
    assert single == {"mean_absolute_off_diagonal": None, "minimum": 0.5, "maximum": 0.5, "size": 1}
    gap = illustrations.measures(np.array([[1.0, np.nan], [-0.5, 1.0]]))
    assert gap == {"mean_absolute_off_diagonal": 0.5, "minimum": -0.5, "maximum": 1.0, "size": 2}
    for values in (np.full(5, 0.25), np.zeros(3), np.array([np.nan]), np.array([np.nan, 1e30])):
        drawn = illustrations.numbers("place", values, illustrations.common_edges([values]))
        assert drawn["note"] and (drawn["chart"] == "") == bool(np.isnan(values).all())
    edges = illustrations.common_edges([np.array([0.0, 1.0]), np.array([5.0, np.nan])])
    assert edges[0] == 0 and edges[-1] == 5


def test_a_caption_names_pictures_only_if_it_has_as_many_words():
    values = np.zeros((20, 3, 16, 8, 3), np.float32)
    three = illustrations.picture_rows("one, the second, three", "place", values, (0.5,) * 3, (0.5,) * 3)
    assert len(three["rows"]) == illustrations.ROWS and three["note"] == "the first 8 of 20"
    assert [picture["caption"] for picture in three["rows"][7]] == ["one", "the second", "three"]
    for caption in ("one, two", "all", "one, two,"):
        rows = illustrations.picture_rows(caption, "place", values[:2], (0.5,) * 3, (0.5,) * 3)
        assert [picture["caption"] for picture in rows["rows"][0]] == [""] * 3 and rows["note"] == ""
        assert rows["rows"][1][2]["alt"] == "picture 3, row 2 of place"


def test_labels_are_the_shortest_that_differ(tmp_path):
    assert illustrations.labels([Path("runs/a"), Path("runs/b/")]) == ["a", "b"]
    assert illustrations.labels([Path("x/seed-0"), Path("y/seed-0")]) == ["x/seed-0", "y/seed-0"]
    assert illustrations.labels([Path("x"), Path("x")]) == ["x (1)", "x (2)"]


@pytest.mark.parametrize("size", [1, 3, 12, 40, 300])
def test_matrices_are_well_formed(size):
    values = np.clip(np.random.default_rng(0).normal(0, 1, (size, size)), -2, 2)
    values[0, 0] = np.nan
    root = ElementTree.fromstring(curves.matrix_chart(values, "a<b"))
    assert root.get("aria-label") == "a<b" and len(root.findall("image")) == 2
    assert len(root.findall("text[@class='cell']")) == (size**2 if size <= curves.WRITTEN else 0)


def test_colours_diverge_from_nothing():
    uri = curves.coloured(np.array([[1.0, -1.0, 0.0, 0.5, 7.0, np.nan]]))
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        pixels = np.asarray(picture)[0]
    assert tuple(pixels[0]) == (*curves.POSITIVE, 255) and tuple(pixels[1]) == (*curves.NEGATIVE, 255)
    assert pixels[2, 3] == 0 and tuple(pixels[3]) == (*curves.POSITIVE, 128)
    assert np.array_equal(pixels[4], pixels[0]) and tuple(pixels[5][:3]) == curves.UNKNOWN


def test_command_refuses_a_folder_beside_that_is_no_run(tmp_path):
    from configs import baseline

    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "config.json", configuration.to_dict(baseline.get_config()))
    for name in ("meta.json", "results.json", "evaluation.npz"):
        (run / name).write_text("{}")
    command = Path(__file__).parents[2] / "launch" / "report.py"
    arguments = [sys.executable, command, f"--workdir={run}", f"--beside={run},{tmp_path / 'nothing'}"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: --beside={tmp_path / 'nothing'}: no run there (config.json is missing)")
