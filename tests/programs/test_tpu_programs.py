"""Training steps of every method, compiled for four TPU chips that are not there, keep the rules of `programs.checks`.

Encoders are narrow and of two blocks, pictures of the published size: every kind of operation is in the program. Neither the
batch nor the number of pictures is a side of any parameter, so that the rules can tell them apart.
"""

import importlib
import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest

from configs import common
from occreid_jax import methods
from occreid_jax.nn import attention
from occreid_jax.programs import checks, compiled, hlo, topologies

REASON = "libtpu, the compiler of TPUs, is not installed: pip install -e '.[tpu]'"
ARGUMENTS = {"dpm_pp": "dataset=market1501,backbone=clip_micro", "clip_pretraining": "", "colour_histogram": ""}
TOPOLOGY, CHIPS = "v5e:2x2", 4
IMAGE_SIZE, IMAGES, BATCH = (256, 128), 12936, 80
USUAL = "dataset=occluded_duke,backbone=micro"


def opened(name: str):
    """The config of a method with a narrow encoder."""
    config = importlib.import_module(f"configs.{name}").get_config(ARGUMENTS.get(name, USUAL))
    if name == "clip_pretraining":  # takes no argument: it is for rendered pictures alone
        config.method.backbone = "micro"
    config.data.image_size = IMAGE_SIZE
    for stage in config.stages.values():
        stage.sampler.batch_size = BATCH
    if "transfer" in config.method:  # as where the batch of a published recipe is 64 pictures for each chip
        config.method.transfer.among = BATCH // CHIPS
    if "wgff" in config.method:
        config.method.wgff.network = "micro"
    return config


CASES = [(name, stage) for name in sorted(methods.NAMES) for stage in opened(name).stages]
APART = [("baseline", "main"), ("fed", "main")]  # also with the class token apart, as with more pictures for each chip


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason=REASON)
@pytest.mark.parametrize(
    ("name", "stage", "apart_rows"),
    [pytest.param(*case, 32, id="-".join(case)) for case in CASES]
    + [pytest.param(*case, 1, id="-".join((*case, "apart"))) for case in APART],
)
def test_a_step_on_four_chips(monkeypatch, name, stage, apart_rows):
    monkeypatch.setattr(attention, "APART_ROWS", apart_rows)
    config, devices = opened(name), topologies.open_topology(TOPOLOGY)
    preset = common.DATASETS[config.data.name]
    method = compiled.open_method(config, IMAGES, preset["identities"], preset["cameras"], devices)
    (chosen,) = (each for each in method.stages() if each.name == stage)
    program = compiled.compile_stage(method, config, chosen, devices, {})
    text = hlo.Text(program.text)
    assert list(text.collectives())  # gradients are summed over the chips
    broken = {rule: found for rule, check in checks.RULES.items() if (found := check(text, program.facts))}
    assert not broken, "\n".join(f"{rule}: {line}" for rule, lines in broken.items() for line in lines)


def places(lines: list[str], end: str) -> dict[str, int]:
    """Where asynchronous collectives start, or are done: their numbers -> lines."""
    found = ((number, re.match(rf"  %async-collective-{end}(\S*) = ", line)) for number, line in enumerate(lines))
    return {match[1]: number for number, match in found if match}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason=REASON)
def test_gradients_are_summed_beside_the_backward_pass():
    """With ``mesh.overlap`` sums begin before products of the backward pass and end after them; without it none does."""
    spans = {}
    for overlap in (False, True):
        devices = topologies.open_topology(TOPOLOGY, overlap=overlap)

        def loss(weights, x):
            for weight in weights:
                x = x + jnp.tanh(x @ weight.astype(x.dtype))
            return jnp.mean(jnp.square(x.astype(jnp.float32)))

        def step(weights, x):
            return jax.tree.map(lambda weight, gradient: weight - gradient, weights, jax.grad(loss)(weights, x))

        whole, kept = devices.replicated, [jax.ShapeDtypeStruct((2048, 2048), jnp.float32)] * 4
        options = devices.compiler_options or None
        function = jax.jit(step, in_shardings=(whole, devices.rows), out_shardings=whole, compiler_options=options)
        with compiled.whole_compiler():
            text = function.lower(kept, jax.ShapeDtypeStruct((64, 128, 2048), jnp.bfloat16)).compile().as_text()
        lines = text[text.index("\nENTRY ") :].splitlines()
        starts, ends = (places(lines, end) for end in ("start", "done"))
        between = [lines[start + 1 : ends[name]] for name, start in starts.items()]
        spans[overlap] = [any("fusion(" in line and "transpose(jvp" in line for line in piece) for piece in between]
    assert spans[False] == [] and len(spans[True]) >= 2 and any(spans[True])
