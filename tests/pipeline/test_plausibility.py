"""Cases unlike a bundle's training are refused or warned of, and so are labels that cannot be true."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d import cli
from monai_vit3d.bundle.metadata import Metadata
from monai_vit3d.bundle.trained_on import TrainedOn, read_trained_on
from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.volume import Grid, Volume
from monai_vit3d.pipeline.check import check_files
from monai_vit3d.pipeline.measure_training import measure_training
from monai_vit3d.pipeline.plausibility import PLAUSIBILITY_ROWS, check_geometry, check_predicted_labels, compare, refuse
from monai_vit3d.pipeline.stats import label_stats
from tests.clinical import AFFINE, SHAPE
from tests.pipeline.tiny import METADATA, predict, records, write_bundle

CROPS = {
    "cases": 150,
    "field_of_view_mm": {"left-right": [31, 43], "back-front": [40, 58], "bottom-top": [26, 47]},
    "spacing_mm": {"left-right": [1, 1], "back-front": [1, 1], "bottom-top": [1, 1]},
    "labels": {"1": {"present": [1, 1], "volume_ml": [1, 2.5], "border_voxels": [0, 0], "pieces": [1, 1]}},
    "entropy": [0.3, 0.4],
}
HIPPOCAMPUS = Metadata("crops", "1", {"trained_on": CROPS})
NOTHING = Metadata("unknown", "1")


def geometry(shape, spacing=(1, 1, 1), metadata=HIPPOCAMPUS):
    return check_geometry(Grid(shape, np.diag([*map(float, spacing), 1.0])), metadata)


@pytest.mark.parametrize(
    ("shape", "kinds", "far"),
    [
        ((35, 50, 36), [], False),
        ((36, 52, 36), [], False),  # the boxes of head_hippocampus
        ((40, 60, 44), [], False),  # those of `cut_hippocampi`
        ((48, 64, 48), [], False),
        ((100, 120, 100), ["field of view"], False),
        ((52, 75, 54), ["field of view"], False),  # half as much again
        ((20, 30, 20), ["field of view"], False),
        ((197, 233, 189), ["field of view"], True),
        ((35, 233, 36), ["field of view"], True),
        ((10, 50, 36), ["field of view"], True),
    ],
)
def test_field_of_view(shape, kinds, far):
    findings = geometry(shape)
    assert [finding.kind for finding in findings] == kinds
    assert any(finding.far for finding in findings) == far
    assert geometry(shape, metadata=NOTHING) == []


@pytest.mark.parametrize(
    ("mm", "suspicious", "far"),
    [(1, False, False), (1.2, False, False), (1.5, True, False), (3, True, True), (0.3, True, False)],
)
def test_coarse_voxels_are_refused_and_fine_ones_never(mm, suspicious, far):
    findings = [f for f in geometry((35, 50, round(36 / mm)), (1, 1, mm)) if f.kind == "spacing"]
    assert [finding.far for finding in findings] == [far] * suspicious


def test_a_refusal_names_the_file_the_ranges_and_what_to_do():
    with pytest.raises(ImageError, match=r"head\.nii.*left-right 197 mm \(in training 31 to 43\).*crops.*anyway=True"):
        refuse("head.nii", geometry((197, 233, 189)), HIPPOCAMPUS)
    refuse("crop.nii", geometry((100, 120, 100)), HIPPOCAMPUS)


def test_orientation_matters_to_a_bundle_that_does_not_turn_its_input():
    metadata = Metadata("b", "1", {"trained_on": {"cases": 2, "orientation": ["LPS", "RAS"]}})
    assert geometry((9, 9, 9), metadata=metadata) == []
    (finding,) = geometry((9, 9, 9), (-1, 1, 1), metadata)
    assert (finding.kind, finding.far) == ("orientation", False)
    assert "LAS" in finding.text
    assert "LPS, RAS" in finding.text


@given(st.floats(0.01, 100), st.floats(1, 3), st.floats(0.001, 1000))
def test_a_volume_is_suspicious_a_quarter_outside_the_range(low, ratio, value):
    trained_on = read_trained_on({"labels": {"4": {"volume_ml": [low, low * ratio]}}})
    findings = compare({"labels": {"4": {"volume_ml": value}}}, trained_on, {"4": "liver"})
    assert bool(findings) == (not low / 1.25 <= value <= low * ratio * 1.25)
    assert all(finding.kind == "volume" and "liver" in finding.text for finding in findings)


def labelled(boxes, shape=(40, 50, 40), voxels=None, metadata=HIPPOCAMPUS, entropy=0.35):
    """Kinds of findings over a bright cube in noise with boxes of label 1, 15 voxels a side unless said."""
    if voxels is None:
        voxels = np.random.default_rng(0).normal(10, 3, shape).astype(np.float32)
        voxels[8:32, 8:42, 8:32] += 100
    labels = np.zeros(shape, np.uint8)
    for box in boxes:
        labels[tuple(slice(start, start + 11) for start in box)] = 1
    volume = Volume("a.nii", voxels, Grid(shape, np.eye(4)))
    stats = label_stats(labels, voxels, volume.grid, {1: "front"})
    return {finding.kind: finding.text for finding in check_predicted_labels(labels, volume, stats, entropy, metadata)}


def test_labels_like_the_trainings():
    assert labelled([(10, 10, 10)]) == {}


def test_labels_unlike_the_trainings():
    assert set(labelled([])) == {"missing"}
    assert "150 training cases" in labelled([])["missing"]
    assert set(labelled([(0, 10, 10)])) == {"border"}
    assert "front reaches" in labelled([(0, 10, 10)])["border"]
    assert set(labelled([(10, 10, 10), (10, 30, 10)])) == {"pieces"}
    assert set(labelled([(10, 10, 10), (10, 20, 10), (10, 30, 10)])) == {"volume"}
    assert set(labelled([(10, 10, 10)], entropy=1.2)) == {"entropy"}
    assert labelled([(10, 10, 10)], entropy=None) == {}


@pytest.mark.parametrize("metadata", [HIPPOCAMPUS, NOTHING])
def test_labels_in_air_and_over_all_of_the_image_are_suspicious_for_every_bundle(metadata):
    voxels = np.zeros((40, 50, 40), np.float32)
    voxels[20:] = np.random.default_rng(1).normal(100, 9, (20, 50, 40))
    assert labelled([(5, 10, 10)], voxels=voxels, metadata=metadata).keys() == {"constant voxels"}
    assert labelled([(12, 10, 10)], voxels=voxels, metadata=metadata).keys() == {"constant voxels"}  # most of it
    assert labelled([(16, 10, 10)], voxels=voxels, metadata=metadata) == {}  # less than half
    assert (
        "100%"
        in labelled([(5, 10, 10)], voxels=np.full((40, 50, 40), 7, np.float32), metadata=metadata)["constant voxels"]
    )
    small = np.random.default_rng(2).normal(10, 1, (40, 50, 40)).astype(np.float32)
    small[11:20, 11:20, 11:20] += 50
    assert "foreground" in labelled([(10, 10, 10)], voxels=small, metadata=metadata)


def test_what_training_did_is_no_reason_for_doubt():
    masks_of_lumen = {"labels": {"1": {"share_of_one_value": [0.7, 1.0]}}, "share_of_foreground": [0.6, 0.97]}
    metadata = Metadata("b", "1", {"trained_on": masks_of_lumen})
    voxels = np.zeros((40, 50, 40), np.float32)
    voxels[20:] = np.random.default_rng(1).normal(100, 9, (20, 50, 40))
    assert labelled([(5, 10, 10)], voxels=voxels, metadata=metadata) == {}


def test_each_row_is_one_kind():
    assert len({row.kind for row in PLAUSIBILITY_ROWS}) == len(PLAUSIBILITY_ROWS)


# whole runs: the tiny bundle labels by brightness, and is measured on six phantoms with its own labels


@pytest.fixture(scope="module")
def measured_bundle(tmp_path_factory, cohort, clean_run, tiny_bundle):
    root = write_bundle(tmp_path_factory.mktemp("measured") / "tiny")
    images = sorted(cohort.rglob("*.nii.gz"))
    labels = [clean_run / path.relative_to(cohort).with_name(path.name.replace(".nii", "_seg.nii")) for path in images]
    cases = [{"image": str(image), "label": str(label)} for image, label in zip(images, labels)]
    trained_on = measure_training(cases, tiny_bundle, device="cpu", safe=True)
    (root / "configs" / "metadata.json").write_text(json.dumps(METADATA | {"trained_on": trained_on}))
    return root


def image(cohort, path, change=lambda voxels: voxels, scale=1.0):
    original = nib.load(min(cohort.rglob("*.nii.gz")))
    affine = original.affine @ np.diag([scale, scale, scale, 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    changed = nib.Nifti1Image(change(original.get_fdata()).astype(np.float32), affine)
    changed.header.set_xyzt_units("mm")
    changed.to_filename(path)
    return path


def kinds(record):
    return {one["kind"] for one in record["suspicious"]}


@pytest.mark.slow
def test_training_cases_go_through_without_a_word(measured_bundle, cohort, tmp_path):
    content = json.loads((measured_bundle / "configs" / "metadata.json").read_text())["trained_on"]
    assert content["cases"] == 6
    extent = [n * mm for n, mm in zip(SHAPE, np.diag(AFFINE))]
    assert content["field_of_view_mm"]["left-right"] == [extent[0]] * 2
    assert content["field_of_view_mm"]["bottom-top"] == [extent[2]] * 2
    assert "orientation" not in content  # the bundle turns its input to RAS
    assert predict(cohort, to=tmp_path / "out", bundle=measured_bundle, options=["--strict"]) == 0
    assert all(not one["suspicious"] and one["status"] == "done" for one in records(tmp_path / "out").values())


@pytest.mark.slow
def test_far_unlike_and_impossible(measured_bundle, cohort, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    image(cohort, folder / "b_far.nii.gz", scale=3)
    image(cohort, folder / "c_large.nii.gz", scale=1.6)
    image(cohort, folder / "d_flat.nii.gz", lambda voxels: np.full_like(voxels, 3))
    image(cohort, folder / "a_same.nii.gz")
    assert predict(folder, to=out, bundle=measured_bundle) == 1
    said = capsys.readouterr()
    found = records(out)
    assert {name: one["status"] for name, one in found.items()} == {
        "a_same": "done",
        "b_far": "failed",
        "c_large": "done",
        "d_flat": "done",
    }
    assert "b_far.nii.gz: field of view" in found["b_far"]["error"]
    assert "anyway=True" in found["b_far"]["error"]
    assert not (out / "b_far_seg.nii.gz").exists()
    assert found["a_same"]["suspicious"] == []
    assert {"field of view", "spacing", "volume"} <= kinds(found["c_large"])
    assert "intensities" in kinds(found["d_flat"])
    for name in ("c_large", "d_flat"):
        assert [one["text"] for one in found[name]["suspicious"]] == found[name]["warnings"][-len(kinds(found[name])) :]
        assert f"warning: {name}: {found[name]['suspicious'][0]['text']}" in said.err
    assert "3 done (2 to look at: labels may be wrong), 0 skipped, 1 failed" in said.out
    page = (out / "report.html").read_text()
    places = [page.index(f"<h3><bdi>{name}</bdi>") for name in ("c_large", "d_flat", "a_same")]
    assert page.index("b_far.nii.gz") < min(places)
    assert places == sorted(places)
    assert page.count('class="card result suspicious') == 2


@pytest.mark.slow
def test_anyway(measured_bundle, cohort, tmp_path):
    path = image(cohort, tmp_path / "far.nii.gz", scale=3)
    assert predict(path, to=tmp_path / "out", bundle=measured_bundle, options=["--anyway"]) == 0
    assert "field of view" in kinds(records(tmp_path / "out")["far"])
    assert (tmp_path / "out" / "far_seg.nii.gz").is_file()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["anyway"] is True


@pytest.mark.slow
def test_strict_writes_nothing_of_a_suspicious_case_and_resume_believes_none(measured_bundle, cohort, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    image(cohort, folder / "good.nii.gz")
    # labels that the network finds plausible, in numbers that it does not: what looks right before the work
    image(cohort, folder / "most.nii.gz", lambda voxels: np.where(voxels > 30, voxels, voxels[voxels > 30].mean()))
    assert predict(folder, to=out, bundle=measured_bundle) == 0
    first = records(out)
    assert first["most"]["suspicious"]
    assert predict(folder, to=out, bundle=measured_bundle, options=["--resume"]) == 0
    assert {one["status"] for one in records(out).values()} == {"skipped"}
    assert predict(folder, to=out, bundle=measured_bundle, options=["--resume", "--strict"]) == 1
    again = records(out)
    assert (again["good"]["status"], again["most"]["status"]) == ("skipped", "failed")
    assert "an output of an earlier run is still there" in again["most"]["warnings"][-1]
    fresh = tmp_path / "fresh"
    assert predict(folder, to=fresh, bundle=measured_bundle, options=["--strict"]) == 1
    assert "strict=True" in records(fresh)["most"]["error"]
    assert not list(fresh.rglob("*most*"))
    assert (fresh / "good_seg.nii.gz").is_file()


@pytest.mark.slow
def test_labels_do_not_depend_on_it(measured_bundle, tiny_bundle, cohort, clean_run, tmp_path):
    assert predict(cohort, to=tmp_path / "out", bundle=measured_bundle) == 0
    for path in clean_run.rglob("*_seg.nii.gz"):
        assert (tmp_path / "out" / path.relative_to(clean_run)).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_check_says_the_same(measured_bundle, cohort, tmp_path, capsys):
    far = image(cohort, tmp_path / "far.nii.gz", scale=3)
    large = image(cohort, tmp_path / "large.nii.gz", scale=1.6)
    same = image(cohort, tmp_path / "same.nii.gz")
    words = [str(far), str(large), str(same)]
    assert cli.main(["check", *words]) == 0
    assert cli.main(["check", *words, "--bundle", str(measured_bundle), "--safe"]) == 1
    assert cli.main(["check", *words, "--bundle", str(measured_bundle), "--safe", "--anyway"]) == 0
    found = {one["file"]: one for one in check_files([far, large, same], bundle=measured_bundle, safe=True)}
    assert [found[word]["verdict"] for word in words] == ["refused", "odd", "good"]
    predict(tmp_path, to=tmp_path / "out", bundle=measured_bundle)
    run = records(tmp_path / "out")
    assert found[str(far)]["error"] == run["far"]["error"]
    assert set(found[str(large)]["warnings"]) <= set(run["large"]["warnings"])
    assert any("field of view" in warning for warning in found[str(large)]["warnings"])


def test_check_needs_no_weights(measured_bundle, cohort, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(measured_bundle, bundle)
    shutil.rmtree(bundle / "models")
    large = image(cohort, tmp_path / "large.nii.gz", scale=1.6)
    assert check_files([large], bundle=bundle) == check_files([large], bundle=measured_bundle)


@pytest.mark.slow
def test_check_obeys_what_is_chosen_of_the_config(measured_bundle, cohort, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    shutil.copytree(measured_bundle, bundle)
    (bundle / "configs" / "dark.yaml").write_text("preprocessing#transforms#3#maxv: 0.2\n")
    same = image(cohort, tmp_path / "same.nii.gz")
    for flags in (["--config", "inference", "dark"], ["--set", "preprocessing::transforms::3::maxv=0.2"]):
        assert cli.main(["check", str(same), "--bundle", str(bundle), "--safe", *flags]) == 0
        assert "brightness of the input" in capsys.readouterr().out
    assert cli.main(["check", str(same), "--bundle", str(bundle), "--config", "gone"]) == 2
    assert "Expected one of dark, inference" in capsys.readouterr().err
    assert check_files([same], bundle=bundle)[0]["verdict"] == "good"


@pytest.mark.slow
def test_a_bundle_without_the_key_compares_nothing(tiny_bundle, cohort, tmp_path):
    path = image(cohort, tmp_path / "far.nii.gz", scale=3)
    assert predict(path, to=tmp_path / "out", bundle=tiny_bundle) == 0
    assert kinds(records(tmp_path / "out")["far"]) <= {"foreground", "constant voxels"}
    assert Metadata("x", "1").trained_on == TrainedOn()
