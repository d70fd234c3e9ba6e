"""Every rule about programs on a program that keeps it and on one that breaks it."""

from pathlib import Path

import pytest

from occreid_jax.programs import checks, hlo
from occreid_jax.programs.compiled import Facts

TEXT = (Path(__file__).parent / "canned.hlo").read_text()
FACTS = Facts(16, (8, 5), {"fc1/kernel": (96, 32), "fc1/bias": (32,)}, {}, {"image": (500, 8, 4, 3)})
REDUCTION = '  %all-reduce.9 = {0} all-reduce(%x), channel_id=9, to_apply=%region.1, metadata={{op_name="jit(f)/{1}"}}\n'
BACKWARD, FORWARD = "transpose(jvp(ViT))/fc2/dot_general", "jvp(BNNeck)/reduce_sum"


def told(rule: str, *lines: str, facts: Facts = FACTS) -> list[str]:
    """What a rule says of the canned program with more lines in its entry."""
    return checks.RULES[rule](hlo.Text(TEXT.replace("  %x = bf16", "".join(lines) + "  %x = bf16")), facts)


PIXELS = ("u8[5]{0}", "bf16[16,8,5,3]{3,2,1,0}", "bf16[2,2,120]{2,1,0}", "pred[16,8,5]{2,1,0}")


@pytest.mark.parametrize("shape", [*PIXELS, "s32[500]{0}"])
def test_collectives_of_pictures_and_tables(shape):
    assert told("pixels") == []
    assert told("pixels", REDUCTION.format(shape, FORWARD)) == [f"all-reduce of {shape.partition('{')[0]} ({FORWARD})"]


def test_rows_moved_from_chip_to_chip():
    assert told("reshuffling") == ["collective-permute of f32[4,32] ()"]
    moved = '  %a = bf16[4,32]{1,0} all-to-all(%x), channel_id=8, metadata={op_name="jit(f)/jvp()/concatenate"}\n'
    assert len(told("reshuffling", moved)) == 2


@pytest.mark.parametrize(
    ("shape", "scope", "counts"),
    [
        ("bf16[96,32]{1,0}", BACKWARD, True),
        ("bf16[96,32]{1,0}", "", True),  # not known to be anything else
        ("bf16[96,32]{1,0}", FORWARD, False),
        ("f32[16,96]{1,0}", BACKWARD, False),  # features of the whole batch
        ("f32[128]{0}", BACKWARD, False),  # no more than four vectors
        ("s32[96,32]{1,0}", BACKWARD, False),
    ],
)
def test_gradients_summed_twice(shape, scope, counts):
    assert told("gradients") == []
    found = told("gradients", REDUCTION.format(shape, scope).replace("%x", "%nothing"))
    assert found == (["6,144 numbers of gradients are summed over the chips, but 3,072 move"] if counts else [])


def test_gradients_left_out():
    facts = FACTS._replace(trained=FACTS.trained | {"fc2/kernel": (32, 96)})
    assert told("gradients", facts=facts) == ["3,072 numbers of gradients are summed over the chips, but 6,144 move"]
    facts = FACTS._replace(trained=FACTS.trained | {"text/pos_embed": (77, 32)})
    assert told("gradients", facts=facts) == []  # of which a sentence uses a few rows


def test_prototypes_may_be_summed_three_times():
    facts = FACTS._replace(trained={"prototypes/weight": (96, 32), "neck/scale": (32,)})
    summed = REDUCTION.format("bf16[96,32]{1,0}", BACKWARD).replace("%x", "%nothing")
    others = [summed.replace("all-reduce.9", f"all-reduce.{n}").replace("channel_id=9", f"channel_id={n}") for n in (11, 12, 13)]
    assert told("gradients", *others[:2], facts=facts) == []
    assert told("gradients", *others, facts=facts) == ["12,288 numbers of gradients are summed over the chips, but 3,072 move"]


def test_copies_of_tables(monkeypatch):
    assert told("tables") == []  # 48,000 bytes are few
    monkeypatch.setattr(checks, "LARGE", 48_000)
    assert told("tables") == ["copy copy.1 makes u8[500,8,4,3] (tables[\\'image\\'])"]
    monkeypatch.setattr(checks, "LARGE", 48_001)
    assert told("tables") == []


def test_loops(monkeypatch):
    assert told("loops") == ["loop while.1 (augment/vmap()/gather)"]
    monkeypatch.setattr(checks, "LOOPS", ("^augment/",))
    assert told("loops") == []


def test_float32_products(monkeypatch):
    assert told("float32") == []  # the backward pass of attention may
    share = 100 * 2 * 16 * 16 * 32 / (2 * 16 * 32 * 96 + 2 * 16 * 16 * 32)
    monkeypatch.setattr(checks, "WIDE", {})
    scope = "transpose(jvp(ViT))/attn/dot_general"
    assert told("float32") == [f"{share:.1f} % of the FLOPs are float32 products of {scope}"]
    monkeypatch.setattr(checks, "WIDE_SHARE", share / 100)
    assert told("float32") == []
