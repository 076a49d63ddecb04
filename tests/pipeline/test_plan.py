"""Names of outputs: below OUT, distinct on every file system, never an input; shards; what is there already."""

import json
import re
import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from monai_vit3d.data.errors import UsageError
from monai_vit3d.pipeline.case import KINDS, Case
from monai_vit3d.pipeline.plan import parse_shard, plan_cases


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def named(folder, names):
    """A list of cases with these names, whose images are not there."""
    table = folder / "cases.json"
    table.write_text(json.dumps([{"image": f"image_{i}.nii", "name": name} for i, name in enumerate(names)]))
    return table


# names


def test_plain_names(tree, out):
    root = tree("a.b.nii.gz", "sub/c.NII", "x.nii.nii.gz", "sub.nii/d.nii.gz")
    plan = plan_cases([root], out)
    assert [case.name for case in plan.cases] == ["a.b", "sub/c", "sub.nii/d", "x.nii"]
    assert [str(case.path("seg")) for case in plan.cases] == [
        "a.b_seg.nii.gz",
        "sub/c_seg.nii.gz",
        "sub.nii/d_seg.nii.gz",
        "x.nii_seg.nii.gz",
    ]
    assert [case.index for case in plan.cases] == [0, 1, 2, 3]
    assert (plan.output, plan.shard, plan.total, plan.outputs) == (out, (1, 1), 4, ("seg",))
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sub-01/anat/sub-01_T1w", "seg", "sub-01/anat/sub-01_desc-T1w_dseg"),
        ("s/sub-01_ses-1_acq-x_T1w", "seg", "s/sub-01_ses-1_acq-x_desc-T1w_dseg"),
        ("s/sub-01_ses-1_FLAIR", "prob", "s/sub-01_ses-1_desc-FLAIR_probseg"),
        ("s/sub-01_T1w", "entropy", "s/sub-01_desc-T1w_entropy"),
        ("s/sub-01_T1w", "variance", "s/sub-01_desc-T1w_variance"),
        ("s/sub-01_desc-preproc_T1w", "seg", "s/sub-01_desc-preprocT1w_dseg"),
        ("s/sub-01_desc-preproc_space-x_T1w", "seg", "s/sub-01_space-x_desc-preprocT1w_dseg"),
        ("s/sub-01", "seg", "s/sub-01_dseg"),
        ("s/odd", "seg", "s/odd_dseg"),
    ],
)
def test_bids_names(name, kind, expected):
    assert Case((), PurePosixPath(name), bids=True).path(kind) == PurePosixPath(f"{expected}.nii.gz")


def test_bids_data_set(tree, out):
    root = tree("dataset_description.json", "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_T2w.nii.gz")
    plan = plan_cases([root], out, outputs=("seg", "prob"))
    assert [case.name for case in plan.cases] == ["sub-1/anat/sub-1_T1w", "sub-1/anat/sub-1_T2w"]
    assert plan.cases[1].path("prob") == PurePosixPath("sub-1/anat/sub-1_desc-T2w_probseg.nii.gz")


def test_dicom_folders_keep_their_name(tree, out):
    pytest.importorskip("pydicom")
    from tests.dicom import series

    root = tree("ct.nii/x.txt")
    series(root / "ct.nii", count=2)
    (case,) = plan_cases([root], out).cases
    assert (case.name, case.dicom, case.images) == ("ct.nii", True, (root / "ct.nii",))


part = st.text(st.sampled_from("aAbBéÉß.-_ ") | st.characters(codec="utf-8"), min_size=1, max_size=6)
wild = st.lists(st.lists(part, min_size=1, max_size=3).map("/".join), min_size=1, max_size=8)


def file_system_key(path):
    return unicodedata.normalize("NFC", str(path)).casefold()


@pytest.mark.slow
@given(wild)
def test_outputs_are_distinct_and_below_out(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    try:
        plan = plan_cases([named(folder, names)], folder / "out", outputs=tuple(KINDS))
    except UsageError:
        plan = None
    assume(plan is not None)
    paths = [case.path(kind) for case in plan.cases for kind in KINDS]
    assert len({file_system_key(path) for path in paths}) == len(paths) == len(names) * len(KINDS)
    arrays = sum(path.name.endswith("_embedding.npy") for path in paths)
    assert [arrays, sum(path.name.endswith(".nii.gz") for path in paths)] == [len(names), len(paths) - len(names)]
    for path in paths:
        assert not path.is_absolute()
        assert not {"..", "."} & set(str(path).split("/"))
        assert (folder / "out" / path).resolve().is_relative_to((folder / "out").resolve())


@given(st.lists(st.text("aAbBéÉ", min_size=1, max_size=3), min_size=1, max_size=6))
def test_refused_only_where_two_are_the_same(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    clash = len({file_system_key(name) for name in names}) < len(names)
    if clash:
        with pytest.raises(UsageError, match="inputs with the same output"):
            plan_cases([named(folder, names)], folder / "out")
    else:
        assert [case.name for case in plan_cases([named(folder, names)], folder / "out").cases] == names


# checks before work


@pytest.mark.parametrize("pair", [("x.nii", "x.nii.gz"), ("x", "X"), ("é", "e\u0301"), ("É", "e\u0301"), ("ß", "SS")])
def test_two_inputs_with_one_output(tmp_path, out, pair):
    table = named(tmp_path, ["other", *pair])
    with pytest.raises(UsageError, match=r"image_1.nii and \S+image_2.nii, as .*_seg.nii.gz.*columns image,name"):
        plan_cases([table], out)


def test_files_with_one_output(tree, out):
    root = tree("x.nii", "x.nii.gz", "y.nii")
    with pytest.raises(UsageError, match=rf"{root}/x.nii and {root}/x.nii.gz, as x_seg.nii.gz\. Leave one out"):
        plan_cases([root], out, outputs=("seg", "prob"))


def test_a_name_stands_for_one_case(tree, tmp_path, out):
    root = tree("dataset_description.json", "sub-1/anat/sub-1_T1w.nii.gz")
    with pytest.raises(UsageError, match=r"T1w.nii.gz and \S+image_0.nii, as qc/sub-1/anat/sub-1_T1w.png"):
        plan_cases([root, named(tmp_path, ["sub-1/anat/sub-1_T1w"])], out)


def test_at_most_five_clashes_are_told(tmp_path, out):
    with pytest.raises(UsageError, match=r"image_5.nii, as same_seg.nii.gz and 2 more\. Leave") as error:
        plan_cases([named(tmp_path, ["same"] * 8)], out)
    assert str(error.value).count(" as ") == 5


def test_a_clash_in_another_shard_counts(tmp_path, out):
    for shard in [(1, 3), (3, 3)]:
        with pytest.raises(UsageError, match="same output"):
            plan_cases([named(tmp_path, ["a", "b", "B"])], out, shard=shard)


def test_inputs_are_never_overwritten(tree, tmp_path):
    root = tree("x.nii", "x_seg.nii.gz", "y.nii")
    (tmp_path / "link").symlink_to(root)
    for existing in ("refuse", "resume", "overwrite"):
        with pytest.raises(UsageError, match=r"/link/x_seg.nii.gz: both input and output\..*another OUT"):
            plan_cases([root / "x.nii", root / "x_seg.nii.gz"], tmp_path / "link", existing=existing)
    assert plan_cases([root / "x.nii", root / "y.nii"], root, existing="overwrite").total == 2
    table = tmp_path / "l.csv"
    table.write_text("image\ndata/x.nii\ndata/gone_SEG.nii.gz\ndata/gone.nii\n")
    with pytest.raises(UsageError, match=r"/gone_seg.nii.gz: both input and output"):
        plan_cases([table], root, existing="overwrite")


def test_out_is_a_file_or_below_one(tree, tmp_path):
    root = tree("x.nii")
    for folder in (root / "x.nii", root / "x.nii/deep/er"):
        with pytest.raises(UsageError, match=r"/x.nii is no folder; OUT is one"):
            plan_cases([root / "x.nii"], folder)
    (tmp_path / "dead").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"/dead is no folder"):
        plan_cases([root], tmp_path / "dead")


def test_a_file_where_a_folder_is_needed(tree, out):
    root = tree("a/x.nii", "b/y.nii")
    out.mkdir()
    (out / "b").touch()
    with pytest.raises(UsageError, match=r"/out/b: a file is or will be there; expected a folder"):
        plan_cases([root], out, existing="overwrite")
    assert plan_cases([root / "a"], out).total == 1


@pytest.mark.parametrize("names", [["a", "A_seg.nii.gz/x"], ["run.json/x"], ["Stats.csv/deep/x"]])
def test_an_output_where_a_folder_is_needed(tmp_path, out, names):
    with pytest.raises(UsageError, match=f"/out/{names[-1].split('/')[0]}: a file is or will be"):
        plan_cases([named(tmp_path, names)], out)


def test_a_folder_where_an_output_is_needed(tree, out):
    root = tree("x.nii")
    (out / "x_seg.nii.gz").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"/x_seg.nii.gz: a folder lies where"):
        plan_cases([root], out, existing="overwrite")


@pytest.mark.parametrize("name", ["run.json", "stats.csv", "report.html"])
def test_a_folder_where_a_table_of_the_run_is_needed(tree, out, name):
    (out / name).mkdir(parents=True)
    with pytest.raises(UsageError, match=rf"/{name}: a folder lies where"):
        plan_cases([tree("x.nii")], out, existing="overwrite")


def test_a_list_in_out_is_never_overwritten(tree):
    root = tree("x.nii")
    listed = root / "volumes.csv"
    listed.write_text("image\nx.nii\n")
    for existing in ("refuse", "resume", "overwrite"):
        with pytest.raises(UsageError, match=r"/volumes.csv: both input and output"):
            plan_cases([listed], root, existing=existing)
        with pytest.raises(UsageError, match="both input and output"):
            plan_cases(listed, root, existing=existing)


def test_tables_in_out_that_no_run_has_written(tree, out):
    root = tree("x.nii")
    out.mkdir()
    (out / "stats.csv").write_text("a lifetime's work")
    (out / "dataset_description.json").write_text("{}")
    with pytest.raises(UsageError, match=r"out: dataset_description.json, stats.csv there, where the run writes its"):
        plan_cases([root], out)
    for existing in ("resume", "overwrite"):
        assert plan_cases([root], out, existing=existing).total == 1
    (out / ".run-1-of-2.json").touch()
    assert plan_cases([root], out).total == 1


def test_reserved_names_are_free_for_cases(tmp_path, out):
    names = ["qc/x", "run.json", "report.html", "deep/run.json/x"]
    assert [case.name for case in plan_cases([named(tmp_path, names)], out).cases] == names


def test_very_long_names_do_not_stop_the_plan(tmp_path, out):
    assert plan_cases([named(tmp_path, ["x" * 5000, "y"])], out).total == 2


@pytest.mark.parametrize("options", [{"outputs": ("mask",)}, {"outputs": ()}, {"existing": "ask"}])
def test_unknown_options(tree, out, options):
    with pytest.raises(UsageError, match=re.escape(str(next(iter(options.values()))))):
        plan_cases([tree("x.nii")], out, **options)


# what is there already


def test_existing_outputs(tree, out):
    root = tree("a.nii", "b.nii", "c.nii")
    out.mkdir()
    (out / "b_prob.nii.gz").touch()
    (out / "c_seg.nii.gz").symlink_to(out / "gone")
    options = {"outputs": ("seg", "prob")}
    with pytest.raises(
        UsageError, match=r"^2 of 6 outputs are there already.* \S+/b_prob.nii.gz\. Give existing='resume'"
    ):
        plan_cases([root], out, **options)
    assert plan_cases([root], out, existing="resume", **options).total == 3
    assert plan_cases([root], out, existing="overwrite", **options).total == 3
    assert len(plan_cases([root], out, shard=(1, 3), **options).cases) == 1  # another shard's outputs are its own
    with pytest.raises(UsageError, match="1 of 2 outputs"):
        plan_cases([root], out, shard=(2, 3), **options)


def test_an_earlier_output_folder_inside_the_input_can_be_resumed(tree):
    root = tree("a.nii", "out/a_seg.nii.gz")
    assert [case.name for case in plan_cases([root], root / "out", existing="resume").cases] == ["a"]


# shards


@pytest.mark.slow
@given(st.integers(1, 12), st.integers(1, 15))
def test_shards_share_the_cases(tmp_path_factory, count, n):
    folder = tmp_path_factory.mktemp("shards")
    table = named(folder, [f"case{i}" for i in range(count)])
    plans = [plan_cases([table], folder / "out", shard=(i, n)) for i in range(1, n + 1)]
    whole = plan_cases([table], folder / "out")
    assert sorted((case for plan in plans for case in plan.cases), key=lambda case: case.index) == list(whole.cases)
    assert {plan.total for plan in plans} == {count}
    assert max(len(plan.cases) for plan in plans) - min(len(plan.cases) for plan in plans) <= 1


def test_parse_shard():
    assert [parse_shard(text) for text in ("2/8", " 1/1 ", "08/8")] == [(2, 8), (1, 1), (8, 8)]
    for text in ("0/4", "5/4"):
        with pytest.raises(UsageError, match=f"^shard={text}; expected 1/4 to 4/4"):
            parse_shard(text)
    for text in ("", "1", "1/", "a/b", "-1/4", "1/4/2", "1.0/4", "٢/٨", "1/" + "9" * 5000):
        with pytest.raises(UsageError, match="expected I/N"):
            parse_shard(text)
    with pytest.raises(UsageError, match="shard=1/0; "):
        parse_shard("1/0")


def test_shards_outside(tree, out):
    for shard in [(0, 4), (5, 4), (1, 0), (-1, -1)]:
        with pytest.raises(UsageError, match=f"shard={shard[0]}/{shard[1]}; "):
            plan_cases([tree("x.nii")], out, shard=shard)


# the table


def test_table(tree, out):
    root = tree("a/x.nii", "y.nii", "z.nii")
    assert plan_cases([root], out).table().splitlines() == [
        f"{root}/a/x.nii -> {out}/a/x_seg.nii.gz",
        f"{root}/y.nii -> {out}/y_seg.nii.gz",
        f"{root}/z.nii -> {out}/z_seg.nii.gz",
        "3 cases",
    ]
    assert plan_cases([root], out, shard=(2, 2), outputs=("seg", "prob")).table().splitlines() == [
        f"{root}/y.nii -> {out}/y_seg.nii.gz, {out}/y_prob.nii.gz",
        "1 of 3 cases (shard 2/2)",
    ]


def test_table_of_channels_and_odd_names(tmp_path, out):
    table = tmp_path / "l.json"
    table.write_text(json.dumps([["a.nii", "b\udce9\n.nii"], {"image": ["a.nii", "b.nii"], "name": "x"}][1:]))
    assert plan_cases([table], out).table().startswith(f"{tmp_path}/a.nii + {tmp_path}/b.nii -> {out}/x_seg.nii.gz\n")
    table.write_text(json.dumps(["b\udce9\n.nii"]))
    lines = plan_cases([table], out).table()
    assert lines.encode().decode().splitlines() == [
        rf"{tmp_path}/b\udce9\n.nii -> {out}/b\udce9\n_seg.nii.gz",
        "1 cases",
    ]


@pytest.mark.slow
def test_thousands_of_files(tree, out):
    names = [f"site{i % 7}/sub-{i:04d}/t1.nii.gz" for i in range(2000)]
    plan = plan_cases([tree(*names)], out, outputs=("seg", "prob"))
    assert [case.name for case in plan.cases] == sorted(name.removesuffix(".nii.gz") for name in names)
