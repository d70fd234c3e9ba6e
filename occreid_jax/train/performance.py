"""How fast a run is: images per second, and which share of the device's peak the model's own arithmetic reaches."""

from __future__ import annotations

import time

import jax

# Dense bfloat16 peak in FLOP/s by device kind, from the vendors' data sheets (without sparsity).
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}
TRAIN_FACTOR = 3.0  # a backward pass costs twice the forward pass


def peak_flops() -> float:
    """Peak of one device, or 0 where it is not known (CPUs)."""
    kind = jax.devices()[0].device_kind
    return next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), 0.0)


class Meter:
    """Measures between two calls of `rate`; compile time is left out by `restart`."""

    def __init__(self, forward_flops: float, batch_size: int, devices: int):
        self.flops_per_image = TRAIN_FACTOR * forward_flops
        self.batch_size, self.peak = batch_size, peak_flops() * devices
        self.step: int | None = None
        self.started = 0.0

    def restart(self) -> None:
        """Forgets what was measured, for example after compiling."""
        self.step = None

    def rate(self, step: int) -> tuple[float, float]:
        """(images per second, share of the peak) since the last `restart` or the first call; zeros at first."""
        now = time.monotonic()
        if self.step is None or step <= self.step:
            self.step, self.started = step, now
            return 0.0, 0.0
        rate = (step - self.step) * self.batch_size / max(now - self.started, 1e-9)
        return rate, rate * self.flops_per_image / self.peak if self.peak else 0.0


def memory_line(executable) -> str:
    """What a compiled program needs beside its arguments, in words; empty where the backend does not say."""
    analysis = executable.memory_analysis()
    if analysis is None:
        return ""
    arguments, temporary = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    return f"; memory {arguments / 1e9:.2f} GB state and tables, {temporary / 1e9:.2f} GB work space"
