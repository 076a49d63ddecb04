"""The main job from the command: real MRI in, labels that lie on the hippocampus out."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from nilearn.datasets import load_mni152_template

from monai_vit3d.cli import main
from tests.helpers import HIPPOCAMPUS


@pytest.mark.slow
def test_demo_labels_lie_on_the_hippocampus(tmp_path, capsys):
    assert main(["demo", "--bundle", str(HIPPOCAMPUS), "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(tmp_path / "hippocampi.png")
    template = load_mni152_template(resolution=1)
    for side, sign in (("left", -1), ("right", 1)):
        crop = nib.load(tmp_path / "images" / f"{side}_hippocampus.nii.gz")
        labels = nib.load(tmp_path / "labels" / f"{side}_hippocampus_seg.nii.gz")
        assert labels.shape == crop.shape == (48, 64, 48)
        assert labels.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(labels.affine, crop.affine)
        corner = np.round(np.linalg.inv(template.affine) @ crop.affine @ [0, 0, 0, 1])[:3].astype(int)
        inside = tuple(slice(c, c + n) for c, n in zip(corner, crop.shape))
        np.testing.assert_allclose(crop.get_fdata(), template.get_fdata()[inside], atol=1e-6)
        data = np.asarray(labels.dataobj)
        anterior, posterior = (
            nib.affines.apply_affine(labels.affine, np.argwhere(data == v)).mean(axis=0) for v in (1, 2)
        )
        # the head lies before and below the tail; both on their side, near the atlas' hippocampus
        assert anterior[1] > posterior[1] + 8
        assert anterior[2] < posterior[2]
        assert np.linalg.norm(np.append(anterior, 0) - [sign * 25, -14, -20, 0]) < 8
        assert np.linalg.norm(np.append(posterior, 0) - [sign * 27, -31, -7, 0]) < 8
        for v in (1, 2):  # a hippocampus measures 2.5 to 5 ml; the MNI template is larger than most heads
            assert 0.8 < (data == v).sum() / 1000 < 3.5


def test_command_says_what_is_missing(tmp_path, capsys):
    assert main(["demo", "--bundle", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    assert "no configs/inference.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit) as usage:
        main(["bogus"])
    assert usage.value.code == 2


def test_help_loads_no_torch():
    code = "import sys; from monai_vit3d.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out.strip().endswith("False")
