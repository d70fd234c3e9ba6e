"""Learning rates by epoch, as the originals set them: a table with one value per epoch, counted from 1.

Source: ``solver/cosine_lr.py`` and ``solver/lr_scheduler.py`` of the PyTorch baselines; tests hold their published values.
"""

from __future__ import annotations

import numpy as np

from occreid_jax.errors import UserError


def learning_rates(schedule, base: float, epochs: int) -> np.ndarray:
    """Learning rate of every epoch, float64 [epochs].

    ``schedule.name``: ``constant``; ``cosine`` with ``warmup_epochs``, ``warmup_start`` and ``floor`` (absolute rates, the same
    for bias parameters; the cosine counts from epoch 0 and is not shifted by the warm-up); ``multistep`` with ``milestones``,
    ``gamma``, ``warmup_epochs`` and ``warmup_factor``.
    """
    epoch = np.arange(1, epochs + 1, dtype=np.float64)
    if schedule.name == "constant":
        return np.full(epochs, base)
    if schedule.name == "cosine":
        warm = schedule.warmup_epochs
        rising = schedule.warmup_start + epoch * (base - schedule.warmup_start) / max(warm, 1)
        falling = schedule.floor + 0.5 * (base - schedule.floor) * (1 + np.cos(np.pi * epoch / epochs))
        return np.where(epoch < warm, rising, falling)
    if schedule.name == "multistep":
        warm, share = schedule.warmup_epochs, epoch / max(schedule.warmup_epochs, 1)
        warmup = np.where(epoch < warm, schedule.warmup_factor * (1 - share) + share, 1.0)
        passed = (epoch[:, None] >= np.asarray(schedule.milestones)[None, :]).sum(axis=1)
        return base * warmup * schedule.gamma**passed
    raise UserError(f"optimizer.schedule.name: unknown '{schedule.name}'; known: constant, cosine, multistep")
