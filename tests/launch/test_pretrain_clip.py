"""launch/pretrain_clip.py from rendered pictures to weights with a card, on a micro network and a few pictures."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from occreid_jax import synthetic
from occreid_jax.files import read_json
from occreid_jax.weights.port import read_ported

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """The set "pretrain" with a few people; the command takes it for the whole one, which it would render otherwise."""
    root = tmp_path_factory.mktemp("data")
    size = dataclasses.replace(synthetic.SIZES["pretrain"], height=64, width=32, train_identities=8, train_images=40,
                               test_identities=4, query_images=8, gallery_images=24)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(synthetic.SIZES, "pretrain", size)
        synthetic.generate(root / "synthetic" / f"pretrain-occluded-0-v{synthetic.VERSION}", "pretrain", "occluded")
    return root


def micro(root, *more):
    return [
        f"--config.data.root={root}", "--config.data.image_size=64,32", "--config.method.backbone=micro",
        "--config.stages.masked.epochs=1", "--config.stages.whole.epochs=1", "--config.stages.masked.sampler.batch_size=8",
        "--config.stages.whole.sampler.batch_size=8", "--config.mesh.devices=1", "--config.evaluation.untrained=false", *more,
    ]  # fmt: skip


def test_trains_measures_and_writes(launch, data_root, tmp_path):
    folders = f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"
    arguments = micro(data_root, *folders, "--config.method.facts=55")
    out = launch("pretrain_clip.py", *arguments).fine().out
    assert "captions of 4 unseen people: R-1" in out and "chance 25.0" in out and "upper_colour" in out
    assert "(synthetic-pretrain-occluded/std@1)" in out.splitlines()[-1]
    card = read_json(tmp_path / "out" / "card.json")
    assert card["command"].startswith("python launch/pretrain_clip.py --config.data.image_size=64,32")
    assert str(tmp_path) not in (tmp_path / "out" / "card.json").read_text()
    assert (card["steps"], card["pictures_seen"]) == (10, 80) and card["cpu_seconds"] > 0
    assert card["data"]["train"]["images"] == 40 and card["data"]["query"]["identities"] == 4
    assert set(card["zero_shot"]) == {"whole", "occluded"} and "note" not in card
    arrays, metadata = read_ported(tmp_path / "out")
    assert metadata["family"] == "tiny_clip" and metadata["grid"] == "4x2"
    np.testing.assert_array_equal(arrays["grid"], [4, 2])
    assert not any("anchors" in name for name in arrays)  # training alone needs them
    again = launch("pretrain_clip.py", *arguments).fine()
    assert "from step 10 on" in read_json(tmp_path / "out" / "card.json")["note"] and "chance 25.0" in again.out


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["coarse", "fine"])
def test_what_ships_is_measured(launch, data_root, grid):
    config = f"--config={CONFIGS / 'clip_pretraining.py'}:grid={grid}"
    out = launch("pretrain_clip.py", config, f"--config.data.root={data_root}", "--measure").fine().out
    assert "captions of 4 unseen people: R-1" in out and "mean over classes" in out
    assert "mean cosine between the sentences of a fact: gender" in out.splitlines()[-1]


def test_another_method_is_refused(launch, data_root, tmp_path):
    wrong = launch("pretrain_clip.py", f"--config={CONFIGS / 'baseline.py'}", f"--workdir={tmp_path / 'run'}")
    wrong.mistake("baseline is no pretraining of a CLIP; leave --config out")


def test_a_dataset_without_captions_is_refused(launch, market_root, tmp_path):
    config = f"{CONFIGS / 'clip_pretraining.py'}:dataset=market1501"
    wrong = launch("train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}", *micro(market_root))
    wrong.mistake("market1501 has no captions", "dataset=synthetic")
