"""Reading weight files. Nothing in them is ever executed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from occreid_jax.errors import UserError


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Named arrays of a safetensors file. Raises `UserError` if it is absent, of another kind, or damaged."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; config.init.weights must name a .safetensors file")
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights must be a .safetensors file with this project's parameter names")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch or convert it again") from error
