"""DICOM folders through `vit3d predict`: labels in place, a SEG beside them, a broken series fails alone."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

hd = pytest.importorskip("highdicom")

from monai_vit3d import cli  # noqa: E402
from monai_vit3d.data.dicom import find_series, read_series  # noqa: E402
from monai_vit3d.data.errors import UsageError  # noqa: E402
from monai_vit3d.pipeline import memory  # noqa: E402
from monai_vit3d.pipeline.plan import plan_cases  # noqa: E402
from tests.dicom import MR, PET, SAGITTAL, SLICES, series  # noqa: E402
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


@pytest.mark.slow
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


def without_study(ds, k):
    del ds.StudyInstanceUID


@pytest.mark.slow
def test_labels_stay_where_no_seg_can_be_written(tiny_bundle, tmp_path):
    series(tmp_path / "ct", edit=without_study)
    assert predict(tmp_path / "ct", to=tmp_path / "out", bundle=tiny_bundle) == 0
    (found,) = records(tmp_path / "out").values()
    assert (found["status"], [one["kind"] for one in found["suspicious"]]) == ("done", ["foreground"])
    (warning,) = [one for one in found["warnings"] if "foreground" not in one]
    assert warning.startswith("labels are written as NIfTI only, not as DICOM SEG: ct, series-003: no DICOM")
    assert "StudyInstanceUID" in warning
    assert (tmp_path / "out" / "ct_seg.nii.gz").is_file()
    assert not (tmp_path / "out" / "ct_seg.dcm").exists()
    assert "ct_seg.dcm" not in found["outputs"]


@pytest.mark.slow
def test_no_seg(run, tiny_bundle, tmp_path):
    assert predict(run[0] / "axial", to=tmp_path, bundle=tiny_bundle, options=["--no-seg"]) == 0
    assert (tmp_path / "axial_seg.nii.gz").is_file()
    assert not list(tmp_path.glob("*.dcm"))


def test_check_tells_of_every_series(run, capsys):
    scans, _, _ = run
    assert cli.main(["check", str(scans / "both"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["series"], one["verdict"], one["shape"][2]) for one in found] == [
        ("series-003", "good", SLICES),
        ("series-007", "good", SLICES),
    ]


def test_a_series_in_two_folders_is_one_case_and_a_copy_is_passed_over(run, tmp_path):
    scans, _, _ = run
    for name in ("a", "b", "copy"):
        (tmp_path / name).mkdir()
    for k, path in enumerate(sorted((scans / "axial").iterdir())):
        shutil.copy(path, tmp_path / ("a" if k % 2 else "b"))
    shutil.copy(path, tmp_path / "copy")
    plan = plan_cases([tmp_path], tmp_path / "out")
    (case,) = plan.cases
    assert case.name == "a"
    volume = read_series(case.series)
    assert volume.warnings == ("its files lie in several folders",)
    assert np.array_equal(volume.voxels, read_series(find_series(scans / "axial")[0]).voxels)
    assert [
        (file.path, "a copy of the series in" in file.reason or "1 slice" in file.reason) for file in plan.passed_over
    ]


def test_a_study_without_a_volume_says_why(tmp_path):
    series(tmp_path / "study", count=1)
    with pytest.raises(
        UsageError, match=r"no case in the inputs; 1 file passed over .*1 slice; a volume needs two or more"
    ):
        plan_cases([tmp_path / "study"], tmp_path / "out")


def test_check_reads_series(run, capsys):
    scans, _, _ = run
    assert cli.main(["check", str(scans / "axial"), str(scans / "hole"), "--json"]) == 1
    good, hole = json.loads(capsys.readouterr().out)
    assert (good["verdict"], hole["verdict"]) == ("good", "refused")


def test_units_suv_is_for_pet_alone(tiny_bundle, tmp_path):
    """A PET without a dose and a NIfTI file fail by name; their voxels would be taken for SUV."""
    series(tmp_path / "in" / "pet", sop_class=PET)
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32), np.eye(4)),
        tmp_path / "in" / "n.nii.gz",
    )
    assert predict(tmp_path / "in", to=tmp_path / "out", bundle=tiny_bundle, options=["--units", "suv"]) == 1
    found = records(tmp_path / "out")
    assert "SUV cannot be computed from its headers" in found["pet"]["error"]
    assert "units=suv needs a DICOM PET" in found["n"]["error"]
