"""DPEFormer's reference file of units fails in the outputs concerned, and in no others, if one detail of the official rules is
another one. That the whole file passes as it is stands in test_numerics.py."""

from pathlib import Path

import pytest

from occreid_jax.nn import selection
from occreid_jax.nn.sub_vectors import SubVectorBlending
from occreid_jax.numerics import dpeformer
from occreid_jax.weights.reference import ReferenceFile

UNITS = ReferenceFile(Path(__file__).parents[2] / "third_party" / "reference" / "dpeformer_units.npz")
SELECT, PROXY_SCORES = selection.select_tokens, selection.proxy_scores
POOLED = {"pooled", "grad_tokens"}
CHOSEN = {"k", "order", "result"} | POOLED
# Numbers of tokens in these cases: 30 50 77 126; 5 40 24 23, of which two get the minimum; 0 0.
CASES = ("resample", "kmin_mixed", "first_gap")
CHANGES = {  # name -> (another detail, what fails in each of the cases)
    "nothing": ({}, set(), set(), set()),
    "pooled as they stand in the picture": ({"order": "spatial"}, POOLED, POOLED, POOLED),
    "one token more": ({"zero_based": False}, {"k0", "min_value"} | CHOSEN, {"k0"} | CHOSEN, {"k0"}),
    "a minimum of 25": ({"least": 25}, set(), {"min_value"} | CHOSEN, {"min_value"} | CHOSEN),
    "unit vectors": (
        {"normalise": True}, {"k0", "min_value", "scores_sorted"} | CHOSEN, {"k0", "scores_sorted"} | CHOSEN,
        {"scores_sorted"} | CHOSEN - {"k"},
    ),
    "pooled once": ({"by_batch": False}, POOLED, POOLED, set()),
    "the first gap does not count": ({"ignore_first_gap": True}, set(), set(), {"k0"} | CHOSEN),
}  # fmt: skip


def wrong(found: dict) -> set[str]:
    return {key for key, array in found.items() if key in UNITS.outputs and not UNITS.compare(key, array).passed}


@pytest.mark.parametrize("name", CHANGES)
def test_another_selection_is_found(name, monkeypatch):
    changes, *expected = CHANGES[name]
    monkeypatch.setattr(selection, "select_tokens", lambda *arrays, **options: SELECT(*arrays, **options | changes))
    for case, names in zip(CASES, expected, strict=True):
        assert wrong(dpeformer.selected(UNITS, case)) == {f"sel.{case}.{key}" for key in names}


def test_sorted_the_other_way_is_found(monkeypatch):
    """The k tokens least like the proxy."""

    def reversed_scores(whole, tokens, proxy, normalise):
        scores, closest = PROXY_SCORES(whole, tokens, proxy, normalise)
        return -scores, closest

    monkeypatch.setattr(selection, "proxy_scores", reversed_scores)
    failed = wrong(dpeformer.selected(UNITS, "resample"))
    assert failed == {f"sel.resample.{key}" for key in {"k0", "min_value", "scores_sorted"} | CHOSEN}


@pytest.mark.parametrize("start", ["", dpeformer.FIXED])
def test_another_order_of_axes_is_found(start):
    """The official result, and that of the same weights with the heads joined properly, each in place of the other."""
    stem, official = f"{start}fbm.b4", start == ""
    arguments = (stem, 4, "attention_global.0.", dpeformer.BLENDING, "fbm_grad_names")
    assert not wrong(dpeformer.enriched(UNITS, SubVectorBlending(dpeformer.HEADS, official), *arguments))
    failed = wrong(dpeformer.enriched(UNITS, SubVectorBlending(dpeformer.HEADS, not official), *arguments))
    assert {f"{stem}.{key}" for key in ("y", "grad_part", "grad_global", "grad_norms_f64")} <= failed
    same = {key for key in UNITS.outputs if key.startswith(f"{stem}.")} - failed
    assert same == {f"{stem}.grad.Block.mlp.fc2.bias"}  # a sum of weights, whatever is computed before


def test_other_weights_of_the_heads_are_found(monkeypatch):
    monkeypatch.setitem(dpeformer.WEIGHTS, "global", 1.0)
    assert wrong(dpeformer.identities(UNITS)) == {"id.global_times_2", "id.total", "id.grad_logits4"}


def test_a_memory_without_its_floor_is_found(monkeypatch):
    monkeypatch.setattr(dpeformer, "FLOOR", 0.0)
    failed = wrong(dpeformer.remembered(UNITS))
    assert "bank.loss_clean" in failed and not failed & {"bank.init", "bank.after"}
