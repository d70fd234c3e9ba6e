"""Weights from elsewhere under this project's names, and back: what a folder of ported weights holds and how it is written."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from occreid_jax.errors import UserError, listed
from occreid_jax.files import read_json, write_bytes, write_json
from occreid_jax.weights.families import FAMILIES, OURS, Description, open_family, recognise
from occreid_jax.weights.families.clip import POSITIONS
from occreid_jax.weights.naming import RESIZED, USED, Arrays, Entry
from occreid_jax.weights.sources import Origin

FORMAT = "occreid_jax"
WEIGHTS, REPORT = "weights.safetensors", "port.json"
PYTORCH, PYTORCH_PICKLE = "model.safetensors", "model.pth"
PORTED_FILES, EXPORTED_FILES = (WEIGHTS, REPORT), (PYTORCH, PYTORCH_PICKLE)
PLACED = {"encoder": ("pos_embed",), "clip": POSITIONS}  # where weights to start from have their positions, by kind

Grid = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Ported:
    """Weights under this project's paths: float32 arrays, and ``grid`` int32 [2] (rows, columns) beside weights to start from."""

    family: str
    kind: str  # "encoder", "clip", "model" or "part", see `Family`
    weights: Arrays
    entries: list[Entry]  # one for each tensor of the source
    description: Description
    prefix: str = ""  # what stood before every name of the source and was taken off

    def metadata(self) -> dict[str, str]:
        """What the weights file says of itself."""
        return {"format": FORMAT, "kind": self.kind, "family": self.family, **self.description.metadata()}


def port(arrays: Mapping[str, np.ndarray], grid: Grid | None = None) -> Ported:
    """Recognises the family of ``arrays``, brings them under this project's paths and accounts for every one of them.

    ``grid`` resizes the positions of an encoder, or of CLIP's image tower, at once; where these are no square grid it says what
    they are instead. Raises `UserError` if the family is not known, or anything is missing, unexplained or of a wrong shape.
    """
    if not arrays:
        raise UserError("there are no tensors in the source")
    prefix = common_prefix(arrays)
    arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    family = recognise(arrays)
    weights, entries, description = family.read(arrays)
    entries = [entry._replace(name=prefix + entry.name) for entry in entries]
    ported = Ported(family.name, family.kind, weights, entries, description, prefix)
    if family.kind in PLACED:
        return placed(ported, grid)
    if grid is not None:
        raise UserError("--grid is for encoders and for CLIP; a trained network keeps the grid that it was trained with")
    return ported


def common_prefix(names: Collection[str]) -> str:
    """The shortest beginning that all names share without which a family knows them; empty if they are known with it, or never.

    It ends with a dot or a slash. Such are ``module.`` (DataParallel), ``_orig_mod.`` (torch.compile), ``model.`` (trainers that
    keep the network as an attribute), ``opt/target/`` (Google's optimiser), and several of them, one inside the other.
    """
    prefix, families = "", [open_family(name) for name in FAMILIES]
    while True:
        bare = frozenset(name.removeprefix(prefix) for name in names)
        if any(family.fits(bare) for family in families):
            return prefix
        starts = {re.match(r"[^./]*[./]|", name)[0] for name in bare}
        if len(starts) != 1 or starts & {"", *OURS}:
            return ""
        prefix += starts.pop()


def placed(ported: Ported, grid: Grid | None) -> Ported:
    """Weights to start from with the grid of their positions beside them, resized to ``grid`` if that is another one."""
    patches = ported.description.patches
    side = math.isqrt(patches)
    if side * side == patches:
        own = (side, side)
    elif grid is not None and math.prod(grid) == patches:
        own = grid
    else:
        example = f"--grid={patches // 8}x8" if patches % 8 == 0 else "--grid=ROWSxCOLUMNS"
        raise UserError(f"{patches} positions are no square grid; say what grid they are, for example {example}")
    weights, entries = dict(ported.weights), ported.entries
    path = next(path for path in PLACED[ported.kind] if path in weights)
    if grid is not None and grid != own:
        import jax

        from occreid_jax.nn.vit import resize_positions

        weights[path] = np.array(jax.device_get(resize_positions(weights[path], own, grid)))
        done = f"{own[0]}x{own[1]} to {grid[0]}x{grid[1]}, bilinear"
        entries = [
            entry._replace(fate=RESIZED, note=", ".join(filter(None, (entry.note, done))))
            if entry.fate == USED and entry.path == path
            else entry
            for entry in entries
        ]
    final = grid or own
    weights["grid"] = np.array(final, np.int32)
    description = dataclasses.replace(ported.description, grid=final, patches=math.prod(final))
    return dataclasses.replace(ported, weights=weights, entries=entries, description=description)


def check_free(out_dir: str | Path, names: tuple[str, ...]) -> None:
    """Raises `UserError` unless ``out_dir`` is absent, empty, or holds only what was written here before under ``names``."""
    out_dir = Path(out_dir)
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise UserError(f"{out_dir}: a file; --out must name a folder")
    present = sorted(path.name for path in out_dir.iterdir())
    foreign = [name for name in present if not is_temporary(name, names) and not (name in names and is_own(out_dir / name))]
    if foreign:
        raise UserError(f"{out_dir}: holds {listed(foreign)}, which this command did not write there; choose another --out")


def is_temporary(name: str, names: tuple[str, ...]) -> bool:
    """Whether ``name`` is what an interrupted writing of one of ``names`` leaves."""
    return name.endswith(".tmp") and any(name.startswith(f".{own}.") for own in names)


def is_own(path: Path) -> bool:
    """Whether a file says that it was written here."""
    try:
        if path.name == REPORT:
            report = read_json(path)
            return isinstance(report, dict) and report.get("format") == FORMAT
        # A .pth file says nothing of itself; it goes with the safetensors file beside it.
        with safe_open(path.with_name(PYTORCH) if path.name == PYTORCH_PICKLE else path, "numpy") as file:
            metadata = file.metadata() or {}
        return FORMAT in (metadata.get("format"), metadata.get("written_by"))
    except (UserError, SafetensorError, OSError, ValueError):
        return False


def write_ported(out_dir: str | Path, ported: Ported, origin: Origin) -> Path:
    """Writes ``weights.safetensors`` and ``port.json`` (where the weights come from and what became of every tensor) into
    ``out_dir``, each whole or not at all, and returns the path of the weights. See `check_free` for what is refused."""
    out_dir = Path(out_dir)
    check_free(out_dir, PORTED_FILES)
    write_bytes(out_dir / WEIGHTS, save(ported.weights, ported.metadata()))
    report = {
        **ported.metadata(),
        "source": origin.source,
        "sha256": origin.checksums(),
        "prefix": ported.prefix,
        "tensors": [{**entry._asdict(), "shape": list(entry.shape)} for entry in ported.entries],
    }
    write_json(out_dir / REPORT, report)
    return out_dir / WEIGHTS


def widened(array: np.ndarray) -> np.ndarray:
    """float16, which weights that ship with the package are stored in, as float32; anything else as it is."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


def read_ported(path: str | Path) -> tuple[Arrays, dict[str, str]]:
    """Arrays and metadata of ported weights; ``path`` is their folder or the safetensors file itself.

    Halves come back as float32."""
    path = Path(path)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such file; launch/port_weights.py writes one")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: widened(file.get_tensor(name)) for name in file.keys()} if metadata.get("format") == FORMAT else {}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); write it again with launch/port_weights.py"
        ) from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not written by launch/port_weights.py; bring it under this project's names with it first")
    return arrays, metadata


def export(weights: Mapping[str, np.ndarray], family: str) -> Arrays:
    """PyTorch-named arrays of ``weights``: the names of ``family`` for a model or a part of one, timm's for any encoder,
    OpenAI's for any CLIP.

    What is not stored here is not in the result: ``num_batches_tracked`` of the batch normalisations, and weights that no
    forward pass reads. The official loaders copy what they are given and keep their own values for the rest. An AM-softmax
    classifier gets the name of an ordinary one. Raises `UserError` if anything has no name, is missing or has a wrong shape.
    """
    return open_family(family).write(weights)[0]


def write_exported(out_dir: str | Path, arrays: Mapping[str, np.ndarray], alone: bool = False) -> tuple[Path, Path]:
    """Writes PyTorch-named ``arrays`` as ``model.safetensors`` and ``model.pth`` into ``out_dir``; returns the two paths.
    With ``alone`` the second holds nothing but the one tensor. See `check_free` for what is refused."""
    from occreid_jax.weights.pth import write_pth

    out_dir = Path(out_dir)
    check_free(out_dir, EXPORTED_FILES)
    write_bytes(out_dir / PYTORCH, save(dict(arrays), {"format": "pt", "written_by": FORMAT}))
    write_pth(out_dir / PYTORCH_PICKLE, arrays, alone)
    return out_dir / PYTORCH, out_dir / PYTORCH_PICKLE
