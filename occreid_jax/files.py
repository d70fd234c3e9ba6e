"""Small files, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
from pathlib import Path
from typing import IO, Any, NamedTuple

from occreid_jax.errors import UserError, legible

LOCK = ".lock"  # in a run folder: whoever trains there has locked it
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM)
# The errors of the disk that a user can mend, see `remedy`.
STORAGE = (*FULL, *FORBIDDEN, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG)


def at_home(value: Any) -> Any:
    """Text, or texts in a list, tuple, dictionary or config, with ``~`` or ``~user`` at a path's start as the home directory.

    Text may name several paths with commas between. A ConfigDict is changed in place. Raises `UserError` for a user that does
    not exist, since a folder called ``~name`` is what nobody wants.
    """
    if isinstance(value, str):
        return ",".join(map(one_at_home, value.split(","))) if "~" in value else value
    if isinstance(value, list | tuple):
        return type(value)(map(at_home, value))
    if hasattr(value, "items"):  # dict or ConfigDict
        for key, entry in value.items():
            if (changed := at_home(entry)) != entry:
                value[key] = changed
    return value


def one_at_home(path: str) -> str:
    start = re.match(r"\s*(~(?:[A-Za-z_][\w.-]*)?)(?=/|$)", path)
    if start is None:
        return path
    home = os.path.expanduser(start[1])
    if home.startswith("~"):
        what = f"there is no user '{start[1][1:]}'" if start[1] != "~" else "the home directory is not known (HOME is not set)"
        raise UserError(f"{path}: {what}; give the path in full")
    return home + path[start.end() :]


class Held(NamedTuple):
    """A folder that this process has for itself. ``note`` tells if the file system cannot say so to others."""

    file: IO
    note: str = ""


def hold(folder: Path) -> Held:
    """Locks ``folder``, which is made if it is not there, for as long as the result lives; a killed process leaves it free.

    Raises `UserError` if another process has locked it, or if nothing can be written there.
    """
    folder = Path(folder)
    check_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+", encoding="utf-8")
    except OSError as error:
        words = remedy(error) if dead_link(folder) else "choose another --workdir"
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); {words}") from error
    try:
        import fcntl  # not on every system

        # Of the whole process: neither a forked child nor an inherited file keeps it, and NFS knows it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        if getattr(error, "errno", None) not in (errno.EACCES, errno.EAGAIN):
            return Held(file, f"{folder} cannot be locked ({error}); start no second run in it")
        file.seek(0)
        owner = " ".join(file.read().split())
        file.close()
        who = f"another process trains there{f' ({owner})' if owner else ''}"
        raise UserError(f"{folder}: {who}; wait for it, stop it, or choose another --workdir") from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return Held(file)


def check_unheld(folder: Path) -> None:
    """Raises `UserError` if another process trains in ``folder``, or if none can. Makes nothing."""
    check_name(folder)
    if (Path(folder) / LOCK).is_file():
        hold(folder).file.close()


def check_name(folder: Path) -> None:
    """Raises `UserError` if the name of a run folder is no text: checkpoints are written by a library that takes only text."""
    path = str(Path(folder).absolute())
    if legible(path) != path:
        raise UserError(f"{path}: a run folder's name must be valid text (UTF-8); choose another --workdir")


def write_text(path: Path, text: str) -> None:
    """Writes ``path`` through a temporary file beside it. Raises `UserError` if that cannot be done."""
    write_bytes(path, legible(text).encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where a folder could not be made there is nothing to remove
            temporary.unlink()
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); {remedy(error)}") from error


def remedy(error: OSError) -> str:
    """What helps against a file that could not be written, or that could not be read."""
    if error.errno in FULL:
        return "make room, then run the same command again"
    paths = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if name]
    if error.errno == errno.ELOOP or any(map(dead_link, paths)):
        return "a link there leads nowhere, or back to itself: remove it, or name what it should lead to"
    if error.errno == errno.ENAMETOOLONG:
        return "give it a shorter name"
    if error.errno in FORBIDDEN and not all(map(readable, paths)):
        return "give yourself permission to read it, or name another place"
    return "choose a folder that can be written"


def dead_link(path: Path) -> bool:
    """Whether a path, or what exists of it, is a link to nothing."""
    path = nearest(path)
    return path.is_symlink() and not path.exists()


def readable(path: Path) -> bool:
    """Whether what exists of a path may be read and entered."""
    path = nearest(path)
    return os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))


def nearest(path: Path) -> Path:
    """A path, or the nearest of the folders above it, that exists, as a link to nothing does."""
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON with a final newline."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises `UserError` if it is absent or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); restore the file or choose another folder") from error
