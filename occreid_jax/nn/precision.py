"""Which type the matrix products use."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def compute_dtype(name: str) -> jnp.dtype:
    """ "float32", "bfloat16", or "auto": bfloat16 on accelerators, float32 on CPUs, where bfloat16 is slower."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
