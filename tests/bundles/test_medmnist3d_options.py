"""The classification bundle's tasks, options, own files, MONAI verbs and refusals; the configs among themselves."""

import json
import shutil
from functools import partial
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from medmnist.evaluator import getACC, getAUC
from monai.bundle import ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties
from monai.transforms import Compose
from nilearn.datasets import load_mni152_template
from scipy.ndimage import center_of_mass

from monai_vit3d.data.medmnist3d import OFFICIAL_3D
from monai_vit3d.networks import TokenSegmenter, model_args
from monai_vit3d.pipeline.check import check_files
from monai_vit3d.pipeline.folder import predict_folder
from monai_vit3d.weights import save_backbone
from tests.bundles import helpers
from tests.bundles.balls import (
    BUNDLE,
    NAMES,
    NET,
    QUICK,
    SECTIONS,
    SIZE,
    arrays,
    ball,
    gland,
    load,
    of,
    probabilities,
    read_csv,
    read_metrics,
)

CONFIGS = BUNDLE / "configs"
META = str(CONFIGS / "metadata.json")
SCHEMA = Path(__file__).parent / "meta_schema_20240725.json"
run_here, failure_here = partial(helpers.run_here, BUNDLE), partial(helpers.failure_here, BUNDLE)


def parsed(*configs, **options):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in configs])
    parser["bundle_root"] = str(BUNDLE)
    for key, value in options.items():
        parser[key] = value
    return parser


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grades", "findings", "radius"])
def test_every_task_trains_and_is_scored(name, balls, tmp_path):
    regression = name == "radius"
    scores = {"key_score": "r2", "scores": ["mae"]} if regression else {}
    run_here("train", epochs=1, output_dir=tmp_path, **of(balls, name), **QUICK, **scores)
    model = {"ckpt_path": tmp_path / "model.pt", "output_dir": tmp_path / "scores"}
    run_here("inference", "evaluate", **model, **of(balls, name), **scores)
    rows, metrics = read_csv(tmp_path / "scores" / "predictions.csv"), read_metrics(tmp_path / "scores")
    labels = arrays(balls, name)["test_labels"]
    if regression:
        assert list(rows[0]) == ["filename", "prediction", "label"]
        found = np.array([[float(row["prediction"])] for row in rows])
        spread = ((labels - labels.mean()) ** 2).sum()
        expected = {"mae": np.abs(found - labels).mean(), "r2": 1 - ((found - labels) ** 2).sum() / spread}
    else:
        sets = json.loads((balls / "sets.json").read_text())
        task, names = sets[name]["task"], list(sets[name]["label"].values())
        found = probabilities(rows, names)
        expected = {"auc": getAUC(labels, found, task), "accuracy": getACC(labels, found, task)}
        metrics = {key: metrics[key] for key in expected}
        said = [
            "|".join(n for n, p in zip(names, row) if p > 0.5) if name == "findings" else names[row.argmax()]
            for row in found
        ]
        assert [row["prediction"] for row in rows] == said
    assert metrics == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def segmenter_weights(tmp_path_factory, balls):
    """Weights of a segmenter with the classifier's backbone."""
    path = tmp_path_factory.mktemp("segmenter") / "model.pt"
    options = {key: str(value) if isinstance(value, Path) else value for key, value in of(balls).items()}
    backbone = parsed("train", **options).get_parsed_content("network_def#backbone")
    torch.save(TokenSegmenter(backbone, "unetr", 2, feature_size=4).state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"head": "attentive", "network_def#freeze": "backbone"},
        {"head": "linear", "network_def#freeze": 1, "balanced": False},
        {"head": "mlp", "mixup_alpha": 0.3},
    ],
    ids=["frozen", "half frozen", "mixed"],
)
def test_training_starts_from_a_backbone_and_freezes_it(options, balls, segmenter_weights, tmp_path):
    options = {**of(balls), **QUICK, **options}
    run_here("train", epochs=1, output_dir=tmp_path, pretrained=segmenter_weights, **options)
    given, trained = load(segmenter_weights), load(tmp_path / "best.pt")
    same = {key for key, value in trained.items() if key in given and torch.equal(value, given[key])}
    names = {key for key in trained if key.startswith("backbone.")}
    frozen = {"backbone": names, 1: {n for n in names if not n.startswith(("backbone.blocks.1.", "backbone.norm."))}}
    assert same >= frozen.get(options.get("network_def#freeze"), set())
    assert (same == names) == (options.get("network_def#freeze") == "backbone")
    assert any(key.startswith("head.") for key in trained)


@pytest.mark.parametrize("entry", ["network", "network#module"], ids=["one process", "torchrun"])
def test_training_starts_from_an_encoder_of_another_window(entry, balls, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    options = {key: str(value) if isinstance(value, Path) else value for key, value in of(balls).items()}
    encoder = parsed("train", **options, image_size=[8, 16, 24]).get_parsed_content("network_def#backbone")
    save_backbone(encoder, tmp_path / "encoder.safetensors")
    configs = ["train", "multi_gpu_train"] if "module" in entry else ["train"]
    options |= {"device": "cpu", "pretrained": str(tmp_path / "encoder.safetensors")}
    started = parsed(*configs, **options).get_parsed_content(entry).backbone.state_dict()
    assert started.pop("pos_embed").shape == (1, 64, 48)
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in started.items())


@pytest.fixture(scope="module")
def own_files(tmp_path_factory):
    """Balls as NIfTI files of several shapes and orientations, CSV files of three sections, and ``my.json``."""
    root, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(3)
    entry = {"task": "multi-class", "label": dict(zip("012", NAMES)), "size": SIZE}
    (root / "my.json").write_text(json.dumps({"mine": entry}))
    for section, count in {"train": 8, "validation": 6, "test": 6}.items():
        (root / section).mkdir()
        lines = ["path,label"]
        for i in range(count):
            volume = ball(i % 3, rng, SIZE + 4 * (i % 2))[:, :, : SIZE - i % 2]
            affine = np.diag([(-1) ** i, 1.2, 1 + 0.2 * (i % 3), 1])
            nib.Nifti1Image(volume, affine).to_filename(root / section / f"{i}.nii.gz")
            lines.append(f"{section}/{i}.nii.gz,{NAMES[i % 3] if i % 2 else i % 3}")
        (root / f"{section}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.slow
def test_own_files_train_and_are_scored(own_files, tmp_path):
    mine = {"datasets_file": own_files / "my.json", "dataset_name": "mine", **NET}
    sections = {"train_csv": own_files / "train.csv", "validation_csv": own_files / "validation.csv"}
    run_here("inference", "train", "nifti", epochs=2, output_dir=tmp_path, **sections, **mine, **QUICK)
    last = load(tmp_path / "last.pt")
    assert (last["epoch"], last["iteration"]) == (2, 4)
    assert json.loads((tmp_path / "calibration.json").read_text())["cases"] == 6
    files = {"test_csv": own_files / "test.csv", "ckpt_path": tmp_path / "model.pt", "output_dir": tmp_path / "scores"}
    run_here("inference", "evaluate", "nifti", **files, **mine)
    rows = read_csv(tmp_path / "scores" / "predictions.csv")
    assert [row["filename"] for row in rows] == [str(own_files / "test" / f"{i}.nii.gz") for i in range(6)]
    assert [row["label"] for row in rows] == NAMES * 2
    labels = np.array([[NAMES.index(row["label"])] for row in rows])
    expected = getAUC(labels, probabilities(rows), "multi-class")
    assert read_metrics(tmp_path / "scores")["auc"] == pytest.approx(expected, abs=1e-4)


def test_files_are_cut_to_the_field_of_view_in_millimetres(own_files, tmp_path):
    entry = {"task": "multi-class", "label": dict(zip("012", NAMES)), "size": 12, "field_of_view_mm": [12, 20, 16]}
    for spacing, kept in (([2.0, 2.0, 2.0], (6, 10, 8)), (None, (12, 12, 12))):
        more = {"spacing_mm": spacing, "image_size": [8, 12, 12]} if spacing else {"field_of_view_mm": [12, 12, 12]}
        (tmp_path / "sets.json").write_text(json.dumps({"cut": {**entry, **more}}))
        parser = parsed("inference", datasets_file=str(tmp_path / "sets.json"), dataset_name="cut")
        volume = np.random.default_rng(0).integers(0, 255, (60, 60, 60), dtype=np.uint8)
        nib.Nifti1Image(volume, np.diag([0.5, 0.5, 0.5, 1])).to_filename(tmp_path / "scan.nii")
        image = parser.get_parsed_content("preprocessing")({"image": str(tmp_path / "scan.nii")})["image"]
        assert image.shape[1:] == tuple(parser.get_parsed_content("image_size"))
        for axis, length in enumerate(kept):  # what the field of view lacks repeats its border
            steps = image.as_tensor().diff(dim=axis + 1).abs().amax([d for d in range(4) if d != axis + 1])
            assert int((steps > 0).sum()) == min(length, image.shape[axis + 1]) - 1


def test_a_mask_in_a_scan_becomes_the_data_sets_volume(tmp_path):
    """A box of 64 mm around the centre of mass, on axes to the left, back and top, whatever grid the file has."""
    box = gland(np.zeros((64, 64, 64), np.uint8), (32 - 6, 32 - 4, 32 - 3))
    off = np.round(np.array(center_of_mass(box)) - 32.5).astype(int)
    box = np.roll(box, -off, (0, 1, 2))
    assert ((np.array(center_of_mass(box)) // 1) == 32).all()
    scan = np.zeros((150, 90, 120), np.uint8)
    scan[70:134, 20:84, 5:69] = box
    image = nib.Nifti1Image(scan * 3, np.diag([-1.0, -1, 1, 1]))
    parser = parsed("inference")
    geometry, intensity = (Compose(parser.get_parsed_content(name)) for name in ("geometry", "intensity"))
    expected = intensity({"image": torch.from_numpy(box[None] * 255)})["image"]
    for codes in ("LPS", "RAS", "SAL"):
        target = nib.orientations.axcodes2ornt(codes)
        turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), target)
        image.as_reoriented(turn).to_filename(tmp_path / "mask.nii.gz")
        volume = geometry({"image": str(tmp_path / "mask.nii.gz")})["image"]
        np.testing.assert_array_equal(volume[0], box * 255)
        assert torch.equal(torch.as_tensor(intensity({"image": volume})["image"]), torch.as_tensor(expected))
    thirty_two = box.reshape(32, 2, 32, 2, 32, 2).mean((1, 3, 5))
    np.testing.assert_allclose(expected[0], 2 * thirty_two[2:30, 2:30, 2:30], atol=1e-6)


@pytest.mark.slow
def test_masks_are_taken_a_scan_is_refused_and_another_organ_is_suspicious(tmp_path):
    """Files that are called and look like labels are images here; the brain's mask is far larger than a gland's."""
    (tmp_path / "in").mkdir()
    head = load_mni152_template(resolution=2)
    head.to_filename(tmp_path / "in" / "head.nii.gz")
    brain = (head.get_fdata() > 0.1).astype(np.uint8)
    nib.Nifti1Image(brain, head.affine).to_filename(tmp_path / "in" / "brain_mask.nii.gz")
    mask = gland(np.zeros((90, 70, 80), np.uint8), (30, 12, 40))
    nib.Nifti1Image(mask, np.eye(4)).to_filename(tmp_path / "in" / "adrenal_seg.nii.gz")
    summary = predict_folder(tmp_path / "in", tmp_path / "out", BUNDLE, device="cpu", safe=True)
    assert (summary.done, summary.failed) == (2, 1)
    files = json.loads((tmp_path / "out" / "run.json").read_text())["files"]
    records = {Path(record["input"]).name: record for record in files}
    assert "head.nii.gz: an image with values from" in records["head.nii.gz"]["error"]
    assert "expected a binary mask of one structure" in records["head.nii.gz"]["error"]
    assert records["adrenal_seg.nii.gz"]["warnings"] == records["adrenal_seg.nii.gz"]["suspicious"] == []
    assert [one["kind"] for one in records["brain_mask.nii.gz"]["suspicious"]] == ["spacing", "intensities"]
    checked = {Path(one["file"]).name: one["verdict"] for one in check_files([tmp_path / "in"], bundle=BUNDLE)}
    assert checked == {"adrenal_seg.nii.gz": "good", "brain_mask.nii.gz": "odd", "head.nii.gz": "refused"}


@pytest.mark.slow
def test_defaults_classify_and_explain(tmp_path):
    """The default data set and network, with weights as they were initialised."""
    (tmp_path / "in").mkdir()
    volume = gland(np.zeros((90, 70, 80), np.uint8), (30, 12, 60))
    affine = np.array([[0, -0.8, 0, 9], [0.9, 0, 0, -3], [0, 0, 1.1, 5], [0, 0, 0, 1]])
    nib.Nifti1Image(volume, affine).to_filename(tmp_path / "in" / "scan.nii.gz")
    torch.save(parsed("train").get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    options = {"dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out", "ckpt_path": tmp_path / "model.pt"}
    run_here("inference", **options)
    run_here("inference", "explain", **options)
    (row,) = read_csv(tmp_path / "out" / "predictions.csv")
    assert row["filename"] == "scan.nii.gz"
    assert row["prediction"] in parsed("inference").get_parsed_content("class_names")
    (path,) = (tmp_path / "out").glob("*.nii.gz")
    assert nib.load(path).shape == volume.shape
    np.testing.assert_allclose(nib.load(path).affine, affine, atol=1e-5)


@pytest.mark.parametrize("name", ["balls", "grades"])
def test_occlusion_is_told_what_the_outputs_mean(name, balls):
    options = {"datasets_file": str(balls / "sets.json"), "dataset_name": name}
    for method in ("occlusion", "grad_cam"):
        parser = parsed("inference", "explain", method=method, **options)
        wanted = {"task": parser.get_parsed_content("task")} if method == "occlusion" else {}
        assert parser.get_parsed_content("inferer").options == wanted


def drop_class(root, name, section, folder):
    """Copies the set into ``folder`` with the section's last class made the first."""
    held = arrays(root, name)
    labels = held[f"{section}_labels"]
    labels[labels == 2] = 0
    np.savez(folder / f"{name}_{SIZE}.npz", **held)
    shutil.copy(root / "sets.json", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("section", ["train", "val"])
def test_missing_class_is_said_before_training(section, balls, tmp_path):
    options = {**of(drop_class(balls, "balls", section, tmp_path)), **QUICK, "output_dir": tmp_path / "out"}
    said = failure_here("train", epochs=1, **options)
    count = SECTIONS[section]
    assert f"section '{section}' with {count} samples has no sample of large (1 of 3 classes)" in said
    assert not (tmp_path / "out").exists()
    if section == "val":  # without AUC it can be done
        run_here("train", epochs=1, key_score="accuracy", scores=["nll"], **options)
        assert (tmp_path / "out" / "model.pt").exists()


def damaged(root, folder):
    content = (root / f"balls_{SIZE}.npz").read_bytes()
    (folder / f"balls_{SIZE}.npz").write_bytes(content[: len(content) // 2])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("configs", "change", "message"),
    [
        ("train", lambda root, tmp: {"dataset_dir": tmp}, "balls_16.npz: no such file. Get the right file and put it"),
        ("train", lambda root, tmp: {"dataset_dir": damaged(root, tmp)}, "balls_16.npz: damaged or another format"),
        ("train", lambda root, tmp: {"dataset_name": "ball"}, "'ball': no such data set. MedMNIST has organmnist3d"),
        ("train", lambda root, tmp: {"pretrained": tmp / "b.pt"}, "b.pt: no such file"),
        ("train", lambda root, tmp: {"patch_size": 5}, "patch_size=(5, 5, 5)"),
        ("inference train nifti", lambda root, tmp: {"train_csv": tmp / "empty.csv"}, "empty.csv: no rows"),
        ("inference evaluate", lambda root, tmp: {"ckpt_path": tmp / "m.pt"}, "m.pt: no such file. Train a model into"),
        ("inference evaluate", lambda root, tmp: {"ckpt_path": tmp / "empty.csv"}, "not a readable state dict"),
        (
            "inference evaluate",
            lambda root, tmp: {"network_def#head": "mlp"},
            "head='attentive' came, 'mlp' is expected",
        ),
        ("inference evaluate nifti", lambda root, tmp: {"test_csv": tmp / "none.csv"}, "none.csv: no such file"),
        (
            "inference evaluate",
            lambda root, tmp: {"dataset_dir": drop_class(root, "balls", "test", tmp)},
            "none of 12 cases is of class 2: the AUC is undefined",
        ),
        ("inference", lambda root, tmp: {"dataset_dir": tmp / "in"}, "in: no .nii or .nii.gz image in this folder"),
        ("inference explain", lambda root, tmp: {"dataset_dir": tmp / "none"}, "none: no such folder"),
    ],
)
def test_what_is_wrong_is_said(configs, change, message, balls, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "in").mkdir()
    options = {**of(balls), "output_dir": tmp_path / "out"}
    if "train" not in configs:
        options["ckpt_path"] = tmp_path / "model.pt"
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in of(balls).items()}
        torch.save(parsed("train", **plain).get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    assert message in failure_here(*configs.split(), **{**options, **change(balls, tmp_path)})
    assert list((tmp_path / "out").glob("*")) == []


@pytest.mark.slow
def test_verbs(tmp_path):
    parser = parsed("inference")
    network = parser.get_parsed_content("network_def").eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    config = {"meta_file": META, "config_file": str(CONFIGS / "inference.yaml"), "bundle_root": str(BUNDLE)}
    monai.bundle.verify_metadata(meta_file=META, filepath=str(SCHEMA))
    monai.bundle.verify_net_in_out("network_def", **config)
    files = {"ckpt_file": str(tmp_path / "model.pt"), **config}
    monai.bundle.ckpt_export("network_def", filepath=str(tmp_path / "model.ts"), **files)
    monai.bundle.onnx_export("network_def", filepath=str(tmp_path / "model.onnx"), **files)
    size = parser.get_parsed_content("image_size")
    volume = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(volume)
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(volume), expected, rtol=1e-4, atol=1e-5)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: volume.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)


def test_configs_agree_and_have_what_monai_asks_for():
    train, infer = parsed("train"), parsed("inference")
    chosen_anew = ("_target_", "path", "tokens")  # tokens are those that the weights record, or others
    network = {key: value for key, value in infer["network_def"].items() if key not in chosen_anew}
    backbone = network.pop("backbone")
    assert network.items() <= train["network_def"].items()  # the weights say the rest
    assert backbone.items() <= train["network_def"]["backbone"].items()
    assert train["network_def"]["freeze"] is None
    same = ["dataset_name", "datasets_file", "info", "task", "class_names", "size", "image_size", "is_mask"]
    for key in [*same, "shrink_to", "flip_axes", "average_flips"]:
        assert train[key] == infer[key], key
    # what stands between a volume of the set and the network, but for the metadata that inference keeps
    (typed, *rest), (infer_typed, *infer_rest) = train["intensity"], infer["intensity"]
    assert rest == infer_rest
    assert {**infer_typed, "track_meta": False} == typed
    assert train["encode"] == parsed("inference", "evaluate")["encode"]
    for parser, properties in ((train, TrainProperties), (infer, InferProperties)):
        missing = [name for name, p in properties.items() if p["required"] and p["id"].replace("::", "#") not in parser]
        assert missing == []


def test_metadata_describes_the_default_network():
    parser = parsed("inference")
    data = json.loads(Path(META).read_text())["network_data_format"]
    names = parser.get_parsed_content("class_names")
    image, pred = data["inputs"]["image"], data["outputs"]["pred"]
    assert image["spatial_shape"] == parser.get_parsed_content("image_size")
    assert image["num_channels"] == parser.get_parsed_content("network_def#backbone#in_chans")
    assert pred["channel_def"] == {str(i): name for i, name in enumerate(names)}
    assert pred["num_channels"] == len(names)
    assert parsed("inference")["dataset_name"] in json.loads((CONFIGS / "datasets.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL_3D)
def test_recipe_for_the_official_sets(name, tmp_path):
    options = {"dataset_name": name, "ckpt_path": tmp_path / "model.pt"}
    train, infer = (parsed(config, "medmnist", **options) for config in ("train", "inference"))
    network = train.get_parsed_content("network_def").eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = infer.get_parsed_content("network_def")
    assert model_args(other) == model_args(network)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 28, 28, 28)).shape == (1, len(infer.get_parsed_content("class_names")))
    by_set = {"organmnist3d": [], "adrenalmnist3d": [0, 1, 2]}  # left is not right among organs
    assert train.get_parsed_content("flip_axes") == infer.get_parsed_content("flip_axes") == by_set.get(name, [0])
