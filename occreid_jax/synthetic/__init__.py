"""The embedded benchmark: procedurally rendered pedestrians in Market-1501 layout, with per-pixel ground truth.

Public:

* `generate`, `SIZES`, `Size`, `SPLITS`, `VERSION`: write a benchmark to disk;
* `contact_sheet`: one PNG to look at it;
* `DIFFICULTY`, `Difficulty`: the knobs that make it easier or harder;
* `Person`, `sample_people`, `NAMESPACES`: identities;
* `captions`, `caption_within`, `caption_variants`, `facts`, `fact_prompts`, `attribute_prompts`, `TOPICS`, `VARIANTS`, `CLOSED`:
  the sentences that describe them;
* `Camera`, `cameras`: the six cameras of a namespace;
* `Pose`, `sample_pose`, `render_image`, `Picture`: one image and its truth map as arrays;
* `OBJECTS`, `render_occluder`, `loose_occluders`, `loose_people`: occluders as cut-outs with opacity, one or many;
* `standing_occluders`: occluders as whole frames, where they stand in front of people;
* `stream`: the random generator of one named thing.

Truth maps hold the amodal part label (0 background, 1 head, 2 left arm, 3 right arm, 4 torso, 5 left leg, 6 right leg, 7 left
foot, 8 right foot; left and right are the person's own) in the low four bits, and `OCCLUDED` where an occluder covers the pixel.
"""

from occreid_jax.parts import OCCLUDED
from occreid_jax.synthetic.benchmark import SPLITS, VERSION, generate
from occreid_jax.synthetic.body import Pose
from occreid_jax.synthetic.cameras import Camera, cameras
from occreid_jax.synthetic.compose import Picture, render_image, sample_pose
from occreid_jax.synthetic.difficulty import DIFFICULTY, Difficulty
from occreid_jax.synthetic.loose import loose_occluders, loose_people
from occreid_jax.synthetic.occluders import OBJECTS, render_occluder
from occreid_jax.synthetic.people import Person, sample_people
from occreid_jax.synthetic.plan import SIZES, Size
from occreid_jax.synthetic.sentences import (
    CLOSED,
    TOPICS,
    VARIANTS,
    attribute_prompts,
    caption_variants,
    caption_within,
    captions,
    fact_prompts,
    facts,
)
from occreid_jax.synthetic.sheet import contact_sheet
from occreid_jax.synthetic.standing import standing_occluders
from occreid_jax.synthetic.streams import NAMESPACES, stream

__all__ = [
    "CLOSED",
    "DIFFICULTY",
    "NAMESPACES",
    "OBJECTS",
    "OCCLUDED",
    "SIZES",
    "SPLITS",
    "TOPICS",
    "VARIANTS",
    "VERSION",
    "Camera",
    "Difficulty",
    "Person",
    "Picture",
    "Pose",
    "Size",
    "cameras",
    "attribute_prompts",
    "caption_variants",
    "caption_within",
    "captions",
    "contact_sheet",
    "fact_prompts",
    "facts",
    "generate",
    "render_image",
    "loose_occluders",
    "loose_people",
    "render_occluder",
    "sample_people",
    "sample_pose",
    "standing_occluders",
    "stream",
]
