"""volumes.csv: a row a case, sums of sides, asymmetry."""

import csv

import nibabel as nib
import numpy as np
import pytest

from monai_vit3d.data.errors import UsageError
from monai_vit3d.pipeline.folder import predict_folder
from monai_vit3d.pipeline.lists import read_json
from monai_vit3d.pipeline.volumes import side_sums, write_volumes
from tests.pipeline.tiny import records, write_bundle, write_images


def _record(name, **volumes):
    return {"name": name, "stats": [{"name": key, "volume_ml": ml} for key, ml in volumes.items()]}


def _table(records, path):
    write_volumes(records, path)
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_a_case_and_a_column_a_structure(tmp_path):
    rows = _table(
        [_record("a", liver=1500.0, spleen=200.0), _record("b", spleen=180.5), {"name": "failed"}], tmp_path / "v.csv"
    )
    assert rows == [
        {"filename": "a", "liver ml": "1500", "spleen ml": "200"},
        {"filename": "b", "liver ml": "0", "spleen ml": "180.5"},
    ]


def test_sides_are_summed_and_compared(tmp_path):
    sides = {
        f"{side} {part} hippocampus": ml
        for side, ml in (("left", 1.0), ("right", 2.0))
        for part in ("anterior", "posterior")
    }
    (row,) = _table([_record("head", **sides)], tmp_path / "v.csv")
    assert float(row["left hippocampus ml"]) == 2
    assert float(row["right hippocampus ml"]) == 4
    assert float(row["hippocampus total ml"]) == 6
    assert float(row["hippocampus asymmetry %"]) == pytest.approx(100 * (2 - 4) / 3, rel=1e-5)
    assert float(row["anterior hippocampus total ml"]) == 3


def test_no_asymmetry_of_nothing(tmp_path):
    (row,) = _table([_record("a", kidney_left=0.0, kidney_right=0.0)], tmp_path / "v.csv")
    assert row["kidney total ml"] == "0"
    assert row["kidney asymmetry %"] == ""


@pytest.mark.parametrize(
    ("names", "sums", "pairs"),
    [
        (["liver"], {}, []),
        (["left lung"], {}, []),
        (["left lung", "right lung"], {}, [("lung", "left lung", "right lung")]),
        (["LH_kidney", "RH_kidney", "tumor"], {}, [("kidney", "LH_kidney", "RH_kidney")]),
    ],
)
def test_which_structures_have_sides(names, sums, pairs):
    assert side_sums(names) == (sums, pairs)


@pytest.fixture
def masked_list(tmp_path):
    """A list of two images, the first with a mask of 5 x 4 x 3 voxels on a turned grid of its own."""
    write_images(tmp_path / "in", 2, (24, 20, 18))
    inside = np.zeros((9, 8, 7), np.uint8)
    inside[2:7, 3:7, 1:4] = 1
    affine = np.array([[0, -1.5, 0, 4], [2.0, 0, 0, 1], [0, 0, 3.0, 2], [0, 0, 0, 1]])
    nib.Nifti1Image(inside, affine).to_filename(tmp_path / "brain.nii.gz")
    table = tmp_path / "list.csv"
    table.write_text("image,mask\nin/case00.nii.gz,brain.nii.gz\nin/case01.nii.gz,\n")
    return table


@pytest.mark.slow
def test_the_volume_of_a_listed_mask_comes_last(masked_list, tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    predict_folder(masked_list, tmp_path / "out", bundle, device="cpu", backend="torch")
    with (tmp_path / "out" / "volumes.csv").open(newline="") as file:
        header, first, second = csv.reader(file)
    assert header[-1] == "mask ml"
    assert float(first[-1]) == pytest.approx(5 * 4 * 3 * 1.5 * 2 * 3 / 1000)
    assert second[-1] == ""

    again = predict_folder(masked_list, tmp_path / "out", bundle, device="cpu", backend="torch", existing="resume")
    assert (again.done, again.skipped) == (0, 2)
    mask = nib.load(tmp_path / "brain.nii.gz")
    nib.Nifti1Image(np.ones(mask.shape, np.uint8), mask.affine).to_filename(tmp_path / "brain.nii.gz")
    again = predict_folder(masked_list, tmp_path / "out", bundle, device="cpu", backend="torch", existing="resume")
    assert (again.done, again.skipped) == (1, 1)  # another mask is another input

    nib.Nifti1Image(np.zeros(mask.shape, np.uint8), mask.affine).to_filename(tmp_path / "brain.nii.gz")
    predict_folder(masked_list, tmp_path / "out2", bundle, device="cpu", backend="torch")
    assert "brain.nii.gz: a mask with no voxel above 0" in records(tmp_path / "out2")["case00"]["error"]


def test_a_mask_may_be_a_key_of_a_json_list_and_must_be_an_image(tmp_path):
    table = tmp_path / "list.json"
    table.write_text('[{"image": "a.nii", "mask": "m.nii"}, {"image": "b.nii", "mask": null}]')
    assert [case.mask for case in read_json(table)] == [tmp_path / "m.nii", None]
    for entry, said in (('"m.txt"', "entry 1: mask 'm.txt'; expected"), ("3", "entry 1: .* expected a path or")):
        table.write_text(f'[{{"image": "a.nii", "mask": {entry}}}]')
        with pytest.raises(UsageError, match=said):
            read_json(table)
