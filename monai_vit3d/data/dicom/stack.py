"""Order slices in space, and compute the affine from their positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.volume import Array, Grid

from .headers import element, element_number
from .series import Series, describe_series
from .slices import Slice, read_slices
from .volumes import SAME_PLACE_MM, pick_volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TILT_DEGREES = 0.1  # more causes a warning; the affine represents any tilt
# how far slices may be off the even grid without a warning; positions with one decimal are common:
_OFF_GRID_MM, _OFF_GRID_SHARE = 0.1, 0.01  # the larger of mm and share of the step ...
_MAX_OFF_GRID_SHARE = 0.25  # ... but at most this share of it
_REFUSED_OFF_GRID = 0.1  # share of the step; less causes a warning


def stack_slices(series: Series, volume: int | None = None) -> tuple[list[Slice], Grid, tuple[str, ...]]:
    """Put a volume's slices in their order in space.

    Args:
        series: from :func:`find_series`.
        volume: which one of a series with several (time points, echoes, stacks), from 0.

    Returns:
        The slices, the grid, and a sentence for each oddity.

    Raises:
        ImageError: as :func:`read_series`, except for errors of pixels.
    """
    where = describe_series(series)
    every = [plane for path in series.files for plane in read_slices(path)]
    slices = pick_volume(every, volume, where)
    if len(slices) < 2:
        raise ImageError(f"{where}: {len(slices)} slice; a volume needs two or more. Choose another series.")
    along, down = slices[0].orientation.reshape(2, 3)
    if not np.allclose([along @ along, down @ down, along @ down], [1, 1, 0], atol=1e-3):
        raise ImageError(
            f"{where}: ImageOrientationPatient {slices[0].orientation.tolist()}; expected two unit vectors at right "
            "angles. Export the series again."
        )
    normal = np.cross(along, down)
    slices = sorted(slices, key=lambda s: float(s.position @ normal))
    step, warnings = _even_step(slices, normal, where)
    affine = np.eye(4)
    between_rows, between_columns = slices[0].spacing
    affine[:3, :3] = np.stack([along * between_columns, down * between_rows, step], axis=1)
    affine[:3, 3] = slices[0].position
    rows, columns = slices[0].shape
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(np.cross(normal, step)), normal @ step)))
    if tilt > _TILT_DEGREES:
        warnings.append(f"slices lean by {tilt:.1f} degrees (gantry tilt); the affine has a shear")
    warnings += [*_count_warnings(every, several=len(slices) < len(every)), *series.warnings]
    return slices, Grid((columns, rows, len(slices)), _LPS_TO_RAS @ affine), tuple(warnings)


def _even_step(slices: Sequence[Slice], normal: Array, where: str) -> tuple[Array, list[str]]:
    """Compute the step between neighbouring slices, (3,) LPS mm, and a warning if the steps are not quite equal."""
    positions = np.array([s.position for s in slices])
    gaps = np.diff(positions @ normal)
    step = (positions[-1] - positions[0]) / len(gaps)
    length = float(np.linalg.norm(step))
    off = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1).max()
    tolerance = min(max(_OFF_GRID_SHARE * length, _OFF_GRID_MM), _MAX_OFF_GRID_SHARE * length)
    # 1e-6: float64's own rounding must not decide about positions that are exactly the tolerance away
    if gaps.min() >= SAME_PLACE_MM and off <= tolerance * (1 + 1e-6):
        return step, []
    steps, k = gaps / gaps.min(), int(gaps.argmax())
    missing = int(steps.round().sum()) - len(steps)
    if missing and np.abs(steps - steps.round()).max() < 0.05 * steps.max():
        raise ImageError(
            f"{where}: {missing} slice(s) missing, the most between {slices[k].path.name} and "
            f"{slices[k + 1].path.name}: {gaps[k]:.3f} mm apart, others {gaps.min():.3f} mm. Copy or export the whole "
            "series again."
        )
    if off <= _REFUSED_OFF_GRID * length:
        return step, [f"slices up to {off:.3f} mm off an even grid ({off / length:.0%} of the {length:.3f} mm between)"]
    raise ImageError(
        f"{where}: uneven slices, {gaps.min():.3f} to {gaps.max():.3f} mm apart and up to {off:.3f} mm off an "
        f"even grid; {_REFUSED_OFF_GRID:.0%} of the spacing is taken. Export the series again, or resample it to an "
        "even grid."
    )


def _count_warnings(slices: Sequence[Slice], several: bool) -> list[str]:
    """Warn of missing files by InstanceNumber and ImagesInAcquisition; each file counts once."""
    headers = list({s.path: s.header for s in slices}.values())
    warnings: list[str] = []
    if len(headers) == 1:
        return warnings
    instances = Counter(
        int(n) for n in (element_number(header, "InstanceNumber") for header in headers) if n is not None
    )
    if instances:
        first, last = min(instances), max(instances)
        if first > 1 or last - first + 1 > len(instances):
            warnings.append(f"InstanceNumber goes from {first} to {last} in {len(headers)} files; some may be missing")
        doubled = sorted(n for n, count in instances.items() if count > 1)
        if doubled and not several:
            warnings.append(f"InstanceNumber {doubled[0]} is there {instances[doubled[0]]} times")
    acquisitions = Counter(element(header, "AcquisitionNumber") for header in headers)
    for header in headers:
        expected = element_number(header, "ImagesInAcquisition") or 0
        present = acquisitions[element(header, "AcquisitionNumber")]
        if present < expected:
            warnings.append(f"{present} files of an acquisition that has {expected:.0f} (ImagesInAcquisition)")
            break
    return warnings
