"""Take labels and maps from the network's grid to the file's, running a bundle's whole-volume steps as MONAI does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, SpatialResample
from monai.transforms.utils import convert_applied_interp_mode
from monai.utils import MetaKeys, TraceKeys
from torch import Tensor

from monai_vit3d.bundle.postprocessing import KEEP_LABELS, PRED
from monai_vit3d.bundle.value_names import interpolates_labels
from monai_vit3d.bundle.voxelwise import whole_numbers
from monai_vit3d.data.errors import BundleError
from monai_vit3d.data.volume import Array

from .inference import NetworkOutput, check_grid

if TYPE_CHECKING:
    from .prepare import Prepared

NEAREST_INSTEAD = (
    "the bundle interpolates labels on their way to the file's grid, which makes fractions of labels; written are "
    "those of the nearest voxel"
)


def labels_on_file_grid(output: NetworkOutput) -> tuple[Tensor, list[str]]:
    """Run the rest of a bundle's steps on a case's labels, and take them to the file's grid.

    Args:
        output: of a network that labels voxels.

    Returns:
        (C, H, W, D) labels on the file's grid; and warnings.

    Raises:
        BundleError: steps that leave no labels, or not on a grid that is known.
    """
    prepared, warnings = output.prepared, list[str]()
    post = prepared.postprocessing
    steps = post.rest if output.inverted else post.behind_scores()
    before = (*post.voxelwise, *post.decision) if output.inverted else post.voxelwise
    # a plain tensor: its grid is the input's, and MONAI's steps make up an affine
    values: Any = torch.as_tensor(output.labels).as_subclass(Tensor)
    if steps:
        data = {**prepared.data, PRED: _with_metadata(output)}
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
        values = data[post.key]
    labels, warning = whole_numbers(values, post)
    warnings += [warning] if warning else []
    if output.inverted and not steps:
        return labels, warnings
    return _on_file_grid(prepared, labels, values), warnings


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
        exact = image if (near or (nearest and key == PRED)) and isinstance(image, MetaTensor) else None
        one = Invertd(
            key, step.transform, orig, meta, orig_meta, postfix, near and exact is None, tensor, device, function
        )
        if exact is None:
            data = one(data)
            continue
        inverted = one(
            {**data, orig: _traced_nearest(exact)}
        )  # the operations of the image are those that are inverted
        data = {**inverted, orig: image} if key != orig else inverted
    return data


def _traced_nearest(image: MetaTensor) -> MetaTensor:
    """Copy the image with traced operations whose inverses take the nearest voxels."""
    steps = convert_applied_interp_mode(image.applied_operations, mode="nearest", align_corners=None)
    for step in steps:
        if step[TraceKeys.CLASS_NAME] in ("Resize", "Zoom"):
            step[TraceKeys.EXTRA_INFO] = {**step[TraceKeys.EXTRA_INFO], "mode": "nearest-exact"}
    return MetaTensor(image.as_tensor(), meta=image.meta, applied_operations=steps)


def _with_metadata(output: NetworkOutput) -> MetaTensor:
    """Return the labels as MONAI hands them to the next step, with the metadata of their grid."""
    prepared = output.prepared
    labels = MetaTensor(output.labels).copy_meta_from(prepared.image)
    if output.inverted:
        labels.applied_operations = []
        labels.affine = torch.as_tensor(prepared.volume.grid.affine_mm, dtype=labels.affine.dtype)
    return labels


def _on_file_grid(prepared: Prepared, labels: Tensor, values: Any) -> Tensor:
    """Take labels that the bundle has left on its network's grid, or elsewhere, to the file's by nearest neighbour.

    Args:
        prepared: the case.
        labels: (C, h, w, d).
        values: what they were made of, with its metadata.
    """
    grid, shape = prepared.volume.grid, tuple(labels.shape[1:])
    # MONAI makes an affine up for what has lost its metadata, by way of NumPy for example
    has_affine = isinstance(values, MetaTensor) and MetaKeys.ORIGINAL_AFFINE in values.meta
    inverted = prepared.postprocessing.inverts and not (has_affine and values.applied_operations)
    if shape == grid.shape and (inverted or (has_affine and _close(values.affine, grid.affine_mm))):
        return labels
    if not has_affine or _close(values.affine, prepared.image.affine):
        return torch.as_tensor(map_on_file_grid(prepared, labels, nearest=True))
    # steps have moved it: as SaveImaged does, by the affine
    resample = SpatialResample(mode="nearest", padding_mode="zeros")
    moved = MetaTensor(labels.float(), affine=values.affine)
    resampled = resample(moved, torch.as_tensor(grid.affine_mm), spatial_size=grid.shape)
    return torch.as_tensor(resampled).as_subclass(Tensor).round().to(labels.dtype)


def _close(affine: Any, other: Any) -> bool:
    return bool(np.allclose(np.asarray(affine), np.asarray(other), rtol=1e-4, atol=1e-3))


def map_on_file_grid(prepared: Prepared, values: Tensor, nearest: bool) -> Array:
    """Invert a case's preprocessing: (C, h, w, d) on the network's grid to (C, H, W, D) on the file's.

    Raises:
        BundleError: the preprocessing does not lead back to the file's grid.
    """
    check_grid(prepared, values)
    key, image = prepared.image_key, prepared.image
    step = Invertd(PRED, prepared.preprocessing, orig_keys=key, nearest_interp=nearest)
    inverted = invert(step, {PRED: MetaTensor(values.float()), key: image})[PRED]
    shape = prepared.volume.grid.shape
    if tuple(inverted.shape[1:]) != shape:
        raise BundleError(
            f"{prepared.volume.path}: the answer has the grid {tuple(inverted.shape[1:])}, the file {shape}. The "
            "bundle's preprocessing has a step that MONAI cannot invert; use invertible transforms."
        )
    array = inverted.cpu().numpy()
    return np.rint(array).astype(values.cpu().numpy().dtype) if nearest else array.astype(np.float32)
