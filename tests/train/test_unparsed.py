"""Methods that read body-part labels, on pictures that have some, all or none: tables, protocol, the list of those without."""

import dataclasses

import numpy as np
import pytest

from occreid_jax.errors import UserError
from occreid_jax.methods.baseline import Baseline
from occreid_jax.train.log import Reporter
from occreid_jax.train.records import write_unparsed
from occreid_jax.train.setup import check_truth, open_setup

INPUTS = ("image", "parts", "parsed")


@pytest.fixture
def opened(tiny_config, tmp_path, monkeypatch):
    """open(unparsed, **settings of config.data) -> the setup of a method that reads labels."""
    for name in ("training_inputs", "evaluation_inputs"):
        monkeypatch.setattr(Baseline, name, property(lambda self: INPUTS))

    def make(unparsed: str = "error", **data):
        config = tiny_config(data__cache=str(tmp_path / "tables"), mesh__devices=1)
        config.data.update(data)
        with config.unlocked():
            config.method.unparsed = unparsed
        return open_setup(config, Reporter(quiet=True))

    return make


def labelled(setup, folder, roles, left_out=()):
    """Writes fields that are a left foot everywhere, for the pictures of some splits."""
    for role in roles:
        for name in getattr(setup.dataset, role).names:
            if name not in left_out:
                path = folder / f"{name[:-4]}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, np.eye(36, dtype=np.float32)[15][:, None, None])
    return str(folder)


def test_labels_in_part_of_the_pictures(opened, tmp_path):
    whole = opened("whole")
    assert whole.dataset.protocol == "market1501/std@1+parsing=whole" and whole.parsing.kind == "none"
    lost = whole.dataset.query.names[3]
    folder = labelled(whole, tmp_path / "masks", ("query", "gallery"), (lost,))
    setup = opened("estimate", parsing=folder)
    assert setup.dataset.protocol == "market1501/std@1+parsing=fields,estimate"
    columns = setup.evaluation_columns()
    assert columns["query"]["parsed"].sum() == len(setup.dataset.query) - 1 and columns["gallery"]["parsed"].all()
    assert not columns["query"]["parts"][3].any() and (columns["query"]["parts"][2] == 7).all()
    train = setup.columns("train", INPUTS, "bicubic")
    assert not train["parsed"].any() and not train["parts"].any()
    told = setup.without_labels()
    assert told[0].startswith("144 of 144 train pictures have no body-part labels (config.method.unparsed=estimate): bounding")
    assert told[1] == f"1 of 24 query pictures have no body-part labels (config.method.unparsed=estimate): {lost}"
    write_unparsed(tmp_path, setup.unparsed())
    lines = (tmp_path / "without_labels.txt").read_text().splitlines()
    assert len(lines) == 145 and lines[-1] == f"query {lost}"
    labelled(whole, tmp_path / "masks", ("train", "query"))
    complete = opened("error", parsing=folder)
    assert complete.dataset.protocol == "market1501/std@1+parsing=fields" and complete.without_labels() == []
    write_unparsed(tmp_path, complete.unparsed())
    assert not (tmp_path / "without_labels.txt").exists()


def test_an_error_is_the_choice_unless_another_is_made(opened, tmp_path):
    with pytest.raises(UserError, match="144 train pictures, 24 query pictures, 48 gallery pictures have no body-part labels;"):
        opened()


def test_labels_go_against_a_true_location(opened):
    setup = opened("whole")
    rendered = dataclasses.replace(setup.dataset, truth=setup.cache)
    with setup.config.unlocked():
        setup.config.method.location = {"test": "truth"}
    with pytest.raises(UserError, match="asks for the renderer's labels and config.data.parsing for others"):
        check_truth(setup.method, rendered, setup.parsing, training=False)
    with pytest.raises(UserError, match="market1501 has no body-part labels, which this config asks for"):
        check_truth(setup.method, setup.dataset, setup.parsing, training=False)


def test_methods_that_read_no_labels_have_no_word_on_them(tiny_config, tmp_path):
    setup = open_setup(tiny_config(data__cache=str(tmp_path / "tables"), mesh__devices=1), Reporter(quiet=True))
    assert setup.parsing is None and setup.dataset.protocol == "market1501/std@1" and setup.unparsed() == {}
