"""OGFR: where gradients go, what every switch does to a fixed batch, the reward's baseline, patterns and visibility, its cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ogfr as configs
from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.evaluation import visibility_weighted
from occreid_jax.losses import distillation, policy
from occreid_jax.losses.metric import batch_hard_triplet
from occreid_jax.methods import locations, occlusion_labels
from occreid_jax.methods.occlusion_aware import Encoded
from occreid_jax.nn import ogfr
from occreid_jax.parts import OCCLUDED
from occreid_jax.types import Meta, PrepareContext
from occreid_jax.weights.trees import flatten

META = Meta(identities=6, cameras=3, image_size=(64, 32), images=12)
FIXED = {"label_smoothing": 0.0, "triplet_feature": "before", "test_feature": "before"}  # as published


def create(argument: str = "", **settings):
    config = configs.get_config(f"backbone=micro,{argument}")
    config.method.update_from_flattened_dict(FIXED | settings)
    config.data.image_size = META.image_size
    config.dtype = "float32"
    return methods.create(config, META)


def started(method):
    """Initial values with classifiers, patterns and an agent that say something."""
    params, extra = jax.jit(method.init)(jax.random.key(0))
    params["heads"] = {
        name: own | {"classifier": {"kernel": 200 * own["classifier"]["kernel"]}} for name, own in params["heads"].items()
    }
    if "patterns" in params:
        params["patterns"] = 20 * params["patterns"]
    if "agent" in params:
        params["agent"] = {"kernel": 100 * params["agent"]["kernel"], "bias": jnp.full(1, 0.5)}
    for value in extra.get("baseline", {}).values():
        value["value"] = value["value"] + 0.3
    return params, extra


@functools.cache
def batch(count: int = 12) -> dict:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(count, *META.image_size, 3)).astype(np.float32)
    occluded, parts = image.copy(), np.zeros((count, *META.image_size), np.uint8)
    parts[:, :12, 8:24], parts[:, 12:40, 8:24], parts[:, 40:, 8:24] = 1, 4, 5
    parts[:, 12:36, :8], parts[:, 12:36, 24:] = 2, 3
    occluded[::2, :16], covered = 0.7, parts.copy()
    covered[::2, :16] |= OCCLUDED
    own = {
        "image": image, "occluded": occluded, "parts": parts,
        "occluded_parts": covered, "parsed": np.arange(count) != 5, "covered": np.zeros(count, np.float32),
        "camid": (np.arange(count) % 3).astype(np.int32), "label": (np.arange(count) // 2).astype(np.int32),
        "index": np.arange(count, dtype=np.int32)[::-1], "valid": np.ones(count, bool),
    }  # fmt: skip
    with jax.ensure_compile_time_eval():  # the first call may stand in a function that is traced
        return jax.tree.map(jnp.asarray, own)


def step(method, params, extra, own=None):
    return method.loss(params, extra, own or batch(), jax.random.key(3), method.stages()[0], jnp.float32(0))


@functools.cache
def outcome(**settings) -> tuple[float, dict]:
    """(loss, metrics) of the fixed batch."""
    method = create(**settings)
    total, aux = jax.jit(functools.partial(step, method))(*started(method))
    return float(total), {name: float(value) for name, value in aux.metrics.items()}


# Cost ---------------------------------------------------------------------------------------------------------------------


def sizes(method) -> dict[str, int]:
    params, _ = jax.eval_shape(method.init, jax.random.key(0))
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}


def test_cost_beside_the_paper():
    """Oracle 14 and Table 9 (26.5 G multiply-adds, 121.7 M parameters): those of the inference path, without heads."""
    meta = Meta(identities=702, cameras=8, image_size=(256, 128), images=15618)
    for dataset, multiply_adds in (("occluded_duke", 26.465), ("market1501", 22.950)):
        method = methods.create(configs.get_config(f"dataset={dataset}"), meta)
        assert method.forward_flops() / 2e9 == pytest.approx(multiply_adds, abs=1e-3)
    own = sizes(methods.create(configs.get_config("dataset=occluded_duke"), meta))
    assert sum(own.values()) / 1e6 == pytest.approx(119.81, abs=5e-3)
    assert (own["backbone"] + own["patterns"] + own["student"]) / 1e6 == pytest.approx(100.04, abs=5e-3)
    assert own["agent"] == 10


# Gradients ----------------------------------------------------------------------------------------------------------------

NOTHING = {
    "mse_weight": 0.0, "cosine_weight": 0.0, "divergence_weight": 0.0, "student_id_weight": 0.0, "teacher_id_weight": 0.0,
    "encoder_id_weight": 0.0, "triplet_weight": 0.0, "mask_weight": 0.0, "policy.weight": 0.0,
}  # fmt: skip
DISTILS = {"mse_weight": 1.0, "cosine_weight": 0.5, "divergence_weight": 0.4}


def moved(**settings) -> set[str]:
    """First words of the parameters that get a gradient."""
    method = create(**(NOTHING | settings))
    params, extra = started(method)
    slopes = jax.jit(jax.grad(lambda p: step(method, p, extra)[0]))(params)
    return {path.partition("/")[0] for path, x in flatten(slopes).items() if np.asarray(x).any()}


@pytest.mark.slow
def test_where_gradients_go():
    """Oracle 13, and the column of the sheet's table of losses."""
    encoder = {"backbone", "patterns"}
    assert moved(**DISTILS) == {*encoder, "student", "heads"}
    assert moved(**DISTILS, distill_sg=False) == {*encoder, "student", "teacher", "heads"}
    assert moved(**{"policy.weight": 1.0}) == {"agent"}
    assert moved(mse_weight=1.0) == {*encoder, "student"}
    assert moved(triplet_weight=0.5) == {*encoder, "teacher"}
    assert moved(mask_weight=1.0) == encoder
    assert moved(encoder_id_weight=1.0) == {*encoder, "heads"}
    assert moved(teacher_id_weight=0.3) == {*encoder, "teacher", "heads"}


# Switches: name -> (changed settings, what the formulas predict of loss and metrics before and after) ------------------------

TERMS = (
    "mse", "cosine", "divergence", "identity_student", "identity_teacher", "identity_encoder", "triplet", "mask", "policy",
)  # fmt: skip
PUBLISHED = dict(zip(TERMS, (1.0, 0.5, 0.4, 0.3, 0.3, 1.0, 0.5, 1.0, 1.0), strict=True))


def changed(x: dict, y: dict) -> set[str]:
    return {name for name in TERMS if name in x and name in y and not np.isclose(x[name], y[name], rtol=1e-5)}


def without(name: str, setting: str):
    """The loss falls by a term and its weight, and no term changes."""
    return {setting: 0.0}, lambda a, x, b, y: np.isclose(b, a - PUBLISHED[name] * x[name], rtol=1e-5) and not changed(x, y)


TEACHER = {"mse", "cosine", "divergence", "identity_teacher", "triplet", "policy"}
SWITCHES = {
    "no mse": without("mse", "mse_weight"),
    "no cosine": without("cosine", "cosine_weight"),
    "no divergence": without("divergence", "divergence_weight"),
    "no identity of the student": without("identity_student", "student_id_weight"),
    "the literal objective": without("identity_teacher", "teacher_id_weight"),
    "no identity of the encoder": without("identity_encoder", "encoder_id_weight"),
    "no triplet": without("triplet", "triplet_weight"),
    "no maps": without("mask", "mask_weight"),
    "no policy": without("policy", "policy.weight"),
    "no stop": ({"distill_sg": False}, lambda a, x, b, y: np.isclose(a, b, rtol=1e-6)),
    "nothing is erased": ({"policy.on": False}, lambda a, x, b, y: "kept" not in y and changed(x, y) == TEACHER - {"policy"}),
    "plain layers": ({"decoder": "plain"}, lambda a, x, b, y: changed(x, y) == TEACHER and x["kept"] == y["kept"]),
    "layers as printed": ({"fep_residual": False}, lambda a, x, b, y: changed(x, y) == TEACHER),
    "the sum of Eq. 11": ({"policy.reduction": "sum"}, lambda a, x, b, y: np.isclose(y["policy"], 8 * x["policy"], rtol=1e-5)
                          and changed(x, y) == {"policy"}),
    "centred reward": ({"policy.centre": True}, lambda a, x, b, y: abs(y["reward"]) < 1e-6 and changed(x, y) == {"policy"}),
    "a batch's reward": ({"policy.reward": "batch"}, lambda a, x, b, y: np.isclose(y["score"], x["score"], rtol=1e-5)
                         and np.isclose(y["reward"], (x["score"] - 0.3) / 0.7, rtol=1e-4)),
    "a picture's own baseline": ({"policy.reward": "picture"}, lambda a, x, b, y: np.isclose(y["baseline"], 0.3)
                                 and not changed(x, y)),  # all are 0.3 here
    "against itself": ({"policy.reward": "same_step"}, lambda a, x, b, y: changed(x, y) == {"policy"} and y["baseline"] != 0.3),
    "a coin at the start": ({"policy.start": 0.0}, lambda a, x, b, y: a == b),  # `started` has a bias of its own
    "cosines as they are": ({"correlation_scale": 1.0}, lambda a, x, b, y: changed(x, y) == {"mask"}),
    "temperature 2": ({"temperature": 2.0}, lambda a, x, b, y: changed(x, y) == {"divergence"}),
    "hinge": ({"margin": 0.3}, lambda a, x, b, y: changed(x, y) == {"triplet"}),
    "after the necks": ({"triplet_feature": "after"}, lambda a, x, b, y: changed(x, y) == {"triplet"}),
    "one pattern": ({"pattern_dropout": 1.0}, lambda a, x, b, y: y["whole"] == 1.0 > x["whole"] and "mask" in changed(x, y)),
    "no vector of the pattern": ({"pattern_scale": 0.0}, lambda a, x, b, y: y["whole"] == x["whole"] and "mask" in changed(x, y)),
    "a threshold that all fall short of": ({"threshold": 2049}, lambda a, x, b, y: np.isclose(y["hidden_torso"], 11 / 12)),
    "eight coarse parts": ({"groups": 8}, lambda a, x, b, y: y["hidden_left_foot"] == pytest.approx(11 / 12)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SWITCHES)
def test_switches(name):
    settings, predicts = SWITCHES[name]
    before, after = outcome(), outcome(**settings)
    assert predicts(*before, *after), (before, after)


@pytest.mark.slow
def test_the_loss_is_what_the_sheet_adds_up():
    total, terms = outcome()
    assert total == pytest.approx(sum(weight * terms[name] for name, weight in PUBLISHED.items()), rel=1e-5)
    method = create()
    params, extra = started(method)
    own = batch()
    encoded, found = views(method, params, own), {}
    for name, view in (("teacher", "clean"), ("student", "occluded")):
        found[name] = method.decode(params, name, encoded[view].tokens)
    student = method.features(found["student"])
    heads = method.normalised(params, extra["batch_stats"]["student"], student, True)
    flat = -jax.nn.log_softmax(heads.logits)[jnp.arange(12), :, own["label"]]
    assert terms["identity_student"] == pytest.approx(float(flat.mean()), rel=1e-4)
    everything = create(**{"policy.on": False})  # the teacher with all patches, which the formulas below are of
    params = {name: value for name, value in params.items() if name != "agent"}
    _, aux = step(everything, params, extra)
    teacher = method.features(found["teacher"])
    triplets = [float(batch_hard_triplet(teacher[:, part], own["label"], None)) for part in range(9)]
    expected = {
        "mse": distillation.mean_squared(found["teacher"], found["student"]),
        "cosine": distillation.cosine_distance(teacher, student),
        "triplet": triplets[0] + np.mean(triplets[1:]),
    }
    for name, value in expected.items():
        assert float(aux.metrics[name]) == pytest.approx(float(value), rel=1e-4), name


def views(method, params, own) -> dict:
    """What the encoder makes of both views of a batch, one after the other."""
    key, found = jax.random.key(0), {}
    for view, picture in (("clean", "image"), ("occluded", "occluded")):
        found[view] = method.encode(params, own[picture], own["camid"], method.seen(own, view, key).patterns)
    return found


@pytest.mark.slow
def test_the_agent_s_loss_is_the_policy_s():
    method = create()
    params, extra = started(method)
    own = batch()
    encoded = views(method, params, own)["clean"]
    branch = method.branch(params, "teacher", encoded, jax.random.key(5))
    logits = method.agent.apply({"params": params["agent"]}, encoded.correlation)
    np.testing.assert_array_equal(branch.logits, logits)
    assert 0 < np.mean(branch.kept) < 1
    heads = method.normalised(params, extra["batch_stats"]["teacher"], method.features(branch.tokens), True)
    score = jax.nn.softmax(heads.logits[:, 0])[jnp.arange(12), own["label"]]
    expected = policy.policy_loss(logits, branch.kept, policy.reward(score, jnp.float32(0.3)))
    terms, metrics = method.policy_terms(params, extra, {"teacher": branch}, {"teacher": heads}, own)
    assert float(terms["policy"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["score"]) == pytest.approx(float(score.mean()), rel=1e-5)
    own_table = extra | {"baseline": {"teacher": {"value": jnp.arange(12) / 12.0, "count": jnp.ones(())}}}
    found = create(**{"policy.reward": "picture"}).baseline(params, own_table, "teacher", branch, own)
    np.testing.assert_allclose(found, np.arange(12)[::-1] / 12.0, rtol=1e-6)  # the batch's index runs backwards


# The baseline -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["dataset", "picture"])
def test_the_baseline_is_the_mean_of_what_unerased_pictures_get(reward):
    method = create(**{"policy.reward": reward})
    (stage,) = method.stages()
    assert stage.refresh_every == 2 and configs.get_config("dataset=market1501").method.policy.refresh_every == 10
    params, extra = started(method)
    extra["baseline"]["teacher"] = {"value": 0 * extra["baseline"]["teacher"]["value"], "count": jnp.zeros(())}
    own = batch()

    def run(function, inputs):
        assert inputs == ("image", "parts", "parsed")
        return jax.device_get(function(params, extra, {name: own[name] for name in (*inputs, "camid", "index", "valid")}))

    expected = []
    for scale in (1.0, 3.0):
        params = params | {"heads": jax.tree.map(lambda x, s=scale: s * x, params["heads"])}
        context = PrepareContext(params, extra, jax.random.key(0), np.asarray(own["label"]), np.zeros(12), run)
        extra = method.prepare(stage, len(expected), context)
        encoded = method.encode(params, own["image"], own["camid"], method.patterns(params, own))
        feature = method.decode(params, "teacher", encoded.tokens)[:, :1]
        logits = method.normalised(params, extra["batch_stats"]["teacher"], feature, names=("global",)).logits[:, 0]
        score = np.asarray(jax.nn.softmax(logits))[np.arange(12), own["label"]]
        expected.append(score if reward == "picture" else score.mean())
        np.testing.assert_allclose(extra["baseline"]["teacher"]["value"], np.mean(expected, axis=0), rtol=1e-5)
    assert extra["baseline"]["teacher"]["count"] == 2
    assert method.prepare(stage, 0, context)["baseline"]["teacher"]["count"] == 1  # a stage begins anew
    assert not np.allclose(expected[0], expected[1])


# Patterns, visibility and what is erased -------------------------------------------------------------------------------------


def test_patterns_at_test_time():
    """Labels; where a picture has none, what ``unparsed`` says; or one of its answers for all."""
    method = create(unparsed="whole")
    params, _ = started(method)
    own = {name: batch()[name] for name in ("image", "camid", "parsed")} | {"parts": batch()["occluded_parts"]}
    labelled = np.where(np.arange(12) % 2 == 0, 8, 0)  # the head is behind the obstacle of every other picture
    np.testing.assert_array_equal(method.patterns(params, own), labelled)
    unparsed = own | {"parsed": jnp.arange(12) != 2}
    np.testing.assert_array_equal(method.patterns(params, unparsed), np.where(np.arange(12) == 2, 0, labelled))
    whole = create(test_pattern="whole")
    assert whole.evaluation_inputs == ("image",) and not whole.patterns(params, own).any()
    estimating = create(test_pattern="estimate")
    correlation = estimating.encode(params, own["image"], own["camid"], jnp.zeros(12, jnp.int32)).correlation
    shares = np.exp(10.0 * np.asarray(estimating.maps(correlation)))
    arms, legs = shares[:, 2] + shares[:, 3], shares[:, 5:].sum(1)
    won = np.argmax([shares[:, 0], shares[:, 1], arms, shares[:, 4], legs], axis=0)
    hidden = np.stack([(won == group).sum((1, 2)) < 5 for group in (1, 2, 3, 4)], axis=1)
    expected = hidden @ (8, 4, 2, 1)
    np.testing.assert_array_equal(estimating.patterns(params, own), expected)
    np.testing.assert_array_equal(
        create(unparsed="estimate").patterns(params, unparsed), np.where(np.arange(12) == 2, expected, labelled)
    )


def test_visible_parts():
    method = create()
    cosines = np.full((2, 8, 9), 0.1, np.float32)
    cosines[:, :, 0] = 0.5
    cosines[0, 3, 4] = cosines[1, :4, 1] = 0.9
    encoded = Encoded(jnp.zeros(()), jnp.asarray(cosines), None)
    own = {"image": jnp.zeros((2, *META.image_size, 3)), "index": jnp.arange(2)}
    np.testing.assert_array_equal(method.visibility(encoded, own, "query"), np.eye(8)[[3, 0]])
    assert np.all(create(visibility_rule="raw_cosine").visibility(encoded, own, "query") == 1)
    # A cell of 4 x 2 is 256 of 2048 on the grid of the labels; upsampling rounds its corners off.
    found = create(visible_cells=300).visibility(encoded, own, "query")
    np.testing.assert_array_equal(found, [np.zeros(8), np.eye(8)[0]])


@pytest.mark.parametrize("grid", [(64, 32), (32, 16), (256, 128)])
def test_maps_are_compared_with_labels_on_the_grid_of_their_loss(grid):
    """(256, 128), the text's pixels, are cut to those of the picture; pictures without labels do not count."""
    method, own = create(mask_loss_grid=grid), batch()
    cosines = np.random.default_rng(2).uniform(-1, 1, (2, 12, 8, 9)).astype(np.float32)
    encoded = {view: Encoded(None, jnp.asarray(x), None) for view, x in zip(("clean", "occluded"), cosines, strict=True)}
    seen = {view: method.seen(own, view, jax.random.key(0)) for view in encoded}
    rows, columns, losses = min(grid[0], 64), min(grid[1], 32), []
    for x, name in zip(cosines, ("parts", "occluded_parts"), strict=True):
        maps = jax.image.resize(jnp.asarray(x).reshape(12, 4, 2, 9), (12, rows, columns, 9), "bilinear")
        labels = occlusion_labels.label_map(own[name], (rows, columns)).astype(jnp.int32)
        logs = jnp.take_along_axis(jax.nn.log_softmax(10 * maps, axis=-1), labels[..., None], axis=-1)
        losses.append(-np.delete(np.asarray(logs), 5, axis=0).mean())
    assert float(method.mask_loss(encoded, seen, own)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_sources_of_the_location():
    learned, truth = create(), create(**{"location.train": "truth", "location.test": "truth"})
    parts, mean = batch()["occluded_parts"], locations.visible_shares(batch()["parts"], (4, 2))
    np.testing.assert_array_equal(truth.true_location_at(parts, "train"), locations.visible_shares(parts, (4, 2)))
    seen = truth.true_location_at(parts, "test")[..., 0]
    np.testing.assert_array_equal(seen[:2], [[0, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]])
    assert truth.location_grid_at("train") == (4, 2) and truth.location_grid_at("test") == (8, 1)
    params, _ = started(learned)
    encoded = views(learned, params, batch())["clean"]
    for source, level in (("truth", 0.5), ("constant", 0.5), ("random", 0.1)):
        method = create(**{"location.train": source})
        branch = method.branch(params, "teacher", encoded, jax.random.key(0), mean)
        np.testing.assert_array_equal(branch.kept, mean.reshape(12, 8) >= level)
        assert branch.logits is None
    test_batch = batch() | {"parts": parts, locations.MEAN: jnp.broadcast_to(jnp.linspace(0, 1, 8)[:, None], (12, 8, 1))}
    np.testing.assert_array_equal(truth.visibility(encoded, test_batch, "query"), seen)
    constant = create(**{"location.test": "constant"}).visibility(encoded, test_batch, "query")
    np.testing.assert_array_equal(constant[0], [0, 0, 0, 0, 1, 1, 1, 1])
    with pytest.raises(UserError, match="location.train is 'truth', but these settings leave nothing to localise"):
        create("row=oa_vit", **{"location.train": "truth"})


@pytest.mark.slow
def test_true_cells_are_kept_of_each_view_and_all_where_there_are_no_labels():
    method, seen = create("row=fep_both", **{"location.train": "truth"}), {}
    params, extra = started(method)
    original = method.decode

    def decode(params, branch, tokens, kept=None, rng=None):
        seen[branch] = np.array(kept)
        return original(params, branch, tokens, kept, rng)

    method.decode = decode
    _, aux = step(method, params, extra)
    for branch, name in (("teacher", "parts"), ("student", "occluded_parts")):
        expected = np.array(locations.visible_shares(batch()[name], (4, 2)) >= 0.5).reshape(12, 8)
        expected[5] = True
        np.testing.assert_array_equal(seen[branch], expected)
    assert "policy" not in aux.metrics and aux.metrics["student_kept"] < aux.metrics["teacher_kept"]


@pytest.mark.slow
def test_what_is_compared():
    method = create()
    params, extra = started(method)
    own = batch()
    encoded = method.encode(params, own["image"], own["camid"], method.patterns(params, own))
    tokens = method.decode(params, "student", encoded.tokens)
    found = method.embed(params, extra, own, "query")
    np.testing.assert_allclose(found["global"], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["parts"], tokens[:, 1:9], atol=1e-5)
    np.testing.assert_allclose(method.distance(found, found), visibility_weighted(found, found), atol=1e-6)
    after = create(test_feature="after").embed(params, extra, own, "query")["parts"]
    np.testing.assert_allclose(after, tokens[:, 1:9] / np.sqrt(1 + 1e-5), atol=1e-4)
    shown = method.inspect(params, extra, own)
    correlation = np.asarray(encoded.correlation)
    logits = correlation @ np.asarray(params["agent"]["kernel"])[:, 0] + float(params["agent"]["bias"][0])
    np.testing.assert_allclose(shown["keep"].reshape(12, 8), 1 / (1 + np.exp(-logits)), atol=1e-5)
    np.testing.assert_array_equal(shown["erased"], shown["keep"] < 0.5)
    np.testing.assert_allclose(shown["correlation"].sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(shown["visible torso"], found["visible"][:, 3])
    np.testing.assert_allclose(shown["attention"].sum(axis=(1, 2)), 1, atol=1e-5)
    assert ogfr.PART_TOKENS == shown["correlation"].shape[1] == 9


def test_what_erasing_could_earn():
    """Each probability is that of a branch which keeps just these patches; one that keeps all has that of nothing erased."""
    method = create()
    params, extra = started(method)
    params["teacher"] = jax.tree.map(lambda leaf: 5 * leaf if leaf.ndim > 1 else leaf, params["teacher"])  # erasing tells
    own, start = batch() | {"parts": batch()["parts"].at[:, :, 16:].set(0)}, "probability of the true identity, erased: "
    found = jax.jit(method.illustrate)(params, extra, own, jax.random.key(0))
    plain = method.unerased(params, extra, own)["teacher"]
    rows, labels = np.arange(len(own["label"])), np.asarray(own["label"])
    np.testing.assert_allclose(found[f"{start}nothing"], np.asarray(plain)[rows, labels], atol=1e-5)
    encoded = method.encode(params, own["image"], own["camid"], method.patterns(params, own))
    person = np.asarray(locations.visible_shares(own["parts"], method.backbone.grid)).reshape(len(rows), -1) >= 0.5
    assert 0 < person.mean() < 1
    for erased, kept in (("all but the person", person), ("the person", ~person)):
        token = method.decode(params, "teacher", encoded.tokens, jnp.asarray(kept))[:, 0]
        neck, statistics = params["heads"]["global"], extra["batch_stats"]["teacher"]["global"]
        (_, logits), _ = method.head.apply({"params": neck, "batch_stats": statistics}, token, False, mutable=["batch_stats"])
        told = np.where(own["parsed"], np.asarray(jax.nn.softmax(logits))[rows, labels], np.nan)
        np.testing.assert_allclose(found[f"{start}{erased}"], told, atol=1e-5)
        assert np.nanmax(np.abs(told - found[f"{start}nothing"])) > 1e-3
    params["agent"] = {"kernel": 0 * params["agent"]["kernel"], "bias": jnp.full(1, 50.0)}
    found = jax.jit(method.illustrate)(params, extra, own, jax.random.key(0))
    for erased in ("what the agent draws", "as much at random"):
        np.testing.assert_array_equal(found[f"{start}{erased}"], found[f"{start}nothing"])


# Rows and mistakes -----------------------------------------------------------------------------------------------------------


def test_rows_differ_in_what_they_name():
    full = sizes(create())
    for row, gone in (("baseline", {"agent", "patterns", "teacher", "student"}), ("oa_vit", {"agent", "teacher", "student"}),
                      ("single_branch", {"teacher"}), ("mask_none", {"agent"}), ("fep_student", set())):  # fmt: skip
        assert set(full) - set(sizes(create(f"row={row}"))) == gone, row
    both, student = sizes(create("row=fep_both")), sizes(create("row=fep_student"))
    assert both["student"] == both["teacher"] == full["teacher"] == student["student"] and student["teacher"] == full["student"]
    assert create("row=baseline").evaluation_inputs == create("row=baseline").training_inputs == ("image",)
    heads = jax.eval_shape(create("row=oa_vit").init, jax.random.key(0))[0]["heads"]
    assert set(heads) == {"global", *(f"part_{part}" for part in range(1, 9))}


@pytest.mark.parametrize("settings, words", [
    ({"groups": 2}, "config.method.groups is 2; it must be one of 1, 4, 8"),
    ({"distils": False}, "config.method.erases=teacher needs a teacher; set distils=True, or erases=student or none"),
    ({"occlusion_aware": False}, "occlusion_aware=False leaves a plain ViT on occluded pictures; with it set distils=False and"),
    ({"policy.reward": "A"}, "config.method.policy.reward is 'A'; it must be one of batch, dataset, picture, same_step"),
])  # fmt: skip
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(UserError, match=words):
        create(**settings)
