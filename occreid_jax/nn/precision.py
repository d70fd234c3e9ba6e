"""Which type the matrix products use."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def compute_dtype(name: str) -> jnp.dtype:
    """ "float32", "bfloat16", or "auto": bfloat16 on accelerators, float32 on CPUs, where bfloat16 is slower."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def at_least_float32(x):
    """``x`` as float32, or as it is if it is float64: what checks of a formula run in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
