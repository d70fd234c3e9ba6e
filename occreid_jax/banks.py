"""Memory banks: one feature per identity that follows training, as pure functions of arrays.

Source: "Feature Erasing and Diffusion Network for Occluded Person Re-Identification", CVPR 2022, Eq. 3 and 9, and its official
``model/hm.py``; "Dynamic Patch-aware Enrichment Transformer" (arXiv 2402.10435), Eq. 13 and 14. A bank is float32
[identities, D], row = label. It is no parameter: it lives in ``extra``, and no gradient reaches it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.vectors import unit_vectors

Array = jax.Array
RULES = ("sequential", "mean")


def identity_means(features: np.ndarray, labels: np.ndarray, identities: int) -> np.ndarray:
    """Mean feature of every identity, float32 [identities, D], from float [N, D] and int [N]. On the host, in float64.

    Raises `UserError` for an identity without a picture: its row would be nothing that a feature can be compared with.
    """
    counts = np.bincount(labels, minlength=identities)
    if len(counts) > identities or not counts.all():
        absent = np.flatnonzero(counts[:identities] == 0)[:5].tolist()
        raise UserError(f"a memory bank of {identities} identities needs pictures of each; none of labels {absent}")
    sums = np.zeros((identities, features.shape[1]))
    np.add.at(sums, labels, features.astype(np.float64))
    return (sums / counts[:, None]).astype(np.float32)


def update_bank(bank: Array, features: Array, labels: Array, keep: float, rule: str = "sequential", valid: Array | None = None):
    """The bank after one batch: features float [B, D], labels int32 [B] -> float32 [identities, D]. No gradient flows through.

    "sequential" is what the official code does sample by sample, c <- keep c + (1 - keep) x, here in closed form: with four
    pictures of an identity and keep 0.2 the last one weighs 0.8 and the old row 0.0016. "mean" moves a row once, by the mean of
    its pictures (FED Eq. 3). Rows of identities that are not in the batch stay as they are; ``valid`` bool [B] leaves out rows
    of the batch that only pad it. The result does not depend on the number of devices, since it is one of the global batch.
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule '{rule}' of a memory bank; it must be one of {', '.join(RULES)}")
    bank, features = jax.lax.stop_gradient((bank, features.astype(jnp.float32)))
    counted = jnp.ones(labels.shape, bool) if valid is None else valid
    features = jnp.where(counted[:, None], features, 0.0)
    same = (labels[:, None] == labels[None, :]) & counted[None, :]
    counts = jnp.zeros(len(bank)).at[labels].add(counted.astype(jnp.float32))
    if rule == "sequential":
        later = jnp.sum(jnp.triu(same, 1), axis=1)
        shares, kept = (1.0 - keep) * keep**later, keep**counts
    else:
        shares = (1.0 - keep) / jnp.maximum(jnp.sum(same, axis=1), 1)
        kept = jnp.where(counts > 0, keep, 1.0)
    shares = jnp.where(counted, shares, 0.0)
    return (bank * kept[:, None]).at[labels].add(shares[:, None] * features)


def info_nce(features: Array, bank: Array, labels: Array, temperature: float = 0.05, floor: float = 1e-6) -> Array:
    """Contrastive loss of features [B, D] against all rows of the bank, float32 [B] (FED Eq. 9): -log(p + floor), p being the
    softmax of the cosines over ``temperature`` at the label.

    ``floor`` 0 is plain cross entropy. The official 1e-6 caps the loss at 13.8 and damps the gradient of hopeless samples.
    """
    # Both sides are unit vectors here, whatever they are in the bank: plain products of long features would overflow.
    features, bank = unit_vectors(features), jax.lax.stop_gradient(unit_vectors(bank))
    logits = jnp.matmul(features, bank.T, precision=jax.lax.Precision.HIGHEST) / temperature
    log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), labels[:, None], axis=-1)[:, 0]
    return -jnp.log(jnp.exp(log_probability) + floor) if floor else -log_probability
