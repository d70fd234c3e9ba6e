"""The machine by itself: devices and versions, and what its matrix products and copies reach without any model."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.acceptance.task import Task
from occreid_jax.train.performance import peak_flops, timed

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def devices(task: Task) -> Iterator[dict[str, Any]]:
    """One row: what JAX finds here, and the versions of what it runs on."""
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    yield {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "platform": device.platform,
        "memory": memory and f"{memory / 2**30:.1f} GiB",
        "datasheet": f"{peak_flops() / 1e12:.0f} TFLOP/s in bfloat16" if peak_flops() else "not known",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "size": "published" if task.published else "small",
    }


def peaks(task: Task) -> Iterator[dict[str, Any]]:
    """Square matrix products by type, in TFLOP/s, and copies of float32 within the device and to it, in GB/s; one device."""
    side = 8192 if task.published else 512
    for dtype in (jnp.bfloat16, jnp.float32):
        left = jax.random.normal(jax.random.key(0), (side, side), dtype)
        product = jax.jit(jnp.matmul)
        seconds = float(np.median(timed(lambda left=left, product=product: product(left, left), 10)))
        rate = 2 * side**3 / seconds
        yield {
            "what": f"matrix product {side}, {np.dtype(dtype).name}",
            "tflops": round(rate / 1e12, 3),
            "share_of_datasheet": share(rate, peak_flops()) if dtype == jnp.bfloat16 else None,
        }
    count = (1 << 28) if task.published else (1 << 22)
    values = jnp.zeros(count, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    seconds = float(np.median(timed(lambda: copy(values), 10)))
    rate, size = values.nbytes / seconds / 1e9, f"{values.nbytes / 2**20:.0f} MiB"
    yield {"what": f"{size} read and written within the device", "gigabytes_per_second": round(2 * rate, 1)}
    host = np.zeros(count, np.float32)
    seconds = float(np.median(timed(lambda: jax.device_put(host, may_alias=False), 3)))
    yield {"what": f"{size} copied to the device", "gigabytes_per_second": round(host.nbytes / seconds / 1e9, 1)}


def share(part: float, whole: float) -> float | None:
    """A share of ``whole``, None where that is not known."""
    return round(part / whole, 4) if whole else None
