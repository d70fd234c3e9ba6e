"""Sentences about people: whole, short, and as prompts."""

import re

from occreid_jax.data.captions import Described
from occreid_jax.synthetic import (
    CLOSED,
    OBJECTS,
    TOPICS,
    VARIANTS,
    attribute_prompts,
    caption_variants,
    caption_within,
    captions,
    fact_prompts,
    facts,
    sample_people,
)
from occreid_jax.synthetic.sentences import WORDS, length

PEOPLE = sample_people(0, 150, "pretrain")


def test_a_topic_tells_what_it_says_and_nothing_else():
    for person in PEOPLE:
        assert captions(person, ()) == "a person"
        assert captions(person, ("gender",)) == f"a {person.gender}"
        assert captions(person, ("shoes",)) == f"a person wearing {person.shoes_colour} shoes"
        upper = captions(person, ("upper",))
        assert re.fullmatch(rf"a person wearing an? {person.upper_colour} {person.upper}", upper)
        assert captions(person, ("details",)) == "a person"
        assert (captions(person, ("bag",)) == "a person") == (person.bag == "none")
        assert captions(person, TOPICS) == captions(person) == captions(person.attributes())


def test_short_sentences_fit_and_keep_the_first_topics():
    for person in PEOPLE:
        text = caption_within(person)
        assert length(text) <= WORDS
        assert person.gender in text and person.upper in text and person.lower_colour in text
        if length(captions(person)) <= WORDS:
            assert text == captions(person)
    assert caption_within(PEOPLE[0], 0) == "a person"


def test_variants_are_true_short_and_the_same_again():
    occluded = 0
    for number, person in enumerate(PEOPLE):
        picture = f"query/{number}.jpg"
        for occluder in ("", "car", "person"):
            found = caption_variants(person.attributes(), occluder, 3, picture)
            assert found == caption_variants(person.attributes(), occluder, 3, picture)
            assert len(found) == VARIANTS and all(length(text) <= WORDS for text in found)
            assert found[0] == caption_within(person)
            told = [text for text in found if "occluded" in text]
            assert not told or occluder
            assert all(("another person" if occluder == "person" else f"a {occluder}") in text for text in told)
            occluded += bool(told)
            other = "man" if person.gender == "woman" else "woman"
            assert not any(other in text.split() for text in found)
        assert found != caption_variants(person.attributes(), "person", 4, picture)
    assert occluded > 100


def test_prompts_name_every_value():
    prompts = attribute_prompts()
    for person in PEOPLE:
        for name, values in prompts.items():
            if name not in ("occluder", "bag"):
                assert getattr(person, name) in values
    assert set(prompts["occluder"]) == {*OBJECTS, "person"}
    for values in prompts.values():
        for value, texts in values.items():
            word = "another person" if value == "person" else value
            assert texts and all(f" {word}" in text and "  " not in text for text in texts)
    assert prompts["upper"]["jacket"][0] == "a photo of a person wearing a black jacket"
    assert "a photo of a person wearing an olive coat" in prompts["upper_colour"]["olive"]


def test_a_described_picture_has_what_variants_take():
    person = PEOPLE[0]
    picture = Described(person.attributes(), captions(person), "pole")
    assert len(caption_variants(picture.attributes, picture.occluder, 0, "x")) == VARIANTS


def test_a_fact_is_told_of_everybody_it_is_true_of():
    prompts = fact_prompts()
    for person in PEOPLE:
        for occluder in ("", "car", "person"):
            told = facts(person.attributes(), occluder)
            assert list(told) == list(prompts) and told["occluder"] == occluder
            assert all(value in prompts[fact] for fact, value in told.items() if value)
            assert (told["bag"] == "") == (told["coloured_bag"] == "") == (person.bag == "none")
            assert (told["patterned_upper"] == "") == (person.pattern == "plain")
        assert prompts["upper"][told["upper"]] == f"a photo of a person wearing a {person.upper}"
        assert prompts["coloured_upper"][told["coloured_upper"]].endswith(f"{person.upper_colour} {person.upper}")
        assert prompts["coloured_lower"][told["coloured_lower"]] in attribute_prompts()["lower_colour"][person.lower_colour]
        assert prompts["hair_length"][told["hair_length"]] == f"a photo of a person with {person.hair_length} hair"
    assert prompts["occluder"]["person"] == attribute_prompts()["occluder"]["person"][0]
    assert prompts["shoes_colour"]["olive shoes"] == "a photo of a person wearing olive shoes"


def test_a_fact_tells_nothing_else():
    texts = [text for values in fact_prompts().values() for text in values.values()]
    assert len(texts) == len(set(texts))
    assert [len(values) for values in fact_prompts().values() if len(values) <= CLOSED] == [2, 6, 5, 18, 5, 3, 4, 2, 10]
    assert "a photo of a person wearing a horizontally striped coat" in texts
    assert "a photo of a person wearing a dress with a sash" in texts and "a photo of a person carrying a handbag" in texts
