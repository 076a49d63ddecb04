"""What a run computes and writes for every case, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monai_vit3d.data.errors import UsageError

if TYPE_CHECKING:
    from monai_vit3d.bundle.load import Bundle
    from monai_vit3d.bundle.metadata import Metadata


@dataclass(frozen=True)
class Options:
    """What is read and computed for every case.

    Args:
        flip_axes: axes of the network's input; its outputs for all their flips are averaged.
        tta_degrees: angles of rotations about the axes of the network's input, and
        tta_scales: factors of its size; its outputs for all of them are averaged.
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
    tta_degrees: tuple[float, ...] = (0, 0, 0)
    tta_scales: tuple[float, ...] = ()


def output_kinds(
    metadata: Metadata, tta: bool | str | Sequence[int], uncertainty: str | None, probabilities: bool
) -> list[str]:
    """List the kinds of output of each case; see ``case.KINDS``.

    Raises:
        UsageError: arguments that contradict each other or the bundle.
    """
    if uncertainty not in (None, "entropy", "variance"):
        raise UsageError(f"uncertainty={uncertainty}; expected entropy or variance.")
    if uncertainty == "variance" and not tta:
        raise UsageError("uncertainty=variance: over flips. Give tta=flips, too, or uncertainty=entropy.")
    if metadata.classifies and (uncertainty or probabilities):
        raise UsageError(
            f"{metadata.name}: classifies whole volumes, so there are no maps to write; predictions.csv holds the "
            "probabilities. Leave out uncertainty= and probabilities=True."
        )
    return ["seg", *([uncertainty] if uncertainty else []), *(["prob"] if probabilities else [])]


def choose_views(tta: bool | str | Sequence[int], bundle: Bundle) -> dict[str, Any]:
    """Choose the views of the input over which the network is averaged, as fields of :class:`Options`.

    Args:
        tta: True or ``"flips"`` for the flips that the bundle names, axes for others, ``"full"`` for the flips,
            rotations and scales that the bundle names; False for none.
        bundle: names them in its config.

    Raises:
        UsageError: anything else, axes other than 0, 1 and 2, or a bundle that names none.
    """
    if tta is False or tta == ():
        return {}
    if isinstance(tta, str) and tta not in ("flips", "full"):
        raise UsageError(f"tta={tta}; expected flips, full, or axes.")
    if tta == "full":
        views = {"tta_degrees": bundle.tta_degrees, "tta_scales": bundle.tta_scales}
        if not any(bundle.tta_degrees) and not bundle.tta_scales:
            raise UsageError(
                f"tta=full: {bundle.metadata.name} names no tta_degrees and no tta_scales in its inference config. "
                "Give tta=flips, or set them, as tta_degrees=[8,8,8]."
            )
        return {"flip_axes": bundle.flip_axes, **views}
    return {"flip_axes": _choose_flip_axes(tta, bundle)}


def _choose_flip_axes(tta: bool | str | Sequence[int], bundle: Bundle) -> tuple[int, ...]:
    axes = bundle.flip_axes if isinstance(tta, bool | str) else tuple(tta)
    if not axes:
        raise UsageError(
            f"tta=flips: {bundle.metadata.name} names no flip_axes in its inference config, along which its network "
            "was trained with flips; other flips make its labels worse. Give tta=0,1,2, or some of these, if they suit."
        )
    if not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes):
        raise UsageError(f"tta={','.join(map(str, axes))}; expected some of 0, 1 and 2, each once.")
    return axes
