"""The papers' tables: complete, runnable where they say so, and rows that claim to differ do."""

import functools
import importlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax import methods, published
from occreid_jax.errors import UserError
from occreid_jax.types import Meta
from tests.methods.test_contract import library
from tests.test_configs import prepared, step_by_shapes

TABLES = [table for paper in published.papers() for table in published.tables(paper).values()]
COUNTS = {  # rows that run, are published only, are lost
    "baselines": (8, 4, 0), "dpeformer": (36, 34, 0), "dpl_reid": (41, 26, 1), "dpm_pp": (46, 39, 5), "fed": (16, 19, 0),
    "ogfr": (36, 48, 1),
}  # fmt: skip
HEADLINES = {"fed": "fed", "dpeformer": "dpeformer", "ogfr": "ogfr", "dpl_reid": "dpl_reid", "dpm_pp": "dpm_pp"}


def test_all_rows_are_counted():
    kinds = ("runnable", "published", "lost")
    for paper in published.papers():
        rows = [row for table in published.tables(paper).values() for row in table.rows]
        assert tuple(sum(row.kind == kind for row in rows) for kind in kinds) == COUNTS[paper], paper


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_values_are_what_they_can_be(table):
    assert len({row.label for row in table.rows}) == len(table.rows)
    for row in table.rows:
        for column, value in zip(table.columns, row.values, strict=True):
            assert value in ("-", "lost") or type(value) in (int, float)
            if published.place(column) and type(value) is not str:
                assert 20 <= value <= 100, (row.label, column)
        for dataset in table.datasets:  # a later rank finds no less, and mAP is no more than the best rank
            ranks = [value for key, value in table.published(row, dataset).items() if key != "mAP" and value != "lost"]
            assert ranks == sorted(ranks), (row.label, dataset)


@pytest.mark.parametrize("paper", HEADLINES)
def test_a_config_tells_the_figures_of_its_table(paper):
    """The headline of a config is for people; the figure is the table's."""
    told = " ".join(importlib.import_module(f"configs.{paper}").__doc__.split())
    for name in ("1", "2"):
        for row in published.tables(paper)[name].rows if name in published.tables(paper) else ():
            for dataset in published.tables(paper)[name].datasets:
                if row.run == HEADLINES[paper] and (found := published.tables(paper)[name].published(row, dataset)):
                    assert f"{found['rank1']} / {found['mAP']}" in told, (dataset, found)


def test_every_run_resolves():
    for run, dataset in published.every_run():
        name, _, argument = run.partition(":")
        config, _, _ = prepared(name, ",".join(filter(None, (f"dataset={dataset}", argument))))
        assert config.data.name == dataset and not any(key.startswith("dataset") for key in argument.split(","))


def distinct(table, dataset: str) -> dict[str, list]:
    """Config as text -> the rows of a table that it is the config of."""
    found: dict[str, list] = {}
    for row in table.rows:
        if row.run and table.published(row, dataset):
            name, _, argument = row.run_on(dataset).partition(":")
            config = importlib.import_module(f"configs.{name}").get_config(f"dataset={dataset},{argument}".strip(","))
            found.setdefault(config.to_json_best_effort(), []).append(row)
    return found


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_rows_of_one_config_have_one_figure(table):
    for dataset in table.datasets:
        for rows in distinct(table, dataset).values():
            assert len({tuple(table.published(row, dataset).items()) for row in rows}) == 1, [row.label for row in rows]


def test_unknown_names_are_one_line():
    with pytest.raises(UserError, match="there is no paper 'fedd'; known: baselines, dpeformer"):
        published.table("fedd/1")
    with pytest.raises(UserError, match="fed has no table '9'; it has 1, 2, 3, 4"):
        published.table("fed/9")


def test_a_row_may_run_differently_on_a_dataset():
    (row,) = (row for row in published.table("baselines/transreid").rows if row.label.startswith("TransReID*"))
    assert (row.run_on("occluded_duke"), row.run_on("market1501")) == ("transreid:stride=11", "transreid:stride=12")
    assert published.table("fed/1").published(published.table("fed/1").rows[0], "occluded_duke") == {"rank1": 42.6, "mAP": 33.7}


RUNS = {run: dataset for run, dataset in reversed(published.every_run())}  # on one dataset: others have other numbers alone


@pytest.mark.slow
@pytest.mark.parametrize(("run", "dataset"), RUNS.items(), ids=RUNS)
def test_every_run_steps_by_shapes(run, dataset):
    name, _, argument = run.partition(":")
    step_by_shapes(*prepared(name, ",".join(filter(None, (f"dataset={dataset}", argument)))))


# Rows that claim to differ ------------------------------------------------------------------------------------------

META = Meta(identities=12, cameras=3, image_size=(128, 64), images=16)


def micro(run: str):
    """The method of a row on small pictures of 16x8 patches, with a micro encoder."""
    name, _, argument = run.partition(":")
    kept = [item for item in argument.split(",") if item and not item.startswith(("stride=", "backbone="))]
    resnet = ["backbone=micro_resnet"] if "backbone=rn50" in argument else []
    config = importlib.import_module(f"configs.{name}").get_config(",".join(["dataset=synthetic", *kept, *resnet]))
    if not resnet:
        config.method.backbone = "clip_micro" if config.method.backbone.startswith("clip_") else "micro"
    config.method.update({key: 8 for key in ("patch", "stride") if key in config.method})
    config.data.image_size = META.image_size
    return methods.create(config, META)


def parts() -> jax.Array:
    """Body-part labels of eight pictures: of 64x32 cells left arm and right arm have 2 and 1, torso 8, each leg 6, head 20."""
    labels = np.zeros((8, 64, 32), np.uint8)
    for row, (part, cells) in enumerate(((1, 20), (2, 2), (3, 1), (4, 8), (5, 6), (6, 6))):
        labels[:, 8 + 8 * row, :cells] = part
    return jnp.asarray(labels.repeat(2, 1).repeat(2, 2))


def moved(tree, deviation: float, least_axes: int):
    """Floating-point arrays of so many axes or more with noise on them, which depends on their path alone: what training would
    move, such as masks that begin as ones, and what a pass over a training set would fill."""

    def move(path, value):
        key = jax.random.fold_in(jax.random.key(3), zlib.crc32(jax.tree_util.keystr(path).encode()))
        moves = jnp.issubdtype(value.dtype, jnp.floating) and value.ndim >= least_axes
        return value + deviation * jax.random.normal(key, value.shape) if moves else value

    return jax.tree_util.tree_map_with_path(move, tree)


ROLLING = {"spt_oiou", "spt_oiou_rolling"}
"""Rolling changes nothing where saliency is the same everywhere, as in networks at their start; what it does where it is not is
held by tests/augment/test_patch_transfer.py."""


@functools.cache
def outcome(run: str) -> tuple[float, ...]:
    """The losses of all stages on a fixed batch, and a distance between two of its pictures, of fixed parameters.

    Operation by operation: most of them are the same in all rows of a method, a whole program would be compiled for each.
    """
    method, rng = micro(run), np.random.default_rng(0)
    raw = {
        "image": jnp.asarray(rng.integers(0, 256, (8, *META.image_size, 3), np.uint8)),
        "parts": parts(),
        "parsed": jnp.ones(8, bool),
        "camid": jnp.arange(8, dtype=jnp.int32) % 3,
        "label": jnp.asarray(np.repeat([0, 1], 4).astype(np.int32)),
        "index": jnp.arange(8, dtype=jnp.int32),
        "valid": jnp.ones(8, bool),
    }

    params, extra = method.init(jax.random.key(0))
    params, extra, found = moved(params, 0.05, 1), moved(extra, 0.5, 2), []
    for stage in method.stages():
        given = {name: library()[name] for name in stage.shared}
        given |= {name: extra["tables"][name][raw["index"]] for name in stage.inputs if name not in raw}
        batch = stage.augment(jax.random.key(1), raw | given)
        found.append(method.loss(params, extra, batch, jax.random.key(2), stage, jnp.float32(0.5))[0])
    tested = method.transform(raw)
    query, gallery = (method.embed(params, extra, tested, role) for role in ("query", "gallery"))
    return tuple(float(value) for value in (*found, method.distance(query, gallery)[0, 5]))


@pytest.mark.slow
@pytest.mark.parametrize("table", [table for table in TABLES if table.datasets], ids=lambda table: table.name)
def test_rows_that_claim_to_differ_do(table):
    """Every two rows with different configs have another loss or another distance."""
    dataset = table.datasets[0]
    runs = [rows[0].run_on(dataset) for rows in distinct(table, dataset).values()]
    if len({run.partition(":")[0] for run in runs}) < 2 and len(runs) > 1:
        found = {run: outcome(run) for run in runs}
        same = [(a, b) for a in found for b in found if a < b and found[a] == found[b]]
        same = [pair for pair in same if {run.rpartition("=")[2] for run in pair} != ROLLING]
        assert not same, f"{same}: {[found[a] for a, _ in same]}"
