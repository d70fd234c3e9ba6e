"""TransReID: sizes of the published models, and that camera embedding, jigsaw patches and stride do what their formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import transreid
from occreid_jax import methods
from occreid_jax.errors import UserError
from occreid_jax.nn.jpm import jigsaw_order
from occreid_jax.types import Meta
from occreid_jax.weights.trees import flatten

META = Meta(identities=6, cameras=3, image_size=(64, 32), images=24)
UNUSED = 769_000  # a 1000-way layer that the official model keeps and never uses


def create(argument: str = "", meta: Meta = META, **settings):
    config = transreid.get_config(argument)
    config.method.update({"backbone": "micro"} | settings)
    config.data.image_size = meta.image_size
    return methods.create(config, meta)


def batch(count: int = 4, size=META.image_size) -> dict:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(count, *size, 3)).astype(np.float32)),
        "camid": jnp.asarray(np.arange(count) % 3, jnp.int32),
        "label": jnp.asarray(np.repeat(np.arange(count // 2), 2), jnp.int32),
    }


def initial(method):
    return jax.jit(method.init)(jax.random.key(0))


@pytest.mark.parametrize(
    ("stride", "parameters", "multiplications"),
    [(16, 103_403_752, 12.28), (12, 103_466_728, 20.38), (11, 103_491_304, 23.62)],
)
def test_parameters_and_operations_of_the_published_models(stride, parameters, multiplications):
    """Baselines sheet, table 2.1. Official models carry an unused classifier, last block and norm; ours do not."""
    config = transreid.get_config(f"dataset=market1501,stride={stride}")
    method = methods.create(config, Meta(702, 8, (256, 128), 15_618))
    params, _ = jax.eval_shape(method.init, jax.random.key(0))

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    dead = size(params["jpm"]["global"])
    assert size(params) + dead + UNUSED == parameters
    assert method.forward_flops() / 2e9 == pytest.approx(multiplications, abs=0.006)


@pytest.mark.parametrize("backbone", ["small", "wide_small"])
def test_both_small_encoders_carry_the_module(backbone):
    method = create("dataset=market1501", backbone=backbone)
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    width, depth, bias = {"small": (384, 12, True), "wide_small": (768, 8, False)}[backbone]
    assert ("bias" in params["backbone"]["block_00"]["attn"]["qkv"]) is bias
    assert f"block_{depth - 2:02d}" in params["backbone"] and f"block_{depth - 1:02d}" not in params["backbone"]
    query = jax.eval_shape(lambda p, e: method.embed(p, e, batch(), "query"), params, extra)
    assert query.shape == (4, 5 * width)


def test_camera_embedding_adds_its_scale_times_one_vector_to_every_token():
    method, other = create(), create(camera_scale=1.0)
    params, extra = initial(method)
    images, camids = batch()["image"], jnp.array([0, 1, 2, 1])

    def tokens(method, camids):
        return method.backbone.apply(
            {"params": params["backbone"]}, images, camids, method=lambda m, x, c: m.assemble(m.embed_patches(x), c)
        )

    table = params["backbone"]["camera_embed"]
    moved = tokens(method, camids) - tokens(method, jnp.zeros(4, jnp.int32))
    expected = 3.0 * (table[camids] - table[0])[:, None]
    np.testing.assert_allclose(moved, np.broadcast_to(expected, moved.shape), atol=1e-6)
    moved = tokens(method, camids) - tokens(other, camids)
    np.testing.assert_allclose(moved, np.broadcast_to(2.0 * table[camids][:, None], moved.shape), atol=1e-6)
    one = method.embed(params, extra, batch() | {"camid": camids}, "query")
    zero = method.embed(params, extra, batch() | {"camid": camids * 0}, "query")
    changed = np.abs(np.asarray(one - zero)).max(axis=1) > 1e-4
    np.testing.assert_array_equal(changed, np.asarray(camids) != 0)


@pytest.mark.parametrize("stride", [16, 12, 8])
def test_stride_sets_the_grid_and_what_a_token_sees(stride):
    """Token (r, c) is the patch at (r, c) * stride: a pixel changes the tokens whose patches hold it, and no other."""
    method = create(stride=stride, positions=False, camera=False)
    rows, columns = (64 - 16) // stride + 1, (32 - 16) // stride + 1
    assert method.backbone.grid == (rows, columns)
    params, _ = initial(method)
    image = batch(1)["image"]

    def patches(image):
        return method.backbone.apply({"params": params["backbone"]}, image, method="embed_patches")[0]

    y, x = 13, 13
    changed = np.abs(np.asarray(patches(image.at[0, y, x].add(5.0)) - patches(image))).max(axis=-1).reshape(rows, columns) > 1e-4
    top, left = np.arange(rows)[:, None] * stride, np.arange(columns)[None] * stride
    np.testing.assert_array_equal(changed, (top <= y) & (y < top + 16) & (left <= x) & (x < left + 16))
    assert changed.sum() == {16: 1, 12: 4, 8: 4}[stride]


def test_feature_is_the_global_one_and_the_local_ones_over_their_number():
    method = create(test_feature="before")
    params, extra = initial(method)
    features = method.features(params, batch())
    embedded = method.embed(params, extra, batch(), "gallery")
    assert embedded.shape == (4, 5 * 32)
    np.testing.assert_allclose(embedded, jnp.concatenate([features[0], *(part / 4 for part in features[1:])], axis=1), atol=1e-6)
    plain = create("jpm=false", test_feature="before")
    assert plain.embed(*initial(plain), batch(), "gallery").shape == (4, 32)


def test_jigsaw_settings_move_the_local_features_alone():
    params, _ = initial(create())
    reference = create().features(params, batch())
    for settings in ({"shift": 3}, {"shuffle_groups": 4}, {"rearrange": False}):
        features = create(**settings).features(params, batch())
        moved = [float(jnp.abs(a - b).max()) > 1e-4 for a, b in zip(features, reference, strict=True)]
        assert not moved[0] and any(moved[1:])
    # 8 patches: a roll by 8 (shift 9) is no roll at all.
    same = create(shift=9).features(params, batch())
    np.testing.assert_array_equal(jigsaw_order(8, 9), jigsaw_order(8, 1))
    np.testing.assert_allclose(same[1], create(shift=1).features(params, batch())[1], atol=1e-6)


def test_both_branches_start_from_the_same_block_and_part_ways():
    method = create()
    params, extra = initial(method)
    for name, value in flatten(params["jpm"]["global"]).items():
        np.testing.assert_array_equal(value, flatten(params["jpm"]["local"])[name])
    stage = method.stages()[0]
    gradients = jax.jit(jax.grad(lambda p: method.loss(p, extra, batch(), jax.random.key(1), stage, 0.0)[0]))(params)
    first, second = (flatten(gradients["jpm"][name])["block/mlp/fc1/kernel"] for name in ("global", "local"))
    assert float(jnp.abs(first - second).max()) > 1e-6


def test_loss_halves_the_parts():
    """Half the global losses and half the mean of the four parts' (baselines sheet, section 3.3)."""
    from occreid_jax.losses.identity import cross_entropy
    from occreid_jax.losses.metric import batch_hard_triplet

    method = create(triplet_feature="before", label_smoothing=0.0)
    params, extra = initial(method)
    loss, aux = method.loss(params, extra, batch(8), jax.random.key(1), method.stages()[0], 0.0)
    features = method.features(params, batch(8), jax.random.key(1))
    (_, logits), _ = method.heads.apply(
        {"params": params["heads"], "batch_stats": extra["batch_stats"]}, features, True, mutable=["batch_stats"]
    )
    labels = batch(8)["label"]
    each = [cross_entropy(l, labels) + batch_hard_triplet(f, labels, None) for l, f in zip(logits, features, strict=True)]
    assert float(loss) == pytest.approx(
        0.5 * float(each[0]) + 0.5 * float(np.mean([float(value) for value in each[1:]])), rel=1e-5
    )
    assert set(aux.extra["batch_stats"]) == {f"head_{number}" for number in range(5)}


@pytest.mark.parametrize("name", ["arcface", "cosface", "amsoftmax", "circle"])
def test_margins_raise_the_identity_loss(name):
    values = {}
    params, extra = initial(create(identity_loss=name))  # the margin is no part of them
    for margin in (0.0, 0.3):
        method = create(identity_loss=name, cosine_margin=margin)
        loss, aux = method.loss(params, extra, batch(8), jax.random.key(1), method.stages()[0], 0.0)
        values[margin] = float(aux.metrics["identity"])
        assert np.isfinite(float(loss))
    assert values[0.3] > values[0.0] or name == "circle"  # circle's margin moves its optimum instead
    assert values[0.3] != values[0.0]


def test_dropout_and_positions_are_switches():
    plain, params = create(), initial(create())[0]
    key = jax.random.key(3)
    reference = plain.features(params, batch(), key)[0]
    for settings in ({"dropout": 0.5}, {"attention_dropout": 0.5}, {"drop_path": 0.9}):
        changed = create(**settings)
        assert float(jnp.abs(changed.features(params, batch(), key)[0] - reference).max()) > 1e-3
        np.testing.assert_allclose(changed.features(params, batch())[0], plain.features(params, batch())[0], atol=1e-6)
    without = create(positions=False, camera=False, jpm=False)
    own, _ = initial(without)
    assert "pos_embed" not in own["backbone"]
    turned = batch() | {"image": batch()["image"][:, ::-1]}  # upside down: the patches of 16 rows change places and insides
    assert float(jnp.abs(without.features(own, turned)[0] - without.features(own, batch())[0]).max()) > 1e-4


def test_pretrained_encoder_fills_both_branches():
    method, baseline = create(), create("jpm=false,camera=false")
    params, extra = initial(method)
    encoder = flatten(initial(baseline)[0]["backbone"])
    weights = {name: np.asarray(value) + 1.0 for name, value in encoder.items()} | {"grid": np.array([4, 2])}
    loaded, _ = method.load_pretrained(params, extra, weights)
    for branch in ("global", "local"):
        np.testing.assert_array_equal(loaded["jpm"][branch]["block"]["mlp"]["fc1"]["kernel"], weights["block_01/mlp/fc1/kernel"])
        np.testing.assert_array_equal(loaded["jpm"][branch]["norm"]["scale"], weights["norm/scale"])
    np.testing.assert_array_equal(loaded["backbone"]["block_00"]["norm1"]["bias"], weights["block_00/norm1/bias"])
    np.testing.assert_array_equal(loaded["backbone"]["camera_embed"], params["backbone"]["camera_embed"])
    with pytest.raises(UserError, match="1 missing: block/mlp/fc1/kernel"):
        method.load_pretrained(params, extra, {k: v for k, v in weights.items() if k != "block_01/mlp/fc1/kernel"})


def test_settings_that_cannot_work():
    with pytest.raises(UserError, match="config.method.parts is 9, more than the 4x2 patches"):
        create(parts=9)
    with pytest.raises(UserError, match="config.method.shuffle_groups: 8 patches cannot be shuffled in 5 groups"):
        create(shuffle_groups=5)
    with pytest.raises(UserError, match="config.method.identity_loss is 'sphereface'; it must be one of softmax, arcface"):
        create(identity_loss="sphereface")
    with pytest.raises(UserError, match="config.method.backbone: unknown 'huge'"):
        create(backbone="huge")
    with pytest.raises(UserError, match="the width must be a multiple"):
        create(backbone="30x2x4")
