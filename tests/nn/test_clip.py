"""CLIP's towers: published sizes, the text tower on any prefix, what CLIP-ReID changes in the image encoder."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from occreid_jax.nn import clip, layers
from occreid_jax.nn.prompt import person_prompt

IDENTITIES, CAMERAS = 702, 8
IMAGES = jax.random.normal(jax.random.key(5), (2, 32, 16, 3))


def count(model, *inputs, **arguments):
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, **arguments))
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def text_count(name, vocabulary=0):
    tower = clip.clip_text(name, vocabulary)
    if vocabulary:
        return count(tower, jnp.zeros((1, 5), jnp.int32))
    return count(tower, jnp.zeros((1, 5, tower.size.width)), 4, method="encode")


@pytest.mark.parametrize(
    ("name", "total"), [("vit_b32", 151_277_313), ("vit_b16", 149_620_737), ("vit_l14", 427_616_513), ("rn50", 102_007_137)]
)
def test_parameters_of_the_published_networks(name, total):
    """Radford et al.'s networks at 224 pixels; one parameter is the temperature, which no forward pass here uses."""
    if name == "rn50":
        visual = clip.clip_resnet(name, (224, 224), last_stride=2)
    else:
        visual = clip.clip_visual(name, (224, 224))
    assert count(visual, jnp.zeros((1, 224, 224, 3))) + text_count(name, clip.VOCABULARY) + 1 == total


@pytest.mark.parametrize(
    ("name", "stride", "cameras", "total"),
    [
        ("vit_b16", 16, 0, 126_610_432),
        ("vit_b16", 12, CAMERAS, 126_679_552),
        ("rn50", None, 0, 80_472_416),
    ],
)
def test_parameters_of_clip_reid(name, stride, cameras, total):
    """Baselines sheet, section 2.2, with 702 identities: towers, prompts, two classifiers and necks."""
    images, embed = jnp.zeros((1, 256, 128, 3)), clip.VISUAL[name].embed
    if name == "rn50":
        features = 2048
        visual = count(clip.clip_resnet(name, (256, 128)), images)
        assert visual == 38_478_688
    else:
        features = 768
        camids = jnp.zeros(1, jnp.int32) if cameras else None
        visual = count(clip.clip_visual(name, (256, 128), stride, cameras=cameras), images, camids)
    text = text_count(name)
    assert text == {512: 38_131_200, 1024: 38_393_344}[embed]
    rest = IDENTITIES * (4 * 512 + features + embed) + 2 * (features + embed)
    assert visual + text + rest == total


def test_paths_of_the_parameters():
    model = clip.clip_visual("micro", (32, 16), cameras=3)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, jnp.zeros(2, jnp.int32)))["params"]
    shapes = {path: x.shape for path, x in traverse_util.flatten_dict(params, sep="/").items()}
    blocks = {path for path in shapes if path.startswith("block_")}
    assert {path: shape for path, shape in shapes.items() if path not in blocks} == {
        "patch_embed/kernel": (16, 16, 3, 32),
        "cls_token": (1, 1, 32),
        "pos_embed": (1, 3, 32),
        "norm_pre/scale": (32,),
        "norm_pre/bias": (32,),
        "norm/scale": (32,),
        "norm/bias": (32,),
        "projection": (32, 16),
        "camera_embed": (3, 32),
    }
    parts = ("norm1/scale", "norm2/bias", "attn/qkv/kernel", "attn/proj/bias", "mlp/fc1/kernel", "mlp/fc2/bias")
    assert blocks >= {f"block_{number:02d}/{part}" for number in range(2) for part in parts}
    tower = clip.clip_text("micro", 50)
    params = jax.eval_shape(lambda: tower.init(jax.random.key(0), jnp.zeros((1, 5), jnp.int32)))["params"]
    assert {path.split("/")[0] for path in traverse_util.flatten_dict(params, sep="/")} == {
        "token_embedding", "pos_embed", "block_00", "block_01", "norm", "projection",
    }  # fmt: skip
    assert params["token_embedding"].shape == (50, 16) and params["pos_embed"].shape == (77, 16)
    assert params["block_00"]["attn"]["qkv"]["kernel"].shape == (16, 48)


def test_quick_gelu():
    """DPM++ sheet, oracle 1."""
    np.testing.assert_allclose(layers.quick_gelu(jnp.array([1.0, -1.0])), [0.845796, -0.154204], atol=1e-6)


@pytest.mark.parametrize(("stride", "patches"), [(16, 128), (12, 210), (11, 242)])
def test_outputs_of_the_image_encoder(stride, patches):
    """Every stride; taps after every block, cls logits of the last one, projected tokens (DPM++ sheet, section 2)."""
    model = clip.clip_visual("vit_b16", (256, 128), stride)
    out = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, 256, 128, 3)), None, False, return_cls_logits=True)[0]
    )
    chex.assert_shape([*out.taps, out.tokens], (2, 1 + patches, 768))
    assert len(out.taps) == 12
    chex.assert_shape(out.cls_logits, (2, 12, 1 + patches))
    chex.assert_shape(out.projected, (2, 1 + patches, 512))


def encoder(**settings):
    """The small image encoder with cameras."""
    return clip.clip_visual("micro", (32, 16), cameras=3, **settings)


@pytest.fixture(scope="module")
def cameras():
    """Initial values of `encoder`; one without cameras has the same but for their table."""
    return jax.jit(encoder().init)(jax.random.key(0), IMAGES, jnp.zeros(2, jnp.int32))


def test_the_projection_follows_the_final_norm_on_every_token(cameras):
    model = clip.clip_visual("micro", (32, 16))

    def run(variables):
        out = model.apply(variables, IMAGES)
        return out, model.apply(variables, out.taps[-1], method="finish")

    out, last = jax.jit(run)(cameras)
    np.testing.assert_allclose(out.tokens, last, atol=1e-6)
    np.testing.assert_allclose(out.projected, last @ cameras["params"]["projection"], atol=1e-5)
    assert jax.eval_shape(model.clone(projection_width=0).apply, cameras, IMAGES).projected is None


def assembled(model, variables, camids):
    return model.apply(variables, IMAGES, camids, method=lambda m, x, c: m.assemble(m.embed_patches(x), c))


def test_camera_vector_is_added_to_the_cls_token_only_and_before_the_positions(cameras):
    model, variables = encoder(camera_scale=2.0), cameras
    params, camids = variables["params"], jnp.array([2, 1])
    plain = model.clone(pre_norm=False)
    difference = assembled(plain, variables, camids) - assembled(plain.clone(cameras=0), variables, None)
    np.testing.assert_allclose(difference[:, 0], 2.0 * params["camera_embed"][camids], atol=1e-6)
    assert not difference[:, 1:].any()
    # Before the positions: in arithmetic that rounds visibly the order of the two sums can be told.
    coarse = plain.clone(dtype=jnp.bfloat16)
    camera, token, positions = (
        x.astype(jnp.bfloat16) for x in (2.0 * params["camera_embed"][camids], params["cls_token"], params["pos_embed"])
    )
    expected = token[0] + camera + positions[0, :1]
    chex.assert_trees_all_equal(assembled(coarse, variables, camids)[:, 0], expected)
    # The norm comes last.
    normed = assembled(model, variables, camids)
    np.testing.assert_allclose(normed.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(normed.std(-1), 1, atol=1e-3)


def test_the_camera_can_be_left_out(cameras):
    """Stage 1 of CLIP-ReID sees features without camera, with the parameters of a network that has one."""
    model = encoder()
    without = jax.jit(model.clone(cameras=0).apply)(cameras, IMAGES)
    silent = jax.jit(model.clone(camera_scale=0.0).apply)(cameras, IMAGES, jnp.array([0, 1]))
    np.testing.assert_allclose(without.projected, silent.projected, atol=1e-6)
    with pytest.raises(ValueError, match="pass camids"):
        model.apply(cameras, IMAGES)
    with pytest.raises(ValueError, match="camera_tokens"):
        model.clone(camera_tokens="some").apply(cameras, IMAGES, jnp.array([0, 1]))


def test_initial_values():
    """Both towers follow the rule of CLIP's text tower; embeddings of the image tower have the deviation D^-1/2."""
    models = [clip.clip_visual("tiny", (128, 64), from_scratch=scratch) for scratch in (False, True)]
    initial = jax.jit(lambda key: [model.init(key, jnp.zeros((1, 128, 64, 3)))["params"] for model in models])
    params, scratch = initial(jax.random.key(0))
    output = 192**-0.5 * 8**-0.5
    expected = {
        "pos_embed": 192**-0.5,
        "projection": 192**-0.5,
        "block_03/attn/qkv/kernel": 192**-0.5,
        "block_03/attn/proj/kernel": output,
        "block_03/mlp/fc1/kernel": 384**-0.5,
        "block_03/mlp/fc2/kernel": output,
        "patch_embed/kernel": (3 * 768) ** -0.5,
    }
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, deviation in expected.items():
        assert float(flat[path].std()) == pytest.approx(deviation, rel=0.03), path
    assert float(scratch["pos_embed"].std()) == pytest.approx(0.5, rel=0.03)
    assert float(scratch["patch_embed"]["kernel"].std()) == pytest.approx(768**-0.5, rel=0.03)


# The text tower ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tower():
    model = clip.clip_text("micro", clip.VOCABULARY)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 5), jnp.int32))["params"]
    # Larger than the initial values, so that attention is far from uniform.
    rng = np.random.default_rng(0)
    grown = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params)
    return model, {"params": grown}


def encode(model, variables, embedded, eot):
    """Text features of embedded tokens, in one program; ``eot`` a number or an array."""
    return jax.jit(lambda variables, x: model.apply(variables, x, eot, method="encode"))(variables, embedded)


def test_a_prefix_gives_the_same_features(tower):
    """Baselines sheet, oracle 8: 12 tokens and 77 tokens."""
    model, variables = tower
    prompt = person_prompt()
    ids = jnp.asarray(prompt.ids)[None]
    run = jax.jit(model.apply)
    whole, prefix = run(variables, ids), run(variables, ids[:, : prompt.length])
    assert prompt.length == 12 and ids.shape == (1, 77) and whole.dtype == jnp.float32
    np.testing.assert_allclose(prefix, whole, atol=1e-5)
    embedded = model.apply(variables, ids[:, :12], method="embed_tokens")
    # A tower of CLIP-ReID has no token embedding and is given what another one made of it.
    bare = model.clone(vocabulary=0)
    without = {"params": {name: x for name, x in variables["params"].items() if name != "token_embedding"}}
    for eot in (11, jnp.array([11])):
        np.testing.assert_allclose(encode(bare, without, embedded, eot), whole, atol=1e-5)
    with pytest.raises(ValueError, match="no token embedding"):
        bare.apply(without, ids)


def test_no_token_sees_a_later_one(tower):
    model, variables = tower
    embedded = jax.random.normal(jax.random.key(1), (2, 9, 16))
    changed = embedded.at[:, 5].multiply(-3.0)
    run = jax.jit(lambda x: model.apply(variables, x, method="tokens"))
    before, after = run(embedded), run(changed)
    chex.assert_trees_all_equal(before[:, :5], after[:, :5])
    assert (jnp.abs(before[:, 5:] - after[:, 5:]).max(axis=(0, 2)) > 1e-3).all()
    gradient = jax.jit(jax.grad(lambda x: model.apply(variables, x, 4, method="encode").sum()))(embedded)
    assert not gradient[:, 5:].any() and gradient[:, :5].any(axis=(0, 2)).all()


def test_each_row_has_its_own_end(tower):
    model, variables = tower
    embedded = jax.random.normal(jax.random.key(2), (2, 8, 16))
    both = encode(model, variables, embedded, jnp.array([3, 6]))
    for row, eot in ((0, 3), (1, 6)):
        alone = encode(model, variables, embedded[row : row + 1, : eot + 1], eot)  # a shorter prefix
        np.testing.assert_allclose(both[row], alone[0], atol=1e-5)


def test_rematerialised_text_blocks_give_the_same_gradient(tower):
    model, variables = tower
    embedded = jax.random.normal(jax.random.key(2), (2, 6, 16))
    models = [model.clone(remat=remat) for remat in (False, True)]
    gradients = [
        jax.jit(jax.grad(lambda x, m=each: m.apply(variables, x, 5, method="encode").sum()))(embedded) for each in models
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-5)


def test_texts_that_do_not_fit(tower):
    model, variables = tower
    with pytest.raises(ValueError, match="78 tokens are more than the 77"):
        model.apply(variables, jnp.zeros((1, 78), jnp.int32))
    with pytest.raises(ValueError, match="end token at 12 is not among 12"):
        model.apply(variables, jnp.zeros((1, 12, 16)), 12, method="encode")


def test_bfloat16_is_close_and_finite(tower, cameras):
    model, variables = tower
    ids = jnp.asarray(person_prompt().ids)[None, :12]
    low, exact = (jax.jit(each.apply)(variables, ids) for each in (model.clone(dtype=jnp.bfloat16), model))
    assert low.dtype == jnp.float32 and jnp.isfinite(low).all()
    np.testing.assert_allclose(low, exact, atol=0.3)
    visual = clip.clip_visual("micro", (32, 16), dtype=jnp.bfloat16)
    out = jax.jit(visual.apply)(cameras, IMAGES)
    assert out.taps[0].dtype == jnp.bfloat16 and out.tokens.dtype == out.projected.dtype == jnp.float32
    exact = jax.jit(visual.clone(dtype=jnp.float32).apply)(cameras, IMAGES)
    np.testing.assert_allclose(out.projected, exact.projected, atol=0.1)


def test_unknown_networks():
    with pytest.raises(ValueError, match="unknown CLIP network 'vit_b8'; known: .*vit_b16"):
        clip.clip_text("vit_b8")
    with pytest.raises(ValueError, match="'rn50' is no transformer"):
        clip.clip_visual("rn50", (256, 128))
    with pytest.raises(ValueError, match="'vit_b16' is no ResNet"):
        clip.clip_resnet("vit_b16", (256, 128))
