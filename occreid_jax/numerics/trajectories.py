"""Whole trainings of a small TransReID: the loss of every step, and where the weights end.

Losses, optimiser and schedule all have to be right at once: an error of any of them grows from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.nn.heads import FROZEN_BIAS
from occreid_jax.numerics.encoders import known_names, norms, official_model, official_names, trained_heads
from occreid_jax.numerics.kind import Kind
from occreid_jax.numerics.optimisers import optimizer_block
from occreid_jax.train.optim import parameter_groups
from occreid_jax.train.plan import StagePlan
from occreid_jax.train.schedules import learning_rates
from occreid_jax.train.state import create
from occreid_jax.train.step import StageStep
from occreid_jax.types import Stage, Update
from occreid_jax.weights.reference import NOISE_FACTOR, RELATIVE_FLOOR, Comparison, ReferenceFile

IN_DOUBLE = "_run_in_float64_f64"  # the same outputs of a float64 run; float32 may differ as much as the official one does
PATTERN = 0.5  # share of its identity's pattern in every image


def recognises(file: ReferenceFile) -> bool:
    return {"loss_f64", "lr_f64"} <= file.outputs.keys() and known_names(file)


def batches(file: ReferenceFile) -> list[dict[str, jax.Array]]:
    """The batches that the steps go through in turn: noise plus half the identity's own pattern, as the notes tell."""
    config, labels = file.config, file.input("labels")
    size = (3, config["H"], config["W"])
    patterns = file.tagged("traj_pattern", (config["num_classes"], *size))
    found = []
    for number, own in enumerate(labels):
        images = file.tagged(f"traj_batch{number}", (len(own), *size)) + np.float32(PATTERN) * patterns[own]
        found.append(
            {
                "image": jnp.asarray(images.transpose(0, 2, 3, 1)),
                "camid": jnp.asarray(file.input("cams")[number], jnp.int32),
                "label": jnp.asarray(own, jnp.int32),
            }
        )
    return found


def compare(file: ReferenceFile) -> Iterator[Comparison]:
    for key, value in computed(file).items():
        if key in file.outputs:
            yield file.compare(key, value)
        double = key.removesuffix("_f64") + IN_DOUBLE
        if double in file.outputs:
            largest, noise = float(np.abs(file.outputs[double]).max()), file.noise.get(key, 0.0)
            allowed = max(RELATIVE_FLOOR * largest, NOISE_FACTOR * noise)
            yield file.compare(double, value, allowed, f"the noise of {key}")


def computed(file: ReferenceFile) -> dict[str, Any]:
    """Every output by its key, from ``config.steps`` steps of the training step that all methods share."""
    config = file.config
    solver, steps = config["cfg"]["SOLVER"], config["steps"]
    method, params, extra = official_model(file, f"{config['dim']}x{config['depth']}x{config['heads']}")
    block, epochs = optimizer_block(solver), int(solver["MAX_EPOCHS"])
    update = Update(trainable=".*", optimizer=block, frozen=FROZEN_BIAS)
    stage = Stage("main", epochs, None, (update,), augment=lambda rng, batch: batch)  # the images come as the network sees them
    ends = np.arange(1, epochs + 1)  # an epoch is one step here
    step = StageStep(method, StagePlan(0, stage, 0, ends, rows=lambda epoch: None), params)
    state, own = create(params, extra, seed=0), batches(file)
    state = state.replace(opt_state=step.init(params))

    features, logits = jax.jit(lambda p, e, b: trained_heads(method, p, e, b))(params, extra, own[0])
    gradients = jax.jit(jax.grad(lambda p, e, b: method.loss(p, e, b, jax.random.key(0), stage, 0.0)[0]))(params, extra, own[0])
    rate = parameter_groups(block, ["backbone/pos_embed"])["backbone/pos_embed"].learning_rate
    out = {
        "step1.score": logits[0],
        "step1.feat": features[0],
        "step1.grad_norms_f64": norms(official_names(gradients), config["grad_norm_names"]),
        "lr_f64": learning_rates(block.schedule, rate, epochs)[:steps],
    }
    one, metrics = jax.jit(step.one), []
    for number in range(steps):
        state, values = one(state, own[number % len(own)])
        metrics.append(values)
    out["loss_f64"] = np.array([values["loss"] for values in metrics], np.float64)
    out["acc"] = np.array([values["accuracy"] for values in metrics], np.float32)
    out["final.eval_feat"] = jax.jit(lambda p, e, b: method.embed(p, e, b, "query"))(state.params, state.extra, own[0])
    # The official network counts the batches that its BatchNorm has seen.
    final = official_names(state.params, state.extra) | {"bottleneck.num_batches_tracked": np.array(steps)}
    out["final_norms_f64"] = norms(final, config["final_norm_names"])
    return out | {f"final.{name}": array for name, array in final.items()}


TRAJECTORY = Kind(recognises, compare)
