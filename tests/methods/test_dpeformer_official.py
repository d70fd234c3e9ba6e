"""DPEFormer as its authors' code has it: presets and slips, heads without or with shared necks, weights of the heads, the mixed
batch, REM, and what is refused at test time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dpeformer
from occreid_jax import config as configuration
from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.nn import pooling
from occreid_jax.types import Meta
from occreid_jax.weights.trees import flatten
from tests.methods.test_dpeformer import META, batch, create, encoded, loss, started

pytestmark = pytest.mark.slow  # thorough; the contract tests keep this method in the fast set

OFFICIAL, FIXED = "backbone=micro,preset=official", "backbone=micro,preset=fixed"
AFTER = {"memory__after_neck": True, "memory__floor": 1e-6, "test_feature": "after"}  # as every preset has them
PARTS = tuple(f"part_{part}" for part in range(4))


def neck(feature, head, statistics=None):
    """A feature after its neck, float64: with the statistics of the batch or stored ones."""
    x = np.asarray(feature, np.float64)
    mean, var = (x.mean(0), x.var(0)) if statistics is None else (np.asarray(statistics[key]) for key in ("mean", "var"))
    return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(head["neck"]["scale"]) + np.asarray(head["neck"]["bias"])


def randomised(params, extra):
    """Necks whose scales and statistics are none of the initial ones."""
    rng = np.random.default_rng(2)
    for name, statistics in extra["batch_stats"].items():
        size = statistics["neck"]["mean"].shape
        params["heads"][name]["neck"]["scale"] = jnp.asarray(1 + 0.3 * rng.normal(size=size), jnp.float32)
        statistics["neck"]["mean"] = jnp.asarray(0.3 * rng.normal(size=size), jnp.float32)
        statistics["neck"]["var"] = jnp.asarray(1 + rng.uniform(size=size), jnp.float32)
    return params, extra


# Presets ------------------------------------------------------------------------------------------------------------------


def flat(argument: str) -> dict:
    return configuration.flatten(configuration.to_dict(dpeformer.get_config(argument)))


def placed(changes: dict) -> dict:
    """Changes as keys of a whole config."""
    where = {key: "method" if not key.startswith(("occlusion.", "erasing")) else "stages.main.augment" for key in changes}
    values = {f"{where[key]}.{key}": value for key, value in changes.items()}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


@pytest.mark.parametrize("slip", dpeformer.SLIPS)
def test_a_slip_is_the_fixed_code_but_for_its_keys(slip):
    given = "dataset=occluded_duke,preset=fixed"
    plain, changed = flat(given), flat(f"{given},slip={slip}")
    assert plain.keys() == changed.keys()
    different = {key: changed[key] for key in plain if plain[key] != changed[key]}
    expected = placed(dpeformer.SLIPS[slip])
    assert different == expected and expected


def test_official_is_the_fixed_code_with_every_slip():
    given = "dataset=occluded_duke,preset"
    plain, official = flat(f"{given}=fixed"), flat(f"{given}=official")
    slips = placed({key: value for slip in dpeformer.SLIPS.values() for key, value in slip.items()})
    assert {key: official[key] for key in plain if plain[key] != official[key]} == slips
    assert len(slips) == sum(map(len, dpeformer.SLIPS.values()))  # no two slips are about the same setting
    assert flat(f"preset=fixed,slip={'+'.join(dpeformer.SLIPS)}") == flat("preset=official")
    paper = flat("dataset=occluded_duke")
    assert flat(f"{given}=paper") == paper
    optimiser = {key for key in paper.keys() | plain.keys() if key.startswith("stages.main.optimizer.")}
    code = placed(dpeformer.CODE)
    assert {key for key in paper.keys() | plain.keys() if paper.get(key) != plain.get(key)} - optimiser == code.keys()


@pytest.mark.parametrize("argument", ["preset=fixed", "preset=official", *(f"preset=fixed,slip={s}" for s in dpeformer.SLIPS)])
def test_every_preset_takes_a_step_and_compares(argument):
    config = dpeformer.get_config(f"backbone=micro,{argument}")
    configuration.validate(config)
    assert config.method.selection.absolute is False  # of small pictures so many of 128
    config.data.image_size, config.dtype = META.image_size, "float32"
    method = methods.create(config, META)
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    assert "neck" not in params["heads"]["global"] and "neck" not in params["heads"]["final"]
    assert extra["batch_stats"].keys() == {"memory", *PARTS}
    (stage,) = method.stages()

    def total(params, extra):
        return method.loss(params, extra, batch(), jax.random.key(0), stage, jnp.float32(0))

    slopes, aux = jax.eval_shape(jax.grad(total, has_aux=True), params, extra)
    assert jax.tree.structure(slopes) == jax.tree.structure(params)
    assert jax.tree.structure(aux.extra) == jax.tree.structure(extra)
    assert jax.eval_shape(lambda p, e: method.embed(p, e, batch(), "query"), params, extra).shape == (12, 128)


def test_sizes_of_the_official_network():
    config = dpeformer.get_config("dataset=occluded_duke,preset=official")
    method = methods.create(config, Meta(702, 8, (256, 128), 15_618))
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    sizes = {path: x.size for path, x in flatten(params).items()}
    assert sum(size for path, size in sizes.items() if path.startswith("fbm_")) == 4 * 2_448
    assert sum(size for path, size in sizes.items() if path.endswith("kernel") and path.startswith("heads/")) == 702 * 13 * 768
    assert extra["bank"].shape == (702, 3072) and method.least == 24
    assert methods.create(dpeformer.get_config("dataset=occluded_duke,preset=official,stride=12"), method.meta).least == 24
    assert methods.create(dpeformer.get_config("dataset=occluded_duke,stride=12"), method.meta).least == 79


def test_unknown_words():
    for argument, words in (
        ("preset=published", "unknown preset 'published'; known: paper, fixed, official"),
        ("slip=banana", "unknown slip 'banana'; known: erased_twin, first_patch, one_too_few, pooled_by_batch, mixed_batch"),
    ):
        with pytest.raises(ValueError, match=words):
            dpeformer.get_config(argument)
    for settings, words in (
        ({"global_token": "mean"}, "config.method.global_token is 'mean'; it must be one of cls, first_patch"),
        ({"necks": "none"}, "config.method.necks is 'none'; it must be one of separate, shared"),
        ({"blending__kind": "fbm"}, "config.method.blending.kind is 'fbm'; it must be one of paper, sub_vector, relation"),
        ({"blending__heads": 3}, "config.method.blending.heads=3 does not divide the 16 of a sub-vector"),
    ):
        with pytest.raises(UserError, match=words):
            create(FIXED, **settings)


# Features -----------------------------------------------------------------------------------------------------------------


def test_the_first_patch_is_the_global_feature_and_its_own_proxy():
    method = create(OFFICIAL)
    params, _ = started(method)
    tokens = method.backbone.apply({"params": params["backbone"]}, batch()["image"]).tokens
    own = encoded(method, params, batch()["image"])
    np.testing.assert_array_equal(own.whole, tokens[:, 1])
    products = np.einsum("bd,bnd->bn", tokens[:, 1], tokens[:, 1:])
    np.testing.assert_allclose(own.selection.scores[own.selection.proxy == 0], products[own.selection.proxy == 0], rtol=1e-5)
    assert bool((own.selection.proxy == 0).all())
    other = encoded(create(OFFICIAL, global_token="cls"), params, batch()["image"])
    np.testing.assert_array_equal(other.whole, tokens[:, 0])


def test_least_number_as_it_stands():
    assert create(FIXED, selection__absolute=True, selection__least=5).least == 5
    assert create(FIXED, selection__absolute=True, selection__least=24).least == 8  # all there are
    assert create(FIXED, selection__least=24).least == 2  # 24 of 128


def test_the_final_head_takes_what_the_parts_necks_give():
    method = create(FIXED, **AFTER)
    params, extra = randomised(*started(method))
    own = encoded(method, params, batch()["image"])
    found = method.normalised(params, extra["batch_stats"], method.features(own))
    parts = [neck(own.parts[:, n], params["heads"][name], extra["batch_stats"][name]["neck"]) for n, name in enumerate(PARTS)]
    final = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(found.features["final"], final, atol=1e-4)
    kernel = np.asarray(params["heads"]["final"]["classifier"]["kernel"])
    np.testing.assert_allclose(found.logits["final"], final @ kernel, rtol=1e-4, atol=1e-3)
    # The global feature is classified as it is.
    np.testing.assert_array_equal(found.features["global"], own.whole)
    kernel = np.asarray(params["heads"]["global"]["classifier"]["kernel"])
    np.testing.assert_allclose(found.logits["global"], own.whole @ kernel, rtol=1e-4, atol=1e-3)
    # What is compared is the final feature after the necks.
    np.testing.assert_allclose(method.embed(params, extra, batch(), "query"), final, atol=1e-4)
    before = create(FIXED, **AFTER | {"test_feature": "before"}).embed(params, extra, batch(), "query")
    np.testing.assert_allclose(before, own.final, atol=1e-5)


@pytest.mark.parametrize("kind", ["relation", "sub_vector"])
def test_blending_modules_of_the_parts(kind):
    method = create(FIXED, blending__kind=kind)
    params, _ = started(method)
    for number in range(4):
        if kind == "relation":
            params[f"fbm_{number}"]["share"] = jnp.full(1, 0.5 + number)
    own = encoded(method, params, batch()["image"])
    for number in range(4):
        expected = method.blending.apply({"params": params[f"fbm_{number}"]}, own.pooled[:, number], own.whole)
        np.testing.assert_allclose(own.parts[:, number], expected, atol=1e-5)
    assert float(jnp.abs(own.parts - own.pooled).max()) > 1e-2


def test_relation_enrichment_begins_as_nothing():
    method = create("backbone=micro,row=rem")
    params, _ = started(method)
    own = encoded(method, params, batch()["image"])
    np.testing.assert_array_equal(own.parts, own.pooled)


# The loss -----------------------------------------------------------------------------------------------------------------


def test_official_loss_written_out():
    """Stripes and final feature count half each, the global feature twice, a part a quarter, each the mean of both views; the
    contrastive losses compare what the necks give, with 1e-6 beside the probabilities."""
    method = create(FIXED, **AFTER, label_smoothing=0.0)
    params, extra = randomised(*started(method))
    total, aux = loss(method, params, extra)
    labels, rows, bank = np.asarray(batch()["label"]), np.arange(12), np.asarray(extra["bank"], np.float64)
    weights = {"memory": 0.5, "final": 0.5, "global": 2.0, **dict.fromkeys(PARTS, 0.25)}
    identity, contrastive = dict.fromkeys(weights, 0.0), []
    for key in ("image", "occluded"):
        own, heads = encoded(method, params, batch()[key]), params["heads"]
        after = {"memory": neck(own.memory, heads["memory"]), "global": np.asarray(own.whole, np.float64)}
        after |= {name: neck(own.parts[:, number], heads[name]) for number, name in enumerate(PARTS)}
        after["final"] = np.concatenate([after[name] for name in PARTS], axis=1)
        for name, x in after.items():
            logits = x @ np.asarray(heads[name]["classifier"]["kernel"], np.float64)
            identity[name] += 0.5 * np.mean(np.log(np.exp(logits).sum(1)) - logits[rows, labels])
        stripes = after["memory"]
        cosines = stripes @ bank.T / np.linalg.norm(stripes, axis=1)[:, None] / np.linalg.norm(bank, axis=1) / 0.05
        share = np.exp(cosines) / (np.exp(cosines).sum(1, keepdims=True) + 1e-6)
        contrastive.append(-np.mean(np.log(share[rows, labels] + 1e-6)))
    for kind in ("memory", "final", "global", "part"):
        expected = sum(weights[name] * value for name, value in identity.items() if name.startswith(kind))
        np.testing.assert_allclose(aux.metrics[f"identity_{kind}"], expected, rtol=1e-3)
    np.testing.assert_allclose(aux.metrics["identity"], sum(weights[name] * identity[name] for name in weights), rtol=1e-3)
    np.testing.assert_allclose(aux.metrics["contrastive"], contrastive[0] + 0.3 * contrastive[1], rtol=1e-3)
    np.testing.assert_allclose(total, aux.metrics["identity"] + aux.metrics["contrastive"], rtol=1e-6)


def test_start_of_training_with_the_official_weights():
    method = create(FIXED, label_smoothing=0.0)
    metrics = loss(method, *started(method, louder=1.0))[1].metrics
    np.testing.assert_allclose(metrics["identity"], (0.5 + 0.5 + 2 + 4 * 0.25) * np.log(6), rtol=0.02)


# The batch ----------------------------------------------------------------------------------------------------------------


def test_each_view_is_a_batch_of_its_own():
    """In training clean pictures and twins lie side by side; what looks at a whole batch sees one view."""
    method = create(OFFICIAL, selection__least=0)
    params, _ = started(method)
    own = batch()
    both = jnp.stack([own["image"], own["occluded"]], axis=1).reshape(-1, *own["image"].shape[1:])
    found = method.encode(params, both, jnp.zeros(24, jnp.int32), views=2)
    for number, key in enumerate(("image", "occluded")):
        alone = encoded(method, params, own[key])
        assert int(alone.selection.between[0]) == int(alone.selection.count.min())
        for name in ("whole", "memory", "pooled", "parts"):
            np.testing.assert_allclose(getattr(found, name)[number::2], getattr(alone, name), atol=2e-5)
        np.testing.assert_array_equal(found.selection.between[number::2], alone.selection.between)


@pytest.mark.parametrize("argument, knows", [(FIXED, False), (f"{FIXED},slip=mixed_batch", True), (OFFICIAL, True)])
def test_whether_a_feature_knows_the_others(argument, knows):
    """The reason why pooling by the batch is refused for comparing: a picture gives another feature beside other pictures."""
    method = create(argument, selection__by_batch_at_test=True, **AFTER)
    params, extra = randomised(*started(method))
    own = batch()
    other = own | {"image": jnp.concatenate([own["image"][:1], own["image"][:-1] - 1])}
    features = [method.embed(params, extra, each, "query")[0] for each in (own, other)]
    assert (float(jnp.abs(features[0] - features[1]).max()) > 1e-3) == knows


def test_padding_has_no_part_in_pooling():
    method = create(OFFICIAL, selection__least=0, blending__scramble=False)
    params, _ = started(method)
    images, fewest = batch()["image"], []
    for valid in (np.ones(12, bool), np.arange(12) < 6):
        found = method.encode(params, images, jnp.zeros(12, jnp.int32), valid=jnp.asarray(valid))
        fewest.append(int(found.selection.between[0]))
        assert fewest[-1] == int(found.selection.count[valid].min())
    short = encoded(method, params, images[:6])
    np.testing.assert_allclose(found.pooled[:6], short.pooled, atol=1e-5)
    np.testing.assert_allclose(found.pooled, pooling.pool(found.selection.weights, tokens_of(method, params)), atol=1e-5)


def tokens_of(method, params):
    return method.backbone.apply({"params": params["backbone"]}, batch()["image"]).tokens[:, 1:]


def test_pooling_by_batch_is_refused_for_comparing():
    method = create(FIXED, selection__by_batch=True)
    params, extra = started(method)
    with pytest.raises(UserError) as caught:
        method.embed(params, extra, batch(), "query")
    assert str(caught.value) == (
        "config.method.selection.by_batch=true: what a picture gives would depend on the pictures beside it; set "
        "config.method.selection.by_batch_at_test=true to compare as the official code does, or by_batch=false"
    )
    assert loss(method, params, extra)[0].shape == ()  # training with it is allowed
    for settings in ({"selection__by_batch_at_test": True}, {"selection__on": False}, {"selection__by_batch": False}):
        allowed = create(FIXED, **{"selection__by_batch": True} | settings)
        assert allowed.embed(params, extra, batch(), "query").shape == (12, 128)
