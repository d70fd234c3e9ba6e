"""Reading an optimised program: arrays and bytes, what stands in which computation, products, collectives once each, phases."""

import types
from pathlib import Path

import pytest

from occreid_jax.chips import CHIPS, chip_of
from occreid_jax.programs import figures, hlo
from occreid_jax.programs.compiled import Facts, Program

# A short program in the words of the TPU compiler, with one instruction of every kind that is read.
TEXT = (Path(__file__).parent / "canned.hlo").read_text()


@pytest.fixture(scope="module")
def text():
    return hlo.Text(TEXT)


def test_arrays_and_their_bytes():
    found = hlo.arrays("(bf16[3,2]{1,0:T(8,128)(2,1)S(1)}, pred[7], s4[5], f32[], u32[]{:S(2)}, f8e4m3fn[10])")
    assert [str(array) for array in found] == ["bf16[3,2]", "pred[7]", "s4[5]", "f32[]", "u32[]", "f8e4m3fn[10]"]
    assert [array.nbytes for array in found] == [12, 7, 2.5, 4, 4, 10]


def test_instructions_know_where_they_stand(text):
    assert text.entry == "main" and len(text.top) == 16 and len(text.by_computation) == 7
    copy = text.by_name["main", "copy.1"]
    assert (copy.kind, copy.cycles, copy.operands, copy.nbytes) == ("copy", 3000, ("tables",), 500 * 8 * 4 * 3)
    assert copy.scope == "tables[\\'image\\']"
    fusion = text.by_name["main", "gather_fusion"]
    assert fusion.called == ("fused_gather",) and fusion.scope == "jit(_take)/gather" and fusion.cycles == 0
    assert [each.kind for each in text.inside(fusion)] == ["parameter", "parameter", "gather"]
    assert text.operand(copy, 0).kind == "parameter" and text.operand(copy, 1) is None


def test_products(text):
    counted = {each.name: found for each in text.instructions if (found := hlo.product_flops(text, each))}
    assert counted == {"convolution.1": (2 * 16 * 32 * 96, "bf16"), "dot.1": (2 * 16 * 16 * 32, "f32")}
    found = figures.product_figures(text)
    share = 2 * 16 * 16 * 32 / (2 * 16 * 32 * 96 + 2 * 16 * 16 * 32)
    scope = "transpose(jvp(ViT))/attn/dot_general"
    assert found["float32"] == [{"scope": scope, "flops": 2 * 16 * 16 * 32, "share": share}]


@pytest.mark.parametrize(
    ("window", "depth"),
    [("", 3 * 3 * 8), (", window={size=3x3 pad=1_1x1_1}", 3 * 3 * 8), (", window={size=3x3 lhs_dilate=2x2}", 3 * 3 * 8 / 4)],
)
def test_convolutions_leave_out_products_with_zeros(window, depth):
    assert hlo.convolution_depth(f"%a, %b), dim_labels=b01f_01io->b01f{window}", hlo.Array("bf16", (3, 3, 8, 16))) == depth


def test_a_product_of_a_gpu_library():
    line = (
        "ENTRY %main (a: bf16[8,32], b: bf16[32,4]) -> bf16[8,4] {\n"
        "  %a = bf16[8,32]{1,0} parameter(0)\n"
        "  %b = bf16[32,4]{1,0} parameter(1)\n"
        '  ROOT %c = (bf16[8,4]{1,0}, s8[33]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", '
        'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}\n}\n'
    )
    text = hlo.Text(line)
    assert hlo.product_flops(text, text.top[-1]) == (2 * 8 * 4 * 32, "bf16")


def test_collectives_count_once(text):
    found = [(hlo.collective_kind(each), [str(array) for array in hlo.collective_results(each)]) for each in text.collectives()]
    assert found == [
        ("all-gather", ["f32[16,32]"]),
        ("all-reduce", ["bf16[96,32]", "f32[32]"]),
        ("collective-permute", ["f32[4,32]"]),
    ]
    rows = figures.collective_figures(text, 4, CHIPS["TPU v5 lite"])
    assert [(row["kind"], row["dtype"], row["bytes"], row["link_bytes"]) for row in rows] == [
        ("all-reduce", "bf16", 6144, 6144 * 1.5),
        ("all-gather", "f32", 2048, 2048 * 0.75),
        ("collective-permute", "f32", 512, 512),
        ("all-reduce", "f32", 128, 192),
    ]
    assert rows[0]["ring_seconds"] == 6144 * 1.5 / 100e9


def test_bytes_in_a_ring():
    """Every chip sends its share n - 1 times; the sum does so twice, once to add and once to hand round."""
    sent = {kind: hlo.link_bytes(kind, 800.0, 8) for kind in ("all-reduce", "all-gather", "all-to-all", "collective-permute")}
    assert sent == {"all-reduce": 1400, "all-gather": 700, "all-to-all": 700, "collective-permute": 800}
    assert hlo.link_bytes("reduce-scatter", 100.0, 8) == 700


@pytest.mark.parametrize(
    ("scope", "phase"),
    [
        ("augment/vmap()/gather", "augmentation"),
        ("update/jit(searchsorted)/while", "update"),
        ("jvp(ViT)/block_00/attn/dot_general", "forward"),
        ("transpose(jvp(ViT))/block_00/attn/dot_general", "backward"),
        ("jvp(augmented)/add", "forward"),
        ("tables['image']", "other"),
        ("", "other"),
    ],
)
def test_phases(scope, phase):
    assert figures.phase_of(scope) == phase


def test_an_embedding_is_forward_alone():
    assert figures.phase_of("ViT/block_00/add", training=False) == "forward"
    assert figures.phase_of("batch['image']", training=False) == "other"


def program(name: str = "main") -> Program:
    memory = types.SimpleNamespace(
        argument_size_in_bytes=2**30, output_size_in_bytes=2**21, alias_size_in_bytes=2**20, temp_size_in_bytes=2**29,
        generated_code_size_in_bytes=5, peak_memory_in_bytes=2**31,
    )  # fmt: skip
    executable = types.SimpleNamespace(
        memory_analysis=lambda: memory, cost_analysis=lambda: {"flops": 1e9, "bytes accessed": 2e9}
    )
    chip = types.SimpleNamespace(device_kind="TPU v5 lite")
    chips = types.SimpleNamespace(size=4, flat=[chip])
    devices = types.SimpleNamespace(mesh=types.SimpleNamespace(devices=chips))
    return Program(name, executable, TEXT, 3.0, 8e8, devices, Facts(64, (8, 4), {}, {}, {}))


def test_figures_of_a_program(text):
    found = figures.figures(program(), text)
    memory = found["memory"]
    assert (memory["results"], memory["peak"], memory["share"]) == (2**20, 2**31, 0.125)
    assert found["flops"] == {"compiler": 1e9, "analytic": 8e8, "ratio": 1.25}
    took, ring = found["estimate"], (6144 * 1.5 + 2048 * 0.75 + 512 + 192) / 100e9
    cycles = {"forward": 9000, "backward": 6000, "update": 1500, "augmentation": 500, "other": 3000}
    assert took["phases"] == pytest.approx({phase: each / 1.5e9 for phase, each in cycles.items()})
    assert took["step_seconds"] == pytest.approx(20000 / 1.5e9 + ring) and took["ring_seconds"] == pytest.approx(ring)
    assert took["images_per_second"] == pytest.approx(64 / took["step_seconds"])
    assert took["utilisation"] == pytest.approx(8e8 / took["step_seconds"] / 197e12)
    assert [each["name"] for each in took["dearest"]][:2] == ["fusion.1", "dot.1"]
    assert took["without_estimate"] == {"gather": 1, "while": 1}
    assert [each["name"] for each in found["loops"]] == ["while.1"] and found["copies"] == []  # 48,000 bytes are few


def test_chips_by_the_longest_name():
    assert chip_of("TPU v5 lite").flops == 197e12 and chip_of("TPU v5p").flops == chip_of("TPU v5").flops == 459e12
    assert chip_of("NVIDIA H100 80GB HBM3").flops == 989e12 and chip_of("cpu") is None
