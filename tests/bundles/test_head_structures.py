"""The bundle of brain structures on nilearn's MNI152 template: where they lie, and the template's own tissue maps."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
from scipy.ndimage import gaussian_filter

from monai_vit3d.data.in_memory import volumes_from
from monai_vit3d.transforms import BRAIN_STRUCTURES
from monai_vit3d.weights import network_from
from tests.bundles import helpers
from tests.bundles.helpers import command
from tests.helpers import BUNDLES
from tests.transforms.synthesis.head_phantom import head_phantom

HEAD = BUNDLES / "head_structures"
VALUE = {name: value for value, name in enumerate(BRAIN_STRUCTURES, 1)}
PAIRS = [name.removeprefix("left ") for name in BRAIN_STRUCTURES if name.startswith("left ")]


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_classes_are_those_of_the_table():
    outputs = json.loads((HEAD / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {"0": "background"} | {str(value): name for name, value in VALUE.items()}
    assert outputs["num_channels"] == 1 + len(BRAIN_STRUCTURES)


@pytest.mark.slow
def test_every_structure_is_there_on_its_side(head, labels):
    assert labels.shape == head.shape
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, *VALUE.values()}
    for name in PAIRS:
        left, right = (labels == VALUE[f"{side} {name}"] for side in ("left", "right"))
        places = [nib.affines.apply_affine(head.affine, np.argwhere(mask)).mean(0) for mask in (left, right)]
        assert places[0][0] < -5
        assert places[1][0] > 5
        np.testing.assert_allclose(places[0] * (-1, 1, 1), places[1], atol=6)
        assert 0.7 < left.sum() / right.sum() < 1.4


@pytest.mark.slow
def test_tissues_are_the_templates(labels):
    """What is white matter and what is not, by the probabilities that come with the template."""
    templates = (load_mni152_wm_template(resolution=1), load_mni152_gm_template(resolution=1))
    white, grey = (np.asarray(template.dataobj) for template in templates)
    brain = np.isin(labels, [value for name, value in VALUE.items() if "ventricle" not in name and "fluid" not in name])
    assert dice(brain, white + grey > 0.5) > 0.9
    cerebral_white = np.isin(labels, [VALUE["left cerebral white matter"], VALUE["right cerebral white matter"]])
    cerebrum = cerebral_white | np.isin(labels, [VALUE["left cerebral cortex"], VALUE["right cerebral cortex"]])
    assert dice(cerebral_white, (white > grey) & (white > 0.5) & cerebrum) > 0.75  # 0.784: thin cortex is missed


@pytest.mark.slow
def test_monais_run_gives_the_same_labels(head, labels, tmp_path):
    assert np.array_equal(helpers.labels_by_monai(HEAD, head, tmp_path), labels)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["even", "normal", "smooth"])
def test_noise_is_not_labelled(predictor, kind):
    rng, shape = np.random.default_rng(0), (180, 200, 180)
    draw = {
        "even": lambda: rng.uniform(0, 100, shape),
        "normal": lambda: rng.normal(100, 20, shape),
        "smooth": lambda: 100 + 1000 * gaussian_filter(rng.normal(size=shape), 5),
    }[kind]
    (volume,) = volumes_from(nib.Nifti1Image(draw().astype(np.float32), np.eye(4)), None, 1)
    prediction = predictor.predict_volumes([volume])
    assert not prediction.labels.any()
    assert any(finding.kind == "localization" for finding in prediction.findings)


@pytest.mark.slow
def test_the_training_runs_as_it_stands(tmp_path):
    """From two label maps, in a small window: weights that the inference configuration's network takes."""
    phantom = head_phantom()
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(phantom[0].numpy(), np.asarray(phantom.affine)), tmp_path / f"{name}.nii.gz")
    short = {"epochs": 1, "repeats": 1, "validation_maps": 1, "validation_repeats": 1, "val_interval": 1}
    options = {"dataset_dir": tmp_path, "output_dir": tmp_path / "out", "window": "[32,48,32]", "num_workers": 0}
    helpers.run(command("run", config_file="configs/train.yaml", warmup_epochs=0, **short, **options), bundle=HEAD)
    trained = network_from(tmp_path / "out" / "structures.pt")
    started = network_from(HEAD / "models" / "localizer.pt")
    logits = trained(torch.zeros(1, 1, 32, 48, 32))
    assert logits.shape == (1, 1 + len(BRAIN_STRUCTURES), 32, 48, 32)
    # one step from the localizer's encoder
    torch.testing.assert_close(trained.backbone.blocks[0].attn.qkv.weight, started.backbone.blocks[0].attn.qkv.weight,
                               atol=0.01, rtol=0)  # fmt: skip
