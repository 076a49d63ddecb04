"""Paper with a title, a grid and round numbers at its axes, with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

CHART_SIZE = (720, 360)  # pixels
SCALE = 2  # drawn larger, then reduced: smooth lines
INK, _GRID, _PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)
LEFT, TOP, _BOTTOM = 56, 34, 34  # around the plot
_TICKS = 5

Bounds = tuple[float, float]


class ChartAxes:
    """A plot's paper, ``SCALE`` times too large until :meth:`picture`, and where numbers lie on it.

    Args:
        title: above the plot.
        horizontal: the least and the largest number.
        vertical: the same.
        size: width and height, in pixels.
        right: pixels beside the plot, for a legend.
        least_step: between the numbers of the horizontal axis, as 1 for whole numbers.
    """

    def __init__(
        self,
        title: str,
        horizontal: Bounds,
        vertical: Bounds,
        size: tuple[int, int] = CHART_SIZE,
        right: int = 20,
        least_step: float = 0,
    ) -> None:
        from PIL import Image, ImageDraw, ImageFont

        self.horizontal, self.vertical, self.size, self.right = horizontal, vertical, size, right
        self.paper = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), _PAPER)
        self.pen, self.font = ImageDraw.Draw(self.paper), ImageFont.load_default(13 * SCALE)
        self.pen.text((LEFT * SCALE, 10 * SCALE), title, INK, self.font)
        for y in ticks(*vertical):
            self.pen.line([self.place(horizontal[0], y), self.place(horizontal[1], y)], _GRID, SCALE)
            at = self.place(horizontal[0], y)[0] - 8 * SCALE, self.place(0, y)[1]
            self.pen.text(at, f"{y:g}", INK, self.font, anchor="rm")
        for x in ticks(*horizontal, least=least_step):
            at = self.place(x, 0)[0], (size[1] - _BOTTOM + 8) * SCALE
            self.pen.text(at, f"{x:g}", INK, self.font, anchor="mt")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point lies on the paper."""
        across = (x - self.horizontal[0]) / (self.horizontal[1] - self.horizontal[0])
        up = (y - self.vertical[0]) / (self.vertical[1] - self.vertical[0])
        width, height = self.size[0] - LEFT - self.right, self.size[1] - TOP - _BOTTOM
        return (LEFT + across * width) * SCALE, (TOP + (1 - up) * height) * SCALE

    def picture(self) -> Image:
        """Return the paper at its size."""
        from PIL import Image

        return self.paper.resize(self.size, Image.Resampling.LANCZOS)


def range_of(values: Sequence[float]) -> Bounds:
    """Return the smallest and the largest value; around a single one, a range that holds it."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


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
