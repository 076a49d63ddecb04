"""STL and PLY files, read back by small parsers written from the formats' descriptions."""

import struct

import numpy as np
import pytest

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.mesh_files import Mesh, write_mesh

TETRAHEDRON = Mesh(
    np.array([[0, 0, 0], [2.5, 0, 0], [0, 3, 0], [0, 0, -4.25]]), np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
)


def read_stl(path):
    """(M, 3, 3) corners and (M, 3) normals."""
    content = path.read_bytes()
    (count,) = struct.unpack_from("<I", content, 80)
    assert len(content) == 84 + 50 * count
    numbers = np.array([struct.unpack_from("<12f", content, 84 + 50 * i) for i in range(count)])
    return numbers[:, 3:].reshape(-1, 3, 3), numbers[:, :3]


def read_ply(path):
    """(M, 3, 3) corners."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    vertices, faces = (int(line.split()[2]) for line in lines if line.startswith("element"))
    assert [line for line in lines if line.startswith("property")] == [
        *(f"property float {axis}" for axis in "xyz"),
        "property list uchar int vertex_indices",
    ]
    points = np.array(struct.unpack_from(f"<{3 * vertices}f", body)).reshape(-1, 3)
    rows = list(struct.iter_unpack("<B3i", body[12 * vertices :]))
    assert len(rows) == faces
    assert {row[0] for row in rows} == {3}
    return points[[row[1:] for row in rows]]


@pytest.mark.parametrize(("name", "reader"), [("a.stl", lambda path: read_stl(path)[0]), ("a.ply", read_ply)])
def test_triangles_come_back(tmp_path, name, reader):
    path = tmp_path / "new" / name
    write_mesh(TETRAHEDRON, path)
    np.testing.assert_array_equal(reader(path), TETRAHEDRON.vertices[TETRAHEDRON.faces])
    assert b" SPACE=RAS" in path.read_bytes()[:120]
    first = path.read_bytes()
    write_mesh(TETRAHEDRON, path)
    assert path.read_bytes() == first
    assert [one.name for one in path.parent.iterdir()] == [name]


def test_normals_are_those_of_the_right_hand(tmp_path):
    write_mesh(TETRAHEDRON, tmp_path / "a.stl")
    assert not (tmp_path / "a.stl").read_bytes().startswith(b"solid")  # or readers take it for text
    corners, normals = read_stl(tmp_path / "a.stl")
    for (a, b, c), normal in zip(corners, normals):
        expected = np.cross(b - a, c - b)
        np.testing.assert_allclose(normal, expected / np.linalg.norm(expected), atol=1e-6)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a\.obj: not the name of a mesh\. End it with \.stl or \.ply\."):
        write_mesh(TETRAHEDRON, tmp_path / "a.obj")
