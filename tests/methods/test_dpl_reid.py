"""DPL-ReID against its formulas, and against CLIP-ReID where its parts are off."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import config as configuration
from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.losses.contrastive import supervised_contrastive
from occreid_jax.losses.identity import cross_entropy
from occreid_jax.methods.dpl_reid import VARIANTS
from occreid_jax.nn.gated_fusion import GatedFusion, WeightedFusion
from occreid_jax.nn.prompt import occluded_prompt, person_prompt
from occreid_jax.nn.text_fusion import TextFusion
from occreid_jax.train.optim import make_optimizer
from occreid_jax.train.schedules import learning_rates
from occreid_jax.train.state import trainable_paths
from occreid_jax.types import Meta, PrepareContext
from tests.methods.test_contract import library, raw_batch

META = Meta(identities=6, cameras=3, image_size=(64, 32), images=24)
NETWORKS = {"vit": "micro", "resnet": "micro_resnet"}


def create(argument="", name="dpl_reid", network="micro", **settings):
    config = importlib.import_module(f"configs.{name}").get_config(argument)
    config.method.update(backbone=network, stride=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    if "wgff" in config.method:
        config.method.wgff.network = "micro"
    config.method.update_from_flattened_dict(settings)
    config.data.image_size = META.image_size
    for stage in config.stages.values():
        stage.sampler.batch_size = 8
    return methods.create(config, META)


@pytest.fixture(scope="module")
def full():
    method = create()
    return method, *jax.jit(method.init)(jax.random.key(0))


def cached(extra, stage):
    index = jnp.arange(8)
    return {name: extra["tables"][name][index] for name in stage.inputs if name in extra["tables"]}


def batch_of(stage, extra):
    raw = raw_batch() | cached(extra, stage)
    return raw | {name: table for name, table in library().items() if name in stage.shared}


def stepped(method, params, extra, number):
    """Loss, gradients and new state of one stage's first batch, augmented with one key."""
    stage = method.stages()[number]
    batch = stage.augment(jax.random.key(1), batch_of(stage, extra))

    def loss(params):
        return method.loss(params, extra, batch, jax.random.key(2), stage, jnp.float32(0.5))

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


# Without its parts it is CLIP-ReID --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["vit", pytest.param("resnet", marks=pytest.mark.slow)])
def test_with_everything_off_it_is_clip_reid_to_the_last_bit(network):
    ours, theirs = create("row=baseline", network=NETWORKS[network]), create("", "clip_reid", NETWORKS[network])
    found, expected = (jax.jit(method.init)(jax.random.key(3)) for method in (ours, theirs))
    same(found, expected)
    table = jax.random.normal(jax.random.key(4), expected[1]["tables"]["feature"].shape)
    texts = jax.random.normal(jax.random.key(5), expected[1]["texts"].shape)
    for number in (0, 1):
        results = []
        for method in (ours, theirs):
            params, extra = found
            extra = extra | {"tables": {"feature": table}, "texts": texts}
            results.append(stepped(method, params, extra, number))
        same(*results)
    batch = ours.transform(raw_batch())
    same(*(jax.jit(lambda *given, method=method: method.embed(*given, "query"))(*found, batch) for method in (ours, theirs)))


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_all_parts_start_with_clip_reids_values(network):
    """The same seed gives the same towers, heads and words, whatever stands beside them."""
    ours, theirs = create(network=NETWORKS[network]), create("", "clip_reid", NETWORKS[network])
    found, expected = (jax.jit(method.init)(jax.random.key(3))[0] for method in (ours, theirs))
    for name in ("visual", "heads", "text"):
        same(found[name], expected[name])
    same(found["prompts"]["context"], expected["prompts"]["context"])


# Prompts ----------------------------------------------------------------------------------------------------------------------


def test_the_two_templates():
    full, occluded = person_prompt(4), occluded_prompt(4, 4)
    assert full.ids[:13].tolist() == [49406, 320, 1125, 539, 320, *[343] * 4, 2533, 269, 49407, 0]
    assert (full.slots, full.eot) == (((5, 6, 7, 8),), 11)
    words = [2533, 533, 1566, 996, 1241, 638, *[344] * 4, 269, 49407, 0]
    assert occluded.ids[:22].tolist() == [49406, 320, 1125, 539, 320, *[343] * 4, *words]
    assert (occluded.slots, occluded.eot) == (((5, 6, 7, 8), (15, 16, 17, 18)), 20)
    longer = occluded_prompt(4, 6)
    assert longer.slots[1] == tuple(range(15, 21)) and longer.eot == 22


def test_learned_words_are_those_of_the_paper_and_shared_by_no_template(full):
    method, params, _ = full
    shapes = {name: leaf.shape for name, leaf in params["prompts"].items()}
    assert shapes == {"context": (6, 4, 16), "occluded_x": (6, 4, 16), "occluded_y": (6, 4, 16)}
    shared = create(shared_occluder_words=True)
    assert jax.eval_shape(shared.init, jax.random.key(0))[0]["prompts"]["occluded_y"].shape == (1, 4, 16)
    many = create("row=words_6_4")
    shapes = jax.eval_shape(many.init, jax.random.key(0))[0]["prompts"]
    assert shapes["occluded_x"].shape == (6, 6, 16) and shapes["context"].shape == (6, 4, 16)


def test_the_first_stage_sums_both_losses_of_both_branches(full):
    method, params, extra = full
    keys = jax.random.split(jax.random.key(7), 2)
    clean, hidden = (jax.random.normal(key, (8, 16)) for key in keys)
    batch = raw_batch() | {"feature": clean, VARIANTS: hidden}
    labels = batch["label"]
    stage = method.stages()[0]

    def loss(params):
        return method.loss(params, extra, batch, jax.random.key(2), stage, jnp.float32(0.5))[0]

    value, slopes = jax.jit(jax.value_and_grad(loss))(params)
    expected = 0.0
    for features, encode in ((clean, method.texts), (hidden, method.occluded_texts)):
        for pair in ((features, encode(params, extra, labels)), (encode(params, extra, labels), features)):
            expected += supervised_contrastive(*pair, labels, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert all(float(jnp.abs(leaf[:2]).max()) > 0 for leaf in slopes["prompts"].values())  # the batch has people 0 and 1
    assert all(float(jnp.abs(leaf[2:]).max()) == 0 for leaf in slopes["prompts"].values())
    update = stage.updates[0]
    assert set(trainable_paths(params, update)) == {f"prompts/{name}" for name in params["prompts"]}


def test_contrastive_losses_of_the_sheet():
    images, texts = jnp.array([[1.0, 0], [0, 1], [0.5, 0.5]]), jnp.array([[1.0, 0], [1, 0], [0, 2]])
    people = jnp.array([0, 0, 1])
    assert supervised_contrastive(images, texts, people, people) == pytest.approx(1.298639, abs=1e-6)
    assert supervised_contrastive(texts, images, people, people) == pytest.approx(1.256048, abs=1e-6)
    logits = jnp.array([[1.0, 2]]) @ jnp.array([[1.0, 0], [0, 1], [1, 1]]).T
    assert cross_entropy(logits, jnp.array([2]), 0.1) == pytest.approx(0.507606, abs=1e-6)


def test_every_visit_draws_one_variant(full):
    method, _, extra = full
    stage = method.stages()[0]
    assert stage.inputs == ("feature", VARIANTS)
    tables = jnp.broadcast_to(jnp.arange(4.0)[None, :, None], (64, 4, 16))
    drawn = stage.augment(jax.random.key(0), {VARIANTS: tables.reshape(64, 64), "feature": jnp.zeros((64, 16))})[VARIANTS]
    assert drawn.shape == (64, 16) and set(np.unique(drawn)) == {0, 1, 2, 3}


# Both texts become one --------------------------------------------------------------------------------------------------------


def test_weighted_texts():
    full, occluded = jnp.array([[1.0, 2]]), jnp.array([[3.0, -1]])

    def fused(alpha):
        return TextFusion().apply({"params": {"alpha": jnp.float32(alpha)}}, full, occluded)

    np.testing.assert_allclose(fused(0.3), [[2.4, -0.1]], atol=1e-6)
    np.testing.assert_allclose(fused(1.7), full)
    assert float(TextFusion().init(jax.random.key(0), full, occluded)["params"]["alpha"]) == 0.5


def test_cross_attention_asks_both_texts_of_the_same_person():
    texts = jax.random.normal(jax.random.key(0), (2, 3, 4))
    module = TextFusion("cross_attention")
    params = module.init(jax.random.key(1), *texts)
    found = module.apply(params, *texts)

    def dense(name, x):
        return x @ params["params"][name]["kernel"] + params["params"][name]["bias"]

    for person in range(3):
        both = texts[:, person]
        weights = jax.nn.softmax(dense("key", both) @ dense("query", both[0]) / 2.0)
        expected = both[0] + dense("out", weights @ dense("value", both))
        np.testing.assert_allclose(found[person], expected, atol=1e-5)
    other = module.apply(params, texts[0], texts[1].at[1:].set(0.0))
    np.testing.assert_allclose(other[0], found[0], atol=1e-6)


def test_three_layers():
    texts = jax.random.normal(jax.random.key(0), (2, 3, 4))
    module = TextFusion("mlp")
    params = module.init(jax.random.key(1), *texts)["params"]
    x = jnp.concatenate(list(texts), axis=-1)
    for name in ("fc1", "fc2"):
        x = jnp.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
    np.testing.assert_allclose(
        module.apply({"params": params}, *texts), x @ params["fc3"]["kernel"] + params["fc3"]["bias"], atol=1e-5
    )


@pytest.mark.slow
def test_the_weight_learns_from_the_image_text_loss_alone(full):
    method, params, extra = full
    extra = extra | {name: jax.random.normal(jax.random.key(9), extra[name].shape) for name in ("texts",)}
    (_, aux), slopes = stepped(method, params, extra, 1)
    assert float(jnp.abs(slopes["fusion"]["alpha"])) > 0
    assert float(aux.metrics["text_weight"]) == 0.5 and float(aux.metrics["clip_weight"]) == pytest.approx(0.9)
    silent = create(image_text_weight=0.0)
    assert float(stepped(silent, params, extra, 1)[1]["fusion"]["alpha"]) == 0.0
    assert float(jnp.abs(stepped(silent, params, extra, 1)[1]["wgff"]["beta"])) > 0


# LSNet beside CLIP ------------------------------------------------------------------------------------------------------------


def test_gates_of_the_sheet():
    module = GatedFusion()
    feature, logits = jnp.array([[2.0, -1, 4]]), jnp.array([0.0, 2, -2])
    params = {name: {"kernel": jnp.zeros((5, 3)), "bias": logits} for name in ("gate_map", "gate_proj")}
    last = jnp.broadcast_to(feature, (1, 4, 2, 3))
    gated, projected = module.apply({"params": params}, last, feature, jnp.ones((1, 1, 1, 5)), jnp.ones((1, 5)))
    np.testing.assert_allclose(projected, [[1, -0.880797, 0.476812]], atol=1e-6)
    np.testing.assert_allclose(gated[0, 3, 1], projected[0], atol=1e-6)
    start = module.init(jax.random.key(0), last, feature, jnp.zeros((1, 1, 1, 5)), jnp.zeros((1, 5)))
    _, kept = module.apply(start, last, feature, jnp.zeros((1, 1, 1, 5)), jnp.zeros((1, 5)))
    np.testing.assert_allclose(kept, 0.952574 * feature, atol=1e-5)


def test_a_gate_grows_to_the_larger_map():
    """0, 1 on eight positions: half-pixel centres, ends repeated."""
    params = {name: {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)} for name in ("gate_map", "gate_proj")}
    other = jnp.array([0.0, 1.0]).reshape(1, 2, 1, 1)
    gated, _ = GatedFusion().apply({"params": params}, jnp.ones((1, 8, 1, 1)), jnp.ones((1, 1)), other, jnp.ones((1, 1)))
    logits = np.log(gated / (1 - gated)).ravel()
    np.testing.assert_allclose(logits, [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1], atol=1e-5)


def test_weighted_features_of_the_sheet():
    module = WeightedFusion()
    clip, pooled = jnp.array([[1.0, -2]]), jnp.array([[1.0, 1, 1]])
    start = module.init(jax.random.key(0), clip, clip, pooled)["params"]
    assert float(jax.nn.sigmoid(start["beta"])) == pytest.approx(0.9) and float(start["beta"]) == pytest.approx(2.1972, abs=1e-4)
    for name in ("p1", "p2"):
        start[name] = {"kernel": jnp.zeros((3, 2)), "bias": jnp.array([5.0, 3])}
    for found in module.apply({"params": start}, clip, clip, pooled):
        np.testing.assert_allclose(found, [[1.4, -1.5]], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_full_weight_of_clip_leaves_clip_reids_features(network):
    method = create(network=NETWORKS[network])
    params, extra = jax.jit(method.init)(jax.random.key(0))
    wgff = dict(params["wgff"])
    if method.is_vit:
        wgff["beta"] = jnp.float32(40.0)
    else:
        wgff = {name: {"kernel": 0 * leaf["kernel"], "bias": leaf["bias"] + 40} for name, leaf in wgff.items()}
    params = params | {"wgff": wgff}
    batch = method.transform(raw_batch())
    views, plain = method.views(params, extra, batch)[0], super(type(method), method).views(params, extra, batch)[0]
    same(views, plain)
    assert not np.array_equal(method.views(params | {"wgff": dict(params["wgff"]) | (
        {"beta": jnp.float32(0.0)} if method.is_vit else {"gate_proj": jax.tree.map(jnp.zeros_like, wgff["gate_proj"])}
    )}, extra, batch)[0].projected, plain.projected)  # fmt: skip


@pytest.mark.slow
def test_features_follow_the_formulas(full):
    method, params, extra = full
    batch = method.transform(raw_batch())
    views, _ = jax.jit(method.views)(params, extra, batch)
    plain, _ = super(type(method), method).views(params, extra, batch)
    other, _ = method.look_around(params, extra, batch["image"], False)
    mean = other.pooled.mean(axis=-1, keepdims=True)
    unit = (other.pooled - mean) / jnp.sqrt(other.pooled.var(axis=-1, keepdims=True) + 1e-5)
    for found, own, name in ((views.late, plain.late, "p1"), (views.projected, plain.projected, "p2")):
        np.testing.assert_allclose(found, 0.9 * own + 0.1 * (unit @ params["wgff"][name]["kernel"]), atol=1e-5)
    np.testing.assert_array_equal(views.early, plain.early)


def test_lsnet_gets_the_pictures_as_it_knows_them(full, monkeypatch):
    method, params, extra = full
    seen = []
    apply = type(method.lsnet).apply
    monkeypatch.setattr(type(method.lsnet), "apply", lambda self, variables, images, **k: (
        seen.append(images), apply(self, variables, images, **k))[1])  # fmt: skip
    raw = raw_batch()
    method.look_around(params, extra, method.transform(raw)["image"], False)
    expected = (raw["image"] / 255.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(seen[0], expected, atol=1e-5)


@pytest.mark.slow
def test_frozen_norms_keep_their_statistics(full):
    method, params, extra = full
    for frozen, moves in ((False, True), (True, False)):
        (_, aux), _ = stepped(create(**{"wgff.frozen_norms": frozen}), params, extra, 1)
        before, after = (jax.tree.leaves(each["batch_stats"]["lsnet"]) for each in (extra, aux.extra))
        assert any(np.any(a != b) for a, b in zip(before, after, strict=True)) == moves


def test_what_moves_and_how_fast(full):
    method, params, _ = full
    stage = method.stages()[1]
    (update,) = stage.updates
    paths = trainable_paths(params, update)
    assert {path.split("/")[0] for path in paths} == {"visual", "heads", "lsnet", "wgff", "fusion"}
    pairs = update.optimizer
    blocks = {pattern: block for pattern, block in pairs}
    scalars = blocks["^(fusion/alpha|wgff/beta)$"]
    assert scalars.weight_decay == 0.0 and scalars.bias_weight_decay == 0.0
    chosen = {path: np.zeros(2, np.float32) for path in ("fusion/alpha", "lsnet/stem_0/conv/kernel", "visual/cls_token")}
    optimizer = make_optimizer(pairs, tuple(chosen), np.array([1]))
    updates, _ = optimizer.update({path: np.ones(2, np.float32) for path in chosen}, optimizer.init(chosen), chosen)
    for path, pattern in zip(chosen, blocks, strict=True):
        rate = learning_rates(blocks[pattern].schedule, blocks[pattern].learning_rate, 1)[0]
        np.testing.assert_allclose(updates[path], -rate, rtol=1e-4)  # Adam's first step


# The first stage's pictures, and what is told ----------------------------------------------------------------------------------


def prepared(method, params, extra, number):
    """`Method.prepare` of a stage on the batch that stands for the training set, its pictures repeated."""
    raw = raw_batch(24)

    def pass_(function, inputs=("image",), shared=()):
        given = method.transform({**raw, "label": raw["label"]}) | {name: library()[name] for name in shared}
        return jax.tree.map(np.asarray, jax.jit(function)(params, extra, given))

    context = PrepareContext(params, extra, jax.random.key(5), np.arange(24) % 6, np.asarray(raw["camid"]), pass_)
    return method.prepare(method.stages()[number], 0, context)


@pytest.mark.slow
def test_occluded_variants_and_agreements(full):
    method, params, extra = full
    after = prepared(method, params, extra, 0)
    assert jax.tree.structure(after) == jax.tree.structure(extra)
    tables = after["tables"]
    used = np.asarray(tables["was_occluded"])
    variants = np.asarray(tables[VARIANTS]).reshape(24, 4, 16)
    assert 0.2 < used.mean() < 0.8
    differ = np.any(np.abs(variants - tables["feature"][:, None]) > 1e-5, axis=-1)
    np.testing.assert_array_equal(differ, used)  # a picture that got nothing has its own feature
    final = prepared(method, params, after, 1)
    labels = np.arange(24) % 6
    for column, text in enumerate(("texts", "occluded_texts")):
        whole = np.argmax(np.asarray(tables["feature"]) @ np.asarray(final[text]).T, axis=1) == labels
        assert float(final["agreement"][0, column]) == pytest.approx(whole.mean())
        covered = np.argmax(variants @ np.asarray(final[text]).T, axis=2) == labels[:, None]
        assert float(final["agreement"][1, column]) == pytest.approx(covered[used].mean())
    told = method.measures(params, final)
    assert told["occluded texts, covered pictures"] == pytest.approx(float(final["agreement"][1, 1]))
    assert told["text weight"] == 0.5 and told["CLIP's weight"] == pytest.approx(0.9)


@pytest.mark.slow
def test_the_second_stage_compares_with_the_chosen_texts():
    for row, expected in (("template_full", [0.0] * 16), ("template_occluded", [1.0] * 16), ("rwoa_dual", [0.5] * 16)):
        method = create(f"row={row}")
        params, extra = jax.jit(method.init)(jax.random.key(0))
        if "occluded_texts" in extra:
            extra = extra | {"occluded_texts": jnp.ones_like(extra["occluded_texts"])}
        np.testing.assert_array_equal(method.stage_texts(params, extra)["texts"][0], expected)


def test_counts_of_the_published_networks():
    """Table 9 has 126.68 M, 12.07 G for CLIP-ReID, 142.12 M, 12.50 G for DPL-ReID; docs/methods/dpl_reid.md explains ours."""

    def count(name, argument):
        config = importlib.import_module(f"configs.{name}").get_config(f"dataset=occluded_duke{argument}")
        method = methods.create(config, Meta(702, 8, (256, 128), 1))
        params, _ = jax.eval_shape(method.init, jax.random.key(0))
        sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
        return sizes, method.forward_flops() / 2e9

    (ours, products), (theirs, fewer) = count("dpl_reid", ""), count("clip_reid", ",camera,stride=12")
    assert ours["prompts"] - theirs["prompts"] == 2_875_392 and theirs["prompts"] == 1_437_696
    assert ours["lsnet"] == 11_024_064 and ours["fusion"] == 1 and ours["wgff"] == 492_800 + 1_536 + 1
    assert (sum(theirs.values()), sum(ours.values())) == (126_679_552, 141_073_346)
    assert (fewer, products) == (pytest.approx(18.95, abs=5e-3), pytest.approx(19.14, abs=5e-3))
    (ours, products), (theirs, fewer) = count("dpl_reid", ",backbone=rn50"), count("clip_reid", ",backbone=rn50")
    assert ours["wgff"] == 1_182_720 and (sum(theirs.values()), sum(ours.values())) == (80_472_416, 95_554_593)
    assert (fewer, products) == (pytest.approx(5.75, abs=5e-3), pytest.approx(5.95, abs=5e-3))


def test_no_weight_could_move_at_the_rate_of_the_vit():
    """The sum of all rates of a training, 244 steps an epoch: what Adam can change a number by at most."""
    config = importlib.import_module("configs.dpl_reid").get_config("dataset=occluded_duke")
    finetune = config.stages.finetune
    far = {}
    for name in ("optimizer", "scalar_optimizer"):
        block = finetune[name]
        far[name] = 244 * float(np.sum(learning_rates(block.schedule, block.learning_rate, finetune.epochs)))
    assert far["optimizer"] == pytest.approx(0.0333, abs=1e-3) and far["scalar_optimizer"] == pytest.approx(6.66, abs=0.2)


SCHEDULES = {  # rates of the sheet, by epoch
    ("", "prompts"): {1: 7.8e-5, 5: 3.49044e-4, 75: 1.755e-4, 120: 3.43265e-5, 150: 1e-6},
    ("", "finetune"): {1: 9.5e-7, 10: 5e-6, 30: 5e-7, 50: 5e-8, 80: 5e-8},
    (",backbone=rn50", "finetune"): {1: 3.815e-5, 10: 3.5e-4, 40: 3.5e-5, 70: 3.5e-6, 200: 3.5e-6},
}


@pytest.mark.parametrize("case", SCHEDULES, ids=str)
def test_schedules_of_the_published_recipes(case):
    argument, stage = case
    block = importlib.import_module("configs.dpl_reid").get_config(f"dataset=occluded_duke{argument}").stages[stage]
    rates = learning_rates(block.optimizer.schedule, block.optimizer.learning_rate, block.epochs)
    for epoch, rate in SCHEDULES[case].items():
        assert rates[epoch - 1] == pytest.approx(rate, rel=1e-4), epoch


def test_test_features_have_the_published_widths():
    for argument, width in (("", 1280), (",backbone=rn50", 3072)):
        config = importlib.import_module("configs.dpl_reid").get_config("dataset=occluded_duke" + argument)
        method = methods.create(config, Meta(702, 8, (256, 128), 1))
        params, extra = jax.eval_shape(method.init, jax.random.key(0))
        batch = {"image": jax.ShapeDtypeStruct((2, 256, 128, 3), jnp.float32), "camid": jax.ShapeDtypeStruct((2,), jnp.int32)}
        features = jax.eval_shape(lambda *given, method=method: method.embed(*given, "query"), params, extra, batch)
        assert features.shape == (2, width)


def test_wrong_settings_are_told():
    config = importlib.import_module("configs.dpl_reid").get_config("dataset=occluded_duke")
    config.data.image_size = (384, 128)
    with pytest.raises(UserError, match="offsets is 'subgrid', but LSNet's .* 4x4 positions, and these pictures have 6x2; set"):
        methods.create(config, Meta(6, 3, (384, 128), 24))
    with pytest.raises(UserError, match="config.method.templates is 'none'; it must be one of full, occluded, both"):
        create(templates="none")
    config = importlib.import_module("configs.dpl_reid").get_config("")
    config.stages.finetune.augment.occlusion.kind = "cutout"
    with pytest.raises(UserError, match="augment.occlusion.kind is 'cutout'; it must be one of rwoa, oia"):
        methods.create(config, META).stages()
    for argument in ("row=best", "rates=slow", "camera=yes"):
        with pytest.raises(ValueError, match=f"unknown {argument.partition('=')[0]} "):
            importlib.import_module("configs.dpl_reid").get_config(argument)


def test_every_row_is_valid_and_built():
    for row in importlib.import_module("configs.dpl_reid").ROWS:
        method = create(f"row={row}")
        configuration.validate(method.config)
        jax.eval_shape(method.init, jax.random.key(0))
        assert [stage.name for stage in method.stages()] == ["prompts", "finetune"]
