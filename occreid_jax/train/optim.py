"""Optimisers as optax chains, from config blocks: coupled weight decay, groups of learning rates, a rule for biases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from occreid_jax.errors import UserError
from occreid_jax.train.schedules import learning_rates

Array = jax.Array
ADAM = MappingProxyType({"b1": 0.9, "b2": 0.999, "eps": 1e-8})  # torch's defaults, which all originals keep


class Group(NamedTuple):
    """What the parameters of one group share."""

    name: str  # key in the state of the optimiser
    learning_rate: float  # before the schedule
    weight_decay: float


def is_bias(path: str) -> bool:
    """Whether a parameter is a bias by the originals' rule: the word occurs in its name."""
    return "bias" in path.rsplit("/", 1)[-1]


def by_epoch(table: np.ndarray, epoch_ends: np.ndarray, accumulate: int) -> Callable[[Array], Array]:
    """Turns a table of one rate per epoch into a function of the number of updates done in this stage."""
    table, ends = np.asarray(table, np.float32), np.asarray(epoch_ends, np.int32)

    def rate(count: Array) -> Array:
        epoch = jnp.sum(ends <= count * accumulate)  # a search would be a loop of its own for every group of parameters
        return jnp.asarray(table)[jnp.minimum(epoch, len(table) - 1)]

    return rate


def direction(block) -> list[optax.GradientTransformation]:
    """Gradient to update direction, before the learning rate and after the decay."""
    if block.name == "sgd":
        return [optax.trace(block.momentum)]
    if block.name in ("adam", "adamw"):
        return [optax.scale_by_adam(**ADAM)]
    raise UserError(f"optimizer.name: unknown '{block.name}'; known: sgd, adam, adamw")


def parameter_groups(block, paths: Iterable[str]) -> dict[str, Group]:
    """The group of every parameter path, in the order of ``paths``, under one optimiser block.

    The first pattern of ``block.groups`` that occurs in a path multiplies its learning rate; biases have a factor and a decay of
    their own on top.
    """
    groups = tuple((str(pattern), float(factor)) for pattern, factor in block.groups)

    def group(path: str) -> Group:
        number = next((number for number, (pattern, _) in enumerate(groups) if re.search(pattern, path)), len(groups))
        factor = groups[number][1] if number < len(groups) else 1.0
        if is_bias(path):
            return Group(f"group{number}_bias", block.learning_rate * factor * block.bias_factor, block.bias_weight_decay)
        return Group(f"group{number}", block.learning_rate * factor, block.weight_decay)

    return {path: group(path) for path in paths}


def make_optimizer(blocks, paths: tuple[str, ...], epoch_ends: np.ndarray, accumulate: int = 1) -> optax.GradientTransformation:
    """The optimiser of one `Update` over a flat dictionary with the given ``paths``.

    ``blocks`` is one config block, or a tuple of pairs (path regex, block) of which the first match counts, where parameters of
    one update move by different rules. Decay is coupled (added to the gradient, as torch's SGD and Adam do) except for
    ``adamw``. ``epoch_ends`` int [epochs] holds the number of steps of this stage after each epoch. The learning rate
    multiplies after the momentum buffer, as torch does. Raises `UserError` for a path that no pattern matches, and for blocks
    with different ``clip_norm``: the norm is one of all gradients.
    """
    pairs = blocks if isinstance(blocks, tuple) else (("", blocks),)
    chains: dict[str, optax.GradientTransformation] = {}
    labels: dict[str, str] = {}
    for number, (_, block) in enumerate(pairs):
        mine = [path for path in paths if first_match(pairs, path) == number]
        for path, group in parameter_groups(block, mine).items():
            labels[path] = group.name if len(pairs) == 1 else f"part{number}_{group.name}"
            chains.setdefault(labels[path], chain(block, group, epoch_ends, accumulate))
    optimizer = optax.partition({name: chains[name] for name in sorted(chains)}, {path: labels[path] for path in paths})
    norms = {block.clip_norm for _, block in pairs}
    if len(norms) > 1:
        raise UserError(f"optimizer.clip_norm: one update clips all its gradients together; {sorted(norms)} must be one number")
    if norm := norms.pop():
        optimizer = optax.chain(optax.clip_by_global_norm(norm), optimizer)
    return optax.MultiSteps(optimizer, accumulate) if accumulate > 1 else optimizer


def first_match(pairs: tuple, path: str) -> int:
    """The number of the first pair whose regex occurs in ``path``."""
    found = next((number for number, (pattern, _) in enumerate(pairs) if re.search(pattern, path)), None)
    if found is None:
        raise UserError(f"no optimiser of this stage is for the parameter {path}")
    return found


def chain(block, group: Group, epoch_ends: np.ndarray, accumulate: int) -> optax.GradientTransformation:
    """What one group of parameters goes through."""
    rates = learning_rates(block.schedule, group.learning_rate, len(epoch_ends))
    decay = optax.add_decayed_weights(group.weight_decay)
    steps = direction(block)
    steps = [*steps, decay] if block.name == "adamw" else [decay, *steps]
    return optax.chain(*steps, optax.scale_by_learning_rate(by_epoch(rates, epoch_ends, accumulate)))
