"""Read a volume's affine by the rules of nibabel and fMRIPrep, in mm, with a warning for each oddity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header

from monai_vit3d.data.same_grid import SAME_PLACE_VOXELS, corner_shift
from monai_vit3d.data.volume import Array, Grid

from .file_bytes import refusal
from .header import RESAVE, NiftiHeader

FIELDS = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip

_UNITS = {0: ("unknown", 1.0), 1: ("metre", 1000.0), 2: ("mm", 1.0), 3: ("micron", 0.001)}
_PLAUSIBLE_MM = (0.001, 100.0)


def read_geometry(header: NiftiHeader) -> tuple[Grid, list[str]]:
    """Read the grid of a volume; its affine is not checked yet.

    The sform is used if its code is above 0, else the qform if its code is above 0 and its quaternion valid, else
    nibabel's base affine: the order of nibabel, and of fMRIPrep's truth table (niworkflows' ``ValidateImage``).
    Codes are not changed, and no axis is flipped.

    Args:
        header: of the file.

    Returns:
        the grid, and a sentence for each contradiction in the header.
    """
    nifti = header.nifti
    affine, warnings = _chosen_affine(nifti, header.shape)
    unit, scale = _UNITS.get(int(nifti["xyzt_units"]) & 7, (f"unknown code {int(nifti['xyzt_units']) & 7}", 1.0))
    if unit not in ("mm", "unknown"):
        warnings.append(f"the unit of length is {unit}; the affine was multiplied by {scale:g} for mm")
    affine = np.vstack([affine[:3] * scale, affine[3:]])
    fields = {name: _native(nifti[name]) for name in FIELDS}
    return Grid(header.shape, affine, header.trailing, fields, header.version), warnings


def _chosen_affine(nifti: Nifti1Header, shape: tuple[int, ...]) -> tuple[Array, list[str]]:
    codes = {name: int(nifti[name]) for name in ("sform_code", "qform_code")}
    warnings = [
        f"{name} {code} is none of NIfTI's, 0 to 5; it was read as {'set' if code > 0 else 'not set'}"
        for name, code in codes.items()
        if not 0 <= code <= 5
    ]
    qform = _qform(nifti) if nifti["qform_code"] > 0 else None
    if nifti["qform_code"] > 0 and qform is None:
        warnings.append("the quaternion of the qform is not valid; the qform was passed over")
    if nifti["sform_code"] > 0:
        sform = nifti.get_sform()
        return sform, warnings + _sform_contradictions(nifti, sform, qform, shape)
    if qform is not None:
        return qform, warnings
    warnings.append(
        "no valid sform or qform: where the volume lies, and which side is left, are not known; nibabel's default "
        "was taken, the first axis from right to left"
    )
    return nifti.get_base_affine(), warnings


def _qform(nifti: Nifti1Header) -> Array | None:
    """Compute the qform's affine; None if its quaternion does not describe a rotation."""
    header = nifti.copy()
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1  # 0 stands for 1 in the standard; nibabel reads all others so too
    try:
        affine = header.get_qform()
    except ValueError:
        return None
    return affine if np.isfinite(affine[:3, :3]).all() else None


def _sform_contradictions(nifti: Nifti1Header, sform: Array, qform: Array | None, shape: tuple[int, ...]) -> list[str]:
    warnings = []
    sizes, pixdim = _sizes(sform), nifti["pixdim"][1:4].astype(float)
    if (np.abs(sizes - pixdim) > 0.01 * pixdim).any():
        contradiction = f"voxel sizes (pixdim) {_numbers(pixdim)} contradict the sform's {_numbers(sizes)}"
        warnings.append(f"{contradiction}; the sform was believed")
    if qform is not None and _is_regular(sform):
        shift = corner_shift(sform, qform, shape)
        if not shift <= SAME_PLACE_VOXELS:
            warnings.append(f"sform and qform differ by up to {shift:.3g} voxels; the sform was believed")
    return warnings


def _sizes(affine: Array) -> Array:
    return np.sqrt((affine[:3, :3] ** 2).sum(axis=0))


def _is_finite(affine: Array) -> bool:
    return bool(np.isfinite(affine).all() and np.isfinite(_sizes(affine)).all())


def _is_regular(affine: Array) -> bool:
    """Return whether the three axes are finite and span space, however small or unequal the voxels."""
    sizes = _sizes(affine)
    if not (_is_finite(affine) and sizes.min() > 1e-6 * sizes.max()):
        return False
    return bool(np.linalg.svd(affine[:3, :3] / sizes, compute_uv=False)[-1] > 1e-4)


def check_affine(affine: Array, path: str | Path) -> None:
    """Refuse an affine that is not finite or maps the volume to a plane.

    Raises:
        ImageError: the affine is one of these.
    """
    if _is_regular(affine):
        return
    fault = "maps the volume to a plane" if _is_finite(affine) else "is not finite"
    problem = f"the affine {fault} ({affine[:3].tolist()}); expected three axes that span space"
    raise refusal(path, problem, RESAVE)


def oddities(grid: Grid) -> list[str]:
    """Warn of an implausible spacing, and of axes that are not at right angles; a sentence each."""
    warnings, spacing = [], grid.spacing_mm
    if not all(_PLAUSIBLE_MM[0] <= s <= _PLAUSIBLE_MM[1] for s in spacing):
        warnings.append(f"spacing {_numbers(spacing)} mm is hardly that of an image; the unit may be wrong")
    axes = grid.affine_mm[:3, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        warnings.append("the axes are not at right angles (a shear); they were kept as they are")
    return warnings


def _native(value: Array) -> Array:
    return np.array(value, dtype=value.dtype.newbyteorder("="))


def _numbers(values: Array | tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"
