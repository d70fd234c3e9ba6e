"""Streaming and resident tables give the same batches."""

import ast
import inspect

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from occreid_jax.data import resident, stream, table
from occreid_jax.data.resident import device_tables, fits, gather
from occreid_jax.data.stream import stream_batches


@pytest.fixture
def tables(tmp_path):
    generator = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", generator.integers(0, 256, (40, 8, 4, 3), dtype=np.uint8))
    return {
        "image": np.load(tmp_path / "images.npy", mmap_mode="r"),
        "label": np.arange(40, dtype=np.int32) // 4,
        "camid": generator.integers(0, 6, 40).astype(np.int32),
    }


@pytest.fixture
def indices():
    indices = np.random.default_rng(1).integers(0, 40, (7, 6)).astype(np.int32)
    indices[-1, -2:] = -1
    return indices


def test_stream_equals_resident(tables, indices):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    on_device = device_tables(tables, NamedSharding(mesh, PartitionSpec()))
    assert all(on_device[name].dtype == tables[name].dtype for name in tables)
    take = jax.jit(gather)
    chunks = list(stream_batches(tables, indices, chunk=3))
    assert [len(chunk["index"]) for chunk in chunks] == [3, 3, 1]
    streamed = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    for step, row in enumerate(indices):
        batch = jax.device_get(take(on_device, row))
        assert batch.keys() == streamed.keys()
        for name, value in batch.items():
            assert value.dtype == streamed[name].dtype
            assert value.tobytes() == streamed[name][step].tobytes()
    assert streamed["valid"][-1].tolist() == [True] * 4 + [False] * 2
    assert streamed["index"][-1, -2:].tolist() == [0, 0]


@pytest.mark.parametrize("start", [0, 1, 5, 7])
def test_stream_goes_on_where_it_stopped(tables, indices, start):
    whole = np.concatenate([chunk["image"] for chunk in stream_batches(tables, indices, chunk=2)])
    tail = [chunk["image"] for chunk in stream_batches(tables, indices, start_step=start, chunk=2)]
    assert sum(map(len, tail)) == 7 - start
    if tail:
        np.testing.assert_array_equal(np.concatenate(tail), whole[start:])


def test_fits():
    class Device:
        platform = "gpu"

        def __init__(self, stats):
            self._stats = stats

        def memory_stats(self):
            return self._stats

    device = Device({"bytes_limit": 100, "bytes_in_use": 20})
    assert fits(40, device) and not fits(41, device)
    assert fits(10**15, Device(None))
    cpu = jax.devices("cpu")[0]
    assert fits(1, cpu) and not fits(10**15, cpu)
    assert resident.available_memory() > 10**6


@pytest.mark.parametrize("module", [table, stream])
def test_host_modules_do_not_load_jax(module):
    """A Grain worker process imports them, and one that starts JAX takes device memory."""
    for node in ast.parse(inspect.getsource(module)).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
        assert not any(name.split(".")[0] in ("jax", "flax") for name in names)
