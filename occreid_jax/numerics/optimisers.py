"""Optimisers as the official solvers build them: the group of every parameter, and the learning rate of every epoch.

`optimizer_block` turns an official ``SOLVER`` node into a config block of this package; its groups and schedules then come from
`occreid_jax.train`, applied to the PyTorch names with "/" for ".".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from occreid_jax.errors import UserError
from occreid_jax.numerics.kind import NUMBER, Kind
from occreid_jax.train.optim import ADAM, Group, parameter_groups
from occreid_jax.train.schedules import learning_rates, rates_at
from occreid_jax.weights.reference import Comparison, ReferenceFile

FLOOR, WARMUP_START = 0.002, 0.01  # of BASE_LR: written into the cosine scheduler of TransReID and of all that descend from it
DOUBLED = "classifier|arcface"  # parameters that LARGE_FC_LR trains at 2 * BASE_LR, biases too
FROZEN = r"^bottleneck[^/]*(/\d+)?/bias$"  # the shift of every BNNeck has no gradient
PROMPTS, TEXT = "^prompt_learner/", "^(prompt_learner|text_encoder)/"  # stage 1 of CLIP-ReID moves these alone, stage 2 all else
MASK = "(^|/)(ConvLayer|attfc)/"  # DPM's second optimiser, which has no schedule
DOUBLE_ROUNDING = 1e-12  # relative; both sides compute in float64
REASON = "both in float64"


def settings(file: ReferenceFile) -> dict:
    """The part of ``config.solver`` that the file's optimiser was built from.

    CLIP-ReID's has one node for each of its stages; stage 2 takes the prompts' gradients away before it builds its optimiser.
    """
    solver = file.config["solver"]
    if "STAGE1" not in solver:
        return solver
    return solver["STAGE1" if prompts_move(file) else "STAGE2"]


def prompts_move(file: ReferenceFile) -> bool:
    return any(moves and re.search(PROMPTS, path) for path, moves in parameters(file))


def parameters(file: ReferenceFile) -> list[tuple[str, bool]]:
    """(path, whether it asks for a gradient) of all parameters of the model, in their order."""
    return [(name.replace(".", "/"), bool(moves)) for name, _, moves in file.config["all_parameters"]]


def optimizer_block(solver: dict) -> ConfigDict:
    """The optimiser block of this package for a ``SOLVER`` node (keys in capitals) of TransReID, CLIP-ReID and descendants.

    The code decides the schedule, not the node: multi-step where the node counts warm-up in iterations and names steps (CLIP-ReID
    but for stage 1), otherwise cosine. ``LR_MIN`` and ``WARMUP_LR_INIT`` count for CLIP-ReID's cosine only.
    """
    base, bias_factor = float(solver["BASE_LR"]), float(solver.get("BIAS_LR_FACTOR", 1.0))
    groups = ()
    if solver.get("LARGE_FC_LR"):
        # It is the last rule, so a bias among them gets twice the base rate and not that of biases on top.
        groups = ((f"({DOUBLED}).*bias[^/]*$", 2.0 / bias_factor), (DOUBLED, 2.0))
    warm = int(solver.get("WARMUP_EPOCHS", 5))
    if "STEPS" in solver and "WARMUP_ITERS" in solver:
        schedule = multistep(solver["STEPS"], solver["GAMMA"], solver["WARMUP_FACTOR"], solver["WARMUP_ITERS"],
                             solver["WARMUP_METHOD"])  # fmt: skip
    elif "LR_MIN" in solver:
        schedule = cosine(warm, solver["WARMUP_LR_INIT"], solver["LR_MIN"])
    else:
        schedule = cosine(warm, WARMUP_START * base, FLOOR * base)
    return ConfigDict(
        dict(
            name=solver["OPTIMIZER_NAME"].lower(),
            learning_rate=base,
            momentum=float(solver.get("MOMENTUM", 0.9)),
            weight_decay=float(solver["WEIGHT_DECAY"]),
            bias_factor=bias_factor,
            bias_weight_decay=float(solver["WEIGHT_DECAY_BIAS"]),
            clip_norm=0.0,
            schedule=schedule,
            groups=groups,
        )
    )


def cosine(warmup_epochs: int, warmup_start: float, floor: float) -> ConfigDict:
    return ConfigDict(dict(name="cosine", warmup_epochs=int(warmup_epochs), warmup_start=float(warmup_start), floor=float(floor)))


def multistep(milestones, gamma: float, factor: float, iterations: int, method: str) -> ConfigDict:
    """CLIP-ReID steps its scheduler once an epoch, so what it calls warm-up iterations are epochs."""
    return ConfigDict(
        dict(
            name="multistep",
            milestones=tuple(milestones),
            gamma=float(gamma),
            warmup_factor=float(factor),
            warmup_epochs=int(iterations),
            warmup_method=method,
        )
    )


def optimised(file: ReferenceFile) -> list[list[str]]:
    """Paths of the parameters that each optimiser moves, in the order of the model: one list, with DPM's masks two."""
    paths = [path for path, _ in parameters(file)]
    if "STAGE1" in file.config["solver"]:
        stage1 = prompts_move(file)
        paths = [path for path in paths if bool(re.search(PROMPTS if stage1 else TEXT, path)) == stage1]
    paths = [path for path in paths if not re.search(FROZEN, path)]
    masks = [path for path in paths if re.search(MASK, path)]
    return [[path for path in paths if path not in masks], masks] if masks else [paths]


def same(key: str, own: list, stored: list) -> Comparison:
    """A comparison of two lists of names or numbers that must be equal."""
    wrong = [f"{a} instead of {b}" for a, b in zip(own, stored, strict=False) if a != b]
    if len(own) != len(stored):
        wrong.insert(0, f"{len(own)} entries instead of {len(stored)}")
    return Comparison(key, float(len(wrong)), float(len(stored)), 0.0, 0.0, f"{len(wrong)} differ: {wrong[0]}" if wrong else "")


def in_float64(key: str, own, stored) -> Comparison:
    stored = np.asarray(stored, np.float64)
    own = np.asarray(own, np.float64)
    if own.shape != stored.shape:
        return Comparison(key, np.inf, np.nan, 0.0, 0.0, f"shape {own.shape} instead of {stored.shape}")
    largest = float(np.abs(stored).max(initial=0.0))
    error = float(np.abs(own - stored).max(initial=0.0))
    return Comparison(key, error, largest, 0.0, DOUBLE_ROUNDING * largest, reason=REASON)


def compare_groups(file: ReferenceFile, groups: list[dict[str, Group]]) -> Iterator[Comparison]:
    """``config.param_groups``: name, number of the optimiser, learning rate and decay, one optimiser behind the other."""
    own = [(path, number, *group[1:]) for number, each in enumerate(groups) for path, group in each.items()]
    stored = [(name.replace(".", "/"), *rest) for name, *rest in file.config["param_groups"]]
    yield same("param_groups.names", [each[0] for each in own], [each[0] for each in stored])
    yield same("param_groups.optimiser", [each[1] for each in own], [each[1] for each in stored])
    yield in_float64("param_groups.learning_rate", [each[2] for each in own], [each[2] for each in stored])
    yield in_float64("param_groups.weight_decay", [each[3] for each in own], [each[3] for each in stored])
    left_out = {path for path, _ in parameters(file)} - {each[0] for each in stored}
    expected = {path for path, _ in parameters(file)} - {each[0] for each in own}
    yield same("param_groups.not_optimised", sorted(expected), sorted(left_out))


def compare_update_rule(file: ReferenceFile, block: ConfigDict, count: int) -> Iterator[Comparison]:
    """``config.optimizers``: the numbers of torch's update rule. What this package does not have must be switched off."""
    own = {"sgd": {"momentum": block.momentum}, "adam": {"betas": [ADAM["b1"], ADAM["b2"]], "eps": ADAM["eps"]}}
    own["adamw"] = own["adam"]
    if block.name not in own:
        raise UserError(f"{file.path}: knows no optimiser {block.name}; known: {', '.join(own)}")
    off = {"dampening": 0, "nesterov": False, "amsgrad": False, "maximize": False,
           "decoupled_weight_decay": block.name == "adamw"}  # fmt: skip
    for number, stored in enumerate(file.config["optimizers"]):
        expected = {"cls": {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}[block.name]} | own[block.name]
        expected |= {name: value for name, value in off.items() if name in stored}
        yield same(f"optimizers.{number}", list(expected.items()), [(name, stored.get(name)) for name in expected])
    yield same("optimizers", [count], [len(file.config["optimizers"])])


def compare_optimiser(file: ReferenceFile) -> Iterator[Comparison]:
    solver = settings(file)
    block, epochs = optimizer_block(solver), int(solver["MAX_EPOCHS"])
    groups = [parameter_groups(block, paths) for paths in optimised(file)]
    yield from compare_groups(file, groups)
    if "optimizers" in file.config:
        yield from compare_update_rule(file, block, len(groups))
    schedules = [block.schedule, ConfigDict(dict(name="constant"))]
    for key, stored in file.outputs.items():
        found = re.fullmatch(rf"lr\.(mask_optimizer_)?base({NUMBER})_f64", key)
        number = 1 if found and found[1] else 0
        if not found or number >= len(groups):
            continue
        base = nearest_rate(groups[number], float(found[2]))
        if base is None:
            yield Comparison(key, np.inf, np.nan, 0.0, 0.0, f"no parameter of optimiser {number} has this base rate")
            continue
        yield in_float64(key, learning_rates(schedules[number], base, epochs), stored)
    for text, stored in file.config.get("lr_before_first_step", {}).items():
        base = nearest_rate(groups[0], float(text))
        own = np.nan if base is None else rates_at(block.schedule, base, epochs, np.zeros(1))[0]
        yield in_float64(f"lr_before_first_step.base{text}", own, stored)


def nearest_rate(groups: dict[str, Group], text_rate: float) -> float | None:
    """The base rate among ``groups`` that a key prints in few digits."""
    rates = [group.learning_rate for group in groups.values()]
    return next((rate for rate in rates if np.isclose(rate, text_rate, rtol=1e-6, atol=0.0)), None)


def compare_schedules(file: ReferenceFile) -> Iterator[Comparison]:
    """``cosine0_f64`` and ``multistep0_f64``: the settings with that number in the config; they may run past the last epoch."""
    for key, stored in file.outputs.items():
        found = re.fullmatch(r"(cosine|multistep)(\d+)_f64", key)
        if not found or int(found[2]) >= len(file.config[found[1]]):
            continue
        values = file.config[found[1]][int(found[2])]
        if found[1] == "cosine":
            schedule = cosine(values["warmup_t"], values["warmup_lr_init"], values["lr_min"])
        else:
            schedule = multistep(values["steps"], values["gamma"], values["factor"], values["iters"], values["method"])
        epochs = np.arange(1, len(stored) + 1)
        yield in_float64(key, rates_at(schedule, float(values["lr"]), int(values["E"]), epochs), stored)


OPTIMISER = Kind(lambda file: {"solver", "param_groups", "all_parameters"} <= file.config.keys(), compare_optimiser)
SCHEDULES = Kind(
    lambda file: (
        bool({"cosine", "multistep"} & file.config.keys())
        and any(re.fullmatch(r"(cosine|multistep)\d+_f64", key) for key in file.outputs)
    ),
    compare_schedules,
)
