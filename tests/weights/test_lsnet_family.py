"""Checkpoints of LSNet: the official names, both directions, and what cannot be read."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.errors import UserError
from occreid_jax.nn.lsnet import SIZES, LSNet
from occreid_jax.weights import naming
from occreid_jax.weights.families import Description, lsnet, open_family, recognise
from occreid_jax.weights.trees import flatten
from tests.weights.checkpoints import same

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference"
with np.load(REFERENCE / "lsnet_t_256x128.npz", allow_pickle=False) as reference:
    STATE = json.loads(str(reference["state_json"]))  # names, shapes and types of the official model


def weights_of(name: str) -> dict[str, np.ndarray]:
    """Random arrays under this project's paths."""
    variables = jax.eval_shape(LSNet(SIZES[name]).init, jax.random.key(0), jnp.zeros((1, 64, 32, 3)))
    rng = np.random.default_rng(5)
    leaves = {f"{lsnet.PARAMS}{path}": leaf for path, leaf in flatten(variables["params"]).items()}
    leaves |= {f"{lsnet.STATISTICS}{path}": leaf for path, leaf in flatten(variables["batch_stats"]).items()}
    return {path: rng.standard_normal(leaf.shape).astype(np.float32) for path, leaf in leaves.items()}


@pytest.mark.parametrize("name", ["micro", "tiny"])
def test_there_and_back(name):
    weights = weights_of(name)
    arrays, entries, description = lsnet.write(weights)
    assert description == Description(SIZES[name].widths[-1], None, None, stages=SIZES[name].depths)
    family = recognise(arrays)
    assert family is open_family("lsnet") and family.kind == "part" and len(entries) == len(arrays)
    found, _, _ = family.read(arrays)
    same(found, weights)
    assert lsnet.size_of(found) == SIZES[name]


def test_every_official_tensor_is_used_or_explained():
    arrays = {name: np.zeros(shape, dtype) for name, shape, dtype in STATE}
    weights, entries, _ = recognise(arrays).read(arrays)
    assert len(entries) == len(STATE) == 696 and lsnet.size_of(weights) == SIZES["lsnet_t"]
    left = {entry.name.rpartition(".")[2] for entry in entries if entry.fate == naming.LEFT_OUT if "head." not in entry.name}
    assert left == {"num_batches_tracked", "attention_bias_idxs"}


def test_what_cannot_be_read():
    arrays, _, _ = lsnet.write(weights_of("micro"))
    name = "blocks3.3.mixer.lkp.cv4.bias"
    with pytest.raises(UserError, match=f"{name} is missing"):
        lsnet.read({key: array for key, array in arrays.items() if key != name})
    with pytest.raises(UserError, match="is unexplained: blocks3.3.mixer.lkp.cv5.bias"):
        lsnet.read(arrays | {"blocks3.3.mixer.lkp.cv5.bias": np.zeros(2, np.float32)})
    with pytest.raises(UserError, match=rf"{name} is \(3,\) here, where the other tensors ask for \(36,\)"):
        lsnet.read(arrays | {name: np.zeros(3, np.float32)})
