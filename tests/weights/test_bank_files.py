"""Files of memory banks: one tensor without a name, in and out, beside a model and by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.errors import UserError
from occreid_jax.train.reopen import check_features
from occreid_jax.train.start import initial_model, load_weights
from occreid_jax.weights import families, naming, port
from occreid_jax.weights.families import banks
from occreid_jax.weights.pth import read_pth, write_pth
from occreid_jax.weights.sources import Origin, read_source
from occreid_jax.weights.trees import flatten
from tests.weights import test_dpeformer_family as dpeformer
from tests.weights import test_fed_family as fed
from tests.weights.checkpoints import Numbers, same

NOWHERE = Origin("elsewhere", ())
WIDTHS = {"fed": 4 * fed.WIDTH, "dpeformer": 4 * dpeformer.WIDTH}


def bank(method: str, identities: int = 5) -> np.ndarray:
    return Numbers(3)(identities, WIDTHS[method])


def brought(tmp_path, method: str, array: np.ndarray):
    """The folder of a ported bank, from the file that a training leaves."""
    write_pth(tmp_path / "memory_120.pth", {"any": array}, alone=True)
    arrays, origin = read_source(str(tmp_path / "memory_120.pth"), banks.name_of(method))
    return port.write_ported(tmp_path / f"{method}_bank", port.port(arrays), origin).parent


def test_one_tensor_without_a_name(tmp_path):
    array = bank("fed")
    write_pth(tmp_path / "one.pth", {"any": array}, alone=True)
    assert same(read_pth(tmp_path / "one.pth", "bank"), {"bank": array})
    with pytest.raises(UserError, match="one.pth: it holds one tensor without a name; of a memory bank say whose with --bank"):
        read_pth(tmp_path / "one.pth")
    write_pth(tmp_path / "named.pth", {"any": array})
    with pytest.raises(UserError, match="named.pth: it does not hold one tensor without a name, .* bank does; leave --bank out"):
        read_pth(tmp_path / "named.pth", "bank")


def test_the_same_file_as_torch_s(tmp_path):
    torch = pytest.importorskip("torch")
    array = bank("dpeformer")
    write_pth(tmp_path / "ours.pth", {"any": array}, alone=True)
    found = torch.load(tmp_path / "ours.pth", weights_only=True)
    np.testing.assert_array_equal(found.numpy(), array)
    for name, tensor in (("buffer", found), ("parameter", torch.nn.Parameter(found))):
        for zipped in (True, False):
            torch.save(tensor, tmp_path / f"{name}.pth", _use_new_zipfile_serialization=zipped)
            assert same(read_pth(tmp_path / f"{name}.pth", "bank"), {"bank": array})


@pytest.mark.parametrize("method", banks.PATHS)
def test_there_and_back(tmp_path, method):
    array = bank(method)
    folder = brought(tmp_path, method, array)
    weights, metadata = port.read_ported(folder)
    assert same(weights, {banks.PATHS[method]: array})
    assert metadata == {"format": "occreid_jax", "kind": "part", "family": f"{method}_bank", "width": str(WIDTHS[method] // 4),
                        "identities": "5"}  # fmt: skip
    family = families.open_family(metadata["family"])
    arrays, entries, description = family.write(weights)
    assert [entry.fate for entry in entries] == [naming.USED] and str(description) == f"width {WIDTHS[method] // 4}, 5 identities"
    safetensors, pickled = port.write_exported(tmp_path / "back", arrays, alone=True)
    assert pickled.read_bytes() == (tmp_path / "memory_120.pth").read_bytes()
    assert same(port.port(read_source(str(safetensors))[0]).weights, weights)  # there it has a name


def test_beside_a_model(tmp_path):
    """FED's diffused feature looks at the bank: with the checkpoint alone it is refused."""
    path = port.write_ported(tmp_path / "model", port.port(fed.fed()), NOWHERE).parent
    method, config = fed.method_of(test_feature="diffused")
    start = jax.jit(method.init)(jax.random.key(0))
    params, extra = load_weights(method, *start, path)
    weights = port.read_ported(path)[0]
    with pytest.raises(UserError, match="lack bank/erased"):
        check_features(method, params, extra, weights, "the weights")
    folder = brought(tmp_path, "fed", bank("fed"))
    params, extra = load_weights(method, params, extra, folder)
    check_features(method, params, extra, [*weights, *port.read_ported(folder)[0]], "the weights")
    np.testing.assert_array_equal(extra["bank"]["erased"], bank("fed"))
    config.init.weights = f"{path}, {folder}"
    together = initial_model(method, config)
    for name, value in flatten({"params": params, "extra": extra}).items():
        np.testing.assert_array_equal(flatten({"params": together[0], "extra": together[1]})[name], value)


def test_a_bank_of_dpeformer_leaves_the_rest_as_it_is(tmp_path):
    method, _ = dpeformer.method_of()
    start = jax.jit(method.init)(jax.random.key(0))
    params, extra = load_weights(method, *start, brought(tmp_path, "dpeformer", bank("dpeformer")))
    np.testing.assert_array_equal(extra["bank"], bank("dpeformer"))
    left, before = (flatten({"params": p, "extra": e | {"bank": jnp.zeros(1)}}) for p, e in ((params, extra), start))
    for name, value in before.items():
        np.testing.assert_array_equal(left[name], value)


def test_what_does_not_fit(tmp_path):
    method, _ = dpeformer.method_of()
    start = jax.jit(method.init)(jax.random.key(0))
    folder = brought(tmp_path, "dpeformer", bank("dpeformer", identities=6))
    words = r"dpeformer_bank\) do not fit this model: 1 of another shape: bank \(6, 128\) instead of \(5, 128\)"
    with pytest.raises(UserError, match=words):
        load_weights(method, *start, folder)
    for array, size in ((Numbers()(5, 66), "5x66"), (Numbers()(5), "5"), (Numbers()(0, 64), "0x64"), (Numbers()(), "one number")):
        words = f"dpeformer_bank is {size}; a bank has a row for every identity, of the features of 4 stripes side by side"
        with pytest.raises(UserError, match=words):
            port.port({"dpeformer_bank": array})
    run = {"params/a": bank("fed"), "extra/bank/erased": bank("fed"), "extra/bank/diffused": bank("fed")}
    with pytest.raises(UserError, match="bank/diffused has no names in fed.s checkpoints; .* a run with the one memory"):
        families.open_family("fed_bank").write(run)
    assert families.open_family("fed_bank").write({k: x for k, x in run.items() if "diffused" not in k})[0].keys() == {"fed_bank"}


def test_two_second_banks_are_not_overwritten_in_silence(tmp_path):
    method, _ = fed.method_of(shared_bank=False)
    start = jax.jit(method.init)(jax.random.key(0))
    with pytest.raises(UserError, match="do not fit this model: 1 missing: bank/diffused"):
        load_weights(method, *start, brought(tmp_path, "fed", bank("fed")))
