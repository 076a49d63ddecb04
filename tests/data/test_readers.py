"""Other formats than NIfTI: voxels and place as nibabel and SimpleITK read them, and as strict as NIfTI."""

import gzip
import hashlib
import re
import struct
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data import ImageError, NiftiReader, read_grid, read_volume, write_labels
from monai_vit3d.data.formats import partner
from monai_vit3d.data.readers import READERS, reader_for, without_suffix

SHAPE = (9, 10, 11)
VALUES = np.random.default_rng(0).integers(0, 120, SHAPE)
AFFINE = np.eye(4)
AFFINE[:3, :3] = nib.eulerangles.euler2mat(0.1, -0.2, 1.7) @ np.diag([-1.2, 1, 2.5])
AFFINE[:3, 3] = (-50, 20, 7)


def save_nibabel(kind, path, dtype="int16", values=VALUES, affine=AFFINE):
    image = kind(values.astype(dtype), affine)
    image.to_filename(path)
    path.with_suffix(".mat").unlink(missing_ok=True)  # SPM's, which nibabel writes as well
    return path


def save_itk(path, dtype="int16", compressed=False, values=VALUES, affine=AFFINE):
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.astype(dtype).T))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), compressed)
    return path


def by_itk(path):
    """Voxels (H, W, D) and RAS+ affine as SimpleITK has them."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine


def check(path, values, affine, atol=1e-5):
    found, grid = read_volume(path, hashed=True), read_grid(path)
    np.testing.assert_array_equal(found.voxels, values.astype(np.float32))
    assert found.voxels.dtype == np.float32
    assert found.voxels.flags.c_contiguous
    for one in (found.grid, grid):
        np.testing.assert_allclose(one.affine_mm, affine, atol=atol)
        assert one.shape == values.shape
    files = [other for other in [partner(path)] if other] + [path]
    assert found.sha256 == tuple(hashlib.sha256(one.read_bytes()).hexdigest() for one in files)
    assert read_volume(path).sha256 == ()
    return found


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
@pytest.mark.parametrize("name", ["a.mgz", "a.mgh", "A.MGZ"])
def test_freesurfer_as_nibabel(tmp_path, name, dtype):
    path = save_nibabel(nib.MGHImage, tmp_path / name.lower(), dtype).rename(tmp_path / name)
    image = nib.MGHImage.from_filename(path)
    assert check(path, np.asarray(image.dataobj), image.affine).warnings == ()


@pytest.mark.parametrize("name", ["a.img", "a.img.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_nifti_pairs_as_nibabel(tmp_path, kind, name):
    path = save_nibabel(kind, tmp_path / name)
    image = nib.load(path)
    assert check(path, np.asarray(image.dataobj), image.affine, atol=0).warnings == ()


@pytest.mark.parametrize("kind", [nib.Spm2AnalyzeImage, nib.Spm99AnalyzeImage, nib.AnalyzeImage])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_analyze_as_nibabel_with_a_warning(tmp_path, kind, dtype):
    path = save_nibabel(kind, tmp_path / "a.img", dtype, affine=np.diag([-2, 2, 3, 1]))
    image = nib.load(path)
    (warning,) = check(path, np.asarray(image.dataobj), image.affine).warnings
    assert "does not say which side is left" in warning


def test_analyze_with_an_affine_of_spm_beside_it_is_refused(tmp_path):
    path = save_nibabel(nib.Spm99AnalyzeImage, tmp_path / "a.img", affine=np.diag([-2, 2, 3, 1]))
    path.with_suffix(".mat").touch()
    with pytest.raises(ImageError, match=r"a\.mat, which is not read"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_nrrd_and_metaimage_as_itk(tmp_path, suffix, compressed, dtype):
    path = save_itk(tmp_path / f"a{suffix}", dtype, compressed)
    assert check(path, *by_itk(path)).warnings == ()


@given(
    st.sampled_from([".nrrd", ".mha", ".mgz"]),
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.tuples(*[st.floats(0.3, 5)] * 3),
    st.tuples(*[st.floats(-300, 300)] * 3),
)
def test_every_place_is_kept(tmp_path_factory, suffix, angles, spacing, origin):
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(*angles) @ np.diag(spacing)
    affine[:3, 3] = origin
    path = tmp_path_factory.mktemp("t") / f"a{suffix}"
    if suffix == ".mgz":
        save_nibabel(nib.MGHImage, path, affine=affine)
    else:
        save_itk(path, affine=affine)
    check(path, VALUES, affine, atol=1e-3 * max(spacing))


STORED = VALUES.astype("<i2").tobytes("F")


def nrrd(*lines, data=STORED, sizes=SHAPE):
    """A file with these fields and a few that all need."""
    fields = [
        "NRRD0004",
        "type: short",
        "dimension: 3",
        f"sizes: {' '.join(map(str, sizes))}",
        "endian: little",
        *lines,
    ]
    return "\n".join(fields).encode() + b"\n\n" + data


PLACE = ("space directions: (2,0,0) (0,3,0) (0,0,4)", "space origin: (5,6,7)")


@pytest.mark.parametrize(
    "space", ["left-posterior-superior", "LPS", "right-anterior-superior", "RAS", "left-anterior-superior", "LAS"]
)
def test_spaces_of_nrrd_as_itk(tmp_path, space):
    path = tmp_path / "a.nrrd"
    path.write_bytes(nrrd(f"space: {space}", *PLACE, "encoding: raw"))
    assert check(path, *by_itk(path)).warnings == ()


def test_nrrd_without_a_space(tmp_path):
    path = tmp_path / "a.nrrd"
    path.write_bytes(nrrd("spacings: 2 3 4", "encoding: gzip", data=gzip.compress(STORED)))
    (warning,) = check(path, *by_itk(path)).warnings
    assert "no space in its header" in warning


REFUSED = {
    "a.nrrd": [
        (nrrd("encoding: raw", data=b"12"), "truncated: 81 bytes; its header declares 2059"),
        (nrrd("encoding: ascii"), "encoding 'ascii'; expected raw or gzip"),
        (nrrd("encoding: raw", "data file: other.raw"), "its voxels lie in another file"),
        (nrrd("encoding: raw", "byte skip: 4"), "skips bytes"),
        (nrrd("encoding: raw", sizes=(9, 10)), "sizes '9 10'; expected 3 numbers"),
        (nrrd("encoding: raw", sizes=(0, 10, 11)), "every side needs a voxel"),
        (nrrd("encoding: raw", sizes=(10**5, 10**5, 10**5)), "at most max_voxels="),
        (nrrd("encoding: raw", "space directions: (0,0,0) (0,3,0) (0,0,4)"), "maps the volume to a plane"),
        (nrrd("encoding: raw", "space directions: none (0,3,0) (0,0,4)"), "space directions"),
        (nrrd("encoding: raw", "space origin: (nan,3,0)"), "space origin"),
        (nrrd("encoding: raw").replace(b"type: short", b"type: block"), "type 'block'"),
        (nrrd("encoding: raw").replace(b"endian: little\n", b""), "no endian"),
        (nrrd("encoding: raw").replace(b"dimension: 3", b"dimension: 4"), "dimension 4"),
        (b"NRRD0004\ntype: short\n", "its header does not end"),
        (b"not an image", "not NRRD"),
        (b"", "empty, 0 bytes"),
    ],
    "a.mha": [
        (b"NDims = 3\nElementDataFile = a.raw\n", "its voxels lie in another file"),
        (b"NDims = 3\nElementDataFile = LIST\na.raw\n", "its voxels lie in another file"),
        (b"NDims = 2\nElementDataFile = LOCAL\n", "2 axes"),
        (b"NDims = 3\nElementNumberOfChannels = 3\nElementDataFile = LOCAL\n", "3 values a voxel"),
        (b"NDims = 3\nBinaryData = False\nElementDataFile = LOCAL\n", "voxels as text"),
        (b"NDims = 3\nDimSize = 4 5 x\nElementDataFile = LOCAL\n", "DimSize '4 5 x'"),
        (b"NDims = 3\nDimSize = 4 5 6\nElementType = MET_STRING\nElementDataFile = LOCAL\n", "ElementType"),
        (
            b"NDims = 3\nDimSize = 4 5 6\nElementType = MET_CHAR\nElementDataFile = LOCAL\n",
            "truncated: 73 bytes; its header declares 193",
        ),
        (b"an image", "not MetaImage"),
    ],
}


@pytest.mark.parametrize(("name", "content", "words"), [(n, *row) for n, rows in REFUSED.items() for row in rows])
def test_refusals_name_the_file_and_the_reason(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        read_volume(path)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["a.mgz", "a.nrrd", "a.mha"])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damage_of_compressed_files_is_never_read_as_voxels(tmp_path_factory, name, place, bit, cut):
    folder = tmp_path_factory.mktemp("t")
    path = folder / name
    if name == "a.mgz":
        save_nibabel(nib.MGHImage, path)
    else:
        save_itk(path, compressed=True)
    clean, content = read_volume(path), bytearray(path.read_bytes())
    at = int(place * len(content))
    content = content[:at] if cut else content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
    path.write_bytes(content)
    try:
        found = read_volume(path)
    except ImageError:
        return
    # what is not checked by a sum, such as a text header or gzip's time, may change the place but no voxel
    if found.voxels.shape == clean.voxels.shape and name != "a.nrrd":
        np.testing.assert_array_equal(found.voxels, clean.voxels)


@pytest.mark.parametrize("name", ["a.img", "a.mgh", "a.nrrd", "a.mha"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, name):
    path = tmp_path / name
    if name == "a.img":
        save_nibabel(nib.Nifti1Pair, path)
    elif name == "a.mgh":
        save_nibabel(nib.MGHImage, path)
    else:
        save_itk(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError, match="truncated"):
        read_volume(path)


def test_values_are_repaired_and_told_as_of_nifti(tmp_path):
    values = VALUES.astype("float32")
    values[1, 2, 3] = np.nan
    for path in (save_itk(tmp_path / "a.nrrd", "float32", values=values), tmp_path / "a.mgz"):
        if path.suffix == ".mgz":
            save_nibabel(nib.MGHImage, path, "float32", values)
        found = read_volume(path)
        assert np.isfinite(found.voxels).all()
        assert "1 of 990 voxels are not finite (1 NaN)" in found.warnings[0]
        with pytest.raises(ImageError, match="not finite"):
            read_volume(path, exact=True)


def mgh(shape=(9, 10, 11, 1), kind=4, version=1, place=1):
    count = int(np.prod(shape))
    numbers = [1.0] * 3 + [1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0] + [0.0] * 3
    return struct.pack(">7ih15f", version, *shape, kind, 0, place, *numbers).ljust(284, b"\0") + bytes(4 * count)


def test_headers_of_freesurfer(tmp_path):
    path = tmp_path / "a.mgh"
    for content, words in [
        (mgh(version=2), "version 2; expected 1"),
        (mgh(shape=(5, 1, 1, 1)), "values on a surface"),
        (mgh(shape=(5, 0, 1, 1)), "every side needs a voxel"),
        (mgh(kind=7), "voxel type 7"),
        (mgh(shape=(9, 10, 11, 3)), "4D image"),
        (b"short", "truncated: 5 bytes"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ImageError, match=words):
            read_volume(path)
    path.write_bytes(mgh(place=0))
    found = read_volume(path)
    # x to the left, y down, z forward, as FreeSurfer documents; nibabel has y and z the other way round here
    np.testing.assert_array_equal(found.grid.affine_mm[:3, :3], [[-1, 0, 0], [0, 0, 1], [0, -1, 0]])
    np.testing.assert_allclose(found.grid.affine_mm @ [4.5, 5, 5.5, 1], [0, 0, 0, 1])
    assert "no position in its header" in found.warnings[0]


def test_volumes_of_freesurfer(tmp_path):
    values = np.stack([VALUES, VALUES + 1], -1)
    path = save_nibabel(nib.MGHImage, tmp_path / "a.mgz", values=values)
    np.testing.assert_array_equal(read_volume(path, 1).voxels, VALUES + 1)
    with pytest.raises(ImageError, match="volume 2 of 2"):
        read_volume(path, 2)


def test_outputs_go_to_nifti_on_the_same_grid(tmp_path):
    for path in (save_itk(tmp_path / "a.nrrd"), save_nibabel(nib.MGHImage, tmp_path / "a.mgz")):
        volume = read_volume(path)
        write_labels((VALUES > 60).astype(np.uint8), volume.grid, tmp_path / "out.nii.gz")
        image = nib.load(tmp_path / "out.nii.gz")
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(image.dataobj), VALUES > 60)


# names


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_every_row_refuses_a_file_of_another_format(tmp_path, reader):
    path = tmp_path / f"a{reader.suffixes[0]}"
    for file in [path, *([path.with_suffix(reader.partner)] if reader.partner else [])]:
        file.write_bytes(b"\0\1\2\3" * 200)
    for read in (read_volume, read_grid):
        with pytest.raises(ImageError, match=rf"^{re.escape(str(path.with_suffix('')))}.*: "):
            read(path)


def test_suffixes_are_those_of_one_reader_each():
    suffixes = [suffix for reader in READERS for suffix in reader.suffixes]
    assert len({*suffixes}) == len(suffixes)
    for suffix in suffixes:
        assert without_suffix(f"a.b{suffix}") == without_suffix(f"a.b{suffix.upper()}") == "a.b"
    assert without_suffix("a.txt") == "a.txt"


def test_a_pair_needs_both_files(tmp_path):
    image = tmp_path / "a.img"
    image.touch()
    assert reader_for(image) is None
    assert partner(image) is None
    (tmp_path / "a.HDR").touch()
    assert reader_for(image).module == "nifti.pair"
    assert (partner(image), partner(tmp_path / "a.HDR")) == (tmp_path / "a.HDR", image)
    with pytest.raises(ImageError, match=r"half of an Analyze or NIfTI pair.*fslchfiletype"):
        read_volume(tmp_path / "b.img")
    with pytest.raises(ImageError, match="no image by its name"):
        read_volume(tmp_path / "b.txt")


def test_monai_s_reader_leaves_other_formats_to_others():
    assert not NiftiReader().verify_suffix("a.mgz")


def test_zlib_is_what_metaimage_is_compressed_by(tmp_path):
    path = save_itk(tmp_path / "a.mha", compressed=True)
    head, _, packed = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
    assert zlib.decompress(packed) == STORED
    assert b"CompressedData = True" in head
