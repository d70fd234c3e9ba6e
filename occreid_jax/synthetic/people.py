"""Identities: what a person looks like and how people are sampled."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import numpy as np

from occreid_jax.synthetic.difficulty import DIFFICULTY, Difficulty
from occreid_jax.synthetic.palettes import COLOURS, HAIR, PALETTES
from occreid_jax.synthetic.streams import NAMESPACES, stream

UPPERS = ("t-shirt", "shirt", "hoodie", "jacket", "coat", "dress")
PATTERNS = (
    "plain",
    "horizontally striped",
    "vertically striped",
    "checked",
    "dotted",
    "two-tone",
    "banded",
    "logo",
    "sash",
    "side-panelled",
)
LOWERS = ("trousers", "jeans", "shorts", "skirt")
BAGS = ("none", "backpack", "shoulder bag", "handbag", "umbrella")
HEADWEAR = ("none", "cap", "hat")
HAIR_LENGTHS = ("short", "medium", "long")

# A person belongs to the namespace that owns the remainder of its outfit's checksum, so two namespaces cannot share an outfit.
_OWNERS = {0: "train", 1: "train", 2: "train", 3: "test", 4: "test", 5: "distractor", 6: "pretrain", 7: "pretrain_test"}


@dataclasses.dataclass(frozen=True)
class Person:
    """One identity. Lengths are factors round 1.0; colours are names in `palettes`."""

    gender: str  # man or woman
    stature: float  # body height
    girth: float  # width of the whole body
    legs: float  # share of the legs in the height
    shoulders: float
    hips: float
    skin: int  # index in palettes.SKIN
    hair_colour: str
    hair_length: str
    hair_style: str  # loose, ponytail or bun
    upper: str
    sleeves: str  # short or long
    pattern: str
    upper_colour: str
    second_colour: str
    contrast_sleeves: bool
    open_front: bool
    lower: str
    lower_colour: str
    side_stripe: bool
    shoes_colour: str
    bag: str
    bag_colour: str
    bag_side: str  # left or right: the person's own side
    headwear: str
    scarf: bool

    def attributes(self) -> dict[str, Any]:
        """Return all fields as plain Python values that json can write."""
        return dataclasses.asdict(self)

    def outfit(self) -> tuple:
        """Return the discrete attributes that a viewer can name; unique inside and across namespaces."""
        shape = {"stature", "girth", "legs", "shoulders", "hips"}
        return tuple(value for name, value in dataclasses.asdict(self).items() if name not in shape)


def _draw_person(rng: np.random.Generator, palettes: int) -> Person:
    def pick(choices, weights=None):
        if weights is None:
            return choices[int(rng.integers(len(choices)))]
        return choices[int(np.searchsorted(np.cumsum(weights) / np.sum(weights), rng.random()))]

    gender = pick(("man", "woman"))
    woman = gender == "woman"
    colours = PALETTES[int(rng.integers(palettes))] if palettes else [pick(tuple(COLOURS)) for _ in range(5)]
    upper_colour, second_colour, lower_colour, shoes_colour, bag_colour = colours
    if rng.random() < 0.5:  # the same colours worn the other way round: the colour histogram hardly changes
        upper_colour, lower_colour = lower_colour, upper_colour
    if second_colour == upper_colour:
        second_colour = "white" if upper_colour != "white" else "black"
    upper = pick(UPPERS, (4, 3, 3, 4, 3, 2.5 if woman else 0))
    lower = "leggings" if upper == "dress" else pick(LOWERS, (3, 3, 3, 3 if woman else 0))
    sleeves = {"t-shirt": "short", "shirt": pick(("short", "long")), "dress": pick(("short", "long"))}.get(upper, "long")
    length = pick(HAIR_LENGTHS, (1, 2, 4) if woman else (6, 1, 1))
    return Person(
        gender=gender,
        stature=float(np.clip(rng.normal(0.97 if woman else 1.03, 0.05), 0.85, 1.15)),
        girth=float(np.clip(rng.normal(1.0, 0.14), 0.76, 1.36)),
        legs=float(np.clip(rng.normal(1.0, 0.05), 0.9, 1.1)),
        shoulders=float(np.clip(rng.normal(0.95 if woman else 1.07, 0.05), 0.84, 1.2)),
        hips=float(np.clip(rng.normal(1.07 if woman else 0.96, 0.05), 0.85, 1.2)),
        skin=int(rng.integers(5)),
        hair_colour=pick(tuple(HAIR), (4, 4, 2, 1, 1)),
        hair_length=length,
        hair_style="loose" if length == "short" else pick(("loose", "ponytail", "bun"), (3, 1.5, 1)),
        upper=upper,
        sleeves=sleeves,
        pattern=pick(PATTERNS, (2,) + (1,) * (len(PATTERNS) - 1)),
        upper_colour=upper_colour,
        second_colour=second_colour,
        contrast_sleeves=bool(rng.random() < 0.25),
        open_front=upper in ("jacket", "coat") and bool(rng.random() < 0.6),
        lower=lower,
        lower_colour=lower_colour,
        side_stripe=lower in ("trousers", "jeans") and bool(rng.random() < 0.3),
        shoes_colour=shoes_colour,
        bag=pick(BAGS, (3, 3, 2, 2, 1)),
        bag_colour=bag_colour,
        bag_side=pick(("left", "right")),
        headwear=pick(HEADWEAR, (7, 2, 1.5)),
        scarf=bool(rng.random() < 0.14),
    )


def sample_people(seed: int, count: int, namespace: str = "train", difficulty: Difficulty = DIFFICULTY) -> list[Person]:
    """Draw ``count`` different people of one namespace.

    The first n people are the same for every ``count >= n``. No outfit occurs twice inside a namespace, and none in two
    namespaces of any seed: a namespace only takes outfits whose checksum it owns.

    Raises:
        ValueError: if ``namespace`` is not one of `occreid_jax.synthetic.streams.NAMESPACES`.
    """
    if namespace not in NAMESPACES:
        raise ValueError(f"namespace {namespace!r} is unknown; take one of {', '.join(NAMESPACES)}")
    rng = stream(seed, f"{namespace}/people")
    people: list[Person] = []
    seen: set[tuple] = set()
    while len(people) < count:
        person = _draw_person(rng, difficulty.palettes)
        outfit = person.outfit()
        if outfit in seen or owner(person) != namespace:
            continue
        seen.add(outfit)
        people.append(person)
    return people


def owner(person: Person) -> str:
    """Return the only namespace that may hold this person's outfit."""
    return _OWNERS[zlib.crc32(repr(person.outfit()).encode()) % 8]
