"""CLIP-ReID: what each stage moves and sees, padded batches, the prompt around the learned words, both kinds of image tower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import clip_reid
from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.losses.contrastive import image_text_contrastive
from occreid_jax.nn import clip
from occreid_jax.train.state import trainable_paths
from occreid_jax.types import Meta, PrepareContext
from occreid_jax.weights.trees import flatten

META = Meta(identities=6, cameras=3, image_size=(64, 32), images=12)


def create(argument: str = "backbone=micro", **settings):
    config = clip_reid.get_config(argument)
    config.method.update(settings)
    config.data.image_size = META.image_size
    config.dtype = "float32"
    return methods.create(config, META)


@functools.cache
def started(argument: str = "backbone=micro"):
    """A method and its initial values, shared by all tests; what `create` sets beside the argument changes no parameter."""
    method = create(argument)
    return method, *jax.jit(method.init)(jax.random.key(0))


def batch(count: int = 12) -> dict:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(count, *META.image_size, 3)).astype(np.float32)),
        "camid": jnp.asarray(np.arange(count) % 3, jnp.int32),
        "label": jnp.asarray(np.arange(count) // 2, jnp.int32),
        "index": jnp.arange(count, dtype=jnp.int32),
        "valid": jnp.ones(count, bool),
    }


def prepared(method, params, extra, stage):
    """``extra`` after `prepare`, with a pass over one batch as the training set."""
    own = batch()

    def run(function):
        return np.asarray(function(params, extra, own))

    context = PrepareContext(params, extra, jax.random.key(1), np.asarray(own["label"]), np.asarray(own["camid"]), run)
    return method.prepare(stage, 0, context)


def test_each_stage_moves_its_own_parameters():
    method, params, _ = started()
    prompts, finetune = method.stages()
    assert trainable_paths(params, prompts.updates[0]) == ("prompts/context",)
    moved = trainable_paths(params, finetune.updates[0])
    assert {path.split("/")[0] for path in moved} == {"visual", "heads"}
    assert not any(path.endswith("neck/bias") for path in moved)
    assert prompts.inputs == ("feature",) and finetune.inputs == ("image",)


def test_first_stage_sees_images_without_cameras():
    method, params, extra = started("backbone=micro,camera=true")
    stage = method.stages()[0]
    features = prepared(method, params, extra, stage)["tables"]["feature"]
    plain = {name: value for name, value in params["visual"].items() if name != "camera_embed"}
    expected = jax.jit(create().views)(params | {"visual": plain}, extra, batch())[0].projected
    np.testing.assert_allclose(features, expected, atol=1e-5)
    seen = jax.jit(method.views)(params, extra, batch())[0].projected
    assert float(jnp.abs(seen - features).max()) > 1e-3


def test_texts_of_the_second_stage_are_those_of_all_identities():
    method, params, extra = started()
    texts = prepared(method, params, extra, method.stages()[1])["texts"]
    assert texts.shape == (6, 16)
    np.testing.assert_allclose(texts, jax.jit(method.texts)(params, extra, jnp.arange(6)), atol=1e-6)
    assert float(jnp.abs(texts[0] - texts[1]).max()) > 1e-4


def test_a_text_is_the_prompt_with_the_identity_s_words():
    method, params, extra = started()
    context, prompt = params["prompts"]["context"], extra["prompt"]
    assert prompt["prefix"].shape == (1, 5, 16) and prompt["suffix"].shape == (1, 68, 16) and context.shape == (6, 4, 16)
    whole = jnp.concatenate([prompt["prefix"], context[2:3], prompt["suffix"]], axis=1)
    expected = jax.jit(lambda p, x: method.text.apply({"params": p}, x, 11, method="encode"))(params["text"], whole)
    np.testing.assert_allclose(jax.jit(method.texts)(params, extra, jnp.array([2])), expected, atol=1e-5)


def cached(method, params, extra, count=12):
    stage = method.stages()[0]
    extra = prepared(method, params, extra, stage)
    own = {name: value for name, value in batch(count).items() if name != "image"}
    return stage, extra, own | {"feature": extra["tables"]["feature"][:count]}


@pytest.mark.slow
def test_padding_of_the_last_batch_changes_nothing():
    method, params, extra = started()
    stage, extra, short = cached(method, params, extra, 5)

    def loss(params, own):
        return method.loss(params, extra, own, jax.random.key(0), stage, 0.0)[0]

    padded = {name: jnp.concatenate([value, value[:1].repeat(3, 0)]) for name, value in short.items()}
    padded["valid"] = jnp.arange(8) < 5
    for gradient in (loss, jax.grad(loss)):
        pairs = zip(jax.tree.leaves(gradient(params, short)), jax.tree.leaves(gradient(params, padded)), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(jnp.abs(one).max()))
    texts = method.texts(params, extra, short["label"])
    expected = image_text_contrastive(short["feature"], texts, short["label"])
    np.testing.assert_allclose(loss(params, short), expected, rtol=1e-6)


def test_held_out_images_take_no_part_in_the_first_stage():
    method, (_, params, extra) = create(held_out=0.25), started()
    stage, extra, own = cached(method, params, extra)
    held = (np.asarray(own["index"]) * 617 % 1000) < 250
    assert 0 < held.sum() < 12

    def loss(params, own):
        return method.loss(params, extra, own, jax.random.key(0), stage, 0.0)

    slope = jax.jit(jax.grad(loss, has_aux=True))
    changed = own | {"feature": jnp.where(jnp.asarray(held)[:, None], 9.0, own["feature"])}
    (first, aux), (second, _) = slope(params, own), slope(params, changed)
    np.testing.assert_allclose(first["prompts"]["context"], second["prompts"]["context"], atol=1e-6)
    assert 0 <= float(aux.metrics["held_out_accuracy"]) <= 1


@pytest.mark.parametrize("backbone", ["micro", "micro_resnet"])
def test_second_stage_sums_heads_features_and_texts(backbone):
    from occreid_jax.losses.totals import clip_reid_total

    method, params, extra = started(f"backbone={backbone}")
    stage = method.stages()[1]
    extra = prepared(method, params, extra, stage)
    weight = method.settings.identity_weight
    assert weight == (0.25 if backbone == "micro" else 1.0)

    @jax.jit
    def found_and_expected(params, extra, batch):
        found = method.loss(params, extra, batch, jax.random.key(0), stage, 0.0)
        views, _ = method.views(params, extra, batch, train=True)
        (_, logits), _ = method.heads.apply(
            {"params": params["heads"], "batch_stats": extra["batch_stats"]["heads"]}, views[1:], True, mutable=["batch_stats"]
        )
        image_text = views.projected @ extra["texts"].T
        return found, clip_reid_total(logits, views, image_text, batch["label"], 0.3, 0.1, weight)

    (loss, aux), expected = found_and_expected(params, extra, batch())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    statistics = ("heads", "visual") if backbone == "micro_resnet" else ("heads",)
    assert set(aux.extra["batch_stats"]) == set(statistics)
    for name in statistics:
        before, after = flatten(extra["batch_stats"][name]), flatten(aux.extra["batch_stats"][name])
        assert all(float(jnp.abs(before[path] - after[path]).max()) > 0 for path in before)


def test_baseline_has_one_stage_and_no_text():
    method, params, extra = started("backbone=micro,text=false")
    assert [stage.name for stage in method.stages()] == ["finetune"]
    assert set(params) == {"visual", "heads"} and set(extra) == {"batch_stats"}
    assert method.settings.identity_weight == 1.0
    _, aux = jax.eval_shape(lambda: method.loss(params, extra, batch(), jax.random.key(0), method.stages()[0], 0.0))
    assert "image_text" not in aux.metrics


def test_features_of_query_and_gallery():
    before, after = create(test_feature="before"), create(test_feature="after")
    _, params, extra = started()

    @jax.jit
    def compared(params, extra, batch):
        features = [method.embed(params, extra, batch, "query") for method in (before, after)]
        return *features, before.views(params, extra, batch)[0]

    one, other, views = compared(params, extra, batch())
    np.testing.assert_allclose(one, jnp.concatenate([views.late, views.projected], axis=1), atol=1e-6)
    assert float(jnp.abs(one - other).max()) > 1e-7


@functools.cache
def whole_clip(backbone: str, vocabulary: int = 49408):
    """A raw CLIP under this project's paths, as port_weights writes one, for pictures of another size."""
    tower = clip.clip_resnet if backbone == "micro_resnet" else clip.clip_visual
    visual = tower(backbone, (64, 64))
    arguments = () if backbone == "micro_resnet" else (None,)
    variables = jax.jit(visual.init)(jax.random.key(5), jnp.zeros((1, 64, 64, 3)), *arguments)
    text = jax.jit(clip.clip_text(backbone, vocabulary).init)(jax.random.key(6), jnp.zeros((1, 3), jnp.int32))
    arrays = {f"params/visual/{path}": x for path, x in flatten(variables["params"]).items()}
    arrays |= {f"params/text/{path}": x for path, x in flatten(text["params"]).items()}
    arrays |= {f"extra/batch_stats/visual/{path}": x for path, x in flatten(variables.get("batch_stats", {})).items()}
    arrays["params/logit_scale"] = np.float32(2.0)
    return {name: np.asarray(x) for name, x in arrays.items()} | {"grid": np.array(visual.grid, np.int32)}


@pytest.mark.parametrize("backbone", ["micro", "micro_resnet"])
def test_clip_weights_fill_both_towers_and_the_prompt(backbone):
    (method, params, extra), weights = started(f"backbone={backbone}"), whole_clip(backbone)
    params, extra = method.load_pretrained(params, extra, weights)
    block = "block_00/mlp/fc1/kernel" if backbone == "micro" else "layer1_0/conv1/kernel"
    np.testing.assert_array_equal(flatten(params["visual"])[block], weights[f"params/visual/{block}"])
    np.testing.assert_array_equal(params["text"]["projection"], weights["params/text/projection"])
    table, ids = weights["params/text/token_embedding"], method.prompt.ids
    np.testing.assert_array_equal(extra["prompt"]["prefix"][0], table[ids[:5]])
    np.testing.assert_array_equal(extra["prompt"]["suffix"][0], table[ids[9:]])
    if backbone == "micro_resnet":
        name = "bn1/mean"
        np.testing.assert_array_equal(
            flatten(extra["batch_stats"]["visual"])[name], weights[f"extra/batch_stats/visual/{name}"]
        )


def test_weights_that_do_not_serve():
    (method, params, extra), weights = started(), whole_clip("micro")
    with pytest.raises(UserError, match="no token embedding to look up"):
        method.load_pretrained(params, extra, {k: v for k, v in weights.items() if not k.endswith("token_embedding")})
    with pytest.raises(UserError, match="needs a whole CLIP"):
        method.load_pretrained(params, extra, {"cls_token": np.zeros((1, 1, 32))})
    with pytest.raises(UserError, match="not CLIP's vocabulary"):
        method.load_pretrained(params, extra, weights | {"params/text/token_embedding": np.zeros((100, 16), np.float32)})


def test_settings_that_cannot_work():
    with pytest.raises(UserError, match="config.method.backbone is 'vit_b17'; it must be one of"):
        create("backbone=vit_b17")
    with pytest.raises(UserError, match="the ResNet has no camera embedding; set camera=false"):
        create("backbone=micro_resnet,camera=true")


def test_published_networks():
    """Totals of the sheet, section 2.2, without what only the original keeps."""
    for argument, total in (("backbone=vit_b16,stride=12,camera=true", 126_679_552), ("backbone=rn50", 80_472_416)):
        config = clip_reid.get_config(f"dataset=market1501,{argument}")
        method = methods.create(config, Meta(702, 8, (256, 128), 15_618))
        params, extra = jax.eval_shape(method.init, jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == total
        pictures = {"image": jnp.zeros((2, 256, 128, 3)), "camid": jnp.zeros(2, jnp.int32)}
        query = jax.eval_shape(lambda p, e, m=method, b=pictures: m.embed(p, e, b, "query"), params, extra)
        assert query.shape == (2, 3072 if "rn50" in argument else 1280)
