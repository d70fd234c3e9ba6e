"""TorchScript archives are read without their program: modules become names, and anything else in them is refused."""

import numpy as np
import pytest

from occreid_jax.weights.port import port
from occreid_jax.weights.pth import read_pth
from occreid_jax.weights.sources import read_source
from tests.weights.checkpoints import same
from tests.weights.clip_checkpoints import openai_resnet, openai_vit
from tests.weights.test_pth import (
    DTYPES,
    HOSTILE,
    assert_same,
    called,
    every_dtype,
    group,
    mapping,
    plain,
    refusal,
    text,
    write_zip,
)

PROGRAM = {"constants.pkl": b"\x80\x02).", "code/__torch__.py": b"raise SystemExit", "version": b"3\n"}
VALUES = np.arange(6, dtype=np.float32)
LINEAR = b"c__torch__.torch.nn.modules.linear.___torch_mangle_7\nLinear\n"


def state(attributes: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in attributes.items()) + b"u"


def module(attributes: dict[str, bytes], kind: bytes = LINEAR) -> bytes:
    """The operations that make a module with these attributes, as torch.jit.save writes them."""
    return kind + b")\x81" + state(attributes) + b"b"


def typed(kind: str, *arguments: bytes) -> bytes:
    return called("torch.jit._pickle", kind, *arguments)


@pytest.fixture
def write(tmp_path):
    """Writes an archive by hand, from the operations of its outermost module and its storages, and gives its path."""
    path = tmp_path / "archive.pt"
    return lambda body, storages=(): write_zip(path, body, dict(storages), others=PROGRAM) or path


def test_modules_become_names(write):
    arrays = every_dtype()
    storages = {str(index): array for index, array in enumerate(arrays.values())}
    tensors = {f"p{key}": plain(key, array) for key, array in storages.items()}
    beside = {"training": b"\x89", "_is_full_backward_hook": b"N", "name": text("n"), "sizes": typed("build_intlist", b"]K\x01a")}
    beside |= {"kept": typed("build_tensorlist", b"]" + plain("0", storages["0"]) + b"a")}
    beside |= {"counts": typed("restore_type_tag", b"}" + text("a") + b"K\x01s", text("Dict[str, int]"))}
    visual = module({"0": module(beside | {"weight": tensors["p2"]}), "1": module({}, b"c__torch__\nEmpty\n")})
    body = module(beside | tensors | {"visual": visual})
    expected = {f"p{key}": array for key, array in storages.items()} | {"visual.0.weight": storages["2"]}
    assert_same(read_pth(write(body, storages)), expected)


def test_names_of_the_outermost_module_are_kept(write):
    """In a dictionary "model" and "state_dict" tell where the tensors are; in a module they are names like others."""
    inner, storages = module({"x": plain("0", VALUES)}), {"0": VALUES}
    found = read_pth(write(module({"model": inner, "y": plain("0", VALUES)}), storages))
    assert_same(found, {"model.x": VALUES, "y": VALUES})
    assert_same(read_pth(write(module({"state_dict": inner, "z": b"N"}), storages)), {"state_dict.x": VALUES})


def test_a_module_in_two_places(write):
    shared = LINEAR + b")\x81" + state({"x": plain("0", VALUES)}) + b"bq\x63"
    body = module({"a": shared, "b": b"h\x63"})
    assert_same(read_pth(write(body, {"0": VALUES})), {"a.x": VALUES, "b.x": VALUES})


@pytest.mark.parametrize("named", HOSTILE)
def test_nothing_is_executed(write, tmp_path, named):
    mark = tmp_path / "executed"
    body = HOSTILE[named](f"touch {mark}")
    for wrapped in (body, module({"x": body}), LINEAR + b")\x81" + body + b"b", typed("restore_type_tag", body)):
        line = refusal(write(wrapped))
        # A class of torch is made by the operation for modules here, so the name alone is what is refused.
        assert named in line and "nothing was executed" in line
        assert not mark.exists()


WRONG = {
    "makes an object that is no module": b"ccollections\nOrderedDict\n)\x81",
    "is no module; nothing was executed": LINEAR + group(text("x")) + b"\x81",
    "object that is no": b"ctorch\nFloatStorage\n)\x81",
    "calls what is no function": LINEAR + b")R",
    "names __torch__.a.b-c,": module({}, b"c__torch__.a\nb-c\n"),
    "names __torch__.os system": module({}, b"c__torch__.os system\nx\n"),
    "names x.__torch__.a": module({}, b"cx.__torch__\na\n"),
    "attributes in another form": LINEAR + b")\x81" + group(text("x")) + b"b",
    "form than a dictionary": LINEAR + b")\x81}K\x01K\x02sb",
    "gives a type to what": typed("build_intlist", LINEAR),
    "no list or dictionary": typed("restore_type_tag"),
    "holds no module but a dict": mapping({"x": plain("0", VALUES)}),
    "no module but a tensor": plain("0", VALUES),
    "there are no tensors": module({"x": module({})}),
    "nested too deep": module({"a": b"N"})[:-1] + b"bq\x00}" + text("x") + b"h\x00sb",
    "or are nested": b"".join(LINEAR + b")\x81}" + text("x") for _ in range(90)) + b"N" + b"sb" * 90,
    "storage 9 of a.x is missing": module({"a": module({"x": plain("9", VALUES)})}),
    "cannot be read": b"b",
}


@pytest.mark.parametrize("named", WRONG)
def test_wrong_archives(write, named):
    assert named in refusal(write(WRONG[named], {"0": VALUES}))


def test_modules_stand_in_archives_with_a_program_only(tmp_path):
    write_zip(tmp_path / "a.pth", module({"x": plain("0", VALUES)}), {"0": VALUES})
    assert "__torch__.torch.nn.modules.linear" in refusal(tmp_path / "a.pth")


def tree(arrays: dict[str, np.ndarray]) -> dict:
    """Names with dots -> nested dictionaries."""
    nested: dict = {}
    for name, array in arrays.items():
        *path, leaf = name.split(".")
        inner = nested
        for word in path:
            inner = inner.setdefault(word, {})
        inner[leaf] = array
    return nested


@pytest.mark.parametrize("make", [openai_vit, openai_resnet])
def test_an_archive_like_openais(write, make):
    sizes = {name: np.array(7, np.int64) for name in ("input_resolution", "context_length", "vocab_size")}
    arrays = {name: array.astype(np.float16) for name, array in make().items()} | sizes
    keys = {name: str(index) for index, name in enumerate(arrays)}

    def written(nested, start=""):
        return module(
            {"training": b"\x88"}
            | {
                word: written(value, f"{start}{word}.") if isinstance(value, dict) else plain(keys[start + word], value)
                for word, value in nested.items()
            }
        )

    path = write(written(tree(arrays)), {keys[name]: array for name, array in arrays.items()})
    found, _ = read_source(str(path))
    assert same(found, {name: arrays[name] for name in found}) and found.keys() == arrays.keys()
    ported, expected = port(found), port(arrays)
    assert ported.kind == "clip" and same(ported.weights, {name: expected.weights[name] for name in ported.weights})


@pytest.mark.torch
def test_against_torch(tmp_path):
    torch = pytest.importorskip("torch")

    class Inner(torch.nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.linear, self.norm = torch.nn.Linear(3, 4, dtype=dtype), torch.nn.BatchNorm1d(4, dtype=dtype)
            self.sizes, self.counts = [1, 2], {"a": 1}

        def forward(self, x):
            return self.norm(self.linear(x)) * self.sizes[0]

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.small = Inner(torch.float32), Inner(torch.float16)
            self.blocks = torch.nn.Sequential(Inner(torch.float32), torch.nn.Linear(4, 3))
            self.conv = torch.nn.Conv2d(3, 2, 1).to(memory_format=torch.channels_last)
            self.weight = torch.nn.Parameter(torch.randn(4, 3).T)
            self.shared = self.model.linear
            self.register_buffer("count", torch.tensor(5))
            for dtype in DTYPES:
                self.register_buffer(f"of_{dtype.name}", (50 * torch.randn(4, 6)).abs().to(getattr(torch, dtype.name))[1:3, ::2])

        def forward(self, x):
            return self.blocks(x) @ self.weight + torch.tensor([1.0, 2.0, 3.0, 4.0])

    def arrays(tensors):
        flat = {name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy() for name, tensor in tensors.items()}
        return {name: flat[name].view(str(tensor.dtype)[6:]).reshape(tensor.shape) for name, tensor in tensors.items()}

    torch.manual_seed(0)
    model, path = Outer().eval(), tmp_path / "a.pt"
    for program in (torch.jit.script(model), torch.jit.trace(model, torch.randn(2, 3))):
        torch.jit.save(program, path)
        found, expected = read_pth(path), arrays(program.state_dict())
        assert sorted(found) == sorted(expected) and len(found) > 30
        assert_same({name: found[name] for name in expected}, expected)


@pytest.mark.torch
def test_clip_scripted_by_torch(tmp_path):
    """CLIP's names and half precision in an archive that torch itself writes."""
    torch = pytest.importorskip("torch")

    class Group(torch.nn.Module):
        def forward(self, x: int) -> int:
            return x

    def build(nested) -> torch.nn.Module:
        group = Group()
        for word, value in nested.items():
            if isinstance(value, dict):
                group.add_module(word, build(value))
            else:
                group.register_parameter(word, torch.nn.Parameter(torch.from_numpy(value)))
        return group

    arrays = {name: array.astype(np.float16) for name, array in openai_vit().items()}
    torch.jit.save(torch.jit.script(build(tree(arrays))), tmp_path / "clip.pt")
    found, _ = read_source(str(tmp_path / "clip.pt"))
    assert same(found, {name: arrays[name] for name in found}) and found.keys() == arrays.keys()
    assert same(port(found).weights, {path: port(arrays).weights[path] for path in port(found).weights})
