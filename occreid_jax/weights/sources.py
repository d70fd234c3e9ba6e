"""Weights from where they lie: a file, a folder, or a model on the Hugging Face hub. Nothing in a file is ever executed."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import zipfile
from pathlib import Path

import numpy as np

from occreid_jax.errors import UserError, listed
from occreid_jax.files import at_home, read_json
from occreid_jax.weights.naming import Arrays
from occreid_jax.weights.read import read_weights

PYTORCH = (".pth", ".pt", ".bin", ".tar")
SUFFIXES = (".safetensors", *PYTORCH, ".npz")
PREFERRED = "model.safetensors"
INDEX = "model.safetensors.index.json"  # names the shards of a large model
ON_THE_HUB = (PREFERRED, "pytorch_model.bin")
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where weights came from: ``source`` as it was given, and the ``files`` that were read."""

    source: str
    files: tuple[Path, ...]

    def checksums(self) -> dict[str, str]:
        """SHA-256 of each file, by its name."""
        sums = {}
        for path in self.files:
            with open(path, "rb") as file:
                sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return sums


def read_source(source: str, alone: str = "") -> tuple[Arrays, Origin]:
    """Named arrays, in the types they are stored in, of a file, of the weights in a folder, or of a hub id ``owner/name``.

    A hub id counts only if nothing on this machine has that name. ``alone`` is what to call the tensor of a PyTorch file that has
    one without a name; no other file of PyTorch's is taken then. Raises `UserError` if there are no readable weights.
    """
    path = Path(at_home(source))
    if path.is_file():
        files = (path,)
    elif path.is_dir():
        files = files_in(path)
    elif HUB_ID.fullmatch(source) and path.suffix not in SUFFIXES:
        files = (from_hub(source),)
    else:
        raise UserError(f"{source}: no such file or folder; give one, or the id of a model on the Hugging Face hub (owner/name)")
    arrays = {}
    for file in files:
        for name, array in read_file(file, alone).items():
            if name in arrays:
                raise UserError(f"{file}: {name} stands in another shard too; fetch the model again")
            arrays[name] = array
    return arrays, Origin(str(source), files)


def read_file(path: Path, alone: str = "") -> Arrays:
    """Named arrays of one file, by its suffix; see `read_source`."""
    if path.suffix == ".safetensors":
        return read_weights(path)
    if path.suffix in PYTORCH:
        from occreid_jax.weights.pth import read_pth

        return read_pth(path, alone)
    if path.suffix == ".npz":
        return read_npz(path)
    raise UserError(f"{path}: not a file of weights by its name; it must end in {', '.join(SUFFIXES)}")


def read_npz(path: Path) -> Arrays:
    """Named arrays of a numpy archive, without pickles."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # A file that is one array, or none at all, gives no archive to enter (TypeError, AttributeError).
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable .npz file ({error}); fetch it again") from error


def files_in(folder: Path) -> tuple[Path, ...]:
    """The weights in a folder: model.safetensors, its shards, or the only file of weights there."""
    if (folder / PREFERRED).is_file():
        return (folder / PREFERRED,)
    if (folder / INDEX).is_file():
        return shards(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in SUFFIXES)
    if not files:
        raise UserError(f"{folder}: no file of weights in it; one must end in {', '.join(SUFFIXES)}")
    if len(files) > 1:
        names = listed([path.name for path in files])
        raise UserError(f"{folder}: holds several files of weights ({names}); give the path of one of them")
    return tuple(files)


def shards(folder: Path) -> tuple[Path, ...]:
    """The files that the index of a sharded model names."""
    index = read_json(folder / INDEX)
    listing = index.get("weight_map") if isinstance(index, dict) else None
    names = sorted({str(name) for name in listing.values()}) if isinstance(listing, dict) else []
    # A name with a folder in it could lead anywhere.
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise UserError(f"{folder / INDEX}: not an index of .safetensors files; fetch the model again")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: {listed(missing)} missing, which {INDEX} names; fetch the model again")
    return tuple(folder / name for name in names)


def from_hub(name: str) -> Path:
    """The weights file of a model on the Hugging Face hub, downloaded or from its cache."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    remedy = "check the name and the network, or download the weights elsewhere and give their path"
    for file in ON_THE_HUB:
        try:
            return Path(huggingface_hub.hf_hub_download(name, file))
        except LocalEntryNotFoundError as error:  # what a machine without network gets
            raise UserError(f"{name}: no such file or folder, and the hub cannot be reached; {remedy}") from error
        except EntryNotFoundError:
            continue
        except Exception as error:  # unknown models, closed ones, and whatever the network stack raises
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{name}: no such file or folder, and not to be had from the hub ({text}); {remedy}") from error
    raise UserError(
        f"{name}: this model on the hub has neither {' nor '.join(ON_THE_HUB)}; download its weights, give their path"
    )
