"""Every loss and every gradient of the reference files loss_*.npz, and the reader of such files.

The files hold outputs of the official PyTorch code of TransReID, CLIP-ReID, deep-person-reid and fast-reid on random features.
A result may be off by max(2e-6 of the largest reference value, 30 roundings of the official code itself).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.errors import UserError
from occreid_jax.losses.contrastive import image_text_contrastive, supervised_contrastive
from occreid_jax.losses.identity import adaptive_smoothing, cross_entropy
from occreid_jax.losses.margin import am_softmax, arcface, circle, cosface
from occreid_jax.losses.metric import batch_distances, batch_hard_triplet, centre_loss, hardest_pairs, weighted_triplet
from occreid_jax.losses.totals import clip_reid_total, transreid_total
from occreid_jax.weights.reference import ReferenceFile, compare, normal, recipe_tensor

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference"
SIZES = ("32x64", "16x768")


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


class Checker:
    """Compares results with one file and remembers which outputs were compared."""

    def __init__(self, path):
        self.file, self.results = ReferenceFile(path), []
        self.inputs = {name: jnp.asarray(array) for name, array in self.file.inputs.items()}
        self.labels = self.inputs["label"].astype(jnp.int32)

    def same(self, key, value):
        self.results.append(self.file.compare(key, value))

    def loss(self, key, function, *arrays, **gradients):
        """``function(*arrays)`` against ``key.loss``; ``gradients`` names the output of the n-th gradient: grad_x=0."""
        value, slopes = jax.value_and_grad(function, argnums=tuple(range(len(arrays))))(*arrays)
        self.same(f"{key}.loss", value)
        for name, position in gradients.items():
            self.same(f"{key}.{name}", slopes[position])

    def finish(self):
        wrong = [str(result) for result in self.results if not result.passed]
        assert not wrong, "\n".join(wrong)
        assert sorted(result.key for result in self.results) == sorted(self.file.outputs)
        noisy = [result.noise_multiple for result in self.results if result.noise]
        closest = max(self.results, key=lambda result: result.used)
        print(
            f"{self.file.path.name}: {len(self.results)} outputs, worst noise x{max(noisy):.1f}, "
            f"closest to its limit ({closest.used:.0%}): {closest}"
        )


def branches(features, logits, count):
    """The notes' made-up branches: features grow, logits mix with those of the reversed batch."""
    return [features * (1 + 0.1 * i) for i in range(count)], [logits + 0.1 * i * logits[::-1] for i in range(count)]


@pytest.mark.parametrize("size", SIZES)
def test_transreid(size):
    checker = Checker(REFERENCE / f"loss_transreid_{size}.npz")
    features, logits, labels = checker.inputs["feat"], checker.inputs["logits"], checker.labels
    triplets = {
        "margin0.3": dict(margin=0.3),
        "margin0.3_normfeat": dict(margin=0.3, normalise=True),
        "soft": dict(margin=None),
        "margin0.3_hard0.1": dict(margin=0.3, hard_factor=0.1),
    }
    for name, options in triplets.items():
        checker.loss(f"triplet.{name}", lambda x, o=options: batch_hard_triplet(x, labels, **o), features, grad=0)
        pairs = hardest_pairs(batch_distances(features, options.get("normalise", False)), labels)
        factor = options.get("hard_factor", 0.0)
        checker.same(f"triplet.{name}.dist_ap", pairs.positive * (1 + factor))
        checker.same(f"triplet.{name}.dist_an", pairs.negative * (1 - factor))
    distances, same = np.asarray(batch_distances(features)), np.asarray(labels[:, None] == labels[None])
    checker.same("triplet.p_inds", np.where(same, distances, -np.inf).argmax(1))
    checker.same("triplet.n_inds", np.where(same, np.inf, distances).argmin(1))
    for name, smoothing in (("ce_smooth0.1", 0.1), ("ls_ce0.1", 0.1), ("ce", 0.0)):
        checker.loss(name, lambda x, s=smoothing: cross_entropy(x, labels, s), logits, grad_logits=0)
    heads(checker)
    checker.loss("center", lambda x, c: centre_loss(x, labels, c), features, checker.inputs["centers"], grad_x=0, grad_centers=1)
    transreid_totals(checker)
    checker.finish()


def heads(checker):
    """Logits of each head, the cross entropy of them and its gradients."""
    features, labels, weights = checker.inputs["feat"], checker.labels, checker.inputs["w"]
    cases = {
        "arcface.s30_m0.5": (arcface, dict(margin=0.5)),
        "arcface.s30_m0.3": (arcface, dict(margin=0.3)),
        "arcface.s30_m0.3_easy": (arcface, dict(margin=0.3, easy=True)),
        "arcface.s30_m0.3_ls0.1": (arcface, dict(margin=0.3, smoothing=0.1)),
        "arcface_file.s30_m0.5": (arcface, dict(margin=0.5)),
        "cosface.s30_m0.5": (cosface, dict(margin=0.5)),
        "cosface.s30_m0.3": (cosface, dict(margin=0.3)),
        "amsoftmax.s30_m0.5": (am_softmax, dict(margin=0.5)),
        "circle.s30_m0.5": (circle, dict(margin=0.5)),
        "circle.s256_m0.25": (circle, dict(scale=256.0, margin=0.25)),
    }
    for name, (head, options) in cases.items():
        transposed = name.startswith("amsoftmax")  # the official module keeps [D, C]
        options = {"scale": 30.0} | options

        def logits(x, w, head=head, options=options, transposed=transposed):
            return head(x, w.T if transposed else w, labels, **options)

        arguments = features, checker.inputs["w_am"] if transposed else weights
        checker.same(f"{name}.logits", logits(*arguments))
        value, slopes = jax.value_and_grad(lambda x, w, f=logits: cross_entropy(f(x, w), labels), (0, 1))(*arguments)
        for key, result in zip(("ce", "grad_x", "grad_w"), (value, *slopes), strict=True):
            checker.same(f"{name}.{key}", result)


def transreid_totals(checker):
    labels = checker.labels
    features, logits = branches(checker.inputs["feat"], checker.inputs["logits"], 5)
    for smoothing_name, smoothing in (("off", 0.0), ("on", 0.1)):
        for margin_name, margin in (("soft", None), ("m0.3", 0.3)):
            key = f"transreid_total.ls_{smoothing_name}_{margin_name}"

            def total(x, l, margin=margin, smoothing=smoothing):
                return transreid_total(l, x, labels, margin, smoothing)

            value, (by_x, by_l) = jax.value_and_grad(total, (0, 1))(features[:1], logits[:1])
            for name, result in (("loss", value), ("grad_x", by_x[0]), ("grad_logits", by_l[0])):
                checker.same(f"{key}.{name}", result)
            value, (by_x, by_l) = jax.value_and_grad(total, (0, 1))(features, logits)
            for name, result in (("loss", value), ("grad_x0_x1", jnp.stack(by_x[:2])), ("grad_l0_l1", jnp.stack(by_l[:2]))):
                checker.same(f"{key}.jpm5.{name}", result)


@pytest.mark.parametrize("size", SIZES)
def test_clip_reid(size):
    checker = Checker(REFERENCE / f"loss_clipreid_{size}.npz")
    labels, features = checker.labels, checker.inputs["feat"]
    a, b = features / jnp.sqrt(jnp.float32(features.shape[1])), checker.inputs["b"]
    half = len(a) // 2
    checker.loss("supcon", lambda a, b: supervised_contrastive(a, b, labels, labels), a, b, grad_a=0, grad_b=1)
    checker.loss("supcon_both", lambda a, b: image_text_contrastive(a, b, labels), a, b, grad_a=0, grad_b=1)
    rectangle = lambda a, b: supervised_contrastive(a, b, labels[:half], labels)  # noqa: E731
    checker.loss("supcon_rect", rectangle, a[:half], b, grad_a=0, grad_b=1)
    image_text = jnp.matmul(features, checker.inputs["text"].T)
    features, _ = branches(features, checker.inputs["logits"], 3)
    _, logits = branches(features[0], checker.inputs["logits"], 2)
    for network, weight in (("vit", 0.25), ("cnn", 1.0)):
        for word, smoothing in (("on", 0.1), ("off", 0.0)):

            def total(t, x, l, weight=weight, smoothing=smoothing):
                return clip_reid_total(l, x, t, labels, 0.3, smoothing, weight)

            value, (by_t, by_x, by_l) = jax.value_and_grad(total, (0, 1, 2))(image_text, features, logits)
            for name, result in (("loss", value), ("grad_i2t", by_t), ("grad_x0", by_x[0]), ("grad_l1", by_l[1])):
                checker.same(f"clipreid_total.{network}_ls_{word}.{name}", result)
    checker.finish()


@pytest.mark.parametrize("size", SIZES)
def test_torchreid_and_fastreid(size):
    checker = Checker(REFERENCE / f"loss_other_{size}.npz")
    features, logits, labels, weights = (checker.inputs[name] for name in ("feat", "logits", "label", "w"))
    labels = labels.astype(jnp.int32)
    triplets = {
        "torchreid_triplet": lambda x: batch_hard_triplet(x, labels, 0.3),
        "fastreid_triplet.hard_m0.3": lambda x: batch_hard_triplet(x, labels, 0.3),
        "fastreid_triplet.hard_soft": lambda x: batch_hard_triplet(x, labels, None),
        "fastreid_triplet.hard_cos": lambda x: batch_hard_triplet(x, labels, 0.3, distance="cosine"),
        "fastreid_triplet.weighted": lambda x: weighted_triplet(x, labels, 0.3),
    }
    for key, function in triplets.items():
        checker.loss(key, function, features, grad=0)
    entropies = {
        "torchreid_ce_smooth": lambda x: cross_entropy(x, labels, 0.1),
        "fastreid_ce.eps0.1": lambda x: cross_entropy(x, labels, 0.1, "rest"),
        "fastreid_ce.eps0.0": lambda x: cross_entropy(x, labels, 0.0, "rest"),
        "fastreid_ce.eps-1": lambda x: cross_entropy(x, labels, adaptive_smoothing(x, labels), "rest"),
    }
    for key, function in entropies.items():
        checker.loss(key, function, logits, grad=0)
    for name, head, options in (("arc", arcface, {"beyond": "wrap"}), ("cos", cosface, {}), ("circle", circle, {})):

        def official(x, head=head, options=options):
            return head(x, weights, labels, 30.0, 0.35, **options)

        checker.same(f"fastreid_{name}.logits", official(features))
        value, slope = jax.value_and_grad(lambda x, f=official: cross_entropy(f(x), labels))(features)
        checker.same(f"fastreid_{name}.ce", value)
        if f"fastreid_{name}.grad_x" in checker.file.outputs:  # the official in-place code cannot always be differentiated
            checker.same(f"fastreid_{name}.grad_x", slope)
    checker.finish()


@pytest.mark.parametrize(
    ("name", "shape", "start"),
    [
        ("base.blocks.0.attn.qkv.weight", (2304, 768), [-0.04865763, -0.00110897, 0.01651892]),
        ("base.blocks.0.norm1.weight", (768,), [1.1021762]),
        ("base.pos_embed", (1, 129, 768), [0.00613867]),
        ("bottleneck.running_var", (768,), [1.0129999]),
    ],
)
def test_recipe_gives_the_published_values(name, shape, start):
    array = recipe_tensor(name, shape, 1)
    assert array.shape == shape and array.dtype == np.float32
    np.testing.assert_allclose(array.ravel()[: len(start)], start, rtol=1e-6, atol=1e-8)
    if name.endswith("qkv.weight"):
        assert np.abs(array).sum(dtype=np.float64) == pytest.approx(50939.7412, abs=1e-4)
    np.testing.assert_allclose(normal(101, (4, 3, 256, 128)).ravel()[:3], [-0.4471553, 1.7049392, -1.6190721], rtol=1e-6)


def test_recipe_by_kind():
    assert recipe_tensor("bn.num_batches_tracked", (), 1, integer=True) == 0
    assert recipe_tensor("attention_bias_idxs", (4, 4), 1, integer=True) is None
    scale = recipe_tensor("logit_scale", (), 1)
    assert scale.shape == () and scale == np.float32(4.6052)
    assert abs(recipe_tensor("gate", (), 1)) < 0.2 and recipe_tensor("gate", (), 1).shape == ()
    assert np.abs(recipe_tensor("bn.running_mean", (100,), 1)).max() > np.abs(recipe_tensor("bn.bias", (100,), 1)).max()


def write(path, **changes):
    arrays = {
        "state_json": json.dumps(
            [["a.weight", [3, 2], "float32"], ["ska.weight", [4], "float32"], ["b.running_mean", [2], "float32"],
             ["b.num_batches_tracked", [], "int64"]]
        ),
        "config_json": json.dumps({"B": 2, "H": 4, "W": 2, "gains": [["^ska", 0.5]]}),
        "seeds_json": json.dumps({"SEED": 3, "INPUT_SEED": 5}),
        "noise_json": json.dumps({"x": {"max_err": 1e-3}, "order": "equal"}),
        "in.images_head": normal(5, (2, 3, 4, 2)).ravel()[:8],
        "override.b.running_mean": np.array([7.0, 8.0], np.float32),
        "out.x": np.array([1.0, np.nan, 2.0], np.float32),
        "out.order": np.array([2, 0, 1]),
    }  # fmt: skip
    np.savez(path, **(arrays | changes))
    return path


def test_reader(tmp_path):
    file = ReferenceFile(write(tmp_path / "small.npz"))
    weights = dict(file.weights())
    np.testing.assert_array_equal(weights["a.weight"], recipe_tensor("a.weight", (3, 2), 3))
    np.testing.assert_array_equal(weights["ska.weight"], recipe_tensor("ska.weight", (4,), 3) * np.float32(0.5))
    np.testing.assert_array_equal(weights["b.running_mean"], [7.0, 8.0])
    assert weights["b.num_batches_tracked"] == 0
    assert file.images().shape == (2, 3, 4, 2)
    assert file.tagged("memory", (5,)).dtype == np.float32
    assert file.compare("x", [1.02, np.nan, 2.0]).passed
    assert not file.compare("x", [1.04, np.nan, 2.0]).passed
    assert file.compare("x", [1.01, np.nan, 2.0]).noise_multiple == pytest.approx(10.0, rel=1e-5)
    assert not file.compare("x", [1.0, 0.0, 2.0]).passed
    assert not file.compare("x", [np.nan, np.nan, 2.0]).passed
    assert not file.compare("x", [1.0]).passed
    assert file.compare("order", [2, 0, 1]).passed
    assert not file.compare("order", [0, 2, 1]).passed
    sums = np.array([np.abs(array).sum(dtype=np.float64) for array in weights.values()])
    ReferenceFile(write(tmp_path / "good.npz", weights_l1_f64=sums)).check_weights()
    with pytest.raises(UserError, match="a.weight"):
        ReferenceFile(write(tmp_path / "bad.npz", weights_l1_f64=sums * 1.001)).check_weights()


def test_comparison_without_noise_allows_the_floor_only():
    reference = np.array([100.0, -50.0], np.float32)
    assert compare("y", reference + np.float32(1.5e-4), reference).passed
    assert not compare("y", reference + np.float32(3e-4), reference).passed
    assert np.isnan(compare("y", reference, reference).noise_multiple)
    assert compare("y", reference + np.float32(1e-4), reference).used == pytest.approx(0.5, abs=0.02)
    assert "TOO LARGE" in str(compare("y", reference + 1, reference))


def test_reader_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no such"):
        ReferenceFile(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("not a file of arrays")
    with pytest.raises(UserError, match="not a readable"):
        ReferenceFile(tmp_path / "text.npz")
    np.savez(tmp_path / "plain.npz", x=np.zeros(3))
    with pytest.raises(UserError, match="no outputs"):
        ReferenceFile(tmp_path / "plain.npz")
    file = ReferenceFile(write(tmp_path / "other.npz", **{"in.images_head": np.zeros(8, np.float32)}))
    with pytest.raises(UserError, match="other images"):
        file.images()
    with pytest.raises(UserError, match="no output"):
        file.compare("z", 0.0)
    with pytest.raises(UserError, match="no SEED"):
        dict(ReferenceFile(write(tmp_path / "seedless.npz", seeds_json="{}")).weights())
