"""Files that are channels of one case: by their names, or volumes of one file."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data import count_volumes, image_cases, read_volumes
from monai_vit3d.data.case_files import group_channels, read_channels
from monai_vit3d.data.errors import DatasetError, ImageError

VOXELS = np.random.default_rng(0).normal(0, 50, (5, 6, 7, 3)).astype(np.float32)


def save(path, voxels=VOXELS[..., 0], dtype=np.float32):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(dtype), np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path


def grouped(names, channels=2):
    return [(case.name.name, [p.name for p in case.paths]) for case in group_channels(map(Path, names), channels)]


def test_numbered_files_are_channels():
    names = ["b_0001.nii.gz", "a_0000.nii.gz", "b_0000.nii.gz", "whole.nii.gz", "a_0001.nii"]
    assert grouped(names) == [
        ("b.nii.gz", ["b_0000.nii.gz", "b_0001.nii.gz"]),
        ("a.nii.gz", ["a_0000.nii.gz", "a_0001.nii"]),
        ("whole.nii.gz", ["whole.nii.gz"]),
    ]


def test_one_channel_leaves_names_alone():
    assert grouped(["a_0000.nii.gz", "a_0001.nii.gz"], 1) == [
        ("a_0000.nii.gz", ["a_0000.nii.gz"]),
        ("a_0001.nii.gz", ["a_0001.nii.gz"]),
    ]


def test_numbers_that_are_no_channels():
    assert grouped(["scan_2019.nii.gz"]) == [("scan_2019.nii.gz", ["scan_2019.nii.gz"])]
    assert grouped(["scan_01.nii.gz", "scan_0.nii.gz"]) == [
        ("scan_01.nii.gz", ["scan_01.nii.gz"]),
        ("scan_0.nii.gz", ["scan_0.nii.gz"]),
    ]
    (case,) = group_channels(map(Path, ["a_0000.nii", "a_0001.nii", "a_0002.nii"]), 2)  # too many is for the reader
    assert len(case.paths) == 3


def test_missing_channels_keep_their_places():
    (case,) = group_channels([Path("x/a_0001.nii.gz")], 3)
    assert [path.name for path in case.paths] == ["a_0000.nii.gz", "a_0001.nii.gz", "a_0002.nii.gz"]
    assert [path.name for path in case.missing] == ["a_0000.nii.gz", "a_0002.nii.gz"]


def test_two_files_that_are_one_channel():
    with pytest.raises(DatasetError, match=r"a_0000.nii.gz: channel 0 of a, as a_0000.nii is"):
        grouped(["a_0000.nii", "a_0000.nii.gz", "a_0001.nii"])


@given(
    st.sets(st.tuples(st.sampled_from(["x/a", "x/b", "y/a", "z_0001"]), st.integers(0, 5))),
    st.sets(st.sampled_from(["x/c", "y/c_01", "a_12345"])),
    st.integers(2, 4),
)
def test_each_file_is_in_one_case(numbered, others, channels):
    files = [Path(f"{name}_{number:04d}.nii.gz") for name, number in sorted(numbered)]
    files += [Path(f"{name}.nii.gz") for name in sorted(others)]
    cases = group_channels(files, channels)
    paths = [path for case in cases for path in case.paths]
    assert sorted(path for path in paths if path not in {m for case in cases for m in case.missing}) == sorted(files)
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert len(case.paths) == 1 or [p.name[-11:-7] for p in case.paths[:channels]] == [
            f"{i:04d}" for i in range(channels)
        ]


def test_image_cases_of_a_folder(tmp_path):
    for i in range(3):
        save(tmp_path / "deep" / f"a_{i:04d}.nii.gz", VOXELS[..., i])
    whole = save(tmp_path / "whole_0000.nii.gz", VOXELS)  # a case by itself, whatever its number
    expected = [{"image": [str(tmp_path / "deep" / f"a_{i:04d}.nii.gz") for i in range(3)]}, {"image": [str(whole)]}]
    assert image_cases(tmp_path, 3) == expected
    assert len(image_cases(tmp_path)) == 4
    (tmp_path / "deep" / "a_0001.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"a_0001.nii.gz: missing; a file for each of 3 channels"):
        image_cases(tmp_path, 3)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_all_volumes_in_one_reading_as_nibabel(tmp_path, name, dtype):
    voxels = VOXELS.astype(dtype)
    kind = nib.MGHImage if name.endswith("mgz") else nib.Nifti1Image
    nib.save(kind(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / name)
    volumes = read_volumes(tmp_path / name, hashed=True)
    assert count_volumes(tmp_path / name) == len(volumes) == 3
    image = nib.load(tmp_path / name)
    for i, volume in enumerate(volumes):
        np.testing.assert_array_equal(volume.voxels, image.get_fdata()[..., i].astype(np.float32))
        np.testing.assert_allclose(volume.grid.affine_mm, image.affine)
    assert [len(volume.sha256) for volume in volumes] == [1, 0, 0]


def test_a_case_is_files_or_one_file_of_volumes(tmp_path):
    whole = save(tmp_path / "whole.nii.gz", VOXELS)
    parts = [save(tmp_path / f"part_{i:04d}.nii.gz", VOXELS[..., i]) for i in range(3)]
    for paths in ([whole], parts):
        voxels = [volume.voxels for volume in read_channels(paths, 3)]
        np.testing.assert_array_equal(np.stack(voxels, 3), VOXELS)
    (second,) = read_channels([whole], 3, volume=1)
    np.testing.assert_array_equal(second.voxels, VOXELS[..., 1])
    with pytest.raises(ImageError, match=r"whole.nii.gz: 3 channel\(s\); 2 files of one volume each, or one 4D file"):
        read_channels([whole], 2)
    with pytest.raises(ImageError, match=r"part_0001.nii.gz: 1 channel\(s\); 2 files"):
        read_channels(parts[1:2], 2)
    with pytest.raises(ImageError, match=r"part_0007.nii.gz: no such file; the case needs 2 channels"):
        read_channels([parts[0], tmp_path / "part_0007.nii.gz"], 2)
