"""The reduced vocabulary of the tiny CLIP: which of CLIP's token ids it has, and the ids of the words that it was taught.

CLIP's own vocabulary has 49,408 entries. The tiny one keeps those of its captions and of the methods' prompts, sorted by id, so
that the padding 0 stays first and the end token last, as `occreid_jax.nn.clip.TextTransformer` needs it. The ids are CLIP's
(Radford et al., ICML 2021): a text has the same ones here and there.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from occreid_jax.assets import asset
from occreid_jax.errors import UserError
from occreid_jax.files import read_json

START, END = 49406, 49407
CONTEXT = 77  # tokens of a text, with start, end and the zeros after it


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """``ids`` int32 [rows], ascending: the id of CLIP that each row of a token embedding stands for."""

    ids: np.ndarray
    words: Mapping[str, tuple[int, ...]]  # in small letters; single printable ASCII characters need no entry

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """CLIP's ids int [...] -> rows int32 [...]. ValueError, naming it, for an id that is not in this vocabulary."""
        ids = np.asarray(ids)
        rows = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        unknown = np.unique(ids[self.ids[rows] != ids])
        if len(unknown):
            raise ValueError(f"CLIP's token id {unknown[0]} is not among the {len(self):,} of the tiny CLIP")
        return rows.astype(np.int32)

    def tokenize(self, texts: Sequence[str], length: int = CONTEXT) -> np.ndarray:
        """CLIP's ids int32 [texts, length]: start, the words, end, zeros.

        ValueError for a word that is not in this vocabulary, and for a text of more than ``length`` tokens.
        """
        ids = np.zeros((len(texts), length), np.int32)
        for number, text in enumerate(texts):
            row = [START, *(token for word in split(text) for token in self.word(word, text)), END]
            if len(row) > length:
                raise ValueError(f"'{text}' has {len(row)} tokens with start and end; only {length} fit")
            ids[number, : len(row)] = row
        return ids

    def word(self, word: str, text: str = "") -> tuple[int, ...]:
        """CLIP's ids of one word of ``text``."""
        if word in self.words:
            return self.words[word]
        if len(word) == 1 and "!" <= word <= "~":
            return (ord(word) - ord("!") + 256,)
        raise ValueError(f"the tiny CLIP does not know the word '{word}'" + (f" of '{text}'" if text else ""))


def split(text: str) -> list[str]:
    """Words, single digits and runs of punctuation, in small letters, as CLIP's tokenizer cuts plain English."""
    return re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower())


@functools.cache
def tiny_vocabulary() -> Vocabulary:
    """The vocabulary that ships with the package."""
    return read_vocabulary(asset("tiny_clip") / "vocabulary.json")


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Reads a file ``{"ids": [...], "words": {word: [id, ...]}}``. `UserError` if it is damaged."""
    stored = read_json(Path(path))
    try:
        ids = np.array(stored["ids"], np.int32)
        words = {word: tuple(map(int, tokens)) for word, tokens in stored["words"].items()}
        whole = ids[0] == 0 and ids[-1] == END and START in ids and bool(np.all(np.diff(ids) > 0))
        if not whole or not np.isin([token for tokens in words.values() for token in tokens], ids).all():
            raise ValueError("ids must ascend from 0 to the end token and hold those of every word")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: no vocabulary ({error}); install the package again") from error
    ids.setflags(write=False)
    return Vocabulary(ids, words)
