"""Stored outputs of official PyTorch code are reproduced, other settings are too, and what is wrong is found."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from configs import fed as fed_config
from occreid_jax import numerics
from occreid_jax.augment.patch_transfer import choose_partners
from occreid_jax.config import to_dict
from occreid_jax.errors import UserError
from occreid_jax.evaluation.metrics import rank_metrics
from occreid_jax.numerics import fed, optimisers, spt
from occreid_jax.numerics.kind import words
from occreid_jax.numerics.rankings import by_definition, compare_metrics, numbers
from occreid_jax.numerics.settings import reproduction
from occreid_jax.weights.reference import ReferenceFile

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference"
LARGE = ("transreid_base", "transreid_full", "clipreid_", "dpm_vitb16", "spt_reid", "spt_sps", "fed_vitb16")  # whole encoders
LARGE += ("dpeformer_vitb16", "lsnet_t", "trajectory_sgd")  # two more, and trainings beside one of Adam
FILES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem.startswith(LARGE) else [])
    for path in sorted(REFERENCE.glob("*.npz"))
]


def changed(tmp_path, name, config=None, drop=(), rename=(), **arrays):
    """A copy of a stored file under a name that tells nothing: outputs added or replaced, dropped and renamed (old, new)."""
    with np.load(REFERENCE / f"{name}.npz", allow_pickle=False) as file:
        content = dict(file)
    for key in drop:
        del content[f"out.{key}"]
    for old, new in rename:
        content[f"out.{new}"] = content.pop(f"out.{old}")
    if config:
        content["config_json"] = json.dumps(config(json.loads(str(content["config_json"]))))
    content |= {key.replace("__", "."): value for key, value in arrays.items()}
    np.savez(tmp_path / "variant.npz", **content)
    return tmp_path / "variant.npz"


def only(path, *stems):
    """The outputs of a file but those that begin with one of ``stems``, to be dropped."""
    return [key for key in ReferenceFile(REFERENCE / f"{path}.npz").outputs if not key.startswith(stems)]


def failures(result):
    return {comparison.key: comparison.verdict for comparison in result.comparisons if not comparison.passed}


def test_every_kind_exists():
    for target in numerics.KINDS.values():
        module, _, attribute = target.partition(":")
        assert isinstance(getattr(importlib.import_module(module), attribute), numerics.Kind)


def test_the_files_are_here():
    assert len(FILES) >= 55


@pytest.mark.parametrize("path", FILES)
def test_stored_outputs(path):
    result = numerics.compare_file(path)
    assert not failures(result)
    assert {comparison.key for comparison in result.comparisons} >= set(ReferenceFile(path).outputs)
    closest = max(result.comparisons, key=lambda comparison: comparison.used)
    print(f"{path.name}: {len(result.comparisons)} compared, worst noise x{result.worst_noise:.1f}, closest: {closest}")


# It can fail -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("loss_clipreid_32x64", "supcon.grad_a"),
        ("loss_other_32x64", "fastreid_circle.logits"),
        ("loss_transreid_32x64", "center.loss"),
        ("metrics_exact", "fastreid.AP_f64"),
        ("metrics_exact", "torchreid.cmc20"),
        ("rerank", "torchreid_fp32.norm.k10_1_l0.5"),
        ("optim_transreid_occduke_base", "lr.base0.016_f64"),
        ("sched_formulas", "multistep0_f64"),
        ("dpm_heads", "m0.3.grad_mask"),
        ("dpm_masked_matching", "raw.distmat"),
        ("spt_losses", "orth_grad2"),
        ("fed_units", "hm.m0.2.memory_after"),
        ("fed_units", "infonce.grad"),
        ("fed_units", "feature_search_eval"),
    ],
)
def test_a_perturbed_output_fails(tmp_path, name, key):
    stored = ReferenceFile(REFERENCE / f"{name}.npz").outputs[key]
    path = changed(tmp_path, name, drop=only(name, key), **{f"out.{key}": stored * stored.dtype.type(1.001)})
    if name.startswith("loss"):  # recognised by other outputs
        path = changed(tmp_path, name, **{f"out.{key}": stored * stored.dtype.type(1.001)})
    if name.startswith("metrics"):
        path = changed(tmp_path, name, **{f"out.{key}": stored * stored.dtype.type(1.001)})
    assert list(failures(numerics.compare_file(path))) == [key]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("loss_clipreid_32x64", "supcon_mean.loss"),
        ("loss_clipreid_32x64", "clipreid_total.resnet_ls_on.loss"),
        ("metrics_exact", "fastreid.mP10_f64"),
        ("metrics_exact", "lonely"),
        ("sched_formulas", "cosine2_f64"),
        ("optim_transreid_occduke_base", "lr.mask_optimizer_base0.008_f64"),
        ("dpm_heads", "m0.3.cosines"),
        ("dpm_masked_matching", "unmasked.distmat"),
        ("spt_losses", "hinge"),
        ("spt_oiou_select", "roll"),
        ("fed_units", "hm.m0.2.norm"),
        ("fed_units", "mask_generation1"),
    ],
)
def test_an_unknown_output_fails(tmp_path, name, key):
    result = numerics.compare_file(changed(tmp_path, name, **{f"out.{key}": np.zeros(3)}))
    assert failures(result) == {key: "FAILED: not compared"} and not result.passed


def test_unknown_and_ambiguous_kinds(tmp_path):
    np.savez(tmp_path / "strange.npz", **{"out.x": np.zeros(3)})
    with pytest.raises(UserError, match="no comparison knows this kind of file; known: losses of TransReID, "):
        numerics.compare_file(tmp_path / "strange.npz")
    with pytest.raises(UserError, match="several comparisons claim this file: losses of CLIP-ReID, schedules"):
        numerics.compare_file(changed(tmp_path, "sched_formulas", out__clipreid_total=np.zeros(3)))


def test_a_file_that_lacks_something_is_named(tmp_path):
    with pytest.raises(UserError, match="variant.npz: lacks 'BASE_LR'"):
        numerics.compare_file(changed(tmp_path, "optim_fed_occduke", config=lambda config: config | {"solver": {"STEPS": []}}))
    path = changed(tmp_path, "loss_clipreid_32x64")
    with np.load(path) as file:
        content = {key: file[key] for key in file.files if key != "in.text"}
    np.savez(path, **content)
    with pytest.raises(UserError, match="lacks the input 'text'"):
        numerics.compare_file(path)
    short = np.zeros(5, np.int64)
    with pytest.raises(UserError, match="variant.npz: stores 5 identities but 60 cameras of the queries"):
        numerics.compare_file(changed(tmp_path, "metrics_exact", in__q_pid=short))


def test_a_fault_of_the_program_is_not_blamed_on_the_file(monkeypatch):
    """A setting that a method reads and its config lacks, for example."""

    def compare(file):
        raise KeyError("hole_of")

    kind = numerics.load("schedules")._replace(compare=compare)
    monkeypatch.setattr(optimisers, "SCHEDULES", kind)
    with pytest.raises(KeyError, match="hole_of"):
        numerics.compare_file(REFERENCE / "sched_formulas.npz")


def test_settings_of_a_reproduction_come_from_the_config():
    """Whatever the official config does not say is what the shipped config says, settings of tomorrow among them."""
    shipped = fed_config.get_config("dataset=occluded_duke,preset=official").method
    cfg = {"MODEL": {"STRIDE_SIZE": [12, 12], "SIE_CAMERA": False, "SIE_COE": 3.0, "ID_LOSS_WEIGHT": 2.0}}
    found = fed.official_settings({"cfg": cfg, "momentum": 0.3}, "small").method
    told = {"backbone", "stride", "drop_path", "bank_keep", "erased_weight", "diffused_weight", "global_weight"}
    values, theirs = to_dict(found), to_dict(shipped)  # blocks of two configs are equal as plain dictionaries alone
    assert values.keys() == theirs.keys() and {key for key in theirs if values[key] != theirs[key]} == told
    assert found.stride == 12 and found.bank_keep == 0.3 and found.global_weight == 2.0
    with pytest.raises(KeyError):
        reproduction("fed:dataset=occluded_duke", {"no_such_setting": 1})


# Numbers come from the file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("loss_transreid_32x64", "triplet.margin0.3.loss", "triplet.margin0.4.loss"),
        ("loss_transreid_32x64", "arcface.s30_m0.5.logits", "arcface.s30_m0.45.logits"),
        ("loss_transreid_32x64", "arcface.s30_m0.3_ls0.1.ce", "arcface.s30_m0.3_ls0.2.ce"),
        ("loss_transreid_32x64", "circle.s256_m0.25.logits", "circle.s255_m0.25.logits"),
        ("loss_transreid_32x64", "ce_smooth0.1.loss", "ce_smooth0.12.loss"),
        ("loss_transreid_32x64", "transreid_total.ls_on_m0.3.jpm5.loss", "transreid_total.ls_on_m0.3.jpm4.loss"),
        ("loss_other_32x64", "fastreid_ce.eps0.1.loss", "fastreid_ce.eps0.12.loss"),
        ("loss_other_32x64", "fastreid_triplet.hard_m0.3.loss", "fastreid_triplet.hard_m0.31.loss"),
        ("metrics", "fastreid.aqe5_3.query_feat", "fastreid.aqe4_3.query_feat"),
        ("metrics", "transreid.raw_rerank50_15.mAP_f64", "transreid.raw_rerank40_15.mAP_f64"),
        ("rerank", "torchreid_fp32.raw.k10_1_l0.5", "torchreid_fp32.raw.k10_1_l0.4"),
        ("rerank", "transreid_fp16.raw.k20_6_l0.3", "transreid_fp16.raw.k19_6_l0.3"),
        ("optim_transreid_occduke_base", "lr.base0.008_f64", "lr.base0.009_f64"),
        ("dpm_heads", "m0.5.masked_logits", "m0.45.masked_logits"),
        ("fed_units", "hm.m0.2.memory_after", "hm.m0.25.memory_after"),
    ],
)
def test_another_number_in_the_key_fails(tmp_path, name, old, new):
    keep = ("transreid_total.ls_off_soft.loss", "fastreid_triplet.hard_soft.loss", "torchreid_triplet.loss")
    keep += ("transreid.norm.mAP_f64",) if name == "metrics" else ()
    path = changed(tmp_path, name, drop=[key for key in only(name, *keep) if key != old], rename=[(old, new)])
    assert new in failures(numerics.compare_file(path))


def test_other_margins(tmp_path):
    """What other margins must give follows from stored distances and logits."""
    outputs = ReferenceFile(REFERENCE / "loss_transreid_32x64.npz").outputs
    labels = ReferenceFile(REFERENCE / "loss_transreid_32x64.npz").inputs["label"]
    harder = outputs["triplet.margin0.3_hard0.1.dist_ap"] - outputs["triplet.margin0.3_hard0.1.dist_an"]
    logits = outputs["cosface.s30_m0.5.logits"].copy()
    logits[np.arange(len(labels)), labels] += np.float32(30 * (0.5 - 0.2))
    added = {
        "triplet.margin0.7_hard0.1.loss": np.maximum(harder + 0.7, 0).mean(dtype=np.float32),
        "cosface.s30_m0.2.logits": logits,
        "cosface.s60_m0.2.logits": 2 * logits,
    }
    keep = only("loss_transreid_32x64", "transreid_total.ls_off_soft.loss")
    path = changed(tmp_path, "loss_transreid_32x64", drop=keep, **{f"out.{key}": value for key, value in added.items()})
    result = numerics.compare_file(path)
    assert not failures(result) and len(result.comparisons) == 4


def test_fast_reid_heads_take_their_numbers_from_the_notes_or_the_key(tmp_path):
    name = "loss_other_32x64"
    told = np.asarray(json.dumps(["fastreid heads on cosine logits, s=30, m=0.36"]))
    assert "fastreid_cos.logits" in failures(numerics.compare_file(changed(tmp_path, name, notes_json=told)))
    rename = [("fastreid_cos.logits", "fastreid_cos.s30_m0.35.logits")]
    assert "fastreid_cos.s30_m0.35.logits" not in failures(
        numerics.compare_file(changed(tmp_path, name, rename=rename, notes_json=told))
    )


def test_other_settings_of_reranking(tmp_path):
    features = ReferenceFile(REFERENCE / "rerank.npz").inputs["feat"].astype(np.float64)
    distance = ((features[:, None] - features[None]) ** 2).sum(-1)
    added = {
        "torchreid_fp32.raw.k7_3_l0.2": by_definition(distance, 60, 7, 3, 0.2),
        "transreid_fp16.raw.k15_4_l0.1": by_definition(distance, 60, 15, 4, 0.1, kept=np.float16),
    }
    added = {f"out.{key}": value.astype(np.float32) for key, value in added.items()}
    result = numerics.compare_file(changed(tmp_path, "rerank", drop=only("rerank", "none"), **added))
    assert not failures(result) and len(result.comparisons) == 2


def test_large_fc_lr_is_the_last_rule(tmp_path):
    """A classifier's bias gets twice the base rate, not four times."""

    def large(config):
        config["solver"] |= {"LARGE_FC_LR": True, "BIAS_LR_FACTOR": 3, "WEIGHT_DECAY_BIAS": 0.0}
        config["all_parameters"].append(["arcface.bias", [20], True])
        config["param_groups"].append(["arcface.bias", 0, 0.0, 0.0])
        for group in config["param_groups"]:
            bias, doubled = "bias" in group[0], "classifier" in group[0] or "arcface" in group[0]
            group[2:] = [0.016 if doubled else 0.024 if bias else 0.008, 0.0 if bias else 1e-4]
        return config | {"lr_before_first_step": {}}

    result = numerics.compare_file(changed(tmp_path, "optim_fed_occduke", config=large))
    assert not failures(result)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda config: config["solver"].update(WARMUP_EPOCHS=6), "lr.base0.008_f64"),
        (lambda config: config["solver"].update(WEIGHT_DECAY=2e-4), "param_groups.weight_decay"),
        (lambda config: config["solver"].update(MOMENTUM=0.8), "optimizers.0"),
        (lambda config: config["optimizers"][1].update(nesterov=True), "optimizers.1"),
        (lambda config: config["param_groups"].pop(), "param_groups.names"),
        (lambda config: config["param_groups"][0].__setitem__(1, 1), "param_groups.optimiser"),
        (lambda config: config["all_parameters"].append(["bottleneck_9.bias", [8], False]), ""),
        (lambda config: config["all_parameters"].append(["new.weight", [8], True]), "param_groups.not_optimised"),
    ],
)
def test_another_optimiser_fails(tmp_path, change, key):
    def apply(config):
        change(config)
        return config

    found = failures(numerics.compare_file(changed(tmp_path, "optim_dpm_occduke", config=apply)))
    assert key in found if key else not found


# Partners of SPT ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"python_random_seed": 102}, {"draws_flat", "n_draws", "selected", "selectmix_slabel"}),
        ({"threshold": 0.8}, {"n_draws", "selected"}),
        ({"range_end": 5}, {"draws_flat", "selected"}),
        ({"max_attempts": 3}, {"n_draws", "selected"}),
    ],
    ids=["seed", "threshold", "ranks", "attempts"],
)
def test_another_rule_for_partners_fails(tmp_path, change, keys):
    found = failures(numerics.compare_file(changed(tmp_path, "spt_oiou_select", config=lambda config: config | change)))
    assert keys <= found.keys() and not {"oiou", "top_values", "top_index"} & found.keys()


def test_either_order_of_equal_overlaps_is_right(tmp_path):
    stored = ReferenceFile(REFERENCE / "spt_oiou_select.npz")
    values, index = stored.outputs["top_values"], stored.outputs["top_index"].copy()
    row, place = np.argwhere(values[:, 1:-1] == values[:, 2:])[0] + (0, 1)  # two equal ones behind the best
    index[row, [place, place + 1]] = index[row, [place + 1, place]]
    assert "top_index" not in failures(numerics.compare_file(changed(tmp_path, "spt_oiou_select", **{"out.top_index": index})))
    index[row, place] = index[row, place + 1]
    assert "top_index" in failures(numerics.compare_file(changed(tmp_path, "spt_oiou_select", **{"out.top_index": index})))


def test_partners_that_the_rule_does_not_allow_are_found(monkeypatch):
    def at_random(*arrays, **options):
        return choose_partners(*arrays, **options | {"partners": "random"})

    monkeypatch.setattr(spt, "choose_partners", at_random)
    found = failures(numerics.compare_file(REFERENCE / "spt_oiou_select.npz"))
    assert found.keys() == {"choose_partners: not accepted", "choose_partners: not the stored first"}


# Ties --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "passes"), [(1e-8, True), (1e-3, False)])
def test_either_order_of_float32_ties_is_right(tmp_path, gap, passes):
    pids = dict(q_pid=np.array([1, 2]), g_pid=np.array([1, 2, 1, 3]), q_cam=np.zeros(2, int), g_cam=np.ones(4, int))
    stored = np.array([[0.5, 0.5 + gap, 0.9, 1.0], [0.3, 0.2, 0.9, 1.0]])
    own = np.array([[0.5 + gap, 0.5, 0.9, 1.0], [0.3, 0.2, 0.9, 1.0]])
    outputs = numbers(rank_metrics(stored, *pids.values(), max_rank=4))
    arrays = {f"in.{name}": value for name, value in pids.items()} | {f"out.a.{name}": value for name, value in outputs.items()}
    np.savez(tmp_path / "ties.npz", **arrays)
    compared = list(compare_metrics(ReferenceFile(tmp_path / "ties.npz"), "a", list(outputs), own))
    assert [each.key for each in compared if not each.passed] == ([] if passes else ["a.cmc", "a.AP_f64", "a.mAP_f64"])
    assert any("ties" in each.reason for each in compared)


def test_words():
    patterns = dict(margin=r"m(.+)", easy="easy")
    assert words("m0.3_easy", **patterns) == {"margin": "0.3", "easy": "easy"}
    assert words("", **patterns) == {} and words("m0.3_hard", **patterns) is None and words("easy_easy", **patterns) is None
