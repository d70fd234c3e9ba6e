"""What most methods have in common: one place for the defaults of the protocol in `occreid_jax.types`."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.augment import appearance, standard
from occreid_jax.errors import UserError
from occreid_jax.losses.metric import l2_normalise, squared_distances
from occreid_jax.nn import clip, heads, vit
from occreid_jax.nn.precision import compute_dtype
from occreid_jax.types import Aux, Batch, Extra, Features, Meta, Params, PrepareContext, Stage, Update

Array = jax.Array
CLIP = "clip_"  # what the name of a backbone begins with if it is the image tower of a CLIP


class MethodBase:
    """Defaults: stages read from ``config.stages``, one joint update each, plain normalised features.

    A subclass gives ``init``, ``loss`` and ``embed``, and overrides what differs.
    """

    order: tuple[str, ...] = ()  # names of the stages; a ConfigDict sorts its keys, so a config cannot say what comes first

    def __init__(self, config, meta: Meta):
        self.config = config
        self.settings = config.method
        self.meta = meta
        self.dtype = compute_dtype(config.dtype)

    def stages(self) -> tuple[Stage, ...]:
        """One `Stage` per entry of ``config.stages``, in the order of ``order`` (alphabetical where a method has none)."""
        names = sorted(self.config.stages)
        if unknown := [name for name in names if self.order and name not in self.order]:
            raise UserError(f"config.stages.{unknown[0]}: this method's stages are {', '.join(self.order)}")
        return tuple(self.stage(name, self.config.stages[name]) for name in self.order or names if name in names)

    def stage(self, name: str, block) -> Stage:
        """The stage of one config block: every parameter but the frozen neck biases moves."""
        update = Update(trainable=".*", optimizer=block.optimizer, frozen=heads.FROZEN_BIAS)
        augment = standard(block.augment, tuple(self.settings.mean), tuple(self.settings.std))
        return Stage(name, block.epochs, block.sampler, (update,), augment)

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
    def evaluation_inputs(self) -> tuple[str, ...]:
        """Tables that `embed` needs."""
        return ("image",)

    def transform(self, batch: dict) -> dict:
        """The test transform: uint8 image to normalised float32."""
        image = batch["image"].astype(jnp.float32) / 255.0
        return batch | {"image": appearance.normalise(image, tuple(self.settings.mean), tuple(self.settings.std))}

    def distance(self, query: Features, gallery: Features) -> Array:
        """Squared Euclidean distance of L2-normalised features, [Q, D] x [G, D] -> [Q, G]; the ranking is that of cosine."""
        return squared_distances(l2_normalise(query), l2_normalise(gallery))

    def inspect(self, params: Params, extra: Extra, batch: Batch) -> dict[str, Array]:
        """Nothing to show."""
        return {}

    def illustrate(self, params: Params, extra: Extra, batch: Batch, rng: Array) -> dict[str, Array]:
        """Nothing to show."""
        return {}

    @staticmethod
    def attention_map(cls_logits: Array, grid: tuple[int, int]) -> Array:
        """What the cls token looks at, float32 [B, h, w], mean over heads, sums to 1; from its products with the patches alone,
        [B, heads, h w], before the softmax."""
        return jax.nn.softmax(cls_logits, axis=-1).mean(axis=1).reshape(-1, *grid)

    def forward_flops(self) -> float:
        """Floating-point operations of one image's forward pass, for model FLOPs utilisation; 0 if unknown."""
        return 0.0

    def check_choice(self, key: str, choices) -> None:
        """Raises `UserError` unless ``config.method.<key>`` is one of ``choices``."""
        if self.settings[key] not in choices:
            raise UserError(f"config.method.{key} is '{self.settings[key]}'; it must be one of {', '.join(choices)}")

    def vit(self, **changes) -> vit.ViT:
        """The encoder that ``config.method`` describes.

        ``backbone`` is a size of `nn.vit`, WIDTHxDEPTHxHEADS, or "clip_" and a network of `nn.clip` (its image tower without the
        projection).
        """
        settings = self.settings
        name = settings.backbone
        values = dict(
            image_size=tuple(self.meta.image_size),
            stride=settings.stride,
            cameras=self.meta.cameras if settings.camera else 0,
            camera_scale=settings.camera_scale,
            camera_tokens="all",
            drop_path=settings.drop_path,
            dropout=settings.dropout,
            attention_dropout=settings.attention_dropout,
            positions=settings.positions,
            from_scratch=settings.from_scratch,
            remat=settings.remat,
            dtype=self.dtype,
        )
        try:
            if name.startswith(CLIP):
                return clip.clip_visual(name.removeprefix(CLIP), **({"projection_width": 0} | values | changes))
            return vit.ViT(size=vit.size_of(name), patch=settings.patch, **(values | changes))
        except ValueError as error:
            raise UserError(f"config.method.backbone: {error}") from error
