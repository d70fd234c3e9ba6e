"""Writes the benchmark to disk: JPEG files in Market-1501 layout, truth maps, and the tables about them."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from occreid_jax.synthetic.cameras import Camera, cameras
from occreid_jax.synthetic.compose import CROP, Picture, render_image, sample_pose, sample_yaw
from occreid_jax.synthetic.difficulty import DIFFICULTY, Difficulty
from occreid_jax.synthetic.occluders import OBJECTS
from occreid_jax.synthetic.people import Person, sample_people
from occreid_jax.synthetic.plan import GALLERY, QUERY, SIZES, TRAIN, Shot, Size, shots
from occreid_jax.synthetic.sentences import captions
from occreid_jax.synthetic.streams import stream

VERSION = 1
"""Goes up with every change of a pixel."""

SPLITS = ("occluded", "holistic")
COLUMNS = (
    "folder",
    "name",
    "pid",
    "camid",
    "occlusion",
    "occluder",
    "covered_fraction",
    "viewpoint",
)
_SUMMARY = "benchmark.json"
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def generate(
    out: Path,
    size: str,
    split: str,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    difficulty: Difficulty = DIFFICULTY,
) -> Path:
    """Write a benchmark under ``out`` and return ``out``.

    The files are written into a hidden folder beside ``out`` that is renamed at the end. If ``out`` holds the same benchmark
    already, nothing is done.

    Args:
        out: folder to create.
        size: a key of `SIZES`.
        split: "occluded" (holistic training set, occluded queries) or "holistic" (few occlusions everywhere).
        seed: whole number >= 0; the same seed gives the same bytes.
        progress: called now and then with (images done, images in all).
        difficulty: the knobs of the renderer.

    Raises:
        ValueError: if an argument is unknown, or if ``out`` holds something else.
    """
    out = Path(out)
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; take one of {', '.join(SIZES)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; take one of {', '.join(SPLITS)}")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; take a whole number >= 0")
    difficulty = dataclasses.replace(difficulty, **dict(SIZES[size].sources.changes))
    wanted = {"size": size, "split": split, "seed": seed, "version": VERSION, "difficulty": dataclasses.asdict(difficulty)}
    if _finished(out, wanted):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the pictures are too small to share between threads
    try:
        partial.mkdir()
        _write(partial, SIZES[size], wanted, difficulty, progress)
        try:
            partial.rename(out)
        except OSError:
            # Another process may have finished the same benchmark meanwhile.
            if not _finished(out, wanted):
                raise
    finally:
        cv2.setNumThreads(threads)
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _finished(out: Path, wanted: dict[str, Any]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / _SUMMARY).read_text())
        found = {key: found[key] for key in wanted}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{out} holds something that is no synthetic benchmark; remove it or choose another folder") from None
    if found == wanted:
        return True
    different = ", ".join(f"{key} {found[key]} instead of {wanted[key]}" for key in wanted if found[key] != wanted[key])
    raise ValueError(f"{out} holds another synthetic benchmark ({different}); remove it or choose another folder")


def _write(root: Path, size: Size, wanted: dict[str, Any], difficulty: Difficulty, progress) -> None:
    split, sources = wanted["split"], size.sources
    seed = wanted["seed"] + sources.seed_offset
    train = [camera for namespace in sources.train_cameras for camera in cameras(seed, namespace, difficulty)]
    test = train if sources.test_cameras in sources.train_cameras else cameras(seed, sources.test_cameras, difficulty)
    views = {TRAIN: train, QUERY: test, GALLERY: test}
    numbers = {
        sources.train: size.train_identities,
        sources.test: size.test_identities,
        "distractor": size.distractor_identities,
    }
    people = {name: sample_people(seed, count, name, difficulty) for name, count in numbers.items() if count}
    for folder in (TRAIN, QUERY, GALLERY):
        (root / folder).mkdir(parents=True)
        (root / "truth" / folder).mkdir(parents=True)
    todo = shots(size, seed)
    rows, counts = [], Counter()
    for done, shot in enumerate(todo):
        camera = views[shot.folder][shot.camera]
        picture = _draw(shot, split, seed, size, camera, people, difficulty)
        _save(root, shot, picture, camera.quality)
        row = (shot.folder, shot.name, shot.pid, shot.camera, picture.occlusion, picture.occluder)
        rows.append((*row, f"{picture.covered:.4f}", picture.viewpoint))
        counts[shot.folder] += 1
        counts[f"{shot.folder} occluded"] += picture.occlusion != "none"
        if progress is not None and done % 50 == 49:
            progress(done + 1, len(todo))
    if progress is not None:
        progress(len(todo), len(todo))
    with open(root / "truth" / "index.csv", "w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])
    known = {}
    for shot in todo:
        if shot.pid > 0:
            person = people[shot.namespace][shot.person]
            known[str(shot.pid)] = {"set": shot.namespace, "attributes": person.attributes(), "caption": captions(person)}
    (root / "truth" / "identities.json").write_text(json.dumps(known, indent=1) + "\n")
    summary = {**wanted, "height": size.height, "width": size.width, "counts": dict(sorted(counts.items()))}
    summary["train_identities"], summary["test_identities"] = size.train_identities, size.test_identities
    (root / _SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")


def _draw(
    shot: Shot,
    split: str,
    seed: int,
    size: Size,
    camera: Camera,
    people: dict[str, list[Person]],
    difficulty: Difficulty,
) -> Picture:
    number = shot.pid if shot.pid > 0 else shot.person
    rng = stream(seed, f"{shot.namespace}/image", number, shot.image)
    sequence = stream(seed, f"{shot.namespace}/sequence", number, shot.camera)
    pose = sample_pose(camera, rng, sample_yaw(camera, sequence, difficulty), difficulty)
    rate = difficulty.holistic_rate if split == "holistic" else difficulty.occluded_rate
    always = split == "occluded" and shot.folder == QUERY
    # Drawn in any case, so that the two splits show the same people in the same poses.
    chance, choice = rng.random(), _choose(rng, people[shot.namespace], shot.person, difficulty)
    occluder = choice if always or chance < rate else None
    return render_image(
        people[shot.namespace][shot.person],
        camera,
        pose,
        occluder,
        rng,
        (size.height, size.width),
        (difficulty.covered_low, difficulty.covered_high),
        box_error=7.0 if shot.pid < 0 else 1.0,
    )


def _choose(rng: np.random.Generator, people: list[Person], own: int, difficulty: Difficulty) -> str | Person:
    # Other people are of the same set, so that training never shows an identity of the test.
    kind = rng.random()
    other = int(rng.integers(len(people)))
    thing = OBJECTS[int(rng.integers(len(OBJECTS)))]
    if kind < difficulty.other_people and other != own:
        return people[other]
    return CROP if kind > 1 - difficulty.crops else thing


def _save(root: Path, shot: Shot, picture: Picture, quality: int) -> None:
    bgr = cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR)
    done, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    also, png = cv2.imencode(".png", picture.truth, _PNG)
    if not (done and also):
        raise OSError(f"opencv could not encode {shot.name}")
    (root / shot.folder / shot.name).write_bytes(jpeg.tobytes())
    (root / "truth" / shot.folder / shot.name).with_suffix(".png").write_bytes(png.tobytes())
