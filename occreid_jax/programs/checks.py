"""Rules that the program of every training stage keeps. Each names what breaks it, in words; nothing means that it is kept.

They are meant for narrow encoders (backbone=micro): there a picture's pixels, a table's rows and a network's weights are told
apart by their sizes alone, and every kind of operation of a published size is in the program.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

from occreid_jax.programs.compiled import Facts
from occreid_jax.programs.figures import product_figures
from occreid_jax.programs.hlo import Array, Text, collective_kind, collective_results

LARGE = 2**20  # bytes: copies of smaller tables are passed over
COPIES = ("copy", "transpose", "reshape", "convert", "fusion", "pad", "concatenate", "slice")
# Tables that may be copied, and why.
COPIED = {"caption": "of the pretraining on rendered pictures alone: 12 MB where there are 24,000"}
LOOPS: tuple[str, ...] = ()  # scopes of loops that may stay: none
PARTLY = r"^text/pos_embed$"  # parameters of which only some rows have a gradient: those of as many tokens as sentences have
THIRDS = r"attn/qkv/kernel$"  # parameters that may be summed in three pieces: class token apart (`occreid_jax.nn.attention`)
# Parameters whose gradients may be summed more than once, and how often more. DPM's prototypes are compared as they are, as unit
# vectors, and squared under masks, in float32 products of 751 identities: 2 MB each beside 200 MB of the encoder.
AGAIN = {"prototypes/weight": 2}
# A learned weight, and a parameter of as many numbers as what is summed for it: one weight fuses two texts of every identity, and
# the fused ones have as many numbers as the classifier of their width, 1.4 MB beside 170 (DPL-ReID).
FUSED = {"fusion/alpha": "heads/head_1/classifier/kernel"}
WIDE_SHARE = 0.01  # of all FLOPs
# Float32 products that may be larger with a narrow encoder, and why.
WIDE = {
    r"transpose\(jvp\(.*/attn/": "backward of attention's softmax; one pass in bfloat16 on the matrix unit, 1 % of a ViT-B",
    r"^augment/": "resampling of pictures and occluders, whose cost does not grow with the encoder: below 0.1 % of a ViT-B",
    r"jvp\(.*(classifier|Dense)": "heads of identities and their losses stay in float32",
    r"^jvp\(jit\(_resize\)\)": "nine maps of parts on the grid of their labels (OGFR), whose cost does not grow with the encoder",
    r"jvp\(\)\)?/": "distances and logits of losses stay in float32",
}


def sent(text: Text) -> Iterator[tuple[str, Array, str]]:
    """Every array that a collective brings: (kind, array, scope of the instruction that made it, or of the collective)."""
    for each in text.collectives():
        for number, array in enumerate(collective_results(each)):
            source = text.operand(each, number)
            yield collective_kind(each), array, (source.scope if source is not None else "") or each.scope


def pixels_and_tables(text: Text, facts: Facts) -> list[str]:
    """No collective carries pictures or rows of a table: whole pictures stay on the chip that augments them."""
    rows = {shape[0] for shape in facts.tables.values()}
    return [
        f"{kind} of {array} ({scope})"
        for kind, array, scope in sent(text)
        if array.dtype == "u8" or rows & set(array.sides) or holds_pictures(array, facts.image_size)
    ]


def holds_pictures(array: Array, image_size: tuple[int, int]) -> bool:
    """Whether neighbouring sides of an array are height and width, or make up the numbers of a picture together."""
    height, width = image_size
    sides = array.sides
    if any(pair == (height, width) for pair in zip(sides[1:], sides[2:], strict=False)):
        return True
    runs = (math.prod(sides[a:b]) for a in range(len(sides)) for b in range(a + 1, len(sides) + 1))
    return any(numbers in (3 * height * width, 6 * height * width) for numbers in runs)


def reshuffling(text: Text, facts: Facts) -> list[str]:
    """No collective moves a batch's rows from chip to chip."""
    kinds = ("all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast")
    return [f"{kind} of {array} ({scope})" for kind, array, scope in sent(text) if kind in kinds]


def gradients_once(text: Text, facts: Facts) -> list[str]:
    """As many numbers of gradients are summed over the chips as parameters move: none twice, none left out.

    What has no more numbers than four of the longest vectors is passed over: biases and norms are little, the backward pass of
    batch normalisation sums others beside them, and a table of eight cameras is summed as one of ten rows. So are the pieces of
    `THIRDS` where they are as small, which may then be missing.
    """
    vectors = [shape[0] for shape in (facts.trained | facts.statistics).values() if len(shape) == 1]
    few = 4 * max(vectors, default=0)
    sizes = {path: math.prod(shape) for path, shape in facts.trained.items() if math.prod(shape) > few}
    trained, partly = sum(sizes.values()), sum(size for path, size in sizes.items() if re.search(PARTLY, path))
    partly += sum(size for path, size in sizes.items() if re.search(THIRDS, path) and size // 3 <= few)
    most = trained + sum(AGAIN.get(path, 0) * size for path, size in sizes.items())
    most += sum(sizes.get(alike, 0) for weight, alike in FUSED.items() if weight in facts.trained)
    found = sum(each.size for kind, each, scope in sent(text) if each.size > few and is_gradient(kind, each, scope, facts))
    told = f"{found:,} numbers of gradients are summed over the chips, but {trained:,} move"
    return [] if trained - partly <= found <= most else [told]


def is_gradient(kind: str, array: Array, scope: str, facts: Facts) -> bool:
    """Whether a summed array is a gradient: all is that is not known to be anything else.

    What is summed in the forward pass is none (statistics, banks, counts), nor are features of the whole batch.
    """
    if kind not in ("all-reduce", "reduce-scatter") or not array.dtype.startswith(("f", "bf")):
        return False
    whole_batch = len(array.sides) <= 3 and array.sides[:1] == (facts.batch_size,)
    forward = scope.startswith("jvp(") and "transpose(" not in scope
    return not whole_batch and not forward


def table_copies(text: Text, facts: Facts) -> list[str]:
    """No table is copied or changed in layout whole, but for those of `COPIED`.

    What is fetched ahead into the core's own memory beside other work is no such copy: it costs no time.
    """
    large = [sorted(shape) for name, shape in facts.tables.items() if len(shape) > 1 and name not in COPIED]
    return [
        f"{each.kind} {each.name} makes {array} ({each.scope})"
        for each in text.top
        if each.kind in COPIES
        for array in each.arrays
        if array.nbytes >= LARGE and sorted(array.sides) in large
    ]


def loops(text: Text, facts: Facts) -> list[str]:
    """No loop but those of `LOOPS`."""
    found = (each for each in text.instructions if each.kind == "while")
    return [f"loop {each.name} ({each.scope})" for each in found if not any(re.search(pattern, each.scope) for pattern in LOOPS)]


def wide_products(text: Text, facts: Facts) -> list[str]:
    """No float32 product takes more than `WIDE_SHARE` of the FLOPs, but for those of `WIDE`."""
    return [
        f"{100 * row['share']:.1f} % of the FLOPs are float32 products of {row['scope']}"
        for row in product_figures(text)["float32"]
        if row["share"] > WIDE_SHARE and not any(re.search(pattern, row["scope"]) for pattern in WIDE)
    ]


RULES: dict[str, Callable[[Text, Facts], list[str]]] = {
    "pixels": pixels_and_tables,
    "reshuffling": reshuffling,
    "gradients": gradients_once,
    "tables": table_copies,
    "loops": loops,
    "float32": wide_products,
}
