"""Grad-CAM through the protocol: any method's encoder is found, and the maps are what the formula says."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import methods
from occreid_jax.methods import clip_reid
from occreid_jax.nn.clip_resnet import AttentionPool
from tests.methods.test_contract import META, micro_config, raw_batch

OTHERS = ("dpeformer", "dpl_reid", "dpm_pp", "fed", "ogfr", "transreid")
NAMES = ["baseline", *(pytest.param(name, marks=pytest.mark.slow) for name in ("clip_reid", *OTHERS))]


def opened(name):
    method = methods.create(micro_config(name), META)
    params, extra = jax.jit(method.init)(jax.random.key(0))
    batch = method.transform(raw_batch())
    others = jax.jit(lambda *given: method.embed(*given, "gallery"))(params, extra, jax.tree.map(lambda x: x[::-1], batch))
    return method, params, extra, batch, others


@pytest.mark.parametrize("name", NAMES)
def test_every_encoder_is_found(name):
    method, params, extra, batch, others = opened(name)
    maps = jax.jit(method.evidence)(params, extra, batch, others)
    assert maps.shape == (8, *next(iter(method.grids.values()))) and maps.dtype == jnp.float32
    assert bool(jnp.isfinite(maps).all()) and float(maps.min()) >= 0
    assert name == "ogfr" or float(maps.max()) > 0  # where no part is visible in two pictures, nothing tells them apart


def test_nothing_is_shown_without_an_encoder():
    method, params, extra, batch, others = opened("colour_histogram")
    assert method.evidence(params, extra, batch, others) is None


@pytest.mark.slow
def test_a_resnets_map_by_hand():
    config = importlib.import_module("configs.clip_reid").get_config()
    config.method.backbone, config.data.image_size, config.method.test_feature = "micro_resnet", (64, 32), "before"
    method = clip_reid.ClipReID(config, META)
    params, extra = jax.jit(method.init)(jax.random.key(0))
    batch = method.transform(raw_batch())
    others = method.embed(params, extra, batch | {"image": batch["image"][::-1]}, "gallery")
    out, _ = method.maps(params, extra, batch)
    pool = AttentionPool(method.size.visual.heads, method.size.embed)

    def score(last):
        tokens = pool.apply({"params": params["visual"]["attnpool"]}, last, False)
        features = jnp.concatenate([last.mean(axis=(1, 2)), tokens[:, 0]], axis=-1)
        units = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (features, others)]
        return -jnp.sum(jnp.square(units[0] - units[1]))

    slopes = jax.grad(score)(out.layer4)
    expected = np.maximum(np.sum(np.mean(slopes, axis=(1, 2), keepdims=True) * np.asarray(out.layer4), axis=-1), 0)
    np.testing.assert_allclose(method.evidence(params, extra, batch, others), expected, atol=1e-6, rtol=1e-3)
    assert expected.max() > 0
