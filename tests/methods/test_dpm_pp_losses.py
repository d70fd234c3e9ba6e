"""DPM++: every term of the second and third stage's losses written out in numpy, under each setting that changes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.methods.dpm_pp import METRIC, SELECTION
from tests.methods.test_dpm_pp import FIXED, batch, create, stage_of, started

LABELS = np.asarray(batch()["label"])
KEY = jax.random.key(3)


def f64(x) -> np.ndarray:
    return np.asarray(x, np.float64)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def normalised(x: np.ndarray) -> np.ndarray:
    """A neck with initial scale and shift."""
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def cross_entropy(logits: np.ndarray, smoothing: float, left_out=None) -> float:
    """Row by row, over the classes that exist for it."""
    losses = []
    for row, (values, label) in enumerate(zip(logits, LABELS, strict=True)):
        there = [c for c in range(len(values)) if left_out is None or c != left_out[row]]
        log_probabilities = {c: values[c] - np.log(np.exp(values[there]).sum()) for c in there}
        spread = sum(log_probabilities.values()) / len(there)
        losses.append(-(1 - smoothing) * log_probabilities[label] - smoothing * spread)
    return float(np.mean(losses))


def triplet(features: np.ndarray, margin: float | None, ignored: np.ndarray) -> float:
    """With a hinge, or without a margin the soft one, log(1 + exp)."""
    losses = []
    for anchor in range(len(features)):
        distances = np.linalg.norm(features - features[anchor], axis=1)
        own = LABELS == LABELS[anchor]
        negatives = ~own & ~ignored[anchor]
        gap = distances[own].max() - distances[negatives].min() if negatives.any() else -np.inf
        losses.append(max(gap + margin, 0.0) if margin is not None else np.log1p(np.exp(gap)))
    return float(np.mean(losses))


def masked_cosines(features, centres, masks, side: str, order: str) -> np.ndarray:
    """One pair after the other (DPM++ Eq. 8 to 10)."""
    found = np.zeros((len(features), len(centres)))
    for row, (x, mask) in enumerate(zip(unit(features), masks, strict=True)):
        for column, centre in enumerate(unit(centres)):
            one, other = (mask * x if side != "prototype" else x), (mask * centre if side != "feature" else centre)
            if order == "before":
                one, other = unit(one), unit(other)
            found[row, column] = one @ other
    return found


def arcface(cosines: np.ndarray, scale: float, margin: float, beyond: str) -> np.ndarray:
    """The margin is added to the label's angle; "linear" beyond pi - margin."""
    logits = cosines.copy()
    for row, label in enumerate(LABELS):
        angle = np.arccos(cosines[row, label])
        logits[row, label] = np.cos(angle + margin)
        if beyond == "linear" and angle > np.pi - margin:
            logits[row, label] = cosines[row, label] - margin * np.sin(margin)
    return scale * logits


def mixed(method, params) -> tuple[dict, np.ndarray, np.ndarray]:
    """(what the encoder gives for the recombined batch, partner, whether used): patches are mixed here, token by token."""
    own, settings = batch(), method.settings.transfer
    key_transfer, _ = jax.random.split(KEY)
    salient = method.selection.mask(method.selection.saliency(params["selection"], own["image"]), method.visual.grid)
    transfer = method.transfer.partners(key_transfer, salient, own["label"])
    partner, used, salient = np.asarray(transfer.partner), np.asarray(transfer.used), np.asarray(salient)
    variables = {"params": params["visual"]}
    patches = np.asarray(method.visual.apply(variables, own["image"], method="embed_patches"))
    new = patches.copy()
    for image in np.flatnonzero(used):
        hole = salient[partner[image] if settings.hole_of == "partner" else image]
        new[image, ~hole] = patches[partner[image], ~hole]
    out = method.visual.apply(variables, jnp.asarray(new), own["camid"], False, True, method="from_patches")
    return out, partner, used


def expected_terms(method, params, extra) -> dict[str, float]:
    settings = method.settings
    out, partner, used = mixed(method, params)
    assert used.sum() > 6
    donors = np.where(used & (LABELS[partner] != LABELS), LABELS[partner], -1)
    left_out = donors if settings.transfer.ignore_identity else None
    rows = donors[:, None] == LABELS[None, :]
    ignored = {"none": np.zeros_like(rows), "anchor": rows, "symmetric": rows | rows.T}[settings.transfer.ignore_negatives]
    cls, projected = f64(out.cls), f64(out.projected[:, 0])
    feature, centres, texts = normalised(cls), f64(params["prototypes"]["weight"]), f64(extra["texts"])
    terms = {"identity": cross_entropy(feature @ centres.T, settings.label_smoothing, left_out)}
    terms["triplet"] = triplet(cls, settings.margin, ignored)
    if settings.clip_reid_heads:
        more = normalised(projected) @ f64(params["projected_head"]["classifier"]["kernel"])
        terms["identity"] += cross_entropy(more, settings.label_smoothing, left_out)
        terms["triplet"] += triplet(f64(out.taps[-2][:, 0]), settings.margin, ignored)
        terms["triplet"] += triplet(projected, settings.margin, ignored)
    in_text = settings.mask_space == "text"
    maps = jnp.concatenate([out.taps[level - 1][:, 1:] for level in method.levels], axis=-1)
    masks = f64(method.mask(params, extra, maps.reshape(12, *method.visual.grid, -1), True)[0])
    masks = np.ones_like(masks) if settings.unit_mask else masks
    compared = (projected, texts) if in_text else (feature if settings.masked_feature == "after" else cls, centres)
    cosines = masked_cosines(*compared, masks, settings.mask_side, settings.mask_order)
    logits = arcface(cosines, settings.cosine_scale, settings.cosine_margin, settings.beyond)
    terms["masked_identity"] = cross_entropy(logits, settings.masked_smoothing, left_out)
    anchors = projected @ texts.T if settings.anchor_logits == "product" else 100 * unit(projected) @ unit(texts).T
    terms["anchor"] = cross_entropy(anchors, settings.label_smoothing, left_out)
    return terms


SETTINGS = [
    {},
    {"transfer.ignore_identity": False},
    {"transfer.ignore_negatives": "anchor"},
    {"transfer.ignore_negatives": "none"},
    {"transfer.hole_of": "target"},
    {"label_smoothing": 0.2, "masked_smoothing": 0.1},
    {"anchor_logits": "cosine"},
    {"mask_side": "feature"},
    {"masked_feature": "before"},
    {"unit_mask": True},
    {"mask_side": "both"},
    {"mask_order": "after"},
    {"cosine_margin": 0.0, "cosine_scale": 1.0, "margin": 1.3},
    {"margin": None},
    {"beyond": "wrap", "cosine_margin": 2.5},
    {"beyond": "linear", "cosine_margin": 2.5},
    {"mask_space": "text"},
    {"clip_reid_heads": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: ", ".join(f"{k}={v}" for k, v in settings.items()) or "plain")
def test_terms_written_out(settings):
    method = create(**(FIXED | settings))
    params, extra = started(**settings)
    total, aux = method.loss(params, extra, batch(), KEY, stage_of(method, METRIC), jnp.float32(0))
    terms = expected_terms(method, params, extra)
    for name, value in terms.items():
        np.testing.assert_allclose(aux.metrics[name], value, rtol=2e-4, err_msg=name)
    np.testing.assert_allclose(total, sum(terms.values()) + 0.1 * float(aux.metrics["head_enrich"]), rtol=2e-4)


@pytest.mark.parametrize("masking, margin, smoothing, over", [("scale", 0.3, 0.1, "batch"), ("keep", None, 0.0, "image")])
def test_selection_written_out(masking, margin, smoothing, over):
    """The network on the whole picture, on what its saliency leaves, and on the rest (DPM++ Eq. 4, 22, 23)."""
    changes = {"selection.masking": masking, "selection.margin": margin, "selection.label_smoothing": smoothing}
    changes["selection.budget_over"] = over
    method = create(**FIXED | changes)
    params, extra = started()
    network, own = method.selection, params["selection"]
    _, aux = method.loss(params, extra, batch(), KEY, stage_of(method, SELECTION), jnp.float32(0))
    patches = network.encoder.apply({"params": own["encoder"]}, batch()["image"], method="embed_patches")
    whole = network.encode(own, patches)
    saliency = np.asarray(network.decide(own, whole.taps))
    share = saliency if masking == "scale" else (saliency >= 0.5).astype(np.float32)
    rest = 1 - saliency if masking == "scale" else (1 - saliency >= 0.5).astype(np.float32)
    salient, background = (network.encode(own, patches * each[..., None]).cls for each in (share, rest))
    kernel = f64(own["head"]["classifier"]["kernel"])
    logits = [normalised(f64(x)) @ kernel for x in (whole.cls, salient, background)]
    softmax = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in logits]
    expected = {
        "identity": cross_entropy(logits[0], smoothing),
        "masked_identity": cross_entropy(logits[1], smoothing),
        "triplet": triplet(f64(whole.cls), margin, np.zeros((12, 12), bool)),
        "overlap": float((softmax[0] * softmax[2]).sum()),
        "budget": float(((f64(saliency).mean(axis=None if over == "batch" else 1) - 0.3) ** 2).mean()),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(aux.metrics[name], value, rtol=2e-4, err_msg=name)
