"""Parameters cast once per step: which of them may be, that each is, and that results stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dpm_pp
from occreid_jax import methods
from occreid_jax.methods.dpm_pp import SELECTION
from occreid_jax.train import casting
from occreid_jax.train.plan import make_plan
from occreid_jax.train.state import replace, select
from occreid_jax.train.step import StageStep
from occreid_jax.types import Meta

HALF = jnp.bfloat16
META = Meta(identities=6, cameras=3, image_size=(64, 32), images=12)


def test_what_is_cast_at_every_use_and_what_is_not():
    def program(given):
        x = jnp.ones((2, 2), HALF)
        for name in ("once", "twice", "twice", "also_whole"):
            x = x @ given[name].astype(HALF)
        x = jax.jit(lambda w: x @ w.astype(HALF))(given["jitted"])
        x = jax.checkpoint(lambda w: x @ w.astype(HALF))(given["rematerialised"])
        x = jax.lax.scan(lambda x, _: (x @ given["repeated"].astype(HALF), None), x, None, 3)[0]
        x = jax.vmap(lambda row: row @ given["mapped"].astype(HALF))(x)
        whole = jnp.sum(given["also_whole"]) + jax.jit(jnp.sum)(given["jitted_whole"])
        return x + given["other"].astype(jnp.float16).astype(HALF), whole, given["result"]

    names = ("once", "twice", "also_whole", "jitted", "rematerialised", "repeated", "mapped", "jitted_whole", "other", "result")
    given = {name: jnp.ones((2, 2)) for name in names}
    found = casting.cast_alone(program, given, HALF)
    assert found == {"once", "twice", "jitted", "rematerialised", "repeated", "mapped"}
    handed = casting.cast(given, found, HALF)
    assert {name for name, value in handed.items() if value.dtype == HALF} == found


@pytest.fixture(scope="module")
def selection():
    """(step, objective, chosen parameters) of DPM++'s second stage, whose encoder sees every picture three times."""
    config = dpm_pp.get_config("backbone=clip_micro")
    config.data.image_size, config.dtype = META.image_size, "bfloat16"
    method = methods.create(config, META)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    params, extra = jax.tree.map(lambda x: rng.normal(scale=0.1, size=x.shape).astype(np.float32), shapes)
    labels = np.arange(META.images, dtype=np.int32) // 2
    stage = next(stage for stage in method.stages() if stage.name == SELECTION)
    stage.sampler.batch_size, stage.sampler.images_per_identity = 12, 2
    (plan,) = make_plan((stage,), labels, 0, 1, 1).stages
    step = StageStep(method, plan, params)
    image = rng.normal(size=(META.images, *META.image_size, 3)).astype(np.float32)
    batch = {"image": jnp.asarray(image), "camid": jnp.zeros(META.images, jnp.int32), "label": jnp.asarray(labels)}

    def objective(chosen):
        return method.loss(replace(params, chosen), extra, batch, jax.random.key(1), stage, jnp.float32(0))

    return step, objective, select(params, step.paths[0])


def casts(jaxpr) -> dict:
    """How often arrays of each shape are cast from float32 to the type of the products, anywhere in a program."""
    found = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convert_element_type" and equation.params["new_dtype"] == HALF:
            if equation.invars[0].aval.dtype == jnp.float32:
                shape = equation.invars[0].aval.shape
                found[shape] = found.get(shape, 0) + 1
        for inner in casting.inner_programs(equation):
            for shape, count in casts(inner).items():
                found[shape] = found.get(shape, 0) + count
    return found


def test_a_network_that_is_used_three_times_is_cast_once(selection):
    step, objective, chosen = selection
    names = casting.cast_alone(objective, chosen, HALF)
    products = {name for name in chosen if "/block_" in name and "/norm" not in name}
    assert products | {"selection/encoder/patch_embed/kernel", "selection/encoder/pos_embed"} == names
    qkv = chosen["selection/encoder/block_00/attn/qkv/kernel"].shape
    before, after = (casts(jax.make_jaxpr(each)(chosen).jaxpr)[qkv] for each in (objective, step.cast_once(objective, chosen)))
    assert (before, after) == (2 * 2, 2)  # two blocks, in two passes: the parts of a picture are one


def test_nothing_is_cast_where_products_are_float32(selection):
    step, objective, chosen = selection
    step.method.dtype, kept = jnp.dtype(jnp.float32), step.method.dtype
    try:
        assert step.cast_once(objective, chosen) is objective
    finally:
        step.method.dtype = kept


@pytest.mark.slow
def test_cast_once_the_loss_is_the_same(selection):
    """The loss bit for bit, gradients but for the rounding of a sum of two that are rounded already; masters stay float32."""
    step, objective, chosen = selection
    found = [jax.jit(jax.value_and_grad(each, has_aux=True))(chosen) for each in (objective, step.cast_once(objective, chosen))]
    ((first, _), before), ((second, _), after) = jax.device_get(found)
    assert first == second
    for name, value in before.items():
        assert after[name].dtype == np.float32
        np.testing.assert_allclose(after[name], value, rtol=0, atol=2**-7 * np.abs(value).max(), err_msg=name)
