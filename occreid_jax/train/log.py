"""What a run tells: lines and a progress bar for people, metrics.jsonl and TensorBoard for tools."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from occreid_jax.distributed import is_lead
from occreid_jax.errors import UserError, legible
from occreid_jax.files import remedy, write_text

PLAIN_SECONDS = 15.0  # without a terminal, progress is a line this often
BOARD_SECONDS = 10.0  # TensorBoard's file is pushed to the disk this often


class Reporter:
    """Prints for people: lines at once, progress as a bar on a terminal and as an occasional line elsewhere.

    Only the lead process prints.
    """

    def __init__(self, quiet: bool = False):
        self.silent = quiet or not is_lead()
        self.console = Console(stderr=False, highlight=False, soft_wrap=True, quiet=self.silent)
        self.bar: Progress | None = None

    def line(self, text: str) -> None:
        self.console.print(legible(text), markup=False)
        sys.stdout.flush()

    def task(self, description: str, total: int) -> Task:
        """A piece of work with ``total`` units; call the result with the units done."""
        return Task(self, description, total)


class Task:
    """Progress of one piece of work; a context manager. ``update(done, total, note)`` may be called at any rate."""

    def __init__(self, reporter: Reporter, description: str, total: int):
        self.reporter, self.description, self.total = reporter, description, total
        self.started = self.last = time.monotonic()
        self.progress, self.first = None, None

    def __enter__(self) -> Task:
        if not self.reporter.silent and self.reporter.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.reporter.console,
            )
            self.progress.start()
            self.number = self.progress.add_task(self.description, total=self.total, note="")
        return self

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        if self.first is None:
            self.first = done  # a resumed run starts in the middle
        if self.progress is not None:
            self.progress.update(self.number, completed=done, total=total or self.total, note=note)
            return
        now = time.monotonic()
        if now - self.last > PLAIN_SECONDS and done > self.first:
            self.last = now
            total = total or self.total
            left = (now - self.started) / (done - self.first) * (total - done)
            self.reporter.line(f"{self.description}: {done}/{total} {note}  {left:.0f} s left")

    def __exit__(self, *_) -> None:
        if self.progress is not None:
            self.progress.stop()


class MetricsFile:
    """``metrics.jsonl`` (one JSON object a line, each with ``step``) and TensorBoard files below ``workdir``.

    Lines after ``step`` are removed first: a resumed run writes them again. With ``over``, training is finished and the final
    evaluation, which is written again too, is removed as well. Both are written at once and not by a thread: a full disk is
    then an error here, and not a queue that nobody empties.
    """

    def __init__(self, workdir: Path, step: int, over: bool = False):
        self.path = Path(workdir) / "metrics.jsonl"
        self.active = is_lead()
        if not self.active:
            return
        lines = [line for line in read_metrics(self.path) if line["step"] <= step]
        lines = [line for line in lines if not (over and line["step"] == step and "evaluation/mAP" in line)]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        self.flushed = time.monotonic()
        with self.writing():
            self.file = open(self.path, "a", encoding="utf-8")
            (self.path.parent / "tensorboard").mkdir(exist_ok=True)
            self.board = EventsWriter(str(self.path.parent / "tensorboard" / "events"))
            if step:  # what an earlier, longer run drew after this step is to be forgotten
                started = SessionLog(status=SessionLog.START)
                self.board.write_event(Event(wall_time=time.time(), step=step + 1, session_log=started))

    def write(self, step: int, values: dict) -> None:
        """Adds one line; numbers also go to TensorBoard."""
        if not self.active:
            return
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()])
        with self.writing():
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
            self.board.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            if time.monotonic() - self.flushed > BOARD_SECONDS:
                self.board.flush()
                self.flushed = time.monotonic()

    def close(self) -> None:
        if self.active:
            for file in (self.file, self.board):
                with contextlib.suppress(OSError):  # a full disk was told when it refused a line
                    file.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror or error}); {remedy(error)}") from error


def read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics file; a last line that a kill cut short is left out.

    Raises `UserError` for a file that is damaged in another way: going on would lose what stands after the damage.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror or error})") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            whole = isinstance(line, dict) and isinstance(line.get("step"), int)
        except ValueError:
            whole = False
        if whole:
            lines.append(line)
        elif number < len(texts):
            raise UserError(f"{path}: line {number} is damaged; mend it, or move the file away to go on without it")
    return lines
