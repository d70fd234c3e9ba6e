"""Where the public sets are obtained and on what terms, as far as it is known, in a line each. No legal advice, and no link."""

from __future__ import annotations

DUKE = (
    "nowhere any more: DukeMTMC was withdrawn in 2019; it was CC BY-NC-SA 4.0, with attribution that sets made from it must "
    "carry; ask your institution before you use a copy"
)
AGREEMENT = "from its authors (ICME 2018) under a signed agreement: academic or educational use, not commercial"
TERMS = {
    "market1501": "from its authors (ICCV 2015), for research; the people in it were not asked",
    "dukemtmc": DUKE,
    "occluded_duke": f"as lists of names from its authors (ICCV 2019), and DukeMTMC-reID {DUKE}",
    "occluded_reid": AGREEMENT,
    "p_dukemtmc": f"{AGREEMENT}; its pictures are obtained {DUKE}",
    "partial_reid": "from its authors (ICCV 2015), for research",
    "msmt17": "from its owners (CVPR 2018) on request by e-mail, for research; many copies lack the lists",
    "occluded_market": "as lists of names from its authors, with Market-1501 and MARS, each for research from its own",
}
"""Set -> the end of a sentence that begins with "it is obtained"."""

SHARED = (
    ("p_dukemtmc", ("dukemtmc", "occluded_duke"), "pictures and people of DukeMTMC, split in another way"),
    ("occluded_market", ("market1501",), "people of Market-1501's gallery in its training set"),
)
"""Sets of which one must not be trained on to be tested on the other: one, the others, and why."""


def shared(trained: str, tested: str) -> str:
    """Why a model that was trained on one set must not be tested on another, in a sentence; "" if nothing is known."""
    for one, others, why in SHARED:
        if (trained == one and tested in others) or (tested == one and trained in others and one != "occluded_market"):
            return f"a model trained on {trained} is tested on {tested}: {one} has {why}, so the result is not one"
    return ""


def told(name: str) -> str:
    """One sentence on a public set; "" for one's own and for rendered ones."""
    return f"{name} is obtained {TERMS[name]}" if name in TERMS else ""
