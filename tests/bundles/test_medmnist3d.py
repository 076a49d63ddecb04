"""The classification bundle, by the commands that its users run, on balls that a small network learns."""

import json
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from medmnist.evaluator import getACC, getAUC

from monai_vit3d.pipeline.folder import predict_folder
from monai_vit3d.visualize.inferer import EXPLAIN_METHODS
from tests.bundles import helpers
from tests.bundles.balls import (
    BUNDLE,
    NAMES,
    QUICK,
    SECTIONS,
    arrays,
    ball,
    load,
    of,
    probabilities,
    read_csv,
    read_metrics,
)
from tests.bundles.helpers import command, torchrun

INFERENCE, EVALUATE = "configs/inference.yaml", "['configs/inference.yaml','configs/evaluate.yaml']"
run, run_here = partial(helpers.run, bundle=BUNDLE), partial(helpers.run_here, BUNDLE)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(balls, tmp_path_factory):
    """The output folder of train.yaml, with a small network that has learned the balls."""
    out = tmp_path_factory.mktemp("trained")
    options = {"epochs": 10, "val_interval": 5, "output_dir": out, **of(balls), **QUICK}
    shipped = {path: path.stat().st_mtime for path in BUNDLE.glob("models/*")}
    run(command("run", config_file="configs/train.yaml", **options))
    assert {path: path.stat().st_mtime for path in BUNDLE.glob("models/*")} == shipped
    return out


@pytest.fixture(scope="module")
def evaluated(balls, trained, tmp_path_factory):
    """The output folder of evaluate.yaml."""
    out = tmp_path_factory.mktemp("evaluated")
    run(command("run", config_file=EVALUATE, output_dir=out, ckpt_path=trained / "model.pt", **of(balls)))
    return out


def test_train_writes_what_a_run_needs(trained):
    files = {path.name for path in trained.iterdir()}
    assert {name for name in files if not name.startswith((".", "events.out.tfevents"))} == {
        "best.pt", "calibration.json", "last.pt", "model.pt", "previous.pt"
    }  # fmt: skip
    assert len(files) > 4
    last = load(trained / "last.pt")
    assert (last["epoch"], last["iteration"]) == (10, 60)
    assert set(last) >= {"network", "optimizer", "lr_scheduler", "average"}
    assert last["best_metric"] > 0.7


def test_model_is_the_best_weights_calibrated(trained):
    best, model = load(trained / "best.pt"), load(trained / "model.pt")
    found = json.loads((trained / "calibration.json").read_text())
    assert found["cases"] == SECTIONS["val"]
    assert found["temperature"] != 1
    assert found["nll_after"] < found["nll_before"]
    for key, value in best.items():
        factor = found["temperature"] if key.startswith("head.output.") else 1
        torch.testing.assert_close(model[key], value / factor)


def calibration_error(confidences, right, bins=15):
    error = 0.0
    for m in range(bins):
        inside = [(c, r) for c, r in zip(confidences, right) if m / bins < c <= (m + 1) / bins]
        if inside:
            error += abs(sum(r for _, r in inside) - sum(c for c, _ in inside)) / len(right)
    return error


def test_evaluate_scores_as_medmnist_does(balls, evaluated):
    rows, metrics = read_csv(evaluated / "predictions.csv"), read_metrics(evaluated)
    assert {path.name for path in evaluated.iterdir()} == {"predictions.csv", "metrics.csv"}
    assert [row["filename"] for row in rows] == [f"balls_test_{i:04d}" for i in range(SECTIONS["test"])]
    labels = arrays(balls)["test_labels"]
    assert [row["label"] for row in rows] == [NAMES[k] for k in labels[:, 0]]
    found = probabilities(rows)
    expected = {
        "auc": getAUC(labels, found, "multi-class"),
        "accuracy": getACC(labels, found, "multi-class"),
        "ece": calibration_error(found.max(1), found.argmax(1) == labels[:, 0]),
        "nll": -np.log(found[np.arange(len(labels)), labels[:, 0]]).mean(),
    }
    assert metrics == pytest.approx(expected, abs=1e-4)  # the file has six digits
    assert metrics["auc"] > 0.7


@pytest.fixture(scope="module")
def scans(balls, tmp_path_factory):
    """The test section as NIfTI files, and its first volume in other orientations and voxel sizes below ``sub``."""
    root = tmp_path_factory.mktemp("scans")
    (root / "sub" / "deeper").mkdir(parents=True)
    volumes = arrays(balls)["test_images"]
    for i, volume in enumerate(volumes):
        nib.Nifti1Image(volume, np.eye(4)).to_filename(root / f"ball_{i:02d}.nii.gz")
    first, turn = volumes[0], np.deg2rad(12)
    oblique = np.eye(4)
    oblique[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    oblique[:3, 3] = [-40, 13, 7]
    swapped = np.eye(4)[[1, 0, 2, 3]]
    others = {
        "flipped.nii": (first[::-1], np.diag([-1, 1, 1, 1])),
        "thick.nii.gz": (first, np.diag([1, 0.8, 3, 1])),
        "oblique.nii.gz": (first.astype(np.int16), oblique),
        "deeper/swapped.nii.gz": (first.transpose(1, 0, 2), swapped),
    }
    for name, (volume, affine) in others.items():
        nib.Nifti1Image(np.ascontiguousarray(volume), affine).to_filename(root / "sub" / name)
    return root


def test_inference_reads_files_as_the_network_was_trained(scans, balls, trained, evaluated, tmp_path):
    options = {**of(balls), "dataset_dir": scans, "output_dir": tmp_path, "ckpt_path": trained / "model.pt"}
    run(command("run", config_file=INFERENCE, **options))
    rows = read_csv(tmp_path / "predictions.csv")
    assert list(rows[0]) == ["filename", *(f"probability_{name}" for name in NAMES), "prediction"]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]
    found = probabilities(rows)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert [row["prediction"] for row in rows] == [NAMES[k] for k in found.argmax(1)]
    count = SECTIONS["test"]
    names = [*(f"ball_{i:02d}.nii.gz" for i in range(count)), "sub/deeper/swapped.nii.gz"]
    assert [row["filename"] for row in rows] == [*names, "sub/flipped.nii", "sub/oblique.nii.gz", "sub/thick.nii.gz"]
    # from files as from the npz: 0 to 255 are scaled to themselves, but a rounding may take 1 off
    np.testing.assert_allclose(found[:count], probabilities(read_csv(evaluated / "predictions.csv")), atol=0.01)
    # and the same volume, however it is stored
    np.testing.assert_allclose(found[count:], np.tile(found[0], (4, 1)), atol=1e-4)


@pytest.mark.parametrize("method", EXPLAIN_METHODS)
def test_explain_writes_a_map_on_the_files_grid(method, balls, trained, tmp_path):
    """Of a set whose files are resampled, cut to a field of view and padded; all of it is undone."""
    sets = json.loads((balls / "sets.json").read_text())
    sets["balls"].update(spacing_mm=[2.0, 2.0, 2.0], field_of_view_mm=[24, 32, 20])
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    (tmp_path / "in" / "sub").mkdir(parents=True)
    turn = np.deg2rad(10)
    affine = np.array([[0, -1.5 * np.cos(turn), np.sin(turn), 30], [2, 0, 0, -9],
                       [0, -1.5 * np.sin(turn), -np.cos(turn), 8], [0, 0, 0, 1]])  # fmt: skip
    volume = ball(2, np.random.default_rng(1), 40)[:20, :, :37]
    nib.Nifti1Image(volume, affine).to_filename(tmp_path / "in" / "sub" / "scan.nii.gz")
    options = {**of(balls), "datasets_file": tmp_path / "sets.json", "dataset_dir": tmp_path / "in", "method": method}
    run_here("inference", "explain", output_dir=tmp_path / "out", ckpt_path=trained / "model.pt", **options)
    (path,) = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert path.relative_to(tmp_path / "out").as_posix() == f"sub/scan_{method}.nii.gz"
    found = nib.load(path)
    assert found.get_data_dtype() == np.float32
    assert found.shape == volume.shape
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    values = found.get_fdata()
    assert np.isfinite(values).all()
    assert values.std() > 0
    assert (values[:, :, :5] == 0).all()  # 2 mm and more outside of the field of view


@pytest.mark.parametrize("balanced", [True, False])
def test_two_processes_train(balanced, balls, tmp_path):
    both = "['configs/train.yaml','configs/multi_gpu_train.yaml']"
    run(torchrun("run", config_file=both, epochs=2, output_dir=tmp_path, balanced=balanced, **of(balls), **QUICK))
    last = load(tmp_path / "last.pt")
    assert (last["epoch"], last["iteration"]) == (2, 6)  # 24 cases, 2 processes, batches of 4
    assert not any(key.startswith("module.") for key in last["network"])
    assert json.loads((tmp_path / "calibration.json").read_text())["cases"] == SECTIONS["val"]
    assert load(tmp_path / "model.pt").keys() == last["network"].keys()


def interrupt(engine):
    raise InterruptedError


def test_interrupted_run_continues_exactly_and_a_whole_one_stays(balls, tmp_path):
    options = {"epochs": 4, "val_interval": 2, "mixup_alpha": 0.4, **of(balls), **QUICK}
    run_here("train", output_dir=tmp_path / "whole", **options)
    model = load(tmp_path / "whole" / "model.pt")
    workflow = helpers.workflow(BUNDLE, "train", output_dir=tmp_path / "parts", **options)
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_STARTED(once=4), interrupt)
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert isinstance(caught.value.__cause__, InterruptedError)
    assert not (tmp_path / "parts" / "model.pt").exists()
    assert load(tmp_path / "parts" / "last.pt")["epoch"] == 3
    for folder in ("parts", "whole"):  # the latter has nothing left to do
        run_here("train", output_dir=tmp_path / folder, **options)
        assert load(tmp_path / folder / "last.pt")["epoch"] == 4
        for key, value in load(tmp_path / folder / "model.pt").items():
            assert torch.equal(value, model[key]), key


def as_nifti(mask, path, codes):
    """A mask of the data set in a larger scan, on axes of other names."""
    image = nib.Nifti1Image(np.pad((mask > 0).astype(np.uint8), [(9, 30), (21, 2), (0, 17)]), np.diag([-1.0, -1, 1, 1]))
    turn = nib.orientations.axcodes2ornt(codes)
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), turn)
    image.as_reoriented(turn).to_filename(path)


@pytest.mark.data
def test_shipped_weights_reach_their_scores_from_files(adrenal_mnist, tmp_path):
    """evaluate.yaml on the npz against metadata.json, `vit3d predict` on a third of it as NIfTI files."""
    published = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["eval_metrics"]
    run_here("inference", "evaluate", dataset_dir=adrenal_mnist, output_dir=tmp_path / "npz")
    found = read_metrics(tmp_path / "npz")
    assert found["auc"] == pytest.approx(published["auc_test"], abs=6e-4)
    assert found["accuracy"] == pytest.approx(published["accuracy_test"], abs=6e-4)

    with np.load(adrenal_mnist / "adrenalmnist3d_64.npz") as held:
        masks, labels = held["test_images"][::3], held["test_labels"][::3]
    (tmp_path / "in").mkdir()
    for i, mask in enumerate(masks):
        as_nifti(mask, tmp_path / "in" / f"{i:03d}.nii.gz", ("LPS", "RAS", "SAL")[i % 3])
    summary = predict_folder(tmp_path / "in", tmp_path / "out", "medmnist3d_classification", device="cpu", safe=True)
    assert (summary.done, summary.failed) == (len(masks), 0)
    assert summary.suspicious <= 0.05 * len(masks)
    names = ["normal", "hyperplasia"]
    said = probabilities(read_csv(tmp_path / "out" / "predictions.csv"), names)
    expected = probabilities(read_csv(tmp_path / "npz" / "predictions.csv"), names)[::3]
    assert np.abs(said - expected).mean() < 0.03  # a mask in a scan is cut out a part of a voxel elsewhere
    for score, tolerance in ((getAUC, 0.01), (getACC, 0.02)):
        assert score(labels, said, "binary-class") == pytest.approx(
            score(labels, expected, "binary-class"), abs=tolerance
        )
