"""Mistakes of users end a training in one line that names the file or entry and says what to do."""

import re

import nibabel as nib
import numpy as np
import pytest

from monai_vit3d.cli.command import main
from tests.training.tiny_bundle import scan, write_tiny


def change(path, function):
    image = nib.load(path)
    nib.save(function(np.asarray(image.dataobj), image.affine), path)


def extra_class(bundle):
    def add(labels, affine):
        labels[0, 0, 0] = 7
        return nib.Nifti1Image(labels, affine)

    change(scan(bundle, "case_0_seg.nii.gz"), add)


def other_grid(bundle):
    shift = 9 * np.eye(4, k=3)
    change(scan(bundle, "case_0_seg.nii.gz"), lambda labels, affine: nib.Nifti1Image(labels, affine + shift))


def label_4d(bundle):
    stacked = lambda labels, affine: nib.Nifti1Image(np.stack([labels] * 2, 3), affine)  # noqa: E731
    change(scan(bundle, "case_0_seg.nii.gz"), stacked)


def no_number(bundle):
    change(scan(bundle, "case_1.nii.gz"), lambda image, affine: nib.Nifti1Image(image * np.nan, affine))


def two_channels(bundle):
    change(scan(bundle, "case_1.nii.gz"), lambda image, affine: nib.Nifti1Image(np.stack([image] * 2, 3), affine))


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def edit(old, new, name="train.yaml"):
    def write(bundle):
        path = bundle / "configs" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return write


def damaged_checkpoint(bundle):
    main(["train", str(bundle), "--set", "epochs=1"])
    cut(bundle / "runs/fold_0/last.pt")
    (bundle / "models/fold_0.pt").unlink()


def unlink(name):
    return lambda bundle: scan(bundle, name).unlink()


NOTHING = lambda bundle: None  # noqa: E731
# what is done to the bundle or its data, the arguments, the exit code, and what the line says
MISTAKES = {
    "missing label": (unlink("case_0_seg.nii.gz"), [], 1, r"case_0_seg\.nii\.gz: no such file.*dataset_dir"),
    "missing image": (unlink("case_3.nii.gz"), [], 1, r"case_3\.nii\.gz: no such file"),
    "extra class": (extra_class, [], 1, r"case_0_seg\.nii\.gz: label 7 \(1 voxels\).*0 to 2"),
    "other grid": (other_grid, [], 1, r"case_0_seg\.nii\.gz: labels up to \S+ voxels away"),
    "4D label": (label_4d, [], 1, r"case_0_seg\.nii\.gz: "),
    "NaN alone": (no_number, [], 1, r"case_1\.nii\.gz: none of 2048 voxels is finite"),
    "another number of channels": (two_channels, [], 1, r"case_1\.nii\.gz: .*channel"),
    "cut image": (lambda b: cut(scan(b, "case_2.nii.gz")), [], 1, r"case_2\.nii\.gz: "),
    "typo in --set": (NOTHING, ["--set", "learnin_rate=1"], 2, r"--set learnin_rate: .*Did you mean learning_rate\?"),
    "typo below the top": (NOTHING, ["--set", "train::traner::x=1"], 2, r"--set train::traner::x: .* no such entry"),
    "no number": (NOTHING, ["--set", "epochs=many"], 2, r"--set epochs: 'many'; .*number"),
    "no value": (NOTHING, ["--set", "epochs"], 2, r"--set epochs: expected ID=VALUE"),
    "set by an argument": (NOTHING, ["--set", "fold=1"], 2, r"--set fold: set by --fold"),
    "no such fold": (NOTHING, ["--fold", "5"], 2, r"--fold 5: the bundle's split has the folds 0, 1"),
    "no such bundle": (NOTHING, ["elsewhere"], 2, r"elsewhere: no folder configs"),
    "no such device": (NOTHING, ["--device", "cuda:99"], 2, r"--device cuda:99: cannot be used"),
    "broken YAML": (edit("epochs: 2", "epochs: [2"), [], 2, r"train\.yaml: not a readable config.*line"),
    "unknown decoder": (edit("decoder: light", "decoder: heavy"), [], 1, r"train\.yaml: .*heavy.*train\.log"),
    "misspelt reference": (edit("'@batch_size'", "'@batchsize'"), [], 1, r"train\.yaml: .*batchsize.*train\.log"),
    "no split": (lambda b: (b / "configs/split.json").unlink(), [], 1, r"split\.json: cannot be read"),
    "no encoder": (NOTHING, ["--set", "pretrained=nowhere.pt"], 2, r"nowhere\.pt: "),
    "damaged checkpoint": (damaged_checkpoint, [], 2, r"last\.pt: "),
    "diverges": (NOTHING, ["--set", "learning_rate=1e30", "--set", "warmup_epochs=0"], 1, r"epoch 1, .*batch: case_"),
    "no validation case": (edit('"fold": 0', '"fold": 1', "split.json"), [], 2, r"--fold 0: .* has the folds 1"),
    "no other fold": (edit('"fold": 1', '"fold": 0', "split.json"), [], 1, r"All cases are in fold 0"),
    "large batch": (NOTHING, ["--set", "batch_size=9"], 1, r"2 training cases make no batch of 9.*batch_size"),
    "no epochs": (NOTHING, ["--set", "epochs=0"], 2, r"train\.yaml: epochs is 0; expected 1 or more"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_line_names_the_mistake(mistake, tmp_path, capsys):
    bundle = write_tiny(tmp_path)
    do, arguments, code, text = MISTAKES[mistake]
    do(bundle)
    capsys.readouterr()
    place = [] if arguments[:1] == ["elsewhere"] else [str(bundle)]
    assert main(["train", *place, *arguments]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("fold 0: 2 epochs")]
    assert len(lines) == 1, lines
    assert re.search(text, lines[0]), lines[0]
    assert lines[0].startswith("vit3d: ")
    assert "Traceback" not in lines[0]
    log = bundle / "runs/fold_0/train.log"
    assert "train.log" not in lines[0] or "Traceback" in log.read_text()
