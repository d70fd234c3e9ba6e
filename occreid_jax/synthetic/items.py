"""What people carry: backpack, shoulder bag, handbag, closed umbrella, and the hood of a hoodie.

Worn things take the label of the part they are worn on; things that hang beside the body or from a hand are `parts.CARRIED`.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np

from occreid_jax.synthetic.body import Skeleton
from occreid_jax.synthetic.palettes import COLOURS
from occreid_jax.synthetic.parts import CARRIED, TORSO, Part, capsule, ellipse, tint

_CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))


def item_parts(body: Skeleton) -> list[Part]:
    """Return the parts of everything a person carries."""
    person = body.person
    found: list[Part] = []
    if person.upper == "hoodie":
        found += _hood(body)
    if person.bag == "backpack":
        found += _backpack(body)
    elif person.bag == "shoulder bag":
        found += _hanging(body)
    elif person.bag == "handbag":
        found += _handbag(body)
    elif person.bag == "umbrella":
        found += _umbrella(body)
    return found


def _box(body: Skeleton, centre, half) -> np.ndarray:
    points = body.project(np.asarray(centre) + _CORNERS * half).astype(np.float32)
    return cv2.convexHull(points)[:, 0].astype(np.float64)


def _hood(body: Skeleton) -> list[Part]:
    size, colour = body.size, COLOURS[body.person.upper_colour]
    back = body.cos < 0.1
    place = body.project(body.joints["neck"] + (0.0, -0.014 if back else 0.004, -0.055))
    tall = 0.05 if back else 0.03
    return [Part(5.4 if back else 4.1, ellipse(place, 0.068 * size, tall * size), tint(colour, 0.7), TORSO)]


def _backpack(body: Skeleton) -> list[Part]:
    chest = body.joints["chest"]
    colour = COLOURS[body.person.bag_colour]
    order = 4.6 if body.cos < 0.2 else 0.4
    centre = chest + (0.0, 0.0, -0.135)
    found = [
        Part(order, _box(body, centre, (0.082, 0.115, 0.05)), tint(colour, 0.9), TORSO),
        Part(order + 0.01, _box(body, centre + (0.0, 0.07, -0.012), (0.074, 0.03, 0.044)), colour, 0),
    ]
    if body.cos < 0.2:
        pocket = _box(body, centre + (0.0, -0.055, -0.052), (0.056, 0.04, 0.006))
        found.append(Part(order + 0.02, pocket, tint(colour, 0.62), 0))
    return found


def _hanging(body: Skeleton) -> list[Part]:
    person = body.person
    sign = 1.0 if person.bag_side == "left" else -1.0
    colour = COLOURS[person.bag_colour]
    hip = body.joints[f"hip.{person.bag_side}"]
    centre = hip + (0.075 * sign, 0.035, 0.0)
    near = -body.sin * sign  # how far this side is turned to the camera
    order = 6.4 if near > -0.3 else 0.45
    return [
        Part(order, _box(body, centre, (0.022, 0.055, 0.075)), tint(colour, 0.88), CARRIED),
        Part(order + 0.01, _box(body, centre + (0.004 * sign, 0.03, 0.0), (0.022, 0.024, 0.075)), colour, 0),
    ]


def _handbag(body: Skeleton) -> list[Part]:
    person, size = body.person, body.size
    colour = COLOURS[person.bag_colour]
    hand = body.joints[f"hand.{person.bag_side}"]
    order = 6.3 if body.nearness(f"hand.{person.bag_side}") > -0.03 else 0.9
    top = body.project(hand)
    centre = hand + (0.0, -0.115, 0.0)
    middle = body.project(centre + (0.0, 0.06, 0.0))
    return [
        Part(order, capsule(top, middle, 0.01 * size, 0.02 * size), tint(colour, 0.6), CARRIED),
        Part(order + 0.01, _box(body, centre, (0.026, 0.062, 0.07)), colour, CARRIED),
        Part(order + 0.02, _box(body, centre + (0.0, 0.036, 0.0), (0.026, 0.016, 0.07)), tint(colour, 0.7), 0),
    ]


def _umbrella(body: Skeleton) -> list[Part]:
    person, size = body.person, body.size
    hand = body.joints[f"hand.{person.bag_side}"]
    order = 6.3 if body.nearness(f"hand.{person.bag_side}") > -0.03 else 0.9
    top, tip = body.project(hand + (0.0, 0.05, -0.02)), body.project(hand + (0.0, -0.36, 0.06))
    return [Part(order, capsule(top, tip, 0.02 * size, 0.008 * size), COLOURS[person.bag_colour], CARRIED)]
