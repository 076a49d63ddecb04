"""What was passed over: on the terminal, in run.json and in the report, counted by reason."""

import json
import re

import pytest

from monai_vit3d.cli import main
from monai_vit3d.data.passed_over import PassedOver
from monai_vit3d.pipeline.passed_over_summary import describe_passed_over, recorded
from monai_vit3d.pipeline.report.page import write_report
from tests.pipeline.tiny import arguments, predict, write_images


@pytest.fixture
def data_set(tmp_path):
    """Two scans, labels of both, a file of macOS, a note, and a scan in a format that is not read."""
    root = tmp_path / "Task"
    for path in write_images(root / "imagesTr", 2):
        label = root / "labelsTr" / path.name
        label.parent.mkdir(exist_ok=True)
        label.write_bytes(path.read_bytes())
    (root / "imagesTr/._case00.nii.gz").write_bytes(b"Mac OS X")
    (root / "dataset.json").write_text("{}")
    (root / "old.mnc").touch()
    return root


EXPECTED = {
    "labels, masks or maps by name or folder (include_labels=True takes them as images)": [
        "labelsTr/case00.nii.gz",
        "labelsTr/case01.nii.gz",
    ],
    "MINC, which mnc2nii converts": ["old.mnc"],
    "hidden": ["imagesTr/._case00.nii.gz"],
    "no image by name": ["dataset.json"],
}


@pytest.mark.slow
def test_a_run_names_what_it_passes_over(tmp_path, data_set, tiny_bundle, capsys):
    out = tmp_path / "out"
    assert predict(data_set, to=out, bundle=tiny_bundle) == 0
    told = capsys.readouterr().err
    lines = told.splitlines()
    first = lines.index(f"vit3d: 5 files passed over in {data_set}:")
    reasons = [f"  {len(names)} {reason}: {', '.join(names)}" for reason, names in EXPECTED.items()]
    reasons = [line.replace("include_labels=True", "--include-labels") for line in reasons]  # the command's words
    assert lines[first + 1 : first + 5] == reasons
    content = json.loads((out / "run.json").read_text())
    assert content["counts"] == {"done": 2}
    groups = {group["reason"]: group["files"] for group in content["passed_over"]}
    assert groups == {reason: [f"{data_set}/{name}" for name in names] for reason, names in EXPECTED.items()}
    page = (out / "report.html").read_text()
    assert "5 passed over" in page
    for reason, names in EXPECTED.items():
        assert f"{len(names)} {reason}" in page
        assert all(f"{data_set}/{name}" in page for name in names)


@pytest.mark.slow
def test_include_labels_runs_them(tmp_path, data_set, tiny_bundle):
    out = tmp_path / "out"
    assert predict(data_set, to=out, bundle=tiny_bundle, options=["--include-labels"]) == 0
    assert json.loads((out / "run.json").read_text())["counts"] == {"done": 4}


def test_a_dry_run_and_check_say_it_too(tmp_path, data_set, tiny_bundle, capsys):
    assert main(arguments(data_set, to=tmp_path / "out", bundle=tiny_bundle, options=["--dry-run"])) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "2 cases"
    assert captured.err.startswith(f"vit3d: 5 files passed over in {data_set}:\n")
    assert main(["check", str(data_set)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["good"] * 2 + ["passed over"] * 5
    assert f"passed over  {data_set}/old.mnc: MINC, which mnc2nii converts" in lines
    assert main(["check", str(data_set / "imagesTr/case00.nii.gz"), "--json"]) == 0
    assert [one["verdict"] for one in json.loads(capsys.readouterr().out)] == ["good"]


@pytest.mark.slow
def test_only_the_first_shard_tells(tmp_path, data_set, tiny_bundle, capsys):
    for shard, count in (("1/2", 1), ("2/2", 0)):
        assert predict(data_set, to=tmp_path / "out", bundle=tiny_bundle, options=["--shard", shard]) == 0
        assert capsys.readouterr().err.count("passed over") == count
    assert len(json.loads((tmp_path / "out/run.json").read_text())["passed_over"]) == 4


@pytest.mark.slow
def test_scans_of_several_suffixes(tmp_path, tiny_bundle, capsys):
    root = tmp_path / "bids"
    scans = write_images(root / "sub-1/anat", 2)
    for path, suffix in zip(scans, ("T1w", "FLAIR")):
        path.rename(path.with_name(f"sub-1_{suffix}.nii.gz"))
    (root / "dataset_description.json").write_text("{}")
    warning = "1 BIDS subject or session has scans of several suffixes (FLAIR, T1w)"
    assert predict(root, to=tmp_path / "all", bundle=tiny_bundle) == 0
    assert f"  warning: {warning}" in capsys.readouterr().err
    content = json.loads((tmp_path / "all/run.json").read_text())
    assert content["warnings"][0].startswith(warning)
    assert warning in (tmp_path / "all/report.html").read_text()
    assert predict(root, to=tmp_path / "one", bundle=tiny_bundle, options=["--suffix", "T1w"]) == 0
    content = json.loads((tmp_path / "one/run.json").read_text())
    assert [one["name"] for one in content["files"]] == ["sub-1/anat/sub-1_T1w"]
    assert content["warnings"] == []


def test_thousands_are_counted_and_a_few_are_named(tmp_path):
    files = [PassedOver(tmp_path / f"{i:04}.txt", "no image by name") for i in range(3000)]
    head, line = describe_passed_over(files)
    assert head == f"3000 files passed over in {tmp_path}:"
    assert line == "3000 no image by name: 0000.txt, 0001.txt, 0002.txt, 0003.txt, 0004.txt and 2995 more"
    assert describe_passed_over([]) == []
    assert describe_passed_over([PassedOver(tmp_path, "hidden")])[0] == f"1 folder passed over in {tmp_path.parent}:"
    assert describe_passed_over(files[:1])[0] == f"1 file passed over in {tmp_path}:"
    write_report([], {"passed_over": recorded(files)}, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "3000 passed over" in page
    assert len(re.findall(r"\d{4}\.txt", page)) == 50
    assert "and 2950 more in run.json" in page


def test_the_last_reason_counts_and_odd_names_are_printable(tmp_path):
    files = [
        PassedOver(tmp_path / "a\n\x1b[2J.txt", "no image by name"),
        PassedOver(tmp_path / "a\n\x1b[2J.txt", "other"),
    ]
    assert describe_passed_over(files)[1] == r"1 other: a\n\x1b[2J.txt"
    assert recorded(files) == [{"reason": "other", "count": 1, "files": [f"{tmp_path}/a\n\x1b[2J.txt"]}]
