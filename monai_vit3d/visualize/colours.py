"""The colours of labels: the same in pictures, reports and the tables that viewers read."""

from __future__ import annotations

from collections.abc import Sequence

Colour = tuple[int, int, int]

# Okabe and Ito's colours for all kinds of colour vision, brightest first and without black, then five more
PALETTE: tuple[Colour, ...] = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178)),
    *((170, 255, 195), (230, 30, 80), (120, 94, 240), (255, 190, 200), (130, 30, 30)),
)


def label_colour(label: int, colours: Sequence[Colour] = PALETTE) -> Colour:
    """Return the colour of a label, or of channel ``label - 1`` of masks."""
    return colours[(label - 1) % len(colours)]
