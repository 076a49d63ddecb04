"""From the network's grid back to the file's: labels, maps, and numbers that become labels there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd
from torch import Tensor

from ..data.errors import BundleError
from ..data.volume import Array
from ..inferers import LabelInverter, way_back
from .labelling import activation_of, decision, split_inversion, split_steps, whole_numbers

if TYPE_CHECKING:
    from .predict import Prepared

logger = logging.getLogger(__name__)


def as_monai_does(prepared: Prepared, values: Tensor, back: Back) -> Tensor:
    """Labels on the file's grid of numbers that all go there first."""
    before, invert, after = split_inversion(prepared.postprocessing)
    found = torch.as_tensor(back(values, nearest=False))
    if invert is not None and callable(invert.post_func[0]):
        found = invert.post_func[0](found)
    lead, rest = split_steps(after)
    return labels_of(found, [*lead, *rest], prepared, back.key, activation_of([*before, *lead]))


def labels_of(values: Tensor, steps: list[Any], prepared: Prepared, key: str, activation: str) -> Tensor:
    """(C, H, W, D) labels: what the steps make of values on the file's grid."""
    data: dict[str, Any] = {"pred": values, key: prepared.image}
    for step in steps:
        data = step(data)
    return whole_numbers(data["pred"], activation, discrete=True)


class Back:
    """The inverse of a case's preprocessing."""

    def __init__(self, prepared: Prepared, key: str) -> None:
        self.prepared, self.key = prepared, key

    def __call__(self, values: Tensor, nearest: bool) -> Array:
        """(C, h, w, d) on the network's grid to (C, H, W, D) on the file's."""
        check_grid(self.prepared, values)
        invert = Invertd("pred", self.prepared.preprocessing, orig_keys=self.key, nearest_interp=nearest)
        found = invert({"pred": MetaTensor(values.float()), self.key: self.prepared.image})["pred"]
        shape = self.prepared.volume.grid.shape
        if tuple(found.shape[1:]) != shape:
            raise BundleError(
                f"{self.prepared.volume.path}: the answer has the grid {tuple(found.shape[1:])}, the file {shape}. The "
                "bundle's preprocessing has a step that MONAI cannot invert; use invertible transforms."
            )
        array = found.cpu().numpy()
        return np.rint(array).astype(values.cpu().numpy().dtype) if nearest else array.astype(np.float32)


def check_grid(prepared: Prepared, values: Tensor) -> None:
    """The network's answer has to lie on its input's grid.

    Raises:
        BundleError: it does not.
    """
    needed, came = tuple(prepared.image.shape[1:]), tuple(values.shape[-3:])
    if came != needed:  # MONAI would take it for the input's grid, and put the labels elsewhere
        raise BundleError(
            f"{prepared.volume.path}: the network's answer has the grid {came}, its input {needed}; one is needed. "
            "Give the bundle a window of a size that its network keeps, or a DivisiblePadd."
        )


def inverter_for(prepared: Prepared, invert: Invertd, steps: list[Any]) -> LabelInverter | None:
    """For a bundle that takes numbers back to the file's grid, and labels of them there; None leaves it to MONAI."""
    decide = decision(steps)
    way = way_back(prepared.image, prepared.preprocessing, prepared.volume.grid.shape)
    if decide is None or way is None or callable(invert.post_func[0]):
        what = "preprocessing" if way is None else "postprocessing"
        logger.info("%s: the bundle's %s is inverted by MONAI, all classes at once", prepared.volume.path, what)
        return None
    return LabelInverter(way, decide)
