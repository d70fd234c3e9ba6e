"""Token ids of the prompts, computed without vocabulary files, and what happens where those are needed."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from occreid_jax.nn import prompt

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "clip_text_raw.npz"
PERSON = [49406, 320, 1125, 539, 320, 343, 343, 343, 343, 2533, 269, 49407]


def test_prompt_of_clip_reid():
    """Baselines sheet, section 3.5 and oracle 8; DPM++ sheet, oracle 11."""
    made = prompt.person_prompt()
    assert made.text == "A photo of a X X X X person."
    assert made.ids.dtype == np.int32 and made.ids.shape == (77,)
    assert made.ids.tolist() == PERSON + [0] * 65
    assert made.slots == ((5, 6, 7, 8),) and made.eot == 11 and made.length == 12
    vehicle = prompt.person_prompt(subject="vehicle").ids
    assert vehicle[9] == 5299 and np.array_equal(np.delete(vehicle, 9), np.delete(made.ids, 9))


def test_prompts_of_dpl_reid():
    """DPL-ReID sheet, table 3.3 and oracle 1."""
    made = prompt.occluded_prompt()
    expected = [49406, 320, 1125, 539, 320, 343, 343, 343, 343, 2533, 533, 1566, 996, 1241, 638, 344, 344, 344, 344, 269, 49407]
    assert made.text == "A photo of a X X X X person is occluded by Y Y Y Y."
    assert made.ids.tolist() == expected + [0] * 56
    assert made.slots == ((5, 6, 7, 8), (15, 16, 17, 18)) and made.eot == 20 and made.length == 21
    longer = prompt.occluded_prompt(4, 6)
    assert longer.slots[1] == tuple(range(15, 21)) and longer.eot == 22
    for words, occluder_words in ((2, 4), (6, 2)):  # Y starts at M + 11 and the end is at M + N + 12
        made = prompt.occluded_prompt(words, occluder_words)
        assert made.slots[1][0] == words + 11 and made.eot == words + occluder_words + 12


def test_ids_are_those_of_the_official_tokenizer():
    with np.load(REFERENCE, allow_pickle=False) as file:
        texts, expected = json.loads(str(file["config_json"]))["texts"], file["out.tokens"]
    known = [number for number, text in enumerate(texts) if prompt.pinned_ids(text) is not None]
    assert known
    np.testing.assert_array_equal(prompt.tokenize([texts[number] for number in known]), expected[known])


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("Photo  of\n3 PERSON", [1125, 539, 274, 2533]),
        ("a,b!", [320, 267, 321, 256]),
        ("12", [272, 273]),
        ("a person's", None),
        ("a!!", None),
        ("caf\u00e9", None),
        ("a red person", None),
    ],
)
def test_which_texts_need_no_files(text, ids):
    assert prompt.pinned_ids(text) == ids


def test_other_texts_need_the_files_of_the_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        prompt.tokenize(["a photo"], tmp_path / "none")
    with pytest.raises(ValueError, match="the tokenizer's files"):
        prompt.tokenize(["a red bag"], tmp_path)


def test_files_of_a_tokenizer_are_read(tmp_path):
    """A vocabulary of CLIP's size, byte by byte in its order, in which "re" and "red" are the only merges."""
    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in codes] + [chr(256 + number) for number in range(256 - len(codes))]
    merged = ["re", "red</w>"]
    filling = [f"filling{number}" for number in range(prompt.START - 2 * 256 - len(merged))]
    words = [*letters, *(letter + "</w>" for letter in letters), *merged, *filling, "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    ids = prompt.tokenize(["Red, a", "ree"], tmp_path, length=8)
    assert ids.dtype == np.int32
    single = prompt.letter_id("e")
    assert ids.tolist() == [[49406, 513, 267, 320, 49407, 0, 0, 0], [49406, 512, single, 49407, 0, 0, 0, 0]]


def test_texts_that_are_too_long():
    assert prompt.tokenize(["a " * 75]).shape == (1, 77)
    with pytest.raises(ValueError, match="78 tokens with start and end; only 77 fit"):
        prompt.tokenize(["a " * 76])


def test_a_template_must_have_its_words():
    with pytest.raises(ValueError, match="that are to be learned"):
        prompt.template("a photo of a person.", "X")


def test_learned_vectors_are_put_in_their_places():
    embedded = jnp.arange(24.0).reshape(12, 2)
    vectors = -jnp.ones((3, 4, 2))
    out = prompt.insert(embedded, (5, 6, 7, 8), vectors)
    assert out.shape == (3, 12, 2)
    np.testing.assert_array_equal(out[:, 5:9], vectors)
    np.testing.assert_array_equal(out[1, :5], embedded[:5])
    np.testing.assert_array_equal(out[2, 9:], embedded[9:])
    twice = prompt.insert(out, (0, 1), jnp.zeros((3, 2, 2)))
    assert not twice[:, :2].any() and (twice[:, 5:9] == -1).all()


def test_shortest_prefix():
    ids = np.stack([prompt.person_prompt().ids, prompt.occluded_prompt().ids])
    assert prompt.prefix_length(ids[:1]) == 12 and prompt.prefix_length(ids) == 21
