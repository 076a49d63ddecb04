"""Write a file for each label of a case: a mask, a surface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.mesh_files import MESH_FORMATS, write_mesh
from monai_vit3d.data.nifti import write_labels
from monai_vit3d.data.volume import Array, Grid

from .case import label_kind
from .chosen_labels import ChosenLabel


def label_kinds(split: bool, mesh: str | None) -> list[str]:
    """List the kinds of file that each label gets, of ``case.LABEL_KINDS``.

    Raises:
        UsageError: no such format of meshes.
    """
    if mesh is not None and mesh not in MESH_FORMATS:
        raise UsageError(f"mesh={mesh}; expected {' or '.join(MESH_FORMATS)}.")
    return [*(["split"] if split else []), *([mesh] if mesh else [])]


def label_outputs(chosen: Sequence[ChosenLabel], split: bool, mesh: str | None) -> list[str]:
    """List the kinds of output of a case that its labels have, for a plan.

    Raises:
        UsageError: as :func:`label_kinds`.
    """
    return [label_kind(kind, label.stem) for kind in label_kinds(split, mesh) for label in chosen]


def write_label_files(
    labels: Array, grid: Grid, chosen: Sequence[ChosenLabel], kinds: Sequence[str], place: Callable[[str], Path]
) -> list[Path]:
    """Write a file of each kind for each label; a label without a voxel gets an empty mask, and no mesh.

    Args:
        labels: (H, W, D) integers, or (C, H, W, D) masks; channel c is label c + 1.
        grid: of the image.
        chosen: for which labels.
        kinds: as of :func:`label_kinds`.
        place: gives the path of an output by its kind, as ``case.label_kind`` writes it.

    Returns:
        The paths of the files that were written.
    """
    from monai_vit3d.visualize.surface import mask_surface  # imports PyTorch, which a plan does without

    written = []
    for label in chosen if kinds else ():
        mask = labels[label.value - 1] != 0 if labels.ndim == 4 else labels == label.value
        for kind in kinds:
            path = place(label_kind(kind, label.stem))
            if kind == "split":
                write_labels(mask, grid, path)
            elif mesh := mask_surface(mask, grid.affine_mm):
                write_mesh(mesh, path)
            else:
                path.unlink(missing_ok=True)  # of an earlier run
                continue
            written.append(path)
    return written
