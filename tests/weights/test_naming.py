"""Rules of names and layouts: each direction by hand, and the way there and back bit for bit."""

import ml_dtypes
import numpy as np
import pytest

from occreid_jax.errors import UserError
from occreid_jax.weights import naming
from occreid_jax.weights.naming import LeftOut, Rule, block_rules, check_shapes, export_arrays, import_arrays

QKV = Rule("backbone/block_{i:02d}/attn/qkv/kernel", "base.blocks.{i}.attn.qkv.weight", "linear")


def numbers(*shape) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_templates_in_both_directions():
    assert QKV.to_path("base.blocks.3.attn.qkv.weight") == "backbone/block_03/attn/qkv/kernel"
    assert QKV.to_name("backbone/block_11/attn/qkv/kernel") == "base.blocks.11.attn.qkv.weight"
    assert QKV.to_path("base.blocks.103.attn.qkv.weight") == "backbone/block_103/attn/qkv/kernel"
    assert QKV.to_name(QKV.to_path("base.blocks.103.attn.qkv.weight")) == "base.blocks.103.attn.qkv.weight"


@pytest.mark.parametrize(
    "name", ["base.blocks.03.attn.qkv.weight", "base_blocks_3_attn_qkv_weight", "x.base.blocks.3.attn.qkv.weight"]
)
def test_other_spellings_are_other_names(name):
    assert QKV.to_path(name) is None


@pytest.mark.parametrize(
    "path", ["backbone/block_3/attn/qkv/kernel", "backbone/block_003/attn/qkv/kernel", "backbone/block_03/attn"]
)
def test_other_spellings_are_other_paths(path):
    assert QKV.to_name(path) is None


@pytest.mark.parametrize(
    "layout, shape, expected",
    [
        ("same", (), ()),
        ("same", (4, 3), (4, 3)),
        ("linear", (4, 3), (3, 4)),
        ("conv", (7, 3, 4, 5), (4, 5, 3, 7)),
        ("rows", (6, 1, 8), (6, 8)),
    ],
)
def test_layouts_go_there_and_back_without_a_bit_changed(layout, shape, expected):
    rule, array = Rule("a", "b", layout), numbers(*shape)
    ours = rule.import_array(array)
    assert ours.shape == expected and ours.flags.c_contiguous
    back = rule.export_array(ours)
    assert back.shape == shape and back.flags.c_contiguous and back.tobytes() == array.tobytes()


def test_where_each_number_goes():
    conv = numbers(7, 3, 4, 5)
    assert Rule("a", "b", "conv").import_array(conv)[1, 2, 0, 6] == conv[6, 0, 1, 2]
    linear = numbers(4, 3)
    assert Rule("a", "b", "linear").import_array(linear)[2, 1] == linear[1, 2]
    kernel, output = numbers(8, 2, 4), numbers(2, 4, 8)
    assert Rule("a", "b", "heads_kernel").import_array(kernel)[5, 1 * 4 + 3] == kernel[5, 1, 3]
    assert Rule("a", "b", "heads_output").import_array(output)[1 * 4 + 3, 5] == output[1, 3, 5]
    with pytest.raises(ValueError, match="no way back"):
        Rule("a", "b", "heads_kernel").export_array(kernel)


@pytest.mark.parametrize("layout, shape", [("linear", (4,)), ("conv", (4, 3)), ("rows", (6, 2, 8))])
def test_a_shape_that_the_layout_cannot_have(layout, shape):
    with pytest.raises(UserError, match=r"base\.x has shape .* another network"):
        import_arrays({"base.x": numbers(*shape)}, (Rule("a", "base.x", layout),))


def test_blocks_of_other_families_need_only_their_names():
    clip = {
        "norm1": "ln_1.",
        "norm2": "ln_2.",
        "attn/qkv": "attn.in_proj_",
        "attn/proj": "attn.out_proj.",
        "mlp/fc1": "mlp.c_fc.",
        "mlp/fc2": "mlp.c_proj.",
    }
    rules = block_rules("visual/block_{i:02d}/", "visual.transformer.resblocks.{i}.", clip)
    start = "visual.transformer.resblocks.7."
    assert naming.to_path(rules, start + "attn.in_proj_weight")[0] == "visual/block_07/attn/qkv/kernel"
    assert naming.to_path(rules, start + "attn.in_proj_bias")[0] == "visual/block_07/attn/qkv/bias"
    assert naming.to_name(rules, "visual/block_07/mlp/fc2/kernel") == start + "mlp.c_proj.weight"
    assert naming.to_path(rules, start + "ln_1.weight") == ("visual/block_07/norm1/scale", rules[0])
    assert naming.to_path(rules, start + "ln_3.weight") is None and naming.to_name(rules, "other") == "other"


SEPARATE = block_rules("block_{i:02d}/", "layer.{i}.", {"attn/qkv": ("query.", "key.", "value.")})


def test_query_key_and_value_become_one_and_three_again():
    arrays = {f"layer.0.{word}.weight": numbers(4, 4) + k for k, word in enumerate(("value", "query", "key"))}
    arrays |= {f"layer.0.{word}.bias": numbers(4) + k for k, word in enumerate(("key", "value", "query"))}
    weights, entries = import_arrays(arrays, SEPARATE)
    words = ("query", "key", "value")
    kernel = np.concatenate([arrays[f"layer.0.{word}.weight"].T for word in words], axis=1)
    np.testing.assert_array_equal(weights["block_00/attn/qkv/kernel"], kernel)
    bias = np.concatenate([arrays[f"layer.0.{word}.bias"] for word in words])
    np.testing.assert_array_equal(weights["block_00/attn/qkv/bias"], bias)
    assert [entry.note for entry in entries[:3]] == ["part 3 of 3", "part 1 of 3", "part 2 of 3"]
    back, _ = export_arrays(weights, SEPARATE)
    assert back.keys() == arrays.keys() and all(back[name].tobytes() == arrays[name].tobytes() for name in arrays)


def test_a_part_that_is_missing_or_of_another_shape():
    arrays = {f"layer.0.{word}.weight": numbers(4, 4) for word in ("query", "value")}
    with pytest.raises(UserError, match=r"layer\.0\.key\.weight is missing, which goes with layer\.0\.query\.weight"):
        import_arrays(arrays, SEPARATE)
    with pytest.raises(UserError, match="different shapes"):
        import_arrays(arrays | {"layer.0.key.weight": numbers(2, 4)}, SEPARATE)


def test_every_tensor_is_accounted_for():
    rules = (Rule("a", "x"), Rule("b", "y", "linear"))
    arrays = {"x": numbers(3), "y": numbers(2, 3), "z": np.int64(0).reshape(())}
    weights, entries = import_arrays(arrays, rules, (LeftOut("z", "a counter"),))
    assert set(weights) == {"a", "b"} and [entry.name for entry in entries] == list(arrays)
    assert entries[1] == ("y", (2, 3), "float32", naming.USED, "b", "")
    assert entries[2] == ("z", (), "int64", naming.LEFT_OUT, "", "a counter")
    with pytest.raises(UserError, match="2 tensors are unexplained: v, w;"):
        import_arrays(arrays | {"v": numbers(1), "w": numbers(1)}, rules, (LeftOut("z", ""),))
    with pytest.raises(UserError, match="1 tensor is unexplained: zz;"):  # a pattern is about whole names
        import_arrays({"zz": numbers(1)}, rules, (LeftOut("z", ""),))


def test_two_tensors_of_one_path():
    rules = (Rule("a", "x"), Rule("a", "old_x"))
    assert naming.to_name(rules, "a") == "x"
    with pytest.raises(UserError, match="x and old_x are both a;"):
        import_arrays({"x": numbers(1), "old_x": numbers(1)}, rules)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32_and_it_is_said(dtype):
    array = numbers(5).astype(dtype)
    weights, entries = import_arrays({"x": array}, (Rule("a", "x"),))
    assert weights["a"].dtype == np.float32 and entries[0].note == f"{np.dtype(dtype).name} made float32"
    np.testing.assert_array_equal(weights["a"].astype(np.float64), array.astype(np.float32).astype(np.float64))


def test_numbers_that_are_no_floats():
    with pytest.raises(UserError, match="x holds int8 numbers"):
        import_arrays({"x": np.zeros(3, np.int8)}, (Rule("a", "x"),))


def test_a_path_without_a_name():
    with pytest.raises(UserError, match="b has no PyTorch name"):
        export_arrays({"b": numbers(1)}, (Rule("a", "x"),))


def test_shapes_are_checked_by_the_names_of_the_source():
    rules = (Rule("a", "x"), Rule("b", "y"))
    expected = {"a": (2,), "b": (3,)}
    check_shapes({"a": numbers(2), "b": numbers(3)}, expected, rules)
    for weights, words in (
        ({"a": numbers(2)}, "y is missing"),
        ({"a": numbers(2), "b": numbers(4)}, r"y is \(4,\) here, where the other tensors ask for \(3,\)"),
        ({"a": numbers(2), "b": numbers(3, 1)}, "y has 2 axes instead of 1"),
        ({"a": numbers(2), "b": numbers(3), "c": numbers(1)}, "c has no place beside the other tensors"),
    ):
        with pytest.raises(UserError, match=words):
            check_shapes(weights, expected, rules)
