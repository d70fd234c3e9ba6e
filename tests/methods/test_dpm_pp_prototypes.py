"""DPM++: where prototypes start, that they move, and what a branch with masks of ones is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dpm_pp
from occreid_jax.methods.dpm_pp import METRIC, SELECTION
from occreid_jax.train.folder import claim_workdir
from occreid_jax.train.log import Reporter, read_metrics
from occreid_jax.train.loop import Trainer
from occreid_jax.train.setup import open_setup
from occreid_jax.types import PrepareContext
from tests.methods.test_dpm_pp import batch, create, gradients, initial, stage_of, started


def prepared(method, params, extra) -> dict:
    own = batch()

    def run(function):
        return np.asarray(function(params, extra, own))

    context = PrepareContext(params, extra, jax.random.key(1), np.asarray(own["label"]), np.asarray(own["camid"]), run)
    return method.prepare(stage_of(method, METRIC), 0, context)


def test_prototypes_start_as_they_are_or_as_the_identities_means():
    params, extra = initial()
    weight = np.asarray(params["prototypes"]["weight"], np.float64)
    kept = create()
    found = prepared(kept, params, extra)
    np.testing.assert_array_equal(found["prototype_start"], params["prototypes"]["weight"])
    assert kept.start(stage_of(kept, METRIC), params, found) is params

    method = create(prototype_start="means")
    found = prepared(method, params, extra)
    features = np.asarray(method.encode(params, batch()).feature, np.float64)
    features = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-5)
    means = np.stack([features[2 * identity : 2 * identity + 2].mean(0) for identity in range(6)])
    means *= np.sqrt((weight**2).sum(1).mean()) / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(found["prototype_start"], means, atol=2e-5)
    moved = method.start(stage_of(method, METRIC), params, found)
    np.testing.assert_array_equal(moved["prototypes"]["weight"], found["prototype_start"])
    assert all(moved[name] is params[name] for name in params if name != "prototypes")
    assert method.start(stage_of(method, SELECTION), params, found) is params


def test_drift_is_the_mean_cosine_to_the_start():
    method = create()
    params, extra = initial()
    start = np.random.default_rng(0).normal(size=params["prototypes"]["weight"].shape)
    weight = np.asarray(params["prototypes"]["weight"], np.float64)
    cosines = (weight * start).sum(1) / np.linalg.norm(weight, axis=1) / np.linalg.norm(start, axis=1)
    extra = extra | {"prototype_start": jnp.asarray(start, jnp.float32)}
    _, aux = method.loss(params, extra, batch(), jax.random.key(3), stage_of(method, METRIC), jnp.float32(0))
    np.testing.assert_allclose(aux.metrics["prototype_drift"], cosines.mean(), atol=1e-6)


def test_masks_of_ones_have_no_generator():
    method = create(unit_mask=True, alternating=True)
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    assert "mask_generator" not in params and "mask_generator" not in extra["batch_stats"]
    assert len(stage_of(method, METRIC).updates) == 1
    given = started()
    np.testing.assert_array_equal(method.embed(*given, batch(), "query"), create(test_mask=False).embed(*given, batch(), "query"))
    (term,) = gradients({"unit_mask": True}, METRIC, "masked_identity")
    assert term["prototypes"] > 0 and term["mask_generator"] == 0


@pytest.mark.slow
def test_prototypes_move_on_the_demo(tmp_path):
    """At the encoder's rate their cosine to the start stayed at 0.995: nothing but the encoder learned."""
    config = dpm_pp.get_config("row=baseline,text=false")
    config.data.root = str(tmp_path)
    config.stages.metric.epochs = 4
    config.mesh.devices = 1
    config.evaluation.untrained = False
    setup = open_setup(config, Reporter(quiet=True))
    claim_workdir(tmp_path / "run", config, setup.meta)
    Trainer(setup, tmp_path / "run").run()
    drifts = [line["metric/prototype_drift"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "stage" in line]
    assert 0.9 < drifts[0] <= 1 and drifts[-1] < 0.9
