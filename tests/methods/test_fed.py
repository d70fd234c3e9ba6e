"""FED: what every switch does to a fixed batch, banks and their start, statistics of the necks, what is compared and shown."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fed
from occreid_jax import banks, methods
from occreid_jax import config as configuration
from occreid_jax.errors import UserError
from occreid_jax.losses.metric import batch_hard_triplet
from occreid_jax.train.schedules import learning_rates
from occreid_jax.train.state import trainable_paths
from occreid_jax.types import Meta, PrepareContext
from occreid_jax.weights.trees import flatten

pytestmark = pytest.mark.slow  # thorough; the contract tests keep this method in the fast set

META = Meta(identities=6, cameras=3, image_size=(64, 32), images=12)
FIXED = {"label_smoothing": 0.0, "score_weights": (1.0, 1.0)}  # as published, where the demo's preset differs
OFFICIAL = fed.PRESETS["official"]


def create(argument: str = "", meta: Meta = META, **settings):
    config = fed.get_config(f"backbone=micro,{argument}")
    config.method.update_from_flattened_dict(FIXED | settings)
    config.data.image_size = meta.image_size
    config.dtype = "float32"
    return methods.create(config, meta)


def started(method, seed: int = 0):
    """Initial values with classifiers, scores and banks that say something."""
    params, extra = method.init(jax.random.key(seed))
    params["heads"] = jax.tree.map(lambda x: 300 * x, params["heads"])
    if "oem" in params:
        params["oem"] = jax.tree.map(lambda x: 2 * x, params["oem"])
    if "bank" in extra:
        keys = {"erased": jax.random.key(2), "diffused": jax.random.key(3)}
        extra["bank"] = {name: jax.random.normal(keys[name], bank.shape) for name, bank in extra["bank"].items()}
    return params, extra


def batch(count: int = 12) -> dict:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(count, *META.image_size, 3)).astype(np.float32)
    occluded, visible = image.copy(), np.ones((count, 4), np.float32)
    occluded[::2, :16], visible[::2, 0] = 0.7, 0.0
    return {
        "image": jnp.asarray(image),
        "occluded": jnp.asarray(occluded),
        "visible": jnp.asarray(visible),
        "camid": jnp.asarray(np.arange(count) % 3, jnp.int32),
        "label": jnp.asarray(np.arange(count) // 2, jnp.int32),
        "index": jnp.arange(count, dtype=jnp.int32),
        "valid": jnp.ones(count, bool),
    }


def step(method, params, extra, own=None):
    return method.loss(params, extra, own or batch(), jax.random.key(3), method.stages()[0], jnp.float32(0))


def outcome(settings: dict) -> tuple[float, dict]:
    """(loss, metrics) of the fixed batch under settings."""
    method = create(**settings)
    total, aux = step(method, *started(method))
    return float(total), {name: float(value) for name, value in aux.metrics.items()}


# Switches: name -> (changed settings, what the formula predicts of loss and metrics before and after) ---------------------------

NAMES = ("score", "triplet", "contrast_erased", "contrast_diffused", "identity_erased", "identity_diffused", "identity_global")


def both(metrics: dict, name: str) -> np.ndarray:
    return np.array([metrics[f"{name}_clean"], metrics[f"{name}_occluded"]])


def less_by(name: str, *weights: float):
    """The loss falls by the two views' terms times these weights, and no term changes."""
    return lambda a, x, b, y: np.isclose(b, a - both(x, name) @ weights, rtol=1e-5) and changed(x, y) == set()


def changed(x: dict, y: dict) -> set[str]:
    present = [name for name in NAMES if f"{name}_clean" in x and f"{name}_clean" in y]
    return {name for name in present if not np.allclose(both(x, name), both(y, name), rtol=1e-4)}


def only(*names: str):
    return lambda a, x, b, y: changed(x, y) == set(names)


DIFFUSED, ERASED = ("contrast_diffused", "identity_diffused"), ("contrast_erased", "identity_erased")
SWITCHES = {
    "no identity of erased features": ({"erased_weight": 0.0}, less_by("identity_erased", 0.5, 0.5)),
    "no identity of diffused features": ({"diffused_weight": 0.0}, less_by("identity_diffused", 0.5, 0.5)),
    "half the identity of the global feature": ({"global_weight": 0.5}, less_by("identity_global", 0.25, 0.25)),
    "the paper's weights of scores": ({"score_weights": (0.5, 0.5)}, less_by("score", 0.5, 0.5)),
    "no loss of scores": ({"score_weights": (0.0, 0.0)}, less_by("score", 1.0, 1.0)),
    "the paper's weights of erased features": ({"erased_contrast": (0.5, 0.5)}, less_by("contrast_erased", 0.5, -0.2)),
    "no contrast of diffused features": ({"diffused_contrast": (0.0, 0.0)}, less_by("contrast_diffused", 0.5, 0.5)),
    "temperature 1": ({"temperature": 1.0}, lambda a, x, b, y: changed(x, y) == {"contrast_erased", "contrast_diffused"}
                      and (abs(both(y, "contrast_erased") - np.log(6)) < 1).all()),
    "no floor": ({"floor": 0.0}, lambda a, x, b, y: a < b < a + 1e-2),
    "high floor": ({"floor": 1.0}, lambda a, x, b, y: (both(y, "contrast_erased") < 0).all()),
    "one neighbour": ({"neighbours": 1}, only(*DIFFUSED)),
    "the paper's scale": ({"attention_width": "feature"}, only(*DIFFUSED)),
    "another scale": ({"attention_scale": 4.0}, only(*DIFFUSED)),
    "fewer heads": ({"attention_heads": 2}, only(*DIFFUSED)),
    "scrambled heads": ({"scramble": True}, only(*DIFFUSED)),
    "post-norm FFNs": ({"ffn": "postln_residual"}, only(*DIFFUSED)),
    "neighbours as stored": ({"memory_unit": False}, only(*DIFFUSED)),
    "one bank": ({"shared_bank": True}, only("contrast_diffused")),
    "a patch token": ({"global_token": "first_patch"}, only("identity_global")),
    "a neck for the global feature": ({"global_neck": True}, only("identity_global")),
    "no necks": ({"necks": "none"}, only(*ERASED, *DIFFUSED)),
    "separate necks": ({"necks": "separate"}, only()),  # each normalises its own batch
    "no OEM": ({"oem": False}, lambda a, x, b, y: "score_clean" not in y and changed(x, y) == {*ERASED, *DIFFUSED}),
    "no FDM": ({"fdm": False}, lambda a, x, b, y: changed(x, y) == set() and np.isclose(
        b, a - 0.5 * both(x, "identity_diffused").sum() - 0.5 * both(x, "contrast_diffused").sum(), rtol=1e-5)),
    "occluded pictures alone": ({"clean": False}, lambda a, x, b, y: not any("clean" in name for name in y)
                                and np.isclose(y["contrast_erased_occluded"], x["contrast_erased_occluded"], rtol=1e-5)
                                and np.isclose(y["score_occluded"], x["score_occluded"], rtol=1e-5)),
    "smoothing": ({"label_smoothing": 0.2}, only("identity_erased", "identity_diffused", "identity_global")),
    "triplet": ({"triplet_weight": 2.0}, lambda a, x, b, y: np.isclose(b, a + both(y, "triplet").sum(), rtol=1e-5)),
}  # fmt: skip


@pytest.fixture(scope="module")
def before():
    return outcome({})


@pytest.mark.parametrize("name", SWITCHES)
def test_switches(name, before):
    settings, predicts = SWITCHES[name]
    loss, metrics = outcome(settings)
    assert predicts(*before, loss, metrics), (before, loss, metrics)


def test_the_loss_is_what_the_sheet_adds_up(before):
    loss, terms = before
    assert tuple(fed.get_config("dataset=occluded_duke").method.score_weights) == (1.0, 1.0)
    expected = sum(both(terms, "score"))
    expected += sum(both(terms, name).mean() for name in ("identity_erased", "identity_diffused", "identity_global"))
    expected += both(terms, "contrast_erased") @ (1.0, 0.3) + both(terms, "contrast_diffused").mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    method = create()
    params, extra = started(method)
    own = batch()
    scores = method.encode(params, own["occluded"], own["camid"]).scores
    np.testing.assert_allclose(terms["score_occluded"], np.square(np.asarray(scores - own["visible"])).mean(), rtol=1e-4)


def test_triplet_compares_the_side_of_the_neck_that_is_asked_for():
    own = batch()
    for side in ("before", "after"):
        method = create(triplet_weight=1.0, global_neck=True, global_feature=side)
        params, extra = started(method)
        whole = method.encode(params, own["image"], own["camid"]).whole
        feature = method.whole_feature(params, extra["batch_stats"], whole, True)[0] if side == "after" else whole
        found = step(method, params, extra)[1].metrics["triplet_clean"]
        np.testing.assert_allclose(found, batch_hard_triplet(feature, own["label"], None), rtol=1e-4)
        shown = method.test_features(params, extra, own)["global"]
        expected = method.whole_feature(params, extra["batch_stats"], whole)[0] if side == "after" else whole
        np.testing.assert_allclose(shown, expected, atol=1e-5)


@pytest.mark.parametrize("preset", fed.PRESETS)
def test_first_step(preset):
    """Cross entropies near ln C, scores around a half, gradients everywhere but in the banks (oracle 12)."""
    method = create(f"preset={preset}")
    params, extra = method.init(jax.random.key(0))
    extra["bank"] = started(method)[1]["bank"]

    def run(params, bank):
        return step(method, params, extra | {"bank": bank})

    (total, aux), (slopes, of_bank) = jax.value_and_grad(run, (0, 1), has_aux=True)(params, extra["bank"])
    metrics = aux.metrics
    for name in ("erased", "diffused", "global"):
        np.testing.assert_allclose(both(metrics, f"identity_{name}"), np.log(6), atol=0.05)
    assert all(0.1 < value < 0.5 for value in both(metrics, "score"))
    assert not any(x.any() for x in jax.tree.leaves(of_bank))
    still = {path for path, x in flatten(slopes).items() if not np.asarray(x).any()}
    assert not still, still
    frozen = set(flatten(params)) - set(trainable_paths(params, method.stages()[0].updates[0]))
    assert frozen == {f"necks/neck_{part}/bias" for part in range(4) if preset != "paper"}  # the paper has no necks


# Banks --------------------------------------------------------------------------------------------------------------------


def features_of(method, params, extra, own) -> dict:
    """Erased and diffused features of the clean pictures with batch statistics."""
    encoded = method.encode(params, own["image"], own["camid"])
    erased, _ = method.after_necks(params, extra["batch_stats"], encoded.erased, True)
    stripes = method.diffuse(params, extra["bank"]["erased"], erased, encoded.scores, own["label"])
    return {"erased": erased, "diffused": method.after_necks(params, extra["batch_stats"], stripes, True, second=True)[0]}


@pytest.mark.parametrize("settings", [{}, {"shared_bank": True}, {"bank_rule": "mean", "bank_keep": 0.7}, {"bank_unit": True}],
                         ids=str)  # fmt: skip
def test_banks_after_a_step(settings):
    """Moved by the clean pictures, once they have served: two pictures of every identity, one after the other."""
    method = create(**settings)
    params, extra = started(method)
    own = batch() | {"label": jnp.asarray([0, 1, 0, 2, 2, 0, 4, 4, 4, 1, 2, 2], jnp.int32)}
    _, aux = step(method, params, extra, own)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    expected = {name: np.asarray(bank, np.float64) for name, bank in extra["bank"].items()}
    for name in ("diffused", "erased"):  # a shared one takes the diffused first
        feature = np.asarray(features_of(method, params, extra, own)[name], np.float64)
        feature = unit(feature) if settings.get("bank_unit") else feature
        bank = expected[name if name in expected else "erased"]
        keep = settings.get("bank_keep", 0.2)
        for identity in np.unique(own["label"]):
            rows = feature[np.asarray(own["label"]) == identity]
            for row in rows.mean(0, keepdims=True) if settings.get("bank_rule") == "mean" else rows:
                bank[identity] = keep * bank[identity] + (1 - keep) * row
        if settings.get("bank_unit"):
            bank[:] = unit(bank)
    for name, bank in expected.items():
        np.testing.assert_allclose(aux.extra["bank"][name], bank, atol=2e-5)
    if not settings.get("bank_unit"):
        np.testing.assert_array_equal(aux.extra["bank"]["erased"][3], extra["bank"]["erased"][3])  # nobody in the batch
    assert set(aux.extra["bank"]) == ({"erased"} if settings.get("shared_bank") else {"erased", "diffused"})


def test_banks_of_a_step_serve_the_next_one_only():
    method = create()
    params, extra = started(method)
    metrics = step(method, params, extra)[1].metrics
    own = batch()
    for name, feature in features_of(method, params, extra, own).items():
        expected = banks.info_nce(feature, extra["bank"][name], own["label"]).mean()
        np.testing.assert_allclose(metrics[f"contrast_{name}_clean"], expected, rtol=1e-5)


def test_nothing_is_learned_through_a_bank():
    method = create()
    params, extra = started(method)

    def moved(params):
        return sum(jnp.sum(bank) for bank in step(method, params, extra)[1].extra["bank"].values())

    assert not any(x.any() for x in jax.tree.leaves(jax.grad(moved)(params)))


def prepared(method, params, extra) -> dict:
    own = {name: value for name, value in batch().items() if name in ("image", "camid", "index", "valid")}
    labels = np.asarray(batch()["label"])

    def run(function, inputs):
        return np.asarray(function(params, extra, own))

    return method.prepare(method.stages()[0], 0, PrepareContext(params, extra, jax.random.key(1), labels, np.zeros(12), run))


def test_banks_at_the_stage_s_start():
    """Means of features before OEM after necks that have seen nothing, f / sqrt(1 + 1e-5)."""
    method = create()
    params, extra = method.init(jax.random.key(0))
    assert not any(bank.any() for bank in extra["bank"].values())
    encoded = method.encode(params, batch()["image"], batch()["camid"])

    def means(x):
        return np.asarray(x).reshape(6, 2, -1).mean(axis=1)

    expected = means(encoded.parts) / np.sqrt(1 + 1e-5)
    bank = prepared(method, params, extra)["bank"]
    np.testing.assert_allclose(bank["erased"], expected, atol=1e-5)
    np.testing.assert_array_equal(bank["diffused"], bank["erased"])
    one = prepared(create(shared_bank=True), params, extra | {"bank": {"erased": extra["bank"]["erased"]}})["bank"]
    assert set(one) == {"erased"}
    np.testing.assert_array_equal(one["erased"], bank["erased"])
    erased = prepared(create(bank_first="erased", bank_second="diffused"), params, extra)
    np.testing.assert_allclose(erased["bank"]["erased"], means(encoded.erased) / np.sqrt(1 + 1e-5), atol=1e-5)
    found = create().test_features(params, erased, batch())["diffused"]
    np.testing.assert_allclose(erased["bank"]["diffused"], means(found), atol=1e-5)
    unit = prepared(create(bank_unit=True), params, extra)["bank"]["erased"]
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(prepared(method, params, extra), extra)


# Necks --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("necks", ["shared", "separate"])
def test_statistics_take_their_steps_in_the_official_order(necks):
    """Clean and occluded erased features, then clean and occluded diffused ones: .6561 old, .0729, .081, .09 and .1 (3.6)."""
    method = create(necks=necks)
    params, extra = started(method)
    own = batch()
    found = step(method, params, extra)[1].extra["batch_stats"]
    erased, diffused = [], []
    for view in ("image", "occluded"):
        encoded = method.encode(params, own[view], own["camid"])
        feature, _ = method.after_necks(params, extra["batch_stats"], encoded.erased, True)
        erased.append(encoded.erased)
        diffused.append(method.diffuse(params, extra["bank"]["erased"], feature, encoded.scores, own["label"]))
    calls = {"necks": erased + diffused} if necks == "shared" else {"necks": erased, "second_necks": diffused}
    for name, inputs in calls.items():
        for part in range(4):
            mean, variance = np.zeros(32), np.ones(32)
            for x in inputs:
                mean = 0.9 * mean + 0.1 * np.asarray(x)[:, part].mean(0)
                variance = 0.9 * variance + 0.1 * np.asarray(x)[:, part].var(0, ddof=1)
            np.testing.assert_allclose(found[name][f"neck_{part}"]["mean"], mean, atol=1e-5)
            np.testing.assert_allclose(found[name][f"neck_{part}"]["var"], variance, atol=1e-5)


# Test time ----------------------------------------------------------------------------------------------------------------


def test_what_is_compared():
    method = create()
    params, extra = started(method)
    erased = method.embed(params, extra, batch(), "query")
    encoded = method.encode(params, batch()["image"], batch()["camid"])
    np.testing.assert_allclose(erased, (encoded.scores[..., None] * encoded.parts).reshape(12, -1) / np.sqrt(1 + 1e-5), atol=1e-5)
    bare = {"batch_stats": extra["batch_stats"]}  # neither a bank nor FDM nor a classifier is needed
    needed = create(fdm=False)
    alone = needed.embed({name: params[name] for name in ("backbone", "oem", "necks")}, bare, batch(), "gallery")
    np.testing.assert_allclose(alone, erased, atol=1e-6)
    diffused = create(test_feature="diffused").embed(params, extra, batch(), "query")
    assert diffused.shape == (12, 128) and float(jnp.abs(diffused - erased).max()) > 1e-2
    whole = create(test_feature="global").embed(params, extra, batch(), "query")
    np.testing.assert_allclose(whole, encoded.whole, atol=1e-6)
    one = method.embed(params, extra, {name: value[:1] for name, value in batch().items()}, "query")
    np.testing.assert_allclose(one, erased[:1], atol=1e-5)


def test_maps_and_scores():
    method = create()
    params, extra = started(method)
    shown = method.inspect(params, extra, batch())
    scores = np.asarray(method.encode(params, batch()["image"], batch()["camid"]).scores)
    np.testing.assert_allclose(shown["attention"].sum(axis=(1, 2)), 1, atol=1e-5)
    assert shown["visibility"].shape == (12, 4, 1)
    np.testing.assert_allclose(shown["visibility"], scores[:, :, None], atol=1e-6)
    np.testing.assert_allclose(shown["stripe 2 score"], scores[:, 1], atol=1e-6)
    drawn = method.illustrate(params, extra, batch(), jax.random.key(0))
    np.testing.assert_allclose(drawn["scores of all stripes"], scores.reshape(-1), atol=1e-6)
    without = create(oem=False)
    params, extra = started(without)
    assert set(without.inspect(params, extra, batch())) == {"attention"}
    assert without.illustrate(params, extra, batch(), jax.random.key(0)) == {}


# Augmentation and configs ---------------------------------------------------------------------------------------------------


def test_pictures_of_the_stage_are_what_the_loss_takes():
    method = create()
    (stage,) = method.stages()
    assert stage.shared == ("occluders", "occluder_sides") and stage.inputs == ("image",)
    rng = np.random.default_rng(1)
    raw = batch() | {"image": jnp.asarray(rng.integers(0, 256, (12, 64, 32, 3), np.uint8))}
    sides = np.array([[9, 9], [40, 9], [9, 40]], np.int32)
    library = {"occluders": rng.integers(0, 256, (3, 16, 16, 4), np.uint8), "occluder_sides": sides}
    raw = {name: raw[name] for name in ("image", "camid", "label", "index", "valid")} | library
    made = jax.jit(stage.augment)(jax.random.key(0), raw)
    params, extra = started(method)
    total, aux = step(method, params, extra, made)
    assert np.isfinite(total) and made["visible"].shape == (12, 4)


@pytest.mark.parametrize("row", fed.ROWS)
def test_every_row_of_the_tables_can_be_built(row):
    config = fed.get_config(f"backbone=micro,dataset=occluded_duke,row={row}")
    configuration.validate(config)
    method = methods.create(config, META)
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    whole = row in ("baseline", "erasing", "npo")
    assert ("necks" in params) == ("bank" in extra) == (not whole) and ("neck" in params) == whole
    assert ("oem" in params) == (not whole and row != "npo_fdm") and ("fdm" in params) == (not whole and row != "npo_oem")
    assert method.neighbours == min(int(row[1:]) if row in ("k2", "k4", "k6", "k8") else 8, META.identities - 1)
    (stage,) = method.stages()
    assert bool(stage.shared) == (row not in ("baseline", "erasing", "all_erasing"))
    assert config.stages.main.augment.erasing == (0.5 if row in ("erasing", "all_erasing") else 0.0)
    if whole:
        views = {"baseline": ("clean",), "erasing": ("occluded",), "npo": ("clean", "occluded")}[row]
        assert method.views("main") == views and stage.flops == len(views) * method.forward_flops()
        raw = batch(8) | {"image": jnp.zeros((8, 64, 32, 3), jnp.uint8), "label": jnp.arange(8) // 4}
        library = {"occluders": jnp.ones((3, 16, 16, 4), jnp.uint8), "occluder_sides": jnp.full((3, 2), 9)}
        library = {name: library[name] for name in stage.shared}

        def one(params, extra, key):
            made = stage.augment(key, {name: raw[name] for name in ("image", "camid", "label")} | library)
            return method.loss(params, extra, made, key, stage, 0.0)[1].metrics

        shown = set(jax.eval_shape(one, params, extra, jax.random.key(0)))
        terms = {f"{term}_{view}" for term in ("identity_global", "triplet") for view in views}
        assert shown == {*terms, "accuracy"}


def test_published_recipe():
    """Parameters without what the official network never uses, and the learning rates of weights and biases (oracles 10, 12)."""
    config = fed.get_config("dataset=occluded_duke")
    method = methods.create(config, Meta(702, 8, (256, 128), 100))
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == 143_122_180
    assert {name: bank.shape for name, bank in extra["bank"].items()} == {"erased": (702, 3072), "diffused": (702, 3072)}
    needed = {name: params[name] for name in ("backbone", "oem", "necks")}
    assert sum(x.size for x in jax.tree.leaves(needed)) == 86_345_476
    np.testing.assert_allclose(method.fdm.scale, 96**-0.5)
    optimizer = config.stages.main.optimizer
    weights = learning_rates(optimizer.schedule, optimizer.learning_rate, 120)
    biases = learning_rates(optimizer.schedule, optimizer.learning_rate * optimizer.bias_factor, 120)
    published = {1: 1.6640e-3, 2: 3.2480e-3, 4: 6.4160e-3, 5: 7.9658e-3, 10: 7.8640e-3, 60: 4.0080e-3}
    for epoch, rate in (published | {112: 1.0323e-4, 119: 1.7368e-5, 120: 1.6e-5}).items():
        np.testing.assert_allclose(weights[epoch - 1], rate, rtol=5e-5)
    np.testing.assert_allclose([biases[0], biases[4], biases[119]], [3.2640e-3, 1.5932e-2, 1.6e-5], rtol=5e-5)


def test_presets_and_datasets():
    official = fed.get_config("dataset=occluded_duke,preset=official")
    changes = {"global_token": "first_patch", "scramble": True, "shared_bank": True}
    assert changes == OFFICIAL and all(official.method[key] == value for key, value in changes.items())
    assert all(fed.get_config().method[key] != value for key, value in OFFICIAL.items())
    paper = fed.get_config("dataset=dukemtmc,preset=paper")  # no losses of the scores there, whatever the preset
    assert paper.method.score_weights == (0.0, 0.0) and fed.get_config("preset=paper").method.score_weights == (10.0, 10.0)
    least = {"grid=fine": 0.5, "": 0.0, "preset=paper,grid=fine": 0.0, "preset=official": 0.0}
    assert {each: fed.get_config(each).method.least_weight for each in least} == least
    method = methods.create(fed.get_config("dataset=occluded_duke,preset=paper"), Meta(702, 8, (256, 128), 100))
    np.testing.assert_allclose(method.fdm.scale, 384**-0.5)
    assert fed.get_config("dataset=dukemtmc").method.score_weights == (0.0, 0.0)
    assert fed.get_config("dataset=market1501").method.score_weights == (1.0, 1.0)
    small = fed.get_config()
    assert small.method.neighbours == 2 and small.init.weights == "tiny_clip" and small.stages.main.optimizer.name == "adamw"
    assert fed.get_config("pretrained=false").method.backbone == "demo"


def test_settings_that_cannot_work():
    for settings, words in (
        ({"test_feature": "before"}, "config.method.test_feature is 'before'"),
        ({"necks": "both"}, "config.method.necks is 'both'"),
        ({"local": False}, "config.method.local=False leaves the global feature"),
        ({"fdm": False, "test_feature": "diffused"}, "needs config.method.fdm=True"),
        ({"neighbours": 0}, "config.method.neighbours is 0; it must be at least 1"),
        ({"attention_heads": 7}, "attention_heads=7 does not divide the width 4 x 32"),
        ({"parts": 2}, "occlusion.parts=4 differs from config.method.parts=2"),
    ):
        with pytest.raises(UserError, match=words):
            create(**settings).stages()
    for argument, words in (("row=best", "unknown row 'best'"), ("preset=text", "unknown preset 'text'")):
        with pytest.raises(ValueError, match=words):
            fed.get_config(argument)
