"""Draws a person: limbs, trunk and head with their garments, as a sorted list of parts."""

from __future__ import annotations

import math

import numpy as np

from occreid_jax.synthetic import parts as p
from occreid_jax.synthetic.body import Placement, Pose, Skeleton
from occreid_jax.synthetic.head import head_parts
from occreid_jax.synthetic.items import item_parts
from occreid_jax.synthetic.palettes import COLOURS, SKIN
from occreid_jax.synthetic.parts import Part, capsule, tint
from occreid_jax.synthetic.people import Person
from occreid_jax.synthetic.surface import PAINTS, Surface

_ARM = {"left": p.LEFT_ARM, "right": p.RIGHT_ARM}
_LEG = {"left": p.LEFT_LEG, "right": p.RIGHT_LEG}
_FOOT = {"left": p.LEFT_FOOT, "right": p.RIGHT_FOOT}


def figure(person: Person, pose: Pose, placement: Placement) -> list[Part]:
    """Return all parts of a person in drawing order."""
    body = Skeleton(person, pose, placement)
    found: list[Part] = []
    for side in ("left", "right"):
        found += _leg(body, side) + _arm(body, side)
    found += _trunk(body) + head_parts(body) + item_parts(body)
    found.sort(key=lambda part: part.order)
    return found


def _limb(order: float, a, b, radius_a: float, radius_b: float, colour, label: int) -> list[Part]:
    # A darker limb with a lighter core reads as round.
    core_a, core_b = a - (0.22 * radius_a, 0), b - (0.22 * radius_b, 0)
    return [
        Part(order, capsule(a, b, radius_a, radius_b), tint(colour, 0.82), label),
        Part(order, capsule(core_a, core_b, 0.62 * radius_a, 0.62 * radius_b), colour, 0),
    ]


def _leg(body: Skeleton, side: str) -> list[Part]:
    person, joints, size = body.person, body.joints, body.size
    width = size * person.girth**0.8
    cloth, skin, shoes = COLOURS[person.lower_colour], SKIN[person.skin], COLOURS[person.shoes_colour]
    order = 2.0 + 0.5 * (body.nearness(f"knee.{side}", f"ankle.{side}") + 0.5)
    hip, knee, ankle, toe = (body.project(joints[f"{name}.{side}"]) for name in ("hip", "knee", "ankle", "toe"))
    loose = {"trousers": 1.16, "jeans": 1.0, "shorts": 1.2, "skirt": 0.84, "leggings": 0.88}[person.lower]
    heel = body.project(joints[f"ankle.{side}"] + (0.0, -0.012, -0.015))
    label = _LEG[side]
    found = _limb(order - 0.02, heel, toe, 0.027 * size, 0.022 * size, shoes, _FOOT[side])
    thigh_radius, knee_radius, ankle_radius = 0.058 * width * loose, 0.042 * width * loose, 0.03 * width * loose
    if person.lower == "skirt":
        found += _limb(order, knee, ankle, 0.036 * width, 0.024 * width, skin, label)
        found += _limb(order, hip, knee, 0.05 * width, 0.04 * width, skin, label)
    elif person.lower == "shorts":
        found += _limb(order, knee, ankle, 0.038 * width, 0.025 * width, skin, label)
        found += _limb(order, hip, 0.06 * hip + 0.94 * knee, thigh_radius, 0.05 * width * loose, cloth, label)
    else:
        found += _limb(order, knee, 0.08 * knee + 0.92 * ankle, knee_radius, ankle_radius, cloth, label)
        found += _limb(order, hip, knee, thigh_radius, knee_radius, cloth, label)
    if person.side_stripe:
        # The stripe runs down the outer side of the leg, at a right angle to the front.
        turned = body.cos if side == "left" else -body.cos
        outward = body.sin if side == "right" else -body.sin  # towards the camera
        if outward > -0.75:
            colour = COLOURS[person.second_colour]
            for a, b, ra, rb in ((hip, knee, thigh_radius, knee_radius), (knee, ankle, knee_radius, ankle_radius)):
                shift_a, shift_b = (0.72 * turned * ra, 0.0), (0.72 * turned * rb, 0.0)
                found.append(Part(order + 0.005, capsule(a + shift_a, b + shift_b, 0.24 * ra, 0.28 * rb), colour, 0))
    return found


def _arm(body: Skeleton, side: str) -> list[Part]:
    person, joints, size = body.person, body.joints, body.size
    width = size * person.girth**0.8 * (1.2 if person.upper in ("coat", "jacket", "hoodie") else 1.0)
    cloth = COLOURS[person.second_colour if person.contrast_sleeves else person.upper_colour]
    skin = SKIN[person.skin]
    near = body.nearness(f"elbow.{side}", f"wrist.{side}")
    order = 6.0 + near if near > -0.035 else 1.0 + near
    shoulder, elbow, wrist, hand = (body.project(joints[f"{name}.{side}"]) for name in ("shoulder", "elbow", "wrist", "hand"))
    label = _ARM[side]
    upper_radius, elbow_radius, wrist_radius = 0.037 * width, 0.031 * width, 0.025 * width
    found = _limb(order, wrist, hand, 0.02 * size, 0.019 * size, skin, label)
    if person.sleeves == "short":
        found += _limb(order, elbow, wrist, 0.028 * width, 0.021 * width, skin, label)
        found += _limb(order, shoulder, elbow, 0.031 * width, 0.028 * width, skin, label)
        end = 0.35 * shoulder + 0.65 * elbow
        found += _limb(order + 0.001, shoulder, end, 1.08 * upper_radius, 1.12 * upper_radius, cloth, label)
        segments = ((shoulder, end, upper_radius, upper_radius, 2),)
    else:
        found += _limb(order, elbow, wrist, elbow_radius, wrist_radius, cloth, label)
        found += _limb(order, shoulder, elbow, upper_radius, elbow_radius, cloth, label)
        segments = ((shoulder, elbow, upper_radius, elbow_radius, 3), (elbow, wrist, elbow_radius, wrist_radius, 2))
    if not person.contrast_sleeves and person.pattern in ("horizontally striped", "checked", "banded", "dotted"):
        second = COLOURS[person.second_colour]
        for a, b, ra, rb, count in segments:
            for step in range(count) if person.pattern != "banded" else (1,):
                low, high = (step + 0.35) / count, (step + 0.8) / count
                start, end = a + low * (b - a), a + high * (b - a)
                across = np.array([b[1] - a[1], a[0] - b[0]])
                across = across / max(math.hypot(*across), 1e-6)
                ring = [start + ra * across, end + rb * across, end - rb * across, start - ra * across]
                found.append(Part(order + 0.002, np.array(ring), second, 0))
    return found


def _rings(body: Skeleton, levels: list[tuple[float, float, float, float]]):
    # Levels are (height, depth of the axis, half width, half thickness) in body units, from the top down.
    table = np.array(levels)
    axis = np.stack([np.zeros(len(table)), table[:, 0], table[:, 1]], axis=1)
    centre = body.project(axis)
    half = body.size * np.hypot(table[:, 2] * body.cos, table[:, 3] * body.sin)
    return centre[:, 1], centre[:, 0], half


def _outline(rows, left, right) -> np.ndarray:
    return np.concatenate([np.stack([left, rows], axis=1), np.stack([right, rows], axis=1)[::-1]])


def _trunk(body: Skeleton) -> list[Part]:
    person, joints = body.person, body.joints
    girth, flat = person.girth**0.75, 0.62
    thick = girth * (1.1 if person.upper in ("coat", "jacket", "hoodie") else 1.0)
    shoulder, hips = 0.118 * person.girth**0.7 * person.shoulders, 0.098 * girth * person.hips
    neck, chest, waist = joints["neck"], joints["chest"], joints["waist"]
    bottom = float(joints["crotch"][1])
    hip_height = bottom + 0.045
    levels = [
        (neck[1] + 0.012, neck[2], 0.045, 0.045),
        (neck[1] - 0.012, neck[2], 0.8 * shoulder, 0.055 * thick),
        (neck[1] - 0.04, neck[2], shoulder, 0.066 * thick),
        (chest[1], chest[2] + 0.006, 0.104 * thick, flat * 0.128 * thick),
        (waist[1], waist[2], (0.086 if person.gender == "woman" else 0.093) * thick, flat * 0.125 * thick),
        (hip_height, 0.0, max(hips, 0.09 * thick), flat * 0.145 * thick),
        (bottom - 0.005, 0.0, max(hips, 0.09 * thick), flat * 0.145 * thick),
    ]
    swing = 0.09 * abs(math.sin(body.pose.phase)) * body.pose.swing / 0.4
    hem = []
    if person.upper in ("coat", "dress"):
        flare = 1.28 if person.upper == "dress" else 1.12
        end = bottom - (0.17 if person.upper == "dress" else 0.2)
        hem = [(end, 0.0, hips * flare, flat * 0.145 * thick * flare + swing)]
    rows, centre, half = _rings(body, levels + hem)
    torso_rows, torso_centre, torso_half = rows[:7], centre[:7], half[:7]
    length = float(rows[5] - rows[0])
    main, second = np.float32(COLOURS[person.upper_colour]), np.float32(COLOURS[person.second_colour])
    colours = np.stack([main, second, second * 0.9, np.float32(COLOURS[person.bag_colour]), main * 0.66])
    surface = Surface(rows, centre, half, length, body.pose.yaw, colours, _cloth(person))
    found = [Part(4.0, _outline(rows, centre - half, centre + half), surface, 0)]
    found.append(Part(4.0, _outline(torso_rows, torso_centre - torso_half, torso_centre + torso_half), None, p.TORSO))
    if hem:
        found += _skirt_labels(body, rows[5:], centre[5:], half[5:])
    elif person.lower == "skirt":
        skirt = levels[5:] + [(bottom - 0.16, 0.0, hips * 1.22, flat * 0.16 * thick + swing)]
        rows, centre, half = _rings(body, skirt)
        cloth = np.float32(COLOURS[person.lower_colour])[None]
        surface = Surface(rows, centre, half, length, body.pose.yaw, cloth, PAINTS["plain"])
        found.append(Part(3.0, _outline(rows, centre - half, centre + half), surface, 0))
        found += _skirt_labels(body, rows, centre, half)
    return found


def _skirt_labels(body: Skeleton, rows, centre, half) -> list[Part]:
    # Below the hip a skirt counts as the leg behind it; the border is the middle line of the front or the back.
    front = 1.0 if body.cos >= 0 else -1.0
    middle = centre + front * body.sin * half
    left, right = (p.LEFT_LEG, p.RIGHT_LEG) if front < 0 else (p.RIGHT_LEG, p.LEFT_LEG)
    return [
        Part(3.0, _outline(rows, centre - half, middle), None, left),
        Part(3.0, _outline(rows, middle, centre + half), None, right),
    ]


def _cloth(person: Person):
    # Colours: 0 main, 1 second, 2 what is under an open front, 3 straps of a bag, 4 seams.
    base = PAINTS[person.pattern]
    side = 1.0 if person.bag_side == "left" else -1.0

    def paint(theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        index = np.array(base(theta, v))
        around = np.abs(theta)
        if person.open_front:
            index[around < 0.5] = 2
        elif person.upper in ("coat", "jacket"):
            index[around < 0.07] = 4
        elif person.upper == "shirt":
            index[(around < 0.09) | ((around < 0.9) & (v < 0.1))] = 1 if person.pattern == "plain" else 4
        elif person.upper == "hoodie":
            index[(around < 0.75) & (v > 0.66) & (v < 0.9) & ((v < 0.7) | (around > 0.6))] = 4
        elif person.upper == "dress":
            index[np.broadcast_to((v > 0.6) & (v < 0.67), index.shape)] = 4
        if person.bag == "backpack":
            index[(np.abs(around - 0.75) < 0.2) & (v < 0.58)] = 3
        elif person.bag == "shoulder bag":
            index[(np.abs(side * np.sin(theta) - (2.0 * v - 0.9)) < 0.13) & (v < 1.0)] = 3
        return index

    return paint
