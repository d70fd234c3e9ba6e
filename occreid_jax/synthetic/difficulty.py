"""Every knob that makes the benchmark easier or harder, in one place."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """Knobs of the renderer. Angles in radians, strengths as factors where 0 switches the effect off."""

    palettes: int = 26  # outfits share this many colour sets; fewer makes colour tell less, 0 draws every colour by itself
    camera_colour: float = 0.10  # how far the colour responses of two cameras lie apart
    image_colour: float = 0.3  # change of light from one image to the next at one camera
    yaw_spread: float = 0.42  # standard deviation of the facing direction round what a camera usually sees
    yaw_jitter: float = 0.18  # change of the facing direction inside one sequence
    swing: float = 0.42  # largest thigh angle of the walk
    box_shift: float = 0.03  # error of the bounding box, as a fraction of its width or height
    box_scale: float = 0.05  # error of the bounding box size
    clutter: int = 26  # things standing in each camera's panorama
    background_colour: float = 0.3  # colour and contrast of the scenery; 0 is plain grey
    occluder_colour: float = 0.5  # the same for occluding objects
    sensor: float = 0.7  # noise, blur and loss of resolution
    occluded_rate: float = 0.10  # fraction of occluded images in the mostly holistic folders of split "occluded"
    holistic_rate: float = 0.04  # the same for every folder of split "holistic"
    covered_low: float = 0.20  # an occluded image hides at least this fraction of the person
    covered_high: float = 0.50  # and at most this fraction
    covered_skew: float = 2.2  # above 1: lightly covered people are more frequent than heavily covered ones
    other_people: float = 0.22  # fraction of the occlusions that another person makes
    crops: float = 0.10  # fraction of the occlusions that are cuts by the frame; objects make the rest


DIFFICULTY = Difficulty()
