"""SPT: its losses alone, how it chooses partners, its selection network and its re-identification network.

Both networks are those of `DPMPP`, and their weights take the same way as a user's checkpoint, through
`occreid_jax.weights.families`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.augment.patch_transfer import Transfer, choose_partners, recombine, rolled_overlaps
from occreid_jax.losses.regularisers import budget, overlap
from occreid_jax.methods.dpm_pp import DPMPP
from occreid_jax.methods.salient_selection import THRESHOLD, SalientSelection
from occreid_jax.numerics.dpm import STAGE, embedded, official_batch, official_method, official_names, official_weights
from occreid_jax.numerics.encoders import norms
from occreid_jax.numerics.kind import Kind
from occreid_jax.weights import reference
from occreid_jax.weights.families import dpm, spt, transreid
from occreid_jax.weights.reference import Comparison, ReferenceFile

BUDGET_WEIGHT, BUDGET_SHARE, OVERLAP_WEIGHT = 50.0, 0.3, 0.1  # fixed in SPT's ``make_loss_pt``
TRIALS = 64  # draws of partners for every image of a stored batch


# Losses -----------------------------------------------------------------------------------------------------------------------


def compare_losses(file: ReferenceFile) -> Iterator[Comparison]:
    """The budget with its gradient by the saliency, and the weighted overlap of two predictions with its gradients."""
    saliency = jax.nn.sigmoid(jnp.asarray(file.input("mask_logit")))
    value, slope = jax.value_and_grad(budget)(saliency, float(file.config["alpha"]))
    pair = jnp.asarray(file.input("s1")), jnp.asarray(file.input("s2"))
    shared, slopes = jax.value_and_grad(lambda a, b: OVERLAP_WEIGHT * overlap(a, b), (0, 1))(*pair)
    computed = {"budget": value, "budget_grad": slope, "orth": shared, "orth_grad1": slopes[0], "orth_grad2": slopes[1]}
    for key, array in computed.items():
        if key in file.outputs:
            yield file.compare(key, array)


# Partners ---------------------------------------------------------------------------------------------------------------------


def compare_selection(file: ReferenceFile) -> Iterator[Comparison]:
    """All overlaps, the best of them, and SPT's choice of partners replayed with the random numbers that it draws; then, by the
    same rule, `choose_partners`, whose random numbers are others: it may only choose what SPT's rule accepts."""
    masks = file.input("mask").astype(np.float32)
    grid, labels = masks.shape[1:], file.input("label")
    masks = jnp.asarray(masks.reshape(len(masks), -1))
    table = np.asarray(rolled_overlaps(masks, grid)).reshape(len(masks), -1)
    count = file.outputs["top_index"].shape[1]
    ranked, values = best(table, count, file.outputs["top_index"])
    computed = {"oiou": table, "top_values": values, "top_index": ranked}
    seed = int(file.config.get("python_random_seed", file.seeds.get("INPUT_SEED", 0)))
    for start, mixed in (("", False), ("selectmix_", True)):
        partner, drawn = replay(ranked, table, file.config, seed, mixed)
        computed |= {
            f"{start}selected": partner % len(table),
            f"{start}shift": partner // len(table),
            f"{start}n_draws": np.array([len(each) for each in drawn]),
            f"{start}draws_flat": np.concatenate(drawn),
        }
    computed["selectmix_slabel"] = computed["selectmix_selected"].astype(np.float32)
    computed["selectmix_label"] = labels[computed["selectmix_selected"]]
    for key, array in computed.items():
        if key in file.outputs:
            yield file.compare(key, array)
    yield from compare_choice(file, masks, grid, table)


def best(table: np.ndarray, count: int, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns int [B, count] and values of the largest entries of each row, in falling order.

    Many are equal, and the order of equal ones is free: the stored columns are returned where they are an order of them.
    """
    places = np.argsort(-table, axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(table, places, axis=1)
    if stored.shape == places.shape and ((0 <= stored) & (stored < table.shape[1])).all():
        distinct = np.array([len(set(row)) == count for row in stored.tolist()])
        equal = (np.take_along_axis(table, stored, axis=1) == values).all(axis=1)
        places = np.where((distinct & equal)[:, None], stored, places)
    return places, values


def replay(
    ranked: np.ndarray, table: np.ndarray, config: Mapping[str, Any], seed: int, mixed: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """SPT's choice: the column of the table int [B] of each image's partner, and the ranks drawn for it, one array an image.

    Ranks come from Python's generator; ``mixed``, a number is drawn for each image before, which decides whether it is mixed.
    """
    generator, count = random.Random(seed), len(table)
    chosen, drawn = [], []
    for image in range(count):
        if mixed:
            generator.uniform(0, 1)
        ranks = []
        while True:
            first = len(ranks) >= config["max_attempts"]
            ranks.append(generator.sample(range(0, 1) if first else range(1, config["range_end"]), 1)[0])
            column = int(ranked[image, ranks[-1]])
            other = column % count
            if first or (other != image and table[image, other] > config["threshold"]):
                break
        chosen.append(column)
        drawn.append(np.array(ranks))
    return np.array(chosen), drawn


def compare_choice(file: ReferenceFile, masks: jax.Array, grid: tuple[int, int], table: np.ndarray) -> Iterator[Comparison]:
    """How often `choose_partners` gives a partner that SPT's rule does not, of `TRIALS` draws; 0 is expected.

    A partner is right if it is another image, exceeds the threshold unrolled and is among the ranks that are drawn (or equal to
    the last of them); where an image has none such, if it is the best of all, or equal to it.
    """
    config, count = file.config, len(table)
    top_share = (config["range_end"] + 0.5) / count  # its product with B, rounded down, is range_end
    labels = jnp.asarray(file.input("label"), jnp.int32)

    def choose(key):
        return choose_partners(
            key, masks, grid, labels, probability=1.0, partners="official", threshold=config["threshold"], top_share=top_share,
            fallback="first",
        )  # fmt: skip

    chosen = jax.vmap(choose)(jax.random.split(jax.random.key(0), TRIALS))
    falling = -np.sort(-table, axis=1)
    rolled = table.reshape(count, -1, count).max(axis=1)
    accepted = (table[:, :count] > config["threshold"]) & (rolled >= falling[:, config["range_end"] - 1, None])
    accepted &= ~np.eye(count, dtype=bool)
    lacking = ~accepted.any(axis=1)
    accepted[lacking] = (rolled == falling[:, :1])[lacking]
    partner = np.asarray(chosen.partner)
    wrong = np.count_nonzero(~accepted[np.arange(count), partner])
    yield reference.compare("choose_partners: not accepted", wrong, np.array(0))
    others = np.asarray(chosen.used) == (partner != np.arange(count))
    yield reference.compare("choose_partners: used but unchanged", np.count_nonzero(~others), np.array(0))
    failed = file.outputs["n_draws"] > config["max_attempts"]
    tied = (rolled == falling[:, :1]).sum(axis=1) > 1
    same = (partner == file.outputs["selected"])[:, failed & lacking & ~tied]
    yield reference.compare("choose_partners: not the stored first", np.count_nonzero(~same), np.array(0))


# The selection network --------------------------------------------------------------------------------------------------------


def compare_saliency(file: ReferenceFile) -> Iterator[Comparison]:
    selection = official_method(file, "spt").selection
    params, extra = official_weights(file, spt)
    params, statistics = params["selection"], extra["batch_stats"]["selection"]
    batch = official_batch(file)
    computed = {f"eval.{key}": value for key, value in seen(selection, params, statistics, batch).items()}
    computed |= {f"train.{key}": value for key, value in learned(selection, params, statistics, batch, file).items()}
    for key, array in computed.items():
        if key in file.outputs:
            yield file.compare(key, array)


def passes(selection: SalientSelection, params: Any, images: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Saliency float32 [B, N], and the features [B, D] of the whole image, of its salient part and of the rest."""
    patches = selection.encoder.apply({"params": params["encoder"]}, images, method="embed_patches")
    whole = selection.encode(params, patches)
    saliency = selection.decide(params, whole.taps)
    parts = [selection.encode(params, patches * share[..., None]).cls for share in (saliency, 1.0 - saliency)]
    return saliency, [whole.cls, *parts]


def seen(selection: SalientSelection, params: Any, statistics: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What the network gives for pictures: saliency, features of its three passes, the first of them after the neck too."""

    @jax.jit
    def run(params, statistics, images):
        saliency, features = passes(selection, params, images)
        after, _ = selection.head.apply({"params": params["head"], "batch_stats": statistics}, features[0], False)
        out = dict(zip(("global", "global_masked", "global_inverse"), features, strict=True))
        return out | {"mask": saliency, "mask_binary": saliency >= THRESHOLD, "feat_after": after}

    return run(params, statistics, batch["image"])


def learned(
    selection: SalientSelection, params: Any, statistics: Any, batch: Mapping[str, jax.Array], file: ReferenceFile
) -> dict[str, Any]:
    """One training step: saliency, features, logits of the three passes, loss, its parts and gradients."""

    @jax.jit
    def run(params, statistics, batch):
        saliency, features = passes(selection, params, batch["image"])
        variables = {"params": params["head"], "batch_stats": statistics}
        out = {"mask": saliency, "feat": features[0]}
        for end, feature in zip(("", "1", "2"), features, strict=True):
            (_, out[f"score{end}"]), _ = selection.head.apply(variables, feature, True, mutable=["batch_stats"])

        def loss(params):
            total, _, metrics = selection.loss(params, statistics, batch, jax.random.key(0))
            return total, metrics

        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        out |= {"loss": value, "budget_loss": metrics["budget"], "orth_loss": OVERLAP_WEIGHT * metrics["overlap"]}
        return out, gradients

    out, gradients = run(params, statistics, batch)
    named = official_names({"selection": gradients}, "params", spt)
    out["grad_norms_f64"] = norms(named, file.config["grad_norm_names"])
    return out | {"grad_mixfc": gradients["decision"]["kernel"][:, 0], "grad_mixfc_bias": gradients["decision"]["bias"]}


# The re-identification network ------------------------------------------------------------------------------------------------


def given_partners(method: DPMPP, salient: jax.Array, partner: jax.Array) -> None:
    """Has ``method`` recombine with these masks bool [B, N] and partners int32 [B] instead of choosing its own, in place."""
    used = partner != jnp.arange(len(partner))
    method.transfer.salient = lambda *given: salient
    method.transfer.partners = lambda *given: Transfer(partner, used)


def compare_reidentification(file: ReferenceFile) -> Iterator[Comparison]:
    """``slabel`` float [B] names each image's partner; B stands for none."""
    method = official_method(file, "spt")
    params, extra = official_weights(file, dpm)
    batch = official_batch(file)
    named = jnp.asarray(file.input("slabel"), jnp.int32)
    partner = jnp.where(named == len(named), jnp.arange(len(named)), named)
    salient = jnp.asarray(file.input("mask_binary")).astype(bool)
    computed = jax.jit(lambda *trees: mixed(method, *trees, salient, partner))(params, extra, batch)
    given_partners(method, salient, partner)
    params = params | {"selection": {}}
    computed |= {f"train.{key}": value for key, value in mixed_step(method, params, extra, batch, file, salient, partner).items()}
    for key, array in computed.items():
        if key in file.outputs:
            yield file.compare(key, array)


def mixed(
    method: DPMPP, params: Any, extra: Any, batch: Mapping[str, jax.Array], salient: jax.Array, partner: jax.Array
) -> dict[str, jax.Array]:
    """Test features, and patch tokens [B, N, D] before and after the transfer."""
    tokens = method.visual.apply({"params": params["visual"]}, batch["image"], method="embed_patches")
    changed = recombine(tokens, salient, partner)
    out = {f"eval.{key}": value for key, value in embedded(method, params, extra, batch).items()}
    return out | {
        "tokens_img0": tokens[0],
        "mixed_tokens_img0": changed[0],
        "mixed_tokens_sum_over_dim": changed.sum(axis=-1),
    }


def mixed_step(
    method: DPMPP, params: Any, extra: Any, batch: Mapping[str, jax.Array], file: ReferenceFile, salient: jax.Array,
    partner: jax.Array,
) -> dict[str, Any]:  # fmt: skip
    """One training step on recombined tokens: features, logits, loss and gradients."""

    @jax.jit
    def run(params, extra, batch):
        feature = method.encode(params, batch, jax.random.key(0), salient, partner).feature
        after, _ = method.after_neck(params, extra, feature, True)
        (value, _), gradients = jax.value_and_grad(method.loss, has_aux=True)(
            params, extra, batch, jax.random.key(0), STAGE, 0.0
        )
        return {"feat": feature, "score": jnp.matmul(after, params["prototypes"]["weight"].T), "loss": value}, gradients

    out, gradients = run(params, extra, batch)
    named = official_names({name: tree for name, tree in gradients.items() if tree}, "params", dpm)
    return out | {"grad_norms_f64": norms(named, file.config["grad_norm_names"])}


def names(file: ReferenceFile) -> list[str]:
    return [entry.name for entry in file.state]


LOSSES = Kind(lambda file: {"mask_logit", "s1", "s2"} <= file.inputs.keys(), compare_losses)
SELECTION = Kind(lambda file: {"selected", "top_index"} <= file.outputs.keys(), compare_selection)
SALIENCY = Kind(lambda file: "eval.mask" in file.outputs and spt.fits(names(file)), compare_saliency)
REIDENTIFICATION = Kind(
    lambda file: {"slabel", "mask_binary"} <= file.inputs.keys() and transreid.fits(names(file)), compare_reidentification
)
