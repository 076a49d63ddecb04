"""Whole runs in this process: the same bytes in every order, and --resume believes only what it has verified."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.pipeline.label_tables import LABEL_TABLES
from monai_vit3d.pipeline.plan import plan_cases
from monai_vit3d.pipeline.predictor import Predictor
from monai_vit3d.pipeline.record import RunRecord
from monai_vit3d.pipeline.run_cases import run_cases
from tests.clinical import CODES, nifti, packed, patched
from tests.helpers import run_python, side_by_side
from tests.pipeline.tiny import leftovers, predict, products, records, statuses, write_bundle, write_images

NAMES = ["case00", "case01", "case03", "case04", "deep/case02", "deep/case05"]
TABLES = {"stats.csv", "volumes.csv"}


@pytest.fixture
def mine(tmp_path, cohort, clean_run, tiny_bundle):
    """Copies of inputs, OUT and bundle that a test may change: ``(scans, out, bundle)``."""
    copies = tmp_path / "scans", tmp_path / "out", tmp_path / "tiny"
    for source, target in zip((cohort, clean_run, tiny_bundle), copies):
        shutil.copytree(source, target)
    return copies


def resumed(scans, out, bundle, *options):
    """Exit code of --resume, and the names of what was skipped."""
    code = predict(scans, to=out, bundle=bundle, options=["--resume", *options])
    return code, [name for name, status in statuses(out).items() if status == "skipped"]


# one answer


@pytest.mark.slow
def test_threads_that_others_start_keep_their_number(mine):
    scans, out, bundle = mine
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert predict(scans, to=out, bundle=bundle, options=["--overwrite", "--jobs", "2"]) == 0
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_run_leaves_labels_pictures_and_tables(clean_run):
    pictures, labels = {f"qc/{name}.png" for name in NAMES}, {f"{name}_seg.nii.gz" for name in NAMES}
    assert set(products(clean_run)) == labels | pictures | TABLES | set(LABEL_TABLES)
    assert leftovers(clean_run) == []
    assert statuses(clean_run) == dict.fromkeys(NAMES, "done")
    content = json.loads((clean_run / "run.json").read_text())
    assert content["counts"] == {"done": 6}
    sums = products(clean_run)
    for one in content["files"]:
        assert one["outputs"] == {path: sums[path] for path in one["outputs"]}
        labels = np.asarray(nib.load(one["output"]).dataobj)
        assert {row["label"]: row["voxels"] for row in one["stats"]} == {k: (labels == k).sum() for k in (1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(("given_as", "jobs"), side_by_side(["folder", "files", "backwards", "list", "twice"], [3, 1]))
def test_order_threads_and_the_way_of_naming_inputs_change_no_byte(
    tmp_path, cohort, clean_run, tiny_bundle, jobs, given_as
):
    files = sorted(cohort.rglob("*.nii.gz"))
    table = tmp_path / "list.csv"
    table.write_text("image,name\n" + "".join(f"{cohort / f'{name}.nii.gz'},{name}\n" for name in NAMES[::-1]))
    ways = {"folder": [cohort], "files": files, "backwards": files[::-1], "list": [table], "twice": [files[3], cohort]}
    out = tmp_path / "out"
    assert predict(*ways[given_as], to=out, bundle=tiny_bundle, options=["--jobs", str(jobs)]) == 0
    assert products(out) == products(clean_run)


@pytest.mark.slow
def test_one_file_that_fails_changes_nothing_of_the_others(mine, clean_run, tmp_path):
    scans, _, bundle = mine
    (scans / "case01.nii.gz").write_bytes(b"no image")
    assert predict(scans, to=tmp_path / "other", bundle=bundle, options=["--jobs", "3"]) == 1
    clean, found = products(clean_run), products(tmp_path / "other")
    others = {path: digest for path, digest in clean.items() if "case01" not in path}
    assert found == others | {table: found[table] for table in TABLES}
    lines = (clean_run / "stats.csv").read_text().splitlines()
    assert (tmp_path / "other" / "stats.csv").read_text().splitlines() == [x for x in lines if "case01" not in x]


# --resume


@pytest.mark.slow
def test_what_is_verified_is_skipped_and_left_alone(mine, clean_run):
    scans, out, bundle = mine
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    assert resumed(scans, out, bundle) == (0, NAMES)
    assert products(out) == products(clean_run)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    assert all(one["output"].startswith(str(out)) for one in records(out).values())  # OUT was moved
    assert resumed(scans, out, bundle) == (0, NAMES)  # and what was skipped once is believed again


def test_a_changed_input_is_done_again(mine, clean_run):
    scans, out, bundle = mine
    (scans / "case01.nii.gz").write_bytes((scans / "case00.nii.gz").read_bytes())
    assert resumed(scans, out, bundle) == (0, [n for n in NAMES if n != "case01"])
    assert products(out)["case01_seg.nii.gz"] == products(clean_run)["case00_seg.nii.gz"]


@pytest.mark.slow
def test_other_weights_do_all_again(mine, clean_run):
    scans, out, bundle = mine
    write_bundle(bundle, 0.3, 0.6)
    assert resumed(scans, out, bundle) == (0, [])
    changed = {path for path, digest in products(out).items() if products(clean_run)[path] != digest}
    assert {f"{name}_seg.nii.gz" for name in NAMES} <= changed


@pytest.mark.slow
def test_another_config_does_all_again(mine):
    scans, out, bundle = mine
    config = bundle / "configs" / "inference.yaml"
    config.write_text(config.read_text().replace("overlap: 0.25", "overlap: 0.5"))
    assert resumed(scans, out, bundle) == (0, [])


@pytest.mark.slow
def test_other_options_do_all_again(mine):
    scans, out, bundle = mine
    assert resumed(scans, out, bundle, "--uncertainty", "entropy") == (0, [])
    assert len(list(out.rglob("*_entropy.nii.gz"))) == 6
    assert resumed(scans, out, bundle, "--uncertainty", "entropy") == (0, NAMES)


@pytest.mark.parametrize("lost", ["case03_seg.nii.gz", "qc/case03.png"])
def test_a_missing_output_is_made_again(mine, clean_run, lost):
    scans, out, bundle = mine
    (out / lost).unlink()
    assert resumed(scans, out, bundle) == (0, [n for n in NAMES if n != "case03"])
    assert products(out) == products(clean_run)


@pytest.mark.slow
def test_an_output_that_somebody_edited_is_kept(mine, clean_run, capsys):
    scans, out, bundle = mine
    edited = out / "case03_seg.nii.gz"
    edited.write_bytes(b"an hour of work")
    assert resumed(scans, out, bundle) == (1, [n for n in NAMES if n != "case03"])
    one = records(out)["case03"]
    assert one["status"] == "failed"
    assert str(edited) in one["error"]
    assert "changed since it was written" in one["error"]
    assert "--overwrite" in capsys.readouterr().err
    assert edited.read_bytes() == b"an hour of work"
    # nor does a second time make it any less somebody's work
    assert resumed(scans, out, bundle)[0] == 1
    assert edited.read_bytes() == b"an hour of work"
    assert predict(scans, to=out, bundle=bundle, options=["--overwrite"]) == 0
    assert products(out) == products(clean_run)


def test_an_edited_output_is_kept_when_the_input_changed_too(mine):
    scans, out, bundle = mine
    (scans / "case03.nii.gz").write_bytes((scans / "case00.nii.gz").read_bytes())
    (out / "case03_seg.nii.gz").write_bytes(b"an hour of work")
    assert resumed(scans, out, bundle)[0] == 1
    assert (out / "case03_seg.nii.gz").read_bytes() == b"an hour of work"


@pytest.mark.slow
@pytest.mark.parametrize("content", ["{", "[]", '{"files": 3}', '{"files": [{}]}', '{"files": ["a"]}'])
def test_a_damaged_record_is_named_and_kept(mine, capsys, content):
    scans, out, bundle = mine
    (out / "run.json").write_text(content)
    before = products(out)
    for option in ("--resume", "--overwrite"):
        assert predict(scans, to=out, bundle=bundle, options=[option]) == 2
        assert f"{out / 'run.json'}: not a record of a run" in capsys.readouterr().err
        assert (out / "run.json").read_text() == content
        assert products(out) == before


def test_without_a_word_nothing_is_overwritten(mine, capsys):
    scans, out, bundle = mine
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert predict(scans, to=out, bundle=bundle) == 2
    assert "6 of 6 outputs are there already" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_second_run_over_other_inputs_keeps_the_first_one_s_record(mine, tmp_path):
    _, out, bundle = mine
    (other,) = write_images(tmp_path / "more", 1)
    other = other.rename(tmp_path / "more" / "new.nii.gz")
    assert predict(other, to=out, bundle=bundle) == 0
    assert sorted(records(out)) == sorted([*NAMES, "new"])


# shards


def told(out):
    """What run.json says of each file but for times."""
    keys = ("name", "input", "status", "warnings", "error", "stats", "outputs", "input_sha256", "picture")
    return [{key: one.get(key) for key in keys} for one in records(out).values()]


@pytest.mark.slow
def test_shards_make_one_run(tmp_path, cohort, clean_run, tiny_bundle):
    out = tmp_path / "out"
    for part in ("2/3", "3/3", "1/3"):
        assert predict(cohort, to=out, bundle=tiny_bundle, options=["--shard", part]) == 0
    assert products(out) == products(clean_run)
    assert told(out) == told(clean_run)
    assert leftovers(out) == []
    assert resumed(cohort, out, tiny_bundle) == (0, NAMES)
    for part in ("1/2", "2/2"):  # another number of shards is no matter
        assert predict(cohort, to=out, bundle=tiny_bundle, options=["--resume", "--shard", part]) == 0
    assert set(statuses(out).values()) == {"skipped"}
    assert products(out) == products(clean_run)


@pytest.mark.slow
def test_a_shard_that_is_missing_is_left_for_resume(tmp_path, cohort, clean_run, tiny_bundle):
    out = tmp_path / "out"
    for part in ("1/3", "3/3"):
        assert predict(cohort, to=out, bundle=tiny_bundle, options=["--shard", part]) == 0
    assert sorted(records(out)) == [NAMES[i] for i in (0, 2, 3, 5)]
    assert resumed(cohort, out, tiny_bundle) == (0, [NAMES[i] for i in (0, 2, 3, 5)])
    assert products(out) == products(clean_run)
    assert leftovers(out) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("held", "options"),
    [
        (".run.lock", ["--resume"]),
        (".run-1-of-2.lock", ["--resume", "--shard", "1/2"]),
        (".run-2-of-3.lock", ["--resume"]),  # parts of other sizes would write the same files at a time
        (".run-2-of-3.lock", ["--resume", "--shard", "1/2"]),
        (".run.lock", ["--resume", "--shard", "1/2"]),
    ],
)
def test_two_runs_into_one_folder_refuse_each_other(mine, clean_run, capsys, held, options):
    scans, out, bundle = mine
    record = (out / "run.json").read_text()
    with FileLock(out / held):
        assert predict(scans, to=out, bundle=bundle, options=options) == 2
    assert "another run is writing here" in capsys.readouterr().err
    assert (out / "run.json").read_text() == record
    assert predict(scans, to=out, bundle=bundle, options=options) == 0
    assert products(out) == products(clean_run)


def test_shards_of_one_run_work_side_by_side(mine):
    scans, out, bundle = mine
    with FileLock(out / ".run-2-of-2.lock"):
        assert predict(scans, to=out, bundle=bundle, options=["--resume", "--shard", "1/2"]) == 0


# the command


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--shard", "4/3"], "--shard 4/3"),
        (["--jobs", "0"], "--jobs 0"),
        (["--uncertainty", "variance"], "--tta"),
        (["--bundle", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_usage_is_2_and_writes_nothing(tmp_path, cohort, tiny_bundle, capsys, options, word):
    assert predict(cohort, to=tmp_path / "out", bundle=tiny_bundle, options=options) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_cannot_be_read_are_2(mine, tmp_path, capsys):
    scans, _, bundle = mine
    (bundle / "models" / "model.pt").write_bytes(b"no weights")
    assert predict(scans, to=tmp_path / "other", bundle=bundle) == 2
    assert str(bundle / "models" / "model.pt") in capsys.readouterr().err


def test_a_dry_run_writes_nothing(tmp_path, cohort, tiny_bundle, capsys):
    assert predict(cohort, to=tmp_path / "out", bundle=tiny_bundle, options=["--dry-run"]) == 0
    assert capsys.readouterr().out.count(" -> ") == 6
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_line_for_each_file_where_there_is_no_terminal(mine, capsys):
    scans, out, bundle = mine
    (scans / "case01.nii.gz").write_bytes(b"")
    assert predict(scans, to=out, bundle=bundle, options=["--overwrite"]) == 1
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert [line.split(" (")[0] for line in lines if line[0].isdigit()] == [
        f"{i}/6 {'failed' if name == 'case01' else 'done'} {name}" for i, name in enumerate(NAMES, 1)
    ]
    assert f"  failed: {scans / 'case01.nii.gz'}: empty" in said.err
    # the bundle labels all tissue, which is more than half of the foreground
    assert said.out.startswith("5 done (5 to look at: labels may be wrong), 0 skipped, 1 failed: ")


@pytest.mark.slow
def test_help_needs_none_of_the_large_libraries():
    heavy = ("torch", "monai", "nibabel", "numpy", "scipy", "PIL", "tqdm")
    code = "import sys\nfrom monai_vit3d.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
    code += f"    print(end.code, [name for name in {heavy} if name in sys.modules], file=sys.stderr)\n"
    for verb in ([], ["predict"], ["check"], ["info"]):
        _, out, err = run_python("-c", code, *verb, "--help")
        assert out.startswith("usage: vit3d")
        assert err.strip() == "0 []"


# any grid


def turn(angles):
    """A rotation by three angles, radians."""
    return nib.eulerangles.euler2mat(*angles)


grids = st.fixed_dictionaries(
    {
        "shape": st.tuples(*[st.integers(3, 12)] * 3),
        "mm": st.tuples(*[st.floats(0.3, 6)] * 3),
        "angles": st.tuples(*[st.floats(-3.1, 3.1)] * 3) | st.just((0.0, 0.0, 0.0)),
        "flips": st.tuples(*[st.sampled_from([1, -1])] * 3),
        "order": st.permutations(range(3)),
        "shear": st.floats(-0.2, 0.2) | st.just(0.0),
        "origin": st.tuples(*[st.floats(-200, 200)] * 3),
        "seed": st.integers(0, 9),
    }
)


@pytest.fixture(scope="module")
def loaded(tiny_bundle):
    """The tiny bundle, built once."""
    return load_bundle(tiny_bundle, "cpu", safe=True)


@pytest.mark.slow
@given(grid=grids)
def test_labels_come_back_on_any_grid(tmp_path, loaded, grid):
    shear = np.eye(3)
    shear[0, 1] = grid["shear"]
    axes = turn(grid["angles"]) @ shear @ (np.diag(grid["mm"]) * grid["flips"])[:, list(grid["order"])]
    affine = nib.affines.from_matvec(axes, grid["origin"])
    values = np.random.default_rng(grid["seed"]).normal(0, 50, grid["shape"])
    raw = nifti(affine, grid["shape"], "<f4", values)
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    (folder / "a.nii.gz").write_bytes(packed(patched(raw, (CODES, "h", 0)) if grid["shear"] else raw))
    plan = plan_cases([folder / "a.nii.gz"], folder / "out")
    record = RunRecord(plan.output, {})
    summary = run_cases(plan, Predictor(loaded), record)
    record.close()
    assert summary.done == 1, record.files
    given, written = nib.load(folder / "a.nii.gz"), nib.load(folder / "out" / "a_seg.nii.gz")
    assert written.shape == given.shape
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, given.affine)
    for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
        assert written.header[field].tobytes() == given.header[field].tobytes()
    assert written.header["pixdim"][:4].tobytes() == given.header["pixdim"][:4].tobytes()
