"""Boxes cut in world space and label volumes, against nibabel."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data import DatasetError, ImageError, cut_box, label_volumes_ml, nifti_files


@given(
    spacing=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0])] * 3),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    shift=st.tuples(*[st.integers(-3, 3)] * 3),
)
def test_box_keeps_every_voxel_in_its_place(spacing, signs, shift):
    affine = np.diag([*np.multiply(spacing, signs), 1.0])
    affine[:3, 3] = (5, -7, 11)
    data = np.arange(20 * 18 * 16).reshape(20, 18, 16).astype(np.int32)
    image = nib.Nifti1Image(data, affine)
    centre = nib.affines.apply_affine(affine, np.add((10, 9, 8), shift))
    box = cut_box(image, centre, np.multiply((6, 8, 4), spacing))
    assert box.shape == (6, 8, 4)
    for corner in [(0, 0, 0), (5, 7, 3), (2, 3, 1)]:
        world = nib.affines.apply_affine(box.affine, corner)
        voxel = tuple(np.round(np.linalg.inv(affine) @ [*world, 1])[:3].astype(int))
        assert box.dataobj[corner] == data[voxel]


def test_box_of_scaled_integers_is_not_rounded_anew(tmp_path):
    image = nib.Nifti1Image(np.linspace(0, 1, 1000).reshape(10, 10, 10), np.eye(4))
    image.set_data_dtype(np.uint8)
    image.to_filename(tmp_path / "scaled.nii.gz")
    scaled = nib.load(tmp_path / "scaled.nii.gz")
    cut_box(scaled, (4, 4, 4), (6, 6, 6)).to_filename(tmp_path / "box.nii.gz")
    found = nib.load(tmp_path / "box.nii.gz").get_fdata()
    np.testing.assert_allclose(found, scaled.get_fdata()[1:7, 1:7, 1:7], rtol=1e-6)


def test_box_outside_is_refused():
    image = nib.Nifti1Image(np.zeros((10, 10, 10), np.int16), np.eye(4))
    with pytest.raises(ImageError, match=r"\[10, 10, 10\]"):
        cut_box(image, (0, 0, 0), (4, 4, 4))
    with pytest.raises(ImageError, match="one 3D volume"):
        cut_box(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), (2, 2, 2), (2, 2, 2))


def test_volumes_count_voxels_in_ml(tmp_path):
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:2] = 1
    labels[2:5] = 2
    affine = np.diag([-0.5, 2.0, 3.0, 1.0])
    nib.Nifti1Image(labels, affine).to_filename(tmp_path / "l.nii.gz")
    volumes = label_volumes_ml(tmp_path / "l.nii.gz", {1: "one", 2: "two", 3: "none"})
    assert volumes == pytest.approx({"one": 200 * 3e-3, "two": 300 * 3e-3, "none": 0.0})


# finding files


def test_images_without_hidden_files_labels_and_earlier_outputs(tree, caplog):
    root = tree(
        "imagesTr/a.nii.gz", "imagesTr/B.NII", "imagesTr/._a.nii.gz", "labelsTr/a.nii.gz", ".t/c.nii", "notes.txt",
        "old/a_out.nii.gz", "old/new.nii.gz", "a_mask.nii",
    )  # fmt: skip
    (root / "old/run.json").write_text('{"files": [{"name": "a", "outputs": {"a_out.nii.gz": "0"}}]}')
    images = ["imagesTr/B.NII", "imagesTr/a.nii.gz", "old/new.nii.gz"]
    assert nifti_files(root) == [str(root / name) for name in images]
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"{root}: passed over ")
    parts = {"2 hidden", "1 written by an earlier run", "2 labels, masks or maps by name or folder"}
    assert all(part in line for part in parts)
    more = ["a_mask.nii", "imagesTr/B.NII", "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "old/a_out.nii.gz"]
    assert nifti_files(root, include_labels=True) == [str(root / name) for name in [*more, "old/new.nii.gz"]]


def test_a_folder_without_images(tree, tmp_path):
    root = tree("labelsTr/a.nii.gz", "._b.nii")
    with pytest.raises(DatasetError, match=r"no .nii or .nii.gz image .*\(1 hidden, 1 labels|\(1 labels, .*, 1 hidden"):
        nifti_files(root)
    with pytest.raises(DatasetError, match="no such folder"):
        nifti_files(tmp_path / "gone")
