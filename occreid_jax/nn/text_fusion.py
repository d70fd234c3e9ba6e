"""One text per identity out of two: of the person, and of the person behind something.

Source: DPL-ReID (arXiv 2605.19527), Eq. 6 and the alternatives of its Table 7, which the paper names only ("three-layer MLP",
"cross-attention"): their form is ours.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from occreid_jax.nn.layers import torch_dense

Array = jax.Array

FUSIONS = ("weighted", "mlp", "cross_attention")


class TextFusion(nn.Module):
    """Texts ``full`` and ``occluded`` float32 [N, E] -> [N, E], by ``kind``:

    * "weighted": alpha full + (1 - alpha) occluded, with the parameter ``alpha`` cut to 0..1, which starts at ``start``;
    * "mlp": three linear layers with ReLU between them, of both side by side;
    * "cross_attention": the full text asks both texts of its identity, one head, and what it gathers is added to it.
    """

    kind: str = "weighted"
    start: float = 0.5

    @nn.compact
    def __call__(self, full: Array, occluded: Array) -> Array:
        width = full.shape[-1]
        if self.kind == "weighted":
            alpha = jnp.clip(self.param("alpha", nn.initializers.constant(self.start), (), jnp.float32), 0.0, 1.0)
            return alpha * full + (1.0 - alpha) * occluded
        if self.kind == "mlp":
            x = nn.relu(torch_dense(width, 2 * width, "fc1")(jnp.concatenate([full, occluded], axis=-1)))
            return torch_dense(width, width, "fc3")(nn.relu(torch_dense(width, width, "fc2")(x)))
        both = jnp.stack([full, occluded], axis=1)
        query = torch_dense(width, width, "query")(full)
        key, value = (torch_dense(width, width, name)(both) for name in ("key", "value"))
        logits = jnp.einsum("ne,nke->nk", query, key) * width**-0.5
        gathered = jnp.einsum("nk,nke->ne", jax.nn.softmax(logits, axis=-1), value)
        return full + torch_dense(width, width, "out")(gathered)
