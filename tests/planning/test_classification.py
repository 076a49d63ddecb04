"""Bundles for whole volumes: planned from a CSV of classes or values, checked by MONAI, trained and read back."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out

from monai_vit3d.data import UsageError
from monai_vit3d.planning.init import plan_bundle
from tests.bundles.helpers import run_here
from tests.bundles.test_workflow import config_sets, unknown_properties
from tests.planning.test_write_bundle import SCHEMA

SMALL = {"embed_dim": 48, "num_heads": 1, "depth": 2}


@pytest.fixture(scope="module", params=["label", "target"])
def planned(request, tmp_path_factory):
    """Report of init and the CSV's column: ten balls, classes by size or their diameter in mm."""
    root = tmp_path_factory.mktemp("balls")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(10):
        radius = 4 + 4 * (i % 2)
        grid = np.indices((22, 20, 18)) - np.reshape([10.5, 9.5, 8.5], (3, 1, 1, 1))
        image = rng.normal(0, 0.3, grid.shape[1:]) + 3 * ((grid**2).sum(0) < radius**2)
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.diag([2.0, 2, 2, 1])), root / f"ball_{i}.nii.gz")
        value = ("small", "large")[i % 2] if request.param == "label" else 4.0 * radius + 0.5
        rows.append([f"ball_{i}.nii.gz", value])
    with open(root / "cases.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", request.param], *rows])
    return plan_bundle(root, root / "bundle", overrides={"folds": 2, "repeats": 1, **SMALL}), request.param


def test_monai_verifies_it(planned, tmp_path, monkeypatch):
    bundle = planned[0].bundle
    assert [found for configs in config_sets(bundle) if (found := unknown_properties(bundle, *configs))] == []
    (tmp_path / "schema.json").write_text(SCHEMA.read_text())
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(tmp_path / "schema.json"))
    monkeypatch.chdir(bundle)
    verify_net_in_out("network_def", meta_file="configs/metadata.json", config_file="configs/train.yaml", device="cpu")


def test_the_plan_and_the_metadata(planned):
    report, column = planned
    metadata = json.loads((report.bundle / "configs" / "metadata.json").read_text())
    split = json.loads((report.bundle / "configs" / "split.json").read_text())
    labels = [case["label"] for case in split["training"]]
    assert [n % p for n, p in zip(report.plan["window"], report.plan["patch_size"])] == [0, 0, 0]
    assert all(size >= n for size, n in zip(report.plan["window"], (22, 20, 18)))
    names = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    if column == "label":
        assert (names, report.plan["key_score"]) == ({"0": "large", "1": "small"}, "auc")
        for fold in (0, 1):  # both classes in each
            assert {case["label"] for case in split["training"] if case["fold"] == fold} == {0, 1}
    else:
        assert (len(names), report.plan["key_score"]) == (1, "r2")
        expected = {"mean": np.mean(labels), "std": np.std(labels)}
        assert metadata["plan"]["target"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_it_trains_and_predicts_in_the_datas_units(planned):
    report, column = planned
    run_here(report.bundle, "train", epochs=1, val_interval=1)
    assert (report.bundle / "models" / "fold_0.pt").is_file()
    root = report.dataset.root
    run_here(report.bundle, "inference", dataset_dir=root, output_dir=report.bundle / "eval")
    with open(report.bundle / "eval" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    if column == "label":
        assert {row["prediction"] for row in rows} <= {"small", "large"}
        sums = [float(row["probability_large"]) + float(row["probability_small"]) for row in rows]
        assert sums == pytest.approx([1] * 10, abs=2e-6)  # written with six digits
    else:
        parser = ConfigParser()
        parser.read_meta(str(report.bundle / "configs" / "metadata.json"))
        target = parser["_meta_::plan::target"]
        # an untrained head gives about 0, which is the mean
        assert all(abs(float(row["prediction"]) - target["mean"]) < 2 * target["std"] for row in rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"decoder": "light"}, "decoder: no choice of the plan has this name"),
        ({"head": "cubic"}, "head=cubic: unknown; expected one of attentive"),
        ({"key_score": "dice"}, "key_score=dice: one of "),
        ({"window": [24, 24, 20]}, "window=.24, 24, 20.: multiples of patch_size"),
    ],
)
def test_what_cannot_be_set(overrides, message, planned):
    with pytest.raises(UsageError, match=message):
        plan_bundle(planned[0].dataset.root, None, dry_run=True, overrides=overrides)
