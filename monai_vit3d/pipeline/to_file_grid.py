"""From the network's grid to the file's: a bundle's whole-volume steps as MONAI runs them, and maps beside labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, SpatialResample
from monai.transforms.utils import convert_applied_interp_mode
from monai.utils import MetaKeys, TraceKeys
from torch import Tensor

from ..data.errors import BundleError
from ..data.volume import Array
from ..inferers import LabelInverter, trace_inverse
from .postprocessing import KEEP_LABELS, PRED, decision, through
from .value_names import interpolates_labels
from .voxelwise import whole_numbers

if TYPE_CHECKING:
    from .predict import Output
    from .prepare import Prepared

logger = logging.getLogger(__name__)

NEAREST_INSTEAD = (
    "the bundle interpolates labels on their way to the file's grid, which makes fractions of labels; written are "
    "those of the nearest voxel"
)


def labels_on_file_grid(prepared: Prepared, output: Output) -> tuple[Tensor, list[str]]:
    """Run what is left of a case's steps.

    Args:
        prepared: the case.
        output: of the network, with ``pred``.

    Returns:
        (C, H, W, D) labels on the file's grid; and warnings.

    Raises:
        BundleError: steps that leave no labels, or not on a grid that is known.
    """
    post, warnings = prepared.postprocessing, []
    steps = post.rest if output.inverted else post.behind_scores()
    before = (*post.voxelwise, *post.decision) if output.inverted else post.voxelwise
    found: Any = output.pred.as_subclass(Tensor)  # its grid is the input's: MONAI's steps make up an affine
    if steps:
        data = {**prepared.data, PRED: _with_metadata(prepared, output)}
        held = True  # in a smaller type than MONAI's, which is all the same to these steps, and faster
        for i, step in enumerate(steps):
            if held and type(step) not in KEEP_LABELS:
                data[PRED], held = data[PRED].to(output.dtype), False
            if not isinstance(step, Invertd):
                data = step(data)
                continue
            if PRED in step.keys:
                check_grid(prepared, data[PRED])
            smooth = PRED in step.keys and not step.nearest_interp[step.keys.index(PRED)]
            nearest = smooth and interpolates_labels([*before, *steps[:i]], steps[i + 1 :], output.classes)
            warnings += [NEAREST_INSTEAD] * nearest
            data = invert(step, data, nearest)
        found = data[post.key]
    labels, warning = whole_numbers(found, post)
    warnings += [warning] if warning else []
    if output.inverted and not steps:
        return labels, warnings
    return _on_file_grid(prepared, labels, found), warnings


def invert(step: Invertd, data: Mapping[Any, Any], nearest: bool = False) -> dict[Any, Any]:
    """Run an Invertd, nearest neighbours being those of the voxels' centres.

    MONAI inverts Resized and Zoomd with PyTorch's ``"nearest"``, which takes the voxel whose lower edge is next: labels
    are shifted by up to half a voxel (https://github.com/pytorch/pytorch/issues/34808). ``"nearest-exact"`` is not.

    Args:
        step: the bundle's.
        data: with its keys, and with those of the images.
        nearest: whether ``pred`` is inverted by nearest neighbour, whatever the step says.
    """
    data = dict(data)
    options = (step.orig_keys, step.meta_keys, step.orig_meta_keys, step.meta_key_postfix, step.nearest_interp)
    more = (step.to_tensor, step.device, step.post_func)
    for key, orig, meta, orig_meta, postfix, near, tensor, device, function in step.key_iterator(data, *options, *more):
        image = data.get(orig)
        exact = (near or (nearest and key == PRED)) and isinstance(image, MetaTensor)
        one = Invertd(key, step.transform, orig, meta, orig_meta, postfix, near and not exact, tensor, device, function)
        # the operations of the image are those that are inverted
        found = one({**data, orig: _traced_nearest(image)} if exact else data)
        data = {**found, orig: image} if exact and key != orig else found
    return data


def _traced_nearest(image: MetaTensor) -> MetaTensor:
    """The image with operations whose inverses take the nearest voxels."""
    steps = convert_applied_interp_mode(image.applied_operations, mode="nearest", align_corners=None)
    for step in steps:
        if step[TraceKeys.CLASS_NAME] in ("Resize", "Zoom"):
            step[TraceKeys.EXTRA_INFO] = {**step[TraceKeys.EXTRA_INFO], "mode": "nearest-exact"}
    return MetaTensor(image.as_tensor(), meta=image.meta, applied_operations=steps)


def _with_metadata(prepared: Prepared, output: Output) -> MetaTensor:
    """``pred`` as MONAI hands it to the next step, with the metadata of its grid."""
    found = MetaTensor(output.pred).copy_meta_from(prepared.image)
    if output.inverted:
        found.applied_operations = []
        found.affine = torch.as_tensor(prepared.volume.grid.affine_mm, dtype=found.affine.dtype)
    return found


def _on_file_grid(prepared: Prepared, labels: Tensor, found: Any) -> Tensor:
    """Labels that the bundle has left on its network's grid, or elsewhere, by nearest neighbour on the file's.

    Args:
        prepared: the case.
        labels: (C, h, w, d).
        found: what they were made of, with its metadata.
    """
    grid, shape = prepared.volume.grid, tuple(labels.shape[1:])
    # MONAI makes an affine up for what has lost its metadata, by way of NumPy for example
    known = isinstance(found, MetaTensor) and MetaKeys.ORIGINAL_AFFINE in found.meta
    inverted = prepared.postprocessing.inverts and not (known and found.applied_operations)
    if shape == grid.shape and (inverted or (known and _close(found.affine, grid.affine_mm))):
        return labels
    if not known or _close(found.affine, prepared.image.affine):
        return torch.as_tensor(Back(prepared)(labels, nearest=True))
    # steps have moved it: as SaveImaged does, by the affine
    resample = SpatialResample(mode="nearest", padding_mode="zeros")
    moved = MetaTensor(labels.float(), affine=found.affine)
    found = resample(moved, torch.as_tensor(grid.affine_mm), spatial_size=grid.shape)
    return torch.as_tensor(found).as_subclass(Tensor).round().to(labels.dtype)


def _close(affine: Any, other: Any) -> bool:
    return bool(np.allclose(np.asarray(affine), np.asarray(other), rtol=1e-4, atol=1e-3))


class Back:
    """The inverse of a case's preprocessing."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def __call__(self, values: Tensor, nearest: bool) -> Array:
        """(C, h, w, d) on the network's grid to (C, H, W, D) on the file's."""
        check_grid(self.prepared, values)
        key, image = self.prepared.image_key, self.prepared.image
        step = Invertd(PRED, self.prepared.preprocessing, orig_keys=key, nearest_interp=nearest)
        found = invert(step, {PRED: MetaTensor(values.float()), key: image})[PRED]
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


def inverter_for(prepared: Prepared) -> LabelInverter | None:
    """For a bundle that takes scores back to the file's grid, and labels of them there; None leaves it to MONAI."""
    post, path = prepared.postprocessing, prepared.volume.path
    decide = decision(post.decision)
    if post.inversion is None or decide is None:
        if post.inverts_scores:
            logger.info("%s: the bundle's postprocessing is inverted by MONAI, all classes at once", path)
        return None
    image = prepared.data.get(post.inversion.orig_keys[0])
    way = trace_inverse(image, prepared.preprocessing, prepared.volume.grid.shape)
    if way is None:
        logger.info("%s: the bundle's preprocessing is inverted by MONAI, all classes at once", path)
        return None
    return LabelInverter(way, decide)


def dtype_behind(steps: tuple[Any, ...], classes: int) -> torch.dtype:
    """The type of what a bundle's voxelwise steps leave."""
    return through(steps, torch.zeros(classes, 1, 1, 1)).dtype
