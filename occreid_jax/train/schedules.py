"""Learning rates by epoch, as the originals set them: a table with one value per epoch, counted from 1.

Source: ``solver/cosine_lr.py`` and ``solver/lr_scheduler.py`` of the PyTorch baselines; tests hold their published values.
"""

from __future__ import annotations

import numpy as np

from occreid_jax.errors import UserError


def learning_rates(schedule, base: float, epochs: int) -> np.ndarray:
    """Learning rate of every epoch of a training of ``epochs`` epochs, float64 [epochs]; ``schedule`` as in `rates_at`."""
    return rates_at(schedule, base, epochs, np.arange(1, epochs + 1))


def rates_at(schedule, base: float, epochs: int, at: np.ndarray) -> np.ndarray:
    """Learning rates float64 [N] in the epochs ``at`` [N] of a training of ``epochs`` epochs, counted from 1.

    Epoch 0 is the rate before the first one begins, which no step uses. ``schedule.name``: ``constant``; ``cosine`` with
    ``warmup_epochs``, ``warmup_start`` and ``floor`` (absolute rates, the same for bias parameters; the cosine counts from epoch
    0 and is not shifted by the warm-up; behind the last epoch the floor stays); ``multistep`` with ``milestones``, ``gamma``,
    ``warmup_epochs`` and ``warmup_factor``, which rises to 1 or, with ``warmup_method="constant"``, stays until then.
    """
    epoch = np.asarray(at, np.float64)
    if schedule.name == "constant":
        return np.full(len(epoch), base)
    if schedule.name == "cosine":
        warm = schedule.warmup_epochs
        rising = schedule.warmup_start + epoch * (base - schedule.warmup_start) / max(warm, 1)
        falling = schedule.floor + 0.5 * (base - schedule.floor) * (1 + np.cos(np.pi * epoch / epochs))
        return np.where(epoch < warm, rising, np.where(epoch < epochs, falling, schedule.floor))
    if schedule.name == "multistep":
        method = schedule.get("warmup_method", "linear")
        if method not in ("linear", "constant"):
            raise UserError(f"optimizer.schedule.warmup_method: unknown '{method}'; known: constant, linear")
        warm = schedule.warmup_epochs
        share = epoch / max(warm, 1) if method == "linear" else np.zeros(len(epoch))
        warmup = np.where(epoch < warm, schedule.warmup_factor * (1 - share) + share, 1.0)
        passed = (epoch[:, None] >= np.asarray(schedule.milestones)[None, :]).sum(axis=1)
        return base * warmup * schedule.gamma**passed
    raise UserError(f"optimizer.schedule.name: unknown '{schedule.name}'; known: constant, cosine, multistep")
