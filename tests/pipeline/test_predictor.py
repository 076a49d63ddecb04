"""Arrays, tensors and images in memory give the labels that files give, and that `monai.bundle run` gives."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

import monai_vit3d
from monai_vit3d.data import ImageError, read_volume
from monai_vit3d.data.errors import UsageError
from monai_vit3d.pipeline.folder import predict_folder
from monai_vit3d.pipeline.predictor import Predictor
from tests.bundles.balls import gland
from tests.helpers import BUNDLES
from tests.pipeline import zoo
from tests.pipeline.reference import (
    ARGMAX,
    LOAD,
    ORIENT,
    SPACING,
    TYPED,
    invert,
    monai_labels,
    several,
    sharp_image,
    write_bundle,
)

PREPROCESSING = [LOAD, ORIENT, SPACING, TYPED]
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
TURN = nib.eulerangles.euler2mat(*np.deg2rad([12, -10, 25]))
GRIDS = {"flipped": zoo.AFFINE, "oblique": nib.affines.from_matvec(TURN @ np.diag([2.0, 1.5, 3.0]), [-20, 10, 5])}
POSTPROCESSING = {
    "labels inverted": [ARGMAX, invert()],
    "scores inverted": [SOFTMAX, invert(nearest_interp=False), ARGMAX],
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("predictor") / "bundle", PREPROCESSING)


@pytest.fixture(scope="module")
def predictor(bundle):
    return Predictor(bundle, "cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return sharp_image(tmp_path_factory.mktemp("images") / "scan.nii.gz")


def stored(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", POSTPROCESSING)
def test_voxels_files_and_monai_bundle_run_give_the_same_labels(tmp_path, grid, steps):
    root = write_bundle(tmp_path / "bundle", PREPROCESSING, POSTPROCESSING[steps])
    scan = sharp_image(tmp_path / "scan.nii.gz", affine=GRIDS[grid])
    image = nib.load(scan)
    labels = Predictor(root, "cpu").predict(image.get_fdata(), image.affine)
    assert predict_folder(str(scan), tmp_path / "out", root, device="cpu").done == 1
    (monai,) = monai_labels(root, [{"image": scan}], tmp_path / "monai")
    assert several(labels)
    np.testing.assert_array_equal(labels, stored(tmp_path / "out" / "scan_seg.nii.gz"))
    np.testing.assert_array_equal(labels, monai.squeeze())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_tensors_give_tensors(predictor, path, dtype):
    image = nib.load(path)
    voxels = torch.as_tensor(image.get_fdata()).to(dtype)
    labels = predictor.predict(voxels, image.affine)
    assert type(labels) is torch.Tensor
    np.testing.assert_array_equal(labels, predictor.predict(voxels.numpy(), torch.as_tensor(image.affine)))
    with_channel = predictor.predict(voxels[None], image.affine)
    np.testing.assert_array_equal(labels, with_channel)


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("space", ["RAS", "LPS"])
def test_metatensors_give_metatensors(predictor, path, space, channels):
    volume = read_volume(path)
    affine = np.diag([-1, -1, 1, 1] if space == "LPS" else [1, 1, 1, 1]) @ volume.grid.affine_mm
    voxels = torch.from_numpy(volume.voxels)
    image = MetaTensor(voxels[None] if channels else voxels, affine=affine, meta={"space": space, "note": "kept"})
    labels = predictor.predict(image)
    assert isinstance(labels, MetaTensor)
    assert labels.shape == image.shape
    assert labels.meta["note"] == "kept"
    np.testing.assert_array_equal(labels.affine, affine)
    expected = predictor.predict(volume.voxels, volume.grid.affine_mm)
    np.testing.assert_array_equal(labels.numpy().reshape(expected.shape), expected)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["mm", "meter"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_images_are_read_and_written_as_files_are(predictor, bundle, tmp_path, kind, unit):
    scale = {"mm": 1.0, "meter": 0.001}[unit]
    values = sharp_image(tmp_path / "made.nii.gz")
    image = kind(stored(values)[..., None], np.diag([scale, scale, scale, 1]) @ zoo.AFFINE)
    image.set_data_dtype(np.int16)  # nibabel chooses a slope
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "scan.nii.gz")
    assert predict_folder(tmp_path / "scan.nii.gz", tmp_path / "out", bundle, device="cpu").done == 1
    written = nib.load(tmp_path / "out" / "scan_seg.nii.gz")
    labels = predictor.predict(nib.load(tmp_path / "scan.nii.gz"))
    assert type(labels) is type(written) is kind
    np.testing.assert_array_equal(labels.affine, written.affine)
    np.testing.assert_array_equal(np.asarray(labels.dataobj), np.asarray(written.dataobj))
    labels.to_filename(tmp_path / "again.nii.gz")
    for field in written.header:
        np.testing.assert_array_equal(nib.load(tmp_path / "again.nii.gz").header[field], written.header[field], field)


@pytest.mark.slow
def test_several_channels_as_an_array_and_as_a_list(tmp_path):
    root = write_bundle(tmp_path / "bundle", PREPROCESSING, channels=2)
    paths = [sharp_image(tmp_path / f"{i}.nii.gz", seed=i) for i in range(2)]
    (tmp_path / "list.csv").write_text("image_a,image_b,name\n0.nii.gz,1.nii.gz,case\n")
    predict_folder(tmp_path / "list.csv", tmp_path / "out", root, device="cpu")
    expected = stored(tmp_path / "out" / "case_seg.nii.gz")
    predictor = Predictor(root, "cpu")
    images = [nib.load(path) for path in paths]
    assert several(expected)
    np.testing.assert_array_equal(np.asarray(predictor.predict(images).dataobj), expected)
    voxels = np.stack([image.get_fdata() for image in images])
    np.testing.assert_array_equal(predictor.predict(voxels, images[0].affine), expected)
    with pytest.raises(ImageError, match="1 channels; Toy spleen CT segmentation needs 2"):
        predictor.predict(voxels[0], images[0].affine)


@pytest.mark.slow
def test_maps_statistics_and_warnings(bundle, path, tmp_path, caplog):
    predict_folder(path, tmp_path / "out", bundle, device="cpu", tta=(0, 1), uncertainty="entropy", probabilities=True)
    (record,) = json.loads((tmp_path / "out" / "run.json").read_text())["files"]
    predictor = Predictor(bundle, "cpu", tta=(0, 1), uncertainty="entropy", probabilities=True)
    prediction = predictor.predict_volumes([read_volume(path)])
    np.testing.assert_array_equal(prediction.maps["entropy"], stored(tmp_path / "out" / "scan_entropy.nii.gz"))
    np.testing.assert_array_equal(
        prediction.maps["prob"], np.moveaxis(stored(tmp_path / "out" / "scan_prob.nii.gz"), 3, 0)
    )
    assert [summary.row() for summary in prediction.stats] == record["stats"]
    assert [finding.kind for finding in prediction.findings] == [one["kind"] for one in record["suspicious"]]
    sheared = zoo.AFFINE @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    predictor.predict(stored(path), sheared)
    assert "the axes are not at right angles" in caplog.text


@pytest.mark.slow
def test_a_classifier_gives_its_classes_numbers(tmp_path):
    root = BUNDLES / "medmnist3d_classification"
    image = nib.Nifti1Image(gland(np.zeros((64, 64, 64), np.uint8), (26, 22, 20)), np.eye(4))
    image.to_filename(tmp_path / "scan.nii.gz")
    predict_folder(tmp_path / "scan.nii.gz", tmp_path / "out", root, device="cpu")
    (record,) = json.loads((tmp_path / "out" / "run.json").read_text())["files"]
    assert Predictor(root, "cpu").predict(image) == record["prediction"]


def test_a_zip_and_a_loaded_bundle(bundle, predictor, path, tmp_path):
    import shutil

    packed = Path(shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle))
    expected = predictor.predict(stored(path), zoo.AFFINE)
    for other in (packed, predictor.bundle):
        labels = monai_vit3d.Predictor(other, "cpu").predict(stored(path), zoo.AFFINE)
        np.testing.assert_array_equal(labels, expected)


@pytest.mark.slow
def test_images_far_from_the_training_are_refused():
    predictor = Predictor(BUNDLES / "hippocampus_segmentation", "cpu", safe=True)
    with pytest.raises(ImageError, match="field of view"):
        predictor.predict(np.zeros((100, 100, 100), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))


NAN_AFFINE = np.full((4, 4), np.nan)
UNUSABLE = [
    (np.zeros((8, 8, 8)), None, "without an affine. Give affine="),
    (nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), np.eye(4), "Leave affine= out"),
    (MetaTensor(torch.zeros(1, 8, 8, 8)), np.eye(4), "Leave affine= out"),
    (np.zeros((1, 1, 8, 8, 8)), np.eye(4), r"float64 of shape \(1, 1, 8, 8, 8\); expected \(H, W, D\)"),
    (np.zeros((8, 8)), np.eye(4), r"expected \(H, W, D\)"),
    (np.zeros((0, 8, 8)), np.eye(4), r"expected \(H, W, D\)"),
    (np.zeros((8, 8, 8), complex), np.eye(4), "complex128"),
    (np.zeros((8, 8, 8)), np.eye(3), r"affine of shape \(3, 3\); expected \(4, 4\)"),
    (np.zeros((8, 8, 8)), np.diag([1.0, 1, 0, 1]), "maps the volume to a plane"),
    (np.zeros((8, 8, 8)), NAN_AFFINE, "is not finite"),
    (np.full((8, 8, 8), np.nan), np.eye(4), "none of 512 voxels is finite"),
    ("scan.nii.gz", None, "a str; expected an array.*paths of files to predict_folder"),
    ([], None, "a list; expected an array"),
    (nib.Nifti1Image(np.zeros((8, 8, 8, 3), np.float32), np.eye(4)), None, r"4D image \(8, 8, 8, 3\)"),
    (nib.Nifti1Image(np.zeros((8, 8, 8), np.complex64), np.eye(4)), None, "type complex64; expected real numbers"),
]


@pytest.mark.parametrize(("image", "affine", "message"), UNUSABLE)
def test_what_cannot_be_used_is_named(predictor, image, affine, message):
    with pytest.raises(ImageError, match=message):
        predictor.predict(image, affine)


def test_arguments_that_contradict_each_other(bundle):
    with pytest.raises(UsageError, match="variance"):
        Predictor(bundle, "cpu", uncertainty="variance")
