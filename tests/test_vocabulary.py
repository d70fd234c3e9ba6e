"""The reduced vocabulary: CLIP's ids, complete for captions and prompts, and honest about the rest."""

import json

import numpy as np
import pytest

from occreid_jax import synthetic
from occreid_jax.assets import asset
from occreid_jax.errors import UserError
from occreid_jax.nn import prompt
from occreid_jax.vocabulary import CONTEXT, END, START, read_vocabulary, tiny_vocabulary


def test_rows_are_ids_in_ascending_order_with_padding_first_and_end_last():
    vocabulary = tiny_vocabulary()
    assert vocabulary.ids[0] == 0 and vocabulary.ids[-1] == END and START in vocabulary.ids
    np.testing.assert_array_equal(vocabulary.rows(vocabulary.ids), np.arange(len(vocabulary)))
    assert len(vocabulary) < 300


def test_words_have_the_ids_that_the_prompts_pin():
    vocabulary = tiny_vocabulary()
    assert all(vocabulary.words[word] == ids for word, ids in prompt.WORDS.items())
    prompts = [prompt.person_prompt(), prompt.person_prompt(4, "vehicle"), prompt.occluded_prompt()]
    texts = [each.text for each in prompts] + ["3 X, Y - z?"]
    np.testing.assert_array_equal(vocabulary.tokenize(texts), prompt.tokenize(texts))
    assert vocabulary.tokenize(texts).shape == (4, CONTEXT)
    for each in prompts:
        assert vocabulary.rows(each.ids).argmax() == each.eot


@pytest.mark.parametrize("namespace", synthetic.NAMESPACES)
def test_every_caption_and_prompt_can_be_told(namespace):
    vocabulary = tiny_vocabulary()
    texts = [text for values in synthetic.attribute_prompts().values() for each in values.values() for text in each]
    for number, person in enumerate(synthetic.sample_people(1, 200, namespace)):
        texts += [synthetic.captions(person), *synthetic.caption_variants(person.attributes(), "bush", 0, str(number))]
    rows = vocabulary.rows(vocabulary.tokenize(texts))
    assert rows.max() == len(vocabulary) - 1 and (rows.max(axis=1) == len(vocabulary) - 1).all()


def test_a_word_that_was_not_taught_is_named():
    with pytest.raises(ValueError, match="does not know the word 'spaceship' of 'a red spaceship'"):
        tiny_vocabulary().tokenize(["a red spaceship"])
    with pytest.raises(ValueError, match="token id 5 is not among"):
        tiny_vocabulary().rows(np.array([[START, 5, END]]))
    with pytest.raises(ValueError, match="only 4 fit"):
        tiny_vocabulary().tokenize(["a red red jacket"], 4)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "vocabulary.json"
    for content in ({}, {"ids": [0, 3], "words": {}}, {"ids": [0, 7, START, END], "words": {"red": [8]}}):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="no vocabulary.*install the package again"):
            read_vocabulary(path)


def test_assets():
    assert (asset("tiny_clip") / "vocabulary.json").is_file()
    with pytest.raises(UserError, match="no asset 'huge_clip'.*known: tiny_clip"):
        asset("huge_clip")
