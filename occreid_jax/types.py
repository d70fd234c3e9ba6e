"""The words the whole package shares: Split, Dataset, Batch, Meta, Stage, Update, Aux and the Method protocol. No logic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
Params = Any  # pytree of float32 arrays
Extra = Any  # pytree: BatchNorm statistics, memory banks, frozen networks, prototypes, baselines
Features = Any  # pytree whose leaves have the image axis first
Batch = Mapping[str, Array]
"""One batch. Keys that every batch has:

* ``image``  uint8 [B, H, W, 3] as stored in the table; float32 and normalised once a stage's ``augment`` or the method's
  ``transform`` has run,
* ``camid``  int32 [B], the row of the camera embedding, or a negative number where there is none (`occreid_jax.cameras`),
* ``index``  int32 [B], the row in the table,
* ``valid``  bool [B], False for rows that only pad the batch.

Training batches also hold ``label`` int32 [B] (0 .. identities - 1). A stage may name more tables in ``Stage.inputs``, for
example ``parts`` uint8 [B, H, W] (body-part labels, see `occreid_jax.parts`) and ``parsed`` bool [B], which says whether a
picture has such labels at all: ``parts`` is 0 where it has none.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images of one role (train, query or gallery), in a fixed order."""

    root: Path
    names: tuple[str, ...]  # file paths relative to root, sorted
    pids: np.ndarray  # int32 [N], identity numbers as the file names give them; 0 is a distractor
    camids: np.ndarray  # int32 [N], 0-based camera numbers: gallery pictures of a query's identity and number do not count
    cameras: str = ""  # whose cameras they are, such as "market1501"; "": not known, the numbers serve the protocol alone

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A benchmark: three splits and the protocol that compares them."""

    name: str
    protocol: str  # for example "market1501/std@1"; stands beside every result
    train: Split
    query: Split
    gallery: Split
    truth: Path | None = None  # ground truth of a synthetic set, see occreid_jax.data.parsing
    notes: tuple[str, ...] = ()  # what a reader skipped, and anything the user should know


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a method must know of the data before it can build its parameters."""

    identities: int
    cameras: int  # 0 where they are not known: there is no camera embedding then, whatever the config says
    image_size: tuple[int, int]  # height, width in pixels
    images: int  # number of training images
    camera_numbers: tuple[int, ...] = ()  # 0-based, ascending, one per camera; empty: 0 .. cameras - 1
    camera_network: str = ""  # `Split.cameras` of the training set; "": not recorded
    training_set: str = ""  # its hash, see `occreid_jax.data.fingerprint`; "": not recorded


@dataclasses.dataclass(frozen=True)
class Update:
    """One optimiser step of a training step: which parameters move, and how.

    ``trainable`` and ``frozen`` are regular expressions searched in parameter paths such as
    ``backbone/block_00/attn/qkv/kernel``; a parameter moves if ``trainable`` matches and ``frozen`` does not. ``optimizer`` is
    the config block that `occreid_jax.train.optim` reads, or a tuple of pairs (path regex, block) where parts of the network
    move by different rules along one gradient.
    """

    trainable: str
    optimizer: Any
    frozen: str = ""


class Bound(NamedTuple):
    """A metric of a stage that must stay between ``least`` and ``most``; ``told`` says what it means that it does not."""

    metric: str
    least: float
    most: float
    told: str


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training stage. Static: every field is known before anything is compiled."""

    name: str
    epochs: int
    sampler: Any  # config block that occreid_jax.data.sampler reads
    updates: tuple[Update, ...]  # applied one after the other on the same batch
    augment: Callable[[Array, dict], dict]  # (key, raw batch) -> batch; jitted inside the step
    inputs: tuple[str, ...] = ("image",)  # tables gathered per image
    shared: tuple[str, ...] = ()  # tables handed over whole, for example a library of occluders
    refresh_every: int = 0  # epochs between calls of Method.prepare; 0 means at the stage start only
    flops: float = 0.0  # of one picture's forward passes in a step, a gradient going back through them; 0: unknown
    frozen_flops: float = 0.0  # of forward passes that nothing goes back through
    bounds: tuple[Bound, ...] = ()  # a run says once, and its report says, which metrics left theirs


class Aux(NamedTuple):
    """Second result of `Method.loss`."""

    extra: Extra
    metrics: dict[str, Array]  # scalars only


@dataclasses.dataclass(frozen=True)
class PrepareContext:
    """What `Method.prepare` may look at. ``pass_`` runs ``fn(params, extra, batch)`` over the whole training set.

    ``pass_(fn, inputs=("image",), shared=())`` feeds un-augmented images in table order through `Method.transform`, with the
    other tables that ``inputs`` names and, whole, those of `Stage.shared` that ``shared`` names, and returns the outputs as numpy
    arrays [N, ...] in that order. ``labels`` is int32 [N], ``camids`` int32 [N].
    """

    params: Params
    extra: Extra
    rng: Array
    labels: np.ndarray
    camids: np.ndarray
    pass_: Callable[..., Any]


class Method(Protocol):
    """A ReID method: data plus pure functions. `occreid_jax.methods.base.MethodBase` holds the defaults."""

    def stages(self) -> tuple[Stage, ...]:
        """The training stages in order; none for a method that trains nothing."""
        ...

    def init(self, rng: Array) -> tuple[Params, Extra]:
        """Initial parameters (float32) and ``extra``, whose structure never changes afterwards."""
        ...

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        """Named arrays put in place of initial values; a missing, unused or wrongly shaped one is a `UserError`."""
        ...

    def prepare(self, stage: Stage, epoch: int, context: PrepareContext) -> Extra:
        """``extra`` before an epoch: at a stage's start and every ``refresh_every`` epochs. Pure in the state."""
        ...

    def start(self, stage: Stage, params: Params, extra: Extra) -> Params:
        """Parameters at a stage's start, after `prepare`: those that begin from what it has found. Pure, same structure."""
        ...

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        """Loss float32 [] of an augmented batch, with the new ``extra`` and scalar metrics; ``t`` in [0, 1) is progress."""
        ...

    def transform(self, batch: dict) -> dict:
        """The test transform: ``image`` uint8 [B, H, W, 3] to what `embed` takes."""
        ...

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        """Features of a transformed batch, leaves [B, ...]; ``role`` is "query" or "gallery"."""
        ...

    def true_location(self, parts: Array) -> Array:
        """Scores float32 [B, h, w] of a perfect localisation, of body-part labels uint8 [B, H, W]; see `methods.locations`."""
        ...

    def true_location_at(self, parts: Array, when: str) -> Array:
        """`true_location` at "train" or "test", where a method localises one thing in training and another at test time."""
        ...

    def distance(self, query: Features, gallery: Features) -> Array:
        """float32 [Q, G], smaller is more alike; called with blocks of queries against the whole gallery."""
        ...

    @property
    def comparisons(self) -> tuple[str, ...]:
        """Names of other rankings that the last evaluation of a run gives beside its own, from the same embedding."""
        ...

    def embed_compared(self, params: Params, extra: Extra, batch: Batch, role: str) -> tuple[Features, Features]:
        """The features of `embed`, and what `compare` needs, leaves [B, ...]."""
        ...

    def compare(self, name: str, query: Features, gallery: Features) -> Array:
        """float32 [Q, G] of one of `comparisons`, as `distance`, from the second result of `embed_compared`."""
        ...

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """Maps [B, h, w] and scores [B] for reports and for comparison with ground truth."""
        ...

    def evidence(self, params: Params, extra: Extra, batch: Batch, others: Features, role: str = "query") -> Array | None:
        """float32 [B, h, w]: where in pictures of a transformed batch the evidence lies that they show the people of ``others``,
        features of one picture for each; None without an encoder."""
        ...

    def measures(self, params: Params, extra: Extra) -> dict[str, float]:
        """Numbers about what was learned, by name, for ``results.json``; on the host, finite ones alone."""
        ...

    @property
    def illustration_shared(self) -> tuple[str, ...]:
        """Tables of `Stage.shared` that `illustrate` has whole in its batch, where they are at hand."""
        ...

    def illustrate(self, params: Params, extra: Extra, batch: Batch, rng: Array) -> dict[str, Array]:
        """What only a whole training batch shows, for the report: caption -> float array; empty if there is nothing.

        ``batch`` is one batch of training pictures as the last stage's sampler draws it, un-augmented and through `transform`;
        it has ``label`` too, and ``parts`` where the dataset has ground truth. Runs jitted. Arrays are told apart by shape:

        * [n, k, H, W, 3], normalised as network input: n rows of k pictures, of which a few are shown. A caption of k words or
          phrases with commas between them ("target, partner, new sample") names every picture of a row,
        * [h, h]: a matrix of values in -1 .. 1, for example correlations,
        * [n]: numbers for a histogram; NaN stands for one that does not exist.
        """
        ...
