"""A planted effect: ten of a picture's patches show somebody else. The agent finds them by reward alone, chance does not.

The encoder is replaced by one that any patch passes unchanged, and that knows one thing of a patch by a noisy cosine with the
background; everything behind it is the method's own: agent, draws, replacement, decoder, heads, reward and its baseline.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import ogfr as configs
from occreid_jax.methods import ogfr
from occreid_jax.methods.occlusion_aware import Encoded
from occreid_jax.nn.ogfr import FEATURES, PART_TOKENS
from occreid_jax.types import Meta

IDENTITIES, GRID, NOISY, WIDTH, STEPS = 8, (8, 2), 10, 32, 160
META = Meta(identities=IDENTITIES, cameras=1, image_size=(64, 16), images=64)


class Planted(ogfr.OGFR):
    def encode(self, params, images, camids, patterns, rng=None, cls_logits=False):
        """``images`` [B, h, w, 9 + D] hold the patches themselves and what is known of them."""
        flat = images.reshape(len(images), -1, images.shape[-1])
        patches, observed = flat[..., PART_TOKENS:], flat[..., :PART_TOKENS]
        return Encoded(jnp.concatenate([jnp.zeros((len(images), FEATURES, WIDTH)), patches], axis=1), observed, None)


def create(source: str) -> Planted:
    config = configs.get_config("backbone=32x1x2,pretrained=false,row=single_branch")
    config.method.update(patch=8, stride=8, label_smoothing=0.0, triplet_weight=0.0, encoder_id_weight=0.0, mask_weight=0.0)
    config.method.policy.centre = True
    config.method.location.train = source
    config.dtype, config.data.image_size = "float32", META.image_size
    return Planted(config, META)


def draw(key, count: int = 32) -> tuple[dict, jax.Array]:
    """A batch, and which patches bool [B, h, w] are another person's. Six are the own: the others outvote them."""
    key_label, key_other, key_place, key_noise, key_known = jax.random.split(key, 5)
    prototypes = jax.random.normal(jax.random.key(7), (IDENTITIES, WIDTH))
    label = jnp.repeat(jax.random.permutation(key_label, IDENTITIES), count // IDENTITIES)
    other = (label + jax.random.randint(key_other, (count,), 1, IDENTITIES)) % IDENTITIES
    order = jax.vmap(lambda key: jax.random.permutation(key, GRID[0] * GRID[1]))(jax.random.split(key_place, count))
    noisy = (order < NOISY).reshape(count, *GRID)
    patches = jnp.where(noisy[..., None], prototypes[other][:, None, None], prototypes[label][:, None, None])
    patches = patches + 0.3 * jax.random.normal(key_noise, patches.shape)
    known = 0.2 * jax.random.normal(key_known, (count, *GRID, PART_TOKENS))
    known = known.at[..., 0].add(jnp.where(noisy, 0.5, -0.5))
    image = jnp.concatenate([known, patches], axis=-1)
    parts = jnp.zeros((count, *META.image_size), jnp.uint8)
    return {
        "image": image, "occluded": image, "parts": parts, "occluded_parts": parts, "label": label,
        "camid": jnp.zeros(count, jnp.int32), "index": jnp.arange(count), "covered": jnp.zeros(count),
    }, noisy  # fmt: skip


def trained(source: str):
    """(method, parameters, score without and with erasing at the end); the baseline is measured every 40 steps."""
    method = create(source)
    (stage,) = method.stages()
    params, extra = jax.jit(method.init)(jax.random.key(0))
    groups = {name: name if name in ("agent", "heads") else "rest" for name in params}
    rates = {"agent": optax.adam(0.05), "heads": optax.adam(0.02), "rest": optax.adam(2e-3)}
    optimizer = optax.multi_transform(rates, groups)
    state = optimizer.init(params)

    @jax.jit
    def step(params, extra, state, key):
        batch, _ = draw(jax.random.fold_in(key, 0))

        def loss(params):
            return method.loss(params, extra, batch, jax.random.fold_in(key, 1), stage, jnp.float32(0))

        (_, aux), slopes = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(slopes, state, params)
        return optax.apply_updates(params, updates), aux.extra, state, aux.metrics

    @jax.jit
    def unerased(params, extra, key):
        batch, _ = draw(key, 64)
        return jnp.mean(method.unerased(params, extra, batch)["student"][jnp.arange(64), batch["label"]])

    for number in range(STEPS):
        if number % 40 == 0:
            value = unerased(params, extra, jax.random.key(10_000 + number))
            extra["baseline"]["student"] = {"value": value, "count": jnp.ones(())}
        params, extra, state, metrics = step(params, extra, state, jax.random.key(number))
    score = {"accuracy": float(metrics["accuracy_student"]), "kept": float(metrics["kept"])}
    return method, params, score | {"unerased": float(unerased(params, extra, jax.random.key(20_000)))}


def found(method, params, key: int) -> tuple[float, float]:
    """Precision and recall of what is erased in new pictures."""
    batch, noisy = draw(jax.random.key(key), 64)
    encoded = method.encode(params, batch["image"], None, None)
    kept = method.branch(params, "student", encoded, None, method.location(batch, "train", jax.random.key(1))).kept
    erased, noisy = np.asarray(~kept).ravel(), np.asarray(noisy).ravel()
    return (erased & noisy).sum() / max(erased.sum(), 1), (erased & noisy).sum() / noisy.sum()


@pytest.mark.slow
def test_the_agent_replaces_what_is_planted(capsys):
    method, params, learned_score = trained("learned")
    learned, frozen = found(method, params, 99_999), found(method, params, 5)  # nothing moves between the two
    method, params, random_score = trained("random")
    chance = found(method, params, 99_999)
    with capsys.disabled():
        for name, pair, told in (("learned", learned, learned_score), ("frozen", frozen, {}), ("random", chance, random_score)):
            print(f"\n{name}: precision {pair[0]:.3f}, recall {pair[1]:.3f} {told}")
    assert min(*learned, *frozen) > 0.9
    assert chance[1] < 0.2 and abs(chance[0] - NOISY / np.prod(GRID)) < 0.15
    assert learned_score["accuracy"] > random_score["accuracy"]
