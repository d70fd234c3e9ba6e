"""Reference files: weights by a recipe, inputs, and the outputs of official PyTorch code for them, in one .npz each.

Nothing large is stored: every weight is drawn from its own random stream, named by the PyTorch name of the tensor, so that a
file needs only the list of names and shapes. `ReferenceFile` reads one; `recipe_tensor` and `normal` are the recipe.

Contents of a file: ``state_json`` (list of [name, shape, dtype] in state_dict order), ``config_json``, ``seeds_json``,
``notes_json``, ``noise_json`` (per output, the rounding error of the official code in float32), ``weights_l1_f64`` (sum of
absolute values of each weight), ``in.*``, ``out.*`` and ``override.*`` (weights that do not follow the recipe).
"""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from occreid_jax.errors import UserError

RELATIVE_FLOOR = 2e-6  # of the largest reference value: about 17 roundings of float32
NOISE_FACTOR = 30.0  # multiples of the official code's own rounding error
EMBEDDINGS = ("pos_embed", "positional_embedding", "cls_token")  # small whatever their shape
LOGIT_SCALE = 4.6052  # log(100), where CLIP's scale ends


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers float32 of ``shape``, C order, from PCG64(seed)."""
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape), dtype=np.float32)


def tagged(tag: str, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers float32 from the stream that ``tag`` names: PCG64(crc32(tag) xor seed)."""
    return normal(zlib.crc32(tag.encode("utf-8")) ^ seed, shape)


def recipe_tensor(name: str, shape: tuple[int, ...], seed: int, integer: bool = False) -> np.ndarray | None:
    """The weight ``name`` in PyTorch layout: float32, or int64 zeros for a counter.

    Matrices and kernels have variance 1 / fan-in, embeddings 0.02^2; of vectors, scales and variances lie near 1 and all else
    near 0. None stands for an integer buffer that the network computes itself.
    """
    last = name.rpartition(".")[2]
    if integer:
        return np.zeros(shape, np.int64) if last == "num_batches_tracked" else None
    if not shape and last == "logit_scale":
        return np.float32(LOGIT_SCALE).reshape(())
    values = np.asarray(tagged(name, seed, shape), np.float32)
    small = np.float32(0.02)
    if len(shape) >= 2:
        if any(word in name for word in EMBEDDINGS):
            return values * small
        fan_in = int(np.prod(shape[1:], dtype=np.int64))
        return values * np.float32(1.0 / np.sqrt(float(fan_in)))
    if len(shape) == 1:
        tenth, one = np.float32(0.1), np.float32(1.0)
        if last == "running_var":
            return one + tenth * np.abs(values)
        if last == "running_mean":
            return tenth * values
        if last == "weight":
            return one + tenth * values
    return np.asarray(small * values, np.float32)


class Entry(NamedTuple):
    """One line of the state_dict."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as PyTorch prints it

    @property
    def integer(self) -> bool:
        return "int" in self.dtype or self.name.endswith("num_batches_tracked")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How one array agrees with one stored output."""

    key: str
    error: float  # largest absolute difference; infinite where shapes or nan positions differ
    largest: float  # largest absolute reference value
    noise: float  # rounding error of the official code for this output, 0 where none is stored
    allowed: float
    problem: str = ""  # why no difference could be taken
    reason: str = ""  # why ``allowed`` is another number than the usual one

    @property
    def passed(self) -> bool:
        return not self.problem and self.error <= self.allowed

    @property
    def relative(self) -> float:
        """Error over the largest reference value."""
        return self.error / self.largest if self.largest else (0.0 if self.error == 0.0 else float("inf"))

    @property
    def noise_multiple(self) -> float:
        """Error in units of the official code's own rounding error; nan where none is stored."""
        return self.error / self.noise if self.noise else float("nan")

    @property
    def used(self) -> float:
        """Share of the allowed error that is used up; above 1 the comparison fails."""
        if self.problem:
            return float("inf")
        return self.error / self.allowed if self.allowed else 0.0

    def __str__(self) -> str:
        if self.problem:
            return f"{self.key}: {self.problem}"
        numbers = f"error {self.error:.2e}, relative {self.relative:.2e}, noise x{self.noise_multiple:.1f}"
        return f"{self.key}: {numbers}, {self.verdict}"

    @property
    def verdict(self) -> str:
        """``ok`` or what is wrong, with the allowance where it is not the usual one."""
        if self.problem:
            return f"FAILED: {self.problem}"
        allowance = f"allowed {self.allowed:.1e}" + (f": {self.reason}" if self.reason else "")
        if not self.passed:
            return f"TOO LARGE, {allowance}"
        return f"ok ({allowance})" if self.reason else "ok"


def compare(
    key: str, values, reference: np.ndarray, noise: float = 0.0, allowed: float | None = None, reason: str = ""
) -> Comparison:
    """``values`` against ``reference``: the error may be max(2e-6 * max|reference|, 30 * noise).

    ``allowed`` replaces that number, and ``reason`` says in a few words why. Integers and truth values must be equal. nan must
    meet nan (it marks a parameter that gets no gradient), and infinities the same infinity.
    """
    values, reference = np.asarray(values), np.asarray(reference)
    if values.shape != reference.shape:
        text = f"shape {values.shape} instead of {reference.shape}"
        return Comparison(key, float("inf"), float("nan"), noise, 0.0, text)
    if reference.dtype.kind in "iub":
        wrong = int(np.count_nonzero(values != reference))
        largest = float(np.abs(reference.astype(np.float64)).max(initial=0.0))
        error = float(np.abs(values.astype(np.float64) - reference.astype(np.float64)).max(initial=0.0))
        return Comparison(key, error, largest, 0.0, 0.0, f"{wrong} of {reference.size} values differ" if wrong else "")
    values, exact = values.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(exact)
    largest = float(np.abs(exact[finite]).max(initial=0.0))
    allowed = max(RELATIVE_FLOOR * largest, NOISE_FACTOR * noise) if allowed is None else float(allowed)
    if not np.array_equal(values[~finite], exact[~finite], equal_nan=True) or not np.isfinite(values[finite]).all():
        return Comparison(key, float("inf"), largest, noise, allowed, "nan or infinity at other places", reason)
    error = float(np.abs(values[finite] - exact[finite]).max(initial=0.0))
    return Comparison(key, error, largest, noise, allowed, reason=reason)


class Stored(dict):
    """A dictionary that a reference file stores. A key that it lacks is a `UserError` about the file, not a KeyError."""

    def __init__(self, values: dict, path: Path):
        super().__init__(values)
        self.path = path

    def __missing__(self, key: str):
        raise UserError(f"{self.path}: lacks {key!r}, which a file of its kind needs")


class ReferenceFile:
    """One reference file, opened read-only and without pickles.

    ``config`` and ``seeds`` are dictionaries, ``notes`` a list of sentences, ``state`` a list of `Entry`; ``inputs``,
    ``outputs`` and ``overrides`` map names without their prefix to arrays; ``noise`` maps the name of an output to its rounding
    error (float).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such reference file")
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{self.path}: not a readable .npz file ({error})") from error
        if not any(name.startswith("out.") for name in arrays):
            raise UserError(f"{self.path}: holds no outputs (out.*), so it is no reference file")

        def stored(values):
            return Stored(values, self.path)

        def parsed(name, default):
            try:
                return json.loads(str(arrays[name]), object_hook=stored) if name in arrays else default
            except json.JSONDecodeError as error:
                raise UserError(f"{self.path}: its {name} is no JSON ({error})") from error

        def under(prefix):
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        self.config: dict = parsed("config_json", stored({}))
        self.seeds: dict[str, int] = parsed("seeds_json", {})
        self.notes: list[str] = parsed("notes_json", [])
        self.state = [Entry(name, tuple(shape), *rest or ("float32",)) for name, shape, *rest in parsed("state_json", [])]
        self.inputs, self.outputs, self.overrides = under("in."), under("out."), under("override.")
        # Outputs of integers carry a word such as "equal" in place of the numbers.
        self.noise = {
            name: float(entry["max_err"]) for name, entry in parsed("noise_json", {}).items() if isinstance(entry, dict)
        }
        self.weight_sums: np.ndarray | None = arrays.get("weights_l1_f64")

    def _seed(self, name: str) -> int:
        if name not in self.seeds:
            raise UserError(f"{self.path}: stores no {name}")
        return int(self.seeds[name])

    def weights(self) -> Iterator[tuple[str, np.ndarray | None]]:
        """(PyTorch name, array in PyTorch layout) in state_dict order, one at a time; None for what a network computes itself."""
        seed = self._seed("SEED") if self.state else 0
        gains = self.config.get("gains", ())
        for entry in self.state:
            if entry.name in self.overrides:
                yield entry.name, self.overrides[entry.name]
                continue
            array = recipe_tensor(entry.name, entry.shape, seed, entry.integer)
            if array is not None and array.dtype == np.float32:
                for pattern, factor in gains:
                    if re.search(pattern, entry.name):
                        array = array * np.float32(factor)
            yield entry.name, array

    def images(self) -> np.ndarray:
        """The input images float32 [B, 3, H, W], as normalised. Checked against the first values that the file stores."""
        lacking = [name for name in "BHW" if name not in self.config]
        if lacking:
            raise UserError(f"{self.path}: its config lacks {', '.join(lacking)}, so it has no images")
        images = normal(self._seed("INPUT_SEED"), (self.config["B"], 3, self.config["H"], self.config["W"]))
        head = self.inputs.get("images_head")
        if head is not None and not np.array_equal(images.ravel()[: head.size], head.ravel()):
            raise UserError(f"{self.path}: the recipe gives other images than the file was made with")
        return images

    def tagged(self, tag: str, shape: tuple[int, ...]) -> np.ndarray:
        """Another random input float32 of ``shape``, named ``tag``."""
        return tagged(tag, self._seed("INPUT_SEED"), shape)

    def check_weights(self, relative: float = 1e-9) -> None:
        """Raise `UserError` unless the recipe gives the sums of absolute values that the file stores."""
        if self.weight_sums is None:
            return
        for (name, array), expected in zip(self.weights(), self.weight_sums, strict=True):
            found = float("nan") if array is None else float(np.abs(array).sum(dtype=np.float64))
            if array is not None and not np.isclose(found, expected, rtol=relative, atol=0.0):
                raise UserError(f"{self.path}: {name} sums to {found:.9g} by the recipe, {expected:.9g} in the file")

    def input(self, name: str) -> np.ndarray:
        """The stored input ``name``; a `UserError` if the file lacks it."""
        if name not in self.inputs:
            raise UserError(f"{self.path}: lacks the input {name!r}")
        return self.inputs[name]

    def compare(self, key: str, values, allowed: float | None = None, reason: str = "") -> Comparison:
        """`compare` with the stored output ``key`` and its stored rounding error."""
        if key not in self.outputs:
            raise UserError(f"{self.path}: has no output {key!r}")
        return compare(key, values, self.outputs[key], self.noise.get(key, 0.0), allowed, reason)
