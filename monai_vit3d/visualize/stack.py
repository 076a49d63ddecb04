"""Put pictures below each other, each under its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_CAPTION = 18  # pixels
_INK = (235, 235, 235)


def stack_pictures(pictures: Sequence[Image], captions: Sequence[str] | None = None) -> Image:
    """Put pictures below each other, on black.

    Args:
        pictures: at least one.
        captions: a line above each; None leaves them out.
    """
    from PIL import Image, ImageDraw

    gap = 0 if captions is None else _CAPTION
    size = max(picture.width for picture in pictures), sum(picture.height + gap for picture in pictures)
    stacked, top = Image.new("RGB", size), 0
    pen = ImageDraw.Draw(stacked)
    for i, picture in enumerate(pictures):
        if captions is not None:
            pen.text((6, top + gap / 2), captions[i], _INK, anchor="lm")
        stacked.paste(picture, (0, top + gap))
        top += picture.height + gap
    return stacked
