"""Sizes and intensities of labels against numpy by brute force; a table that no spreadsheet runs."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.volume import Grid
from monai_vit3d.pipeline.stats import COLUMNS, label_stats, write_stats

OBLIQUE = np.array([[0.9, 0.1, 0, 5], [-0.2, 1.1, 0.3, -7], [0, 0.1, 3, 2], [0, 0, 0, 1]])
SHAPES = st.tuples(*[st.integers(1, 6)] * 3)


def brute(inside, voxels):
    """Count, mean, std, min and max by a mask over the whole volume."""
    values = voxels[inside].astype(np.float64)
    return (len(values), *(f(values) if len(values) else None for f in (np.mean, np.std, np.min, np.max)))


def numbers(record):
    return (record.voxels, record.mean, record.std, record.min, record.max)


def same(ours, theirs):
    return [a == b if b is None else a == pytest.approx(b, rel=1e-9, abs=1e-9) for a, b in zip(ours, theirs)]


@given(st.data(), SHAPES, st.sampled_from([np.uint8, np.int16, np.int32, np.int64, np.uint16]))
def test_labels_as_by_brute_force(data, shape, dtype):
    wide = np.iinfo(dtype).max  # values far apart must not cost memory for those between
    labels = data.draw(hnp.arrays(dtype, shape, elements=st.sampled_from([0, 1, 2, 5, wide])))
    voxels = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32)))
    grid, names = Grid(shape, OBLIQUE), {0: "background", 2: "two", 9: "absent"}
    records = label_stats(labels, voxels, grid, names)
    assert [r.label for r in records] == sorted(({2, 9} | set(labels.ravel().tolist())) - {0})
    for record in records:
        assert all(same(numbers(record), brute(labels == record.label, voxels)))
        assert record.volume_ml == pytest.approx(record.voxels * abs(np.linalg.det(OBLIQUE[:3, :3])) / 1000)
        assert record.name == names.get(record.label, f"label {record.label}")


@given(st.data(), SHAPES, st.integers(1, 4), st.sampled_from([bool, np.uint8, np.float32]))
def test_masks_may_overlap(data, shape, channels, dtype):
    masks = data.draw(hnp.arrays(dtype, (channels, *shape), elements=st.sampled_from([dtype(0), dtype(1)])))
    voxels = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32)))
    records = label_stats(masks, voxels, Grid(shape, np.eye(4)), {1: "core"})
    assert [r.label for r in records] == list(range(1, channels + 1))
    assert records[0].name == "core"
    for record, mask in zip(records, masks):
        assert all(same(numbers(record), brute(mask != 0, voxels)))


def test_a_large_offset_costs_no_digits():
    rng = np.random.default_rng(0)
    voxels = (1e6 + rng.standard_normal((20, 20, 20))).astype(np.float32)
    (record,) = label_stats(np.ones(voxels.shape, np.uint8), voxels, Grid(voxels.shape, np.eye(4)), {})
    assert record.std == pytest.approx(voxels.astype(np.float64).std(), rel=1e-9)


def test_only_background_and_no_names():
    assert label_stats(np.zeros((2, 3, 4), np.uint8), np.ones((2, 3, 4)), Grid((2, 3, 4), np.eye(4)), {0: "air"}) == []


@pytest.mark.parametrize(
    ("labels", "shape"),
    [
        (np.zeros((2, 3, 4), np.float32), (2, 3, 4)),
        (np.zeros((2, 3, 5), np.uint8), (2, 3, 4)),
        (np.zeros((1, 4, 3, 2), np.uint8), (2, 3, 4)),
        (np.zeros((1, 1, 2, 3, 4), np.uint8), (2, 3, 4)),
        (np.zeros((2, 3, 4), np.uint8), (4, 3, 2)),
    ],
    ids=["float", "shape", "masks' shape", "5D", "grid"],
)
def test_labels_of_another_image(labels, shape):
    with pytest.raises(UsageError, match=r"labels .*grid .*\(H, W, D\) .*Bring the labels"):
        label_stats(labels, np.zeros((2, 3, 4)), Grid(shape, np.eye(4)), {})


# the table


def lines(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_table(tmp_path):
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[:2] = 3
    voxels = np.full((4, 4, 4), -1000, np.float32)
    stats = [r.row() for r in label_stats(labels, voxels, Grid((4, 4, 4), np.diag([1, 1, 1.5, 1])), {1: "gone"})]
    records = [
        {"name": "sub-01/t1", "input": "sub-01/t1.nii.gz", "status": "done", "stats": stats},
        {"name": "bad", "status": "failed", "error": "no"},
        {"input": "only, input.nii", "stats": stats[:1]},
    ]
    write_stats(iter(records), tmp_path / "new" / "stats.csv")
    assert lines(tmp_path / "new" / "stats.csv") == [
        list(COLUMNS),
        ["sub-01/t1", "1", "gone", "0", "0", "", "", "", ""],
        ["sub-01/t1", "3", "label 3", "32", "0.048", "-1000", "0", "-1000", "-1000"],
        ["only, input.nii", "1", "gone", "0", "0", "", "", "", ""],
    ]
    first = (tmp_path / "new" / "stats.csv").read_bytes()
    write_stats(records, tmp_path / "new" / "stats.csv")
    assert (tmp_path / "new" / "stats.csv").read_bytes() == first
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["stats.csv"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "  =1", "\u3000=1", "＝1"])  # noqa: RUF001
def test_no_cell_is_a_formula(tmp_path, text):
    write_stats([{"name": text, "stats": [{"label": -2, "name": text, "mean": -1.5}]}], tmp_path / "stats.csv")
    _, (filename, label, name, *_, mean, _, _, _) = lines(tmp_path / "stats.csv")
    assert (filename, name) == (f"'{text}", f"'{text}")
    assert (label, mean) == ("-2", "-1.5")


@pytest.mark.parametrize(
    ("text", "cell"),
    [("\t=1", r"\t=1"), ("a\r=1", r"a\r=1"), ("a\n=1", r"a\n=1"), ("a\x00", r"a\x00"), ("M\udcfcller", r"M\udcfcller")],
)
def test_what_no_file_name_should_have(tmp_path, text, cell):
    write_stats([{"name": text, "stats": [{"label": 1, "name": "a"}]}], tmp_path / "stats.csv")
    assert lines(tmp_path / "stats.csv")[1:] == [[cell, "1", "a", *[""] * 6]]
