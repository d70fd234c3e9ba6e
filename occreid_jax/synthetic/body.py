"""From a person and a pose to joints in space and to points in the picture.

The body stands in its own frame: X to the person's left, Y up, Z to the front, in units of a normal body height. Yaw 0 looks
into the camera, so that the person's left is at the right of the picture; yaw +pi/2 walks towards the right of the picture and
shows the right side.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from occreid_jax.synthetic.people import Person

VIEWPOINTS = ("front", "front-right", "right", "back-right", "back", "back-left", "left", "front-left")
"""Names of the side the camera sees, in steps of pi/4 of yaw."""


@dataclasses.dataclass(frozen=True)
class Pose:
    """How a person stands in one picture. Angles in radians."""

    yaw: float
    phase: float = 0.0  # of the walk, one cycle is 2 pi
    swing: float = 0.3  # largest thigh angle
    elbow: float = 0.35  # bend of both elbows
    raised: float = 0.0  # extra bend of the right elbow, as with a phone
    lean: float = 0.03  # forward lean of the trunk
    tilt: float = 0.16  # how far the camera looks down


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the figure stands in the picture, in pixels."""

    x: float  # middle of the body
    ground: float  # row of the feet
    scale: float  # pixels of one body height


def viewpoint(yaw: float) -> str:
    """Return the name of the side of the body that the camera sees."""
    return VIEWPOINTS[int(round(yaw / (math.pi / 4))) % 8]


class Skeleton:
    """Joints of one person in one pose, and the projection into the picture.

    ``joints`` maps names to float arrays [3]; paired joints end in ``.left`` or ``.right``.
    """

    def __init__(self, person: Person, pose: Pose, placement: Placement) -> None:
        self.person, self.pose, self.placement = person, pose, placement
        self.cos, self.sin = math.cos(pose.yaw), math.sin(pose.yaw)
        self._cos_tilt, self._sin_tilt = math.cos(pose.tilt), math.sin(pose.tilt)
        # Bounding boxes take most of the difference in height away, as a detector's do.
        self.size = placement.scale * (1 + 0.5 * (person.stature - 1))
        self.joints = _joints(person, pose)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Map body points [..., 3] to pixels float64 [..., 2] (x, y)."""
        points = np.asarray(points, dtype=np.float64)
        x = points[..., 0] * self.cos + points[..., 2] * self.sin
        near = points[..., 2] * self.cos - points[..., 0] * self.sin
        height = points[..., 1] * self._cos_tilt - near * self._sin_tilt
        place = self.placement
        return np.stack([place.x + x * self.size, place.ground - height * self.size], axis=-1)

    def nearness(self, *names: str) -> float:
        """Return how far the named joints stand towards the camera, on average."""
        return sum(float(self.joints[n][2]) * self.cos - float(self.joints[n][0]) * self.sin for n in names) / len(names)


def _joints(person: Person, pose: Pose) -> dict[str, np.ndarray]:
    stretch = person.legs
    hip_height = 0.50 * stretch
    trunk = 1.0 - hip_height  # from the hip joints to the top of the head
    joints: dict[str, np.ndarray] = {}
    shoulder_height = hip_height + 0.64 * trunk
    lean = math.sin(pose.lean)
    half_shoulder = 0.112 * person.girth**0.7 * person.shoulders
    half_hip = 0.054 * person.girth**0.7 * person.hips
    for side, sign in (("left", 1.0), ("right", -1.0)):
        angle = sign * pose.swing * math.sin(pose.phase)
        # The knee bends while its leg swings forward.
        bend = 0.08 + 0.75 * pose.swing * max(0.0, sign * math.cos(pose.phase)) + 0.35 * max(0.0, -angle)
        hip = np.array([sign * half_hip, hip_height, 0.0])
        knee = hip + 0.235 * stretch * np.array([0.0, -math.cos(angle), math.sin(angle)])
        shin = angle - bend
        ankle = knee + 0.225 * stretch * np.array([0.0, -math.cos(shin), math.sin(shin)])
        foot = -0.35 + 0.6 * shin
        toe = ankle + np.array([sign * 0.012, 0.105 * math.sin(foot) * 0.6 - 0.012, 0.105 * math.cos(foot)])
        arm = -0.8 * angle
        elbow_bend = pose.elbow + 0.3 * max(0.0, arm) + (pose.raised if side == "right" else 0.0)
        shoulder = np.array([sign * half_shoulder, shoulder_height - 0.012, 0.33 * trunk * lean])
        elbow = shoulder + 0.165 * np.array([sign * 0.16, -math.cos(arm), math.sin(arm)])
        forearm = arm + elbow_bend
        wrist = elbow + 0.145 * np.array([sign * 0.02, -math.cos(forearm), math.sin(forearm)])
        hand = wrist + 0.035 * np.array([0.0, -math.cos(forearm), math.sin(forearm)])
        named = {"hip": hip, "knee": knee, "ankle": ankle, "toe": toe}
        named |= {"shoulder": shoulder, "elbow": elbow, "wrist": wrist, "hand": hand}
        joints |= {f"{name}.{side}": value for name, value in named.items()}
    joints["crotch"] = np.array([0.0, hip_height - 0.03, 0.0])
    joints["waist"] = np.array([0.0, hip_height + 0.2 * trunk, 0.2 * trunk * lean])
    joints["chest"] = np.array([0.0, hip_height + 0.47 * trunk, 0.47 * trunk * lean])
    joints["neck"] = np.array([0.0, shoulder_height + 0.02, 0.6 * trunk * lean])
    joints["head"] = np.array([0.0, 1.0 - 0.068, 0.85 * trunk * lean + 0.008])
    lowest = min(float(joints["ankle.left"][1]), float(joints["ankle.right"][1])) - 0.035
    for value in joints.values():
        value[1] -= lowest
    return joints
