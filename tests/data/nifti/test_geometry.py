"""Affines against nibabel's, over codes, rotations, spacings and units; every oddity told, the impossible refused."""

import itertools
import re

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monai_vit3d.data import ImageError
from monai_vit3d.data.nifti import read_nifti, read_nifti_grid
from monai_vit3d.data.nifti.geometry import SAME_PLACE_VOXELS, corner_shift

from .conftest import nifti_bytes

FIELDS = ["pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y"]
FIELDS += ["qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"]


def rotated(angles=(0.3, -0.2, 0.1), spacing=(2, 3, 4), flip=1, offset=(-50, 20, 7)):
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(*angles) @ np.diag(spacing) @ np.diag([flip, 1, 1])
    affine[:3, 3] = offset
    return affine


def with_qform(affine, code=1, version=1, **fields):
    """Fields of a header that nibabel's ``set_qform`` filled."""
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)()
    header.set_qform(affine, max(code, 0))
    header["qform_code"] = code
    names = [n for n in FIELDS if n.startswith("q")] + ["pixdim"]
    return {**{n: header[n] for n in names}, "version": version, **fields}


@pytest.mark.slow
@given(
    angles=st.tuples(*[st.floats(-3.14, 3.14)] * 3),
    spacing=st.tuples(*[st.floats(0.01, 20)] * 3),
    flip=st.sampled_from([-1, 1]),
    codes=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    version=st.sampled_from([1, 2]),
    endian=st.sampled_from("<>"),
)
@example(
    angles=(6.103515625e-05, 0.0, 3.0),
    spacing=(0.01171875, 5.0, 1.0),
    flip=-1,
    codes=(1, 1),
    shape=(1, 5, 1),
    version=1,
    endian="<",
)
def test_affine_is_nibabels(save, angles, spacing, flip, codes, shape, version, endian):
    affine = rotated(angles, spacing, flip)
    fields = with_qform(affine, codes[0], version, sform_code=codes[1])
    path = save("t1.nii", data=np.ones(shape, np.uint8), affine=affine, endian=endian, **fields)
    grid = read_nifti_grid(path)
    np.testing.assert_array_equal(grid.affine_mm, nib.load(path).affine)
    assert grid.affine_mm.dtype == np.float64
    np.testing.assert_allclose(grid.spacing_mm, nib.affines.voxel_sizes(nib.load(path).affine))
    told = [w for w in read_nifti(path).warnings if not w.startswith("all voxels")]
    expected = ["no valid sform or qform: wh"] if codes == (0, 0) else []
    stored = nib.load(path).header
    # near half a turn a quaternion in float32 is coarse: of thin voxels beside thick ones it misses some by itself
    if min(codes) > 0 and corner_shift(stored.get_sform(), stored.get_qform(), shape) > SAME_PLACE_VOXELS:
        expected = ["sform and qform differ by u"]
    assert [w[:27] for w in told] == expected
    for name in FIELDS:  # written again they give the same bytes
        stored = nib.load(path).header[name]
        assert grid.fields[name].dtype.isnative
        assert grid.fields[name].astype(stored.dtype).tobytes() == stored.tobytes()


@pytest.mark.parametrize(("qcode", "scode", "valid"), itertools.product([-1, 0, 2], [-1, 0, 3], [True, False]))
def test_truth_table(save, qcode, scode, valid):
    qform, sform = rotated(), rotated(angles=(0, 0, 0), offset=(1, 2, 3))
    fields = with_qform(qform, qcode, sform_code=scode)
    fields.update({} if valid else {"quatern_b": 1.5})
    path = save("t1.nii", affine=sform, **fields)
    header = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    grid = read_nifti_grid(path)
    if scode > 0:
        expected = header.get_sform()
    elif qcode > 0 and valid:
        expected = header.get_qform()
    else:
        expected = header.get_base_affine()
    np.testing.assert_array_equal(grid.affine_mm, expected)
    assert (grid.fields["qform_code"], grid.fields["sform_code"]) == (qcode, scode)
    warnings = " ".join(read_nifti(path).warnings)
    assert ("left, are not known" in warnings) == (scode <= 0 and not (qcode > 0 and valid))
    assert ("quaternion" in warnings) == (qcode > 0 and not valid)
    assert ("sform and qform differ" in warnings) == (scode > 0 and qcode > 0 and valid)
    assert ("qform_code -1 is none" in warnings, "sform_code -1 is none" in warnings) == (qcode < 0, scode < 0)


@pytest.mark.parametrize("qfac", [-1, 0, 1, 5])
def test_qfac(save, qfac):
    fields = with_qform(rotated(), sform_code=0)
    fields["pixdim"] = np.array([qfac, *fields["pixdim"][1:]])
    path = save("t1.nii", **fields)
    np.testing.assert_array_equal(read_nifti_grid(path).affine_mm, nib.load(path).affine)
    assert np.linalg.det(read_nifti_grid(path).affine_mm) * (-1 if qfac == -1 else 1) > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -2.0])
def test_quaternion_that_is_none(save, bad):
    volume = read_nifti(save(**with_qform(rotated(), sform_code=0, quatern_c=bad)))
    assert len(volume.warnings) == 2
    assert "quaternion" in volume.warnings[0]


def test_small_differences_of_the_two_forms_are_not_told(save):
    for shift, told in [(0.05, False), (0.25, True), (np.nan, True)]:
        fields = with_qform(rotated(offset=(-50 + shift, 20, 7)), qoffset_x=-50 + shift)
        warnings = read_nifti(save(affine=rotated(), **fields)).warnings
        assert [w[:22] for w in warnings] == ["sform and qform differ"] * told


@given(
    angles=st.tuples(*[st.floats(-0.1, 0.1)] * 3),
    offset=st.tuples(*[st.floats(-5, 5)] * 3),
    shape=st.tuples(*[st.integers(1, 50)] * 3),
)
def test_corner_shift(angles, offset, shape):
    first, second = rotated(), rotated(np.add((0.3, -0.2, 0.1), angles), offset=np.add((-50, 20, 7), offset))
    corners = np.array([[i * (n - 1) for i, n in zip(ijk, shape)] for ijk in np.ndindex(2, 2, 2)])
    there = nib.affines.apply_affine(np.linalg.inv(first) @ second, corners)
    expected = np.linalg.norm(there - corners, axis=1).max()
    assert corner_shift(first, second, shape) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("factor", "told"), [(1.009, False), (1.011, True), (0.9, True)])
def test_pixdim_that_contradicts(save, factor, told):
    path = save(affine=rotated(), pixdim=[1, 2, 3, 4 * factor, 0, 0, 0, 0])
    warnings = read_nifti(path).warnings
    assert [w[:20] for w in warnings] == ["voxel sizes (pixdim)"] * told
    np.testing.assert_array_equal(read_nifti_grid(path).affine_mm, nib.load(path).affine)


@pytest.mark.parametrize(
    ("units", "scale", "words"),
    [(0, 1, None), (2, 1, None), (2 | 8, 1, None), (1, 1000, "metre"), (3 | 16, 1e-3, "micron"), (5, 1, "code 5")],
)
@pytest.mark.parametrize("form", ["sform", "qform", "none"])
def test_units(save, units, scale, words, form):
    size = 2 / scale
    affine = rotated(spacing=(size, 1.5 * size, 2 * size), offset=np.divide((10, -20, 30), scale))
    fields = with_qform(affine, int(form == "qform"), sform_code=int(form == "sform"))
    path = save(affine=affine, xyzt_units=units, **fields)
    volume = read_nifti(path)
    expected = np.diag([scale, scale, scale, 1]) @ nib.load(path).affine
    np.testing.assert_allclose(volume.grid.affine_mm, expected, rtol=1e-12)
    np.testing.assert_allclose(volume.grid.spacing_mm, (2, 3, 4), rtol=1e-6)
    told = [w for w in volume.warnings if "unit" in w]
    assert len(told) == (words is not None)
    assert not told or words in told[0]
    assert volume.grid.fields["xyzt_units"] == units


@pytest.mark.parametrize("spacing", [(1, 1, 200), (0.0005, 1, 1)])
def test_spacing_that_is_none_of_an_image(save, spacing):
    (warning,) = read_nifti(save(affine=rotated(spacing=spacing))).warnings
    assert "unit may be wrong" in warning


@pytest.mark.parametrize(("shear", "told"), [(0.0, False), (1e-4, False), (0.2, True)])
def test_shear_is_kept_and_told(save, shear, told):
    affine = rotated()
    affine[:3, 1] += shear * affine[:3, 2]
    path = save(affine=affine)
    np.testing.assert_array_equal(read_nifti_grid(path).affine_mm, nib.load(path).affine)
    assert ["right angles" in w for w in read_nifti(path).warnings] == [True] * told


def singular(kind):
    affine = rotated()
    affine[:3, 2] = {"zero": 0, "parallel": affine[:3, 0] * 1.7, "plane": affine[:3, 0] - 0.4 * affine[:3, 1]}[kind]
    return affine


@pytest.mark.parametrize("kind", ["zero", "parallel", "plane"])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_singular_is_refused(save, kind, scale):
    affine = np.diag([scale] * 3 + [1]) @ singular(kind)
    path = save(affine=affine, pixdim=[1] * 8)
    for read in (read_nifti_grid, read_nifti):
        with pytest.raises(ImageError, match=re.escape(str(path)) + ": the affine maps the volume to a plane.*repair"):
            read(path)


@pytest.mark.parametrize("spacing", [(0.01, 0.01, 0.01), (0.01, 0.01, 5), (1e-3, 1, 50)])
def test_small_voxels_are_not_singular(save, spacing):
    assert read_nifti_grid(save(affine=rotated(spacing=spacing))).spacing_mm == pytest.approx(spacing, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["srow_x", "srow_z"])
def test_affine_that_is_not_finite(save, bad, field):
    for at in (0, 3):
        row = np.ones(4)
        row[at] = bad
        path = save(**{field: row})
        with pytest.raises(ImageError, match=re.escape(str(path)) + ": the affine is not finite.*repair"):
            read_nifti_grid(path)
    with pytest.raises(ImageError, match="not finite"):
        read_nifti_grid(save(**with_qform(rotated(), sform_code=0, qoffset_y=bad)))
    with pytest.raises(ImageError, match="not finite"):
        read_nifti_grid(save(content=nifti_bytes(version=2, srow_x=[1e300, 0, 0, 0])))


def test_trailing_axes_do_not_move_the_volume(save):
    data = np.ones((4, 5, 6, 1, 1), np.uint8)
    fields = {"sform_code": 0, "pixdim": [1, 2, 3, 4, 5, 6, 7, 8]}
    path = save("t1.nii", data=data, **fields)
    np.testing.assert_array_equal(read_nifti_grid(path).affine_mm, nib.load(path).affine)
    four = save("4d.nii", data=np.ones((4, 5, 6, 3), np.uint8), **fields)
    np.testing.assert_array_equal(read_nifti_grid(four, volume=2).affine_mm, nib.load(four).affine)
