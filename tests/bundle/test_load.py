"""A bundle as MONAI's model zoo ships them: it runs unchanged, and its labels are those of MONAI's own calls."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle import run as run_bundle
from monai.transforms import AsDiscrete, Invertd

from monai_vit3d.cli import main
from tests.pipeline import zoo


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return zoo.write_bundle(tmp_path_factory.mktemp("zoo") / "spleen")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return zoo.write_images(tmp_path_factory.mktemp("spleen"))


@pytest.fixture
def copied(bundle, tmp_path):
    return Path(shutil.copytree(bundle, tmp_path / "copied"))


def predict(bundle, folder, out, *flags):
    return main(
        [
            "predict",
            str(folder),
            "-o",
            str(out),
            "--bundle",
            str(bundle),
            "--device",
            "cpu",
            "--backend",
            "torch",
            *flags,
        ]
    )


def labels_in(out, images):
    return [nib.load(out / path.name.replace(".nii.gz", "_seg.nii.gz")) for path in images]


def monai_labels(bundle, path):
    """Labels by MONAI's own calls: probabilities go back to the file's grid, the argmax is taken there."""
    parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "inference.json"))
    preprocessing, network = (parser.get_parsed_content(name) for name in ("preprocessing", "network_def"))
    network.load_state_dict(zoo.seeded_state())
    image = preprocessing({"image": str(path)})["image"]
    with torch.no_grad():
        logits = parser.get_parsed_content("inferer")(image[None], network.eval())
    invert = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)
    return AsDiscrete(argmax=True)(invert({"pred": logits[0].softmax(0), "image": image})["pred"])[0].numpy()


def check_labels(bundle, images, out):
    """Ours are MONAI's, on the files' own grids; returns them."""
    arrays = []
    for path, found in zip(images, labels_in(out, images)):
        arrays.append(np.asarray(found.dataobj))
        assert found.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(found.affine, nib.load(path).affine)
        np.testing.assert_array_equal(arrays[-1], monai_labels(bundle, path))
        assert 0.05 < arrays[-1].mean() < 0.5
    return arrays


@pytest.mark.slow
def test_the_commands_labels_are_those_of_the_bundle_itself(bundle, images, tmp_path):
    config, options = str(bundle / "configs" / "inference.json"), {"logging_file": False, "bundle_root": str(bundle)}
    options |= {"dataset_dir": str(images[0].parents[1]), "output_dir": str(tmp_path / "monai")}
    run_bundle(config_file=config, device="$torch.device('cpu')", **options)
    ours = ["predict", images[0].parent, "-o", tmp_path / "ours", "--bundle", bundle, "--safe", "--device", "cpu"]
    ours += ["--backend", "torch"]
    result = subprocess.run([sys.executable, "-m", "monai_vit3d.cli", *ours], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    # nothing but a line for each file and what random weights label too much of: no warning of a library
    lines = [line for line in result.stderr.splitlines() if "labels cover" not in line]
    assert [line.split(" (")[0] for line in lines] == ["1/2 done spleen_0", "2/2 done spleen_1"]
    assert len(result.stdout.splitlines()) == 1
    check_against_saved(bundle, images, tmp_path)


def check_against_saved(bundle, images, tmp_path):
    """What `python -m monai.bundle run` saved, with its affine."""
    for path, ours in zip(images, check_labels(bundle, images, tmp_path / "ours")):
        name = path.name.removesuffix(".nii.gz")
        saved = nib.load(tmp_path / "monai" / name / f"{name}_trans.nii.gz")
        np.testing.assert_allclose(saved.affine, nib.load(path).affine, atol=1e-5)
        theirs = np.asarray(saved.dataobj)
        assert theirs.max() == 1
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_it_runs_with_safe(bundle, images, tmp_path):
    assert predict(bundle, images[0].parent, tmp_path, "--safe") == 0
    check_labels(bundle, images, tmp_path)


@pytest.mark.slow
def test_a_checkpoint_with_more_than_the_weights(images, tmp_path):
    state = {"model": zoo.seeded_state(), "epoch": 7}
    wrapped = zoo.write_bundle(tmp_path / "wrapped", state=state)
    assert predict(wrapped, images[0].parent, tmp_path / "out", "--safe") == 0
    check_labels(wrapped, images, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("nested", [True, False])
def test_a_zip_of_it(bundle, images, tmp_path, nested):
    base = {"root_dir": bundle.parent, "base_dir": bundle.name} if nested else {"root_dir": bundle}
    archive = shutil.make_archive(str(tmp_path / "spleen"), "zip", **base)
    assert predict(archive, images[0].parent, tmp_path / "out") == 0
    check_labels(bundle, images, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["bundle_path"] == archive
    assert record["bundle"] == "Toy spleen CT segmentation"


class Code:
    """What a checkpoint with code in it leaves behind if it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def config_without(bundle, entry, *keep):
    path = bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    if entry == "LoadImaged":
        config["preprocessing"]["transforms"] = config["preprocessing"]["transforms"][1:]
    for name in ["network", "network_def"] if entry == "network" else [entry]:
        config.pop(name, None)
    path.write_text(json.dumps(config))


def break_config(bundle):
    (bundle / "configs" / "inference.json").unlink()
    (bundle / "configs" / "inference.yaml").write_text("network_def: [\n  UNet: {")


def put_weights(bundle, content):
    torch.save(content, bundle / "models" / "model.pt")


def cut_weights(bundle):
    path = bundle / "models" / "model.pt"
    path.write_bytes(path.read_bytes()[:1000])


def break_network(bundle):
    path = bundle / "configs" / "inference.json"
    path.write_text(path.read_text().replace('"UNet"', '"NoSuchNet"'))


FAULTS = {
    "no LoadImaged": (lambda b: config_without(b, "LoadImaged"), "LoadImaged"),
    "no preprocessing": (lambda b: config_without(b, "preprocessing"), "preprocessing"),
    "no network": (lambda b: config_without(b, "network"), "network"),
    "unknown network": (break_network, "NoSuchNet"),
    "broken yaml": (break_config, "not a readable config"),
    "no config": (lambda b: (b / "configs" / "inference.json").unlink(), "configs/inference"),
    "broken metadata": (lambda b: (b / "configs" / "metadata.json").write_text("{"), "metadata.json"),
    "metadata are a list": (lambda b: (b / "configs" / "metadata.json").write_text("[]"), "metadata.json"),
    "no weights": (lambda b: (b / "models" / "model.pt").unlink(), "model.pt"),
    "weights cut off": (cut_weights, "model.pt"),
    "weights of another network": (lambda b: put_weights(b, torch.nn.Linear(2, 2).state_dict()), "model.pt"),
    "weights of another width": (lambda b: put_weights(b, zoo.seeded_state(3, steps=0)), "model.pt"),
    "code for weights": (lambda b: put_weights(b, Code(b / "trace")), "model.pt"),
    "code beside weights": (
        lambda b: put_weights(b, {"model": zoo.seeded_state(), "x": Code(b / "trace")}),
        "model.pt",
    ),
}


@pytest.mark.parametrize("safe", [[], ["--safe"]])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bundle_that_cannot_be_used_is_refused_before_any_work(copied, images, tmp_path, capsys, fault, safe):
    change, word = FAULTS[fault]
    change(copied)
    assert predict(copied, images[0].parent, tmp_path / "out", *safe) == 2
    said = capsys.readouterr().err.splitlines()
    error = "\n".join(line for line in said if "--safe takes settings only" not in line)
    assert error.startswith("vit3d: ")
    assert word in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
    assert not (copied / "trace").exists()
