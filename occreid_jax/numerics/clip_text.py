"""CLIP's raw text tower: token ids of prompts, their embedding, the text features.

The weights carry OpenAI's names. Token ids of prompts made of pinned words are computed without files; other prompts need the
tokenizer's vocabulary, and where it is not on this machine only the form of their ids is checked, which the comparison says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.nn.clip import TextTransformer
from occreid_jax.nn.prompt import END, START, pinned_ids, prefix_length, tokenize
from occreid_jax.nn.vit import Size
from occreid_jax.numerics.kind import Kind
from occreid_jax.weights.families.clip import TEXT, text_rules
from occreid_jax.weights.naming import LeftOut, import_arrays
from occreid_jax.weights.reference import Comparison, ReferenceFile
from occreid_jax.weights.trees import unflatten

BLOCKS = "transformer.resblocks."
HEAD_SIZE = 64  # of all of OpenAI's text towers; the weights do not tell
LEFT_OUT = (LeftOut("logit_scale", "no forward pass here uses the temperature"),)


def recognises(file: ReferenceFile) -> bool:
    names = {entry.name for entry in file.state}
    tower = {"token_embedding.weight", "positional_embedding", "text_projection", "ln_final.weight"} <= names
    return tower and any(name.startswith(BLOCKS) for name in names) and "encode_text" in file.outputs


def compare(file: ReferenceFile) -> Iterator[Comparison]:
    expected = file.outputs["tokens"]
    yield compare_tokens(file, file.config["texts"])
    ids = jnp.asarray(expected, jnp.int32)
    length = prefix_length(expected)
    tower, params = official_tower(file)

    @jax.jit
    def run(params, ids):
        embedded = tower.apply({"params": params}, ids[:1], method="embed_tokens")
        # Nothing after the last end token matters, and nothing after it is computed.
        return embedded, tower.apply({"params": params}, ids[:, :length])

    embedded, features = run(params, ids)
    for key, value in (("token_embedding_first_prompt", embedded), ("encode_text", features)):
        if key in file.outputs:
            yield file.compare(key, value)


def official_tower(file: ReferenceFile) -> tuple[TextTransformer, dict]:
    """The text tower of the file's sizes and its parameters."""
    arrays = {name: array for name, array in file.weights() if array is not None}
    weights, _ = import_arrays(arrays, text_rules(""), LEFT_OUT)
    weights = {path.removeprefix(TEXT): array for path, array in weights.items()}
    depth = 1 + max(int(path[len("block_") :].partition("/")[0]) for path in weights if path.startswith("block_"))
    width, embed = weights["projection"].shape
    tower = TextTransformer(
        Size(width, depth, width // HEAD_SIZE), embed, len(weights["pos_embed"]), len(weights["token_embedding"])
    )
    return tower, unflatten({path: jnp.asarray(array) for path, array in weights.items()})


def compare_tokens(file: ReferenceFile, texts: list[str]) -> Comparison:
    """Ids of all prompts with the tokenizer's files; without them those of the pinned words, and the form of the others.

    In the second case the comparison says how many prompts were computed. It fails where there is none.
    """
    expected = file.outputs["tokens"]
    length = expected.shape[1]
    try:
        return file.compare("tokens", tokenize(texts, length=length))
    except ValueError:  # the files are not here
        pass
    known = [number for number, text in enumerate(texts) if pinned_ids(text) is not None]
    values = np.full_like(expected, -1)
    values[known] = tokenize([texts[number] for number in known], length=length)
    formed = [number for number in range(len(texts)) if number not in known and well_formed(expected[number])]
    values[formed] = expected[formed]
    result = file.compare("tokens", values)
    if not known:
        return dataclasses.replace(result, problem="no prompt can be computed, the tokenizer's files are not here")
    return dataclasses.replace(
        result, reason=f"{len(known)} of {len(texts)} prompts, of the others the form only; the tokenizer's files are not here"
    )


def well_formed(ids: np.ndarray) -> bool:
    """Whether a row starts with the start token, has words, one end token larger than every word, and only zeros after it."""
    end = int(np.argmax(ids))
    words = ids[1:end]
    return bool(ids[0] == START and ids[end] == END and words.size and (0 <= words).all() and (words < START).all()
                and not ids[end + 1 :].any())  # fmt: skip


CLIP_TEXT = Kind(recognises, compare)
