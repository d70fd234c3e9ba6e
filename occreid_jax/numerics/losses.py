"""Losses and their gradients on stored random features, as TransReID, CLIP-ReID, torchreid and fast-reid compute them.

Every margin, scale and smoothing is read from the key of an output (``arcface.s30_m0.5_ls0.1.logits``), from the config or from
the notes. A few stand nowhere in such a file; they are the official defaults below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.losses.contrastive import image_text_contrastive, supervised_contrastive
from occreid_jax.losses.identity import adaptive_smoothing, cross_entropy
from occreid_jax.losses.margin import am_softmax, arcface, circle, cosface
from occreid_jax.losses.metric import batch_distances, batch_hard_triplet, centre_loss, hardest_pairs, weighted_triplet
from occreid_jax.losses.totals import clip_reid_total, transreid_total
from occreid_jax.numerics.kind import NUMBER, Kind, first_words, grouped, words
from occreid_jax.weights.reference import Comparison, ReferenceFile

SMOOTHING = 0.1  # fixed in CrossEntropyLabelSmooth of TransReID, CLIP-ReID and torchreid, which "on" switches on
MARGIN = 0.3  # SOLVER.MARGIN of CLIP-ReID and the default of the triplets of torchreid and fast-reid; see `Arrays.margin`
ADAPTIVE_SHARE = 0.2  # alpha of fast-reid's adaptive label smoothing, which eps -1 asks for
IDENTITY_WEIGHTS = {"vit": 0.25, "cnn": 1.0}  # MODEL.ID_LOSS_WEIGHT in CLIP-ReID's configs of the two networks
TIE = 2e-6  # distances that agree to this share are equally far in float32

Outputs = dict[str, jax.Array]
Handler = Callable[["Arrays", str, list[str]], "Outputs | None"]


class Arrays:
    """The stored inputs as JAX arrays: ``features`` [B, D], ``logits`` [B, C], ``labels`` int32 [B], others by name."""

    def __init__(self, file: ReferenceFile):
        self.file = file
        self.features, self.logits = self["feat"], self["logits"]
        self.labels = self["label"].astype(jnp.int32)

    def __getitem__(self, name: str) -> jax.Array:
        return jnp.asarray(self.file.input(name))

    def margin(self, found: dict[str, str]) -> float | None:
        """Margin of a triplet whose key was read into ``found``: None is the soft one.

        A key that names none means the config's ``margin``, else the one margin that other triplets' keys name, else `MARGIN`.
        """
        if "soft" in found:
            return None
        named = {match[1] for key in self.file.outputs if (match := re.search(rf"triplet\.(?:\w*_)?m({NUMBER})", key))}
        usual = self.file.config.get("margin", named.pop() if len(named) == 1 else MARGIN)
        return float(found.get("margin", usual))

    def branches(self, count: int) -> tuple[list, list]:
        """Features and logits of made-up branches, as the notes tell: features grow, logits mix with the reversed batch's."""
        numbers = range(count)
        features = [self.features * (1 + 0.1 * i) for i in numbers]
        return features, [self.logits + 0.1 * i * self.logits[::-1] for i in numbers]


def each(handlers: dict[str, Handler]) -> Callable[[ReferenceFile], Iterator[Comparison]]:
    """Compares all outputs whose first word has a handler; what a handler does not give stays uncompared.

    A handler gets the inputs, what stands between the first word and the last dot of the key (or a number at the end of the
    first word), and the last words; it returns arrays by last word, or None for a key that it cannot read.
    """
    pattern = re.compile(rf"({'|'.join(handlers)})(?:\.(.*)|({NUMBER}))?")

    def compare(file: ReferenceFile) -> Iterator[Comparison]:
        arrays = Arrays(file)
        for stem, parts in grouped(file.outputs).items():
            found = pattern.fullmatch(stem)
            outputs = found and handlers[found[1]](arrays, found[2] or found[3] or "", parts)
            for part in parts:
                if outputs and part in outputs:
                    yield file.compare(f"{stem}.{part}", outputs[part])

    return compare


def slopes(function: Callable, *arrays: jax.Array, names: tuple[str, ...]) -> Outputs:
    """``loss`` of ``function(*arrays)``, and its gradients under ``names``."""
    value, gradients = jax.value_and_grad(function, argnums=tuple(range(len(arrays))))(*arrays)
    return {"loss": value} | dict(zip(names, gradients, strict=True))


# Cross entropies and triplets --------------------------------------------------------------------------------------------------


def entropy(arrays: Arrays, smoothing, gradient: str, convention: str = "all") -> Outputs:
    def function(logits):
        return cross_entropy(logits, arrays.labels, smoothing, convention)

    return slopes(function, arrays.logits, names=(gradient,))


def transreid_triplet(arrays: Arrays, rest: str, parts: list[str]) -> Outputs | None:
    """``margin0.3``, ``soft``, each with ``_normfeat`` and ``_hard0.1``; and the places of the hardest pairs."""
    if not rest:
        return hardest_places(arrays)
    found = words(rest, margin=f"margin({NUMBER})", soft="soft", normalise="normfeat", hard=f"hard({NUMBER})")
    if found is None or ("margin" in found) == ("soft" in found):
        return None
    margin, factor, normalise = arrays.margin(found), float(found.get("hard", 0.0)), "normalise" in found
    outputs = slopes(lambda x: batch_hard_triplet(x, arrays.labels, margin, normalise, factor), arrays.features, names=("grad",))
    pairs = hardest_pairs(batch_distances(arrays.features, normalise), arrays.labels)
    return outputs | {"dist_ap": pairs.positive * (1 + factor), "dist_an": pairs.negative * (1 - factor)}


def hardest_places(arrays: Arrays) -> Outputs:
    """Index of the furthest positive and the nearest negative of each row.

    Among rows that are equally far but for rounding, the stored one is right too: it is returned where it is one of them.
    """
    distances = np.asarray(batch_distances(arrays.features), np.float64)
    same = np.asarray(arrays.labels[:, None] == arrays.labels[None])
    rows, outputs = np.arange(len(distances)), {}
    for name, places, allowed in (
        ("p_inds", np.where(same, distances, -np.inf).argmax(axis=1), same),
        ("n_inds", np.where(same, np.inf, distances).argmin(axis=1), ~same),
    ):
        stored = arrays.file.outputs.get(f"triplet.{name}")
        if stored is not None and stored.shape == places.shape and ((0 <= stored) & (stored < len(rows))).all():
            own = distances[rows, places]
            tied = allowed[rows, stored] & (np.abs(distances[rows, stored] - own) <= TIE * own)
            places = np.where(tied, stored, places)
        outputs[name] = places
    return outputs


def official_triplet(arrays: Arrays, rest: str, parts: list[str]) -> Outputs | None:
    """torchreid: nothing or ``m0.3``."""
    found = words(rest, margin=f"m({NUMBER})")
    if found is None:
        return None
    margin = arrays.margin(found)
    return slopes(lambda x: batch_hard_triplet(x, arrays.labels, margin), arrays.features, names=("grad",))


def fast_triplet(arrays: Arrays, rest: str, parts: list[str]) -> Outputs | None:
    """fast-reid: ``hard`` or ``weighted``, with ``m0.3``, ``soft`` and ``cos``."""
    mining = dict(hard="hard", weighted="weighted")
    found = words(rest, **mining, margin=f"m({NUMBER})", soft="soft", cosine="cos")
    if found is None or len(found.keys() & mining) != 1:
        return None
    loss = weighted_triplet if "weighted" in found else batch_hard_triplet
    margin = arrays.margin(found)
    distance = "cosine" if "cosine" in found else "euclidean"
    return slopes(lambda x: loss(x, arrays.labels, margin, distance=distance), arrays.features, names=("grad",))


def smoothed(gradient: str, default: float = SMOOTHING) -> Handler:
    """Cross entropy with the smoothing that ends the name, as in ``ce_smooth0.1``."""

    def handle(arrays: Arrays, rest: str, parts: list[str]) -> Outputs | None:
        found = words(rest, smoothing=f"({NUMBER})")
        return None if found is None else entropy(arrays, float(found.get("smoothing", default)), gradient)

    return handle


def fast_entropy(arrays: Arrays, rest: str, parts: list[str]) -> Outputs | None:
    """fast-reid: ``eps0.1``; a negative one is adaptive."""
    found = words(rest, smoothing=f"eps({NUMBER})")
    if not found:
        return None
    smoothing = float(found["smoothing"])
    share = smoothing if smoothing >= 0 else adaptive_smoothing(arrays.logits, arrays.labels, ADAPTIVE_SHARE)
    return entropy(arrays, share, "grad", "rest")


def centre(arrays: Arrays, rest: str, parts: list[str]) -> Outputs | None:
    if rest:
        return None
    def function(x, centres):
        return centre_loss(x, arrays.labels, centres)

    return slopes(function, arrays.features, arrays["centers"], names=("grad_x", "grad_centers"))


# Heads on cosine logits --------------------------------------------------------------------------------------------------------


def head_outputs(arrays: Arrays, logits: Callable, weights: jax.Array) -> Outputs:
    """Logits of a head, their cross entropy, and its gradients for features and class weights."""

    def function(x, w):
        return cross_entropy(logits(x, w), arrays.labels)

    outputs = slopes(function, arrays.features, weights, names=("grad_x", "grad_w"))
    return {"logits": logits(arrays.features, weights), "ce": outputs.pop("loss")} | outputs


HEAD_WORDS = {"scale": f"s({NUMBER})", "margin": f"m({NUMBER})"}


def head(function: Callable, extra: bool = False, transposed: bool = False) -> Handler:
    """TransReID's heads: ``s30_m0.5``, and with ``extra`` the options ``_easy`` and ``_ls0.1`` of its ArcFace.

    ``transposed``: the official module keeps its weights as [D, C], stored as w_am.
    """
    patterns = HEAD_WORDS | (dict(easy="easy", smoothing=f"ls({NUMBER})") if extra else {})

    def handle(arrays: Arrays, rest: str, parts: list[str]) -> Outputs | None:
        found = words(rest, **patterns)
        if not found or not HEAD_WORDS.keys() <= found.keys():
            return None
        options = {name: float(found[name]) for name in ("scale", "margin", "smoothing") if name in found}
        if "easy" in found:
            options["easy"] = True

        def logits(x, w):
            return function(x, w.T if transposed else w, arrays.labels, **options)

        return head_outputs(arrays, logits, arrays["w_am" if transposed else "w"])

    return handle


def fast_head(function: Callable, **options) -> Handler:
    """fast-reid's heads: scale and margin stand in the key (``s30_m0.35``) or, for all heads alike, in the notes."""

    def handle(arrays: Arrays, rest: str, parts: list[str]) -> Outputs | None:
        found = words(rest, **HEAD_WORDS)
        if found is None:
            return None
        if not found:
            told = re.search(rf"heads.*\bs=({NUMBER}).*\bm=({NUMBER})", "; ".join(arrays.file.notes))
            found = dict(zip(HEAD_WORDS, told.groups(), strict=True)) if told else {}
        if not HEAD_WORDS.keys() <= found.keys():
            return None
        scale, margin = float(found["scale"]), float(found["margin"])

        def logits(x, w):
            return function(x, w, arrays.labels, scale, margin, **options)

        return head_outputs(arrays, logits, arrays["w"])

    return handle


# Sums --------------------------------------------------------------------------------------------------------------------------


def switch(found: dict[str, str]) -> float | None:
    """Smoothing that ``on`` and ``off``, or a number, stand for."""
    word = found["smoothing"]
    return {"on": SMOOTHING, "off": 0.0}[word] if word in ("on", "off") else float(word)


TOTAL_WORDS = {"ls": "ls", "smoothing": f"(on|off|{NUMBER})", "soft": "soft", "margin": f"m({NUMBER})"}


def picked(parts: list[str], gradients: dict[str, list[jax.Array]]) -> Outputs:
    """``grad_x0_x1`` and the like: gradients of the branches that the name lists, stacked if it lists several."""
    outputs = {}
    for part in parts:
        names = [(letter, int(place)) for letter, place in re.findall(r"_([xl])(\d+)", part)]
        known = all(place < len(gradients[letter]) for letter, place in names)
        if names and known and part == "grad" + "".join(f"_{letter}{place}" for letter, place in names):
            chosen = [gradients[letter][place] for letter, place in names]
            outputs[part] = jnp.stack(chosen) if len(names) > 1 else chosen[0]
    return outputs


def transreid_sum(arrays: Arrays, rest: str, parts: list[str]) -> Outputs | None:
    """``ls_on_m0.3`` or ``ls_off_soft``, for one branch; with ``.jpm5`` for five."""
    branches = re.fullmatch(r"(.*?)(?:\.jpm(\d+))?", rest)
    found, count = words(branches[1], **TOTAL_WORDS), branches[2]
    if found is None or "smoothing" not in found or ("margin" in found) == ("soft" in found):
        return None
    margin, smoothing = arrays.margin(found), switch(found)
    features, logits = arrays.branches(int(count or 1))

    def total(x, l):
        return transreid_total(l, x, arrays.labels, margin, smoothing)

    value, (by_x, by_l) = jax.value_and_grad(total, (0, 1))(features, logits)
    single = {} if count else {"grad_x": by_x[0], "grad_logits": by_l[0]}
    return {"loss": value} | single | picked(parts, {"x": by_x, "l": by_l})


def clip_reid_sum(arrays: Arrays, rest: str, parts: list[str]) -> Outputs | None:
    """``vit_ls_on`` or ``cnn_ls_off``; a margin may follow. Three features and two logits, as the notes tell."""
    found = words(rest, network="(vit|cnn)", **TOTAL_WORDS)
    if found is None or not {"network", "smoothing"} <= found.keys():
        return None
    margin, smoothing, weight = arrays.margin(found), switch(found), IDENTITY_WEIGHTS[found["network"]]
    features, logits = arrays.branches(3)[0], arrays.branches(2)[1]

    def total(t, x, l):
        return clip_reid_total(l, x, t, arrays.labels, margin, smoothing, weight)

    image_text = jnp.matmul(arrays.features, arrays["text"].T)
    value, (by_t, by_x, by_l) = jax.value_and_grad(total, (0, 1, 2))(image_text, features, logits)
    return {"loss": value, "grad_i2t": by_t} | picked(parts, {"x": by_x, "l": by_l})


def contrastive(both: bool = False, rectangle: bool = False) -> Handler:
    """SupCon of a = feat / sqrt(D) against b; ``rectangle``: the first half of a against all of b."""

    def handle(arrays: Arrays, rest: str, parts: list[str]) -> Outputs | None:
        if rest:
            return None
        labels, temperature = arrays.labels, float(arrays.file.config.get("temperature", 1.0))
        a = arrays.features / jnp.sqrt(jnp.float32(arrays.features.shape[1]))
        count = len(a) // 2 if rectangle else len(a)

        def loss(a, b):
            if both:
                return image_text_contrastive(a, b, labels, temperature)
            return supervised_contrastive(a, b, labels[:count], labels, temperature)

        return slopes(loss, a[:count], arrays["b"], names=("grad_a", "grad_b"))

    return handle


TRANSREID_HANDLERS = {
    "triplet": transreid_triplet,
    "ce_smooth": smoothed("grad_logits"),
    "ls_ce": smoothed("grad_logits"),
    "ce": smoothed("grad_logits", 0.0),
    "arcface": head(arcface, extra=True),
    "arcface_file": head(arcface, extra=True),  # the same head in a file of its own
    "cosface": head(cosface),
    "amsoftmax": head(am_softmax, transposed=True),
    "circle": head(circle),
    "center": centre,
    "transreid_total": transreid_sum,
}
CLIP_REID_HANDLERS = {
    "supcon": contrastive(),
    "supcon_both": contrastive(both=True),
    "supcon_rect": contrastive(rectangle=True),
    "clipreid_total": clip_reid_sum,
}
OTHER_HANDLERS = {
    "torchreid_triplet": official_triplet,
    "torchreid_ce_smooth": smoothed("grad"),
    "fastreid_triplet": fast_triplet,
    "fastreid_ce": fast_entropy,
    "fastreid_arc": fast_head(arcface, beyond="wrap"),
    "fastreid_cos": fast_head(cosface),
    "fastreid_circle": fast_head(circle),
}

TRANSREID = Kind(lambda file: "transreid_total" in first_words(file), each(TRANSREID_HANDLERS))
CLIP_REID = Kind(lambda file: "clipreid_total" in first_words(file), each(CLIP_REID_HANDLERS))
OTHER = Kind(lambda file: {"torchreid_triplet", "fastreid_triplet"} <= first_words(file), each(OTHER_HANDLERS))
