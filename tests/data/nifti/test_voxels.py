"""Voxels against nibabel's float64: every stored type, scaling, repairs, and values that float32 cannot serve."""

import re

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monai_vit3d.data import ImageError
from monai_vit3d.data.nifti import read_nifti, voxels
from monai_vit3d.data.nifti.voxels import to_float32
from tests.helpers import pairwise

SHAPE = (8, 9, 10)
TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
SCALINGS = [(1, 0), (2, 0), (1, -1024), (-0.37, 12.5), (0, 7), (np.nan, 7), (np.inf, 0), (0, np.nan), (1e-3, 1e3)]


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    monkeypatch.setattr(voxels, "SLAB_VOXELS", 77)  # divides nothing: 720 voxels are ten slabs
    monkeypatch.setattr(voxels, "ROWS_AT_A_TIME", 5)
    monkeypatch.setattr(voxels, "TILE", 200)  # four columns of five rows: six tiles


def data_of(dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype.startswith("f"):
        return rng.normal(100, 40, SHAPE).astype(dtype)
    info = np.iinfo(dtype)
    low, high = max(info.min, -(10**6)), min(info.max, 10**6)
    return rng.integers(low, high, SHAPE, dtype, endpoint=True)


@pytest.mark.parametrize(("dtype", "scaling", "endian", "version"), pairwise(TYPES, SCALINGS, "<>", [1, 2]))
def test_values_are_nibabels(save, dtype, scaling, endian, version):
    fields = dict(zip(("scl_slope", "scl_inter"), scaling))
    path = save("t1.nii", data=data_of(dtype), endian=endian, version=version, **fields)
    volume = read_nifti(path)
    assert (volume.voxels.dtype, volume.voxels.dtype.isnative, volume.warnings) == (np.float32, True, ())
    np.testing.assert_array_equal(volume.voxels, nib.load(path).get_fdata().astype(np.float32))
    assert volume.voxels.flags.writeable
    assert volume.voxels.flags.c_contiguous


@given(hnp.arrays(np.float32, st.tuples(*[st.integers(1, 6)] * 3), elements=st.floats(width=32)))
def test_any_float32_comes_out_finite(array):
    expected = array[np.isfinite(array)]
    if not expected.size:
        with pytest.raises(ImageError, match="none of"):
            to_float32(array.copy(order="F"), 1.0, 0.0, "t1.nii")
        return
    found, warnings = to_float32(array.copy(order="F"), 1.0, 0.0, "t1.nii")
    assert (found.dtype, found.shape) == (np.float32, array.shape)
    assert np.isfinite(found).all()
    if not any("float32" in w for w in warnings):
        repaired = np.nan_to_num(array, nan=expected.min(), posinf=expected.max(), neginf=expected.min())
        np.testing.assert_array_equal(found, repaired)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("scaling", [(1, 0), (-2, 3)])
def test_repairs_are_counted(save, dtype, scaling):
    data = data_of(dtype)
    data[0, 0, 0], data[3, 4, 5], data[7, 8, 9], data[7, 8, 8] = np.nan, np.inf, -np.inf, np.nan
    path = save(data=data, scl_slope=scaling[0], scl_inter=scaling[1])
    volume = read_nifti(path)
    values = nib.load(path).get_fdata()
    low, high = values[np.isfinite(values)].min(), values[np.isfinite(values)].max()
    expected = np.nan_to_num(values, nan=low, posinf=high, neginf=low).astype(np.float32)
    np.testing.assert_array_equal(volume.voxels, expected)
    (warning,) = volume.warnings
    assert "4 of 720 voxels are not finite (2 NaN, 1 +Inf, 1 -Inf)" in warning


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_finite_voxel(save, value):
    path = save(data=np.full(SHAPE, value, np.float32))
    with pytest.raises(ImageError, match=re.escape(f"{path}: none of 720 voxels is finite") + ".*Export"):
        read_nifti(path)


@pytest.mark.parametrize("dtype", ["i2", "f4", "f8", "i8"])
@pytest.mark.parametrize(("value", "words"), [(0, "all voxels are 0"), (7, "all voxels have one value, 7")])
def test_constant_images_are_told(save, dtype, value, words):
    volume = read_nifti(save(data=np.full(SHAPE, value, dtype)))
    assert volume.warnings == (words,)
    assert (volume.voxels == value).all()


def test_a_slab_without_a_finite_voxel(save):
    data = data_of("f4")
    data[:, :, :4] = np.nan
    volume = read_nifti(save(data=data))
    assert (volume.voxels[:, :, :4] == np.nanmin(data)).all()
    assert "288 of 720" in volume.warnings[0]


# what float32 cannot serve


def contrast(seed=0):
    return np.random.default_rng(seed).integers(0, 200, SHAPE)


@pytest.mark.parametrize(
    ("data", "scaling"),
    [
        ((10**12 + contrast()).astype("i8"), (1, 0)),
        ((10**12 + contrast()).astype("u8"), (1, 0)),
        ((2**30 + contrast()).astype("i4"), (1, 0)),
        (1e6 + contrast() * 1e-4, (1, 0)),
        (contrast() * 1e300, (1, 0)),
        ((contrast() - 100) * 1.7e306, (1, 0)),
        (contrast() * 1e-46, (1, 0)),
        (contrast().astype("f4") * np.float32(1e36), (1, 0)),
        (contrast().astype(">f4") * np.float32(1e16), (1, 0)),
        (contrast().astype("i2"), (1e37, 0)),
        (contrast().astype("u1"), (1, 1e10)),
    ],
    ids=["i8", "u8", "i4", "f8 far", "f8 huge", "f8 both ends", "f8 tiny", "f4 huge", "f4 swapped", "slope", "inter"],
)
@pytest.mark.parametrize("endian", ["<", ">"])
def test_huge_values_and_small_contrasts_survive(save, data, scaling, endian):
    path = save(data=data, endian=endian, scl_slope=scaling[0], scl_inter=scaling[1])
    volume = read_nifti(path)
    values = nib.load(path).get_fdata()
    unit = np.abs(values).max()
    values = (values / unit).astype(np.longdouble)
    expected = (values - values.mean()) / values.std()
    # to 2 % of a deviation where float64 itself has little left
    np.testing.assert_allclose(volume.voxels, expected.astype(float), atol=2e-2)
    assert np.corrcoef(volume.voxels.ravel(), contrast().ravel())[0, 1] > 0.9999
    (warning,) = volume.warnings
    assert re.search(r"mean \S+, standard deviation \S+\).*Only bundles that normalise", warning)
    mean, std = (float(n) for n in re.findall(r"(?:mean|deviation) ([-\d.e+]+)", warning)[:2])
    assert mean / unit == pytest.approx(float(values.mean()), rel=1e-6, abs=1e-9)
    assert std / unit == pytest.approx(float(values.std()), rel=1e-3)


def test_infinity_beside_huge_values(save):
    data = contrast() * 1e300
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    volume = read_nifti(save(data=data))
    assert np.isfinite(volume.voxels).all()
    assert volume.voxels[0, 0, 1] == volume.voxels.max()
    assert len(volume.warnings) == 2


def test_constant_huge_values(save):
    volume = read_nifti(save(data=np.full(SHAPE, 1e300)))
    assert (volume.voxels == 0).all()
    assert len(volume.warnings) == 2


@pytest.mark.parametrize("dtype", TYPES)
def test_few_odd_voxels_do_not_change_the_scale(save, dtype):
    for base in (0, 100):
        data = np.full(SHAPE, base, dtype)
        data[1, 2, 3] += 1
        volume = read_nifti(save(data=data))
        assert volume.warnings == ()
        np.testing.assert_array_equal(volume.voxels, data.astype(np.float32))
