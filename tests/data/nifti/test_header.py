"""Headers: what declares one 3D image of real numbers comes in; each other thing is refused in its own words."""

import re

import nibabel as nib
import numpy as np
import pytest

from monai_vit3d.data import ImageError
from monai_vit3d.data.nifti import read_nifti, read_nifti_grid

from .conftest import nifti_bytes

BOTH = [read_nifti, read_nifti_grid]


def refused(path, *words, volume=None):
    for read in BOTH:
        with pytest.raises(ImageError, match="(?s)^" + re.escape(str(path)) + ": .*" + ".*".join(words)):
            read(path, volume=volume)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
def test_versions_and_byte_orders(save, version, endian, name):
    path = save(name, version=version, endian=endian)
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.voxels, nib.load(path).get_fdata())
    assert (volume.grid.version, volume.grid.shape, volume.warnings) == (version, (8, 9, 10), ())


@pytest.mark.parametrize(
    ("shape", "found", "trailing"),
    [
        ((4, 5, 6), (4, 5, 6), 0),
        ((4, 5, 6, 1), (4, 5, 6), 1),
        ((4, 5, 6, 1, 1, 1, 1), (4, 5, 6), 4),
        ((4, 5, 1), (4, 5, 1), 0),
        ((1, 5, 1, 1), (1, 5, 1), 1),
    ],
)
def test_axes_of_one_voxel(save, shape, found, trailing):
    data = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    path = save(data=data)
    for volume in (None, 0):
        read = read_nifti(path, volume)
        assert (read.grid.shape, read.grid.trailing) == (found, trailing)
        np.testing.assert_array_equal(read.voxels, data.reshape(found))


@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
@pytest.mark.parametrize("extra", [(), (1,), (1, 1, 1)])
def test_one_volume_of_4d(save, name, extra):
    data = np.random.default_rng(0).integers(-99, 99, (4, 5, 6, 7, *extra)).astype(np.int16)
    path = save(name, data=data)
    for n in range(7):
        volume = read_nifti(path, volume=n)
        np.testing.assert_array_equal(volume.voxels, data.reshape(4, 5, 6, 7)[..., n])
        assert (volume.grid.trailing, volume.warnings) == (0, ())


def test_4d_needs_a_volume(save):
    path = save(data=np.zeros((4, 5, 6, 7), np.int16))
    needed = re.escape("(4, 5, 6, 7); expected one 3D volume. Pick one with volume=N.")
    refused(path, "4D image " + needed)
    for n in (-1, 7, 10**9):
        refused(path, f"volume {n} of 7; 0 to 6", "Pick one of these", volume=n)
    refused(save(), "volume 1 of 1; 0 to 0", volume=1)


def test_every_volume_of_4d_must_be_there(save):
    content = nifti_bytes(np.zeros((4, 5, 6, 7), np.int16))
    refused(save("t1.nii", content=content[:-1]), "truncated", volume=0)
    with pytest.raises(ImageError, match="truncated: 2031 bytes; its header declares 2032"):
        read_nifti(save("t1.nii.gz", content=content[:-1]), volume=0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": [0, 1, 1, 1, 1, 1, 1, 1]}, [r"dim\[0\] is 0"]),
        ({"dim": [8, 8, 9, 10, 1, 1, 1, 1]}, [r"dim\[0\] is 8", "repair"]),
        ({"dim": [-3, 8, 9, 10, 1, 1, 1, 1]}, [r"dim\[0\] is -3"]),
        ({"dim": [3, 8, 0, 10, 1, 1, 1, 1]}, [r"shape \(8, 0, 10\)"]),
        ({"dim": [4, 8, 9, 10, -1, 1, 1, 1]}, [r"shape \(8, 9, 10, -1\)"]),
        ({"dim": [1, 720, 1, 1, 1, 1, 1, 1]}, [r"1D image \(720,\)", "Give the volume"]),
        ({"dim": [2, 72, 10, 1, 1, 1, 1, 1]}, [r"2D image \(72, 10\)", "Give the volume"]),
        ({"dim": [5, 8, 9, 5, 1, 2, 1, 1]}, [r"5D image \(8, 9, 5, 1, 2\)", "a file of its own"]),
        ({"dim": [5, 4, 9, 5, 2, 2, 1, 1]}, ["5D image", "a file of its own"]),
        ({"datatype": 0}, [r"none \(code 0\)", "float32"]),
        ({"datatype": 1}, [r"binary \(code 1\)"]),
        ({"datatype": 32}, ["complex64", "real number"]),
        ({"datatype": 1792}, ["complex128"]),
        ({"datatype": 2048}, ["complex256"]),
        ({"datatype": 128}, ["RGB", "grey values"]),
        ({"datatype": 2304}, ["RGBA"]),
        ({"datatype": 1536}, ["float128"]),
        ({"datatype": 3}, [r"unknown \(code 3\)"]),
        ({"datatype": -4}, [r"unknown \(code -4\)"]),
        ({"vox_offset": 16}, ["vox_offset 16", "352 or more"]),
        ({"vox_offset": 348}, ["vox_offset 348", "352 or more"]),
        ({"vox_offset": -352}, ["vox_offset -352"]),
        ({"vox_offset": 352.5}, ["vox_offset 352.5; expected a whole number"]),
        ({"vox_offset": np.nan}, ["vox_offset nan"]),
        ({"vox_offset": np.inf}, ["vox_offset inf"]),
        ({"vox_offset": 1e30}, ["truncated|declares", "again"]),
        ({"scl_slope": 1, "scl_inter": np.nan}, ["scl_inter nan", "finite"]),
        ({"scl_slope": 2, "scl_inter": np.inf}, ["scl_inter inf", "finite"]),
        ({"pixdim": [1, 2, 0, 4, 1, 1, 1, 1]}, [r"pixdim\) \[2.0, 0.0, 4.0\]", "above 0"]),
        ({"pixdim": [1, -2, 3, 4, 1, 1, 1, 1]}, ["pixdim", "above 0"]),
        ({"pixdim": [1, 2, 3, np.nan, 1, 1, 1, 1]}, ["pixdim", "nan"]),
        ({"pixdim": [1, np.inf, 3, 4, 1, 1, 1, 1]}, ["pixdim", "inf"]),
    ],
)
@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
def test_refused_fields(save, fields, words, name):
    refused(save(name, **fields), *words)


def test_refused_fields_of_nifti2(save):
    refused(save(version=2, vox_offset=352), "vox_offset 352", "544 or more")
    refused(save("t1.nii", version=2, dim=[3, 2**62, 2**62, 2**62, 1, 1, 1, 1]), "max_voxels")
    refused(save("t1.nii", version=2, vox_offset=2**62), "truncated")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_magic(save, version, endian):
    at = 344 if version == 1 else 4

    def changed(magic):
        content = nifti_bytes(version=version, endian=endian)
        return save("t1.nii", content=content[:at] + magic + content[at + len(magic) :])

    refused(changed(f"ni{version}".encode()), "header of a pair", "fslchfiletype")
    refused(changed(bytes(4)), ["Analyze 7.5", "not NIfTI-2"][version - 1], "dcm2niix")
    refused(changed(b"n+3"), "n\\+3")
    if version == 2:
        refused(changed(b"n+2\0\n\n\x1a\n"), "line ends were changed", "binary")


def test_header_of_another_size(save):
    refused(save("t1.nii", sizeof_hdr=349), "not NIfTI", "5d 01 00 00", "348 or 540")


@pytest.mark.parametrize("version", [1, 2])
def test_offset_not_set_is_the_least(save, version):
    volume = read_nifti(save(version=version, vox_offset=0))
    np.testing.assert_array_equal(volume.voxels.ravel(), np.arange(720))
    assert volume.warnings == (f"vox_offset is not set; voxels were read from byte {[352, 544][version - 1]}",)
    content = bytearray(nifti_bytes(version=version, vox_offset=0))
    content[[348, 540][version - 1]] = 1  # an extension follows, of unknown length
    refused(save(content=bytes(content)), "vox_offset 0")


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_any_bits_are_read_or_refused(save):
    rng = np.random.default_rng(0)
    for n in range(300):
        data = rng.normal(0, 1, (2, 3, 4)).astype("f4")
        content = bytearray(nifti_bytes(data, version=1 + n % 2, endian="<>"[n % 3 > 0]))
        for at in rng.integers(0, 348, 3):
            content[at : at + 3] = rng.integers(0, 256, 3).astype(np.uint8).tobytes()
        path = save("t1.nii", content=bytes(content))
        try:
            volume = read_nifti(path)
        except ImageError:
            continue
        assert np.isfinite(volume.voxels).all()
        np.testing.assert_array_equal(read_nifti_grid(path).affine_mm, volume.grid.affine_mm)


@pytest.mark.filterwarnings("error")
def test_a_signalling_nan_is_refused_like_any_other(save):
    content = bytearray(nifti_bytes())
    content[80:84] = bytes([1, 0, 0x80, 0x7F])
    refused(save(content=bytes(content)), "pixdim", "nan")


@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
def test_offset_far_away(save, name):
    content = nifti_bytes(vox_offset=3_000_000)
    volume = read_nifti(save(name, content=content[:352] + bytes(3_000_000 - 352) + content[352:]))
    np.testing.assert_array_equal(volume.voxels.ravel(), np.arange(720))


def test_bitpix_that_contradicts_is_told(save):
    volume = read_nifti(save(bitpix=32))
    assert volume.warnings == ("bitpix 32 contradicts datatype int16; the datatype was believed",)
    np.testing.assert_array_equal(volume.voxels.ravel(), np.arange(720))


def test_text_of_a_header_is_not_its_content(save):
    path = save(descrip=b"from /annex/objects/MD5E-s1", cal_min=np.frombuffer(b"DICM", "f4")[0])
    assert read_nifti(path).warnings == ()


def test_no_text_of_the_header_is_kept(save):
    grid = read_nifti_grid(save(descrip=b"NAME OF A PATIENT", db_name=b"NAME", intent_name=b"NAME", aux_file=b"NAME"))
    assert all(value.dtype.kind in "iuf" for value in grid.fields.values())
