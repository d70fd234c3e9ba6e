"""English sentences about a person, whole or with a part of the attributes, in one grammar."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from occreid_jax.synthetic.occluders import OBJECTS
from occreid_jax.synthetic.palettes import COLOURS, HAIR
from occreid_jax.synthetic.people import BAGS, HAIR_LENGTHS, HEADWEAR, LOWERS, PATTERNS, UPPERS, Person
from occreid_jax.synthetic.streams import stream

TOPICS = ("upper", "lower", "gender", "details", "bag", "shoes", "hair", "headwear", "scarf", "build")
"""What a sentence may tell, the most telling first. ``details``: a garment's pattern, sleeves, stripe, and whether it is open."""
WORDS = 26
"""Words and punctuation marks that `caption_within` and `caption_variants` may use; the text tower's time grows with the longest
sentence."""
VARIANTS = 4
"""Sentences of one picture, see `caption_variants`."""
CLOSED = 18
"""Values that a fact of `fact_prompts` has at most to be told from all others of its kind in one step of training."""


def captions(attributes: Person | Mapping[str, Any], topics: Collection[str] = TOPICS) -> str:
    """Return an English sentence about an identity.

    Args:
        attributes: a `Person`, or what `Person.attributes` returned (as ``truth/identities.json`` holds it).
        topics: what to tell, of `TOPICS`; the person is "a person" where the gender is not among them.
    """
    person = attributes if isinstance(attributes, Person) else Person(**dict(attributes))
    words = _build(person) if "build" in topics else []
    words.append(person.gender if "gender" in topics else "person")
    sentence = f"{_article(words[0])} {' '.join(words)}"
    if "hair" in topics:
        style = "" if person.hair_style == "loose" else f" in a {person.hair_style}"
        sentence += f" with {person.hair_length} {person.hair_colour} hair{style}"
    wearing = _wearing(person, topics)
    if wearing:
        sentence += f" wearing {', '.join(wearing[:-1])}{' and ' if wearing[:-1] else ''}{wearing[-1]}"
    if "bag" in topics and person.bag != "none":
        sentence += f"{',' if wearing else ''} carrying {_article(person.bag_colour)} {person.bag_colour} {person.bag}"
    return sentence


def caption_within(attributes: Person | Mapping[str, Any], words: int = WORDS) -> str:
    """Return the sentence of as many `TOPICS`, from the first on, as ``words`` words and punctuation marks can tell."""
    texts = (captions(attributes, TOPICS[:count]) for count in range(len(TOPICS), 0, -1))
    return next((text for text in texts if length(text) <= words), captions(attributes, ()))


def length(text: str) -> int:
    """Return the number of words and punctuation marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def caption_variants(attributes: Mapping[str, Any], occluder: str, seed: int, picture: str) -> tuple[str, ...]:
    """Return `VARIANTS` sentences that are true of one picture, of `WORDS` words at most.

    That of `caption_within`, two with about half of the topics, and one with one or two. Many begin as CLIP's prompts do, and
    some name what stands in front of the person.

    Args:
        attributes: what `Person.attributes` returned.
        occluder: what covers the person, of `OBJECTS` or "person"; empty if nothing does.
        seed: whole number >= 0.
        picture: its name; the sentences depend on it, on the seed and on what they tell of.
    """
    rng = stream(seed, f"caption/{picture}")
    found = [caption_within(attributes)]
    telling = [topic for topic in TOPICS if topic != "details" and captions(attributes, (topic,)) != captions(attributes, ())]
    for count in (None, None, int(rng.integers(1, 3))):
        if count is None:
            topics = [topic for topic in TOPICS if rng.random() < 0.5]
        else:
            topics = [telling[number] for number in rng.permutation(len(telling))[:count]]
        while length(captions(attributes, topics)) > WORDS - 9:  # what follows here has up to nine more
            topics.pop(int(rng.integers(len(topics))))
        text = captions(attributes, topics)
        if rng.random() < 0.6:
            text = f"a photo of {text}"
        if occluder and rng.random() < 0.5:
            text += f" is occluded by {_in_front(occluder)}"
        found.append(text + ("." if rng.random() < 0.5 else ""))
    return tuple(found)


def fact_prompts() -> dict[str, dict[str, str]]:
    """Return sentences that tell one thing of a person and nothing else: fact -> value -> sentence.

    The facts are those of `facts`; a colour is told with the garment that has it.
    """

    def wearing(names) -> dict[str, str]:
        return {name: f"a photo of a person wearing {_with_article(name)}" for name in names}

    def coloured(things) -> list[str]:
        return [f"{colour} {thing}" for thing in things for colour in COLOURS]

    def carrying(names) -> dict[str, str]:
        return {name: f"a photo of a person carrying {_with_article(name)}" for name in names}

    def hair(names) -> dict[str, str]:
        return {name: f"a photo of a person with {name} hair" for name in names}

    lowers, bags = (*LOWERS, "leggings"), [bag for bag in BAGS if bag != "none"]
    patterned = [_patterned(pattern, upper) for pattern in PATTERNS if pattern != "plain" for upper in UPPERS]
    return {
        "gender": {value: f"a photo of a {value}" for value in ("man", "woman")},
        "upper": wearing(UPPERS),
        "lower": wearing(lowers),
        "shoes_colour": wearing(coloured(["shoes"])),
        "hair_colour": hair(HAIR),
        "hair_length": hair(HAIR_LENGTHS),
        "bag": carrying(bags),
        "headwear": wearing(value for value in HEADWEAR if value != "none"),
        "occluder": {value: f"a photo of a person is occluded by {_in_front(value)}" for value in (*OBJECTS, "person")},
        "coloured_upper": wearing(coloured(UPPERS)),
        "coloured_lower": wearing(coloured(lowers)),
        "coloured_bag": carrying(coloured(bags)),
        "patterned_upper": wearing(patterned),
    }


def facts(attributes: Mapping[str, Any], occluder: str) -> dict[str, str]:
    """Return what `fact_prompts` can tell of one picture: fact -> value, empty where there is nothing to tell.

    Args:
        attributes: what `Person.attributes` returned.
        occluder: what covers the person on this picture, of `OBJECTS` or "person"; empty if nothing does.
    """
    person = Person(**dict(attributes))
    bag = person.bag if person.bag != "none" else ""
    return {
        "gender": person.gender,
        "upper": person.upper,
        "lower": person.lower,
        "shoes_colour": f"{person.shoes_colour} shoes",
        "hair_colour": person.hair_colour,
        "hair_length": person.hair_length,
        "bag": bag,
        "headwear": person.headwear if person.headwear != "none" else "",
        "occluder": occluder,
        "coloured_upper": f"{person.upper_colour} {person.upper}",
        "coloured_lower": f"{person.lower_colour} {person.lower}",
        "coloured_bag": f"{person.bag_colour} {bag}" if bag else "",
        "patterned_upper": _patterned(person.pattern, person.upper) if person.pattern != "plain" else "",
    }


def attribute_prompts() -> dict[str, dict[str, tuple[str, ...]]]:
    """Return sentences that name one value of one attribute and nothing else of it: attribute -> value -> sentences.

    The attributes are fields of `Person` and ``occluder`` (what covers the person). A colour is told with every garment that can
    have it and a garment in every colour, so that the mean over the sentences is about the value alone.
    """
    lowers = (*LOWERS, "leggings")

    def worn(colour: str, thing: str) -> str:
        return f"a photo of a person wearing {_article(colour)} {colour} {thing}"

    def legs(colour: str, thing: str) -> str:
        return worn(colour, thing) if thing == "skirt" else f"a photo of a person wearing {colour} {thing}"

    def carried(colour: str, thing: str) -> str:
        return f"a photo of a person carrying {_article(colour)} {colour} {thing}"

    return {
        "gender": {value: (f"a photo of a {value}",) for value in ("man", "woman")},
        "upper": {value: tuple(worn(colour, value) for colour in COLOURS) for value in UPPERS},
        "upper_colour": {value: tuple(worn(value, upper) for upper in UPPERS) for value in COLOURS},
        "lower": {value: tuple(legs(colour, value) for colour in COLOURS) for value in lowers},
        "lower_colour": {value: tuple(legs(value, lower) for lower in lowers) for value in COLOURS},
        "shoes_colour": {value: (f"a photo of a person wearing {value} shoes",) for value in COLOURS},
        "hair_colour": {
            value: tuple(f"a photo of a person with {length} {value} hair" for length in HAIR_LENGTHS) for value in HAIR
        },
        "bag": {value: tuple(carried(colour, value) for colour in COLOURS) for value in BAGS if value != "none"},
        "occluder": {
            **{value: (f"a photo of a person is occluded by a {value}",) for value in OBJECTS},
            "person": ("a photo of a person is occluded by another person",),
        },
    }


def _build(person: Person) -> list[str]:
    words = []
    if person.stature > 1.05:
        words.append("tall")
    elif person.stature < 0.95:
        words.append("short")
    if person.girth > 1.14:
        words.append("broad")
    elif person.girth < 0.87:
        words.append("slim")
    return words


def _wearing(person: Person, topics: Collection[str]) -> list[str]:
    wearing = []
    if "upper" in topics:
        wearing.append(_upper_words(person, "details" in topics))
    if "lower" in topics:
        article = f"{_article(person.lower_colour)} " if person.lower == "skirt" else ""
        stripe = " with a side stripe" if person.side_stripe and "details" in topics else ""
        wearing.append(f"{article}{person.lower_colour} {person.lower}{stripe}")
    if "shoes" in topics:
        wearing.append(f"{person.shoes_colour} shoes")
    if "headwear" in topics and person.headwear != "none":
        wearing.append(f"{_article(person.bag_colour)} {person.bag_colour} {person.headwear}")
    if "scarf" in topics and person.scarf:
        wearing.append(f"{_article(person.bag_colour)} {person.bag_colour} scarf")
    return wearing


def _upper_words(person: Person, details: bool = True) -> str:
    if not details:
        return f"{_article(person.upper_colour)} {person.upper_colour} {person.upper}"
    parts = [person.upper]
    if person.pattern in ("logo", "sash"):
        parts.append(f"with a {person.second_colour} {person.pattern}")
    elif person.pattern == "plain":
        if person.contrast_sleeves:
            parts.append(f"with {person.second_colour} sleeves")
    else:
        parts.insert(0, person.pattern)
        parts[0] = f"and {person.second_colour} {person.pattern}"
    if person.pattern != "plain" and person.contrast_sleeves:
        parts.append(("and" if parts[-1] != person.upper else "with") + f" {person.second_colour} sleeves")
    text = f"{person.upper_colour} {' '.join(parts)}"
    if person.open_front:
        text = f"open {text}"
    return f"{_article(text)} {text}"


def _patterned(pattern: str, upper: str) -> str:
    return f"{upper} with a {pattern}" if pattern in ("logo", "sash") else f"{pattern} {upper}"


def _with_article(name: str) -> str:
    plural = name.endswith(("shoes", "trousers", "jeans", "shorts", "leggings"))
    return name if plural else f"{_article(name)} {name}"


def _in_front(occluder: str) -> str:
    return "another person" if occluder == "person" else f"a {occluder}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
