"""Pretraining of the tiny CLIP: what its loss compares, which sentence it takes, what it starts from and refuses."""

import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import methods, synthetic
from occreid_jax.data.captions import read_captions
from occreid_jax.data.readers.synthetic import read
from occreid_jax.errors import DataError, UserError
from occreid_jax.losses.contrastive import paired_contrastive
from occreid_jax.methods.clip_pretraining import facts_loss, resample_patches
from occreid_jax.train.rendered import caption_table, fact_table, prompt_tables
from occreid_jax.types import Meta
from occreid_jax.vocabulary import END, tiny_vocabulary

META = Meta(identities=6, cameras=3, image_size=(64, 32), images=24)


def make(**changes):
    config = importlib.import_module("configs.clip_pretraining").get_config()
    config.method.backbone = "micro"
    config.dtype = "float32"
    config.data.image_size = META.image_size
    config.method.update(changes)
    return methods.create(config, META)


def batch_of(method, texts, labels):
    vocabulary = tiny_vocabulary()
    rows = vocabulary.rows(vocabulary.tokenize([text for each in texts for text in each], 16))
    rng = np.random.default_rng(0)
    raw = {
        "image": jnp.asarray(rng.integers(0, 256, (len(labels), *META.image_size, 3), np.uint8)),
        "caption": jnp.asarray(rows.reshape(len(labels), -1, 16)),
        "label": jnp.asarray(labels, jnp.int32),
    }
    return method.transform(raw)


TEXTS = [["a man", "a red hat"], ["a woman", "blue shoes"], ["a short person", "a green coat"], ["a tall man", "a white bag"]]


@pytest.fixture(scope="module")
def started():
    """The method, its initial parameters and its compiled loss (params, batch, key) -> (loss, aux) on all patches."""
    method = make()
    params, extra = jax.jit(method.init)(jax.random.key(0))
    stage = method.stages()[1]
    return method, params, jax.jit(lambda params, batch, key: method.loss(params, extra, batch, key, stage, 0.0))


def test_parameters_are_two_towers_and_a_scale(started):
    method, params, _ = started
    extra = jax.eval_shape(method.init, jax.random.key(0))[1]
    assert set(params) == {"visual", "text", "logit_scale"} and extra == {}
    assert params["text"]["token_embedding"].shape == (len(tiny_vocabulary()), 16)
    np.testing.assert_allclose(np.exp(params["logit_scale"]), 1 / 0.07, rtol=1e-6)


def test_paired_loss_is_that_of_clip_where_nothing_is_the_same():
    rng = np.random.default_rng(1)
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 5, 8)))
    logits = 7.0 * images @ texts.T
    rows, columns = (-np.mean(np.diagonal(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))) for z in (logits, logits.T))
    value, found = paired_contrastive(jnp.asarray(images), jnp.asarray(texts), jnp.float32(7.0), jnp.eye(5, dtype=bool))
    np.testing.assert_allclose(value, (rows + columns) / 2, rtol=1e-5)
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


def test_pairs_that_are_the_same_stand_in_no_softmax():
    rng = np.random.default_rng(2)
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 4, 8)))
    same = np.eye(4, dtype=bool)
    same[0, 2] = same[2, 0] = True
    logits = 3.0 * images @ texts.T
    exponentials = np.where(same & ~np.eye(4, dtype=bool), 0.0, np.exp(logits))
    rows, columns = (-np.mean(np.log(np.diagonal(exponentials) / exponentials.sum(axis=axis))) for axis in (1, 0))
    value, _ = paired_contrastive(jnp.asarray(images), jnp.asarray(texts), jnp.float32(3.0), jnp.asarray(same))
    np.testing.assert_allclose(value, (rows + columns) / 2, rtol=1e-5)
    gradient = jax.grad(lambda t: paired_contrastive(jnp.asarray(images), t, 3.0, jnp.asarray(same))[0])(jnp.asarray(texts))
    chex.assert_tree_all_finite(gradient)


def test_one_identity_makes_no_negatives(started):
    method, params, loss = started

    def value(labels):
        return loss(params, batch_of(method, TEXTS, labels), jax.random.key(3))[0]

    np.testing.assert_allclose(value([1, 1, 1, 1]), 0.0, atol=1e-6)
    assert value([0, 1, 2, 3]) > value([0, 1, 1, 3]) > 0.0


def test_one_sentence_makes_no_negatives(started):
    method, params, loss = started
    batch = batch_of(method, 4 * [["a man", "a man"]], [0, 1, 2, 3])
    np.testing.assert_allclose(loss(params, batch, jax.random.key(0))[0], 0.0, atol=1e-6)


def test_the_scale_stops_at_a_hundred(started):
    method, params, loss = started
    batch = batch_of(method, TEXTS, [0, 1, 2, 3])
    aux = loss(params | {"logit_scale": jnp.float32(20.0)}, batch, jax.random.key(0))[1]
    np.testing.assert_allclose(aux.metrics["scale"], 100.0, rtol=1e-5)


def test_every_sentence_is_taken_now_and_then(started):
    method, params, loss = started
    batch = batch_of(method, TEXTS, [0, 1, 2, 3])
    values = {float(loss(params, batch, jax.random.key(n))[0]) for n in range(8)}
    assert len(values) > 3


def test_masked_features_see_some_patches_and_whole_ones_all(started):
    method, params, _ = started
    image = batch_of(method, TEXTS, [0, 1, 2, 3])["image"]
    features = jax.jit(method.image_features, static_argnums=3)
    whole = features(params, image)
    np.testing.assert_allclose(jnp.linalg.norm(whole, axis=1), 1.0, rtol=1e-5)
    every = features(params, image, jax.random.key(0), 0.999)  # all patches, in another order
    np.testing.assert_allclose(every, whole, atol=1e-5)
    first, second = (features(params, image, jax.random.key(n), 0.5) for n in range(2))
    assert first.shape == whole.shape and not np.allclose(first, second)


# Single facts ---------------------------------------------------------------------------------------------------------------


def test_the_loss_of_facts_is_a_cross_entropy_within_each_kind():
    rng = np.random.default_rng(4)
    logits, kinds = rng.normal(size=(3, 7)).astype(np.float32), np.array([0, 0, 0, 1, 1, 2, 2])
    facts = np.array([[2, 3, -1, 9], [0, -1, -1, 7], [1, 4, 6, -1]], np.int32)  # 7 and on are told elsewhere
    values = []
    for row, told in zip(logits, facts, strict=True):
        for kind, number in enumerate(told):
            if 0 <= number < 7:
                alike = row[kinds == kind]
                values.append(np.log(np.exp(alike).sum()) - row[number])
    found = facts_loss(jnp.asarray(logits), jnp.asarray(kinds), jnp.asarray(facts))
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-5)
    nothing = facts_loss(jnp.asarray(logits), jnp.asarray(kinds), jnp.full((3, 4), -1))
    assert nothing == 0.0


SENTENCES = {name: jnp.asarray(table) for name, table in prompt_tables().items()}


@pytest.fixture(scope="module")
def told(started):
    """A method that is told facts, its parameters, and the compiled `fact_losses` at scale 2."""
    method = make(facts=55)
    params = started[1] | {"anchors": jnp.asarray(np.random.default_rng(7).normal(size=(55, 16)), jnp.float32)}
    losses = jax.jit(lambda images, facts: method.fact_losses(
        params, images, jnp.float32(2.0), {"facts": facts} | SENTENCES, jax.random.key(1)))  # fmt: skip
    return method, params, losses


def test_open_facts_are_compared_where_they_are_not_true(told):
    method, params, losses = told
    images = np.random.default_rng(5).normal(size=(4, 16)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    facts = np.full((4, 13), -1, np.int32)
    facts[:, 9] = [60, 61, 60, 70]
    found = losses(images, facts)
    texts = method.text_features(params, SENTENCES["open_facts"][facts[:, 9] - 55])
    wanted, _ = paired_contrastive(jnp.asarray(images), texts, jnp.float32(2.0), facts[:, 9][:, None] == facts[:, 9])
    np.testing.assert_allclose(found["open_loss"], wanted, rtol=1e-5)
    assert found["closed_loss"] == 0.0
    facts[:, 9] = 60
    np.testing.assert_allclose(losses(images, facts)["open_loss"], 0.0, atol=1e-6)


def test_anchors_tell_every_closed_sentence_from_all_others(told):
    method, params, losses = told
    texts = np.asarray(method.text_features(params, SENTENCES["closed_facts"]))
    anchors = np.asarray(params["anchors"])
    logits = 2.0 * texts @ (anchors / np.linalg.norm(anchors, axis=1, keepdims=True)).T
    wanted = np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diagonal(logits))
    found = losses(np.eye(4, 16, dtype=np.float32), np.zeros((4, 13), np.int32))["anchor_loss"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert set(jax.eval_shape(make().init, jax.random.key(0))[0]) == {"visual", "text", "logit_scale"}


def test_a_wrong_number_of_facts_is_told():
    method = make(facts=54)
    with pytest.raises(UserError, match="config.method.facts is 54, but there are 55 sentences of closed facts; set that"):
        jax.eval_shape(lambda p, i: method.fact_losses(p, i, 1.0, {"facts": jnp.zeros((2, 13), jnp.int32)} | SENTENCES,
                                                       jax.random.key(0)),
                       jax.eval_shape(method.init, jax.random.key(0))[0], jnp.zeros((2, 16)))  # fmt: skip


def test_smaller_patches_have_the_embedding_of_the_patch_made_larger():
    rng = np.random.default_rng(6)
    kernel, patch = rng.normal(size=(16, 16, 3, 5)).astype(np.float32), rng.random((8, 8, 3)).astype(np.float32)
    larger = jax.image.resize(patch, (16, 16, 3), "bilinear")
    wanted = jnp.einsum("ijc,ijcd->d", larger, kernel, precision="highest")
    np.testing.assert_allclose(np.einsum("ijc,ijcd->d", patch, resample_patches(kernel, 8)), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(resample_patches(kernel, 16), kernel, atol=1e-6)


def test_it_starts_from_a_clip_of_another_grid(started):
    fine, given = make(stride=8, facts=55), started[1]
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), jax.eval_shape(fine.init, jax.random.key(0))[0])
    placed, _ = fine.load_pretrained(params, {}, {"params": given, "grid": np.array([4, 2], np.int32)})
    np.testing.assert_array_equal(placed["text"]["token_embedding"], given["text"]["token_embedding"])
    assert placed["visual"]["pos_embed"].shape == (1, 1 + 7 * 3, 32)
    np.testing.assert_array_equal(placed["visual"]["pos_embed"][:, 0], given["visual"]["pos_embed"][:, 0])
    np.testing.assert_array_equal(placed["anchors"], params["anchors"])


def test_wrong_settings_are_one_line():
    with pytest.raises(UserError, match="config.method.backbone: 'micro_resnet' is no transformer"):
        make(backbone="micro_resnet")
    config = importlib.import_module("configs.clip_pretraining").get_config()
    config.stages.masked.keep_patches = 0.0
    with pytest.raises(UserError, match="config.stages.masked.keep_patches is 0.0; it must be"):
        methods.create(config, META)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        size = synthetic.Size(32, 16, 6, 30, 3, 6, 12, 2, 4, 0)
        patch.setitem(synthetic.SIZES, "micro", size)
        return read(synthetic.generate(tmp_path_factory.mktemp("captions") / "set", "micro", "occluded"))


def test_the_caption_table_has_sentences_of_every_picture(rendered):
    table = caption_table(rendered, "train", 0)
    assert table.shape[:2] == (30, synthetic.VARIANTS) and table.dtype == np.int32 and table.shape[2] <= 33
    vocabulary = tiny_vocabulary()
    assert (vocabulary.ids[table].max(axis=2) == END).all()
    picture = read_captions(rendered, "train")[7]
    wanted = vocabulary.rows(vocabulary.tokenize(
        synthetic.caption_variants(picture.attributes, picture.occluder, 0, rendered.train.names[7])))  # fmt: skip
    np.testing.assert_array_equal(table[7], wanted[:, : table.shape[2]])
    assert picture.caption == synthetic.captions(picture.attributes)


def test_the_table_of_facts_names_the_sentences_that_are_true(rendered):
    table, prompts = fact_table(rendered, "train"), prompt_tables()
    assert table.shape == (30, 13) and table.dtype == np.int32 and len(prompts["closed_facts"]) == 55
    sentences = [text for values in synthetic.fact_prompts().values() for text in values.values()]
    vocabulary = tiny_vocabulary()
    for row, picture in zip(table, read_captions(rendered, "train"), strict=True):
        assert (row < 0).tolist() == [not value for value in synthetic.facts(picture.attributes, picture.occluder).values()]
        assert sentences[row[0]] == f"a photo of a {picture.attributes['gender']}"
        for number in row[row >= 0]:
            kind = "closed_facts" if number < 55 else "open_facts"
            rows = prompts[kind][number - (0 if number < 55 else 55)]
            wanted = vocabulary.rows(vocabulary.tokenize([sentences[number]]))[0]
            np.testing.assert_array_equal(rows, wanted[: len(rows)])
            assert number >= 55 or row[prompts["closed_kinds"][number]] == number


def test_captions_that_are_not_there_are_one_line(rendered, tmp_path):
    import dataclasses

    with pytest.raises(DataError, match="describes nobody for 4 pictures"):
        read_captions(rendered, "gallery")  # the distractors
    assert len(read_captions(rendered, "query")) == 6
    other = dataclasses.replace(rendered, truth=None, name="market1501")
    with pytest.raises(DataError, match="market1501 has no captions: only synthetic sets have, take dataset=synthetic"):
        caption_table(other, "train", 0)
