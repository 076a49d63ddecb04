"""Draw curves over a common axis, with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .colours import PALETTE, label_colour

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = (720, 360)  # pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 170, 34, 34  # around the plot; the legend is on the right
_SCALE = 2  # drawn larger, then reduced: smooth lines
_INK, _GRID, _PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)
_TICKS = 5


@dataclass(frozen=True)
class Curve:
    """A named line through points.

    Args:
        name: for the legend.
        points: pairs ``(x, y)``; a y that is None or not finite is left out.
        bold: a thick black line, as for a mean among others.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    bold: bool = False

    def finite(self) -> list[tuple[float, float]]:
        """Return the points that can be drawn."""
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


def draw_chart(curves: Sequence[Curve], title: str, bounds: tuple[float, float] | None = None) -> Image:
    """Draw curves with axes, a grid and a legend.

    Args:
        curves: what to draw; those that are not bold get the colours of ``PALETTE``.
        title: above the plot.
        bounds: of the vertical axis; None is the range of the curves.

    Returns:
        An RGB picture of ``SIZE``.
    """
    from PIL import Image, ImageDraw, ImageFont

    points = [point for curve in curves for point in curve.finite()]
    horizontal = _range([x for x, _ in points])
    vertical = bounds or _range([y for _, y in points])
    picture = Image.new("RGB", (SIZE[0] * _SCALE, SIZE[1] * _SCALE), _PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13 * _SCALE)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - horizontal[0]) / (horizontal[1] - horizontal[0])
        up = (y - vertical[0]) / (vertical[1] - vertical[0])
        width, height = SIZE[0] - _LEFT - _RIGHT, SIZE[1] - _TOP - _BOTTOM
        return (_LEFT + across * width) * _SCALE, (_TOP + (1 - up) * height) * _SCALE

    pen.text((_LEFT * _SCALE, 10 * _SCALE), title, _INK, font)
    for y in ticks(*vertical):
        pen.line([place(horizontal[0], y), place(horizontal[1], y)], _GRID, _SCALE)
        pen.text((place(horizontal[0], y)[0] - 8 * _SCALE, place(0, y)[1]), f"{y:g}", _INK, font, anchor="rm")
    for x in ticks(*horizontal, least=1):
        pen.text((place(x, 0)[0], (SIZE[1] - _BOTTOM + 8) * _SCALE), f"{x:g}", _INK, font, anchor="mt")
    colour = 0
    for row, curve in enumerate(curves):
        colour += not curve.bold
        paint, width = (_INK, 3 * _SCALE) if curve.bold else (label_colour(colour, PALETTE), 2 * _SCALE)
        line = [place(*point) for point in curve.finite()]
        if len(line) > 1:
            pen.line(line, paint, width, joint="curve")
        for x, y in line[-1:]:  # where the curve is now, and the only mark of one point
            pen.ellipse([x - width, y - width, x + width, y + width], paint)
        left, middle = (SIZE[0] - _RIGHT + 14) * _SCALE, (_TOP + 8 + 17 * row) * _SCALE
        pen.line([(left, middle), (left + 18 * _SCALE, middle)], paint, width)
        pen.text((left + 24 * _SCALE, middle), curve.name[:18], _INK, font, anchor="lm")
    return picture.resize(SIZE, Image.Resampling.LANCZOS)


def ticks(low: float, high: float, least: float = 0) -> list[float]:
    """Choose about five round numbers, 1, 2 or 5 times a power of ten apart, between two numbers.

    Args:
        low: the smaller one.
        high: the larger one.
        least: the smallest step, as 1 for whole numbers.
    """
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(least, next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest value; around a single one, a range that holds it."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
