"""Draw named points in a plane, with Pillow alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .axes import INK, SCALE, Bounds, ChartAxes, range_of
from .colours import PALETTE

if TYPE_CHECKING:
    from PIL.Image import Image

SCATTER_SIZE = (720, 540)  # pixels
_RADIUS, _AROUND = 4, 0.08  # of a point, in pixels; of the plot, the part of the points' range that is beside them
_LONGEST = 28  # letters of a name
_BLUE = PALETTE[6]  # the darkest of the palette's first

_Box = tuple[float, float, float, float]


def draw_scatter(points: Sequence[tuple[float, float]], names: Sequence[str], title: str) -> Image:
    """Draw points, each with its name where that overlaps no point and no other name.

    Args:
        points: pairs ``(x, y)``.
        names: of the points.
        title: above the plot.

    Returns:
        An RGB picture of ``SCATTER_SIZE``.
    """
    horizontal, vertical = (_with_room(range_of([point[axis] for point in points])) for axis in (0, 1))
    axes = ChartAxes(title, horizontal, vertical, SCATTER_SIZE)
    places = [axes.place(*point) for point in points]
    radius = _RADIUS * SCALE
    taken: list[_Box] = [(x - radius, y - radius, x + radius, y + radius) for x, y in places]
    for box in taken:
        axes.pen.ellipse(box, _BLUE)
    for (x, y), name in zip(places, names):
        text = name if len(name) <= _LONGEST else "…" + name[1 - _LONGEST :]
        for at, anchor in _beside(x, y):
            box = axes.pen.textbbox(at, text, axes.font, anchor=anchor)
            if _is_inside(box, axes.paper.size) and not any(_overlap(box, other) for other in taken):
                axes.pen.text(at, text, INK, axes.font, anchor=anchor)
                taken.append(box)
                break
    return axes.picture()


def _with_room(bounds: Bounds) -> Bounds:
    low, high = bounds
    room = _AROUND * (high - low)
    return low - room, high + room


def _beside(x: float, y: float) -> Iterator[tuple[tuple[float, float], str]]:
    """Yield places for a point's name, with Pillow's anchor of each: right, left, above, below."""
    gap = (_RADIUS + 3) * SCALE
    yield (x + gap, y), "lm"
    yield (x - gap, y), "rm"
    yield (x, y - gap), "mb"
    yield (x, y + gap), "mt"


def _is_inside(box: _Box, size: tuple[int, int]) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= size[0] and box[3] <= size[1]


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
