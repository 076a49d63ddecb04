"""What a run computes and writes for every case, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monai_vit3d.data.errors import UsageError

if TYPE_CHECKING:
    from monai_vit3d.bundle.load import Bundle
    from monai_vit3d.bundle.metadata import Metadata


@dataclass(frozen=True)
class Options:
    """What is read and computed for every case.

    Args:
        flip_axes: axes of the network's input; its outputs for all their flips are averaged.
        uncertainty: ``"entropy"`` of the probabilities, ``"variance"`` over the flips, or None.
        probabilities: whether to keep them, a map a class.
        volume: which volume of 4D files, from 0; None refuses them.
        max_voxels: the largest volume that is taken.
        units: ``"stored"``, or ``"suv"``: a DICOM PET's standardised uptake values by body weight.
        seg: whether the labels of DICOM series are written as a DICOM SEG, too.
        resample_channels: whether channels are resampled onto the first one's grid; otherwise they must lie on one.
        only: values of the labels that are kept, the others become background; all if there are none.
        split: whether each label is written as a binary file, too.
        mesh: format of a surface of each label, of ``data.mesh_files.MESH_FORMATS``; None writes none.
    """

    flip_axes: tuple[int, ...] = ()
    uncertainty: str | None = None
    probabilities: bool = False
    volume: int | None = None
    max_voxels: int = 2**30
    units: str = "stored"
    seg: bool = True
    resample_channels: bool = False
    only: tuple[int, ...] = ()
    split: bool = False
    mesh: str | None = None


def output_kinds(
    metadata: Metadata, tta: bool | Sequence[int], uncertainty: str | None, probabilities: bool
) -> list[str]:
    """List the kinds of output of each case; see ``case.KINDS``.

    Raises:
        UsageError: arguments that contradict each other or the bundle.
    """
    if uncertainty not in (None, "entropy", "variance"):
        raise UsageError(f"uncertainty={uncertainty}; expected entropy or variance.")
    if uncertainty == "variance" and not tta:
        raise UsageError("uncertainty=variance: over flips. Give tta=True, too, or uncertainty=entropy.")
    if metadata.classifies and (uncertainty or probabilities):
        raise UsageError(
            f"{metadata.name}: classifies whole volumes, so there are no maps to write; predictions.csv holds the "
            "probabilities. Leave out uncertainty= and probabilities=True."
        )
    return ["seg", *([uncertainty] if uncertainty else []), *(["prob"] if probabilities else [])]


def choose_flip_axes(tta: bool | Sequence[int], bundle: Bundle) -> tuple[int, ...]:
    """Choose the axes to flip: those given, or those that the bundle names.

    Raises:
        UsageError: other axes than 0, 1 and 2, or a bundle that names none.
    """
    if tta is False or tta == ():
        return ()
    axes = bundle.flip_axes if tta is True else tuple(tta)
    if not axes:
        raise UsageError(
            f"tta=True: {bundle.metadata.name} names no flip_axes in its inference config, along which its network was "
            "trained with flips; other flips make its labels worse. Give tta=0,1,2, or some of these, if you know them."
        )
    if not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes):
        raise UsageError(f"tta={','.join(map(str, axes))}; expected some of 0, 1 and 2, each once.")
    return axes
