"""Which attention kernel a program gets, decided by what it is lowered for, and that cuDNN's computes what XLA's does."""

import functools
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import methods
from occreid_jax.config import CHOICES
from occreid_jax.nn import attention, jpm, vit
from occreid_jax.types import Meta

PLATFORMS = ("cpu", "tpu", "cuda")


@pytest.fixture
def kernel(monkeypatch):
    """A machine on which cuDNN's kernel compiles, the kernel itself being one that a program shows: a cube root."""
    monkeypatch.setattr(attention, "fused_compiles", lambda tokens, heads, width: True)
    monkeypatch.setattr(attention, "fused", lambda query, key, value, scale: jnp.cbrt(query))


def kernels(function, *shapes) -> dict[str, int]:
    """Cube roots in the program of a function, by the platform it is lowered for. No such device is needed."""
    traced = jax.jit(function).trace(*shapes)
    return {name: traced.lower(lowering_platforms=(name,)).as_text().count("stablehlo.cbrt") for name in PLATFORMS}


def head(width=64, dtype=jnp.bfloat16):
    return (jax.ShapeDtypeStruct((2, 9, 3, width), dtype),) * 3


CASES = {
    "as it comes": (head(), {}, 1),
    "switched off": (head(), {"choice": "xla"}, 0),
    "float32": (head(dtype=jnp.float32), {}, 0),
    "mask": (head(), {"mask": np.tril(np.ones((1, 1, 9, 9), bool))}, 0),
    "the widest head": (head(128), {}, 1),
    "a wider head": (head(136), {}, 0),
    "a width that is no multiple of 8": (head(12), {}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_cudnn_is_for_gpus_in_bfloat16_without_a_mask(kernel, case):
    shapes, changes, expected = CASES[case]
    found = kernels(lambda *qkv: attention.attend(*qkv, **changes), *shapes)
    assert found == {"cpu": 0, "tpu": 0, "cuda": expected}


def test_encoders_hand_the_choice_to_every_block(kernel):
    images = jax.ShapeDtypeStruct((2, 32, 16, 3), jnp.bfloat16)
    for choice, expected in (("auto", 2), ("xla", 0)):
        encoder = vit.ViT(vit.SIZES["micro"], (32, 16), 16, 16, dtype=jnp.bfloat16, attention_kernel=choice)
        params = jax.eval_shape(encoder.init, jax.random.key(0), images)
        assert kernels(encoder.apply, params, images)["cuda"] == expected  # blocks
        tokens = jax.ShapeDtypeStruct((2, 9, 32), jnp.bfloat16)
        module = jpm.JigsawPatchModule(encoder.size, dtype=jnp.bfloat16, attention_kernel=choice)
        apply = functools.partial(module.apply, train=False)
        params = jax.eval_shape(lambda x, module=module: module.init(jax.random.key(0), x, False), tokens)
        assert kernels(apply, params, tokens)["cuda"] == expected  # branches


@pytest.mark.parametrize("name", ["baseline", "transreid", "clip_reid", "dpm_pp", "fed", "dpeformer"])
def test_methods_hand_the_setting_to_their_encoders(name):
    config = importlib.import_module(f"configs.{name}").get_config("pretrained=false" if name != "clip_reid" else "")
    for choice in attention.CHOICES:
        config.attention = choice
        method = methods.create(config, Meta(4, 2, (128, 64), 16))
        encoders = [value for value in vars(method).values() if isinstance(value, vit.ViT)]
        assert encoders and {encoder.attention_kernel for encoder in encoders} == {choice}
    del config["attention"]  # as in a run older than the setting
    assert methods.create(config, Meta(4, 2, (128, 64), 16)).attention == "auto"


def test_a_machine_without_a_gpu_keeps_its_programs():
    assert not attention.fused_compiles(9, 3, 64)
    texts = [
        jax.jit(lambda *qkv, choice=choice: attention.attend(*qkv, choice=choice)).lower(*head()).as_text()
        for choice in attention.CHOICES
    ]
    assert texts[0] == texts[1]


def test_a_gpu_that_does_not_take_the_kernel_is_told(monkeypatch):
    def refuse(query, key, value):
        raise NotImplementedError("head of 64\non this GPU")

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "fused", refuse)
    with pytest.warns(UserWarning, match="no fused attention for 9 tokens and heads of 64, XLA's instead: head of 64$"):
        assert not attention.fused_compiles.__wrapped__(9, 3, 64)


def test_an_unknown_choice_is_named():
    with pytest.raises(ValueError, match="unknown attention 'flash'; it must be one of auto, xla"):
        attention.attend(*(jnp.zeros((1, 2, 1, 8)),) * 3, choice="flash")


def outputs(function, qkv, weights):
    """What a kernel gives and its gradients, float32."""

    def total(*qkv):
        return jnp.sum(function(*qkv).astype(jnp.float32) * weights)

    found = jax.jit(lambda *qkv: (function(*qkv), *jax.grad(total, argnums=(0, 1, 2))(*qkv)))(*qkv)
    return [np.asarray(x, np.float32) for x in found]


def inputs(*shape):
    """Queries, keys and values, and the weights of the outputs in a sum."""
    return jax.random.normal(jax.random.key(0), (3, *shape)), jax.random.normal(jax.random.key(1), shape)


@pytest.mark.parametrize("tokens", [8, 9])
def test_a_token_that_makes_the_number_even_is_not_seen(monkeypatch, tokens):
    """XLA's products in the place of cuDNN's kernel, with the lengths that it gets."""
    library, seen = jax.nn.dot_product_attention, []

    def stand_in(query, *rest, implementation, **options):
        assert implementation == "cudnn"
        seen.append(query.shape[1])
        return library(query, *rest, **options)

    qkv, weights = inputs(2, tokens, 3, 8)
    expected = outputs(lambda *qkv: library(*qkv, scale=0.3), qkv, weights)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    chex.assert_trees_all_close(outputs(lambda *qkv: attention.fused(*qkv, scale=0.3), qkv, weights), expected, atol=1e-5)
    assert set(seen) == {tokens + tokens % 2}


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [128, 129, 211])
def test_cudnn_rounds_as_xla_does(tokens):
    """Both bfloat16 kernels beside float32: cuDNN's is off by no more than twice what XLA's is, anywhere, gradients included."""
    if not attention.fused_compiles(tokens, 12, 64):
        pytest.skip("needs a GPU on which cuDNN's attention compiles")
    qkv, weights = inputs(4, tokens, 12, 64)
    low = qkv.astype(jnp.bfloat16)
    plain = jax.nn.dot_product_attention
    with jax.default_matmul_precision("highest"):
        exact = outputs(plain, low.astype(jnp.float32), weights)
    for true, ours, theirs in zip(exact, outputs(attention.fused, low, weights), outputs(plain, low, weights), strict=True):
        assert np.abs(ours - true).max() <= 2 * np.abs(theirs - true).max()
        assert np.abs(ours - true).max() <= 2**-6 * np.abs(true).max()


# The class token apart from the patches -------------------------------------------------------------


def encoders(monkeypatch, dtype=jnp.float32, **settings):
    """The same micro encoder with tokens together and apart, its parameters (moved off their start) and eight pictures."""
    monkeypatch.setattr(attention, "LINE", 4)
    size = vit.Size(32, 2, 2)
    pair = [vit.ViT(size, (32, 32), 16, 16, dtype=dtype, attention_kernel=choice, **settings) for choice in ("xla", "apart")]
    images = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))
    params = [encoder.init(jax.random.key(0), images)["params"] for encoder in pair]
    chex.assert_trees_all_equal(*params)  # names, shapes and initial values do not depend on it
    leaves, tree = jax.tree.flatten(params[0])
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return *pair, jax.tree.unflatten(tree, moved), images


def run(encoder, params, images, **options):
    """Everything that an encoder gives, and the gradient of a sum that weighs all of it differently."""

    def total(params):
        out = encoder.apply({"params": params}, images, return_cls_logits=True, rngs={"dropout": jax.random.key(3)}, **options)
        leaves = jax.tree.leaves(out)
        return sum(jnp.sum(leaf * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape))) for leaf in leaves), out

    return jax.jit(jax.value_and_grad(total, has_aux=True))(params)


def products(function, *arguments) -> list[tuple[int, ...]]:
    """Shapes of all matrix products in a function's program, inner functions included."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.append(equation.outvars[0].aval.shape)
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


@pytest.mark.parametrize("settings", [{}, {"drop_path": 0.5}, {"remat": True}], ids=["plain", "drop path", "remat"])
def test_apart_computes_the_same(monkeypatch, settings):
    together, apart, params, images = encoders(monkeypatch, **settings)
    expected, found = (run(encoder, params, images, train=True) for encoder in (together, apart))
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=2e-5 * float(jnp.abs(one).max()))
    shapes = [products(lambda p, encoder=encoder: encoder.apply({"params": p}, images), params) for encoder in (together, apart)]
    assert shapes[0] != shapes[1]


def test_apart_in_bfloat16_is_as_near_to_float32_as_together(monkeypatch):
    exact, _, params, images = encoders(monkeypatch)
    together, apart, _, _ = encoders(monkeypatch, jnp.bfloat16)
    want, *found = (encoder.apply({"params": params}, images).tokens for encoder in (exact, together, apart))
    errors = [float(jnp.abs(each - want).mean()) for each in found]
    assert 0 < errors[1] < 1.3 * errors[0]


def test_apart_never_makes_an_axis_of_all_tokens(monkeypatch):
    """5 tokens: none of the products has an axis of 5, which 4 patches and one token apart is about."""
    _, apart, params, images = encoders(monkeypatch)
    shapes = products(lambda p: apart.apply({"params": p}, images).tokens, params)
    assert shapes and not [shape for shape in shapes if 5 in shape]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, True), ({"extra_tokens": 1}, False), ({"dropout": 0.1}, False), ({"attention_dropout": 0.1}, False)],
)
def test_when_an_encoder_goes_apart(monkeypatch, settings, expected):
    monkeypatch.setattr(attention, "LINE", 4)
    encoder = vit.ViT(vit.Size(32, 2, 2), (32, 32), 16, 16, attention_kernel="apart", **settings)
    assert encoder.goes_apart(jnp.zeros((1, 5, 32))) is expected
    assert encoder.goes_apart(jnp.zeros((1, 6, 32))) is False  # 5 patches
    assert encoder.clone(apart_rows=2).goes_apart(jnp.zeros((1, 5, 32))) is False


def test_methods_go_apart_where_a_device_has_pictures_enough():
    settings = importlib.import_module("configs.baseline").get_config("pretrained=false")
    for devices, expected in ((2, 64), (0, 32 * jax.device_count())):
        settings.mesh.devices = devices
        method = methods.create(settings, Meta(4, 2, (128, 64), 16))
        assert attention.APART_ROWS == 32 and method.backbone.apart_rows == expected


def test_what_auto_means():
    assert [attention.for_platform("auto", platform) for platform in ("cpu", "gpu", "tpu")] == ["auto", "auto", "apart"]
    assert attention.for_platform("xla", "tpu") == "xla"
    assert attention.goes_apart("apart", 128) and attention.goes_apart("apart", 256)
    assert not any(attention.goes_apart(*case) for case in (("apart", 210), ("apart", 0), ("auto", 128)))
    assert attention.goes_apart("apart", 128, 256, 256) and not attention.goes_apart("apart", 128, 255, 256)
    assert CHOICES["attention"] == attention.CHOICES
