"""Set the voxel spacing that rotary positions in millimetres need, from the affines of the images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from monai.utils import MetaKeys
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.layers import set_spacing
from monai_vit3d.layers.rope import mm_positions

from .autocast import AutocastInferer


class SpacingInferer(Inferer):
    """Run another inferer after setting the network's rotary positions in mm by the spacing of its input.

    An inferer serves training, evaluation and inference alike, and sees the volume before windows, which have no
    affine, are cut out of it. The affine is that of the input after its transforms: of the grid that the network sees.
    Augmentations that scale (RandAffined, RandZoomd) change the affine in MONAI, so that a millimetre stays a
    millimetre of the patient.

    The input must have its metadata: no ``EnsureTyped(track_meta=False)`` before. A network without positions in mm is
    run as it is, and needs no metadata.

    Args:
        inferer: runs the network; None runs it on the whole input.

    Example:
        >>> inferer = SpacingInferer(SlidingWindowInferer((96, 96, 32), 4, 0.5, "gaussian"))
        >>> evaluator = SupervisedEvaluator(device, loader, network, inferer=inferer)
    """

    def __init__(self, inferer: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.inferer = SimpleInferer() if inferer is None else inferer

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Run ``network`` over ``inputs`` ``(B, C, H, W, D)`` and return the inferer's output.

        Raises:
            UsageError: as :func:`with_spacing`; or samples of several spacings that are not run as one batch.
        """
        with with_spacing(network, inputs):
            self._require_one_spacing(network)
            return self.inferer(inputs, network, *args, **kwargs)

    def _require_one_spacing(self, network: nn.Module) -> None:
        """Refuse several spacings in sliding windows, whose batches mix the samples."""
        inner = unwrap_inferer(self)
        several = any(p.spacing_mm is not None and len(p.spacing_mm) > 1 for p in mm_positions(network))
        if several and not isinstance(inner, SimpleInferer):
            raise UsageError(
                f"a batch of several spacings in a {type(inner).__name__}, whose windows mix the samples. Use a batch "
                "size of 1, or one spacing (Spacingd)."
            )


INFERER_WRAPPERS = (AutocastInferer, SpacingInferer)


def inferer_wrappers(inferer: Callable[..., Any]) -> list[Any]:
    """List the :class:`AutocastInferer` and :class:`SpacingInferer` around an inferer, from the outside in."""
    outer: list[Any] = []
    inner: Any = inferer
    while type(inner) in INFERER_WRAPPERS:  # a subclass may do anything
        outer.append(inner)
        inner = inner.inferer
    return outer


def unwrap_inferer(inferer: Callable[..., Any]) -> Any:
    """Return the inferer inside its :func:`inferer_wrappers`."""
    outer = inferer_wrappers(inferer)
    return outer[-1].inferer if outer else inferer


def rewrap_inferer(inferer: Callable[..., Any], inner: Callable[..., Any]) -> Any:
    """Put copies of an inferer's :func:`inferer_wrappers` around another one."""
    for wrapper in reversed(inferer_wrappers(inferer)):
        wrapper = copy.copy(wrapper)
        wrapper.inferer, inner = inner, wrapper
    return inner


@contextmanager
def with_spacing(network: nn.Module, image: Tensor) -> Iterator[None]:
    """Give the network's rotary positions in mm the spacing of ``image`` within the ``with`` block, not longer.

    Afterwards they have the spacing that they had before, so that no later image is read with this one's. Backward
    passes may come after the block.

    Args:
        network: without positions in mm it is left as it is, and the image may be anything.
        image: as for :func:`spacing_of`.

    Raises:
        UsageError: not a module, or as :func:`spacing_of`.
    """
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"network: a {type(network).__name__}; expected an nn.Module, whose rotary positions can be set."
        )
    positions = mm_positions(network)
    before = [p.spacing_mm for p in positions]
    if positions:
        set_spacing(network, spacing_of(image))
    try:
        yield
    finally:
        for p, spacing in zip(positions, before):
            p.spacing_mm = spacing


def spacing_of(image: Tensor) -> Tensor:
    """Read the voxel spacing of a batch of volumes from their affines.

    Args:
        image: MetaTensor ``(B, C, H, W, D)`` as MONAI's loaders collate it, or one volume with a batch axis.

    Returns:
        mm ``(1, 3)`` float64 on the CPU if all volumes have one spacing, else ``(B, 3)``; along ``(H, W, D)``.

    Raises:
        UsageError: no batch of volumes; no affine, or the one of 1 mm that MONAI makes up for arrays without one;
            one affine for several volumes; an axis without a length.
    """
    if image.dim() != 5:
        raise UsageError(f"image: {tuple(image.shape)}; expected volumes (B, C, H, W, D).")
    if not isinstance(image, MetaTensor):
        raise UsageError(
            "image: a plain tensor, which has no affine; rotary positions in mm need the voxel spacing. Keep the "
            "metadata (no track_meta=False), or call set_spacing yourself and leave SpacingInferer out."
        )
    affines = torch.as_tensor(image.affine, dtype=torch.float64, device="cpu").reshape(-1, *image.affine.shape[-2:])
    if len(affines) != len(image):  # torch.stack and torch.cat keep the first volume's
        raise UsageError(
            f"image: {len(affines)} affine(s) for {len(image)} volumes; expected one for each, as MONAI's "
            "list_data_collate keeps them."
        )
    rows = affines[:, :3, :3].square().sum(1).sqrt()
    # crops, flips and turns of the identity that MONAI makes up are no identity, but their voxels are still 1 mm
    unit = torch.isclose(rows, torch.ones_like(rows), rtol=1e-6, atol=0).all(1).any()
    if unit and MetaKeys.ORIGINAL_AFFINE not in image.meta:
        raise UsageError(
            "image: voxels of 1 mm by its affine, and no reader gave it: MONAI makes one up where none is known. Read "
            "the images from files with an affine; or, if voxels are 1 mm indeed, call set_spacing(network, (1, 1, 1)) "
            "and leave SpacingInferer out."
        )
    if rows.shape[1] != 3 or not bool((rows.isfinite() & (rows > 0)).all()):
        raise UsageError(f"image: voxels of {rows.tolist()} mm by its affine; expected three lengths above 0.")
    # after rotations, equal spacings differ by rounding
    return rows[:1] if torch.allclose(rows, rows[:1], rtol=1e-6, atol=0) else rows
