"""Cameras: what each one usually sees, and how it turns light into bytes."""

from __future__ import annotations

import dataclasses
import functools
import math

import cv2
import numpy as np

from occreid_jax.synthetic.difficulty import DIFFICULTY, Difficulty
from occreid_jax.synthetic.scenes import panorama
from occreid_jax.synthetic.streams import stream

COUNT = 6
_NOISE_TILES = 24

# One row per camera: usual yaw, tilt, gain, gamma, saturation, warmth, resolution, blur, noise, JPEG quality. Fixed rows keep the
# six strongly different for every seed; the seed then moves them a little.
_BASE = (
    (0.0, 0.12, 1.05, 1.00, 1.05, 0.05, 1.00, 0.35, 2.5, 92),
    (math.pi, 0.20, 0.72, 1.25, 0.80, -0.22, 0.80, 0.50, 6.0, 80),
    (math.pi / 2, 0.10, 1.28, 0.82, 0.85, 0.24, 0.90, 0.45, 4.0, 88),
    (-math.pi / 2, 0.26, 0.92, 1.10, 1.30, -0.08, 0.62, 0.40, 5.0, 74),
    (math.pi / 4, 0.16, 0.62, 0.95, 0.60, 0.12, 0.75, 0.65, 9.0, 85),
    (math.pi * 0.8, 0.22, 1.18, 1.15, 0.95, -0.16, 0.70, 0.55, 3.5, 78),
)


@dataclasses.dataclass(frozen=True)
class Camera:
    """One camera. ``number`` is 0-based."""

    seed: int
    namespace: str
    number: int
    yaw: float  # facing direction it sees most often, radians
    tilt: float  # radians it looks down
    gain: float
    gamma: float
    saturation: float
    tint: tuple[float, float, float]  # factor per colour channel
    offset: float  # black level, in bytes
    resolution: float  # fraction of the final pixels that the sensor really has
    blur: float  # standard deviation in pixels at height 128
    noise: float  # standard deviation in bytes
    quality: int  # of the JPEG files
    difficulty: Difficulty = DIFFICULTY

    def background(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """Return a random view of this camera's surroundings, uint8 [height, width, 3]."""
        knobs = self.difficulty
        wide = panorama(self.seed, f"{self.namespace}/scene", self.number, height, knobs.clutter, knobs.background_colour)
        y = int(rng.integers(0, wide.shape[0] - height + 1))
        x = int(rng.integers(0, wide.shape[1] - width + 1))
        return wide[y : y + height, x : x + width].copy()

    def expose(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Apply light, colour response, resolution, blur and noise to uint8 [H, W, 3]; returns a new image."""
        change = self.difficulty.image_colour
        gain = math.exp(rng.normal(0.0, 0.10 * change))
        tint = np.asarray(self.tint) * np.exp(rng.normal(0.0, 0.03 * change, 3))
        matrix = gain * np.diag(tint) @ _saturate(self.saturation)
        image = cv2.LUT(cv2.transform(image, matrix.astype(np.float32)), _curve(self.gain, self.gamma, self.offset))
        height, width = image.shape[:2]
        sensor = self.difficulty.sensor
        resolution = 1 - (1 - self.resolution * rng.uniform(0.88, 1.0)) * min(sensor, 1.4)
        if resolution < 0.97 and sensor:
            small = (max(8, round(width * resolution)), max(8, round(height * resolution)))
            image = cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height))
        blur = self.blur * sensor * height / 128 * rng.uniform(0.7, 1.3)
        if blur > 0.25:
            image = cv2.GaussianBlur(image, (0, 0), blur)
        if sensor:
            grain = _grain(self.seed, self.namespace, self.number, height, width, self.noise * sensor)
            image = cv2.add(image, grain[int(rng.integers(len(grain)))], dtype=cv2.CV_8U)
        return image


def cameras(seed: int, namespace: str = "benchmark", difficulty: Difficulty = DIFFICULTY) -> list[Camera]:
    """Return six cameras. Another ``namespace`` gives six others, with other scenes and other colour responses."""
    shuffle = stream(seed, f"{namespace}/cameras")
    # Only the benchmark keeps the rows in order; elsewhere views and colour responses are combined anew.
    views = list(range(COUNT)) if namespace == "benchmark" else list(shuffle.permutation(COUNT))
    found = []
    for number in range(COUNT):
        rng = stream(seed, f"{namespace}/camera", number)
        yaw, tilt = _BASE[views[number]][:2]
        gain, gamma, saturation, warmth, resolution, blur, noise, quality = _BASE[number][2:]
        strength = difficulty.camera_colour
        warmth = strength * (warmth + rng.normal(0, 0.03))
        green = strength * rng.normal(0, 0.05)
        found.append(
            Camera(
                seed=seed,
                namespace=namespace,
                number=number,
                yaw=yaw + rng.normal(0, 0.1),
                tilt=max(0.04, tilt + rng.normal(0, 0.02)),
                gain=math.exp(strength * (math.log(gain) + rng.normal(0, 0.05))),
                gamma=math.exp(strength * (math.log(gamma) + rng.normal(0, 0.04))),
                saturation=math.exp(strength * (math.log(saturation) + rng.normal(0, 0.04))),
                tint=(math.exp(warmth), math.exp(green), math.exp(-warmth)),
                offset=float(rng.uniform(0, 16) * strength),
                resolution=resolution,
                blur=blur,
                noise=noise,
                quality=int(quality),
                difficulty=difficulty,
            )
        )
    return found


def _saturate(amount: float) -> np.ndarray:
    grey = np.array([[0.299, 0.587, 0.114]])
    return amount * np.eye(3) + (1 - amount) * np.repeat(grey, 3, axis=0)


@functools.lru_cache(maxsize=64)
def _curve(gain: float, gamma: float, offset: float) -> np.ndarray:
    levels = np.linspace(0, 1, 256) ** gamma * gain * (255 - offset) + offset
    # A soft shoulder keeps bright cameras from clipping white garments to nothing.
    levels = np.where(levels > 200, 200 + 55 * np.tanh((levels - 200) / 70), levels)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=16)
def _grain(seed: int, namespace: str, number: int, height: int, width: int, sigma: float) -> list[np.ndarray]:
    # Drawing fresh noise for every image would cost as much as drawing the person.
    rng = stream(seed, f"{namespace}/noise", number, height)
    coarse = rng.normal(0, sigma, (_NOISE_TILES, height, width, 3))
    return [np.rint(tile).astype(np.int16) for tile in coarse]
