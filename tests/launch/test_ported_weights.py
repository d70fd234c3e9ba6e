"""The whole way of a checkpoint: out of a run under PyTorch's names, back in, evaluated, and trained on."""

import json

import numpy as np
import pytest

from tests.launch.conftest import ROOT


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


def test_a_feature_that_looks_at_a_memory_bank(launch, tiny, tmp_path):
    """FED's diffused feature: refused with a checkpoint alone, evaluated with the bank behind a comma."""
    import importlib

    import jax

    from occreid_jax import methods
    from occreid_jax.types import Meta
    from occreid_jax.weights import families
    from occreid_jax.weights.pth import write_pth
    from occreid_jax.weights.trees import flatten

    argument = "dataset=market1501,backbone=16x1x2,preset=official"
    config = importlib.import_module("configs.fed").get_config(argument)
    method = methods.create(config, Meta(5, 3, (64, 32), 10))
    params, extra = jax.jit(method.init)(jax.random.key(0))
    run = {path: np.asarray(x) for path, x in flatten({"params": params, "extra": extra}).items()}
    write_pth(tmp_path / "fed.pth", families.for_method("fed").write(run)[0])
    memory = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    write_pth(tmp_path / "memory.pth", {"any": memory}, alone=True)
    model, bank = tmp_path / "model", tmp_path / "bank"
    launch("port_weights.py", f"--source={tmp_path / 'fed.pth'}", f"--out={model}").fine()
    launch("port_weights.py", f"--source={tmp_path / 'memory.pth'}", "--bank=fed", f"--out={bank}").fine()
    setting = ("--config.method.test_feature=diffused", f"--workdir={tmp_path / 'results'}")
    evaluate = tiny(*setting, config=f"{ROOT / 'configs' / 'fed.py'}:{argument}", size="64,32")
    words = "lack bank/erased, which only a training makes", "name it behind a comma if it is ported"
    launch("evaluate.py", f"--weights={model}", *evaluate).mistake(*words)
    launch("evaluate.py", f"--weights={model},{bank}", *evaluate).fine()
    assert json.loads((tmp_path / "results" / "results.json").read_text())["mAP"] > 0


MISTAKES = {
    "another network": ({"argument": ",backbone=64x2x2"}, "of another shape", "width 32", "give --config the same backbone"),
    "cameras it does not know": ({"argument": ",camera=true"}, "have no camera embedding", "camera=false"),
    "a model behind a comma": ({}, "no part of a model, which is what may stand behind a comma"),
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
    if case == "a model behind a comma":
        weights = f"{ported},{ported}"
    run = tmp_path / "run"
    launch("evaluate.py", f"--weights={weights}", *tiny(f"--workdir={run}", **options)).mistake(*words)
    assert not run.exists()


def test_a_run_folder_keeps_its_results(launch, tiny, trained, ported):
    launch("evaluate.py", f"--weights={ported}", *tiny(f"--workdir={trained}")).mistake("holds a run; choose another folder")
