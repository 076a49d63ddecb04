"""`vit3d evaluate`: what is printed and written, and one line for each mistake."""

import numpy as np
import pytest

from monai_vit3d.cli import main
from tests.evaluation.folders import AFFINE, organ, write_folders, write_map


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("folders"), shifts=(0, 1, 2))


def run(*words):
    return main(["evaluate", *map(str, words)])


@pytest.mark.slow
def test_table_by_class_and_the_page(folders, capsys):
    of = ["--pred", folders / "pred", "--labels", folders / "labels", "-o", folders / "out"]
    assert run(*of, "--classes", "liver,tumour", "--nsd-mm", 1, "--images", folders / "images") == 0
    header, overall, liver, tumour, last = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "class"
    assert "NSD 1 mm" in header
    assert overall.startswith("all classes  3      0.")
    assert liver.startswith("liver        3      0.840 [0.681, 1.000]  ")
    assert tumour.startswith("tumour       3      0.")
    assert last == f"3 scored, 0 failed: {folders / 'out' / 'report.html'}"
    assert {path.name for path in (folders / "out").iterdir()} == {
        "cases.csv", "classes.csv", "summary.json", "report.html",
    }  # fmt: skip


@pytest.mark.slow
def test_numbered_classes_and_a_comparison(folders, tmp_path, capsys):
    for i in range(2):
        write_map(organ(3), tmp_path / "other" / f"case_{i}.nii.gz")
    of = ["--pred", folders / "pred", "--labels", folders / "labels", "-o", tmp_path / "out"]
    assert run(*of, "--classes", "2=tumour, 1=liver", "--against", tmp_path / "other") == 0
    out = capsys.readouterr().out
    assert f"minus {tmp_path / 'other'}:" in out
    assert "tumour       Dice         +" in out


def test_a_case_that_fails_is_named_and_the_exit_code_says_so(tmp_path, capsys):
    write_folders(tmp_path, shifts=(0, 1))
    write_map(organ()[:-1], tmp_path / "labels" / "case_0.nii.gz")
    write_map(organ(), tmp_path / "labels" / "case_9.nii.gz")
    assert run("--pred", tmp_path / "pred", "--labels", tmp_path / "labels", "-o", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith("1 scored, 1 failed: ")
    first, second = captured.err.splitlines()
    assert first.startswith(f"vit3d: case_0 failed: {tmp_path / 'labels' / 'case_0.nii.gz'}: labels of shape")
    assert second == "vit3d: labels without a prediction (1): case_9"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a BUNDLE, or --pred DIR, --labels DIR and -o OUT."),
        (["--pred", "{0}/pred"], "expected a BUNDLE, or --pred DIR, --labels DIR and -o OUT."),
        (["{0}", "--pred", "{0}/pred", "--labels", "{0}/labels", "-o", "{0}/out"], "expected a BUNDLE, or --pred"),
        (["--pred", "{0}/none", "--labels", "{0}/labels", "-o", "{0}/out"], "/none: no such folder."),
        (["--pred", "{0}/pred", "--labels", "{0}/strangers", "-o", "{0}/out"], "no common names; case_0, case_1"),
        (
            ["--pred", "{0}/pred", "--labels", "{0}/labels", "-o", "{0}/out", "--nsd-mm", "0"],
            "--nsd-mm 0.0; expected a length",
        ),
        (["--pred", "{0}/pred", "--labels", "{0}/labels", "-o", "{0}/out", "--against", "{0}/strangers"], "--against "),
        (["{0}"], "no training is finished"),
    ],
)
def test_mistakes_end_in_one_line(folders, words, message, capsys):
    write_map(np.ones((3, 3, 3), np.uint8), folders / "strangers" / "x.nii.gz", AFFINE)
    assert run(*(word.format(folders) for word in words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vit3d: ")
    assert message in line


def test_words_that_are_no_numbers(folders, capsys):
    for words in (["--folds", "a"], ["--classes", "x=liver"], ["--nsd-mm", "wide"]):
        with pytest.raises(SystemExit) as ended:
            run(folders, *words)
        assert ended.value.code == 2
        assert f"{words[0]}: '{words[1]}' came; expected {words[0]} " in capsys.readouterr().err
