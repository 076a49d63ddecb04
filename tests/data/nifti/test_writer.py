"""Labels and maps on the grid of their image: geometry bit for bit, plain values, whole files, nothing personal."""

import errno
import gzip
import io
import struct

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monai_vit3d.data import ImageError
from monai_vit3d.data import files as whole_files
from monai_vit3d.data.nifti import write_labels, write_map
from monai_vit3d.data.volume import Grid

FIELDS = ["pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y"]
FIELDS += ["qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"]
SHAPE = (4, 5, 6)
PATIENT = "DOE^JANE"


def fields_of(header):
    return {name: np.array(header[name]) for name in FIELDS}


def geometry_bytes(header):
    return {name: value.tobytes() for name, value in spatial(header).items()}


def spatial(fields):
    """The fields, of pixdim what is space's."""
    return {name: np.array(np.atleast_1d(fields[name])[:4]) for name in FIELDS}


def grid_of(header, shape=SHAPE):
    return Grid(shape, np.eye(4), 0, fields_of(header), 1 if header.sizeof_hdr == 348 else 2)


def some_labels(shape=SHAPE, classes=4):
    return np.random.default_rng(0).integers(0, classes, shape)


def oblique(kind=nib.Nifti1Header):
    """A header that has everything: a turned grid, a sform elsewhere, a patient's name in each text."""
    header = kind()
    header.set_data_shape(SHAPE)
    turn = nib.eulerangles.euler2mat(0.1, -0.2, 0.3)
    header.set_qform(nib.affines.from_matvec(turn @ np.diag([-0.7, 1.1, 2.3]), (9.1, -8.2, 7.3)), code="scanner")
    header.set_sform(nib.affines.from_matvec(np.diag([2.0, -3, 4]), (1, 2, 3)), code="mni")
    header.set_xyzt_units("mm", "sec")
    for name in {"descrip", "aux_file", "db_name", "intent_name"} & set(header.keys()):  # NIfTI-2 has no db_name
        header[name] = PATIENT
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", PATIENT.encode()))
    return header


def no_codes():
    header = oblique()
    header["qform_code"] = header["sform_code"] = 0
    return header


def no_rotation():
    header = oblique()
    header["quatern_b"], header["quatern_c"], header["pixdim"][0] = 1.5, np.nan, 0.25
    return header


def metres():
    header = oblique()
    header.set_xyzt_units("meter", "msec")
    return header


def content(path):
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def load(path):
    """The header as it stands: nib.load refuses quaternions that are none."""
    kind = nib.Nifti1Header if content(path)[:4] == b"\x5c\1\0\0" else nib.Nifti2Header
    return kind.from_fileobj(io.BytesIO(content(path)), check=False)


def voxels(path):
    return load(path).data_from_fileobj(io.BytesIO(content(path)))


@pytest.fixture
def target(tmp_path):
    return tmp_path / "labels.nii.gz"


# geometry


@pytest.mark.parametrize("make", [oblique, no_codes, no_rotation, metres, lambda: oblique(nib.Nifti2Header)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_geometry_is_the_image_s_to_the_bit(tmp_path, make, suffix):
    header, labels = make(), some_labels()
    write_labels(labels, grid_of(header), tmp_path / f"x{suffix}")
    found = load(tmp_path / f"x{suffix}")
    assert geometry_bytes(found) == geometry_bytes(header)
    assert type(found) is type(header)
    np.testing.assert_array_equal(voxels(tmp_path / f"x{suffix}"), labels)


def test_geometry_of_a_big_endian_file(tmp_path):
    (tmp_path / "big.nii").write_bytes(oblique().as_byteswapped(">").binaryblock)
    big = nib.Nifti1Header.from_fileobj(io.BytesIO((tmp_path / "big.nii").read_bytes()))
    fields = {name: value.astype(value.dtype.newbyteorder("=")) for name, value in fields_of(big).items()}
    write_labels(some_labels(), Grid(SHAPE, np.eye(4), 0, fields), tmp_path / "x.nii")
    assert (big.endianness, load(tmp_path / "x.nii").endianness) == (">", "<")
    assert geometry_bytes(load(tmp_path / "x.nii")) == geometry_bytes(oblique())


fields32 = st.fixed_dictionaries(
    {name: hnp.arrays(np.float32, (), elements=st.floats(width=32)) for name in FIELDS[3:9]}
    | {name: hnp.arrays(np.float32, 4, elements=st.floats(width=32)) for name in FIELDS[9:12]}
    | {"pixdim": hnp.arrays(np.float32, 8, elements=st.floats(2**-10, 1000, width=32))}
    | {name: hnp.arrays(np.int16, (), elements=st.integers(0, 5)) for name in ("qform_code", "sform_code")}
    | {"xyzt_units": hnp.arrays(np.uint8, (), elements=st.integers(0, 255))}
)


@pytest.mark.slow
@given(
    fields=fields32,
    labels=hnp.arrays(
        st.sampled_from([np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, bool]),
        hnp.array_shapes(min_dims=3, max_dims=4, max_side=5),
    ),
    version=st.sampled_from([1, 2]),
)
def test_any_fields_and_labels_come_back(tmp_path_factory, fields, labels, version):
    path = tmp_path_factory.mktemp("any") / "x.nii"
    write_labels(labels, Grid(labels.shape[-3:], np.eye(4), 0, fields, version), path)
    found, given = spatial(load(path)), spatial(fields)
    for name in FIELDS:
        assert found[name].astype(given[name].dtype).tobytes() == given[name].tobytes(), name
    np.testing.assert_array_equal(voxels(path), np.moveaxis(labels, 0, 3) if labels.ndim == 4 else labels)
    assert load(path).get_data_dtype().kind in "iu"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_without_a_header_the_affine_is_both_forms(tmp_path, suffix):
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([-1, 2, 3]), (10, 20, -30))
    write_labels(some_labels(), Grid(SHAPE, affine), tmp_path / f"x{suffix}")
    header = nib.load(tmp_path / f"x{suffix}").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_sform(), affine, rtol=1e-6)
    np.testing.assert_allclose(header.get_qform(), affine, atol=1e-5)
    assert header.get_xyzt_units()[0] == "mm"


def test_a_sheared_affine_has_no_qform(target):
    affine = np.diag([1.0, 1, 2, 1])
    affine[1, 2] = 0.5
    write_labels(some_labels(), Grid(SHAPE, affine), target)
    found = nib.load(target)
    assert (int(found.header["qform_code"]), int(found.header["sform_code"])) == (0, 1)
    np.testing.assert_array_equal(found.affine, affine)


def test_nothing_else_comes_along(tmp_path):
    source = tmp_path / "image.nii"
    image = nib.Nifti1Image(some_labels().astype(np.int16), None, oblique())
    image.header["cal_max"] = image.header["toffset"] = image.header["intent_p1"] = 7
    image.to_filename(source)
    assert source.read_bytes().count(PATIENT.encode()) == 5
    write_labels(some_labels(), grid_of(nib.load(source).header), tmp_path / "labels.nii")
    written, fresh = nib.load(tmp_path / "labels.nii").header, nib.Nifti1Header()
    assert PATIENT.encode() not in (tmp_path / "labels.nii").read_bytes()
    assert not written.extensions
    assert (tmp_path / "labels.nii").stat().st_size == 352 + np.prod(SHAPE)
    own = {*FIELDS, "dim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "magic"}
    for name in set(fresh.keys()) - own:
        assert written[name].tobytes() == fresh[name].tobytes(), name
    np.testing.assert_array_equal(written["pixdim"][4:], 1)


# values


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (0, 255, "uint8"),
        (-1, 127, "int8"),
        (0, 256, "uint16"),
        (-1, 128, "int16"),
        (-1, 40000, "int32"),
        (0, 65536, "int32"),
        (0, 2**31, "uint32"),
        (-(2**40), 0, "int64"),
        (0, 2**64 - 1, "uint64"),
    ],
)
def test_the_smallest_type_that_holds_all(target, low, high, dtype):
    labels = np.zeros(SHAPE, np.uint64 if low >= 0 else np.int64)
    labels[0, 0, 0], labels[1, 2, 3] = low, high
    write_labels(labels, Grid(SHAPE, np.eye(4)), target)
    found = nib.load(target)
    assert found.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(found.dataobj), labels)


@pytest.mark.parametrize("dtype", [bool, np.float16, np.float32, np.float64, ">i2", "<u4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_types_and_orders_that_come_in(target, dtype, order):
    labels = np.asarray(some_labels(classes=2), dtype, order=order)
    write_labels(labels, Grid(SHAPE, np.eye(4)), target)
    found = nib.load(target)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(found.dataobj, labels)


@pytest.mark.parametrize("depth", [1, 31, 32, 33, 65])
def test_depths_around_the_block_that_is_written_at_a_time(target, depth):
    labels, values = some_labels((3, 2, depth), 200), np.random.default_rng(1).random((2, 3, 2, depth))
    write_labels(labels, Grid(labels.shape, np.eye(4)), target)
    np.testing.assert_array_equal(nib.load(target).dataobj, labels)
    write_map(values, Grid(labels.shape, np.eye(4)), target)
    np.testing.assert_array_equal(nib.load(target).dataobj, np.moveaxis(values, 0, 3).astype(np.float32))


@pytest.mark.parametrize("write", [write_labels, write_map])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_simpleitk_sees_the_plain_values_at_the_same_place(tmp_path, write, suffix):
    sitk = pytest.importorskip("SimpleITK")
    header = oblique()
    header["sform_code"] = 0
    labels, path = some_labels(classes=200), str(tmp_path / f"x{suffix}")
    write(labels, grid_of(header), path)
    image = sitk.ReadImage(path)
    assert image.GetPixelID() == (sitk.sitkUInt8 if write is write_labels else sitk.sitkFloat32)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), labels)
    lps = np.diag([-1, -1, 1, 1]) @ header.get_best_affine()
    point = image.TransformIndexToPhysicalPoint((3, 1, 2))
    np.testing.assert_allclose(point, (lps @ [3, 1, 2, 1])[:3], atol=1e-4)


def test_no_scaling_is_stored(target):
    write_labels(some_labels(), Grid(SHAPE, np.eye(4)), target)
    raw = gzip.decompress(target.read_bytes())
    assert struct.unpack_from("<ff", raw, 112) == (1, 0)
    assert struct.unpack_from("<ff", raw, 124) == (0, 0)  # cal_max and cal_min
    assert nib.load(target).dataobj[:].dtype == np.uint8


@pytest.mark.parametrize("count", [1, 3])
def test_masks_become_the_fourth_axis(target, count):
    masks = some_labels((count, *SHAPE), 2).astype(bool)
    write_labels(masks, Grid(SHAPE, np.eye(4), trailing=2), target)
    found = nib.load(target)
    assert found.shape == (*SHAPE, count)
    np.testing.assert_array_equal(found.dataobj, np.moveaxis(masks, 0, 3))


@pytest.mark.parametrize("trailing", [0, 1, 2, 4])
@pytest.mark.parametrize("write", [write_labels, write_map])
def test_axes_of_one_are_there_again(target, write, trailing):
    write(some_labels(), Grid(SHAPE, np.eye(4), trailing), target)
    assert nib.load(target).shape == SHAPE + (1,) * trailing


@pytest.mark.parametrize(("side", "version"), [(32767, 1), (32768, 2)])
def test_axes_too_long_for_nifti_1_make_nifti_2(target, side, version):
    header = oblique()
    labels = np.arange(side, dtype=np.uint16).reshape(side, 1, 1)
    write_labels(labels, grid_of(header, labels.shape), target)
    found = nib.load(target)
    assert isinstance(found, nib.Nifti2Image) == (version == 2)
    np.testing.assert_array_equal(found.dataobj, labels)
    for name, value in spatial(header).items():
        np.testing.assert_array_equal(spatial(found.header)[name], value)


def test_maps_are_float32(target):
    values = np.random.default_rng(0).normal(size=(2, *SHAPE))
    write_map(values, Grid(SHAPE, np.eye(4)), target)
    found = nib.load(target)
    assert found.get_data_dtype() == np.float32
    np.testing.assert_array_equal(found.dataobj, np.moveaxis(values, 0, 3).astype(np.float32))


# what is refused


@pytest.mark.parametrize("shape", [(4, 5), (5, 4, 6), (4, 5, 6, 2), (1, 2, 4, 5, 6), (0, 4, 5, 6), (4, 5, 1)])
@pytest.mark.parametrize("write", [write_labels, write_map])
def test_another_shape(target, write, shape):
    with pytest.raises(ImageError, match=r"labels.nii.gz: array of shape .*\(4, 5, 6\) or \(C, 4, 5, 6\)"):
        write(np.zeros(shape), Grid(SHAPE, np.eye(4)), target)
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -np.inf, 1e30])
def test_labels_that_are_no_whole_numbers(target, value):
    labels = np.zeros(SHAPE)
    labels[1, 1, 1] = value
    with pytest.raises(ImageError, match=r"labels.nii.gz: labels (with fractions|from .* no integer type)"):
        write_labels(labels, Grid(SHAPE, np.eye(4)), target)
    assert not target.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, -1e300])
def test_maps_that_are_not_finite(target, value):
    values = np.zeros((2, *SHAPE))
    values[1, 1, 1, 1] = value
    with pytest.raises(ImageError, match="1 of 240 values are not finite in float32"):
        write_map(values, Grid(SHAPE, np.eye(4)), target)
    assert not target.exists()


@pytest.mark.parametrize("write", [write_labels, write_map])
@pytest.mark.parametrize("dtype", [complex, object, "U3", "M8[s]"])
def test_other_types(target, write, dtype):
    with pytest.raises(ImageError, match="expected integers, booleans or floats"):
        write(np.zeros(SHAPE, int).astype(dtype), Grid(SHAPE, np.eye(4)), target)


@pytest.mark.parametrize("name", ["x.mgz", "x.img", "x.nii.bz2", "x.gz", "x", "nii", "x.nii.gz.part"])
def test_other_suffixes(tmp_path, name):
    with pytest.raises(ImageError, match=r"End it with .nii or .nii.gz"):
        write_labels(some_labels(), Grid(SHAPE, np.eye(4)), tmp_path / name)
    assert not list(tmp_path.iterdir())


# bytes


def test_the_same_labels_give_the_same_bytes(tmp_path):
    for name in ("a.nii.gz", "other/b.nii.gz"):
        write_labels(some_labels(), Grid(SHAPE, np.eye(4)), tmp_path / name)
    first = (tmp_path / "a.nii.gz").read_bytes()
    assert first == (tmp_path / "other/b.nii.gz").read_bytes()
    assert first[3] == 0  # no flags: no name in it
    assert first[4:8] == bytes(4)  # no time


def test_a_link_or_an_older_file_is_replaced(tmp_path, target):
    (tmp_path / "else.nii.gz").write_bytes(b"keep")
    target.symlink_to(tmp_path / "else.nii.gz")
    write_labels(some_labels(), Grid(SHAPE, np.eye(4)), target)
    np.testing.assert_array_equal(nib.load(target).dataobj, some_labels())
    assert (tmp_path / "else.nii.gz").read_bytes() == b"keep"


class FullDisk(io.FileIO):
    """A file on a disk with room for so many bytes."""

    room = 0

    def write(self, data):
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("room", [0, 100, 400, 5000])
@pytest.mark.parametrize("old", [b"old", None])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("write", [write_labels, write_map])
def test_a_full_disk_leaves_the_old_file_or_nothing(tmp_path, monkeypatch, write, suffix, old, room):
    target = tmp_path / f"x{suffix}"
    if old:
        target.write_bytes(old)
    monkeypatch.setattr(FullDisk, "room", room)
    monkeypatch.setattr(whole_files, "open", FullDisk, raising=False)
    labels = some_labels((30, 30, 70), 250)
    with pytest.raises(OSError, match="No space left"):
        write(labels, Grid(labels.shape, np.eye(4)), target)
    monkeypatch.undo()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == ([(target.name, old)] if old else [])
