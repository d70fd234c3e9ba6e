"""TransReID: the ViT baseline with a camera embedding (SIE) and the jigsaw patch module (JPM), any stride.

Source: He et al., "TransReID", ICCV 2021, and its code.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.methods.baseline import Baseline
from occreid_jax.nn import vit
from occreid_jax.nn.jpm import JigsawPatchModule, jigsaw_order
from occreid_jax.types import Batch, Extra, Meta, Params
from occreid_jax.weights.trees import encoder_paths, merge, merge_encoder

Array = jax.Array


class TransReID(Baseline):
    """``config.method.jpm``, ``camera`` and ``stride`` switch the three parts; without the first it is the baseline.

    With the module, parameters are ``backbone`` (all blocks but the last), ``jpm`` (the last block and the final norm, twice)
    and ``heads`` (the global one, then one per part).
    """

    ranges = (*Baseline.ranges, ("parts", 1, None), ("shift", 1, None), ("shuffle_groups", 1, None))

    def __init__(self, config, meta: Meta):
        super().__init__(config, meta)
        settings, encoder = self.settings, self.backbone
        if not settings.jpm:
            return
        if encoder.registers:
            told = "the jigsaw module regroups every token behind the first; set registers=0 or jpm=False"
            raise UserError(f"config.method.registers is {encoder.registers}, but {told}")
        self.branches = 1 + settings.parts
        rows, columns = encoder.grid
        if rows * columns < settings.parts:
            raise UserError(f"config.method.parts is {settings.parts}, more than the {rows}x{columns} patches; lower it")
        if settings.rearrange:
            try:
                jigsaw_order(rows * columns, settings.shift, settings.shuffle_groups)
            except ValueError as error:
                raise UserError(f"config.method.shuffle_groups: {error}") from error
        self.jpm = JigsawPatchModule(
            encoder.size, settings.parts, settings.shift, settings.shuffle_groups, settings.rearrange,
            encoder.drop_path, encoder.epsilon, encoder.dtype, encoder.remat, encoder.activation, encoder.attention_kernel,
        )  # fmt: skip

    def trunk(self, params: Params, batch: Batch, rng: Array | None = None) -> Array:
        """Tokens [B, 1 + N, D] after the last block but one."""
        train = rng is not None
        x, _, _ = self.backbone.apply(
            {"params": params["backbone"]}, self.images(batch), batch["camid"], train, self.backbone.size.depth - 1,
            rngs={"dropout": rng} if train else None, method="trunk",
        )  # fmt: skip
        return x

    def init_encoder(self, rng: Array) -> Params:
        if not self.settings.jpm:
            return super().init_encoder(rng)
        key_backbone, key_jpm = jax.random.split(rng)
        images, size = jnp.zeros((1, *self.meta.image_size, 3)), self.backbone.size
        variables = self.backbone.init(key_backbone, images, jnp.zeros(1, jnp.int32), False, size.depth - 1, method="trunk")
        rows, columns = self.backbone.grid
        jpm = self.jpm.init(key_jpm, jnp.zeros((1, 1 + rows * columns, size.width)), False)["params"]
        # Both branches start as copies of the same block.
        return {"backbone": variables["params"], "jpm": {"global": jpm["global"], "local": jpm["global"]}}

    def load_pretrained(self, params: Params, extra: Extra, weights: Mapping[str, np.ndarray]) -> tuple[Params, Extra]:
        """An encoder of full depth; with the module, both branches get its last block and its norm."""
        if not self.settings.jpm:
            return super().load_pretrained(params, extra, weights)
        last, given = f"block_{self.backbone.size.depth - 1:02d}/", encoder_paths(weights)
        branch = {f"block/{name.removeprefix(last)}": value for name, value in given.items() if name.startswith(last)}
        branch |= {name: value for name, value in given.items() if name.startswith("norm/")}
        trunk = {name: value for name, value in given.items() if not name.startswith((last, "norm/"))}
        jpm = {name: merge(part, branch, source="pretrained weights of the last block") for name, part in params["jpm"].items()}
        return params | {"backbone": merge_encoder(params["backbone"], trunk, self.backbone.grid), "jpm": jpm}, extra

    def features(self, params: Params, batch: Batch, rng: Array | None = None) -> tuple[Array, ...]:
        if not self.settings.jpm:
            return super().features(params, batch, rng)
        key_trunk, key_jpm = (None, None) if rng is None else jax.random.split(rng)
        features, _ = self.jpm.apply(
            {"params": params["jpm"]}, self.trunk(params, batch, key_trunk), rng is not None,
            rngs=None if rng is None else {"dropout": key_jpm},
        )  # fmt: skip
        return features

    def cls_logits(self, params: Params, batch: Batch) -> Array:
        if not self.settings.jpm:
            return super().cls_logits(params, batch)
        return self.jpm.apply({"params": params["jpm"]}, self.trunk(params, batch), False, True)[1]

    def forward_flops(self) -> float:
        whole = super().forward_flops()
        if not self.settings.jpm:
            return whole
        rows, columns = self.backbone.grid
        parts = self.settings.parts
        return whole + parts * vit.block_flops(self.backbone.size, 1 + rows * columns // parts)
