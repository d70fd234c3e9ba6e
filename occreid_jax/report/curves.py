"""Charts as inline SVG. Colours are CSS classes of the page, so charts follow its light and dark mode."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

SIZE = (340, 190)  # of the drawing, in its own units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 36  # margins for axes and their labels
POINTS = 160  # more do not show at this size
WRITTEN = 8  # a matrix of up to so many rows has its values in its cells
CELLS = 256  # rows of a matrix that are drawn; larger ones are made smaller
POSITIVE, NEGATIVE, UNKNOWN = (217, 115, 26), (31, 111, 180), (138, 147, 156)  # readable on light and on dark


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """One line of a chart. Points that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    series: Sequence[Series],
    alt: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    dots: bool = False,
) -> Markup:
    """Lines over a common x axis; a legend if there are several. ``alt`` says in words what the chart shows.

    Returns an empty string if no series has a finite point.
    """
    lines = [(entry.name, *thinned(entry.x, entry.y)) for entry in series]
    lines = [line for line in lines if len(line[1])]
    if not lines:
        return Markup("")
    x_all, y_all = (np.concatenate([line[axis] for line in lines]) for axis in (1, 2))
    low, high = y_range or padded(float(y_all.min()), float(y_all.max()))
    top = TOP + (16 if len(lines) > 1 else 0)  # room for the legend
    frame = Frame(float(x_all.min()), float(x_all.max()), low, high, top)
    parts = [frame.axes(x_label)]
    for number, (_, x, y) in enumerate(lines):
        colour = f"c{number % 4}"
        points = [(f"{frame.x(a):.1f}", f"{frame.y(b):.1f}") for a, b in zip(x, y, strict=True)]
        if len(points) > 1:
            parts.append(f'<polyline class="line {colour}" points="{" ".join(map(",".join, points))}"/>')
        if dots or len(points) == 1:
            parts += [f'<circle class="{colour}" cx="{place_x}" cy="{place_y}" r="2.5"/>' for place_x, place_y in points]
    if len(lines) > 1:
        for number, (name, *_) in enumerate(lines):
            x = LEFT + (SIZE[0] - LEFT - RIGHT) * number / len(lines)
            parts.append(f'<text class="name c{number % 4}" x="{x:.1f}" y="{TOP + 4}">{escape(name)}</text>')
    return drawing(parts, alt)


def histogram(
    counts: Sequence[int], edges: Sequence[float], alt: str, x_label: str, mark: float | None = None, mark_text: str = ""
) -> Markup:
    """Bars between ``edges`` [len(counts) + 1] with an optional vertical line at ``mark``, by default called its mean."""
    frame = Frame(float(edges[0]), float(edges[-1]), 0.0, max(1.0, 1.08 * max(counts)))
    parts = [frame.axes(x_label)]
    for count, start, stop in zip(counts, edges[:-1], edges[1:], strict=True):
        top, width = frame.y(count), frame.x(stop) - frame.x(start)
        parts.append(
            f'<rect class="bar" x="{frame.x(start) + 0.5:.1f}" y="{top:.1f}" width="{max(0.5, width - 1):.1f}" '
            f'height="{frame.y(0) - top:.1f}"/>'
        )
    if mark is not None:
        x = frame.x(mark)
        left = x > SIZE[0] / 2
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{frame.y(0):.1f}"/>')
        parts.append(
            f'<text class="name" x="{x + (-5 if left else 5):.1f}" y="{TOP + 10}" text-anchor="{"end" if left else "start"}">'
            f"{escape(mark_text or f'mean {mark:.1f}')}</text>"
        )
    return drawing(parts, alt)


def matrix_chart(values: np.ndarray, alt: str) -> Markup:
    """A square matrix float [h, h] of values in -1 .. 1: row 1 on top, colours from blue over nothing to orange.

    A colour is more opaque the farther its value is from 0, so 0 looks like the page in light and dark mode; values beyond the
    scale have its end colours, and those that are not finite are grey.
    """
    count, side, top = len(values), 236, 4
    left = (SIZE[0] - side) // 2 - 14
    parts = [f'<image href="{coloured(values)}" x="{left}" y="{top}" width="{side}" height="{side}" preserveAspectRatio="none"/>']
    parts.append(f'<rect class="frame" x="{left}" y="{top}" width="{side}" height="{side}"/>')
    cell = side / count
    numbers = range(1, count + 1) if count <= 16 else [int(tick) for tick in ticks(1, count, 4) if tick >= 1]
    for number in numbers:
        place = (number - 0.5) * cell
        parts.append(f'<text x="{left - 5}" y="{top + place + 3.5:.1f}" text-anchor="end">{number}</text>')
        parts.append(f'<text x="{left + place:.1f}" y="{top + side + 13}" text-anchor="middle">{number}</text>')
    if count <= WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            text = f"{value:.2f}".replace("-0.00", "0.00") if np.isfinite(value) else "-"
            x, y = left + (column + 0.5) * cell, top + (row + 0.5) * cell + 3.5
            parts.append(f'<text class="cell" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{text}</text>')
    scale = left + side + 14
    bar = coloured(np.linspace(1.0, -1.0, 101)[:, None])
    parts.append(f'<image href="{bar}" x="{scale}" y="{top}" width="10" height="{side}" preserveAspectRatio="none"/>')
    parts.append(f'<rect class="frame" x="{scale}" y="{top}" width="10" height="{side}"/>')
    for value, y in ((1, top + 8), (0, top + side / 2 + 3.5), (-1, top + side)):
        parts.append(f'<text x="{scale + 14}" y="{y}">{value}</text>')
    return drawing(parts, alt, top + side + 18)


def coloured(values: np.ndarray) -> str:
    """Values float [h, w] in -1 .. 1 -> ``data:image/png;base64,...``, a pixel each; see `matrix_chart` for the colours."""
    finite = np.isfinite(values)
    level = np.clip(np.where(finite, values, 0.0), -1.0, 1.0).astype(np.float32)
    colour = np.where((level >= 0)[..., None], POSITIVE, NEGATIVE)
    colour = np.where(finite[..., None], colour, UNKNOWN)
    opacity = np.where(finite, np.abs(level), 0.6)
    pixels = np.concatenate([colour, np.rint(255 * opacity)[..., None]], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    if max(image.size) > CELLS:
        image = image.resize((min(image.width, CELLS), min(image.height, CELLS)), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclasses.dataclass(frozen=True)
class Frame:
    """The ranges of both axes and the way from values to places in the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    top: float = TOP

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low
        return LEFT + (SIZE[0] - LEFT - RIGHT) * ((value - self.x_low) / span if span > 0 else 0.5)

    def y(self, value: float) -> float:
        span = self.y_high - self.y_low
        return SIZE[1] - BOTTOM - (SIZE[1] - self.top - BOTTOM) * ((value - self.y_low) / span if span > 0 else 0.5)

    def axes(self, x_label: str) -> str:
        """Grid lines, numbers and the name of the x axis."""
        bottom, right = SIZE[1] - BOTTOM, SIZE[0] - RIGHT
        parts = [f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>']
        for value in ticks(self.y_low, self.y_high, 4):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label(value)}</text>')
        for value in ticks(self.x_low, self.x_high, 5):
            parts.append(f'<text x="{self.x(value):.1f}" y="{bottom + 14}" text-anchor="middle">{label(value)}</text>')
        parts.append(f'<text x="{(LEFT + right) / 2}" y="{SIZE[1] - 6}" text-anchor="middle">{escape(x_label)}</text>')
        return "".join(parts)


def drawing(parts: list[str], alt: str, height: int = SIZE[1]) -> Markup:
    head = f'<svg viewBox="0 0 {SIZE[0]} {height}" role="img" aria-label="{escape(alt)}">'
    return Markup(head + "".join(parts) + "</svg>")


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Finite points only, and means over neighbours if there are more than `POINTS`."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), POINTS)
    return np.array([x[group].mean() for group in groups]), np.array([y[group].mean() for group in groups])


def padded(low: float, high: float) -> tuple[float, float]:
    """A little room above and below; down to 0 if that is near."""
    if 0.0 <= low < 0.5 * high:
        low = 0.0
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if low == 0.0 else low - room), high + room


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers within a range."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def label(value: float) -> str:
    """A short number: 0.25, 300, 12k, 1.5M, 2e-05."""
    for unit, name in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if name == 'k' else unit):.4g}{name}"
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}"
