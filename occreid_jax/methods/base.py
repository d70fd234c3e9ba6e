"""What most methods have in common: one place for the defaults of the protocol in `occreid_jax.types`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.augment import appearance, standard
from occreid_jax.config import Range, check_numbers, check_ranges, flatten, to_dict
from occreid_jax.errors import UserError
from occreid_jax.losses.metric import squared_distances
from occreid_jax.methods import locations
from occreid_jax.methods.evidence import gradcam
from occreid_jax.nn import attention, clip, heads, vit
from occreid_jax.nn.precision import compute_dtype
from occreid_jax.types import Aux, Batch, Extra, Features, Meta, Params, PrepareContext, Stage, Update
from occreid_jax.vectors import unit_vectors

Array = jax.Array
CLIP = "clip_"  # what the name of a backbone begins with if it is the image tower of a CLIP
ENCODER_RANGES = (
    ("patch", 1, None),
    ("stride", 1, None),
    ("registers", 0, None),
    ("drop_path", 0, 1),
    ("*dropout", 0, 1),
    ("*smoothing", 0, 1),
)
"""Of settings that several methods have: (pattern of keys below ``config.method``, least, most or None)."""
NUMBERS = (("method.mean", 3, "red, green and blue"), ("method.std", 3, "red, green and blue"))
SIDES = ("before", "after")  # of a neck, or of a normalisation
SMALLEST_TEMPERATURE = 1e-3
LOCATION_KEY = 0x10C  # folded into a step's key where the location is chance


class MethodBase:
    """Defaults: stages read from ``config.stages``, one joint update each, plain normalised features.

    A subclass gives ``init``, ``loss`` and ``embed``, and overrides what differs. What its settings may be stands in ``choices``
    and ``ranges``, by dotted keys below ``config.method``, and is checked before anything is built.
    """

    order: tuple[str, ...] = ()  # names of the stages; a ConfigDict sorts its keys, so a config cannot say what comes first
    choices: Mapping[str, Sequence[str]] = {}  # words that a setting may be
    ranges: Sequence[Range] = ENCODER_RANGES  # a method adds its own; keys that its config does not have are passed over
    localises: locations.Localised | None = None  # what `location` is about; a method that has it also has `true_location`

    def __init__(self, config, meta: Meta):
        self.config = config
        self.settings = config.method
        self.meta = meta
        self.dtype = compute_dtype(config.dtype)
        choice = config.get("attention", "auto")  # older runs do not name it
        self.attention = attention.for_platform(choice, jax.default_backend())
        devices = config.get("mesh", {}).get("devices", 0) or jax.device_count()
        self.apart_rows = attention.APART_ROWS * devices
        values = flatten({"method": to_dict(self.settings)})
        check_numbers(values, NUMBERS)
        check_ranges(values, [(f"method.{key}", least, most) for key, least, most in self.ranges])
        for key, words in self.choices.items():
            self.check_choice(key, words)
        self.check_locations()

    def stages(self) -> tuple[Stage, ...]:
        """One `Stage` per entry of ``config.stages``, in the order of ``order`` (alphabetical where a method has none)."""
        names = sorted(self.config.stages)
        if unknown := [name for name in names if self.order and name not in self.order]:
            raise UserError(f"config.stages.{unknown[0]}: this method's stages are {', '.join(self.order)}")
        chosen = [name for name in self.order or names if name in names and name not in self.idle]
        return tuple(self.stage(name, self.config.stages[name]) for name in chosen)

    @property
    def idle(self) -> frozenset[str]:
        """Stages of the config in which the switches leave nothing to do."""
        return frozenset()

    def stage(self, name: str, block) -> Stage:
        """The stage of one config block: every parameter but the frozen neck biases moves, and every row of a batch counts."""
        if block.sampler.get("remainder", "drop") != "drop":
            told = "the losses of this stage count every row of a batch, also those that only pad it"
            raise UserError(f"config.stages.{name}.sampler.remainder is '{block.sampler.remainder}', but {told}; set drop")
        update = Update(trainable=".*", optimizer=block.optimizer, frozen=heads.FROZEN_BIAS)
        augment = standard(block.augment, tuple(self.settings.mean), tuple(self.settings.std))
        return Stage(name, block.epochs, block.sampler, (update,), augment, self.training_inputs, flops=self.forward_flops())

    def init(self, rng: Array) -> tuple[Params, Extra]:
        raise AttributeError(f"{type(self).__name__} must define init")

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Array, stage: Stage, t: Array) -> tuple[Array, Aux]:
        raise AttributeError(f"{type(self).__name__} must define loss")

    def embed(self, params: Params, extra: Extra, batch: Batch, role: str) -> Features:
        raise AttributeError(f"{type(self).__name__} must define embed")

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        """Pretrained encoder weights, already under this project's parameter paths, put in place of the initial values."""
        raise UserError(f"config.init.weights: method '{self.settings.name}' takes no pretrained weights")

    def prepare(self, stage: Stage, epoch: int, context: PrepareContext) -> Extra:
        """Nothing to prepare."""
        return context.extra

    @property
    def comparisons(self) -> tuple[str, ...]:
        """No other rankings."""
        return ()

    def embed_compared(self, params: Params, extra: Extra, batch: Batch, role: str) -> tuple[Features, Features]:
        """Nothing beside the features of `embed`."""
        return self.embed(params, extra, batch, role), {}

    def compare(self, name: str, query: Features, gallery: Features) -> Array:
        raise AttributeError(f"{type(self).__name__} must define compare")

    def start(self, stage: Stage, params: Params, extra: Extra) -> Params:
        """Nothing begins anew."""
        return params

    @property
    def training_inputs(self) -> tuple[str, ...]:
        """Tables that the losses need."""
        return ("image", *locations.TABLES[self.source("train")])

    @property
    def evaluation_inputs(self) -> tuple[str, ...]:
        """Tables that `embed` needs."""
        return ("image", *locations.TABLES[self.source("test")])

    # Where the location comes from ------------------------------------------------------------------------------------

    def source(self, when: str) -> str:
        """One of `locations.SOURCES`: where the location comes from, "train" or "test"; runs older than the setting learn it."""
        return self.settings.get("location", {}).get(when, "learned")

    def check_locations(self) -> None:
        """Raises `UserError` for a source that does not exist, or that these settings leave nothing to do for."""
        for when in self.settings.get("location", {}):
            self.check_choice(f"location.{when}", locations.SOURCES)
            if self.source(when) != "learned" and (self.localises is None or when not in self.localises.when):
                told = "these settings leave nothing to localise; set it to learned"
                raise UserError(f"config.method.location.{when} is '{self.source(when)}', but {told}")

    def true_location(self, parts: Array) -> Array:
        """Scores float32 [B, h, w] that a perfect localisation would give, of body-part labels uint8 [B, H, W]."""
        raise AttributeError(f"{type(self).__name__} localises nothing")

    def true_location_at(self, parts: Array, when: str) -> Array:
        """`true_location` at "train" or "test", float32 [B, h, w]; the same, unless a method localises two things."""
        return self.true_location(parts)

    def location(self, batch: Batch, when: str, key: Array, parts: str = "parts") -> Array | None:
        """Scores float32 [B, h, w] in place of the learned ones, or None for these. ``when`` is "train" or "test".

        ``batch`` holds the tables of `training_inputs` or `evaluation_inputs`; ``parts`` names its labels that count, those of a
        view. ``key`` is that of a training step, or `locations.role_key`; with it and the picture's ``index`` chance is settled.
        """
        source = self.source(when)
        if source == "learned":
            return None
        if source == "truth":
            return self.true_location_at(batch[parts], when)
        if source == "constant":
            return batch[locations.MEAN]
        return locations.random_scores(key, batch["index"], self.location_grid_at(when))

    def location_of(self, batch: Batch, role: str) -> Array | None:
        """`location` outside of a training step: of pictures of the training set, or of "query" or "gallery"."""
        return self.location(batch, "train" if role == "train" else "test", locations.role_key(self.config.seed, role))

    def location_of_views(self, batch: Batch, rng: Array, parts: Sequence[str]) -> Array | None:
        """`location` in a training step, float32 [V B, h, w], of views that stand `side_by_side`; ``parts`` names the labels of
        each. None for the learned one."""
        keys = jax.random.split(jax.random.fold_in(rng, LOCATION_KEY), len(parts))
        given = [self.location(batch, "train", key, name) for key, name in zip(keys, parts, strict=True)]
        return None if given[0] is None else side_by_side(given)

    @property
    def location_grid(self) -> tuple[int, int]:
        """Rows and columns (h, w) of `true_location`, in training where the ends differ."""
        return self.location_grid_at("train")

    def location_grid_at(self, when: str) -> tuple[int, int]:
        """Rows and columns (h, w) of `true_location_at`."""
        parts = jax.ShapeDtypeStruct((1, *self.meta.image_size), np.uint8)
        return jax.eval_shape(lambda parts: self.true_location_at(parts, when), parts).shape[1:]

    def transform(self, batch: dict) -> dict:
        """The test transform: uint8 image to normalised float32."""
        image = batch["image"].astype(jnp.float32) / 255.0
        return batch | {"image": appearance.normalise(image, tuple(self.settings.mean), tuple(self.settings.std))}

    def distance(self, query: Features, gallery: Features) -> Array:
        """Squared Euclidean distance of L2-normalised features, [Q, D] x [G, D] -> [Q, G]; the ranking is that of cosine."""
        return squared_distances(unit_vectors(query), unit_vectors(gallery))

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """Nothing to show."""
        return {}

    def evidence(self, params: Params, extra: Extra, batch: Batch, others: Features, role: str = "query") -> Array | None:
        """Grad-CAM, see `methods.evidence`."""
        return gradcam(self, params, extra, batch, others, role)

    def measures(self, params: Params, extra: Extra) -> dict[str, float]:
        """Nothing to tell."""
        return {}

    @property
    def illustration_shared(self) -> tuple[str, ...]:
        """No tables handed over whole."""
        return ()

    def illustrate(self, params: Params, extra: Extra, batch: Batch, rng: Array) -> dict[str, Array]:
        """Nothing to show."""
        return {}

    @property
    def grids(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of every image encoder's patches, by what the paths of its parameters begin with: a run that starts
        from another picture size or stride has its positions resized from one to the other."""
        return {name: getattr(self, name).grid for name in ("backbone", "visual") if hasattr(self, name)}

    @staticmethod
    def attention_map(cls_logits: Array, grid: tuple[int, int]) -> Array:
        """What the cls token looks at, float32 [B, h, w], mean over heads, sums to 1; from its products with the patches alone,
        [B, heads, h w], before the softmax."""
        return jax.nn.softmax(cls_logits, axis=-1).mean(axis=1).reshape(-1, *grid)

    def forward_flops(self) -> float:
        """Floating-point operations of one image's forward pass in `embed`, for model FLOPs utilisation; 0 if unknown. What a
        training step costs stands in its `Stage`."""
        return 0.0

    def check_choice(self, key: str, choices) -> None:
        """Raises `UserError` unless ``config.method.<key>``, dotted below a block, is one of ``choices``."""
        try:
            value = functools.reduce(operator.getitem, key.split("."), self.settings)
        except KeyError as error:
            told = "a run of before that setting; train it again, or use the version that trained it"
            raise UserError(f"config.method.{key} is missing: {told}") from error
        if value not in choices:
            raise UserError(f"config.method.{key} is '{value}'; it must be one of {', '.join(choices)}")

    def vit(self, **changes) -> vit.ViT:
        """The encoder that ``config.method`` describes.

        ``backbone`` is a size of `nn.vit`, WIDTHxDEPTHxHEADS, or "clip_" and a network of `nn.clip` (its image tower without the
        projection).
        """
        settings = self.settings
        name, image_size = settings.backbone, tuple(self.meta.image_size)
        if settings.patch > min(image_size):
            told = f"more than the pictures have (config.data.image_size {image_size}); lower it"
            raise UserError(f"config.method.patch is {settings.patch}, {told}")
        values = dict(
            image_size=image_size,
            stride=settings.stride,
            cameras=self.meta.cameras if settings.camera else 0,
            camera_scale=settings.camera_scale,
            camera_tokens="all",
            drop_path=settings.drop_path,
            dropout=settings.dropout,
            attention_dropout=settings.attention_dropout,
            positions=settings.positions,
            registers=settings.get("registers", 0),  # older runs have none
            from_scratch=settings.from_scratch,
            remat=settings.remat,
            dtype=self.dtype,
            attention_kernel=self.attention,
            apart_rows=self.apart_rows,
        )
        try:
            if name.startswith(CLIP):
                return clip.clip_visual(name.removeprefix(CLIP), **({"projection_width": 0} | values | changes))
            return vit.ViT(size=vit.size_of(name), patch=settings.patch, **(values | changes))
        except ValueError as error:
            raise UserError(f"config.method.backbone: {error}") from error


def side_by_side(views: Sequence[Array]) -> Array:
    """Views [B, ...] of the same images as one batch [V B, ...]. Those of an image are neighbours, so that a batch that is spread
    over devices stays where it is: with all images of one view before all of the next, half of them would have to move."""
    return jnp.stack(views, axis=1).reshape(-1, *views[0].shape[1:])


def apart(tree: Any, count: int) -> list[Any]:
    """The ``count`` views, [B, ...] each, of a tree of arrays [V B, ...] that came from a batch as `side_by_side` makes it."""
    return [jax.tree.map(lambda x, first=number: x[first::count], tree) for number in range(count)]


def with_statistics(extra: Extra, **changed: Params) -> Extra:
    """``extra`` with other batch statistics under the given names."""
    return extra | {"batch_stats": extra["batch_stats"] | changed}


def encoder_flops(encoder: vit.ViT) -> float:
    """Floating-point operations of one image's forward pass through ``encoder``, its projection of all tokens included."""
    return vit.forward_flops(
        encoder.size, encoder.image_size, encoder.patch, encoder.stride, encoder.extra_tokens, encoder.projection_width,
        encoder.registers,
    )  # fmt: skip
