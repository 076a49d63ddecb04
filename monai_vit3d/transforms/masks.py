"""Check that an image is a mask, and cut a box of fixed size around the structure in it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Cropd, CropForeground, MapTransform
from monai.utils import ensure_tuple_rep
from torch import Tensor

from monai_vit3d.data.errors import ImageError


class BinaryMaskd(MapTransform):
    """Refuse an image that is no binary mask of one structure; a mask becomes 0 and 1, in float32.

    Args:
        keys: of the images, ``(C, ...)``.
        allow_missing_keys: whether items without the image pass.

    Raises:
        ImageError: an image of other values than 0 and one above it.

    Example:
        >>> BinaryMaskd("image")({"image": torch.tensor([[0, 255, 255]])})["image"]
        tensor([[0., 1., 1.]])
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with its masks as 0 and 1."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = _as_binary(item[key])
        return item


class CropAroundMass(CropForeground):
    """Cut a box of fixed size around an image's centre of mass; what of it lies outside the image is 0.

    A mask of one structure in a whole scan becomes a box around the structure, which ``inverse`` puts back.

    Args:
        roi_size: voxels of the box along each axis, or along all.

    Raises:
        ImageError: an image without a positive voxel.

    Example:
        >>> scan = torch.zeros(1, 90, 80, 70)
        >>> scan[:, 5:9, 40:44, 60:64] = 1
        >>> CropAroundMass(32)(scan).shape
        torch.Size([1, 32, 32, 32])
    """

    def __init__(self, roi_size: Sequence[int] | int) -> None:
        super().__init__()
        self.roi_size = roi_size

    def compute_bounding_box(self, img: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return first and last + 1 voxel of the box: its middle voxel, rounded up, holds the centre of mass."""
        mass = torch.as_tensor(img).clamp(min=0).sum(0, dtype=torch.float64)
        if not mass.any():
            raise ImageError("no voxel above 0; expected a mask of one structure. Look at the image.")
        sides = np.array(ensure_tuple_rep(self.roi_size, mass.ndim))
        start = np.array([int(_mean_place(mass, axis)) for axis in range(mass.ndim)]) - sides // 2
        return start, start + sides


class CropAroundMassd(Cropd):
    """Cut the box of :class:`CropAroundMass` from each image.

    Args:
        keys: of the images, ``(C, ...)``.
        roi_size: voxels of the box along each axis, or along all.
        allow_missing_keys: whether items without the image pass.
    """

    def __init__(self, keys: KeysCollection, roi_size: Sequence[int] | int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, CropAroundMass(roi_size), allow_missing_keys)


def _as_binary(image: Tensor) -> Tensor:
    inside = image != 0
    values = torch.as_tensor(image)[torch.as_tensor(inside)]
    if not len(values) or values.min() != values.max() or values[0] < 0:
        found = "0 alone" if not len(values) else f"values from {float(values.min()):g} to {float(values.max()):g}"
        raise ImageError(
            f"an image with {found}; expected a binary mask of one structure: 0 and one value above it. Give the mask "
            "of the structure, not the scan; of a map of several labels, the one label."
        )
    return inside.float()


def _mean_place(mass: Tensor, axis: int) -> float:
    along = mass.sum([other for other in range(mass.ndim) if other != axis])
    return float((along * torch.arange(len(along))).sum() / along.sum())
