"""Check label maps against the classes and the image's grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey, MetaKeys
from torch import Tensor

from .errors import ImageError
from .same_grid import SAME_PLACE_VOXELS, corner_shift

MAX_LABEL_ROUNDING = 1e-3  # of a label that a slope in the header made of a whole number
MAX_LISTED = 5  # values in a message


class CheckLabelsd(MapTransform):
    """Refuse label maps that would be misread silently, naming the file and what to do.

    Labels must be one volume of whole numbers from 0 to ``num_classes`` - 1, on the grid of the image's file, whatever
    transforms were applied to the image. Fractions that come from rounding in the file are rounded to whole numbers.
    Put it after the labels' ``LoadImaged``.

    Args:
        keys: of the labels.
        num_classes: of the network, background included.
        image_key: of the image; None does not compare grids.
        allow_missing_keys: whether items without labels pass.

    Raises:
        ImageError: labels that cannot be used.

    Example:
        >>> from monai.transforms import Compose, LoadImaged
        >>> load = LoadImaged(["image", "label"], reader=NiftiReader(), ensure_channel_first=True)
        >>> checked = Compose([load, CheckLabelsd("label", num_classes=3)])
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        image_key: Hashable | None = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}; expected 2 or more, background included.")
        self.num_classes, self.image_key = num_classes, image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item, its labels rounded by at most 0.001."""
        item = dict(data)
        for key in self.key_iterator(item):
            labels = item[key]
            fault = self._shape_violation(labels) or self._value_violation(labels)
            if not fault and self.image_key is not None:
                fault = _grid_violation(labels, item[self.image_key])
            if fault:
                raise ImageError(f"{_name(labels, key)}: {fault}")
            item[key] = labels.round()
        return item

    def _shape_violation(self, labels: Tensor) -> str:
        if labels.dim() == 4 and labels.shape[0] == 1:
            return ""
        return (
            f"labels of shape {tuple(labels.shape)}, channels first; expected one channel of a 3D volume. Save the "
            "labels as one 3D map of whole numbers."
        )

    def _value_violation(self, labels: Tensor) -> str:
        values = torch.as_tensor(labels).double()
        wrong = ~((values - values.round()).abs() <= MAX_LABEL_ROUNDING) | (values.round() < 0)
        wrong |= values.round() > self.num_classes - 1
        if not wrong.any():
            return ""
        wrong_values, counts = np.unique(values[wrong].numpy(), return_counts=True)
        pairs = list(zip(wrong_values, counts))
        listed = ", ".join(f"{value:g} ({count} voxels)" for value, count in pairs[:MAX_LISTED])
        more = f" and {len(pairs) - MAX_LISTED} other values" if len(pairs) > MAX_LISTED else ""
        return (
            f"label {listed}{more}; expected whole numbers from 0 to {self.num_classes - 1}, one for each of "
            f"num_classes={self.num_classes}. Give those voxels the number of a class, or set num_classes."
        )


def _grid_violation(labels: Tensor, image: Tensor) -> str:
    """Describe how the grids of two files differ; empty if they do not, or if one has no grid."""
    (affine, shape), (needed, size) = _file_grid(labels), _file_grid(image)
    advice = "Resample the labels to the image's grid, by nearest neighbour."
    if shape is not None and size is not None and shape != size:
        return f"labels of shape {shape}, its image has {size}; expected one grid. {advice}"
    if affine is None or needed is None or size is None:
        return ""
    shift = corner_shift(needed, affine, size)
    if shift <= SAME_PLACE_VOXELS:
        return ""
    return f"labels up to {shift:.3g} voxels away from where their image lies; expected one affine. {advice}"


def _file_grid(image: Tensor) -> tuple[Any, Any]:
    """Return affine and shape of the file that an image came from."""
    meta = image.meta if isinstance(image, MetaTensor) else {}
    affine, shape = meta.get(MetaKeys.ORIGINAL_AFFINE), meta.get(MetaKeys.SPATIAL_SHAPE)
    return (
        None if affine is None else np.asarray(affine, float),
        None if shape is None else tuple(int(n) for n in shape),
    )


def _name(labels: Tensor, key: Hashable) -> str:
    meta = labels.meta if isinstance(labels, MetaTensor) else {}
    return str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, key))
