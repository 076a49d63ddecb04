"""Bytes of files: whole and verified to the last, or refused with words that help; nothing large is allocated."""

import gzip
import hashlib
import os
import re
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest

from monai_vit3d.data import ImageError
from monai_vit3d.data.nifti import read_nifti, read_nifti_grid
from monai_vit3d.data.nifti.file_bytes import open_stream

from .conftest import nifti_bytes

CONTENT = nifti_bytes()
PACKED = gzip.compress(CONTENT, mtime=0)
VOXELS = np.arange(720, dtype=np.float32).reshape(8, 9, 10)


def refused(path, *words, read=read_nifti, **options):
    """The refusal names the file first, and has these words in this order."""
    with pytest.raises(ImageError, match="(?s)^" + re.escape(str(path)) + ": .*" + ".*".join(words)) as caught:
        read(path, **options)
    assert str(caught.value).endswith(".")
    return caught.value


def members(*pieces):
    return b"".join(gzip.compress(piece, mtime=0) for piece in pieces)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.nii", CONTENT),
        ("PLAIN.NII", CONTENT),
        ("one.nii.gz", PACKED),
        ("stored.nii.gz", gzip.compress(CONTENT, compresslevel=0)),
        ("two.nii.gz", members(CONTENT[:500], CONTENT[500:])),
        ("head.nii.gz", members(CONTENT[:100], CONTENT[100:352], b"", CONTENT[352:])),
        ("padded.nii.gz", PACKED + bytes(600)),
    ],
)
def test_whole_files_are_read_without_a_warning(raw, name, content):
    volume = read_nifti(raw(name, content))
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    assert volume.warnings == ()


@pytest.mark.parametrize(("name", "content"), [("t1.nii", PACKED), ("t1.nii.gz", CONTENT)])
def test_content_counts_not_the_name(raw, name, content):
    volume = read_nifti(raw(name, content))
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    assert len(volume.warnings) == 1
    assert "whatever its name says" in volume.warnings[0]


@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
@pytest.mark.parametrize("count", [1, 5000])
def test_bytes_after_the_voxels_are_told(save, name, count):
    volume = read_nifti(save(name, tail=b"x" * count))
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    assert volume.warnings == (f"{count} bytes after the voxels were passed over",)


def test_an_extension_is_passed_over(save, tmp_path):
    image = nib.Nifti1Image(VOXELS, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a name, perhaps"))
    for name in ("t1.nii", "t1.nii.gz"):
        image.to_filename(tmp_path / name)
        np.testing.assert_array_equal(read_nifti(tmp_path / name).voxels, VOXELS)


# damaged


@pytest.mark.parametrize("keep", [20, len(PACKED) // 2, len(PACKED) - 9, len(PACKED) - 8, len(PACKED) - 1])
def test_cut_gzip(raw, keep):
    refused(raw("t1.nii.gz", PACKED[:keep]), "truncated: the gzip stream is cut off", "Copy, download or export")


@pytest.mark.parametrize("keep", [1, 347, 351, 352, len(CONTENT) - 1])
def test_cut_plain(raw, keep):
    for read in (read_nifti, read_nifti_grid):
        refused(raw("t1.nii", CONTENT[:keep]), "truncated|text", "again", read=read)


@pytest.mark.parametrize("keep", [100, 352, 1000, len(CONTENT) - 1])
def test_whole_gzip_of_a_cut_file(save, keep):
    refused(save(content=CONTENT[:keep]), "truncated: ", "again")


@pytest.mark.parametrize("at", [-8, -5, -4, -1])
def test_wrong_checksum_or_length(raw, at):
    flipped = bytearray(PACKED)
    flipped[at] ^= 1
    refused(raw("t1.nii.gz", bytes(flipped)), "gzip stream is damaged", "again")


@pytest.mark.parametrize("member", [0, 1])
def test_checksum_of_every_member(raw, member):
    pieces = [bytearray(gzip.compress(part, compresslevel=0)) for part in (CONTENT[:900], CONTENT[900:])]
    pieces[member][-30] ^= 1  # a voxel of a stored block: inflates without complaint
    assert len(zlib.decompress(bytes(pieces[member])[10:-8], wbits=-15)) > 0
    path = raw("t1.nii.gz", b"".join(map(bytes, pieces)))
    refused(path, "CRC", "again")


def test_checksum_of_a_member_after_the_voxels(raw):
    bad = bytearray(members(b"tail"))
    bad[-8] ^= 1
    refused(raw("t1.nii.gz", PACKED + bytes(bad)), "CRC")


@pytest.mark.parametrize("garbage", [b"g", b"garbage", bytes(20) + b"g", CONTENT])
def test_garbage_after_the_gzip_stream(raw, garbage):
    refused(raw("t1.nii.gz", PACKED + garbage), "not gzip follow", "again")


def test_flipped_bits_never_change_a_voxel_silently(raw):
    rng = np.random.default_rng(0)
    content = nifti_bytes(rng.integers(0, 999, (8, 9, 10)).astype(np.int16))
    expected = read_nifti(raw("t1.nii", content)).voxels
    packed = gzip.compress(content, mtime=0)
    for bit in rng.integers(10 * 8, len(packed) * 8, 60):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = read_nifti(raw("t1.nii.gz", bytes(flipped))).voxels
        except ImageError:
            continue
        np.testing.assert_array_equal(found, expected)  # a bit of the stream that means nothing


# not an image


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty", "Copy"]),
        (b"\n <!DOCTYPE html><html><title>Log in</title>", ["web page", "log in"]),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", ["web page or XML", "log in"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", ["Git LFS", "git lfs pull"]),
        (b"/annex/objects/MD5E-s1--2.nii.gz\n", ["git-annex", "datalad get"]),
        (b"not found\n" * 50, ["text", "again"]),
        (bytes(128) + b"DICM" + bytes(500), ["DICOM", "dcm2niix"]),
        (b"NRRD0004\n" + bytes(600), ["NRRD", "Slicer"]),
        (b"PK\x03\x04" + bytes(600), ["archive", "Unpack"]),
        (PACKED, ["compressed twice|begins with", "gunzip|again"]),
        (bytes(1000), ["not NIfTI", "00 00 00 00", "Convert"]),
        (b"\x89PNG\r\n\x1a\n" + bytes(999), ["not NIfTI", "Convert"]),
    ],
)
def test_other_content(raw, save, content, words):
    if content != PACKED:
        refused(raw("t1.nii", content), *words)
    if content:
        refused(save("t1.nii.gz", content=content), *words)


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("t1.hdr", "fslchfiletype"),
        ("t1.img.gz", "fslchfiletype"),
        ("t1.mgz", "mri_convert"),
        ("t1.nrrd", "Slicer"),
        ("t1.mha", "SimpleITK"),
        ("IM1.DCM", "dcm2niix"),
        ("t1.mnc", "mnc2nii"),
        ("t1+orig.BRIK.gz", "3dAFNItoNIfTI"),
        ("t1.gz", "rename"),
        ("t1", "rename"),
    ],
)
def test_other_names(raw, name, tool):
    refused(raw(name, PACKED), r"expected \.nii or \.nii\.gz", tool)
    refused(raw(name, PACKED), tool, read=read_nifti_grid)


def test_no_file(tmp_path):
    refused(tmp_path / "t1.nii.gz", "no such file", "Check the name")
    (tmp_path / "a").touch()
    refused(tmp_path / "a" / "t1.nii", "no such file")
    refused(tmp_path / ("a" * 300 + ".nii"), "cannot be read")


def test_folder(tmp_path):
    (tmp_path / "t1.nii.gz").mkdir()
    refused(tmp_path / "t1.nii.gz", "a folder; expected one file", "Give")


def test_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "t1.nii")
    refused(tmp_path / "t1.nii", "device or pipe", "Save")


@pytest.mark.parametrize(("target", "advice"), [("gone.nii", "Fix the link"), (".git/annex/objects/x", "datalad get")])
def test_broken_link(tmp_path, target, advice):
    (tmp_path / "t1.nii").symlink_to(target)
    refused(tmp_path / "t1.nii", f"a link to {target}", advice)


def test_link_to_a_file(save, tmp_path):
    (tmp_path / "link.nii.gz").symlink_to(save())
    assert read_nifti(tmp_path / "link.nii.gz").voxels.shape == (8, 9, 10)


@pytest.mark.parametrize(
    ("error", "words"),
    [(PermissionError(13, "Permission denied"), "no permission"), (OSError(5, "Input/output error"), "Input/output")],
)
def test_unreadable(save, monkeypatch, error, words):
    path = save()

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(type(path), "open", fail)
    refused(path, words)


# size before memory


@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
@pytest.mark.parametrize("read", [read_nifti, read_nifti_grid])
@pytest.mark.parametrize("options", [{}, {"max_voxels": 2**62}])
def test_a_header_that_declares_32767_cubed_allocates_nothing(save, name, read, options):
    path = save(name, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
    words = ["max_voxels=1073741824", "pass a larger max_voxels"] if not options else ["declares 70362", "again"]
    tracemalloc.start()
    try:
        refused(path, *words, read=read, **options)
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_memory_that_is_not_there(save, monkeypatch):
    path = save()

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(np, "empty", fail)
    refused(path, r"shape \(8, 9, 10\) does not fit into memory", "Free memory")


def test_max_voxels_counts_the_picked_volume(save):
    path = save(data=np.zeros((4, 5, 6, 7), np.uint8))
    assert read_nifti(path, volume=6, max_voxels=120).voxels.shape == (4, 5, 6)
    refused(path, "120 voxels; at most max_voxels=119", "larger", volume=6, max_voxels=119)


def test_zeros_compress_to_the_limit_and_are_read(save):
    volume = read_nifti(save(data=np.zeros((200, 200, 200), np.uint8)))
    assert volume.warnings == ("all voxels are 0",)


def test_a_bomb_is_refused_and_not_stored(raw):
    after = 40 * 2**20
    path = raw("t1.nii.gz", gzip.compress(CONTENT + bytes(after), mtime=0))
    tracemalloc.start()
    try:
        refused(path, "over .* bytes follow the 1792 ")
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_the_grid_of_a_gzip_is_read_from_its_beginning(raw):
    rng = np.random.default_rng(0)
    content = nifti_bytes(rng.integers(0, 2**15, (64, 64, 32)).astype(np.int16))
    path = raw("t1.nii.gz", gzip.compress(content, mtime=0)[:150_000])
    assert read_nifti_grid(path).shape == (64, 64, 32)
    refused(path, "cut off")


@pytest.mark.slow
def test_memory_is_the_raw_bytes_and_the_result(save):
    path = save("t1.nii.gz", data=np.random.default_rng(0).integers(0, 99, (200, 200, 100)).astype(np.int16))
    tracemalloc.start()
    try:
        read_nifti(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6 * (2 + 4) + 20e6  # int16, float32, and slabs of a mebivoxel


# the hash of what was read


@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz", "named_so.nii"])
@pytest.mark.parametrize("options", [{}, {"tail": b"rest" * 300}, {"vox_offset": 3000}, {"version": 2}])
def test_hash_of_what_was_read(raw, name, options):
    content = nifti_bytes(**options)
    if "vox_offset" in options:
        content = content[:352] + bytes(3000 - 352) + content[352:]
    path = raw(name, content if name == "t1.nii" else gzip.compress(content))
    found = read_nifti(path, hashed=True)
    assert found.sha256 == (hashlib.sha256(path.read_bytes()).hexdigest(),)
    assert read_nifti(path).sha256 == ()


@pytest.mark.parametrize("volume", [0, 1, 2])
def test_hash_of_a_file_of_which_one_volume_was_read(save, volume):
    for name in ("a.nii", "a.nii.gz"):
        path = save(name, data=np.arange(4 * 5 * 6 * 3, dtype=np.int16).reshape(4, 5, 6, 3))
        found = read_nifti(path, volume, hashed=True)
        assert found.sha256 == (hashlib.sha256(path.read_bytes()).hexdigest(),)
        np.testing.assert_array_equal(found.voxels, read_nifti(path, volume).voxels)


def test_hash_of_several_gzip_members(raw):
    content = nifti_bytes()
    path = raw("t1.nii.gz", gzip.compress(content[:500]) + gzip.compress(content[500:]))
    assert read_nifti(path, hashed=True).sha256 == (hashlib.sha256(path.read_bytes()).hexdigest(),)


def test_hash_and_voxels_are_of_one_reading(save):
    """The file's name leads to another file while the first is read: hash and voxels stay the first one's."""
    first, other = (save(name, data=np.full((8, 9, 10), n, np.int16)) for n, name in enumerate(["a.nii", "b.nii"], 1))
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    with open_stream(first, hashed=True) as stream:
        other.replace(first)
        head = stream.read(352)
        block = stream.block(352, 8 * 9 * 10 * 2, 352 + 8 * 9 * 10 * 2)
        sha256 = stream.sha256()
    assert head[:4] == (348).to_bytes(4, "little")
    assert set(block.view("<i2")) == {1}
    assert sha256 == (digest,)
