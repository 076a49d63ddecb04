"""The fingerprint is what numpy and scikit-image measure on the arrays that the files were made of."""

from __future__ import annotations

import dataclasses
import json
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from skimage.measure import label

from monai_vit3d.planning import examine, fingerprint, read_dataset
from tests.planning.toy_data import CLASSES, TOY_LAYOUTS, toy_cases, toy_mr_cases, write_toy, write_toy_mr

SIZE = {"cases": 4, "testing": 1, "shape": (24, 20, 16)}
AXCODES = ["".join(codes) for axes in permutations(("RL", "AP", "SI")) for codes in product(*axes)]


def digits(value):
    return pytest.approx(value, rel=1e-5)


def measured(path):
    problems, numbers, _ = examine(read_dataset(path))
    assert not [problem for problem in problems if problem.severity == "error"]
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    return numbers


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return measured(write_toy(tmp_path_factory.mktemp("toy"), "nnunet_v2", **SIZE))


def test_geometry(toy, tmp_path):
    assert toy["cases"] == 4
    assert toy["spacing_mm"] == {key: [1.5, 1.5, 3.0] for key in ("10", "50", "90")}
    assert toy["shape"] == {key: [24, 20, 16] for key in ("10", "50", "90")}
    assert toy["anisotropy"] == 2
    mr = measured(write_toy_mr(tmp_path, cases=2, shape=(20, 18, 6)))
    assert (mr["spacing_mm"]["50"], mr["shape"]["50"], mr["anisotropy"]) == ([0.5, 0.5, 5.0], [20, 18, 6], 10)


def test_sizes_by_percentile(tmp_path):
    sizes = [(10, 8, 6), (20, 8, 6), (30, 9, 7)]
    for i, shape in enumerate(sizes):
        voxels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        for folder, values in (("images", voxels), ("labels", (voxels > 9).astype(np.uint8))):
            (tmp_path / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(values, np.diag([1 + i, 1, 1, 1])), tmp_path / folder / f"{i}.nii.gz")
    numbers = measured(tmp_path)
    for percent in (10, 50, 90):
        expected = np.percentile(np.array(sizes, float), percent, axis=0)
        np.testing.assert_allclose(numbers["shape"][str(percent)], expected, rtol=1e-5)
        assert numbers["spacing_mm"][str(percent)][0] == digits(np.percentile([1.0, 2.0, 3.0], percent))


def test_intensities_of_labelled_voxels(toy):
    cases = toy_cases(**SIZE)[:4]
    for i, channel in enumerate(toy["channels"]):
        values = np.concatenate([case.channels[i][case.labels > 0] for case in cases]).astype(np.float64)
        assert channel["mean"] == digits(values.mean())
        assert channel["std"] == digits(values.std())
        for percent, value in channel["percentiles"].items():
            assert value == digits(np.percentile(values, float(percent)))
    assert [(channel["name"], channel["modality"]) for channel in toy["channels"]] == [("CT", "CT"), ("PET", "PET")]
    assert [channel["background_is_constant"] for channel in toy["channels"]] == [False, True]
    assert toy["background_is_constant"] is False


def test_classes(toy):
    cases = toy_cases(**SIZE)[:4]
    assert [*toy["classes"]] == ["1", "2", "3"]
    for value, facts in toy["classes"].items():
        masks = [case.labels == int(value) for case in cases]
        masks = [mask for mask in masks if mask.any()]
        parts = [label(mask, connectivity=3) for mask in masks]
        part_sizes = [size for part in parts for size in np.bincount(part.ravel())[1:]]
        voxel_ml = 1.5 * 1.5 * 3 / 1000
        assert facts == {
            "name": CLASSES[int(value)],
            "voxel_share": digits(np.mean([case.labels == int(value) for case in cases])),
            "cases": len(masks),
            "components": np.median([part.max() for part in parts]),
            "component_ml": digits(np.median(part_sizes) * voxel_ml),
            "volume_ml": digits(np.median([mask.sum() for mask in masks]) * voxel_ml),
        }
    assert toy["classes"]["1"]["components"] >= 2
    assert toy["left_right_pairs"] == [["left_organ", "right_organ"]]


@pytest.mark.parametrize("toy_layout", TOY_LAYOUTS)
def test_every_layout_has_the_same_fingerprint(toy, tmp_path, toy_layout):
    assert measured(write_toy(tmp_path, toy_layout, **SIZE)) == toy


def write_case(root, case):
    (root / "images").mkdir(parents=True)
    case.save_channel(0, root / "images" / "a_T2w.nii.gz")
    case.save_labels(root / "labels" / "a.nii.gz")
    return root


def test_how_axes_are_stored_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "SAMPLED_VOXELS", 20)  # fewer than are labelled, so that some are chosen
    case = toy_mr_cases(cases=1, testing=0, shape=(18, 14, 10))[0]
    assert (case.labels > 0).sum() > 20
    assert len(AXCODES) == 48
    numbers = [
        measured(write_case(tmp_path / codes, dataclasses.replace(case, axcodes=codes))) for codes in AXCODES[::5]
    ]
    assert all(other == numbers[0] for other in numbers)


def test_a_sample_of_many_voxels_stands_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "SAMPLED_VOXELS", 500)
    case = toy_mr_cases(cases=1, testing=0, shape=(96, 96, 24))[0]
    values = case.channels[0][case.labels > 0].astype(np.float64)
    assert len(values) > 2000
    channel = measured(write_case(tmp_path, case))["channels"][0]
    assert channel["mean"] == pytest.approx(values.mean(), rel=0.02)
    assert channel["percentiles"]["95"] == pytest.approx(np.percentile(values, 95), rel=0.02)


def scans(root, labels, background):
    """Write a scan for each label, its outer shell of one value, and a table of them."""
    rng = np.random.default_rng(0)
    inner = []
    for i in range(len(labels)):
        voxels = np.full((12, 12, 12), background, np.float32)
        voxels[2:-2, 2:-2, 2:-2] = rng.normal(100, 10, (8, 8, 8))
        inner.append(voxels[2:-2, 2:-2, 2:-2].ravel().astype(np.float64))
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / f"scan{i}.nii.gz")
    lines = [f"scan{i}.nii.gz,{value}" for i, value in enumerate(labels)]
    (root / "l.csv").write_text("\n".join(["image_x,label", *lines]))
    return np.concatenate(inner)


def test_without_label_maps_all_voxels_count_but_a_background_of_0(tmp_path):
    inner = scans(tmp_path, ["sick", "well", "sick"], 0)
    numbers = measured(tmp_path)
    assert numbers["classes"] == {"0": {"name": "sick", "cases": 2}, "1": {"name": "well", "cases": 1}}
    channel = numbers["channels"][0]
    assert (channel["mean"], channel["std"]) == (digits(inner.mean()), digits(inner.std()))
    assert (channel["modality"], channel["background_is_constant"]) == ("other", True)


def test_a_regression_has_a_target_and_a_ct_is_known_by_its_air(tmp_path):
    inner = scans(tmp_path, [0.5, 2, 3.5], -1000)
    numbers = measured(tmp_path)
    assert numbers["target"] == {"mean": 2.0, "std": digits(np.std([0.5, 2, 3.5])), "min": 0.5, "max": 3.5}
    assert "classes" not in numbers
    channel = numbers["channels"][0]
    assert channel["mean"] == digits((inner.sum() - 1000 * (3 * 12**3 - len(inner))) / (3 * 12**3))
    assert (channel["modality"], channel["background_is_constant"]) == ("CT", False)


def test_classes_that_no_case_has_are_0(tmp_path):
    root = write_toy(tmp_path, "nnunet_v2", **SIZE)
    for path in (root / "labelsTr").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    numbers = measured(root)
    assert numbers["classes"]["1"] == {
        "name": "lesion", "voxel_share": 0, "cases": 0, "components": 0, "component_ml": 0, "volume_ml": 0
    }  # fmt: skip
    assert numbers["channels"][0]["std"] == 0
