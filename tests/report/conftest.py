"""A made-up run folder: a few coarse pictures, a method that answers from fixed rules, results that fit them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from occreid_jax import config as configuration
from occreid_jax import distributed
from occreid_jax.evaluation.evaluate import Evaluation, parameters_hash, summarise
from occreid_jax.evaluation.metrics import rank_metrics
from occreid_jax.files import write_json
from occreid_jax.parts import OCCLUDED
from occreid_jax.train.log import Reporter
from occreid_jax.train.records import write_evaluation
from occreid_jax.train.setup import Setup
from occreid_jax.types import Dataset, Meta, Split, Stage

HEIGHT, WIDTH = 32, 16
SIZES = {"train": 6, "query": 9, "gallery": 24}


class ExampleMethod:
    """Attention on the upper half, a mask of the left half, and a number; or nothing, and no stages.

    With ``batch_shows``, one array of each kind that `illustrate` may return.
    """

    evaluation_inputs, illustration_shared = ("image",), ()

    def __init__(self, maps: bool = True, stages: bool = True, batch_shows: bool = False):
        self.maps, self.has_stages, self.batch_shows = maps, stages, batch_shows

    def stages(self) -> tuple[Stage, ...]:
        def augment(rng, batch):
            image = batch["image"].astype(jnp.float32) / 255.0
            return batch | {"image": (image - 0.5) / 0.5, "second_view": image[:, ::-1]}

        sampler = ConfigDict({"name": "uniform", "batch_size": 4})
        return (Stage("main", 1, sampler, (), augment),) if self.has_stages else ()

    def transform(self, batch):
        return batch | {"image": (batch["image"].astype(jnp.float32) / 255.0 - 0.5) / 0.5}

    def inspect(self, params, extra, batch):
        if not self.maps:
            return {}
        count = batch["image"].shape[0]
        attention = jnp.zeros((count, 4, 2)).at[:, :2].set(0.25)
        return {
            "attention": attention,
            "selected": jnp.zeros((count, 4, 2), bool).at[:, :, 0].set(True),
            "score": jnp.full(count, 0.75) * params["scale"],
        }


    def illustrate(self, params, extra, batch, rng):
        if not self.batch_shows:
            return {}
        image, scale = batch["image"], params["scale"]
        visible = jnp.zeros_like(image) if "parts" not in batch else jnp.where(batch["parts"][..., None] > 0, image, 0.0)
        return {
            "whole, part": jnp.stack([image, visible], axis=1),
            "correlation": scale * jnp.array([[1.0, 0.5, -0.1], [0.5, 1.0, 0.0], [-0.1, 0.0, 1.0]]),
            "brightness": jnp.where(batch["index"] == batch["index"][0], jnp.nan, scale * image.mean(axis=(1, 2, 3))),
        }


def write_split(root: Path, role: str, count: int) -> Split:
    """Coarse random pictures; identities 1, 2, 3 in turn, cameras 0 and 1 in turn of three."""
    rows = np.arange(count)
    pids, camids = (1 + rows % 3).astype(np.int32), (rows // 3 % 2).astype(np.int32)
    names = tuple(f"{role}/{pid:04d}_c{camera + 1}_{row}.jpg" for row, pid, camera in zip(rows, pids, camids, strict=True))
    for row, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([row, count]).integers(0, 256, (8, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(path)
    return Split(root, names, pids, camids, "example")


def write_truth(root: Path, names: tuple[str, ...]) -> Path:
    """The person fills the upper half, its lowest eighth is covered."""
    parts = np.zeros((HEIGHT, WIDTH), np.uint8)
    parts[: HEIGHT // 2] = 4
    parts[HEIGHT * 3 // 8 : HEIGHT // 2] |= OCCLUDED
    lines = []
    for row, name in enumerate(names):
        path = (root / "truth" / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(parts).save(path)
        kind = ("none", "object", "person")[row % 3]
        folder, base = name.split("/")
        lines.append(dict(folder=folder, name=base, pid=int(base[:4]), camid=int(base[6]) - 1, occlusion=kind,
                          occluder="pole" if kind == "object" else "", covered_fraction=0.25, viewpoint="front"))  # fmt: skip
    with (root / "truth" / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    return root / "truth"


@pytest.fixture
def make_run(tmp_path):
    """make(maps, stages, truth, ...) -> (workdir, setup, params, extra) of a finished run; all runs have the same pictures."""

    def make(maps=True, stages=True, truth=True, batch_shows=False, name: str = "run", scale: float = 1.0):
        root, workdir = tmp_path / "pictures", tmp_path / name
        splits = {role: write_split(root, role, count) for role, count in SIZES.items()}
        known = splits["query"].names + splits["train"].names
        dataset = Dataset("example", "example/std@1", **splits, truth=write_truth(root, known) if truth else None)
        config = ConfigDict(
            {
                "seed": 3,
                "data": {"name": "example", "size": "", "split": "", "root": str(root), "cache": str(tmp_path / "tables"),
                         "train_filter": "bicubic", "test_filter": "bilinear"},
                "method": {"name": "example <method>", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
                "stages": {"main": {"epochs": 1}} if stages else {},
                "report": {"queries": 6, "samples": 3},
            }
        )  # fmt: skip
        params, extra = {"scale": jnp.full((), scale)}, {}
        distance = np.random.default_rng(0).random((SIZES["query"], SIZES["gallery"]))
        query, gallery = dataset.query, dataset.gallery
        metrics = rank_metrics(distance, query.pids, gallery.pids, query.camids, gallery.camids, keep_ranked=20)
        results = summarise(metrics, dataset)
        results |= {"parameters_sha256": parameters_hash(params, extra), "seconds": 0.1, "untrained_mAP": None}
        workdir.mkdir()
        write_json(workdir / "config.json", configuration.to_dict(config))
        write_evaluation(workdir, Evaluation(results, metrics), dataset)
        lines = [{"step": n, "stage": "main", "epoch": 1, "main/loss": 5 / n, "main/accuracy": n / 100} for n in (1, 2, 3)]
        lines += [{"step": step, "evaluation/mAP": 10.0 * step, "evaluation/rank1": 20.0} for step in (2, 3)]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if stages))
        meta = Meta(identities=3, cameras=2, image_size=(HEIGHT, WIDTH), images=SIZES["train"])
        method = ExampleMethod(maps, stages, batch_shows)
        setup = Setup(config, Reporter(quiet=True), distributed.devices(1), dataset, meta, method)
        return workdir, setup, jax.device_put(params), extra

    return make
