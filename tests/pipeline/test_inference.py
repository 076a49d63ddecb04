"""One volume through a bundle, against MONAI's own calls, explicit flips and float64."""

import csv
import json
from dataclasses import replace
from itertools import product

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.networks.nets import Classifier
from monai.transforms import AsDiscreted, Invertd, KeepLargestConnectedComponent

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.bundle.postprocessing import Postprocessing
from monai_vit3d.bundle.voxelwise import VoxelwisePostprocessing, whole_numbers
from monai_vit3d.cli import main
from monai_vit3d.data.errors import BundleError, ImageError, UsageError
from monai_vit3d.data.nifti import read_nifti
from monai_vit3d.inferers import AffineEnsemble, unwrap_inferer
from monai_vit3d.pipeline import folder, inference, memory, predictor
from tests.bundles.balls import gland
from tests.bundles.helpers import run_here
from tests.helpers import BUNDLES, phantom
from tests.pipeline import zoo

NAMES = ("background", "cortex", "marrow")
FLIPS = [tuple(axis for axis, flipped in zip((2, 3, 4), some) if flipped) for some in product((0, 1), repeat=3)]


class Reference:
    """What MONAI's own calls make of one image and a bundle's config."""

    def __init__(self, bundle, *paths):
        self.parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "inference.json"))
        self.preprocessing = self.parser.get_parsed_content("preprocessing")
        self.image = self.preprocessing({"image": [str(path) for path in paths]})["image"]
        self.network = self.parser.get_parsed_content("network_def").eval()
        self.network.load_state_dict(torch.load(bundle / "models" / "model.pt"))
        self.inferer = self.parser.get_parsed_content("inferer")

    def windows(self, function):
        """A function of windows, blended by MONAI: (C, h, w, d)."""
        with torch.no_grad():
            return self.inferer(self.image.as_tensor()[None], function)[0]

    def logits(self):
        return self.windows(self.network)

    def flipped(self, dims, activation=lambda logits: logits):
        return self.windows(lambda x: activation(self.network(x.flip(dims)).flip(dims)))

    def back(self, values, nearest=True):
        """(C, h, w, d) of the network's grid on the file's."""
        invert = Invertd("pred", self.preprocessing, orig_keys="image", nearest_interp=nearest)
        return invert({"pred": MetaTensor(torch.as_tensor(values).float()), "image": self.image})["pred"].numpy()

    def labels(self, values):
        """By the zoo's order: probabilities go back to the file's grid, the argmax is taken there."""
        return self.back(values.softmax(0), nearest=False).argmax(0)

    def labels_first(self, values):
        return self.back(values.argmax(0, keepdim=True))[0]


def changed(out_channels=3, in_channels=1, **entries):
    """The zoo's config with other entries; lists of transforms stand for a Compose."""
    config = zoo.zoo_config()
    config["network_def"] |= zoo.unet_arguments(out_channels, in_channels)
    for name, value in entries.items():
        config[name] = {"_target_": "Compose", "transforms": value} if isinstance(value, list) else value
    return config


def written(path, names=NAMES, in_channels=1, state=None, **entries):
    """A bundle in a folder."""
    state = zoo.seeded_state(len(names), in_channels) if state is None else state
    return zoo.write_bundle(path, changed(len(names), in_channels, **entries), zoo.metadata(names, in_channels), state)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return written(tmp_path_factory.mktemp("three") / "bundle")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return zoo.write_images(tmp_path_factory.mktemp("images"))


def run(bundle, inputs, out, *flags, code=0):
    """``vit3d predict`` in this process, by PyTorch (test_acceleration.py has other engines); the records by name."""
    inputs = [str(path) for path in (inputs if isinstance(inputs, list) else [inputs])]
    options = ["-o", str(out), "--bundle", str(bundle), "--device", "cpu", "--backend", "torch"]
    assert main(["predict", *inputs, *options, *flags]) == code
    return {record["name"]: record for record in json.loads((out / "run.json").read_text())["files"]}


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def softmax(logits):
    """Over the first axis, float64."""
    power = np.exp(np.asarray(logits, np.float64) - np.asarray(logits, np.float64).max(axis=0))
    return power / power.sum(axis=0)


# labels and maps


@pytest.mark.slow
def test_labels_are_those_of_monai_bundle_run(tmp_path):
    folder_in = tmp_path / "in"
    folder_in.mkdir()
    for i in range(2):
        phantom(i)[0].to_filename(folder_in / f"phantom_{i}.nii.gz")
    shipped = BUNDLES / "hippocampus_segmentation"
    run_here(shipped, "inference", dataset_dir=folder_in, output_dir=tmp_path / "monai", device="$torch.device('cpu')")
    records = run(shipped, folder_in, tmp_path / "ours", "--safe")
    for name, record in records.items():
        ours, theirs = nib.load(record["output"]), nib.load(tmp_path / "monai" / f"{name}_seg.nii.gz")
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-6)
        np.testing.assert_array_equal(ours.affine, nib.load(folder_in / f"{name}.nii.gz").affine)
        assert len(np.unique(ours.dataobj)) == 3
        assert [row["name"] for row in record["stats"]] == ["anterior hippocampus", "posterior hippocampus"]


@pytest.mark.slow
def test_probabilities_and_entropy(bundle, images, tmp_path):
    records = run(bundle, images, tmp_path, "--probabilities", "--uncertainty", "entropy")
    for path, record in zip(images, records.values()):
        reference = Reference(bundle, path)
        logits = reference.logits()
        name = path.name.removesuffix(".nii.gz")
        np.testing.assert_array_equal(voxels(record["output"]), reference.labels(logits))
        prob = nib.load(tmp_path / f"{name}_prob.nii.gz")
        assert prob.get_data_dtype() == np.float32
        np.testing.assert_array_equal(prob.affine, nib.load(path).affine)
        found = np.moveaxis(voxels(tmp_path / f"{name}_prob.nii.gz"), 3, 0)
        np.testing.assert_allclose(found, reference.back(logits.softmax(0), nearest=False), atol=1e-5)
        np.testing.assert_allclose(found.sum(0)[2:-2, 2:-2, 2:-2], 1, atol=1e-5)
        p = softmax(logits)
        entropy = -(p * np.log(p)).sum(0, keepdims=True) / np.log(3)
        expected = reference.back(entropy.astype(np.float32), nearest=False)[0]
        found = voxels(tmp_path / f"{name}_entropy.nii.gz")
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert found.min() >= 0
        assert 0.3 < found.max() <= 1


@pytest.mark.slow
def test_flips_are_eight(bundle, images, tmp_path):
    record = run(bundle, images[0], tmp_path, "--tta-axes", "0,1,2", "--probabilities")["spleen_0"]
    reference = Reference(bundle, images[0])
    mean = torch.stack([reference.flipped(dims).double() for dims in FLIPS]).mean(0).float()
    assert (mean - reference.logits()).abs().max() > 0.1  # the network is no mirror of itself
    np.testing.assert_array_equal(voxels(record["output"]), reference.labels(mean))
    found = np.moveaxis(voxels(tmp_path / "spleen_0_prob.nii.gz"), 3, 0)
    np.testing.assert_allclose(found, reference.back(mean.softmax(0), nearest=False), atol=1e-5)


@pytest.mark.slow
def test_flips_are_those_that_the_bundle_names(bundle, images, tmp_path, capsys):
    named = written(tmp_path / "bundle", flip_axes="$[0, 2]")
    record = run(named, images[0], tmp_path / "out", "--tta", "--safe")["spleen_0"]
    reference = Reference(named, images[0])
    flips = [(), (2,), (4,), (2, 4)]
    mean = torch.stack([reference.flipped(dims).double() for dims in flips]).mean(0).float()
    np.testing.assert_array_equal(voxels(record["output"]), reference.labels(mean))
    for refused, flags, word in [
        (bundle, ["--tta"], "names no flip_axes"),
        (named, ["--tta", "0,0"], "--tta 0,0; expected some of 0, 1 and 2, each once"),
        (named, ["--tta", "full"], "names no tta_degrees and no tta_scales"),
        (named, ["--tta-axes", "0,3"], "--tta 0,3"),
        (named, ["--tta-axes", "1,1"], "--tta 1,1"),
    ]:
        assert main(["predict", str(images[0]), "-o", str(tmp_path / "no"), "--bundle", str(refused), *flags]) == 2
        assert word in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "-o", str(tmp_path / "no"), "--bundle", str(named), "--tta", str(images[0])])
    assert "expected flips, full or axes as 0,1; nothing is flips, written after INPUT" in capsys.readouterr().err


@pytest.mark.slow
def test_full_averaging_has_the_views_that_the_bundle_names(images, tmp_path, capsys):
    bundle = written(tmp_path / "bundle", flip_axes="$[0]", tta_degrees="$[8, 0, 8]", tta_scales="$[0.9]")
    record = run(bundle, images[0], tmp_path / "out", "--tta", "full")["spleen_0"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["options"]["tta_degrees"] == [8, 0, 8]
    reference = Reference(bundle, images[0])
    plain = reference.logits()
    reference.network = AffineEnsemble(reference.network, (8, 0, 8), (0.9,))
    mean = torch.stack([reference.flipped(dims) for dims in ((), (2,))]).mean(0)
    assert (mean - plain).abs().max() > 0.1
    np.testing.assert_array_equal(voxels(record["output"]), reference.labels(mean))
    for views, words in [
        ({"tta_degrees": "$[8, 8]"}, "tta_degrees=[8, 8]; expected three angles"),
        ({"tta_scales": "$[0]"}, "tta_scales=[0]; expected factors above 0"),
        ({"tta_scales": "all"}, "tta_scales 'all'; expected a list of numbers"),
    ]:
        bad = written(tmp_path / f"bad{len(words)}", **views)
        assert main(["predict", str(images[0]), "-o", str(tmp_path / "no"), "--bundle", str(bad), "--tta", "full"]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("roi", [zoo.WINDOW, (40, 40, 24)])
def test_variance_is_that_over_the_flips(images, tmp_path, roi):
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": list(roi), "mode": "gaussian", "overlap": 0.5}
    bundle = written(tmp_path / "bundle", inferer=inferer)
    record = run(bundle, images[0], tmp_path / "out", "--tta-axes", "0,1,2", "--uncertainty", "variance")["spleen_0"]
    reference = Reference(bundle, images[0])
    p = [reference.flipped(dims, lambda logits: logits.double().softmax(1)).numpy() for dims in FLIPS]
    variance = np.var(p, axis=0).sum(0, keepdims=True)
    if roi == zoo.WINDOW:  # windows are blended: of p and of its square
        squares = [reference.flipped(d, lambda logits: logits.double().softmax(1) ** 2).numpy() for d in FLIPS]
        variance = (np.mean(squares, axis=0) - np.mean(p, axis=0) ** 2).sum(0, keepdims=True)
    found = voxels(tmp_path / "out" / "spleen_0_variance.nii.gz")
    np.testing.assert_allclose(found, reference.back(variance.astype(np.float32), nearest=False)[0], atol=2e-6)
    assert found.min() >= 0
    assert found.max() > 1e-3
    mean = torch.stack([reference.flipped(dims) for dims in FLIPS]).mean(0)
    np.testing.assert_array_equal(voxels(record["output"]), reference.labels(mean))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--tta-axes", "0,1,2", "--uncertainty", "variance", "--probabilities"]])
def test_stitched_or_not_is_the_same_to_the_last_bit(bundle, images, tmp_path, monkeypatch, flags):
    stitched = run(bundle, images, tmp_path / "a", *flags)
    monkeypatch.setattr(inference, "can_stitch", lambda inferer: False)
    monkeypatch.setattr(inference, "stitch_windows", None)
    whole = run(bundle, images, tmp_path / "b", *flags)
    for name, record in stitched.items():
        assert len(record["outputs"]) == (4 if flags else 2)
        assert record["outputs"] == whole[name]["outputs"]  # SHA-256 of every file


class InATuple(torch.nn.Module):
    """A network whose answers come in a tuple, of which MONAI's inferer takes the one map, from some batch on."""

    def __init__(self, network, first):
        super().__init__()
        self.network, self.first, self.batches = network, first, 0

    def forward(self, x):
        self.batches += 1
        return (self.network(x),) if self.batches > self.first else self.network(x)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 4])
def test_what_cannot_be_stitched_is_run_again_and_said(bundle, images, tmp_path, monkeypatch, caplog, first):
    stitched = run(bundle, images[0], tmp_path / "a")["spleen_0"]
    made = []

    def load(*args, **options):
        found = load_bundle(*args, **options)
        made.append(InATuple(found.network, first))
        return replace(found, network=made[-1])

    monkeypatch.setattr(folder, "load_bundle", load)
    with caplog.at_level("INFO"):
        record = run(bundle, images[0], tmp_path / "b", "--backend", "torch")["spleen_0"]
    assert record["outputs"] == stitched["outputs"]
    said = [r.getMessage() for r in caplog.records if r.name == inference.__name__ and "run again" in r.getMessage()]
    assert [str(images[0]) in message and "a tuple for 4 windows" in message for message in said] == [True]
    assert f" after {4 * first} of " in said[0]


def test_other_refusals_of_stitching_are_no_reason_to_run_again(bundle, images, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise UsageError("overlap=2: too much.")

    monkeypatch.setattr(inference, "stitch_windows", refuse)
    record = run(bundle, images[0], tmp_path, code=1)["spleen_0"]
    assert "overlap=2: too much." in record["error"]


TURN = nib.eulerangles.euler2mat(*np.deg2rad([25, -10, 40]))
GRIDS = {
    "oblique": ((20, 22, 14), TURN @ np.diag([2.0, 2.0, 2.5])),
    "axes in another order, left-handed": ((14, 22, 20), np.diag([2.0, 2.0, 2.5])[:, [2, 1, 0]] * [1, -1, 1]),
    "thick slices": ((60, 60, 6), np.diag([0.7, -0.7, 6.0])),
    "one slice": ((24, 22, 1), np.diag([-2.0, 2.0, 2.5])),
    "one voxel wide": ((1, 22, 14), np.diag([2.0, 2.0, 2.5])),
    "smaller than a window": ((6, 5, 4), np.diag([2.0, 2.0, 2.5])),
}


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--uncertainty", "entropy"]])
def test_labels_come_back_to_any_grid(bundle, tmp_path, flags):
    paths = []
    for i, (shape, axes) in enumerate(GRIDS.values()):
        affine = nib.affines.from_matvec(axes, [-10, 20, 5 * i])
        paths.append(tmp_path / f"grid_{i}.nii.gz")
        zoo.smooth_image(i, shape, affine).to_filename(paths[-1])
    records = run(bundle, paths, tmp_path / "out", *flags)
    seen = set()
    for path, name in zip(paths, GRIDS):
        reference, found = Reference(bundle, path), voxels(records[path.name.removesuffix(".nii.gz")]["output"])
        np.testing.assert_array_equal(found, reference.labels(reference.logits()), err_msg=name)
        assert found.shape == GRIDS[name][0]
        seen |= set(np.unique(found))
    assert seen == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("stitched", [True, False])
def test_mixed_precision(bundle, images, tmp_path, monkeypatch, stitched):
    def load(*args, **options):
        return replace(load_bundle(*args, **options), autocast=True)

    monkeypatch.setattr(folder, "load_bundle", load)
    if not stitched:
        monkeypatch.setattr(inference, "can_stitch", lambda inferer: False)
    record = run(bundle, images[0], tmp_path, "--probabilities", "--backend", "torch")["spleen_0"]
    reference = Reference(bundle, images[0])
    with torch.autocast("cpu"):
        logits = reference.logits().float()
    assert 1e-4 < (logits - reference.logits()).abs().max() < 0.5
    best = np.sort(reference.back(logits.softmax(0), nearest=False), axis=0)[-2:]
    clear = best[1] - best[0] > 1e-5  # bfloat16 makes ties
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(voxels(record["output"])[clear], reference.labels(logits)[clear])
    found = np.moveaxis(voxels(tmp_path / "spleen_0_prob.nii.gz"), 3, 0)
    np.testing.assert_allclose(found, reference.back(logits.softmax(0), nearest=False), atol=1e-5)


# other shapes of bundles


@pytest.mark.slow
def test_overlapping_masks(images, tmp_path):
    steps = [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}, zoo.inverting()]
    steps += [{"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}, zoo.saving()]
    state, bias = zoo.seeded_state(2), f"{zoo.FINAL}bias"
    state = {**state, bias: state[bias] + 1.5}
    bundle = written(tmp_path / "bundle", ("lesion", "organ"), state=state, postprocessing=steps)
    record = run(bundle, images[0], tmp_path / "out", "--uncertainty", "entropy", "--safe")["spleen_0"]
    reference = Reference(bundle, images[0])
    logits = reference.logits()
    expected = (reference.back(logits.sigmoid(), nearest=False) >= 0.5).astype(np.float32)
    file = nib.load(record["output"])
    assert file.get_data_dtype() == np.uint8
    assert file.shape == (*zoo.SHAPE, 2)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(file.dataobj), 3, 0), expected)
    assert (expected.sum(0) == 2).any()
    assert 0 < expected.mean() < 1
    rows = record["stats"]
    assert [(row["label"], row["name"]) for row in rows] == [(1, "lesion"), (2, "organ")]
    assert [row["voxels"] for row in rows] == expected.sum(axis=(1, 2, 3)).tolist()
    p = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean(0, keepdims=True)
    expected = reference.back(entropy.astype(np.float32), nearest=False)[0]
    np.testing.assert_allclose(voxels(tmp_path / "out" / "spleen_0_entropy.nii.gz"), expected, atol=1e-5)


@pytest.mark.slow
def test_a_single_mask(images, tmp_path):
    steps = [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}]
    steps += [{"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}, zoo.inverting(), zoo.saving()]
    state, bias = zoo.seeded_state(1), f"{zoo.FINAL}bias"
    bundle = written(tmp_path / "bundle", ("lesion",), state=state, postprocessing=steps)
    reference = Reference(bundle, images[0])
    middle = {**state, bias: state[bias] - reference.logits().median()}
    bundle = written(tmp_path / "bundle", ("lesion",), state=middle, postprocessing=steps)
    record = run(bundle, images[0], tmp_path / "out", "--probabilities")["spleen_0"]
    reference = Reference(bundle, images[0])
    expected = reference.back((reference.logits().sigmoid() >= 0.5).float())[0]
    assert 0.2 < expected.mean() < 0.8
    np.testing.assert_array_equal(voxels(record["output"]), expected)
    assert [(row["label"], row["name"], row["voxels"]) for row in record["stats"]] == [(1, "lesion", expected.sum())]
    prob = voxels(tmp_path / "out" / "spleen_0_prob.nii.gz")
    expected = reference.back(reference.logits().sigmoid(), nearest=False)[0]
    np.testing.assert_allclose(prob, expected, atol=1e-5)


SIGMOID = [
    {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
    {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
]


@pytest.mark.slow
@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_an_inferer_that_makes_the_labels(images, tmp_path, activation, around):
    names = ("lesion", "organ") if activation == "sigmoid" else NAMES
    inferer = {
        "_target_": "monai_vit3d.inferers.LabelInferer",
        "inferer": zoo.zoo_config()["inferer"],
        "activation": activation,
    }
    if around:
        inferer = {"_target_": "monai_vit3d.inferers.AutocastInferer", "inferer": inferer, "enabled": False}
    steps = SIGMOID if activation == "sigmoid" else [ARGMAX]
    plain = written(tmp_path / "plain", names, postprocessing=[*steps, NEAREST, zoo.saving()])
    own = written(tmp_path / "own", names, inferer=inferer, postprocessing=[NEAREST, zoo.saving()])
    flags = ["--uncertainty", "entropy", "--probabilities", "--safe"]
    for record in run(plain, images, tmp_path / "out", *flags).values():
        assert len(np.unique(voxels(record["output"]))) > 1
    run(own, images, tmp_path / "own-out", *flags)
    for path in (tmp_path / "out").glob("*.nii.gz"):
        assert path.read_bytes() == (tmp_path / "own-out" / path.name).read_bytes()
    assert unwrap_inferer(load_bundle(own, "cpu").inferer).roi_size == list(zoo.WINDOW)


def test_an_inferer_that_makes_maps_beside_the_labels(images, tmp_path, capsys):
    inferer = {
        "_target_": "monai_vit3d.inferers.LabelInferer",
        "inferer": zoo.zoo_config()["inferer"],
        "entropy": True,
    }
    bundle = written(tmp_path / "bundle", inferer=inferer, postprocessing=[NEAREST, zoo.saving()])
    assert main(["predict", str(images[0]), "-o", str(tmp_path / "out"), "--bundle", str(bundle)]) == 2
    assert "--uncertainty entropy and --probabilities write them" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_labels_of_any_size_by_rounding():
    numbers = torch.tensor([300.2, -1.4, 3.0, 256.0]).reshape(1, 1, 4, 1, 1)
    rounding = Postprocessing.of([AsDiscreted("pred", rounding="torchrounding")])
    labels, warning = whole_numbers(VoxelwisePostprocessing(rounding, None, False)(numbers)[0], rounding)
    assert labels.flatten().tolist() == [300, -1, 3, 256]
    assert warning is None


def test_mixed_precision_may_be_asked_for_by_a_reference(tmp_path):
    evaluator = {**zoo.zoo_config()["evaluator"], "amp": "@half"}
    assert not load_bundle(written(tmp_path / "bundle", evaluator=evaluator, half=True), "cpu").autocast
    with pytest.raises(BundleError, match="evaluator::amp"):  # as it is looked up
        load_bundle(written(tmp_path / "bundle", evaluator=evaluator), "cpu")


NEAREST = {**zoo.inverting(), "nearest_interp": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
LARGEST = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1, 2]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps",
    [[], [SOFTMAX], [ARGMAX], [ARGMAX, zoo.inverting()], [SOFTMAX, NEAREST], [NEAREST, ARGMAX]],
    ids=["none", "softmax", "argmax", "argmax, then inverted", "softmax, inverted nearest", "inverted nearest"],
)
def test_argmax_is_taken_on_the_networks_grid(images, tmp_path, steps):
    bundle = written(tmp_path / "bundle", postprocessing=steps)
    record = run(bundle, images[0], tmp_path / "out")["spleen_0"]
    reference = Reference(bundle, images[0])
    np.testing.assert_array_equal(voxels(record["output"]), reference.labels_first(reference.logits()))


BLUR = {"_target_": "GaussianSmoothd", "keys": "pred", "sigma": 0.5}
ONEHOT = {**ARGMAX, "to_onehot": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "image_steps"),
    [
        ([SOFTMAX, zoo.inverting(), ARGMAX, zoo.saving()], [{"_target_": "Flipd", "keys": "image", "spatial_axis": 0}]),
        ([SOFTMAX, zoo.inverting(), ARGMAX, LARGEST], [{"_target_": "Zoomd", "keys": "image", "zoom": 0.8}]),
        ([BLUR, zoo.inverting(), ARGMAX], []),
        ([SOFTMAX, zoo.inverting(), BLUR, ARGMAX], []),
        ([zoo.inverting(), SOFTMAX, {**ARGMAX, "argmax": False, "threshold": 0.5}], []),
        ([{**zoo.inverting(), "post_func": "$lambda x: x.flip(0)"}, ARGMAX], []),
    ],
    ids=["flip", "zoom", "blurred before", "blurred after", "softmax and threshold", "post_func"],
)
def test_what_only_monai_can_invert_is_left_to_it(images, tmp_path, caplog, steps, image_steps):
    bundle = written(tmp_path / "bundle", postprocessing=steps, preprocessing=[*zoo.preprocessing(), *image_steps])
    with caplog.at_level("INFO"):
        record = run(bundle, images[0], tmp_path / "out")["spleen_0"]
    reference = Reference(bundle, images[0])
    data = {"pred": MetaTensor(reference.logits()), "image": reference.image}
    for step in reference.parser.get_parsed_content("postprocessing").transforms:
        if type(step).__name__ != "SaveImaged":
            data = step(data)
    expected = data["pred"].numpy()
    found = voxels(record["output"])
    np.testing.assert_array_equal(np.moveaxis(found, 3, 0) if found.ndim == 4 else found[None], expected)


@pytest.mark.slow
def test_probabilities_of_0_and_1_are_no_masks(images, tmp_path):
    state = zoo.seeded_state(3)
    final = {name: value * 1e6 if name.startswith(zoo.FINAL) else value for name, value in state.items()}
    bundle = written(tmp_path / "bundle", state=final, postprocessing=[SOFTMAX])
    record = run(bundle, images[0], tmp_path / "out")["spleen_0"]
    reference = Reference(bundle, images[0])
    assert set(reference.logits().softmax(0).unique().tolist()) == {0, 1}
    np.testing.assert_array_equal(voxels(record["output"]), reference.labels_first(reference.logits()))


@pytest.mark.slow
def test_masks_need_a_threshold(images, tmp_path):
    steps = [{"_target_": "GaussianSmoothd", "keys": "pred", "sigma": 0.5}, zoo.inverting(), zoo.saving()]
    bundle = written(tmp_path / "bundle", ("lesion",), postprocessing=steps)
    record = run(bundle, images[0], tmp_path / "out", code=1)["spleen_0"]
    assert "1 map(s) of fractions" in record["error"]
    assert "Add an AsDiscreted" in record["error"]


@pytest.mark.slow
def test_a_step_over_the_whole_volume_follows_the_labels(tmp_path):
    bundle = written(tmp_path / "bundle", postprocessing=[SOFTMAX, zoo.inverting(), ARGMAX, LARGEST, zoo.saving()])
    index = np.stack(np.meshgrid(*map(np.arange, zoo.SHAPE), indexing="ij"), axis=-1)
    far = [np.linalg.norm((index - centre) / size, axis=-1) for centre, size in (((6, 6, 7), 4), ((16, 18, 8), 3))]
    path = tmp_path / "islands.nii.gz"
    values = 300 * np.exp(-(np.min(far, axis=0) ** 2)) - 60
    nib.Nifti1Image(values.astype(np.float32), zoo.AFFINE).to_filename(path)
    record = run(bundle, path, tmp_path / "out")["islands"]
    reference = Reference(bundle, path)
    plain = torch.as_tensor(reference.labels(reference.logits()))[None]
    kept = KeepLargestConnectedComponent(applied_labels=[1, 2])(plain.clone())
    assert not torch.equal(kept, plain)
    np.testing.assert_array_equal(voxels(record["output"]), kept[0])


@pytest.mark.slow
def test_the_whole_volume_at_once(images, tmp_path):
    steps = [*zoo.preprocessing(), {"_target_": "DivisiblePadd", "keys": "image", "k": 4}]
    bundle = written(tmp_path / "bundle", preprocessing=steps, inferer={"_target_": "SimpleInferer"})
    record = run(bundle, images[0], tmp_path / "out", "--probabilities", "--safe")["spleen_0"]
    reference = Reference(bundle, images[0])
    np.testing.assert_array_equal(voxels(record["output"]), reference.labels(reference.logits()))
    found = np.moveaxis(voxels(tmp_path / "out" / "spleen_0_prob.nii.gz"), 3, 0)
    np.testing.assert_allclose(found, reference.back(reference.logits().softmax(0), nearest=False), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--uncertainty", "entropy"]])
def test_more_than_256_classes(tmp_path, flags):
    names = [f"parcel {i}" for i in range(300)]
    bundle = written(tmp_path / "bundle", names, state=zoo.seeded_state(300, steps=2), postprocessing=[ARGMAX])
    path = tmp_path / "small.nii.gz"
    zoo.smooth_image(shape=(14, 12, 8)).to_filename(path)
    record = run(bundle, path, tmp_path / "out", *flags)["small"]
    reference = Reference(bundle, path)
    expected = reference.labels_first(reference.logits())
    assert expected.max() > 255
    assert nib.load(record["output"]).get_data_dtype() == np.uint16
    np.testing.assert_array_equal(voxels(record["output"]), expected)
    present = {row["label"]: row["voxels"] for row in record["stats"] if row["voxels"]}
    assert present == {int(v): int((expected == v).sum()) for v in np.unique(expected) if v}


SMALL_WINDOW = {"_target_": "SlidingWindowInferer", "roi_size": [15, 16, 8]}  # the UNet needs even sides


@pytest.mark.parametrize("order", ["scores go back", "labels go back"])
@pytest.mark.parametrize("inferer", [SMALL_WINDOW, {"_target_": "SimpleInferer"}], ids=["window", "whole"])
def test_an_answer_on_another_grid_than_the_input_is_no_answer(images, tmp_path, inferer, order):
    steps = {"labels go back": {"postprocessing": [ARGMAX, NEAREST]}}.get(order, {})
    bundle = written(tmp_path / "bundle", inferer=inferer, **steps)
    assert Reference(bundle, images[0]).image.shape[1] == 29
    record = run(bundle, images[0], tmp_path / "out", code=1)["spleen_0"]
    assert "its input (29, 32, 18); expected one" in record["error"]
    assert not list((tmp_path / "out").rglob("*_seg.nii.gz"))


@pytest.mark.parametrize("device", ["cudda", "cuda:99", "gpu", "cpu:x"])
def test_a_device_that_is_not_there(bundle, images, tmp_path, capsys, device):
    words = ["predict", str(images[0]), "-o", str(tmp_path / "out"), "--bundle", str(bundle), "--device", device]
    assert main(words) == 2
    assert f"vit3d: --device {device}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# channels, volumes, axes


def listed(path, *rows):
    path.write_text("\n".join(",".join(map(str, row)) for row in rows))
    return path


@pytest.mark.slow
def test_two_channels_from_a_list(tmp_path):
    first, second, elsewhere = (tmp_path / f"{name}.nii.gz" for name in ("first", "second", "elsewhere"))
    zoo.smooth_image(0).to_filename(first)
    zoo.smooth_image(1).to_filename(second)
    zoo.smooth_image(2, affine=zoo.AFFINE @ np.diag([1.1, 1, 1, 1])).to_filename(elsewhere)
    bundle = written(tmp_path / "bundle", in_channels=2)
    header = ("image_t1", "image_t2", "name")
    cases = listed(tmp_path / "cases.csv", header, (first, second, "good"), (first, elsewhere, "bad"))
    records = run(bundle, cases, tmp_path / "out", code=1)
    reference = Reference(bundle, first, second)
    np.testing.assert_array_equal(voxels(records["good"]["output"]), reference.labels(reference.logits()))
    assert records["bad"]["status"] == "failed"
    assert str(first) in records["bad"]["error"]
    assert str(elsewhere) in records["bad"]["error"]
    alone = run(bundle, [first], tmp_path / "alone", code=1)["first"]
    assert alone["status"] == "failed"
    assert "1 channel(s)" in alone["error"]
    assert "CSV" in alone["error"]


@pytest.mark.slow
def test_one_volume_of_a_series(bundle, tmp_path):
    series = [zoo.smooth_image(seed) for seed in range(3)]
    four = np.stack([image.get_fdata(dtype=np.float32) for image in series], axis=3)
    nib.Nifti1Image(four, zoo.AFFINE, series[0].header).to_filename(tmp_path / "bold.nii.gz")
    series[1].to_filename(tmp_path / "alone.nii.gz")
    bold = run(bundle, tmp_path / "bold.nii.gz", tmp_path / "a", "--volume", "1")["bold"]
    alone = run(bundle, tmp_path / "alone.nii.gz", tmp_path / "b")["alone"]
    np.testing.assert_array_equal(voxels(bold["output"]), voxels(alone["output"]))
    np.testing.assert_array_equal(nib.load(bold["output"]).affine, nib.load(alone["output"]).affine)
    assert bold["stats"] == alone["stats"]
    refused = run(bundle, tmp_path / "bold.nii.gz", tmp_path / "c", code=1)["bold"]
    assert "volume=N" in refused["error"]


@pytest.mark.slow
@pytest.mark.parametrize("trailing", [1, 2])
def test_axes_of_one_come_back(bundle, tmp_path, trailing):
    plain = zoo.smooth_image(0)
    values = plain.get_fdata(dtype=np.float32).reshape(*zoo.SHAPE, *[1] * trailing)
    nib.Nifti1Image(values, zoo.AFFINE, plain.header).to_filename(tmp_path / "scan.nii.gz")
    plain.to_filename(tmp_path / "plain.nii.gz")
    records = run(bundle, [tmp_path / "scan.nii.gz", tmp_path / "plain.nii.gz"], tmp_path / "out")
    found = voxels(records["scan"]["output"])
    assert found.shape == (*zoo.SHAPE, *[1] * trailing)
    np.testing.assert_array_equal(found.reshape(zoo.SHAPE), voxels(records["plain"]["output"]))


# what goes wrong in one case


class Fault(torch.nn.Module):
    """A network that fails for images whose windows are bright, or for batches above a size."""

    def __init__(self, network, brighter_than=None, batch=None, error=None):
        super().__init__()
        self.network, self.brighter_than, self.batch, self.error = network, brighter_than, batch, error
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        if self.batch is not None and len(x) > self.batch:
            raise self.error
        bright = self.brighter_than is not None and x.max() > self.brighter_than
        return self.network(x) * (torch.nan if bright else 1)


@pytest.fixture
def with_network(monkeypatch):
    """Put a :class:`Fault` around the network of each bundle that is loaded; the list of them."""

    def put(**faults):
        made = []

        def load(*args, **options):
            found = load_bundle(*args, **options)
            made.append(Fault(found.network, **faults))
            return replace(found, network=made[-1])

        monkeypatch.setattr(folder, "load_bundle", load)
        return made

    return put


@pytest.fixture
def bright_and_dark(tmp_path):
    """Three files, the second much brighter than the others."""
    paths = [tmp_path / f"{name}.nii.gz" for name in ("a", "b", "c")]
    for path, factor in zip(paths, (0.5, 1, 0.5)):
        image = zoo.smooth_image(0)
        values = np.clip(image.get_fdata(), -57, 164) * factor
        nib.Nifti1Image(values.astype(np.float32), image.affine).to_filename(path)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--tta-axes", "0,1,2", "--uncertainty", "variance"]])
def test_nan_from_the_network_fails_the_case_alone(bundle, bright_and_dark, tmp_path, with_network, flags):
    with_network(brighter_than=0.9)
    records = run(bundle, bright_and_dark, tmp_path / "out", *flags, code=1)
    assert [record["status"] for record in records.values()] == ["done", "failed", "done"]
    assert "NaN or infinite" in records["b"]["error"]
    assert str(bright_and_dark[1]) in records["b"]["error"]
    assert not list((tmp_path / "out").rglob("b_*"))


@pytest.mark.slow
def test_nan_from_preprocessing_fails_the_case_alone(bright_and_dark, tmp_path):
    faulty = {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x / (x.max() < 0.9)"}
    bundle = written(tmp_path / "bundle", preprocessing=[*zoo.preprocessing(), faulty])
    records = run(bundle, bright_and_dark, tmp_path / "out", code=1)
    assert [record["status"] for record in records.values()] == ["done", "failed", "done"]
    assert "NaN or infinite values after the bundle's preprocessing" in records["b"]["error"]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),  # on Windows
]


@pytest.mark.slow
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_short_of_memory_one_window_at_a_time(bundle, images, tmp_path, with_network, error):
    plain = run(bundle, images, tmp_path / "plain")
    made = with_network(batch=1, error=error)
    records = run(bundle, images, tmp_path / "out")
    assert set(made[0].batches) == {4, 1}
    assert made[0].batches.count(4) == len(images)  # the next case begins with whole batches again
    for name, record in records.items():
        assert any("out of memory" in warning for warning in record["warnings"])
        np.testing.assert_array_equal(voxels(record["output"]), voxels(plain[name]["output"]))


@pytest.mark.parametrize("stage", ["prepare", "finish"])
def test_short_of_memory_beside_the_network(bundle, images, tmp_path, monkeypatch, stage):
    def fail(*given):
        raise OUT_OF_MEMORY[2]

    monkeypatch.setattr(predictor.Predictor, stage, fail)
    record = run(bundle, images[0], tmp_path / "out", code=1)["spleen_0"]
    assert record["error"].startswith(f"{images[0]}: out of memory. Use fewer jobs=")


@pytest.mark.slow
def test_no_memory_at_all_fails_the_case(bundle, images, tmp_path, with_network):
    with_network(batch=0, error=OUT_OF_MEMORY[0])
    records = run(bundle, images, tmp_path / "out", code=1)
    assert [record["status"] for record in records.values()] == ["failed", "failed"]
    for path, record in zip(images, records.values()):
        assert str(path) in record["error"]
        assert "out of memory on cpu" in record["error"]
        assert "device=cpu" in record["error"]


def test_another_error_of_the_network_is_not_tried_twice(bundle, images, tmp_path, with_network):
    made = with_network(batch=0, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    records = run(bundle, images[0], tmp_path / "out", code=1)
    assert "RuntimeError: mat1 and mat2" in records["spleen_0"]["error"]
    assert made[0].batches == [4]


# classifiers


@pytest.mark.slow
def test_predictions_are_those_of_monai_bundle_run(tmp_path):
    folder_in = tmp_path / "in"
    folder_in.mkdir()
    for i in range(3):
        mask = gland(np.zeros((64, 64, 64), np.uint8), (26, 22, 20), thickness=2 + 3 * i)
        nib.Nifti1Image(mask, np.eye(4)).to_filename(folder_in / f"gland_{i}.nii.gz")
    shipped = BUNDLES / "medmnist3d_classification"
    options = {"dataset_dir": folder_in, "output_dir": tmp_path / "monai", "device": "$torch.device('cpu')"}
    run_here(shipped, "inference", **options)
    records = run(shipped, folder_in, tmp_path / "ours")
    theirs = rows_of(tmp_path / "monai" / "predictions.csv")
    ours = rows_of(tmp_path / "ours" / "predictions.csv")
    assert [row["filename"] for row in ours] == ["gland_0", "gland_1", "gland_2"]
    assert list(ours[0]) == list(theirs[0])
    for one, other in zip(ours, theirs):
        assert other.pop("filename").startswith(one.pop("filename"))
        assert one.pop("prediction") == other.pop("prediction")
        np.testing.assert_allclose(list(map(float, one.values())), list(map(float, other.values())), atol=1e-5)
    assert all(record["output"] is None for record in records.values())
    assert not list((tmp_path / "ours").rglob("*_seg*"))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def toy_classifier(path, task, names):
    """A small network for whole volumes: a score for each name."""
    network = {"in_shape": [1, 16, 16, 8], "classes": len(names), "channels": [2, 4], "strides": [2, 2]}
    steps = {"multi-class": {"softmax": True}, "ordinal": {"softmax": True}, "multi-label": {"sigmoid": True}}
    post = [{"_target_": "Activationsd", "keys": "pred", **steps[task], "dim": 0}] if task in steps else []
    resized = {"_target_": "Resized", "keys": "image", "spatial_size": [16, 16, 8]}
    config = changed(postprocessing=post, preprocessing=[*zoo.preprocessing(), resized], class_names=None, task=task)
    config |= {"network_def": {"_target_": "Classifier", **network}, "class_names": names}
    config["inferer"] = {"_target_": "SimpleInferer"}
    about = zoo.metadata(names)
    about["network_data_format"]["outputs"]["pred"] |= {"type": "probabilities", "format": "classes"}
    torch.manual_seed(1)
    return zoo.write_bundle(path, config, about, Classifier(**network).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multi-class", "ordinal", "multi-label", "regression"])
def test_classifiers_of_every_task(images, tmp_path, task):
    names = ["age"] if task == "regression" else ["none", "some", "much"]
    bundle = toy_classifier(tmp_path / "bundle", task, names)
    records = run(bundle, images, tmp_path / "out", "--safe")
    for path, row, record in zip(images, rows_of(tmp_path / "out" / "predictions.csv"), records.values()):
        reference = Reference(bundle, path)
        with torch.no_grad():
            logits = reference.network(reference.image.as_tensor()[None])[0].double()
        expected = logits if task == "regression" else logits.sigmoid() if task == "multi-label" else logits.softmax(0)
        np.testing.assert_allclose(list(record["prediction"].values()), expected, atol=1e-5)
        assert list(record["prediction"]) == names
        if task == "regression":
            assert float(row["prediction"]) == pytest.approx(float(expected[0]), abs=1e-5)
            continue
        found = [float(row[f"probability_{name}"]) for name in names]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        likely = [name for name, p in zip(names, expected) if p > 0.5]
        assert row["prediction"] == ("|".join(likely) if task == "multi-label" else names[int(expected.argmax())])


def test_a_classifier_has_no_maps(images, tmp_path, capsys):
    bundle = toy_classifier(tmp_path / "bundle", "multi-class", ["a", "b"])
    words = ["predict", str(images[0]), "-o", str(tmp_path / "out"), "--bundle", str(bundle), "--probabilities"]
    assert main(words) == 2
    assert "Leave out --uncertainty and --probabilities" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# memory


def test_a_case_that_would_not_fit_is_refused_in_gib(bundle, images, tmp_path, monkeypatch):
    volume = read_nifti(images[0])
    loaded = load_bundle(bundle, "cpu")
    needed = memory.needed_bytes(volume.grid, 1, loaded)
    memory.check_memory(volume.path, volume.grid, 1, loaded)
    monkeypatch.setattr(memory, "available_bytes", lambda: needed - 1)
    with pytest.raises(ImageError, match=r"need about \d+\.\d GiB for this bundle, \d+\.\d GiB are free") as caught:
        memory.check_memory(volume.path, volume.grid, 1, loaded)
    assert str(images[0]) in str(caught.value)
    record = run(bundle, images[0], tmp_path, code=1)["spleen_0"]
    assert record["status"] == "failed"
    assert "GiB" in record["error"]
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    memory.check_memory(volume.path, volume.grid, 1, loaded)


@pytest.mark.parametrize("name", GRIDS)
def test_the_networks_grid_is_known_before_it_is_made(bundle, tmp_path, name):
    shape, axes = GRIDS[name]
    path = tmp_path / "scan.nii.gz"
    zoo.smooth_image(0, shape, nib.affines.from_matvec(axes, [1, 2, 3])).to_filename(path)
    known = np.prod(memory.network_shape(read_nifti(path).grid, load_bundle(bundle, "cpu")))
    sides = Reference(bundle, path).image.shape[1:]
    assert sides.numel() * 0.95 <= known <= np.prod([side + 1 for side in sides])


@pytest.mark.parametrize(
    ("change", "counted"),
    [
        ({}, False),
        ({"mode": "nearest"}, True),
        ({"padding_mode": "zeros"}, True),
    ],
)
def test_what_monai_takes_back_is_counted(tmp_path, images, change, counted):
    steps = zoo.preprocessing()
    steps[3] |= change
    grid = read_nifti(images[0]).grid
    plain, other = (
        memory.needed_bytes(grid, 1, load_bundle(written(tmp_path / name, preprocessing=way), "cpu"))
        for name, way in {"plain": zoo.preprocessing(), "other": steps}.items()
    )
    assert (other > plain) is counted
