"""Single images and their truth maps."""

import dataclasses
import math

import numpy as np
import pytest

from occreid_jax.synthetic import (
    DIFFICULTY,
    OBJECTS,
    OCCLUDED,
    Pose,
    cameras,
    render_image,
    render_occluder,
    sample_people,
    sample_pose,
    stream,
)
from occreid_jax.synthetic.body import viewpoint

SIZE = (128, 64)


def _person(**changes):
    return dataclasses.replace(sample_people(0, 1, "train")[0], bag="none", **changes)


def _middle(truth, label):
    return float(np.nonzero((truth & 15) == label)[1].mean())


@pytest.mark.parametrize("left, right", [(2, 3), (5, 6), (7, 8)])
def test_left_and_right_are_the_persons_own(left, right):
    camera = cameras(0)[0]
    front = render_image(_person(), camera, Pose(yaw=0.0), None, stream(0, "test", 1)).truth
    back = render_image(_person(), camera, Pose(yaw=math.pi), None, stream(0, "test", 1)).truth
    assert _middle(front, left) > _middle(front, right)
    assert _middle(back, left) < _middle(back, right)


@pytest.mark.parametrize("yaw, near, far", [(math.pi / 2, 3, 2), (-math.pi / 2, 2, 3)])
def test_a_side_view_shows_the_near_arm(yaw, near, far):
    person = _person(hair_length="short", upper="t-shirt")
    truth = render_image(person, cameras(0)[0], Pose(yaw=yaw, swing=0.1), None, stream(0, "test", 2)).truth
    assert np.sum(truth == near) > np.sum(truth == far)


def test_walking_to_the_right_shows_the_right_side():
    assert [viewpoint(k * math.pi / 2) for k in (0, 1, 2, -1)] == ["front", "right", "back", "left"]


def test_head_lies_above_torso_above_feet():
    truth = render_image(_person(), cameras(0)[0], Pose(yaw=0.3), None, stream(0, "test", 3)).truth
    rows = [np.nonzero(np.isin(truth & 15, labels))[0].mean() for labels in ((1,), (4,), (5, 6), (7, 8))]
    assert rows == sorted(rows)


@pytest.mark.parametrize("kind", [*OBJECTS, "crop", "person"])
def test_covered_fraction_is_what_the_map_shows(kind):
    people = sample_people(0, 12, "test")
    views = cameras(0)
    for number, person in enumerate(people[:6]):
        rng = stream(0, "test/covered", number)
        camera = views[number % 6]
        pose = sample_pose(camera, rng)
        picture = render_image(person, camera, pose, people[6 + number] if kind == "person" else kind, rng, SIZE)
        assert picture.image.shape == (*SIZE, 3) and picture.image.dtype == np.uint8
        assert picture.truth.shape == SIZE and picture.truth.dtype == np.uint8
        assert DIFFICULTY.covered_low <= picture.covered <= DIFFICULTY.covered_high
        label, hidden = picture.truth & 15, (picture.truth & OCCLUDED) > 0
        assert label.max() <= 8 and picture.truth.max() < 32
        shown = np.mean(hidden[label > 0])
        if kind == "crop":
            assert picture.occlusion == "crop" and not hidden.any()
        else:
            assert shown <= picture.covered + 1e-9  # the frame may cut a little more away
            assert picture.covered - shown < 0.12
            assert picture.occlusion in (("person", "object") if kind == "person" else ("object",))


def test_without_an_occluder_nothing_is_covered():
    camera = cameras(0)[2]
    for number, person in enumerate(sample_people(0, 10, "train")):
        rng = stream(0, "test/free", number)
        picture = render_image(person, camera, sample_pose(camera, rng), None, rng, SIZE)
        assert picture.occlusion == "none" and not (picture.truth & OCCLUDED).any()
        assert picture.covered < 0.2


def test_what_is_carried_hides_no_body_part():
    person = _person()
    bare, laden = (
        render_image(dataclasses.replace(person, bag=bag), cameras(0)[0], Pose(yaw=0.4), None, stream(0, "test", 4))
        for bag in ("none", "handbag")
    )
    assert np.array_equal(bare.truth, laden.truth) and not np.array_equal(bare.image, laden.image)


@pytest.mark.parametrize("kind", OBJECTS)
def test_cut_outs(kind):
    cut = render_occluder(kind, stream(0, "cut"), 60, 80)
    assert cut.shape == (60, 80, 4) and cut.dtype == np.uint8
    assert 0.15 < np.mean(cut[..., 3] > 127) <= 1.0
    assert np.array_equal(cut, render_occluder(kind, stream(0, "cut"), 60, 80))


def test_unknown_occluders_are_refused():
    with pytest.raises(ValueError, match="take one of"):
        render_occluder("cloud", stream(0, "cut"), 10, 10)
    with pytest.raises(ValueError, match="take one of"):
        render_image(_person(), cameras(0)[0], Pose(yaw=0.0), "cloud", stream(0, "cut"))


def test_cameras_differ_from_each_other_and_between_namespaces():
    person, pose = _person(), Pose(yaw=0.2)
    means = []
    for namespace in ("benchmark", "pretrain"):
        for camera in cameras(0, namespace):
            means.append(render_image(person, camera, pose, None, stream(0, "test", 5)).image.mean(axis=(0, 1)))
    gaps = [np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]]
    assert min(gaps) > 0.5 and np.median(gaps) > 8
