"""The bundle of whole heads on nilearn's MNI152 template: both sides, in every storage, by MONAI's run as by ours."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from nilearn.datasets import load_mni152_template

from monai_vit3d.data.in_memory import volumes_from
from monai_vit3d.pipeline.demo import CENTRES_MM
from monai_vit3d.pipeline.folder import predict_folder
from tests.bundles import helpers
from tests.helpers import BUNDLES

HEAD = BUNDLES / "head_hippocampus"
VALUES = {"left": (1, 2), "right": (3, 4)}  # anterior, posterior
CODES = ["".join(c) for axes in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*axes)]


def stored_as(image, codes):
    turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, (nib.aff2axcodes(image.affine), codes)))
    return image.as_reoriented(turn)


def centre_mm(labels, affine, values):
    return nib.affines.apply_affine(affine, np.argwhere(np.isin(labels, values))).mean(0)


def assert_both_sides(labels, affine, tolerance_mm=5.0):
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    for side, values in VALUES.items():
        assert np.linalg.norm(centre_mm(labels, affine, values) - CENTRES_MM[side]) < tolerance_mm
        anterior, posterior = (centre_mm(labels, affine, value) for value in values)
        assert anterior[1] > posterior[1] + 8
        assert anterior[2] < posterior[2]
        # a hippocampus measures 2.5 to 5 ml; the MNI template is larger than most heads
        assert 2 < np.isin(labels, values).sum() * voxel_ml < 6


@pytest.mark.slow
def test_both_hippocampi_of_a_whole_head(head, labels):
    assert labels.shape == head.shape
    assert labels.dtype == np.uint8
    assert_both_sides(labels, head.affine)


@pytest.mark.slow
def test_a_plain_head_is_not_suspicious(head, predictor, tmp_path):
    head.to_filename(tmp_path / "head.nii.gz")
    records = []
    summary = predict_folder(tmp_path / "head.nii.gz", tmp_path / "out", HEAD, safe=True, on_case=records.append)
    assert (summary.done, summary.failed) == (1, 0)
    assert records[0]["suspicious"] == []
    header, row = (line.split(",") for line in (tmp_path / "out" / "volumes.csv").read_text().splitlines())
    volumes = dict(zip(header, row))
    total = float(volumes["left hippocampus ml"]) + float(volumes["right hippocampus ml"])
    assert float(volumes["hippocampus total ml"]) == pytest.approx(total, rel=1e-4)
    assert abs(float(volumes["hippocampus asymmetry %"])) < 25


@pytest.mark.slow
@pytest.mark.parametrize("codes", [CODES[14]])
def test_left_stays_left_in_another_storage(codes, head, labels, predictor):
    turned = stored_as(head, codes)
    predicted = stored_as(predictor.predict(turned), nib.aff2axcodes(head.affine))
    assert np.array_equal(np.asarray(predicted.dataobj), labels)


@pytest.mark.slow
def test_the_networks_see_the_same_head_in_all_48_storages(predictor, tmp_path):
    small = load_mni152_template(resolution=2)
    steps = Compose(predictor.bundle.preprocessing.steps)
    path, seen = tmp_path / "head.nii", []
    for codes in CODES:
        stored_as(small, codes).to_filename(path)
        seen.append(steps({"image": path})["image"])
    assert len(seen) == 48
    for image in seen[1:]:
        torch.testing.assert_close(image.as_tensor(), seen[0].as_tensor(), atol=1e-4 * float(seen[0].max()), rtol=0)
        torch.testing.assert_close(image.affine, seen[0].affine)


@pytest.mark.slow
def test_monais_run_gives_the_same_labels(head, labels, tmp_path):
    assert np.array_equal(helpers.labels_by_monai(HEAD, head, tmp_path), labels)


@pytest.mark.slow
def test_a_head_that_lies_otherwise_than_its_header_says(head, predictor):
    """Quarter turns of the header about each axis: the labels follow the anatomy, and it is said."""
    quarter = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)  # front to the left
    wrong = nib.Nifti1Image(np.asarray(head.dataobj), quarter @ head.affine)
    (volume,) = volumes_from(wrong, None, 1)
    prediction = predictor.predict_volumes([volume])
    assert any("turned by" in finding.text for finding in prediction.findings)
    assert_both_sides(prediction.labels, head.affine, tolerance_mm=6.0)


@pytest.mark.slow
def test_a_missing_side_is_left_out_and_said(head, labels, predictor):
    voxels = np.array(head.dataobj)
    affine = head.affine
    place = np.round(nib.affines.apply_affine(np.linalg.inv(affine), CENTRES_MM["left"])).astype(int)
    voxels[: place[0] + 22] = 0  # without the left hemisphere
    (volume,) = volumes_from(nib.Nifti1Image(voxels, affine), None, 1)
    prediction = predictor.predict_volumes([volume])
    assert any("left hippocampus" in finding.text for finding in prediction.findings)
    assert not np.isin(prediction.labels, VALUES["left"]).any()


@pytest.mark.slow
def test_an_image_without_a_head(predictor):
    noise = np.random.default_rng(0).uniform(0, 100, (180, 200, 180)).astype(np.float32)
    (volume,) = volumes_from(nib.Nifti1Image(noise, np.eye(4)), None, 1)
    prediction = predictor.predict_volumes([volume])
    assert not prediction.labels.any()
    assert any(finding.kind == "localization" for finding in prediction.findings)
