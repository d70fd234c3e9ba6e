"""The jitted step: what moves and what does not, one device against eight, chunks, streams, no recompilation, no syncs."""

import dataclasses
import functools
import re
import types

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import common, dpeformer
from occreid_jax import distributed
from occreid_jax.augment import roa
from occreid_jax.data import occluders, resident, stream
from occreid_jax.errors import UserError
from occreid_jax.report import samples
from occreid_jax.train import rendered, state
from occreid_jax.train.log import Reporter
from occreid_jax.train.loop import Trainer
from occreid_jax.train.plan import make_plan
from occreid_jax.train.setup import open_setup
from occreid_jax.train.step import StageStep


@pytest.fixture(scope="module")
def opened(tiny_config, tmp_path_factory):
    """A function ``(devices, **changes)`` -> setup, plan of the first stage, step, initial state, columns.

    The state is a new one every time, since a step takes its buffers; the rest is made once for equal arguments.
    """
    tables, made = str(tmp_path_factory.mktemp("tables")), {}

    def make(devices: int = 1, **changes):
        key = devices, str(changes)
        if key not in made:
            config = tiny_config(data__cache=tables, mesh__devices=devices, **changes)
            setup = open_setup(config, Reporter(quiet=True))
            plan = make_plan(setup.method.stages(), setup.labels, 0, config.loop.accumulate, devices).stages[0]
            params, extra = jax.jit(setup.method.init)(jax.random.key(3))
            step = StageStep(setup.method, plan, params, config.loop.accumulate)
            columns = setup.columns("train", plan.stage.inputs, "bicubic") | {"label": setup.labels}
            made[key] = setup, plan, step, (params, extra, step.init(params)), columns
        setup, plan, step, initial, columns = made[key]
        params, extra, opt_state = jax.tree.map(jnp.copy, initial)
        current = state.create(params, extra, 0).replace(opt_state=opt_state)
        current = distributed.place(current, setup.devices.replicated)
        opt_state = distributed.place(current.opt_state, setup.devices.optimizer(current.opt_state))
        return setup, plan, step, current.replace(opt_state=opt_state), columns

    return make


@functools.cache
def jitted(step, devices):
    """The function of a step, which is then traced and compiled once for all tests."""
    return step.jitted(devices)


def test_which_pieces_of_an_optimiser_a_device_keeps():
    """The first axis that divides by eight; small arrays and those that do not divide stay whole."""
    shapes = {"vector": (2**14,), "second": (3, 2**12, 8), "small": (8, 2**11 - 1), "odd": (129, 1001), "count": ()}
    state_ = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    on, off = (distributed.devices(8, shard_optimizer=shard).optimizer(state_) for shard in (True, False))
    pieces = {name: sharding.shard_shape(shapes[name]) for name, sharding in on.items()}
    assert pieces == shapes | {"vector": (2**11,), "second": (3, 2**9, 8)}
    assert all(sharding.is_fully_replicated for sharding in off.values())


def test_what_the_compiler_of_tpus_is_told_no_other_is():
    cpus = distributed.devices(2, overlap=True)
    chips = dataclasses.replace(cpus, mesh=types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="tpu")] * 2)))
    assert (cpus.compiler_options, chips.compiler_options) == ({}, dict(distributed.OVERLAP))
    assert dataclasses.replace(chips, overlap=False).compiler_options == {}
    older = ml_collections.ConfigDict({"devices": 0, "overlap": True})  # a run from before the other switch
    assert distributed.switches(older) == {"shard_optimizer": False, "overlap": True}


def run(setup, plan, step, current, columns, count=3, chunk=1):
    tables = resident.device_tables(columns, setup.devices.replicated)
    function = jitted(step, setup.devices)
    rows, losses = plan.rows(0)[:count], []
    for first in range(0, count, chunk):
        current, metrics = function(current, tables, distributed.place(rows[first : first + chunk], setup.devices.steps))
        losses.extend(np.asarray(metrics["loss"]).tolist())
    return current, losses


def test_frozen_parameters_stay_and_others_move(opened):
    setup, plan, step, current, columns = opened()
    before = jax.device_get(current.params)
    after, _ = run(setup, plan, step, current, columns)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, jax.device_get(after.params))
    assert moved["heads"]["head_0"]["neck"] == {"bias": False, "scale": True}
    moved["heads"]["head_0"]["neck"]["bias"] = True
    assert all(jax.tree.leaves(moved))
    assert not np.asarray(after.params["heads"]["head_0"]["neck"]["bias"]).any()


def test_one_and_eight_devices_agree(opened):
    """Loss and gradients of a step to 1e-5: the gradients are read off plain SGD's parameters."""
    results = []
    for devices in (1, 8):
        setup, plan, step, current, columns = opened(
            devices,
            stages__main__optimizer=ml_collections.ConfigDict(
                common.sgd(momentum=0.0, weight_decay=0.0, learning_rate=1.0, schedule=dict(name="constant"))
            ),
        )
        before = jax.device_get(current.params)
        after, losses = run(setup, plan, step, current, columns, count=1)
        gradients = jax.tree.map(lambda a, b: a - b, before, jax.device_get(after.params))
        results.append((losses, gradients))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    chex.assert_trees_all_close(results[0][1], results[1][1], atol=1e-5)


@pytest.mark.slow
def test_pieces_of_the_optimiser_s_state_make_the_same_steps(opened, monkeypatch):
    """Eight devices that keep a piece each, eight that keep all and one: three steps with momentum, to 1e-5."""
    monkeypatch.setattr(distributed, "SMALL", 1)
    results = []
    for devices, changes in ((1, {}), (8, {}), (8, {"mesh__shard_optimizer": True})):
        setup, plan, step, current, columns = opened(devices, loop__log_every=7, **changes)
        after, losses = run(setup, plan, step, current, columns)
        buffers = [buffer for buffer in jax.tree.leaves(after.opt_state) if buffer.ndim]
        kept = sum(buffer.addressable_shards[0].data.size for buffer in buffers) / sum(buffer.size for buffer in buffers)
        assert kept == 1 if not changes else 1 / 8 <= kept < 1 / 7
        assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(after.params))
        results.append((losses, jax.device_get((after.params, after.opt_state))))
    for losses, arrays in results[1:]:
        np.testing.assert_allclose(losses, results[0][0], rtol=1e-5)
        chex.assert_trees_all_close(arrays, results[0][1], atol=1e-5)


def test_no_collective_carries_pixels(opened):
    """In the program for eight devices every collective is smaller than one device's share of the pictures."""
    setup, plan, step, current, columns = opened(8)
    tables = resident.device_tables(columns, setup.devices.replicated)
    rows = distributed.place(plan.rows(0)[:1], setup.devices.steps)
    text = step.jitted(setup.devices).lower(current, tables, rows).compile().as_text()
    pattern = re.compile(r"(\S+) = (.+?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
    found = [match.group(2) for match in pattern.finditer(text)]
    assert found  # gradients are summed over the devices
    assert not any("u8[" in shapes for shapes in found)
    height, width = setup.meta.image_size
    picture = re.compile(rf"\b{height},{width},3\]")
    assert not any(picture.search(shapes) for shapes in found)
    assert not any(f"[{len(setup.labels)}," in shapes for shapes in found)


def test_chunks_equal_single_steps(opened):
    single, losses = run(*opened(), count=4, chunk=1)
    double, same = run(*opened(), count=4, chunk=2)
    np.testing.assert_allclose(losses, same, rtol=1e-5)
    chex.assert_trees_all_close(single.params, double.params, atol=1e-5)


def test_streamed_batches_give_the_same_step(opened):
    setup, plan, step, current, columns = opened()
    function = step.jitted(setup.devices, streamed=True)
    for batch in stream.stream_batches(columns, plan.rows(0)[:3]):
        current, _ = function(current, {}, distributed.place(batch, setup.devices.steps))
    resident_state, _ = run(*opened())
    chex.assert_trees_all_close(current.params, resident_state.params, atol=1e-6)


def test_three_epochs_compile_once_and_never_touch_the_host(opened):
    setup, plan, step, current, columns = opened()
    tables = resident.device_tables(columns, setup.devices.replicated)
    traced = jax.jit(chex.assert_max_traces(step.from_tables, n=1), donate_argnums=0)
    for epoch in range(3):
        for row in plan.rows(epoch)[:2]:
            rows = distributed.place(row[None], setup.devices.steps)
            with jax.transfer_guard("disallow"):
                current, _ = traced(current, tables, rows)
    chex.clear_trace_counter()


def test_accumulated_batches_move_parameters_every_second_step(opened):
    setup, plan, step, current, columns = opened(loop__accumulate=2)
    before = jax.device_get(current.params)
    after, _ = run(setup, plan, step, current, columns, count=1)
    chex.assert_trees_all_equal(before, jax.device_get(after.params))
    setup, plan, step, current, columns = opened(loop__accumulate=2)
    after, _ = run(setup, plan, step, current, columns, count=2)
    classifiers = [params["heads"]["head_0"]["classifier"]["kernel"] for params in (before, after.params)]
    assert float(jnp.abs(classifiers[1] - classifiers[0]).max()) > 0


def test_nothing_matches_the_trainable_pattern(opened):
    setup, *_ = opened()
    from occreid_jax.errors import UserError
    from occreid_jax.types import Update

    with pytest.raises(UserError, match="no parameter matches trainable='nothing'"):
        state.trainable_paths(jax.eval_shape(setup.method.init, jax.random.key(0))[0], Update("nothing", None))


@pytest.fixture
def new_setup(tiny_config, tmp_path):
    """A function ``(**changes)`` -> a setup on one device that a test may change, and whose cache folder is its own."""

    def make(**changes):
        return open_setup(tiny_config(data__cache=str(tmp_path / "tables"), mesh__devices=1, **changes), Reporter(quiet=True))

    return make


@pytest.fixture
def pasting(opened, new_setup, tmp_path):
    """A function ``(resident, names)`` -> trainer, plan and step of a stage that sees pictures with pasted occluders."""

    def make(choice: str = "always", names: tuple[str, ...] = occluders.TABLES):
        rng = np.random.default_rng(0)
        if not (tmp_path / "library").exists():
            things = [rng.integers(0, 256, (30 - 9 * n, 10 + 9 * n, 4)).astype(np.uint8) for n in range(3)]
            things = [occluders.Occluder(str(number), pixels, "", "") for number, pixels in enumerate(things)]
            occluders.write_library(tmp_path / "library", things, 16)
        setup, (_, _, _, current, _) = new_setup(data__occluders=str(tmp_path / "library"), data__resident=choice), opened()
        occlusion = dpeformer.get_config().stages.main.augment.occlusion.to_dict()
        twins = roa.roa(ml_collections.ConfigDict(common.standard_augment(occlusion=occlusion)), (0.5,) * 3, (0.5,) * 3)

        def occluded(rng, batch):
            batch = twins(rng, batch)
            return batch | {"image": batch["occluded"]}

        stage = dataclasses.replace(setup.method.stages()[0], augment=occluded, shared=names)
        setup.method.stages = lambda: (stage,)
        trainer = Trainer(setup, tmp_path / "run")
        plan = trainer.plan.stages[0]
        return trainer, plan, StageStep(setup.method, plan, current.params), current

    return make


def test_shared_tables_are_the_same_resident_and_streamed(pasting, opened):
    results = []
    for choice in ("always", "never"):
        trainer, plan, step, current = pasting(choice)
        trainer.load_tables(plan)
        assert trainer.streams == (choice == "never") and ("image" in trainer.tables) == (choice == "always")
        assert trainer.tables["occluders"].shape == (3, 16, 16 * 4)
        assert trainer.tables["occluder_sides"].tolist() == [[30, 10], [21, 19], [12, 28]]
        kept = dict(trainer.tables)
        trainer.load_tables(plan)
        assert all(trainer.tables[name] is table for name, table in kept.items())  # nothing is copied twice
        _, chunk = next(trainer.chunks(plan, plan.rows(0), 0))
        after, metrics = step.jitted(trainer.devices, trainer.streams)(current, trainer.tables, chunk)
        results.append((jax.device_get(after.params), float(metrics["loss"][0])))
    chex.assert_trees_all_close(*results, atol=1e-6)
    _, losses = run(*opened(), count=1)
    assert abs(losses[0] - results[0][1]) > 1e-4  # the occluders were seen


def test_shared_tables_of_the_report_and_unknown_ones(pasting):
    trainer, *_ = pasting()
    assert trainer.setup.shared(()) == {} and list(trainer.setup.shared(("occluder_sides",))) == ["occluder_sides"]
    name, rows = samples.augmented(trainer.setup, {}, 2)
    assert name == "main" and [len(row["pictures"]) for row in rows] == [1 + 2 * 2] * 2
    trainer, plan, *_ = pasting(names=("occluders", "ghosts"))
    with pytest.raises(ValueError, match="shares the table 'ghosts'; known: occluders, occluder_sides, closed_facts"):
        trainer.load_tables(plan)
    trainer.setup.config.data.occluders = "absent"
    with pytest.raises(UserError, match="absent: no library of occluders there"):
        trainer.setup.shared(("occluders",))


def test_the_default_library_is_rendered_once(new_setup, monkeypatch):
    setup = new_setup()
    monkeypatch.setattr(rendered, "RENDERED", 9)
    made = rendered.rendered_occluders
    monkeypatch.setattr(rendered, "rendered_occluders", lambda seed, task, people: made(seed, task, 9, people))
    told = []
    monkeypatch.setattr(setup.reporter, "line", told.append)
    tables = setup.shared(occluders.TABLES)
    assert told == [f"occluders: 9 {setup.drawn}"] and "config.data.occluders names cut-outs" in told[0]  # photographs
    assert tables["occluders"].shape == (9, occluders.SIDE, occluders.SIDE * 4) and tables["occluder_sides"].dtype == np.int32
    other = new_setup()
    other.config.data.occluder_people = 2
    monkeypatch.setattr(other.reporter, "line", told.append)
    assert len(other.shared(occluders.TABLES)["occluders"]) == 11
    assert told[1].startswith("occluders: 11 rendered objects and people (2 people);")
    monkeypatch.setattr(rendered, "rendered_occluders", None)
    again = new_setup()
    np.testing.assert_array_equal(again.shared(("occluders",))["occluders"], tables["occluders"])
    folder, _ = sorted(setup.cache.glob("occluders-0-*"), key=lambda path: "people" in path.name)
    assert sorted(path.name for path in folder.iterdir()) == ["library.json", "pictures.npy"]
