"""Write surfaces as STL or PLY, in mm of the patient's frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import UsageError
from .files import replacing
from .volume import Array

# 3D Slicer reads the frame from the header, and takes LPS+ where there is none
_COMMENT = "written by monai_vit3d in mm SPACE=RAS"
_STL_HEADER_BYTES = 80


@dataclass(frozen=True, eq=False)
class Mesh:
    """A surface of triangles.

    Args:
        vertices: (N, 3), in mm, RAS+.
        faces: (M, 3), indices of the vertices, anticlockwise seen from outside.
    """

    vertices: Array
    faces: Array


def write_mesh(mesh: Mesh, path: str | Path) -> None:
    """Write a surface, all of it or nothing; the same surface gives the same bytes.

    Args:
        mesh: what to write.
        path: ends in a key of :data:`MESH_FORMATS`; its folder is created if needed.

    Raises:
        UsageError: another suffix.
    """
    suffix = Path(path).suffix.removeprefix(".")
    if suffix not in MESH_FORMATS:
        raise UsageError(f"{path}: not the name of a mesh. End it with .{' or .'.join(MESH_FORMATS)}.")
    with replacing(path, "wb") as file:
        file.write(MESH_FORMATS[suffix](mesh))


def _stl(mesh: Mesh) -> bytes:
    """Encode as binary STL: normal, corners and two unused bytes of each triangle."""
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    triangles = np.zeros(len(corners), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("unused", "<u2")])
    triangles["normal"] = normals / np.where(lengths > 0, lengths, 1)
    triangles["corners"] = corners
    count = np.array(len(triangles), "<u4")
    return _COMMENT.encode().ljust(_STL_HEADER_BYTES) + count.tobytes() + triangles.tobytes()


def _ply(mesh: Mesh) -> bytes:
    """Encode as binary PLY: vertices, then faces by the indices of their corners."""
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.faces
    head = [
        *("ply", "format binary_little_endian 1.0", f"comment {_COMMENT}", f"element vertex {len(mesh.vertices)}"),
        *(f"property float {axis}" for axis in "xyz"),
        *(f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header\n"),
    ]
    return "\n".join(head).encode() + mesh.vertices.astype("<f4").tobytes() + faces.tobytes()


MESH_FORMATS: dict[str, Callable[[Mesh], bytes]] = {"stl": _stl, "ply": _ply}
