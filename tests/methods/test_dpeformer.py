"""DPEFormer: the loss written out, what every switch does to a fixed batch, the memory, what is compared, rows of the tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dpeformer
from occreid_jax import banks, methods
from occreid_jax import config as configuration
from occreid_jax.augment.paste import LIBRARY
from occreid_jax.errors import UserError
from occreid_jax.nn import pooling, selection
from occreid_jax.train.state import trainable_paths
from occreid_jax.types import Meta, PrepareContext
from occreid_jax.weights.trees import flatten

pytestmark = pytest.mark.slow  # thorough; the contract tests keep this method in the fast set

META = Meta(identities=6, cameras=3, image_size=(64, 32), images=12)
# Without what the code adds to the text, so that the formulas here stay those of the paper.
PLAIN = {"memory__after_neck": False, "memory__floor": 0.0, "test_feature": "before"}
HEADS = ("memory", "global", "final", "part_0", "part_1", "part_2", "part_3")


def create(argument: str = "backbone=micro", meta: Meta = META, occlusion: str = "roa", **settings):
    config = dpeformer.get_config(argument)
    config.method.update_from_flattened_dict({key.replace("__", "."): value for key, value in (PLAIN | settings).items()})
    config.stages.main.augment.occlusion.kind = occlusion
    config.data.image_size = meta.image_size
    config.dtype = "float32"
    return methods.create(config, meta)


INITIAL = {}


def started(method, louder: float = 300.0):
    """Initial values, with classifiers and a memory that say something."""
    settings = method.settings
    deciding = (settings.backbone, settings.part_branch, settings.global_neck, settings.necks, settings.memory.also_final)
    deciding += tuple(sorted(settings.blending.items()))
    if deciding not in INITIAL:
        INITIAL[deciding] = jax.jit(method.init)(jax.random.key(0))
    params, extra = jax.tree.map(lambda x: x, INITIAL[deciding])  # new dictionaries, which tests may change
    for head in params["heads"].values():
        head["classifier"]["kernel"] *= louder
    for number, name in enumerate(method.bank_heads):
        extra[name] = jax.random.normal(jax.random.key(number), extra[name].shape)
    return params, extra


def batch(count: int = 12) -> dict:
    rng = np.random.default_rng(0)
    image, other = (jnp.asarray(rng.normal(size=(count, *META.image_size, 3)), jnp.float32) for _ in range(2))
    return {
        "image": image,
        "occluded": image.at[:, 32:].set(other[:, 32:]),
        "covered": jnp.full(count, 0.5),
        "camid": jnp.asarray(np.arange(count) % 3, jnp.int32),
        "label": jnp.asarray(np.arange(count) // 2, jnp.int32),
        "index": jnp.arange(count, dtype=jnp.int32),
        "valid": jnp.ones(count, bool),
    }


def encoded(method, params, images):
    return method.encode(params, images, jnp.zeros(len(images), jnp.int32))


def loss(method, params, extra, own=None):
    return method.loss(params, extra, own or batch(), jax.random.key(3), method.stages()[0], jnp.float32(0))


def outcome(**settings) -> tuple[float, dict]:
    """(loss, metrics) of the fixed batch."""
    method = create(**{"label_smoothing": 0.0} | settings)
    total, aux = loss(method, *started(method))
    return float(total), {name: float(value) for name, value in aux.metrics.items()}


# The loss -----------------------------------------------------------------------------------------------------------------


def test_loss_written_out():
    """Seven cross entropies after necks that see clean and occluded images apart, and two contrastive losses."""
    method = create(label_smoothing=0.0, occluded_identity_weight=0.5)
    params, extra = started(method)
    total, aux = loss(method, params, extra)
    labels, identity, contrastive = np.asarray(batch()["label"]), [], []
    for key in ("image", "occluded"):
        own = encoded(method, params, batch()[key])
        features = {"memory": own.memory, "global": own.whole, "final": own.final}
        features |= {f"part_{part}": own.parts[:, part] for part in range(4)}
        assert tuple(features) == HEADS == tuple(method.features(own))
        summed = 0.0
        for name, feature in features.items():
            x = np.asarray(feature, np.float64)
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
            logits = x @ np.asarray(params["heads"][name]["classifier"]["kernel"], np.float64)
            summed += np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(12), labels])
        identity.append(summed)
        features, bank = (np.asarray(x, np.float64) for x in (own.memory, extra["bank"]))
        cosines = features @ bank.T / np.linalg.norm(features, axis=1)[:, None] / np.linalg.norm(bank, axis=1) / 0.05
        contrastive.append(np.mean(np.log(np.exp(cosines).sum(1)) - cosines[np.arange(12), labels]))
    np.testing.assert_allclose(aux.metrics["identity"], (identity[0] + 0.5 * identity[1]) / 1.5, rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["contrastive"], contrastive[0] + 0.3 * contrastive[1], rtol=1e-4)
    np.testing.assert_allclose(total, aux.metrics["identity"] + aux.metrics["contrastive"], rtol=1e-6)


def test_start_of_training():
    method = create(label_smoothing=0.0)
    metrics = loss(method, *started(method, louder=1.0))[1].metrics
    np.testing.assert_allclose(metrics["identity"], 7 * np.log(6), rtol=0.02)
    np.testing.assert_allclose(metrics["covered"], 0.5)


def test_necks_see_clean_images_first():
    method = create()
    params, extra = started(method)
    _, aux = loss(method, params, extra)
    means = [encoded(method, params, batch()[key]).whole.mean(0) for key in ("image", "occluded")]
    expected = 0.9 * 0.1 * means[0] + 0.1 * means[1]
    np.testing.assert_allclose(aux.extra["batch_stats"]["global"]["neck"]["mean"], expected, atol=1e-6)
    joint = create(neck_per_view=False)
    _, aux = loss(joint, params, extra)
    np.testing.assert_allclose(aux.extra["batch_stats"]["global"]["neck"]["mean"], 0.1 * (means[0] + means[1]) / 2, atol=1e-6)


def kept(x: dict, y: dict) -> bool:
    return np.isclose(x["contrastive"], y["contrastive"], rtol=1e-6)


def identical(x: dict, y: dict) -> bool:
    return np.isclose(x["identity"], y["identity"], rtol=1e-6)


def moved(x: dict, y: dict) -> bool:
    return kept(x, y) and not np.isclose(x["identity"], y["identity"], rtol=1e-4)


HALF = dict.fromkeys(("memory", "global", "final", "part"), 0.5)
GAPS = {"selected_before_minimum", "share_of_one", "share_raised"}  # metrics where the gaps decide
SWITCHES = {  # name -> (changed settings, what the formula predicts of loss and metrics before and after)
    "half the identity loss": ({"identity_weights": HALF}, lambda a, x, b, y: np.isclose(b, a - 0.5 * x["identity"])),
    "no contrastive loss": ({"memory__weight": 0.0}, lambda a, x, b, y: np.isclose(b, a - x["contrastive"])),
    "twins count less": ({"memory__occluded_weight": 0.0}, lambda a, x, b, y: y["contrastive"] < x["contrastive"]
                         and identical(x, y)),
    "high temperature": ({"memory__temperature": 1.0}, lambda a, x, b, y: abs(y["contrastive"] - 1.3 * np.log(6)) < 1),
    "floor": ({"memory__floor": 0.1}, lambda a, x, b, y: y["contrastive"] < 1.3 * -np.log(0.1) and identical(x, y)
              and y["contrastive"] < x["contrastive"]),
    "memory after the neck": ({"memory__after_neck": True}, lambda a, x, b, y: identical(x, y) and not kept(x, y)),
    "second memory": ({"memory__also_final": True}, lambda a, x, b, y: np.isclose(b, a + y["final_contrastive"])
                      and y["final_contrastive"] > 0.1),
    "keep does not change this step": ({"memory__keep": 0.9}, lambda a, x, b, y: a == b),
    "nor does the rule": ({"memory__rule": "mean"}, lambda a, x, b, y: a == b),
    "clean images alone in the cross entropy": ({"occluded_identity_weight": 0.0}, lambda a, x, b, y: moved(x, y)),
    "no twins": ({"occluded": False}, lambda a, x, b, y: not {"covered", "occluded_accuracy"} & set(y)
                 and y["contrastive"] < x["contrastive"]),
    "smoothing": ({"label_smoothing": 0.1}, lambda a, x, b, y: moved(x, y)),
    "necks see all": ({"neck_per_view": False}, lambda a, x, b, y: moved(x, y)),
    "no selection": ({"selection__on": False}, lambda a, x, b, y: moved(x, y) and not {"selected", *GAPS} & set(y)),
    "fixed number": ({"selection__fixed": 96}, lambda a, x, b, y: moved(x, y) and y["selected"] == 6 and not GAPS & set(y)),
    "no minimum": ({"selection__least": 0}, lambda a, x, b, y: y["selected"] == x["selected_before_minimum"]
                   and y["share_raised"] == 0),
    "all is the minimum": ({"selection__least": 128}, lambda a, x, b, y: y["selected"] == 8 and y["share_raised"] == 1),
    "cls token as proxy": ({"selection__proxy": "cls"}, lambda a, x, b, y: moved(x, y)),
    "pooled by score": ({"selection__order": "rank"}, lambda a, x, b, y: moved(x, y) and y["selected"] == x["selected"]),
    "first gap": ({"selection__ignore_first_gap": True}, lambda a, x, b, y: x["share_of_one"] > y["share_of_one"] == 0),
    "plain products": ({"selection__normalise": False},  # the norms are equal as long as the last norm is as it begins
                       lambda a, x, b, y: np.isclose(a, b, rtol=1e-5)),
    "no blending": ({"blending__on": False}, lambda a, x, b, y: moved(x, y) and y["selected"] == x["selected"]),
    "one head": ({"blending__heads": 1}, lambda a, x, b, y: moved(x, y)),
    "shared positions": ({"blending__shared": True},
                         lambda a, x, b, y: kept(x, y) and x["identity_memory"] == y["identity_memory"]
                         and not np.isclose(x["identity_final"], y["identity_final"], rtol=1e-4)),
    "no parts": ({"part_branch": False, "descriptor": "parts_all"}, lambda a, x, b, y: y["identity"] < x["identity"] / 2
                 and kept(x, y) and not {"selected", *GAPS} & set(y)),
}  # fmt: skip


@pytest.fixture(scope="module")
def before():
    return outcome()


@pytest.mark.parametrize("name", SWITCHES)
def test_switches(name, before):
    changes, predicts = SWITCHES[name]
    after = outcome(**changes)
    assert predicts(*before, *after), (before, after)


def test_metrics_of_the_selection(before):
    _, metrics = before
    assert create().least == 3  # 48 of 128
    method = create()
    params, _ = started(method)
    own = encoded(method, params, jnp.concatenate([batch()["image"], batch()["occluded"]])).selection
    found = np.asarray(own.by_gap)
    assert metrics["selected"] == pytest.approx(np.maximum(found, 3).mean())
    assert metrics["share_of_one"] == pytest.approx((found == 1).mean())
    assert metrics["share_raised"] == pytest.approx((found < 3).mean())


# What is computed ---------------------------------------------------------------------------------------------------------


def test_what_the_parts_are_made_of():
    method = create()
    params, _ = started(method)
    out = method.backbone.apply({"params": params["backbone"]}, batch()["image"])
    own = encoded(method, params, batch()["image"])
    patches = out.tokens[:, 1:]
    np.testing.assert_array_equal(own.whole, out.tokens[:, 0])
    np.testing.assert_allclose(own.memory, patches.reshape(12, 4, 2, 32).mean(2).reshape(12, -1), atol=1e-6)
    found = selection.select_tokens(out.cls, patches, least=3, parts=4)
    np.testing.assert_array_equal(own.selection.selected, found.selected)
    np.testing.assert_allclose(own.pooled, pooling.pool(found.weights, patches), atol=1e-6)
    for part in range(4):
        expected = method.blending.apply({"params": params[f"fbm_{part}"]}, own.pooled[:, part], out.cls)
        np.testing.assert_allclose(own.parts[:, part], expected, atol=1e-6)
        np.testing.assert_array_equal(own.final[:, 32 * part : 32 * part + 32], own.parts[:, part])


def test_without_selection_the_parts_are_the_stripes():
    off, fixed = create(selection__on=False, blending__on=False), create(selection__fixed=128, blending__on=False)
    params, _ = started(off)
    assert not any(name.startswith("fbm") for name in params)
    for method in (off, fixed):
        own = encoded(method, params, batch()["image"])
        np.testing.assert_allclose(own.final, own.memory, atol=1e-6)
    base, rank = create("backbone=micro,row=baseline"), create(selection__fixed=128, selection__order="rank", blending__on=False)
    own = encoded(base, params, batch()["image"])
    np.testing.assert_allclose(own.final, own.memory, atol=1e-6)
    own = encoded(rank, params, batch()["image"])
    assert float(jnp.abs(own.final - own.memory).max()) > 1e-3


def test_lengths_count_without_unit_vectors():
    params, _ = started(create())
    norm = params["backbone"]["norm"]
    norm["bias"] = 2.0 * jax.random.normal(jax.random.key(4), norm["bias"].shape)
    pairs = [encoded(create(selection__normalise=value), params, batch()["image"]).selection for value in (True, False)]
    np.testing.assert_allclose(pairs[0].scores.max(1), 1, atol=1e-5)
    assert float(pairs[1].scores.max()) > 10 and bool((pairs[0].selected != pairs[1].selected).any())


def test_one_image_does_not_know_the_others():
    method = create()
    params, _ = started(method)
    images = batch()["image"]
    whole, changed = (encoded(method, params, x) for x in (images, images.at[1:].set(images[:1] - 1)))
    for name in ("whole", "memory", "pooled", "parts"):
        np.testing.assert_allclose(getattr(whole, name)[0], getattr(changed, name)[0], atol=1e-5)
    for one, other in zip(whole.selection, changed.selection, strict=True):
        np.testing.assert_allclose(one[0], other[0], atol=1e-5)


def largest(branch) -> float:
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(branch))


def test_whom_the_losses_reach():
    """Cross entropies reach every module; the contrastive loss the encoder alone."""
    method = create()
    params, extra = started(method)

    def slopes(method, *terms):
        """For every named metric its gradient, and the largest absolute value of that in each module."""

        @jax.jit
        def pulled(params):
            metrics, pull = jax.vjp(lambda p: loss(method, p, extra)[1].metrics, params)
            return [pull({name: jnp.float32(name == term) for name in metrics})[0] for term in terms]

        trees = pulled(params)
        return trees, [{name: largest(branch) for name, branch in tree.items()} for tree in trees]

    (attached, _), (identity, contrastive) = slopes(method, "identity", "contrastive")
    assert all(value > 0 for value in identity.values())
    assert contrastive.pop("backbone") > 0 and not any(contrastive.values())
    (detached,), _ = slopes(create(blending__detach_cls=True), "identity")
    for name in ("heads", "fbm_0"):
        for one, other in zip(jax.tree.leaves(attached[name]), jax.tree.leaves(detached[name]), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    difference = attached["backbone"]["norm"]["bias"] - detached["backbone"]["norm"]["bias"]
    assert float(jnp.abs(difference).max()) > 1e-4


def test_tokens_that_are_not_selected_get_nothing_through_the_parts():
    method = create(selection__least=48)
    params, _ = started(method)
    patches = method.backbone.apply({"params": params["backbone"]}, batch()["image"]).tokens[:, 1:]
    own = encoded(method, params, batch()["image"]).selection

    def blended(patches):
        pooled = pooling.pool(own.weights, patches)
        return sum(
            jnp.sum(method.blending.apply({"params": params[f"fbm_{part}"]}, pooled[:, part], pooled[:, 0] * 0) ** 3)
            for part in range(4)
        )

    np.testing.assert_array_equal(jnp.any(jax.grad(blended)(patches) != 0, axis=-1), own.selected)


# The memory ---------------------------------------------------------------------------------------------------------------


def prepared(method, params, extra):
    own = batch()
    own = own | {"image": jnp.concatenate([own["image"][6:], own["image"][:6]]), "label": jnp.roll(own["label"], 6)}

    def run(function, inputs):
        return jax.tree.map(np.asarray, function(params, extra, own))

    context = PrepareContext(params, extra, jax.random.key(1), np.asarray(own["label"]), np.asarray(own["camid"]), run)
    return method.prepare(method.stages()[0], 0, context)


def test_memory_begins_with_the_means_of_identities():
    method = create()
    params, extra = started(method)
    found = prepared(method, params, extra)
    expected = encoded(method, params, batch()["image"]).memory.reshape(6, 2, -1).mean(1)
    np.testing.assert_allclose(found["bank"], expected, atol=1e-5)
    assert jax.tree.structure(found) == jax.tree.structure(extra)
    other = prepared(create(selection__proxy="cls", selection__least=128), params, extra)
    np.testing.assert_array_equal(other["bank"], found["bank"])  # selection has no part in it
    both, (params, extra) = create(memory__also_final=True), started(create(memory__also_final=True))
    final = encoded(both, params, batch()["image"]).final.reshape(6, 2, -1).mean(1)
    np.testing.assert_allclose(prepared(both, params, extra)["final_bank"], final, atol=1e-5)
    after = create(memory__after_neck=True)
    params["heads"]["memory"]["neck"]["scale"] *= 3
    np.testing.assert_allclose(prepared(after, params, extra)["bank"], 3 * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", banks.RULES)
def test_clean_images_alone_enter_the_memory(rule):
    method = create(memory__rule=rule)
    params, extra = started(method)
    own = batch()
    after = loss(method, params, extra)[1].extra["bank"]
    features = encoded(method, params, own["image"]).memory
    np.testing.assert_allclose(after, banks.update_bank(extra["bank"], features, own["label"], 0.2, rule), atol=1e-5)
    other = loss(method, params, extra, own | {"occluded": own["occluded"] * 2})[1].extra["bank"]
    np.testing.assert_allclose(after, other, atol=1e-6)
    if rule == "sequential":
        pair = features.reshape(6, 2, -1)
        np.testing.assert_allclose(after, 0.04 * extra["bank"] + 0.16 * pair[:, 0] + 0.8 * pair[:, 1], atol=1e-5)


# Test time and reports ----------------------------------------------------------------------------------------------------


def test_what_is_compared():
    params, extra = started(create())
    own = encoded(create(), params, batch()["image"])
    params["heads"]["final"]["neck"]["scale"] *= 2
    extra["batch_stats"]["memory"]["neck"]["mean"] += 1

    def embed(**settings):
        return create(**settings).embed(params, extra, batch(), "query")

    flat = own.pooled.reshape(12, -1)
    for descriptor, feature, normalised in (
        ("final", own.final, 2 * own.final), ("parts_all", own.memory, own.memory - 1), ("parts_selected", flat, flat - 1),
    ):  # fmt: skip
        np.testing.assert_allclose(embed(descriptor=descriptor, test_feature="before"), feature, atol=1e-5)
        np.testing.assert_allclose(embed(descriptor=descriptor, test_feature="after"), normalised, atol=1e-4)
    found = embed(descriptor="parts_selected", test_feature="after", blending__on=False)
    np.testing.assert_allclose(found, 2 * flat, atol=1e-4)  # without blending they are the final feature


def test_maps_and_illustrations():
    method = create()
    params, extra = started(method)
    shown = method.inspect(params, extra, batch())
    own = encoded(method, params, batch()["image"]).selection
    assert shown["selected"].dtype == bool and shown["selected"].shape == shown["scores"].shape == (12, 4, 2)
    np.testing.assert_allclose(shown["attention"].sum((1, 2)), 1, rtol=1e-5)
    np.testing.assert_array_equal(shown["selected"].reshape(12, -1), own.selected)
    np.testing.assert_allclose(shown["scores"].reshape(12, -1), np.maximum(own.scores, 0), atol=1e-6)
    np.testing.assert_array_equal(shown["k"], own.count)
    np.testing.assert_array_equal(shown["k by the gap"], own.by_gap)
    drawn = method.illustrate(params, extra, batch(), jax.random.key(0))
    assert drawn["image, selected tokens"].shape == (8, 2, *META.image_size, 3)
    covered = jnp.any(drawn["image, selected tokens"][:, 1] != 0, axis=-1).mean((1, 2))
    np.testing.assert_allclose(covered, own.count[:8] / 8)
    np.testing.assert_array_equal(drawn["selected tokens k"], own.count)
    np.testing.assert_array_equal(drawn["share of k = 1"], own.by_gap == 1)
    np.testing.assert_array_equal(drawn["share clipped to the minimum"], own.by_gap < 3)


# Stages, sizes, configs ---------------------------------------------------------------------------------------------------


def test_stage():
    method = create()
    (stage,) = method.stages()
    assert stage.shared == tuple(LIBRARY) and stage.inputs == ("image",)
    moved = trainable_paths(started(method)[0], stage.updates[0])
    assert not any(path.endswith("neck/bias") for path in moved) and "fbm_3/conv_key/bias" in moved
    assert create(occlusion="erasing").stages()[0].shared == create(occluded=False).stages()[0].shared == ()
    raw = {"image": jnp.zeros((4, *META.image_size, 3), jnp.uint8)}
    views = create(occlusion="none").stages()[0].augment(jax.random.key(0), raw)
    np.testing.assert_array_equal(views["image"], views["occluded"])
    assert "occluded" not in create(occluded=False).stages()[0].augment(jax.random.key(0), raw)


def test_published_sizes():
    config = dpeformer.get_config("dataset=occluded_duke")
    method = methods.create(config, Meta(702, 8, (256, 128), 15_618))
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    flat = {path: x.size for path, x in flatten(params).items()}

    def count(start: str) -> int:
        return sum(size for path, size in flat.items() if path.startswith(start))

    biases = sum(size for path, size in flat.items() if path.endswith("neck/bias"))  # fixed at 0, no parameters of the original
    assert count("backbone/") == 85_746_432 and count("fbm_") == 26_001_216 and count("heads/") - biases == 7_018_752
    assert count("") - biases == 118_766_400 and count("backbone/") + count("fbm_") == 111_747_648
    assert extra["bank"].shape == (702, 3072) and method.least == 48
    image = {"image": jnp.zeros((2, 256, 128, 3)), "camid": jnp.zeros(2, jnp.int32)}
    assert jax.eval_shape(lambda p, e: method.embed(p, e, image, "query"), params, extra).shape == (2, 3072)
    assert method.forward_flops() > 2 * 11.2e9
    for one, views in ((method, 2), (create("backbone=micro,row=baseline"), 1)):
        assert one.stages()[0].flops == views * one.forward_flops()
    config.stages.main.sampler = {"name": "uniform", "batch_size": 64, "remainder": "pad"}
    with pytest.raises(UserError, match="config.stages.main.sampler.remainder is 'pad', but .* only pad it; set drop"):
        method.stages()


def test_pretrained_weights_are_the_encoder_s():
    method = create()
    params, extra = started(method)
    weights = flatten(jax.tree.map(lambda x: np.asarray(x) + 1, params["backbone"])) | {"grid": np.array([4, 2])}
    found, _ = method.load_pretrained(params, extra, weights)
    for path, value in flatten(found["backbone"]).items():
        np.testing.assert_allclose(value, flatten(params["backbone"])[path] + 1, rtol=1e-6)
    assert found["fbm_0"] is params["fbm_0"]


@pytest.mark.parametrize("row", dpeformer.ROWS)
def test_every_row_of_the_tables_can_be_built(row):
    config = dpeformer.get_config(f"backbone=micro,row={row}")
    configuration.validate(config)
    method = methods.create(config, META)
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    assert len(params["heads"]) == (2 if row.startswith("baseline") else 7)
    assert ("fbm_0" in params) == method.blends and ("final_bank" in extra) == (row == "contrastive_two")
    occlusion = config.stages.main.augment.occlusion.kind
    others = {"baseline_erasing": "erasing", "baseline_pairs": "other_image"}
    assert occlusion == (others | {"erasing": "erasing", "cut_and_paste": "cut_and_paste"}).get(row, "roa")
    assert bool(method.stages()[0].shared) == (config.method.occluded and occlusion in ("roa", "cut_and_paste"))


def test_published_recipe():
    for dataset in ("occluded_duke", "market1501", "dukemtmc", "occluded_reid"):
        config = dpeformer.get_config(f"dataset={dataset}")
        main, block = config.stages.main, config.stages.main.optimizer
        assert (main.epochs, main.sampler.batch_size, main.augment.erasing) == (120, 64, 0.0)
        assert (block.name, block.learning_rate, block.weight_decay, block.bias_factor) == ("adam", 1e-4, 1e-4, 1.0)
        assert (block.schedule.name, block.schedule.warmup_start, block.schedule.floor) == ("cosine", 1e-6, 2e-7)
        assert config.method.label_smoothing == 0.0 and config.method.identity_weights.to_dict() == dict.fromkeys(HALF, 1.0)
        # What the text leaves open and the code decides.
        assert (config.method.test_feature, config.method.blending.heads, config.method.drop_path) == ("after", 2, 0.1)
        assert (config.method.memory.after_neck, config.method.memory.floor) == (True, 1e-6)
        assert tuple(main.augment.jitter) == (0.1, 0.1, 0.1, 0.0)
        # What the code does otherwise than the text.
        assert (config.method.selection.order, config.method.selection.least, config.method.blending.kind) == (
            "spatial", 48, "paper",
        )  # fmt: skip
        assert (config.method.global_token, config.method.global_neck, config.method.necks) == ("cls", True, "separate")
    small = dpeformer.get_config()
    assert small.method.test_feature == "after" and small.init.weights == "tiny_clip"
    assert methods.create(small, Meta(64, 6, (128, 64), 64)).least == 12  # of 32 tokens
    wide = dpeformer.get_config("dataset=market1501,stride=12,backbone=micro")
    assert methods.create(wide, Meta(64, 6, (256, 128), 64)).least == 79  # of 210


def test_settings_that_cannot_work():
    for settings, words in (
        ({"descriptor": "cls"}, "config.method.descriptor is 'cls'; it must be one of final, parts_all, parts_selected"),
        ({"selection__order": "random"}, "config.method.selection.order is 'random'; it must be one of spatial, rank"),
        ({"selection__proxy": "mean"}, "config.method.selection.proxy is 'mean'"),
        ({"memory__rule": "last"}, "config.method.memory.rule is 'last'"),
        ({"part_branch": False}, "set descriptor=parts_all"),
        ({"backbone": "24x2x2"}, "cannot be cut into sub-vectors of 16; set config.method.blending.on=False"),
        ({"patch": 32, "stride": 32}, "leave 2 tokens"),
    ):
        with pytest.raises(UserError, match=words):
            create(**settings)
    assert create(backbone="24x2x2", blending__on=False).blends is False
    with pytest.raises(UserError, match="augment.occlusion.kind is 'paint'"):
        create(occlusion="paint").stages()
    with pytest.raises(ValueError, match="unknown row 'best'"):
        dpeformer.get_config("row=best")
