"""volumes.csv: a row a case, sums of sides, asymmetry."""

import csv

import pytest

from monai_vit3d.pipeline.volumes import side_sums, write_volumes


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
