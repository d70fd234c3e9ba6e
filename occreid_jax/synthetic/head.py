"""Head, neck, hair, headwear and scarf."""

from __future__ import annotations

import math

import numpy as np

from occreid_jax.synthetic.body import Skeleton
from occreid_jax.synthetic.palettes import COLOURS, HAIR, SKIN
from occreid_jax.synthetic.parts import HEAD, TORSO, Part, capsule, ellipse, tint

_FACE = 1.15  # half the angle of the head that is face and not hair


def head_parts(body: Skeleton) -> list[Part]:
    """Return the parts of the head."""
    person, joints, size = body.person, body.joints, body.size
    skin, hair = SKIN[person.skin], HAIR[person.hair_colour]
    centre, neck = body.project(joints["head"]), body.project(joints["neck"])
    radius_x = size * (0.050 + 0.006 * abs(body.sin))
    radius_y = 0.068 * size
    found = [
        Part(4.2, capsule(centre, neck + (0, 0.008 * size), 0.03 * size, 0.036 * size), tint(skin, 0.8), HEAD),
        Part(5.0, ellipse(centre, radius_x, radius_y), hair, HEAD),
        Part(5.0, ellipse(centre - (0.2 * radius_x, 0.3 * radius_y), 0.55 * radius_x, 0.5 * radius_y), tint(hair, 1.2), 0),
    ]
    found += _face(body, centre, radius_x, radius_y, skin)
    found += _hair(body, centre, radius_x, radius_y, hair)
    found += _headwear(body, centre, radius_x, radius_y)
    if person.scarf:
        found += _scarf(body, neck)
    return found


def _face(body: Skeleton, centre, radius_x: float, radius_y: float, skin) -> list[Part]:
    yaw = math.remainder(body.pose.yaw, 2 * math.pi)
    low, high = max(yaw - _FACE, -math.pi / 2), min(yaw + _FACE, math.pi / 2)
    if high - low < 0.15:
        if body.person.hair_length != "short":
            return []
        return [Part(5.1, ellipse(centre + (0, 0.72 * radius_y), 0.7 * radius_x, 0.3 * radius_y), tint(skin, 0.9), 0)]
    left, right = math.sin(low), math.sin(high)
    middle = centre + (0.5 * (left + right) * radius_x, 0.2 * radius_y)
    found = [Part(5.1, ellipse(middle, 0.5 * (right - left) * radius_x, 0.78 * radius_y), skin, 0)]
    for theta in (-0.42, 0.42):
        if abs(yaw + theta) < 1.25:
            eye = centre + (math.sin(yaw + theta) * radius_x, 0.0)
            found.append(Part(5.2, ellipse(eye, 0.14 * radius_x, 0.09 * radius_y), (50.0, 36.0, 34.0), 0))
    if abs(yaw) < 1.1:
        mouth = centre + (math.sin(yaw) * radius_x, 0.58 * radius_y)
        found.append(Part(5.2, ellipse(mouth, 0.28 * radius_x * body.cos, 0.06 * radius_y), tint(skin, 0.62), 0))
    return found


def _hair(body: Skeleton, centre, radius_x: float, radius_y: float, hair) -> list[Part]:
    person, joints, size = body.person, body.joints, body.size
    if person.hair_length == "short":
        return []
    # Hair hangs at the back: in front of the trunk when the camera sees the back.
    order = 4.8 if body.cos < 0.35 else 0.6
    crown = joints["head"] + (0.0, 0.0, -0.016)
    if person.hair_style == "bun":
        bun = body.project(joints["head"] + (0.0, 0.066, -0.036))
        return [Part(5.3 if body.cos < 0.3 else 4.9, ellipse(bun, 0.033 * size, 0.030 * size), tint(hair, 0.9), HEAD)]
    drop = 0.10 if person.hair_length == "medium" else 0.22
    if person.hair_style == "ponytail":
        root = body.project(joints["head"] + (0.0, 0.02, -0.056))
        tip = body.project(joints["head"] + (0.0, -drop, -0.085))
        order = 5.3 if body.cos < 0.0 else 0.6
        return [Part(order, capsule(root, tip, 0.02 * size, 0.016 * size), tint(hair, 0.9), HEAD)]
    tip = body.project(crown + (0.0, -drop, -0.035))
    found = [Part(order, capsule(body.project(crown), tip, 0.054 * size, 0.05 * size), tint(hair, 0.92), HEAD)]
    if body.cos >= 0.0:  # strands beside the face
        for sign in (-1.0, 1.0):
            root = body.project(joints["head"] + (0.043 * sign, 0.01, 0.0))
            end = body.project(joints["head"] + (0.052 * sign, -0.75 * drop, 0.012))
            found.append(Part(5.15, capsule(root, end, 0.011 * size, 0.013 * size), hair, HEAD))
    return found


def _headwear(body: Skeleton, centre, radius_x: float, radius_y: float) -> list[Part]:
    person, size = body.person, body.size
    if person.headwear == "none":
        return []
    colour = COLOURS[person.bag_colour]
    angles = np.linspace(np.pi, 2 * np.pi, 9)
    brim_height = body.joints["head"] + (0.0, 0.022, 0.0)
    dome_base = centre - (0.0, 0.25 * radius_y)
    tall = 0.92 if person.headwear == "cap" else 1.12
    dome = dome_base + np.stack([1.12 * radius_x * np.cos(angles), tall * radius_y * np.sin(angles)], axis=1)
    found = [Part(5.5, dome, colour, HEAD)]
    if person.headwear == "cap":
        start, end = body.project(brim_height + (0.0, 0.0, 0.03)), body.project(brim_height + (0.0, -0.006, 0.1))
        order = 5.6 if body.cos > -0.2 else 4.95
        found.append(Part(order, capsule(start, end, 0.036 * size, 0.03 * size) * 1.0, tint(colour, 0.75), HEAD))
        # A brim is flat: seen from the front it is a thin plate above the eyes.
        flat = found[-1].outline
        middle = flat.mean(axis=0)
        found[-1] = found[-1]._replace(outline=middle + (flat - middle) * (1.0, 0.4))
    else:
        brim = ellipse(dome_base + (0.0, 0.02 * size), 1.85 * radius_x, 0.28 * radius_y)
        found.append(Part(5.45, brim, tint(colour, 0.75), HEAD))
    return found


def _scarf(body: Skeleton, neck) -> list[Part]:
    size, colour = body.size, COLOURS[body.person.bag_colour]
    wrap = ellipse(neck - (0.0, 0.004 * size), 0.062 * size, 0.032 * size)
    found = [Part(5.7 if body.cos < -0.2 else 4.9, wrap, colour, TORSO)]
    start = body.project(body.joints["neck"] + (-0.03, -0.01, 0.062))
    end = body.project(body.joints["neck"] + (-0.036, -0.17, 0.085))
    order = 4.91 if body.cos > -0.2 else 0.7
    found.append(Part(order, capsule(start, end, 0.02 * size, 0.023 * size), tint(colour, 0.88), TORSO))
    return found
