"""Runs the parts one after the other, each in a process of its own, and tells them as one table.

A part that fails, is killed or takes too long costs its own rows and nothing else; a fresh process for each gives back all memory
of the device.
"""

from __future__ import annotations

import importlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from occreid_jax.files import read_json, write_json, write_text

GRACE = 20.0  # seconds that a part may take beyond its time before it is ended


class Part(NamedTuple):
    """A part by the place of its function, and its share of the time; the last one takes what is left."""

    function: str
    minutes: float  # of nine
    about: str


PARTS = {
    "devices": Part("hardware:devices", 0.5, "Devices and versions"),
    "precision": Part("steps:precision", 2.0, "One step of every stage, bfloat16 beside float32 (micro encoders)"),
    "resume": Part("training:resume", 1.25, "A run that is killed and goes on, beside one that nobody stopped"),
    "peaks": Part("hardware:peaks", 0.5, "The machine by itself"),
    "speed": Part("steps:speed", 4.0, "Training and embedding"),
    "peer": Part("peer:peer", 1.0, "The same encoder in PyTorch"),
    "profile": Part("steps:profile", 0.75, "Dearest kernels of the ViT baseline's step"),
    "demos": Part("training:demos", 9.0, "Demo runs of the embedded benchmark"),
}
NINE = 9.0


def accept(
    out: Path, root: Path, minutes: float, parts: tuple[str, ...], demos: tuple[str, ...], small: bool | None,
    only: tuple[str, ...] = (), tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs ``parts`` within ``minutes`` and returns what ``out/acceptance.json`` holds: part -> rows, seconds and how it ended.

    ``small`` None lets the part "devices" decide: published sizes where JAX finds an accelerator. ``only`` names the
    methods whose steps are looked at, none means all. Every row is in ``out/<part>.json`` as soon as it exists.
    """
    began, found = time.monotonic(), {}
    ends = began + 60.0 * minutes
    for name in parts:
        part, left = PARTS[name], ends - time.monotonic()
        limit = min(60.0 * part.minutes * minutes / NINE, left)
        tell(f"[{time.monotonic() - began:4.0f} s] {part.about} (at most {max(limit, 0):.0f} s)")
        (out / f"{name}.json").unlink(missing_ok=True)
        started = time.monotonic()
        if limit > 1.0:
            ended = in_process((name, out, root, limit, small, demos, only), limit + GRACE)
        else:
            ended = "not begun: no time left"
        stored = stored_part(out, name)
        found[name] = {"rows": stored["rows"], "ended": stored["ended"] or ended, "seconds": round(time.monotonic() - started, 1)}
        write_json(out / "acceptance.json", found)
        write_text(out / "acceptance.md", table(found))
        tell(f"[{time.monotonic() - began:4.0f} s]   {len(stored['rows'])} rows, {found[name]['ended']}")
    return found


def in_process(arguments: tuple, limit: float) -> str:
    """Runs `run_part` in a new process; says how that ended if the part could not say so itself."""
    process = multiprocessing.get_context("spawn").Process(target=run_part, args=arguments)
    process.start()
    process.join(limit)
    if process.is_alive():
        process.terminate()
        process.join(GRACE)
        process.kill()
        process.join()
        return "out of time"
    return "finished" if process.exitcode == 0 else f"ended with status {process.exitcode}"


def run_part(
    name: str, out: Path, root: Path, seconds: float, small: bool | None, demos: tuple[str, ...], only: tuple[str, ...] = ()
) -> None:
    """Runs one part and keeps every row at once. A mistake or a lack of memory is told as the part's end."""
    from occreid_jax.acceptance.task import Task, accelerator

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started ends with it
    published = accelerator() if small is None else not small
    task = Task(out, root, time.monotonic() + seconds, published, demos, only)
    module, _, function = PARTS[name].function.partition(":")
    rows, ended = [], "finished"
    keep(out, name, rows, None)
    try:
        for row in getattr(importlib.import_module(f"occreid_jax.acceptance.{module}"), function)(task):
            rows.append(row)
            keep(out, name, rows, None)
            if task.left < 0:
                ended = "out of time"
                break
    except Exception as error:  # whatever it is, the other parts go on
        ended = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
    keep(out, name, rows, ended)


def keep(out: Path, name: str, rows: list[dict[str, Any]], ended: str | None) -> None:
    write_json(out / f"{name}.json", {"rows": rows, "ended": ended})


def stored_part(out: Path, name: str) -> dict[str, Any]:
    path = out / f"{name}.json"
    return read_json(path) if path.is_file() else {"rows": [], "ended": None}


def read_rows(out: Path, name: str) -> list[dict[str, Any]]:
    """The rows that a part has left so far."""
    return stored_part(out, name)["rows"]


def table(found: dict[str, Any]) -> str:
    """Everything found, as Markdown for docs/performance.md."""
    lines = []
    for name, part in found.items():
        lines += [f"### {PARTS[name].about}", "", f"{part['seconds']:.0f} s, {part['ended']}.", ""]
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
        if len(part["rows"]) == 1:
            lines += [f"* {key}: {shown(value)}" for key, value in part["rows"][0].items()]
        elif columns:
            lines += [f"| {' | '.join(key.replace('_', ' ') for key in columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
            lines += [f"| {' | '.join(shown(row.get(key)) for key in columns)} |" for row in part["rows"]]
        lines.append("")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A value as a table shows it."""
    if value is None or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")
