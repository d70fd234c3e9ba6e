"""Prompts as CLIP's token ids: the templates with learned words that the methods use, and the tokenizer for other texts.

Source: Radford et al., ICML 2021, ``clip/simple_tokenizer.py``; Li et al., "CLIP-ReID", AAAI 2023, ``PromptLearner``; the two
templates of DPL-ReID (arXiv 2605.19527). The ids of the templates are pinned here, so that no vocabulary file is needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.vocabulary import CONTEXT, END, START

Array = jax.Array

TOKENIZER = "openai/clip-vit-base-patch16"  # all of OpenAI's CLIP networks share one vocabulary
WORDS = {
    "photo": (1125,),
    "of": (539,),
    "person": (2533,),
    "vehicle": (5299,),
    "is": (533,),
    "occluded": (1566, 996, 1241),
    "by": (638,),
}


class Prompt(NamedTuple):
    """A text in which learned vectors stand in for some words."""

    text: str
    ids: np.ndarray  # int32 [77]
    slots: tuple[tuple[int, ...], ...]  # positions of the learned vectors, one tuple for X and one for Y if there is one
    eot: int  # position of the end token

    @property
    def length(self) -> int:
        """The shortest prefix that holds the end token; nothing after it matters."""
        return self.eot + 1


def person_prompt(words: int = 4, subject: str = "person") -> Prompt:
    """CLIP-ReID's "A photo of a X X X X person." with ``words`` learned ones; ``subject`` is a key of `WORDS`."""
    return template(f"A photo of a {' '.join('X' * words)} {subject}.", "X")


def occluded_prompt(words: int = 4, occluder_words: int = 4) -> Prompt:
    """DPL-ReID's "A photo of a X X X X person is occluded by Y Y Y Y." with so many X and Y."""
    return template(f"A photo of a {' '.join('X' * words)} person is occluded by {' '.join('Y' * occluder_words)}.", "XY")


def template(text: str, letters: str) -> Prompt:
    """``text`` with a slot for each of ``letters``, wherever it stands alone. ValueError if a letter is not there."""
    ids = tokenize([text])[0]
    slots = tuple(tuple(np.flatnonzero(ids == letter_id(letter.lower())).tolist()) for letter in letters)
    if not all(slots):
        raise ValueError(f"'{text}' lacks one of the words {', '.join(letters)} that are to be learned")
    return Prompt(text, ids, slots, int(ids.argmax()))


def insert(embedded: Array, positions: Sequence[int], vectors: Array) -> Array:
    """Learned ``vectors`` [B, n, W] at ``positions`` (n of them) of ``embedded`` [L, W] or [B, L, W] -> [B, L, W]."""
    shape = (vectors.shape[0], *embedded.shape[-2:])
    return jnp.broadcast_to(embedded, shape).at[:, np.asarray(positions)].set(vectors.astype(embedded.dtype))


def prefix_length(ids: np.ndarray) -> int:
    """The shortest prefix of token ids int [B, L] that holds every row's end token: 12 for CLIP-ReID's prompt. On the host."""
    return int(np.asarray(ids).argmax(axis=-1).max()) + 1


def letter_id(character: str) -> int:
    """Id of one printable ASCII character that is a word of its own: the vocabulary begins with them, and its second 256 ids are
    the same with the mark of a word's end."""
    return ord(character) - ord("!") + 256


def pinned_ids(text: str) -> list[int] | None:
    """Ids of the words of ``text`` without start and end, or None if it has a word that is not in `WORDS`.

    Digits and single characters need no table. Apostrophes have rules of their own, as have characters beyond ASCII.
    """
    ids: list[int] = []
    if not text.isascii() or not text.replace("\n", " ").replace("\t", " ").isprintable():
        return None
    for word in re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()):
        if word in WORDS:
            ids += WORDS[word]
        elif len(word) == 1 and word != "'":
            ids.append(letter_id(word))
        else:
            return None
    return ids


def tokenize(texts: Sequence[str], folder: str | Path | None = None, length: int = CONTEXT) -> np.ndarray:
    """Token ids int32 [texts, length]: start, the words, end, zeros.

    Texts whose words are all in `WORDS` need no files. For others transformers' ``CLIPTokenizer`` is read from ``folder`` (its
    vocab.json and merges.txt, or tokenizer.json), or from the local cache of `TOKENIZER`; nothing is downloaded. ValueError if
    it is not there, or a text has more than ``length`` tokens.
    """
    rows = [pinned_ids(text) for text in texts] if folder is None else [None] * len(texts)
    if any(row is None for row in rows):
        tokenizer = load_tokenizer(folder)
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] if row is None else row
                for text, row in zip(texts, rows, strict=True)]  # fmt: skip
    ids = np.zeros((len(texts), length), np.int32)
    for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
        if len(row) + 2 > length:
            raise ValueError(f"'{text}' has {len(row) + 2} tokens with start and end; only {length} fit")
        ids[number, : len(row) + 2] = [START, *row, END]
    return ids


def load_tokenizer(folder: str | Path | None = None):
    """transformers' ``CLIPTokenizer`` from ``folder`` or the local cache; ValueError where its files are not found."""
    from transformers import CLIPTokenizer

    where = TOKENIZER if folder is None else str(folder)
    hint = "the tokenizer's files (vocab.json and merges.txt, or tokenizer.json)"
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder; give one with {hint}")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(where, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{where}: cannot read {hint} there; download them once and give their folder") from error
    # Where only a part of the files is found, some versions of transformers build a tokenizer without words.
    if len(tokenizer) <= END or tokenizer.convert_tokens_to_ids("<|endoftext|>") != END:
        raise ValueError(f"{where}: cannot find {hint} of CLIP there; download them once and give their folder")
    return tokenizer
