"""Identities: separate namespaces and captions."""

import dataclasses
import json

import pytest

from occreid_jax.synthetic import DIFFICULTY, NAMESPACES, captions, sample_people
from occreid_jax.synthetic.people import owner


def test_namespaces_share_no_outfit_for_any_seed():
    outfits = {name: {p.outfit() for seed in (0, 1) for p in sample_people(seed, 150, name)} for name in NAMESPACES}
    for first in NAMESPACES:
        for second in NAMESPACES:
            assert first == second or not outfits[first] & outfits[second]


def test_people_are_different_and_belong_to_their_namespace():
    people = sample_people(3, 300, "test")
    assert len({p.outfit() for p in people}) == 300
    assert {owner(p) for p in people} == {"test"}


def test_a_longer_sample_begins_with_the_shorter_one():
    assert sample_people(5, 40, "train")[:10] == sample_people(5, 10, "train")


def test_many_people_share_a_palette():
    people = sample_people(0, 150, "test")
    pairs = [frozenset((p.upper_colour, p.lower_colour)) for p in people]
    assert len(set(pairs)) <= DIFFICULTY.palettes < len(people) / 4


def test_unknown_namespace_is_refused():
    with pytest.raises(ValueError, match="unknown; take one of"):
        sample_people(0, 1, "validation")


def test_caption_names_the_attributes():
    for person in sample_people(0, 120, "pretrain"):
        text = captions(person)
        for word in (person.gender, person.hair_colour, person.upper, person.upper_colour, person.lower, person.lower_colour):
            assert word in text
        assert f"{person.shoes_colour} shoes" in text
        for item in (person.bag, person.headwear):
            assert item == "none" or f"{person.bag_colour} {item}" in text
        if person.pattern != "plain":
            assert f"{person.second_colour} {person.pattern}" in text
        assert ("scarf" in text) == person.scarf
        assert "a a" not in text and "  " not in text and "a orange" not in text


def test_caption_of_a_known_person():
    person = dataclasses.replace(
        sample_people(0, 1, "train")[0],
        gender="woman", stature=1.1, girth=1.0, hair_length="long", hair_colour="black", hair_style="loose",
        upper="t-shirt", upper_colour="red", second_colour="white", pattern="horizontally striped", contrast_sleeves=False,
        open_front=False, lower="jeans", lower_colour="blue", side_stripe=False, shoes_colour="white",
        bag="backpack", bag_colour="brown", headwear="none", scarf=False,
    )  # fmt: skip
    wanted = (
        "a tall woman with long black hair wearing a red and white horizontally striped t-shirt, blue jeans and white shoes, "
        "carrying a brown backpack"
    )
    assert captions(person) == wanted
    assert captions(json.loads(json.dumps(person.attributes()))) == wanted
