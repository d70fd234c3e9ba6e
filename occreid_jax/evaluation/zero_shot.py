"""What an image encoder knows of words without having been taught a class: captions found by pictures, attributes by prompts.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 3.1 (classes
as sentences, several sentences of a class averaged). Pure functions of features of unit length; numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def caption_retrieval(images: np.ndarray, captions: np.ndarray, own: np.ndarray) -> dict[str, float]:
    """How well pictures find their caption among all captions, with what guessing would reach beside it.

    Args:
      images: float [N, E], unit length.
      captions: float [M, E], unit length.
      own: int [N], the row of ``captions`` that belongs to each picture.

    Returns:
      ``rank1`` and ``rank5`` in percent, ``mean_rank`` (1 is best), and ``chance_rank1`` ...; captions that are exactly as alike
      as the own one count as better. ``pictures`` and ``captions`` are the counts.

    Raises ValueError if there is nothing to compare.
    """
    if not len(images) or not len(captions):
        raise ValueError("caption retrieval needs at least one picture and one caption")
    similarity = images.astype(np.float64) @ captions.astype(np.float64).T
    mine = np.take_along_axis(similarity, np.asarray(own)[:, None], axis=1)
    ranks = (similarity >= mine).sum(axis=1)
    total = len(captions)
    return {
        "pictures": len(images),
        "captions": total,
        "rank1": percent(np.mean(ranks <= 1)),
        "chance_rank1": percent(1 / total),
        "rank5": percent(np.mean(ranks <= 5)),
        "chance_rank5": percent(min(5, total) / total),
        "mean_rank": round(float(ranks.mean()), 2),
        "chance_mean_rank": (total + 1) / 2,
    }


def class_features(features: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """The class of several prompts each: features float [sum of counts, E] of all prompts -> their means, unit length [C, E]."""
    sums = np.add.reduceat(features.astype(np.float64), np.cumsum([0, *counts[:-1]]), axis=0)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def attribute_accuracy(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share of the pictures whose most alike class is their own, and the share of the most frequent class beside it; and the same
    share as a mean over the classes that occur (``balanced``), which is ``chance`` for whoever sees nothing, always names one
    class, or guesses by frequency.

    ``images`` float [N, E], ``classes`` float [C, E], ``labels`` int [N] in 0 .. C - 1. Percent. ValueError without pictures.
    """
    if not len(images):
        raise ValueError("attribute accuracy needs at least one picture")
    found = np.argmax(images.astype(np.float64) @ classes.astype(np.float64).T, axis=1)
    counts = np.bincount(labels, minlength=len(classes))
    right = np.bincount(labels[found == labels], minlength=len(classes))
    return {
        "pictures": len(images),
        "classes": len(classes),
        "accuracy": percent(np.mean(found == labels)),
        "majority": percent(counts.max() / len(labels)),
        "balanced": percent(np.mean(right[counts > 0] / counts[counts > 0])),
        "chance": percent(1 / np.count_nonzero(counts)),
    }


def likeness(features: np.ndarray) -> float:
    """Mean cosine of all pairs of rows of ``features`` float [N, E], unit length; 1 where a text tower gives N sentences one
    feature. ValueError for less than two."""
    if len(features) < 2:
        raise ValueError("likeness needs at least two sentences")
    cosines = features.astype(np.float64) @ features.astype(np.float64).T
    return float((cosines.sum() - np.trace(cosines)) / (len(features) * (len(features) - 1)))


def percent(share: float) -> float:
    return round(100.0 * float(share), 2)


def lines(figures: Mapping[str, Mapping]) -> list[str]:
    """Figures as a person reads them: ``{"whole": {"captions": caption_retrieval(...), "attributes": {name: ...}}, ...}``."""
    found = []
    for kind, entry in figures.items():
        c = entry["captions"]
        found.append(
            f"{kind} pictures ({c['pictures']:,}) -> captions of {c['captions']:,} unseen people: "
            f"R-1 {c['rank1']:.1f} (chance {c['chance_rank1']:.1f})  R-5 {c['rank5']:.1f} (chance {c['chance_rank5']:.1f})  "
            f"mean rank {c['mean_rank']:.1f} (chance {c['chance_mean_rank']:.1f})"
        )
        for name, a in entry["attributes"].items():
            found.append(
                f"  {name:14s} {a['accuracy']:5.1f} % of {a['pictures']:,} pictures, {a['classes']} classes "
                f"(most frequent class: {a['majority']:.1f} %); mean over classes {a['balanced']:.1f} % "
                f"(chance {a['chance']:.1f} %)"
            )
    return found
