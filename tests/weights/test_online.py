"""Weights straight from the hub. Not run by default, since it downloads:  pytest -m online"""

import numpy as np
import pytest

from occreid_jax.nn.prompt import load_tokenizer, person_prompt, tokenize
from occreid_jax.weights.port import port
from occreid_jax.weights.sources import read_source

pytestmark = [pytest.mark.online, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("source", "family", "kind"),
    [
        ("hf-internal-testing/tiny-random-CLIPModel", "clip_huggingface", "clip"),
        ("google/vit-base-patch16-224-in21k", "vit_huggingface", "encoder"),
        ("timm/vit_base_patch16_224.augreg_in21k", "vit", "encoder"),
        ("openai/clip-vit-base-patch16", "clip_huggingface", "clip"),
    ],
)
def test_hub_ids_are_ported_with_every_tensor_explained(source, family, kind):
    arrays, origin = read_source(source)
    ported = port(arrays)
    assert (ported.family, ported.kind) == (family, kind)
    assert len(ported.entries) == len(arrays) and origin.source == source
    assert all(np.isfinite(array).all() for array in ported.weights.values())


def test_pinned_prompt_is_what_the_tokenizer_says():
    from transformers import CLIPTokenizer

    CLIPTokenizer.from_pretrained("openai/clip-vit-base-patch16")  # fills the local cache
    words = load_tokenizer()("a photo of a x x x x person.")["input_ids"]
    prompt = person_prompt()
    np.testing.assert_array_equal(prompt.ids[: len(words)], words)
    np.testing.assert_array_equal(tokenize(["a photo of a person."])[0, :7], [49406, 320, 1125, 539, 320, 2533, 269])
