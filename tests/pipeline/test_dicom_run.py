"""DICOM folders through `vit3d predict`: labels in place, a SEG beside them, a broken series fails alone."""

import json

import nibabel as nib
import numpy as np
import pytest

hd = pytest.importorskip("highdicom")

from monai_vit3d import cli  # noqa: E402
from monai_vit3d.data.dicom import find_series, read_series  # noqa: E402
from monai_vit3d.pipeline import memory  # noqa: E402
from tests.dicom import MR, SAGITTAL, SLICES, series  # noqa: E402
from tests.pipeline.tiny import predict, records  # noqa: E402


def drop_a_slice(ds, k):
    return k != SLICES // 2


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_bundle):
    """Two good series in folders of their own, two in one folder, one with a hole; OUT, and the exit code."""
    scans, out = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("dicom") / "out"
    series(scans / "axial")
    series(scans / "sagittal", SAGITTAL, sop_class=MR)
    series(scans / "both")
    series(scans / "more", SAGITTAL, sop_class=MR, edit=lambda ds, k: setattr(ds, "SeriesNumber", 7))
    for path in (scans / "more").iterdir():
        path.rename(scans / "both" / f"7_{path.name}")
    (scans / "more").rmdir()
    series(scans / "hole", edit=drop_a_slice)
    return scans, out, predict(scans, to=out, bundle=tiny_bundle)


def test_each_series_is_a_case_and_a_hole_fails_alone(run):
    _, out, code = run
    found = records(out)
    assert code == 1
    assert {name: one["status"] for name, one in found.items()} == {
        "axial": "done",
        "sagittal": "done",
        "both/series-003": "done",
        "both/series-007": "done",
        "hole": "failed",
    }
    assert "slice" in found["hole"]["error"]
    assert not list(out.glob("hole*"))


@pytest.mark.parametrize("name", ["axial", "sagittal"])
def test_labels_lie_where_the_series_does(run, name):
    scans, out, _ = run
    volume = read_series(find_series(scans / name)[0])
    labels = nib.load(out / f"{name}_seg.nii.gz")
    assert labels.shape == volume.voxels.shape
    np.testing.assert_allclose(labels.affine, volume.grid.affine_mm, atol=1e-4)
    found = np.asarray(labels.dataobj)
    assert volume.voxels[found == 2].mean() > volume.voxels[found == 1].mean() > volume.voxels[found == 0].mean()


def test_a_series_that_would_not_fit(run, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**5)
    assert predict(run[0] / "axial", to=tmp_path, bundle=tiny_bundle) == 1
    assert "GiB are free" in records(tmp_path)["axial"]["error"]


def test_the_seg_holds_the_same_voxels_as_the_labels(run):
    _, out, _ = run
    stored = hd.seg.segread(out / "axial_seg.dcm")
    labels = np.asarray(nib.load(out / "axial_seg.nii.gz").dataobj)
    assert [stored.get_segment_description(n).segment_label for n in (1, 2)] == ["grey", "white"]
    masks = stored.get_volume(combine_segments=False)
    assert [int(masks.array[..., n].sum()) for n in (0, 1)] == [int((labels == value).sum()) for value in (1, 2)]
    assert len(stored.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == SLICES


def test_resume_believes_a_series_by_its_files(run, tiny_bundle):
    scans, out, _ = run
    assert predict(scans, to=out, bundle=tiny_bundle, options=["--resume"]) == 1
    assert sorted(one["status"] for one in records(out).values()) == ["failed", *["skipped"] * 4]


def test_a_seg_that_is_there_is_not_overwritten(run, tiny_bundle, tmp_path, capsys):
    scans, _, _ = run
    (tmp_path / "axial_seg.dcm").write_bytes(b"somebody's")
    assert predict(scans / "axial", to=tmp_path, bundle=tiny_bundle) == 2
    assert "axial_seg.dcm" in capsys.readouterr().err
    assert (tmp_path / "axial_seg.dcm").read_bytes() == b"somebody's"


def test_check_reads_series(run, capsys):
    scans, _, _ = run
    assert cli.main(["check", str(scans / "axial"), str(scans / "hole"), "--json"]) == 1
    good, hole = json.loads(capsys.readouterr().out)
    assert (good["verdict"], hole["verdict"]) == ("good", "refused")
