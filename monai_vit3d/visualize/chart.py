"""Draw curves over a common axis, with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .axes import CHART_SIZE, INK, SCALE, TOP, Bounds, ChartAxes, range_of
from .colours import PALETTE, label_colour

if TYPE_CHECKING:
    from PIL.Image import Image

_RIGHT = 170  # pixels of the legend


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


def draw_chart(curves: Sequence[Curve], title: str, bounds: Bounds | None = None) -> Image:
    """Draw curves with axes, a grid and a legend.

    Args:
        curves: what to draw; those that are not bold get the colours of ``PALETTE``.
        title: above the plot.
        bounds: of the vertical axis; None is the range of the curves.

    Returns:
        An RGB picture of ``CHART_SIZE``.
    """
    points = [point for curve in curves for point in curve.finite()]
    vertical = bounds or range_of([y for _, y in points])
    axes = ChartAxes(title, range_of([x for x, _ in points]), vertical, right=_RIGHT, least_step=1)
    pen, colour = axes.pen, 0
    for row, curve in enumerate(curves):
        colour += not curve.bold
        paint, width = (INK, 3 * SCALE) if curve.bold else (label_colour(colour, PALETTE), 2 * SCALE)
        line = [axes.place(*point) for point in curve.finite()]
        if len(line) > 1:
            pen.line(line, paint, width, joint="curve")
        for x, y in line[-1:]:  # where the curve is now, and the only mark of one point
            pen.ellipse([x - width, y - width, x + width, y + width], paint)
        left, middle = (CHART_SIZE[0] - _RIGHT + 14) * SCALE, (TOP + 8 + 17 * row) * SCALE
        pen.line([(left, middle), (left + 18 * SCALE, middle)], paint, width)
        pen.text((left + 24 * SCALE, middle), curve.name[:18], INK, axes.font, anchor="lm")
    return axes.picture()
