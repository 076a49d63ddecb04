"""What a user may give: files, folders, BIDS data sets, DICOM folders, lists; and what is said of everything else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.printable import printable
from monai_vit3d.pipeline import inputs, search
from monai_vit3d.pipeline.case import Case
from monai_vit3d.pipeline.search import kind_by_name


def find_images(*args, **options):
    """The cases alone."""
    return [*inputs.find_images(*args, **options).cases]


DICOM = bytes(128) + b"DICM" + bytes(8)


@pytest.fixture
def tree(tmp_path):
    """Maker of files below tmp_path/data, DICOM files where the name says so; returns that folder."""
    root = tmp_path / "data"
    root.mkdir()

    def make(*names):
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(DICOM if path.suffix in (".dcm", ".IMA") else b"")
        return root

    return make


def relatives(found):
    return [str(one.relative) for one in found]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


# files


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII", "a.b.Nii.Gz", "é ü.nii", ".hidden.nii"])
def test_a_file_is_itself(tree, out, name):
    path = tree(f"sub/{name}") / "sub" / name
    assert find_images([path], out) == [Case((path,), PurePosixPath(name))]
    assert find_images([str(path)], str(out)) == [Case((path,), PurePosixPath(name))]


def test_relative_paths_become_absolute(tree, out, monkeypatch):
    root = tree("a/x.nii", "b/y.nii")
    monkeypatch.chdir(root / "a")
    assert find_images(["x.nii", "../b/y.nii"], out) == [
        Case((root / "a/x.nii",), PurePosixPath("a/x.nii")),
        Case((root / "b/y.nii",), PurePosixPath("b/y.nii")),
    ]
    assert relatives(find_images(["."], out)) == ["x.nii"]


def test_dots_behind_a_link_are_the_systems(tree, out):
    root = tree("x.nii", "far/x.nii", "far/inner/y.nii")
    (root / "link").symlink_to(root / "far/inner")
    (found,) = find_images([root / "link/../x.nii"], out)
    assert found.images == (root / "far/x.nii",)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a/x.nii.gz", "b/x.nii.gz"], ["a/x.nii.gz", "b/x.nii.gz"]),
        (["b/x.nii.gz", "a/x.nii.gz"], ["b/x.nii.gz", "a/x.nii.gz"]),
        (["a/x.nii.gz", "a/y.nii"], ["x.nii.gz", "y.nii"]),
        (["a", "b"], ["a/x.nii.gz", "a/y.nii", "b/x.nii.gz"]),
        (["a", "a/y.nii"], ["x.nii.gz", "y.nii"]),
        (["a/y.nii", "a", "a/y.nii"], ["y.nii", "x.nii.gz"]),
        (["b"], ["x.nii.gz"]),
        (["b/../a/y.nii", "a/y.nii"], ["y.nii"]),
    ],
)
def test_names_start_from_the_folder_that_all_inputs_share(tree, out, names, expected):
    root = tree("a/x.nii.gz", "a/y.nii", "b/x.nii.gz")
    assert relatives(find_images([root / name for name in names], out)) == expected


def test_missing_inputs_are_named_together(tree, out):
    root = tree("a.nii")
    with pytest.raises(UsageError, match=r"/1.nii, \S+/2.nii: no such file or folder.*\.csv"):
        find_images([root / "1.nii", root / "a.nii", root / "2.nii"], out)
    with pytest.raises(UsageError, match=r"/4.nii and 3 more: no such"):
        find_images([root / f"{i}.nii" for i in range(8)], out)
    with pytest.raises(UsageError, match="no input"):
        find_images([], out)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mnc", "MINC, which mnc2nii converts"),
        ("A.HEAD", "AFNI's format, which AFNI's 3dAFNItoNIfTI converts"),
        ("a.nii.bz2", "NIfTI compressed by bzip2, which bunzip2 converts"),
        ("nii", "a file of another kind"),
        ("a.txt", "a file of another kind"),
    ],
)
def test_other_files(tree, out, name, kind):
    with pytest.raises(UsageError, match=rf"/{re.escape(name)}: {kind}; expected a .nii or .nii.gz file .*, a folder"):
        find_images([tree(name) / name], out)


# folders


def test_a_folder_to_the_bottom(tree, out):
    root = tree(
        "b.nii.gz",
        "a/z.NII",
        "a/b/c/d.nii",
        "notes.txt",
        "x.json",
        ".git/e.nii",
        "._a.nii",
        "a/.t/f.nii",
        "x.nii/y.nii",
    )
    assert relatives(find_images([root], out)) == ["a/b/c/d.nii", "a/z.NII", "b.nii.gz", "x.nii/y.nii"]


def test_output_inside_is_passed_over(tree, tmp_path):
    root = tree("a.nii", "out/a_seg.nii.gz", "out/deep/b_seg.nii.gz", "outer/c.nii")
    assert relatives(find_images([root], root / "out")) == ["a.nii", "outer/c.nii"]
    (tmp_path / "link").symlink_to(root / "out")
    assert relatives(find_images([root], tmp_path / "link")) == ["a.nii", "outer/c.nii"]
    with pytest.raises(UsageError, match="input and OUT are one folder"):
        find_images([root], root)


def test_links(tree, out, tmp_path):
    root = tree("a/x.nii", "top.nii")
    far = tmp_path / "far"
    far.mkdir()
    (far / "y.nii").touch()
    (root / "0_link_to_a").symlink_to(root / "a")  # sorts first, and yet the folder's own name counts
    (root / "linked").symlink_to(far)
    (root / "up").symlink_to(root)
    (root / "a/up").symlink_to("..")
    (root / "self").symlink_to("self")
    (root / "ping").symlink_to("pong")
    (root / "pong").symlink_to("ping")
    (root / "same.nii").symlink_to(root / "a/x.nii")
    (root / "z.nii").symlink_to(far / "gone.nii")
    assert relatives(find_images([root], out)) == ["a/x.nii", "linked/y.nii", "same.nii", "top.nii", "z.nii"]


@pytest.mark.parametrize("names", [["a.txt"], [".a.nii"], ["out/a.nii"], ["DICOMDIR"]])
def test_empty_folders(tree, names):
    root = tree(*names)
    (root / "DICOMDIR").write_bytes(DICOM)
    with pytest.raises(UsageError, match=r"/data: no .nii, .nii.gz or DICOM file in it or below.*with some"):
        find_images([root], root / "out")


def test_unreadable_folders_are_not_passed_over(tree, out, monkeypatch):
    root, real = tree("a.nii", "locked/b.nii"), os.listdir

    def listdir(folder):  # not by chmod: root may read everything
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(UsageError, match=r"/locked: cannot be read \(Permission denied\)"):
        find_images([root], out)


def test_names_that_are_no_text(tree, out):
    root = tree("a.nii")
    names = [b"caf\xe9.nii", b"line\nbreak.nii", "naïve.nii".encode()]
    try:
        for name in names:
            with open(os.path.join(os.fsencode(root), name), "wb"):
                pass
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    found = find_images([root], out)
    assert {os.fsencode(one.relative) for one in found} == {b"a.nii", *names}
    with pytest.raises(UsageError) as error:
        find_images([root / os.fsdecode(b"gone\xe9\n.nii")], out)
    assert r"gone\udce9\n.nii: no such" in str(error.value)
    str(error.value).encode()  # can be printed


def test_shown_leaves_what_can_be_printed():
    assert printable("a b/é漢字.nii") == "a b/é漢字.nii"
    assert printable("a\tb\x1b[2J\udcff") == r"a\tb\x1b[2J\udcff"


# BIDS


@pytest.fixture
def bids(tree):
    return tree(
        "dataset_description.json",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "sub-01/anat/sub-01_acq-x_FLAIR.nii",
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_dseg.nii.gz",
        "sub-01/anat/sub-01_label-GM_probseg.nii.gz",
        "sub-01/anat/sub-01_mod-T1w_defacemask.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-01/anat/extra/sub-01_T2w.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz",
        "sub-02/ses-1/ct/sub-02_ses-1_ct.nii.gz",
        "sub-02/ses-2/dwi/sub-02_ses-2_dwi.nii.gz",
        "derivatives/old/sub-01/anat/sub-01_T1w.nii.gz",
        "derivatives/prep/dataset_description.json",
        "derivatives/prep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "sourcedata/sub-01/anat/sub-01_T1w.nii.gz",
        "code/template.nii.gz",
    )


FIRST = ["sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_acq-x_FLAIR.nii"]
SECOND = ["sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz", "sub-02/ses-1/ct/sub-02_ses-1_ct.nii.gz"]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        (".", [*FIRST, *SECOND]),
        ("sub-01", FIRST),
        ("sub-02", SECOND),
        ("sub-02/ses-1", SECOND),
        ("sub-02/ses-1/ct", SECOND[1:]),
        ("derivatives/prep", ["sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"]),
    ],
)
def test_bids(bids, out, folder, expected):
    found = find_images([bids / folder], out)
    assert relatives(found) == expected
    assert all(one.bids and not one.dicom for one in found)


def test_several_bids_inputs_keep_the_layout(bids, out):
    assert relatives(find_images([bids / "sub-02", bids / "sub-01/anat"], out)) == [*SECOND, *FIRST]


def test_what_is_no_subject_is_a_folder(bids, out):
    for folder, name in [("derivatives/old", "sub-01/anat/sub-01_T1w.nii.gz"), ("code", "template.nii.gz")]:
        (found,) = find_images([bids / folder], out)
        assert (str(found.relative), found.bids) == (name, False)


def test_bids_without_scans(bids, out):
    for folder in ("sub-01/func", "sub-02/ses-2"):
        with pytest.raises(UsageError, match=rf"{folder}: no scan in sub-\*/anat or /ct"):
            find_images([bids / folder], out)


def test_annexed_scans_whose_content_is_not_here(tree, out):
    root = tree("dataset_description.json", "sub-01/anat/sub-01_T1w.json")
    (root / "sub-01/anat/sub-01_T1w.nii.gz").symlink_to("../../.git/annex/objects/x.nii.gz")
    assert relatives(find_images([root], out)) == ["sub-01/anat/sub-01_T1w.nii.gz"]


# DICOM


def test_folders_with_dicom_files(tree, out):
    root = tree(
        "p1/ct/1.dcm", "p1/ct/2.dcm", "p1/scout/1.IMA", "p2/deep/IM0001", "p3/1.2.840.10008.5", "p4/a.nii", "p5/x"
    )
    for name in ("p2/deep/IM0001", "p3/1.2.840.10008.5", "p4/b.txt", "p4/c.nii"):
        (root / name).write_bytes(DICOM)
    (root / "DICOMDIR").write_bytes(DICOM)
    found = find_images([root], out)
    assert [(str(one.relative), one.dicom) for one in found] == [
        ("p1/ct", True),
        ("p1/scout", True),
        ("p2/deep", True),
        ("p3", True),
        ("p4", True),  # b.txt: DICOM is what begins as DICOM
        ("p4/a.nii", False),
        ("p4/c.nii", False),
    ]
    assert found[0].images == (root / "p1/ct",)


def test_a_dicom_folder_itself(tree, out):
    root = tree("ct/1.dcm", "mr/1.dcm", "ct/more/2.dcm")
    assert relatives(find_images([root / "mr"], out)) == ["mr"]
    assert relatives(find_images([root / "mr", root / "ct"], out)) == ["mr", "ct", "ct/more"]
    assert relatives(find_images([root / "ct"], out)) == ["ct", "more"]


def test_a_dicom_file(tree, out):
    root = tree("ct/1.dcm", "ct/IM1")
    (root / "ct/IM1").write_bytes(DICOM)
    for name in ("1.dcm", "IM1"):
        with pytest.raises(UsageError, match=rf"ct/{name}: one DICOM file; .*Give its folder, {root}/ct\."):
            find_images([root / "ct" / name], out)


def test_unreadable_files_are_not_passed_over(tree, out, monkeypatch):
    root = tree("ct/1.dcm", "ct/notes", "text/notes", "l.csv")

    def refuse(path, *args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "open", refuse)
    assert relatives(find_images([root], out)) == ["ct"]  # which the run then fails to read, and says so
    with pytest.raises(UsageError, match=r"/l.csv: cannot be read \(Permission denied\)"):
        find_images([root / "l.csv"], out)


# what is passed over


def passed_over(*given, out, **options):
    """Reason of each path, relative to the first input."""
    found = inputs.find_images([*given], out, **options)
    return {os.path.relpath(file.path, given[0]): file.reason for file in found.passed_over}


def write_record(folder, *outputs, name="run.json"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"files": [{"name": "x", "outputs": dict.fromkeys(outputs, "0" * 64)}]}))


def test_every_file_that_is_no_case_has_a_reason(tree, out):
    root = tree("a.nii", "._a.nii", ".git/b.nii", "notes.txt", "c.mnc", "d.nii.bz2", "e_mask.nii.gz", "dicom/1.dcm")
    (root / "dicom/notes.pdf").touch()
    (root / "gone.nii.gz").mkdir()
    assert passed_over(root, out=out) == {
        "._a.nii": search.HIDDEN,
        ".git": search.HIDDEN,
        "notes.txt": search.NO_IMAGE,
        "c.mnc": "MINC, which mnc2nii converts",
        "d.nii.bz2": "NIfTI compressed by bzip2, which bunzip2 converts",
        "e_mask.nii.gz": search.LABELS,
        "dicom/notes.pdf": search.NO_IMAGE,
        "gone.nii.gz": search.EMPTY,
    }


def files_below(root):
    return {path for path in root.rglob("*") if path.is_file()}


@given(
    st.sets(
        st.tuples(
            st.sampled_from(["", "labelsTr", "a", "a/b", ".h", "x.nii"]),
            st.sampled_from(["t1", "t1_seg", "._t1", "t2_T1w", "run"]),
            st.sampled_from([".nii", ".nii.gz", ".NII.GZ", ".txt", ".json", ".mnc", "", ".nii.bz2"]),
        ),
        max_size=12,
    ),
    st.booleans(),
    st.sampled_from([(), ("T1w",)]),
)
def test_each_file_is_a_case_or_passed_over_and_never_both(tmp_path_factory, names, include_labels, suffixes):
    root = tmp_path_factory.mktemp("t") / "in"
    for folder, stem, suffix in [*names, ("", "t0_T1w", ".nii")]:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{stem}{suffix}").touch()
    found = inputs.find_images([root], root / "out", include_labels=include_labels, suffixes=suffixes)
    cases = [image for case in found.cases for image in case.images]
    others = [file.path for file in found.passed_over]
    assert len({*cases, *others}) == len(cases) + len(others)
    inside = {path for path in files_below(root) if any(other in path.parents for other in others)}
    assert {*cases, *others} - {root / ".h"} == files_below(root) - inside


def test_other_formats(tree, out):
    root = tree(
        "a.mgz", "b.img", "b.hdr", "c.img", "d.hdr", "e.nrrd", "e.nii.gz", "f.MHA", "g.nhdr", "h.mhd", "h.raw", "p.nii",
        "fs/orig.mgz", "fs/aseg.mgz", "fs/lh.thickness.mgh", "fs/pair.img.gz", "fs/pair.hdr.gz",
    )  # fmt: skip
    cases = ["a.mgz", "b.img", "e.nii.gz", "f.MHA", "fs/orig.mgz", "fs/pair.img.gz", "p.nii"]
    assert relatives(find_images([root], out)) == cases
    half, text = (kind_by_name(Path(name)) for name in ("c.img", "g.nhdr"))
    assert "fslchfiletype" in half
    assert passed_over(root, out=out) == {
        "c.img": half,
        "d.hdr": half,
        "e.nrrd": search.SAME_NAME,
        "fs/aseg.mgz": search.LABELS,
        "fs/lh.thickness.mgh": search.LABELS,
        "g.nhdr": text,
        "h.mhd": text,
        "h.raw": search.NO_IMAGE,
    }
    assert [one.images for one in find_images([root / "b.hdr"], out)] == [(root / "b.img",)]
    assert relatives(find_images([root / "fs/aseg.mgz"], out)) == ["aseg.mgz"]
    table = root / "l.csv"
    table.write_text("image\na.mgz\nb.img\nf.MHA\n")
    assert relatives(find_images([table], out)) == ["a.mgz", "b.img", "f.MHA"]


def test_label_folders_of_data_sets(tree, out):
    root = tree(
        "Task/imagesTr/a.nii.gz", "Task/imagesTs/b.nii.gz", "Task/labelsTr/a.nii.gz", "Task/labelsTs/b.nii.gz",
        "Task/._imagesTr/a.nii.gz", "Task/dataset.json", "total/s1/ct.nii.gz", "total/s1/segmentations/liver.nii.gz",
    )  # fmt: skip
    assert relatives(find_images([root], out)) == [
        "Task/imagesTr/a.nii.gz",
        "Task/imagesTs/b.nii.gz",
        "total/s1/ct.nii.gz",
    ]
    everything = find_images([root], out, include_labels=True)
    assert "Task/labelsTr/a.nii.gz" in relatives(everything)
    assert "total/s1/segmentations/liver.nii.gz" in relatives(everything)
    # labelsTs taken for imagesTs, nnU-Net issue 1691
    with pytest.raises(UsageError, match=r"/Task/labelsTs: no .nii.*1 file passed over .* 1 labels, .*: b.nii.gz"):
        find_images([root / "Task/labelsTs"], out)
    assert relatives(find_images([root / "Task/labelsTs/b.nii.gz"], out)) == ["b.nii.gz"]


def test_masks_in_bids(bids, out):
    lesion = bids / "sub-01/anat/sub-01_T1w_label-lesion_roi.nii.gz"
    lesion.touch()
    assert relatives(find_images([bids], out)) == [*FIRST, *SECOND]
    found = passed_over(bids, out=out)
    assert found["sub-01/anat/sub-01_T1w_label-lesion_roi.nii.gz"] == search.LABELS
    assert found["sub-01/anat/sub-01_dseg.nii.gz"] == search.LABELS
    assert found["derivatives"] == found["sub-01/func"] == search.NO_SCANS


def test_outputs_of_earlier_runs(tree, out):
    root = tree("a.nii", "old/a_seg.nii.gz", "old/qc/a.png", "old/deep/b.nii.gz", "old/new_scan.nii", "shard/x.nii")
    write_record(root / "old", "a_seg.nii.gz", "qc/a.png", "deep/b.nii.gz")
    write_record(root / "shard", "x.nii", name=".run-1-of-2.json")
    assert relatives(find_images([root], out)) == ["a.nii", "old/new_scan.nii"]
    found = passed_over(root, out=out)
    assert {name for name, reason in found.items() if reason == search.WRITTEN} == {
        "old/a_seg.nii.gz", "old/qc/a.png", "old/deep/b.nii.gz", "shard/x.nii",
    }  # fmt: skip
    assert "old/deep/b.nii.gz" in relatives(find_images([root], out, include_labels=True))
    (root / "linked").symlink_to(root / "old")
    assert "linked/deep/b.nii.gz" not in relatives(find_images([root], out))


def test_outputs_whose_folder_was_moved(tree, out):
    root = tree("scans/a.nii", "a_seg.nii.gz")
    write_record(root, "a_seg.nii.gz")
    (root / "elsewhere").mkdir()
    for name in ("run.json", "a_seg.nii.gz"):
        (root / name).rename(root / "elsewhere" / name)
    assert relatives(find_images([root], out)) == ["scans/a.nii"]
    (root / "elsewhere/run.json").unlink()
    for name in ("a_prob", "a_entropy", "a_variance", "sub-1_desc-T1w_probseg"):
        (root / f"elsewhere/{name}.nii.gz").touch()
    assert relatives(find_images([root], out)) == ["scans/a.nii"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"files": 3}',
        '{"files": [3, {"outputs": 3}, {"outputs": {"../../x": 1}}]}',
        "[" * 9999,
        b"\xff",
    ],
)
def test_run_json_of_another_program(tree, out, content):
    root = tree("a.nii")
    (root / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert relatives(find_images([root], out)) == ["a.nii"]


# suffixes


def test_suffixes_pick_scans(bids, tree, out):
    assert relatives(find_images([bids], out, suffixes=["T1w"])) == FIRST[:1]
    assert relatives(find_images([bids], out, suffixes=["T2w", "ct"])) == SECOND
    assert passed_over(bids, out=out, suffixes=["T1w"])[FIRST[1]] == "another suffix than T1w"
    with pytest.raises(
        UsageError,
        match=r"no scan in .* 4 another suffix than PDw: sub-01/anat/sub-01_T1w.nii.gz, sub-01/anat/sub-01_acq",
    ):
        find_images([bids], out, suffixes=["PDw"])
    plain = tree("plain/p1_T1w.nii", "plain/p1_T2w.nii")
    assert relatives(find_images([plain / "plain"], out, suffixes=["T2w"])) == ["p1_T2w.nii"]
    assert relatives(find_images([plain / "plain/p1_T1w.nii"], out, suffixes=["T2w"])) == [
        "p1_T1w.nii"
    ]  # given by name


def test_scans_of_several_suffixes_are_warned_of(bids, out):
    (warning,) = inputs.find_images([bids / "sub-01"], out).warnings
    assert warning.startswith("1 BIDS subject or session has scans of several suffixes (FLAIR, T1w), and each")
    assert inputs.find_images([bids], out, suffixes=["T1w"]).warnings == ()
    assert inputs.find_images([bids / "sub-02"], out).warnings == ()  # T2w and ct lie in folders of their own


# lists


@pytest.fixture
def listed(tree):
    """Writer of a list file beside the images a.nii.gz and sub/b.nii."""
    root = tree("a.nii.gz", "sub/b.nii", "ct/1.dcm", "empty/x.txt")

    def write(name, content):
        raw = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content))
        (root / name).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return root / name

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "image\na.nii.gz\nsub/b.nii\n"),
        ("l.CSV", "\n age , image \r\n7, a.nii.gz \r\n\r\n,\r\n8,sub/b.nii\r\n"),
        ("l.csv", b"\xef\xbb\xbfimage,name\na.nii.gz,\nsub/b.nii\n"),
        ("l.json", ["a.nii.gz", "sub/../sub/b.nii"]),
        ("l.json", b'\xef\xbb\xbf["a.nii.gz", {"image": ["sub/b.nii"], "label": "x"}]'),
        ("l.json", {"test": ["./a.nii.gz", "sub/b.nii"], "training": [{"image": "t.nii"}], "testing": []}),
        ("l.json", {"cases": [{"image": "a.nii.gz", "name": None}, {"image": "sub/b.nii"}], "name": "set"}),
        ("l.json", {"images": ["a.nii.gz", "sub/b.nii"]}),
        ("l.json", {"testing": ["a.nii.gz", "sub/b.nii"]}),
    ],
)
def test_lists(listed, out, name, content):
    table = listed(name, content)
    root = table.parent
    assert find_images([table], out) == [
        Case((root / "a.nii.gz",), PurePosixPath("a.nii.gz")),
        Case((root / "sub/b.nii",), PurePosixPath("sub/b.nii")),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "name,image_t1,age,image_t2\np/1,a.nii.gz,7,gone.nii\n./p//2/,/far/x.nii,8,sub/b.nii\n"),
        (
            "l.json",
            [
                {"image": ["a.nii.gz", "gone.nii"], "name": "p/1"},
                {"image": ["/far/x.nii", "sub/b.nii"], "name": "p/2"},
            ],
        ),
    ],
)
def test_channels_names_and_missing_files(listed, out, name, content):
    table = listed(name, content)
    root, far = table.parent, PurePosixPath("/far/x.nii")
    found = find_images([table], out)
    assert relatives(found) == ["p/1", "p/2"]
    assert [tuple(map(str, one.images)) for one in found] == [
        (f"{root}/a.nii.gz", f"{root}/gone.nii"),
        (str(far), f"{root}/sub/b.nii"),
    ]


def test_the_same_case_twice_and_under_two_names(listed, out):
    rows = "a.nii.gz,\n./a.nii.gz,\na.nii.gz,p\na.nii.gz,q\na.nii.gz,q\n"
    table = listed("l.csv", f"image,name\n{rows}")
    assert relatives(find_images([table, table.parent / "a.nii.gz"], out)) == ["a.nii.gz", "p", "q"]


def test_dicom_in_a_list(listed, out):
    (found,) = find_images([listed("l.csv", "image\nct\n")], out)
    assert (str(found.relative), found.dicom) == ("ct", True)
    (found,) = find_images([listed("l.json", [{"image": "ct", "name": "p1"}])], out)
    assert (str(found.relative), found.dicom) == ("p1", True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "", ": no rows"),
        ("l.csv", "image\n\n", ": no rows"),
        ("l.csv", "a.nii.gz\nsub/b.nii\n", r", line 1: columns \['a.nii.gz'\]; expected 'image'"),
        ("l.csv", "\nimage;name\na.nii.gz;x\n", r", line 2: columns \['image;name'\]; .*with commas between"),
        ("l.csv", "image,name,name\na.nii.gz,x,y\n", ", line 1: columns .* at most one 'name'"),
        ("l.csv", "image\na.nii.gz\n\na.nii.gz,b\n", ", line 4: 2 cells; the header has 1"),
        ("l.csv", "image,age\na.nii.gz,1\n,2\n", ", line 3: image ''; the path of a file"),
        ("l.csv", "image0,image1\na.nii.gz,sub/b.nii\na.nii.gz\n", ", line 3: image ''"),
        ("l.csv", "image\na.mnc\n", ", line 2: 'a.mnc'; expected a .nii or .nii.gz file"),
        ("l.csv", "image\nempty\n", ", line 2: 'empty'; .*DICOM files directly in it"),
        ("l.csv", "image,image2\na.nii.gz,ct\n", ", line 2: 'ct'; .*one folder"),
        ("l.csv", "image,name\na.nii.gz,../x\n", ", line 2: name '../x'; one below OUT"),
        ("l.csv", "image,name\na.nii.gz,/x\n", ", line 2: name '/x'"),
        ("l.csv", "image,name\na.nii.gz,.\n", r", line 2: name '\.'"),
        ("l.csv", "image,name\na.nii.gz,a\\b\n", r", line 2: name 'a\\b'"),
        ("l.csv", 'image\na.nii.gz\n"b\n', ", line 3: not CSV"),
        ("l.csv", b"image\na.nii.gz\nR\xfccken.nii\n", ", line 3: not UTF-8"),
        ("l.json", b"[\n'a']", ": not JSON .*line 2"),
        ("l.json", b"\xff[]", ", line 1: not UTF-8"),
        ("l.json", b"[" * 100_000, ": not JSON"),
        ("l.json", b"[" + b"9" * 5000 + b"]", ": not JSON|, entry 1: "),
        ("l.json", "", ": not JSON"),
        ("l.json", [], ": no list of cases"),
        ("l.json", 3, ": no list of cases"),
        ("l.json", {"training": ["a.nii.gz"]}, ": no list of cases.* test, testing, cases, images"),
        ("l.json", {"test": ["a.nii.gz"], "cases": ["a.nii.gz"]}, ": no list of cases, or several"),
        ("l.json", {"test": "a.nii.gz"}, ": no list of cases"),
        ("l.json", ["a.nii.gz", 3], ", entry 2: 3; expected a path or"),
        ("l.json", ["a.nii.gz", ""], ", entry 2: image ''"),
        ("l.json", [{"label": "a.nii.gz"}], ", entry 1: .*label.*; expected a path or"),
        ("l.json", [{"image": []}], ", entry 1: "),
        ("l.json", [{"image": "a.nii.gz", "name": 0}], ", entry 1: .*a path or"),
        ("l.json", [{"image": "a.nii.gz", "name": ""}], ", entry 1: name ''"),
        ("l.json", [{"image": "a.nii.gz", "name": "a\0b"}], r", entry 1: name 'a\\x00b'"),
        ("l.json", [{"image": "a.nii.gz", "name": "\ud800"}], r", entry 1: name '\\ud800'"),
        ("l.json", ["a\0.nii"], r", entry 1: image 'a\\x00.nii'"),
        ("l.json", ["\ud800.nii"], r", entry 1: image '\\ud800.nii'"),
    ],
)
def test_malformed_lists_are_named_with_their_line(listed, out, name, content, message):
    table = listed(name, content)
    with pytest.raises(UsageError, match=f"^{re.escape(str(table))}({message})") as error:
        find_images([table], out)
    str(error.value).encode()


def test_imports_light():
    code = "import sys, monai_vit3d.pipeline.plan; print({'torch', 'numpy', 'monai', 'nibabel'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
