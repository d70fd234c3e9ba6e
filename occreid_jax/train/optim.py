"""Optimisers as optax chains, from config blocks: coupled weight decay, groups of learning rates, a rule for biases."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from occreid_jax.errors import UserError
from occreid_jax.train.schedules import learning_rates

Array = jax.Array


def is_bias(path: str) -> bool:
    """Whether a parameter is a bias by the originals' rule: the word occurs in its name."""
    return "bias" in path.rsplit("/", 1)[-1]


def by_epoch(table: np.ndarray, epoch_ends: np.ndarray, accumulate: int) -> Callable[[Array], Array]:
    """Turns a table of one rate per epoch into a function of the number of updates done in this stage."""
    table, ends = np.asarray(table, np.float32), np.asarray(epoch_ends, np.int32)

    def rate(count: Array) -> Array:
        epoch = jnp.searchsorted(ends, count * accumulate, side="right")
        return jnp.asarray(table)[jnp.minimum(epoch, len(table) - 1)]

    return rate


def direction(block) -> list[optax.GradientTransformation]:
    """Gradient to update direction, before the learning rate and after the decay."""
    if block.name == "sgd":
        return [optax.trace(block.momentum)]
    if block.name in ("adam", "adamw"):
        return [optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)]
    raise UserError(f"optimizer.name: unknown '{block.name}'; known: sgd, adam, adamw")


def make_optimizer(block, paths: tuple[str, ...], epoch_ends: np.ndarray, accumulate: int = 1) -> optax.GradientTransformation:
    """The optimiser of one `Update` over a flat dictionary with the given ``paths``.

    Decay is coupled (added to the gradient, as torch's SGD and Adam do) except for ``adamw``. ``epoch_ends`` int [epochs] holds
    the number of steps of this stage after each epoch. The learning rate multiplies after the momentum buffer, as torch does.
    """
    epochs = len(epoch_ends)
    groups = tuple((str(pattern), float(factor)) for pattern, factor in block.groups)

    def label(path: str) -> str:
        group = next((number for number, (pattern, _) in enumerate(groups) if re.search(pattern, path)), len(groups))
        return f"group{group}{'_bias' if is_bias(path) else ''}"

    def chain(name: str) -> optax.GradientTransformation:
        bias = name.endswith("_bias")
        group = int(name.removesuffix("_bias").removeprefix("group"))
        factor = groups[group][1] if group < len(groups) else 1.0
        base = block.learning_rate * factor * (block.bias_factor if bias else 1.0)
        rate = by_epoch(learning_rates(block.schedule, base, epochs), epoch_ends, accumulate)
        decay = optax.add_decayed_weights(block.bias_weight_decay if bias else block.weight_decay)
        steps = direction(block)
        steps = [*steps, decay] if block.name == "adamw" else [decay, *steps]
        return optax.chain(*steps, optax.scale_by_learning_rate(rate))

    labels = {path: label(path) for path in paths}
    optimizer = optax.partition({name: chain(name) for name in sorted(set(labels.values()))}, labels)
    if block.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(block.clip_norm), optimizer)
    return optax.MultiSteps(optimizer, accumulate) if accumulate > 1 else optimizer
