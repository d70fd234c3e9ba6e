"""Evaluates several runs on several datasets and prints one table: what was trained on one set and tested on another.

    python launch/matrix.py --runs=runs/fed,runs/dpm_pp --sets=own,market1501=DIR,occluded_reid=DIR,p_dukemtmc:market1501=DIR

A set is its name in docs/datasets.md, after a colon one of its protocols, and after = where it lies; "own" is the set that a run
was trained on. Every cell is a call of launch/evaluate.py and leaves what that leaves, below the run's evaluations/. The command
may be stopped and given again: cells that are there for the same parameters are not evaluated again. The table is matrix.md in
--out, and names the protocol of every number.
"""

from __future__ import annotations

import subprocess
import sys

import command
from absl import flags

RUNS = flags.DEFINE_list("runs", None, "run folders", required=True)
SETS = flags.DEFINE_list("sets", None, "datasets as NAME=DIR or NAME:PROTOCOL=DIR; own for each run's own", required=True)
OUT = flags.DEFINE_string("out", "runs/matrix", "folder of the table and of what is known already")


def main() -> None:
    from pathlib import Path

    from occreid_jax.errors import UserError
    from occreid_jax.files import at_home, read_json, write_json, write_text

    out = Path(at_home(OUT.value))
    if wrong := [each for each in SETS.value if each != "own" and not all(each.partition("="))]:
        raise UserError(f"--sets: {wrong[0]} should look like market1501=DIR or p_dukemtmc:market1501=DIR, or be own")
    runs = [Path(at_home(run)) for run in RUNS.value]
    if absent := [run for run in runs if not (run / "config.json").is_file()]:
        raise UserError(f"--runs: {absent[0]} is no run folder (config.json is missing)")
    path = out / "matrix.json"
    known = read_json(path) if path.is_file() else {}
    failures = []
    for run in runs:
        for each in SETS.value:
            key = f"{run.resolve()} {each}"
            if finished(run, known.get(key, "")):
                continue
            print(f"{run} on {each}", flush=True)
            try:
                known[key] = evaluated(run, each)
            except UserError as error:
                known.pop(key, None)
                failures.append(f"{run} on {each}: {error}")
                print(failures[-1], flush=True)
            write_json(path, known)
    cells = {(run, each): known.get(f"{run.resolve()} {each}", "") for run in runs for each in SETS.value}
    page = table({pair: read_json(place) if place else None for pair, place in cells.items()}, runs, SETS.value)
    write_text(out / "matrix.md", page)
    print(page, flush=True)
    if failures:
        raise UserError(f"{len(failures)} of {len(cells)} cells failed, the first one: {failures[0]}")


def finished(run, place: str) -> bool:
    """Whether the results at ``place`` are there, and of the parameters that the run has now."""
    from pathlib import Path

    from occreid_jax.files import read_json

    own = run / "results.json"
    if not place or not Path(place).is_file() or not own.is_file():
        return False
    return read_json(place).get("parameters_sha256") == read_json(own).get("parameters_sha256")


def evaluated(run, each: str) -> str:
    """Evaluates a run on a set; returns the path of its results. `UserError` with the command's own line where it failed."""
    from occreid_jax.errors import UserError

    place = run / "results.json"
    if each == "own" and place.is_file():
        return str(place)
    arguments = [sys.executable, str(command.ROOT / "launch" / "evaluate.py"), f"--workdir={run}"]
    if each != "own":
        name, _, root = each.partition("=")
        name, _, protocol = name.partition(":")
        arguments += [f"--dataset={name}", f"--root={root}", *([f"--protocol={protocol}"] if protocol else [])]
    ended = subprocess.run(arguments, capture_output=True, text=True)
    if ended.returncode < 0:
        raise UserError(f"ended by signal {-ended.returncode}; run the same command again to go on")
    if ended.returncode:
        said = ended.stderr.strip().splitlines()
        raise UserError(said[-1].removeprefix("error: ") if said else f"ended with status {ended.returncode}")
    for line in ended.stdout.splitlines():
        if line.startswith("note: "):
            print(f"  {line}", flush=True)
    return next(line for line in ended.stdout.splitlines() if line.startswith("written: ")).removeprefix("written: ")


def table(cells: dict, runs: list, sets: list[str]) -> str:
    """mAP and rank 1 of every run (rows) on every set (columns), as Markdown; below it the protocol of every column. What a cell
    adds to its column's protocol stands beside the numbers."""
    from occreid_jax.files import read_json

    protocols = {
        each: sorted({cells[run, each]["protocol"].partition("+")[0] for run in runs if cells[run, each]}) for each in sets
    }
    heads = [each.partition("=")[0] for each in sets]
    lines = [f"| run | trained on | {' | '.join(heads)} |", f"| --- | --- |{' --- |' * len(sets)}"]
    for run in runs:
        words = []
        for each in sets:
            found = cells[run, each]
            base, plus, more = found["protocol"].partition("+") if found else ("", "", "")
            beside = "".join((f" {base}" if len(protocols[each]) > 1 else "", f" {plus}{more}" if more else ""))
            words.append(f"{found['mAP']:.1f} / {found['rank1']:.1f}{beside}" if found else "not evaluated")
        lines.append(f"| {run} | {read_json(run / 'config.json')['data']['name']} | {' | '.join(words)} |")
    told = [f"{head}: {' and '.join(protocols[each]) or 'not evaluated'}" for head, each in zip(heads, sets, strict=True)]
    return "\n".join([*lines, "", f"mAP / rank 1 in percent. Protocols: {'; '.join(told)}.", ""])


if __name__ == "__main__":
    command.run(main)
