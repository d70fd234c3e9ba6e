"""The whole way of a checkpoint: out of a run under PyTorch's names, back in, evaluated, and trained on."""

import json

import numpy as np
import pytest


@pytest.fixture(scope="module")
def ported(launch, trained, tmp_path_factory):
    """A finished run, exported to PyTorch's names and brought back as a user's checkpoint would be."""
    folder = tmp_path_factory.mktemp("ported")
    launch("port_weights.py", f"--source={trained}", "--to=pytorch", f"--out={folder / 'torch'}").fine()
    launch("port_weights.py", f"--source={folder / 'torch' / 'model.pth'}", f"--out={folder / 'ours'}").fine()
    return folder / "ours"


def test_evaluation_of_ported_weights_is_that_of_the_run(launch, tiny, trained, ported, tmp_path):
    launch("evaluate.py", f"--weights={ported}", *tiny(f"--workdir={tmp_path}")).fine()
    own, again = (json.loads((folder / "results.json").read_text()) for folder in (trained, tmp_path))
    assert own["parameters_sha256"] == again["parameters_sha256"] and own["mAP"] == again["mAP"]


def test_reranked_evaluation_stands_apart(launch, trained):
    before = (trained / "results.json").read_text()
    out = launch("evaluate.py", f"--workdir={trained}", "--rerank=4,2,0.3", "--expansion=3,1").fine().out
    assert "+expansion=3,1+rerank=4,2,0.3)" in out.splitlines()[-1]
    assert (trained / "evaluations" / "rerank-4-2-0.3-expansion-3-1" / "results.json").exists()
    assert (trained / "results.json").read_text() == before


def test_evaluation_with_other_settings_stands_apart(launch, trained):
    before = (trained / "results.json").read_text()
    launch("evaluate.py", f"--workdir={trained}", "--method=test_feature=after").fine()
    folder = trained / "evaluations" / "test_feature=after"
    other = json.loads((folder / "results.json").read_text())
    assert (trained / "results.json").read_text() == before
    assert other["parameters_sha256"] == json.loads(before)["parameters_sha256"]
    own, new = (np.load(path / "evaluation.npz")["ranked_indices"] for path in (trained, folder))
    assert (own != new).any()


def test_training_starts_from_ported_weights(launch, tiny, ported, tmp_path):
    arguments = ("--config.evaluation.untrained=true", f"--config.init.weights={ported}", f"--workdir={tmp_path}")
    launch("train.py", *tiny(*arguments)).fine()
    untrained = json.loads((tmp_path / "untrained.json").read_text())
    launch("evaluate.py", f"--weights={ported}", *tiny(f"--workdir={tmp_path / 'plain'}")).fine()
    assert untrained["mAP"] == json.loads((tmp_path / "plain" / "results.json").read_text())["mAP"]


MISTAKES = {
    "another network": ({"argument": ",backbone=64x2x2"}, "of another shape", "width 32", "give --config the same backbone"),
    "cameras it does not know": ({"argument": ",camera=true"}, "have no camera embedding", "camera=false"),
    "an encoder": ({}, "an encoder alone cannot be evaluated", "--config.init.weights="),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_weights_that_cannot_be_evaluated(launch, tiny, ported, tmp_path, case):
    from safetensors.numpy import save_file

    options, *words = MISTAKES[case]
    weights = ported
    if case == "an encoder":
        weights = tmp_path / "encoder.safetensors"
        save_file(
            {"cls_token": np.zeros((1, 1, 32), np.float32)},
            weights,
            {"format": "occreid_jax", "kind": "encoder", "family": "vit"},
        )
    run = tmp_path / "run"
    launch("evaluate.py", f"--weights={weights}", *tiny(f"--workdir={run}", **options)).mistake(*words)
    assert not run.exists()


def test_a_run_folder_keeps_its_results(launch, tiny, trained, ported):
    launch("evaluate.py", f"--weights={ported}", *tiny(f"--workdir={trained}")).mistake("holds a run; choose another folder")
