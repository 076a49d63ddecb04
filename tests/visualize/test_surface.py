"""Surfaces of masks: closed, turned outward, where the voxels are, and as large."""

from collections import Counter

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial import ConvexHull

from monai_vit3d.visualize.surface import mask_surface

SHAPE = (36, 40, 30)
AFFINES = {
    "RAS": np.diag([1.0, 1.0, 1.0, 1.0]),
    "LAS, coarse slices": nib.affines.from_matvec(np.diag([-0.7, 0.7, 3.0]), [40, -30, 12]),
    "oblique": nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.5, 1.1) @ np.diag([0.9, 1.2, 2.0]), [5, 6, 7]),
    "oblique, mirrored": nib.affines.from_matvec(
        nib.eulerangles.euler2mat(1.3, 0.2, -0.4) @ np.diag([0.9, -1.2, 2.0]), [-5, 60, 7]
    ),
}


def ellipsoid(*radii, centre=(17.3, 19.1, 14.6)):
    grid = np.indices(SHAPE).T - np.array(centre)
    return ((grid / np.array(radii)) ** 2).sum(axis=-1).T <= 1


def signed_volume(mesh):
    """The sum of tetrahedra from the origin, by determinants."""
    return np.linalg.det(mesh.vertices[mesh.faces]).sum() / 6


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("radii", [(9, 9, 9), (14, 6, 9), (2, 2, 2)], ids=str)
def test_volume_place_and_winding(affine, radii):
    mask = ellipsoid(*radii)
    voxels = nib.affines.apply_affine(affine, np.argwhere(mask))
    expected = mask.sum() * abs(np.linalg.det(affine[:3, :3]))
    mesh = mask_surface(mask, affine)
    assert signed_volume(mesh) == pytest.approx(expected, rel=0.01)  # positive: turned outward
    hull = ConvexHull(mesh.vertices)
    assert expected < hull.volume < 1.2 * expected  # the steps of voxels make no hole and no spike
    np.testing.assert_allclose(mesh.vertices[hull.vertices].mean(0), voxels.mean(0), atol=1.5)
    np.testing.assert_allclose(mesh.vertices.min(0), voxels.min(0), atol=3)
    edges = Counter((a, b) for face in mesh.faces.tolist() for a, b in zip(face, face[1:] + face[:1]))
    assert set(edges.values()) == {1}
    assert all((b, a) in edges for a, b in edges)  # closed: each edge has a triangle on both sides


@pytest.mark.parametrize(
    "shape",
    [(slice(None),) * 3, (slice(5, 6),), (slice(5, 6), slice(7, 8)), (slice(0, 1), slice(0, 1), slice(0, 1))],
    ids=["the whole image", "one slice", "one line", "a corner's voxel"],
)
def test_what_touches_the_border_or_is_thin_is_closed_and_as_large(shape):
    mask = np.zeros((9, 12, 8), np.uint8)
    mask[shape] = 1
    mesh = mask_surface(mask, np.eye(4))
    assert signed_volume(mesh) == pytest.approx(mask.sum(), rel=0.01)
    low, high = np.argwhere(mask).min(0), np.argwhere(mask).max(0)
    assert (mesh.vertices >= low - 1).all()
    assert (mesh.vertices <= high + 1).all()


def test_two_pieces_hold_the_sum():
    mask = ellipsoid(5, 5, 5, centre=(8, 8, 8)) | ellipsoid(4, 6, 3, centre=(26, 28, 20))
    assert signed_volume(mask_surface(mask, np.eye(4))) == pytest.approx(mask.sum(), rel=0.01)


def test_nothing_has_no_surface():
    assert mask_surface(np.zeros(SHAPE, bool), np.eye(4)) is None
