"""The main job from the command: real MRI in, labels that lie on the hippocampus out."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.datasets import load_mni152_template

from monai_vit3d.cli import main
from tests.helpers import BUNDLES

SIDES, PARTS = ("left", "right"), ("anterior", "posterior")


@pytest.mark.slow
def test_demo_labels_lie_on_the_hippocampus(tmp_path, capsys):
    assert main(["demo", "--bundle", str(BUNDLES / "head_hippocampus"), "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == [f"{s} {p} hippocampus" for s in SIDES for p in PARTS]
    files = [Path(line) for line in lines[-5:]]
    assert all(file.is_file() for file in files)
    assert files[-1].suffix == ".png"
    template, head, labels = load_mni152_template(resolution=1), *map(nib.load, files[:2])
    np.testing.assert_allclose(head.get_fdata(), template.get_fdata(), atol=1e-6)
    assert labels.shape == head.shape
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(labels.affine, head.affine)
    data = np.asarray(labels.dataobj)
    for number, sign in ((1, -1), (3, 1)):
        anterior, posterior = (
            nib.affines.apply_affine(labels.affine, np.argwhere(data == v)).mean(axis=0) for v in (number, number + 1)
        )
        # the head lies before and below the tail; both on their side, near the atlas' hippocampus
        assert anterior[1] > posterior[1] + 8
        assert anterior[2] < posterior[2]
        assert np.linalg.norm(anterior - [sign * 25, -14, -20]) < 8
        assert np.linalg.norm(posterior - [sign * 27, -31, -7]) < 8
        for v in (number, number + 1):  # a hippocampus measures 2.5 to 5 ml; the MNI template is larger than most heads
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
