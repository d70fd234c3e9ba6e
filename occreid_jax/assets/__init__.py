"""Files that ship with the package, one folder each: `asset` gives its path.

``tiny_clip`` holds ``vocabulary.json`` (see `occreid_jax.vocabulary`), ``weights.safetensors`` in the format of
launch/port_weights.py, and ``card.json``, which says how launch/pretrain_clip.py made them and what they reach.
``tiny_clip_fine`` holds weights and card of the CLIP with patches of 8 pixels; its vocabulary is the other one's.
"""

from __future__ import annotations

from pathlib import Path

from occreid_jax.errors import UserError

FOLDER = Path(__file__).parent


def asset(name: str) -> Path:
    """The folder of the asset ``name``. `UserError` if there is none, as in an installation that lacks its data files."""
    path = FOLDER / name
    if not path.is_dir():
        known = ", ".join(sorted(entry.name for entry in FOLDER.iterdir() if entry.is_dir() and entry.name[0] not in "._"))
        raise UserError(f"there is no asset '{name}' in {FOLDER}; known: {known or 'none, install the package again'}")
    return path
