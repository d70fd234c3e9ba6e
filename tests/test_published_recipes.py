"""The published hyper-parameters of every full-size preset, as literals from the papers and the official code.

Sources: TransReID (ICCV 2021) and its code's configs and solver; CLIP-ReID (AAAI 2023), ``configs/person/*.yml``; FED (CVPR 2022)
and its code; DPEFormer (arXiv 2402.10435), section IV-A, and its code; DPM++ (arXiv 2605.06637), section 4.1; DPL-ReID (arXiv
2605.19527), section 4.2; DPM (ACM MM 2022), ``configs/*/dpm.yml``; SPT (AAAI 2024), ``configs/OCC_Duke/vit_base.yml``. Where a
paper is silent the value is that of the code that it builds on; docs/methods says which.
"""

import importlib

import pytest

from occreid_jax import config as configuration

COMMON = {  # of every training: TransReID's code, which all others begin with
    "data.image_size": [256, 128],
    "data.train_filter": "bicubic",
    "data.test_filter": "bilinear",
    "data.protocol": "",  # a dataset's first
    "data.trial": 0,
    "data.parsing": "",
    "data.parsing_format": "auto",
    "evaluation.flip": False,
    "evaluation.rerank": "",
    "evaluation.expansion": "",
    "mesh.shard_optimizer": False,
    "mesh.overlap": False,
    "attention": "auto",
}
GROUPS_OF_4 = {"sampler.name": "identity", "sampler.batch_size": 64, "sampler.images_per_identity": 4}  # 16 x 4
PICTURES = {"augment.flip": 0.5, "augment.pad": 10, "augment.erasing": 0.5, "augment.jitter": [0.0] * 4}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SGD = {  # TransReID: 0.008, biases twice as fast, cosine by epochs from 8e-5 over 5 epochs down to 1.6e-5
    "name": "sgd", "learning_rate": 0.008, "momentum": 0.9, "weight_decay": 1e-4, "bias_factor": 2.0, "bias_weight_decay": 1e-4,
    "clip_norm": 0.0, "groups": [],
    "schedule.name": "cosine", "schedule.warmup_epochs": 5, "schedule.warmup_start": 8e-5, "schedule.floor": 1.6e-5,
}  # fmt: skip
ADAM = {"name": "adam", "weight_decay": 1e-4, "bias_weight_decay": 1e-4, "clip_norm": 0.0, "groups": []}  # coupled decay
PROMPT_RATES = ADAM | {  # CLIP-ReID, stage 1
    "learning_rate": 3.5e-4, "bias_factor": 1.0,
    "schedule.name": "cosine", "schedule.warmup_epochs": 5, "schedule.warmup_start": 1e-5, "schedule.floor": 1e-6,
}  # fmt: skip
CACHED = {"sampler.name": "uniform", "sampler.batch_size": 64, "sampler.remainder": "pad"}  # features, in any order


def steps(*milestones: int, factor: float) -> dict:
    """A tenth of the rate at each milestone, after ten epochs of warm-up."""
    return {
        "schedule.name": "multistep", "schedule.milestones": list(milestones), "schedule.gamma": 0.1,
        "schedule.warmup_epochs": 10, "schedule.warmup_factor": factor,
    }  # fmt: skip


def below(prefix: str, values: dict) -> dict:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def stage(name: str, epochs: int, *parts: dict, **optimisers: dict) -> dict:
    """Expected settings of ``stages.<name>``; each keyword is an optimiser's block."""
    values = {"epochs": epochs}
    for part in parts:
        values |= part
    for key, block in optimisers.items():
        values |= below(key, block)
    return below(f"stages.{name}", values)


# TransReID and its baseline: base ViT, drop path 0.1, soft margin, no smoothing -------------------------------------------------

ENCODER = {
    "backbone": "base", "patch": 16, "stride": 16, "camera_scale": 3.0, "drop_path": 0.1, "dropout": 0.0,
    "attention_dropout": 0.0, "positions": True, "from_scratch": False, "registers": 0,
}  # fmt: skip
BASELINE = ENCODER | HALF | {
    "camera": False, "label_smoothing": 0.0, "identity_loss": "softmax", "margin": None, "triplet_feature": "before",
    "test_feature": "before", "identity_weight": 1.0, "triplet_weight": 1.0, "person_mask": False,
}  # fmt: skip
TRANSREID = BASELINE | {"camera": True, "jpm": True, "parts": 4, "shift": 5, "shuffle_groups": 2, "rearrange": True}
ONE_STAGE = stage("main", 120, GROUPS_OF_4, PICTURES, optimizer=SGD)

# CLIP-ReID ----------------------------------------------------------------------------------------------------------------------

CLIP_REID = {
    "backbone": "vit_b16", "stride": 16, "camera": False, "camera_scale": 1.0, "text": True, "words": 4, "held_out": 0.0,
    "label_smoothing": 0.1, "margin": 0.3, "identity_weight": 0.25, "triplet_weight": 1.0, "image_text_weight": 1.0,
    "test_feature": "before", "registers": 0,
} | HALF  # fmt: skip
CLIP_VIT = ADAM | {"learning_rate": 5e-6, "bias_factor": 2.0} | steps(30, 50, factor=0.1)
CLIP_RN50 = ADAM | {"learning_rate": 3.5e-4, "bias_factor": 2.0, "weight_decay": 5e-4, "bias_weight_decay": 5e-4}
CLIP_RN50 |= steps(40, 70, factor=0.01)
FINETUNE_VIT = stage("finetune", 60, GROUPS_OF_4, PICTURES, optimizer=CLIP_VIT)
FINETUNE_RN50 = stage("finetune", 120, GROUPS_OF_4, PICTURES, optimizer=CLIP_RN50)

# DPL-ReID: 150 and 80 epochs (ViT), 120 and 200 (ResNet-50), half of the pictures occluded, 4 words of each kind ----------------

OCCLUSION = {
    "kind": "rwoa", "probability": 0.5, "align": True, "flip": 0.5, "erode": 1, "blur": 1.5, "cells": [8, 4], "least_kept": 0.5,
}  # fmt: skip
DPL_REID = CLIP_REID | {
    "stride": 12, "camera": True, "templates": "both", "occluded_words": 4, "occluder_words": 4, "shared_occluder_words": False,
    "variants": 8, "text_fusion": "weighted", "alpha": 0.5, "wgff.on": True, "wgff.network": "lsnet_t",
    "wgff.offsets": "subgrid", "wgff.beta": 0.9, "wgff.gate_bias": 3.0, "wgff.frozen_norms": False,
}  # fmt: skip
DPL_RN50 = DPL_REID | IMAGENET | {"backbone": "rn50", "identity_weight": 1.0, "stride": 16, "camera": False}
HOLISTIC = {"templates": "full"}  # LSNet alone, Table 4
SCALARS = {"learning_rate": 1e-3, "bias_factor": 1.0, "weight_decay": 0.0, "bias_weight_decay": 0.0}


def dpl_stages(prompts: int, finetune: int, rates: dict, branch: dict, occlusion: dict | None = None, scalars=SCALARS) -> dict:
    pasted = below("augment.occlusion", OCCLUSION | (occlusion or {}))
    return stage("prompts", prompts, CACHED, pasted, optimizer=PROMPT_RATES) | stage(
        "finetune", finetune, GROUPS_OF_4, PICTURES, pasted,
        optimizer=rates, branch_optimizer=rates | branch, scalar_optimizer=rates | scalars,
    )  # fmt: skip


# FED: temperature 0.05, memory keeps 0.2, contrastive weights 1 and 0.3, one half each for diffused features --------------------

FED = ENCODER | HALF | {
    "camera": False, "parts": 4, "local": True, "clean": True, "oem": True, "fdm": True, "global_neck": False, "necks": "shared",
    "global_token": "cls", "scramble": False, "shared_bank": False, "neighbours": 8, "attention_heads": 8,
    "attention_scale": None, "attention_width": "stripe", "ffn": "geglu", "memory_unit": True,
    "bank_rule": "sequential", "bank_keep": 0.2, "bank_unit": False,
    "bank_first": "pooled", "bank_second": "copy", "temperature": 0.05, "floor": 1e-6, "score_weights": [1.0, 1.0],
    "erased_weight": 1.0, "diffused_weight": 1.0, "global_weight": 1.0, "erased_contrast": [1.0, 0.3],
    "diffused_contrast": [0.5, 0.5], "triplet_weight": 0.0, "margin": None, "label_smoothing": 0.0, "test_feature": "erased",
    "location.train": "learned", "location.test": "learned", "least_weight": 0.0,
}  # fmt: skip
NPO = {
    "augment.flip": 0.5, "augment.pad": 10, "augment.erasing": 0.0, "augment.jitter": [0.1, 0.1, 0.1, 0.0],
    "augment.occlusion.kind": "npo", "augment.occlusion.stripe_rule": "difference", "augment.occlusion.aspect": 2.0,
    "augment.occlusion.contour": False, "augment.occlusion.parts": 4,
}  # fmt: skip
FED_STAGE = stage("main", 120, GROUPS_OF_4, NPO, optimizer=SGD)

# DPEFormer: 48 of 128 tokens, four parts, memory 0.2, twins 0.3, Adam 1e-4 with cosine; where the text is silent, its code

DPEFORMER = ENCODER | HALF | {
    "camera": False, "parts": 4, "part_branch": True, "occluded": True,
    "global_token": "cls", "global_neck": True, "necks": "separate",
    "selection.on": True, "selection.least": 48, "selection.fixed": 0, "selection.proxy": "patch", "selection.order": "spatial",
    "selection.ignore_first_gap": False, "selection.normalise": True, "selection.absolute": False,
    "selection.zero_based": False, "selection.by_batch": False, "selection.by_batch_at_test": False,
    "blending.on": True, "blending.kind": "paper", "blending.heads": 2, "blending.scramble": False, "blending.shared": False,
    "blending.detach_cls": False,
    "memory.keep": 0.2, "memory.rule": "sequential", "memory.temperature": 0.05, "memory.floor": 1e-6, "memory.weight": 1.0,
    "memory.occluded_weight": 0.3, "memory.after_neck": True, "memory.also_final": False,
    "identity_weights.memory": 1.0, "identity_weights.global": 1.0, "identity_weights.final": 1.0, "identity_weights.part": 1.0,
    "occluded_identity_weight": 1.0, "label_smoothing": 0.0, "neck_per_view": True,
    "descriptor": "final", "test_feature": "after", "location.train": "learned", "location.test": "learned",
}  # fmt: skip
ROA = {
    "augment.flip": 0.5, "augment.pad": 10, "augment.erasing": 0.0, "augment.jitter": [0.1, 0.1, 0.1, 0.0],
    "augment.occlusion.kind": "roa", "augment.occlusion.least_area": 0.5, "augment.occlusion.most_area": 0.75,
    "augment.occlusion.balanced": False, "augment.occlusion.hard": False, "augment.occlusion.flip": 0.5,
    "augment.occlusion.probability": 1.0, "augment.occlusion.erased_area": [0.02, 1 / 3], "augment.occlusion.noise": "after",
}  # fmt: skip
DPEFORMER_RATES = ADAM | {
    "learning_rate": 1e-4, "bias_factor": 1.0,
    "schedule.name": "cosine", "schedule.warmup_epochs": 5, "schedule.warmup_start": 1e-6, "schedule.floor": 2e-7,
}  # fmt: skip
DPEFORMER_STAGE = stage("main", 120, GROUPS_OF_4, ROA, optimizer=DPEFORMER_RATES)
# The code with its slips, and without them: configs/OCC_Duke/vit_base.yml, model/make_model_zx.py, processor/processor.py.
DPEFORMER_FIXED = DPEFORMER | {
    "global_neck": False, "necks": "shared",
    "selection.least": 24, "selection.absolute": True, "selection.order": "rank", "selection.normalise": False,
    "blending.kind": "sub_vector",
    "identity_weights.memory": 0.5, "identity_weights.global": 2.0, "identity_weights.final": 0.5, "identity_weights.part": 0.25,
}  # fmt: skip
DPEFORMER_OFFICIAL = DPEFORMER_FIXED | {
    "global_token": "first_patch", "selection.zero_based": True, "selection.by_batch": True, "selection.by_batch_at_test": True,
    "blending.scramble": True,
}  # fmt: skip
BALANCED = ROA | {"augment.occlusion.balanced": True, "augment.occlusion.flip": 1.0}
ERASED = BALANCED | {
    "augment.erasing": 1.0, "augment.occlusion.kind": "erasing", "augment.occlusion.erased_area": [0.05, 0.4],
    "augment.occlusion.noise": "before",
}  # fmt: skip

# DPM++: prompts 100 epochs, selection 60, metric 60 with steps at 20 and 40; lambda 1.0 and 0.1; OIoU 0.7, the best tenth -------

TRANSFER = {
    "on": True, "probability": 0.5, "partners": "best", "threshold": 0.7, "threshold_on": "unrolled", "rolling": True,
    "roll_step": 1, "rolling_threshold": 0.0, "top_share": 0.1, "among": 64, "exclude_same_identity": False,
    "least_area": 0.0, "hole_of": "partner", "fallback": "none", "ignore_identity": True, "ignore_negatives": "symmetric",
}  # fmt: skip
SELECTION = {  # SPT: budget 0.3 with weight 50, overlap 0.1; triplet and smoothing are those of the last stage (section 3.4)
    "stride": 0, "levels": [2, 4, 10, 12], "level_norm": False, "detach": True, "masking": "scale", "identity_weight": 1.0,
    "masked_weight": 1.0, "triplet_weight": 1.0, "margin": 0.3, "label_smoothing": 0.1, "budget_weight": 50.0,
    "budget_share": 0.3, "budget_over": "batch", "overlap_weight": 0.1,
}  # fmt: skip
DPM_PP = HALF | below("transfer", TRANSFER) | below("selection", SELECTION) | {
    "location.train": "learned",
    "backbone": "clip_vit_b16", "patch": 16, "stride": 12, "camera": True, "camera_scale": 1.0, "camera_tokens": "cls",
    "registers": 0, "drop_path": 0.0, "text": True, "words": 4, "held_out": 0.0, "anchor_weight": 1.0, "anchor_epochs": 0,
    "anchor_logits": "product", "prototype_start": "xavier", "identity_weight": 1.0, "label_smoothing": 0.1,
    "masked_weight": 1.0, "masked_smoothing": 0.0, "masked_feature": "after", "unit_mask": False,
    "triplet_weight": 1.0, "margin": 0.3, "clip_reid_heads": False, "mask": True, "mask_levels": [2, 4, 10, 12],
    "mask_pooling": "mean", "mask_level_norm": False, "mask_space": "visual", "mask_side": "prototype", "mask_order": "before",
    "cosine_scale": 30.0, "cosine_margin": 0.3, "beyond": "linear", "head_weight": 0.1, "head_reduction": "mean",
    "head_softmax": False, "alternating": False, "test_mask": True, "test_feature": "before", "test_projected": False,
}  # fmt: skip
SLOW = ADAM | {"learning_rate": 5e-6, "bias_factor": 2.0}
HEADS = ADAM | {"learning_rate": 3.5e-4, "bias_factor": 2.0} | steps(20, 40, factor=0.1)
COSINE = {"schedule.name": "cosine", "schedule.warmup_epochs": 5}
ENCODER_COSINE = SLOW | COSINE | {"schedule.warmup_start": 5e-8, "schedule.floor": 1e-8}  # 0.01 and 0.002 of 5e-6
DPM_PP_STAGES = (
    stage("prompts", 100, CACHED, optimizer=PROMPT_RATES)
    | stage("selection", 60, GROUPS_OF_4, PICTURES, optimizer=ENCODER_COSINE, decision_optimizer=SGD)
    | stage(
        "metric", 60, GROUPS_OF_4, PICTURES,
        optimizer=SLOW | steps(20, 40, factor=0.1), head_optimizer=HEADS, mask_optimizer=HEADS,
    )
)  # fmt: skip
VISUAL = {"backbone": "base", "text": False, "camera_scale": 3.0, "camera_tokens": "all", "drop_path": 0.1}
# DPM: ViT-B, SGD for all, soft margin, no smoothing, halves of the two identity losses, two alternating updates.
AS_CODED = {"mask_pooling": "max", "selection.margin": None, "selection.label_smoothing": 0.0}
DPM = DPM_PP | VISUAL | AS_CODED | {
    "label_smoothing": 0.0, "margin": None, "identity_weight": 0.5, "masked_weight": 0.5, "head_weight": 0.1,
    "head_reduction": "official", "alternating": True, "transfer.on": False,
}  # fmt: skip
UNSCHEDULED = {key: value for key, value in SGD.items() if not key.startswith("schedule.")} | {"schedule.name": "constant"}


def dpm_stage(epochs: int, jitter: tuple = (0.0,) * 4) -> dict:
    pictures = PICTURES | {"augment.jitter": list(jitter)}
    return stage("metric", epochs, GROUPS_OF_4, pictures, optimizer=SGD, head_optimizer=SGD, mask_optimizer=UNSCHEDULED)


# SPT: ViT-B of stride 16 without cameras, masks and texts; its partners are those of its code, always used.
SPT_TRANSFER = {
    "transfer.on": True, "transfer.partners": "official", "transfer.probability": 1.0, "transfer.fallback": "first",
    "transfer.ignore_identity": False, "transfer.ignore_negatives": "none",
}  # fmt: skip
SPT = DPM_PP | VISUAL | AS_CODED | SPT_TRANSFER | {
    "stride": 16, "camera": False, "label_smoothing": 0.0, "margin": None, "mask": False, "head_weight": 0.0,
}  # fmt: skip
SPT_SELECTION = stage("selection", 120, GROUPS_OF_4, PICTURES, optimizer=SGD, decision_optimizer=SGD)
DPM_SPT = DPM | SPT_TRANSFER | {"selection.stride": 16}  # the "Full Version" of DPM++'s Table III with an ImageNet ViT
SPT_STAGES = SPT_SELECTION | stage("metric", 120, GROUPS_OF_4, PICTURES, optimizer=SGD, head_optimizer=SGD, mask_optimizer=SGD)

# OGFR: SGD 0.008, cosine, patterns of 4 coarse parts, lambda 5, gammas 3.0, alpha 0.3, beta 0.4, mu 0.5; the rest TransReID's or
# ours, where the text is silent (docs/methods/ogfr.md) -------------------------------------------------------------------------

OGFR = ENCODER | HALF | {
    "camera": True, "stride": 12, "occlusion_aware": True, "distils": True, "erases": "teacher", "decoder": "fixed",
    "fep_residual": True, "groups": 4, "threshold": 5, "inclusive": False, "label_grid": [64, 32], "mask_loss_grid": [64, 32],
    "pattern_scale": 3.0, "pattern_dropout": 0.0, "correlation_scale": 10.0, "visibility_rule": "argmax", "visible_cells": 1,
    "test_pattern": "labels", "unparsed": "error", "policy.on": True, "policy.weight": 1.0, "policy.start": 2.197,
    "policy.reward": "dataset", "policy.refresh_every": 10, "policy.reduction": "mean", "policy.certain": 0.05,
    "policy.centre": False, "policy.random_keep": 0.9, "location.train": "learned", "location.test": "learned",
    "mse_weight": 1.0, "cosine_weight": 0.5, "student_id_weight": 0.3, "divergence_weight": 0.4, "temperature": 1.0,
    "distill_sg": True, "teacher_id_weight": 0.3, "encoder_id_weight": 1.0, "triplet_weight": 0.5, "margin": None,
    "triplet_feature": "before", "mask_weight": 1.0, "label_smoothing": 0.0, "test_feature": "before",
}  # fmt: skip
OBSTACLE = {
    "augment.flip": 0.5, "augment.pad": 10, "augment.erasing": 0.0, "augment.jitter": [0.0] * 4,
    "augment.occlusion.kind": "obstacle", "augment.occlusion.probability": 0.5, "augment.occlusion.area": [0.1, 0.5],
    "augment.occlusion.jitter": 0.5, "augment.occlusion.flip": 0.5, "augment.occlusion.rectangles": False,
}  # fmt: skip
OGFR_STAGE = stage("main", 120, GROUPS_OF_4, OBSTACLE, optimizer=SGD)

RECIPES = {}  # "config:argument" -> (settings of the method, of the stages)
for dataset in ("market1501", "dukemtmc", "occluded_duke", "occluded_reid"):
    given = f"dataset={dataset}"
    hard = {"cosine_margin": 0.5 if dataset == "occluded_duke" else 0.3}
    RECIPES |= {
        f"baseline:{given}": (BASELINE, ONE_STAGE),
        f"transreid:{given}": (TRANSREID, ONE_STAGE),
        f"transreid:{given},stride=12": (TRANSREID | {"stride": 12}, ONE_STAGE),
        f"clip_reid:{given}": (CLIP_REID, stage("prompts", 120, CACHED, optimizer=PROMPT_RATES) | FINETUNE_VIT),
        f"clip_reid:{given},text=false": (CLIP_REID | {"text": False, "identity_weight": 1.0}, FINETUNE_VIT),
        f"clip_reid:{given},camera,stride=12": (
            CLIP_REID | {"camera": True, "stride": 12}, stage("prompts", 120, CACHED, optimizer=PROMPT_RATES) | FINETUNE_VIT
        ),
        f"clip_reid:{given},backbone=rn50": (
            CLIP_REID | IMAGENET | {"backbone": "rn50", "identity_weight": 1.0},
            stage("prompts", 60, CACHED, optimizer=PROMPT_RATES) | FINETUNE_RN50,
        ),
        f"clip_reid:{given},backbone=rn50,text=false": (
            CLIP_REID | IMAGENET | {"backbone": "rn50", "identity_weight": 1.0, "text": False}, FINETUNE_RN50
        ),
        # No loss of the scores on DukeMTMC-reID.
        f"fed:{given}": (FED | ({"score_weights": [0.0, 0.0]} if dataset == "dukemtmc" else {}), FED_STAGE),
        f"dpeformer:{given}": (DPEFORMER, DPEFORMER_STAGE),
        # Stride 11 on Occluded-Duke; no cameras where the network is not tested on those that it is trained with.
        f"ogfr:{given}": (
            OGFR | {"stride": 11 if dataset == "occluded_duke" else 12, "camera": dataset != "occluded_reid"}, OGFR_STAGE
        ),
        f"dpl_reid:{given}": (
            DPL_REID | (HOLISTIC if dataset in ("market1501", "dukemtmc") else {}),
            dpl_stages(150, 80, CLIP_VIT, {"learning_rate": 5e-5}, {} if "occluded" in dataset else {"kind": "none"}),
        ),
        f"dpl_reid:{given},backbone=rn50": (
            DPL_RN50 | (HOLISTIC if dataset in ("market1501", "dukemtmc") else {}),
            dpl_stages(120, 200, CLIP_RN50, {}, {} if "occluded" in dataset else {"kind": "none"}),
        ),
        f"dpm_pp:{given}": (DPM_PP | hard, DPM_PP_STAGES),
        f"dpm_pp:{given},triplet=soft": (DPM_PP | hard | {"margin": None, "selection.margin": None}, DPM_PP_STAGES),
        f"dpm_pp:{given},recipe=spt": (SPT | hard, SPT_STAGES),
    }  # fmt: skip
RECIPES |= {
    "dpl_reid:dataset=occluded_duke,row=baseline": (
        DPL_REID | {"templates": "full", "wgff.on": False},
        dpl_stages(150, 80, CLIP_VIT, {"learning_rate": 5e-5}, {"kind": "none"}),
    ),
    "dpl_reid:dataset=occluded_duke,row=quarter": (
        DPL_REID, dpl_stages(150, 80, CLIP_VIT, {"learning_rate": 5e-5}, {"probability": 0.25})
    ),
    "dpl_reid:dataset=occluded_duke,rates=single": (
        DPL_REID, dpl_stages(150, 80, CLIP_VIT, {}, scalars={"weight_decay": 0.0, "bias_weight_decay": 0.0})
    ),
    "fed:dataset=occluded_duke,preset=official": (
        FED | {"global_token": "first_patch", "scramble": True, "shared_bank": True}, FED_STAGE
    ),
    "fed:dataset=occluded_duke,preset=paper": (
        FED | {
            "bank_first": "erased", "bank_second": "diffused", "bank_rule": "mean", "floor": 0.0, "necks": "none",
            "score_weights": [0.5, 0.5], "erased_contrast": [0.5, 0.5], "ffn": "postln_residual", "attention_width": "feature",
        },
        stage("main", 120, GROUPS_OF_4, NPO | {
            "augment.occlusion.stripe_rule": "coverage", "augment.occlusion.aspect": 3.0, "augment.jitter": [0.0, 0.0, 0.0, 0.0],
        }, optimizer=SGD),
    ),
    "fed:dataset=dukemtmc,row=all_erasing": (
        FED | {"score_weights": [0.0, 0.0]},
        stage("main", 120, GROUPS_OF_4, NPO | {"augment.occlusion.kind": "erasing", "augment.erasing": 0.5}, optimizer=SGD),
    ),
    "dpeformer:dataset=occluded_duke,preset=fixed": (
        DPEFORMER_FIXED, stage("main", 120, GROUPS_OF_4, BALANCED, optimizer=SGD)
    ),
    "dpeformer:dataset=occluded_duke,preset=official": (
        DPEFORMER_OFFICIAL, stage("main", 120, GROUPS_OF_4, ERASED, optimizer=SGD)
    ),
    "ogfr:dataset=occluded_duke,row=baseline": (
        OGFR | {
            "stride": 11, "occlusion_aware": False, "distils": False, "erases": "none", "triplet_weight": 1.0,
        }, OGFR_STAGE
    ),
    "ogfr:dataset=msmt17": (OGFR | {"stride": 12, "camera": True}, OGFR_STAGE),
    "ogfr:dataset=p_dukemtmc": (OGFR | {"stride": 12, "camera": True}, OGFR_STAGE),  # whose readers know no cameras
    "ogfr:dataset=market1501,row=threshold_0": (OGFR | {"threshold": 0, "inclusive": True}, OGFR_STAGE),
    "dpm_pp:dataset=occluded_duke,recipe=dpm": (DPM | {"cosine_margin": 0.5, "stride": 11}, dpm_stage(150)),
    "dpm_pp:dataset=occluded_duke,recipe=dpm_spt": (
        DPM_SPT | {"cosine_margin": 0.5, "stride": 11}, SPT_SELECTION | dpm_stage(150)
    ),
    "dpm_pp:dataset=dukemtmc,recipe=dpm": (DPM, dpm_stage(150)),
    "dpm_pp:dataset=market1501,recipe=dpm": (DPM, dpm_stage(50)),
    "dpm_pp:dataset=occluded_reid,recipe=dpm": (DPM | {"head_weight": 0.01}, dpm_stage(50, (0.3, 0.3, 0.2, 0.2))),
}  # fmt: skip
UNPUBLISHED = {  # settings of the method that no recipe speaks of: they change nothing where others are as they are
    "name", "remat", "cosine_scale", "cosine_margin", "global_feature", "positions", "from_scratch", "dropout",
    "attention_dropout",
}  # fmt: skip


def read(recipe: str) -> dict:
    name, _, argument = recipe.partition(":")
    return configuration.flatten(configuration.to_dict(importlib.import_module(f"configs.{name}").get_config(argument)))


def differs(settings: dict, key: str, value) -> bool:
    """Products such as 0.01 x 5e-6 are equal but for their last digit."""
    if key not in settings:
        return True
    return settings[key] != (pytest.approx(value, rel=1e-12) if type(value) is float else value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_published_values(recipe):
    settings, (method, stages) = read(recipe), RECIPES[recipe]
    expected = COMMON | below("method", method) | stages
    # DPEFormer pastes "multiple pedestrians and various objects"; nobody else pastes people.
    expected |= {"data.occluder_people": 60 if recipe.startswith("dpeformer") else 0}
    expected |= {"data.occluder_frames": recipe.startswith("dpl_reid")}
    wrong = {key: (settings.get(key, "absent"), value) for key, value in expected.items() if differs(settings, key, value)}
    assert not wrong, "; ".join(f"{key} is {found}, published {value}" for key, (found, value) in wrong.items())


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_setting_of_a_recipe_is_left_out(recipe):
    """A setting that a method or a stage gets later needs its published value here."""
    method, stages = RECIPES[recipe]
    known = below("method", method).keys() | {f"method.{key}" for key in UNPUBLISHED} | stages.keys()
    own = {key for key in read(recipe) if key.startswith(("method.", "stages."))}
    assert own <= known, sorted(own - known)
