"""Rotary positions in millimetres: the voxel spacing of the images at hand, read from their affines."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from monai.utils import MetaKeys
from torch import Tensor, nn

from ..data.errors import UsageError
from ..layers import set_spacing
from ..layers.rope import mm_positions
from .autocast import AutocastInferer


class SpacingInferer(Inferer):
    """Run another inferer, the network's rotary positions in mm set by the spacing of its input.

    An inferer reaches training, evaluation and inference alike, and sees the volume before windows, which know no
    affine, are cut out of it. The affine is that of the input after its transforms: of the grid that the network sees.
    Augmentations that scale (RandAffined, RandZoomd) change it in MONAI, so millimetres stay what they are in the
    patient, and only what is in the voxels changes.

    It must see the metadata: no ``EnsureTyped(track_meta=False)`` before it. A network without positions in mm is run
    as it is, and needs no metadata.

    Args:
        inferer: what runs the network; None runs it on the whole input.

    Example:
        >>> inferer = SpacingInferer(SlidingWindowInferer((96, 96, 32), 4, 0.5, "gaussian"))
        >>> evaluator = SupervisedEvaluator(device, loader, network, inferer=inferer)
    """

    def __init__(self, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.inferer = SimpleInferer() if inferer is None else inferer

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Run ``network`` over ``inputs`` ``(B, C, H, W, D)``; returns what the inferer does.

        Raises:
            UsageError: as :func:`with_spacing`; or samples of several spacings that are not run as one batch.
        """
        with with_spacing(network, inputs):
            self._check(network)
            return self.inferer(inputs, network, *args, **kwargs)

    def _check(self, network: nn.Module) -> None:
        """Several spacings: windows of one batch may be of any sample, so rows would not be theirs."""
        inner = unwrap_inferer(self)
        several = any(p.spacing_mm is not None and len(p.spacing_mm) > 1 for p in mm_positions(network))
        if several and not isinstance(inner, SimpleInferer):
            raise UsageError(
                f"a batch of several spacings in a {type(inner).__name__}: its windows are not told apart by sample. "
                "Use a batch size of 1, or one spacing (Spacingd)."
            )


INFERER_WRAPPERS = (AutocastInferer, SpacingInferer)


def inferer_wrappers(inferer: Inferer) -> list[Any]:
    """The :class:`AutocastInferer` and :class:`SpacingInferer` around an inferer, from the outside in."""
    found = []
    while type(inferer) in INFERER_WRAPPERS:  # a subclass may do anything
        found.append(inferer)
        inferer = inferer.inferer
    return found


def unwrap_inferer(inferer: Inferer) -> Inferer:
    """The inferer itself, or what its :func:`inferer_wrappers` run."""
    around = inferer_wrappers(inferer)
    return around[-1].inferer if around else inferer


def rewrap_inferer(inferer: Inferer, inner: Inferer) -> Inferer:
    """Put copies of an inferer's :func:`inferer_wrappers` around another one."""
    for wrapper in reversed(inferer_wrappers(inferer)):
        wrapper = copy.copy(wrapper)
        wrapper.inferer, inner = inner, wrapper
    return inner


@contextmanager
def with_spacing(network: nn.Module, image: Tensor) -> Iterator[None]:
    """Within it, the network's rotary positions in mm have the spacing of ``image``; after it, what they had before.

    So nothing is left for later images to be taken for. Backward passes may come after it.

    Args:
        network: one without positions in mm is left as it is, and anything may be the image then.
        image: as :func:`spacing_of` wants it.

    Raises:
        UsageError: not a module, or as :func:`spacing_of`.
    """
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"network: a {type(network).__name__}; an nn.Module is needed, as only one can be asked for its positions."
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
    """The voxel spacing of a batch of volumes, by their affines.

    Args:
        image: MetaTensor ``(B, C, H, W, D)`` as MONAI's loaders collate it, or one volume with a batch axis.

    Returns:
        mm ``(1, 3)`` float64 on the CPU where all volumes have one spacing, else ``(B, 3)``; along ``(H, W, D)``.

    Raises:
        UsageError: no batch of volumes; no affine, or the one of 1 mm that MONAI gives to arrays of no known place;
            one affine for several volumes; an axis without a length.
    """
    if image.dim() != 5:
        raise UsageError(f"image: {tuple(image.shape)}; volumes (B, C, H, W, D) are needed.")
    if not isinstance(image, MetaTensor):
        raise UsageError(
            "image: a plain tensor, which has no affine; rotary positions in mm need the voxel spacing. Keep the "
            "metadata (no track_meta=False), or call set_spacing yourself and leave SpacingInferer out."
        )
    affines = torch.as_tensor(image.affine, dtype=torch.float64, device="cpu").reshape(-1, *image.affine.shape[-2:])
    if len(affines) != len(image):  # torch.stack and torch.cat keep the first volume's
        raise UsageError(
            f"image: {len(affines)} affine(s) for {len(image)} volumes; one for each is needed, as MONAI's "
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
        raise UsageError(f"image: voxels of {rows.tolist()} mm by its affine; three lengths above 0 are needed.")
    # rotations leave a rounding error in equal spacings
    return rows[:1] if torch.allclose(rows, rows[:1], rtol=1e-6, atol=0) else rows
