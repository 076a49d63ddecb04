"""Build rotary positions of published networks, by their files or their authors' descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.layers import RotaryPositions3D

Rotary = partial[RotaryPositions3D]


def box_rotary(periods: Tensor | None, head_dim: int, slowest: float) -> Rotary:
    """Return box positions as DINOv3 has them, on three axes: halves rotated, a third of the head an axis.

    Args:
        periods: of an axis' pairs, as a file holds them; None takes ``slowest``.
        head_dim: channels of a head.
        slowest: the period that a pair after the last would have.

    Raises:
        WeightsError: periods that are not positive numbers, or more than a head has pairs for.
    """
    if periods is None:
        pairs = head_dim // 6
        return partial(RotaryPositions3D, unit="box", pairs=(pairs,) * 3, temperature=slowest, rotate_half=True)
    values = [float(value) for value in periods.double().flatten()]
    if not values or min(values) <= 0 or 6 * len(values) > head_dim:
        raise WeightsError(
            f"rotary periods {values}; positive numbers are expected, at most {head_dim // 6} of them for heads of "
            f"{head_dim} channels. Pass num_heads= as the network was trained with."
        )
    ladder = tuple(1.0 / value for value in values)
    return partial(RotaryPositions3D, unit="box", pairs=(len(values),) * 3, ladder=ladder, rotate_half=True)


def heads_of(periods: Tensor | None, width: int) -> dict[str, int]:
    """Return ``num_heads``, if periods of an axis show it: a head is six times as wide as there are."""
    if periods is None or not periods.numel() or width % (6 * periods.numel()):
        return {}
    return {"num_heads": width // (6 * periods.numel())}


def patch_rotary(options: Mapping[str, Any], grid: tuple[int, int, int]) -> Rotary:
    """Return Primus' positions: in patches of the grid of its training, as much as which any other spans.

    Args:
        options: keywords of the network.
        grid: that of its training, along ``(H, W, D)``.
    """
    pairs = (int(options["embed_dim"]) // int(options["num_heads"]) // 6,) * 3
    return partial(RotaryPositions3D, unit="patch", pairs=pairs, temperature=10000.0, reference=grid)


def repeated_rotary(options: Mapping[str, Any], axis_order: tuple[int, int, int] = (0, 1, 2)) -> Rotary:
    """Return V-JEPA 2's positions: a third of a head's channels an axis, rounded down to pairs, each ladder twice.

    Args:
        options: keywords of the network.
        axis_order: how patches are counted, as for :class:`~monai_vit3d.layers.RotaryPositions3D`.
    """
    pairs = (int(options["embed_dim"]) // int(options["num_heads"]) // 3 // 2,) * 3
    return partial(
        RotaryPositions3D, unit="patch", pairs=pairs, temperature=10000.0, repeated=True, axis_order=axis_order
    )
