"""`vit3d check`: the verdicts on files."""

import json

import numpy as np
import pytest

from monai_vit3d.cli import main
from monai_vit3d.data.errors import UsageError
from monai_vit3d.pipeline.check import check_files
from tests.clinical import write_clinical_folder

VERDICTS = {"same": "good", "warned": "odd", "refused": "refused"}


@pytest.fixture(scope="module")
def specimens(tmp_path_factory):
    return write_clinical_folder(tmp_path_factory.mktemp("clinical") / "folder")


@pytest.mark.slow
def test_verdicts_are_those_of_the_specimens(specimens):
    # of one thing no command gets hold by its name: a folder is searched for files
    told = [one for one in specimens if one.name != "folder"]
    for specimen in told:
        found = check_files([specimen.path]) if specimen.path.exists() else check_files([specimen.path.parent])
        by_file = {one["file"]: one for one in found}
        one = by_file[str(specimen.path)]
        assert one["verdict"] == VERDICTS[specimen.verdict], specimen.name
        assert specimen.word in one["text"], specimen.name
        assert one["text"].startswith(str(specimen.path)), specimen.name
        if specimen.verdict == "refused":
            assert one["error"] == one["text"]
            continue
        assert tuple(one["shape"]) == specimen.shape
        spacing = np.linalg.norm(specimen.affine_mm[:3, :3], axis=0)
        np.testing.assert_allclose(one["spacing_mm"], spacing, atol=1e-3)
        assert bool(one["warnings"]) == (specimen.verdict == "warned")


def test_orientation_letters(specimens):
    turned = {one.name.removeprefix("axes "): one for one in specimens if one.name.startswith("axes ")}
    assert len(turned) == 48
    for letters, specimen in list(turned.items())[::5]:
        assert check_files([specimen.path])[0]["orientation"] == letters


def test_the_command_says_it_for_people_and_for_programs(specimens, capsys):
    by_verdict = {specimen.verdict: str(specimen.path) for specimen in specimens if specimen.path.is_file()}
    good, odd, refused = (by_verdict[verdict] for verdict in ("same", "warned", "refused"))
    assert main(["check", good, odd]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["good", f"{good}:"],
        ["odd", f"{odd}:"],
    ]
    assert main(["check", good, refused]) == 1
    assert capsys.readouterr().out.splitlines()[1].startswith(f"refused  {refused}: ")
    assert main(["check", "--json", good, odd, refused]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(one["file"], one["verdict"]) for one in found] == [(good, "good"), (odd, "odd"), (refused, "refused")]
    assert found == check_files([good, odd, refused])


def test_a_whole_folder_is_read(specimens):
    found = check_files([specimens[0].path.parent])
    assert {one["file"] for one in found} == {str(one.path) for one in specimens}
    assert {one["verdict"] for one in found} == {*VERDICTS.values(), "passed over"}
    (folder,) = (one for one in found if one["verdict"] == "passed over")
    assert folder["file"].endswith("/folder.nii.gz")
    assert folder["text"] == f"{folder['file']}: a folder with an image's name and nothing in it"


def test_nothing_to_check(tmp_path, capsys):
    with pytest.raises(UsageError, match="no such file"):
        check_files([tmp_path / "gone.nii"])
    assert main(["check", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_volume_of_4d_and_a_limit(tmp_path):
    import nibabel as nib

    path = tmp_path / "bold.nii.gz"
    nib.Nifti1Image(np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype(np.float32), np.eye(4)).to_filename(path)
    assert check_files([path])[0]["verdict"] == "refused"
    assert check_files([path], volume=2)[0]["shape"] == [4, 5, 6]
    assert check_files([path], volume=3)[0]["verdict"] == "refused"
    assert check_files([path], volume=0, max_voxels=100)[0]["verdict"] == "refused"
    assert main(["check", str(path)]) == 1
    assert main(["check", str(path), "--volume", "1"]) == 0
