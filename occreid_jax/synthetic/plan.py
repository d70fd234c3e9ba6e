"""Sizes of the benchmark, and who is seen where: the list of images before any is drawn."""

from __future__ import annotations

import dataclasses

import numpy as np

from occreid_jax.synthetic.cameras import COUNT
from occreid_jax.synthetic.streams import stream

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where people, cameras and random numbers come from. Streams of other names or other seeds have nothing in common."""

    train: str = "train"  # namespaces of people
    test: str = "test"
    train_cameras: tuple[str, ...] = ("benchmark",)  # namespaces of six cameras each, shared out over the training identities
    test_cameras: str = "benchmark"
    plan: str = "plan"
    seed_offset: int = 0  # added to the seed of the benchmark
    changes: tuple[tuple[str, float], ...] = ()  # of `difficulty.Difficulty`


BENCHMARK = Sources()
PRETRAINING = Sources(
    train="pretrain",
    test="pretrain_test",
    train_cameras=("pretrain/0", "pretrain/1", "pretrain/2", "pretrain/3"),
    test_cameras="pretrain_test",
    plan="pretrain/plan",
    seed_offset=2**32,  # more than any seed that a config may have
    changes=(("occluded_rate", 0.3), ("palettes", 0)),
)
"""The set that launch/pretrain_clip.py learns from. Its test people and their cameras occur neither in its training set nor in
any benchmark; more pictures are occluded, and colours are drawn one by one, so that words are learned and not palettes."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a benchmark is. Images of a person at a camera form one sequence."""

    height: int
    width: int
    train_identities: int
    train_images: int
    test_identities: int
    query_images: int  # one for each identity and camera
    gallery_images: int  # of the test identities
    distractor_identities: int
    distractor_images: int  # pid 0, people who are no test identity
    junk_images: int  # pid -1, useless boxes
    sources: Sources = BENCHMARK


SIZES: dict[str, Size] = {
    "demo": Size(128, 64, 64, 1024, 32, 120, 510, 30, 90, 6),
    "small": Size(128, 64, 300, 4200, 100, 400, 1700, 100, 300, 20),
    "full": Size(256, 128, 751, 12936, 750, 3368, 13115, 700, 2798, 60),
    "pretrain": Size(128, 64, 3000, 24000, 200, 800, 1600, 0, 0, 0, PRETRAINING),
}
"""Sizes by name; ``full`` has as many identities and images as Market-1501, ``pretrain`` is no benchmark."""


@dataclasses.dataclass(frozen=True)
class Shot:
    """One image to draw."""

    folder: str
    namespace: str  # of the person
    pid: int  # as in the file name; 0 a distractor, -1 junk
    person: int  # number inside the namespace, 0-based
    camera: int  # 0-based, over all six cameras of every namespace of the folder's
    image: int  # number among the images of this person, 0-based; distractors and junk are numbered together

    @property
    def name(self) -> str:
        """File name as in Market-1501."""
        pid = "-1" if self.pid < 0 else f"{self.pid:04d}"
        frame = 1 + 25 * self.image + 7 * (self.person % 3)
        box = 1 if self.folder == GALLERY else 0
        return f"{pid}_c{self.camera + 1}s{1 + self.camera % 3}_{frame:06d}_{box:02d}.jpg"


def shots(size: Size, seed: int) -> list[Shot]:
    """Return every image of the benchmark in the order in which it is drawn. ``seed`` has the offset of the size already."""
    sources = size.sources
    rng = stream(seed, sources.plan)
    found: list[Shot] = []
    wanted = np.clip(rng.integers(3, COUNT + 1, size.train_identities), 1, size.train_images // size.train_identities)
    cells = _cells(rng, wanted)
    for (person, camera), numbers in _numbered(cells, _share(rng, size.train_images, len(cells))):
        camera += COUNT * (person * len(sources.train_cameras) // size.train_identities)
        found += [Shot(TRAIN, sources.train, 1 + person, person, camera, n) for n in numbers]
    first = 1 + size.train_identities
    cells = _cells(rng, 2 + _share(rng, size.query_images - 2 * size.test_identities, size.test_identities, 0, COUNT - 2))
    # One query and at least one gallery image in each cell, and two cells or more a person: every query has a match.
    counts = 1 + _share(rng, size.gallery_images, len(cells))
    for (person, camera), numbers in _numbered(cells, counts):
        found.append(Shot(QUERY, sources.test, first + person, person, camera, numbers[0]))
        found += [Shot(GALLERY, sources.test, first + person, person, camera, n) for n in numbers[1:]]
    for pid, total, offset in ((0, size.distractor_images, 0), (-1, size.junk_images, size.distractor_images)):
        for number in range(total):
            person = int(rng.integers(size.distractor_identities))
            found.append(Shot(GALLERY, "distractor", pid, person, int(rng.integers(COUNT)), offset + number))
    return found


def _cells(rng: np.random.Generator, cameras_each: np.ndarray) -> list[tuple[int, int]]:
    found = []
    for person, count in enumerate(cameras_each):
        found += [(person, int(camera)) for camera in sorted(rng.permutation(COUNT)[:count])]
    return found


def _numbered(cells: list[tuple[int, int]], counts: np.ndarray):
    # Gives the images of one person the numbers 0, 1, 2 ... over all cameras.
    start: dict[int, int] = {}
    for cell, count in zip(cells, counts, strict=True):
        begin = start.get(cell[0], 0)
        start[cell[0]] = begin + int(count)
        yield cell, range(begin, begin + int(count))


def _share(rng: np.random.Generator, total: int, count: int, low: int = 1, high: int | None = None) -> np.ndarray:
    """Split ``total`` into ``count`` random whole numbers from ``low`` to ``high``; raises ValueError if that is impossible."""
    if total < low * count or (high is not None and total > high * count):
        raise ValueError(f"{total} images cannot be split over {count} places with {low} to {high} each")
    result = np.full(count, low)
    limit = total if high is None else high
    weight = rng.gamma(4.0, 1.0, count)
    while (rest := total - int(result.sum())) > 0:
        free = np.flatnonzero(result < limit)
        take = rng.choice(free, size=min(rest, max(1, len(free))), p=weight[free] / weight[free].sum())
        np.add.at(result, take, 1)
        result = np.minimum(result, limit)
    return result
