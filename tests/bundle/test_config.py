"""Which of a bundle's config files are run, and what the user sets in them."""

import json
from contextlib import suppress

import nibabel as nib
import numpy as np
import pytest

from monai_vit3d.bundle.config import AS_SHIPPED, choice_of
from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.cli import main
from monai_vit3d.cli.options import parse_override
from monai_vit3d.data.errors import BundleError, UsageError, WeightsError
from monai_vit3d.pipeline.folder import predict_folder
from tests.pipeline.reference import LOAD, ORIENT, SPACING, TYPED, sharp_image, write_bundle


@pytest.fixture
def bundle(tmp_path):
    root = write_bundle(tmp_path / "bundle", [LOAD, ORIENT, SPACING, TYPED])
    (root / "configs" / "fast.yaml").write_text("inferer#overlap: 0.25\ninferer#mode: constant\n")
    return root


def predict(bundle, tmp_path, *flags):
    words = ["predict", sharp_image(tmp_path / "a.nii.gz"), "-o", tmp_path / "out", "--bundle", bundle, *flags]
    return main([*map(str, words), "--device", "cpu"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inferer::overlap=0.25", ("inferer::overlap", 0.25)),
        ("a#b=[1, 2]", ("a#b", [1, 2])),
        ("amp=true", ("amp", True)),
        ("x=$1 + 1", ("x", "$1 + 1")),
        ("x=a=b", ("x", "a=b")),
    ],
)
def test_values_are_yaml(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["overlap", "=3", "x=[1", "x={"])
def test_what_is_no_id_and_value(text):
    with pytest.raises(UsageError, match="--set"):
        parse_override(text)


def test_files_are_merged_and_values_win(bundle):
    choice = choice_of(["inference", "fast.yaml"], {"inferer::overlap": 0.125})
    inferer = load_bundle(bundle, "cpu", True, choice).inferer
    assert (inferer.overlap, str(inferer.mode)) == (0.125, "constant")
    assert load_bundle(bundle, "cpu").inferer.overlap == 0.5


def test_the_hash_tells_choices_apart(bundle):
    choices = [AS_SHIPPED, choice_of(["inference", "fast"], None), choice_of(None, {"inferer::overlap": 0.125})]
    assert len({load_bundle(bundle, "cpu", False, choice).config_sha256 for choice in choices}) == 3
    assert choice_of(None, None) == AS_SHIPPED


def test_the_run_says_what_was_chosen(bundle, tmp_path):
    flags = ["--safe", "--config", "inference", "fast", "--set", "inferer::overlap=0.125"]
    assert predict(bundle, tmp_path, *flags) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["config"] == ["inference", "fast"]
    assert record["overrides"] == {"inferer::overlap": "0.125"}


@pytest.mark.slow
def test_python_has_the_same(bundle, tmp_path):
    image = sharp_image(tmp_path / "a.nii.gz")
    options = {"config": ["inference", "fast"], "overrides": {"inferer::overlap": 0.125}, "device": "cpu"}
    assert predict_folder([image], tmp_path / "out", bundle, **options).done == 1


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--config", "nothing"], "Expected one of fast, inference"),
        (["--config", "../evil"], "the name of a file in the bundle's configs"),
        (["--set", "no_such=1"], "no such entry"),
        (["--set", "inferer::no::such=1"], "no such entry"),
        (["--set", "device=cpu"], "--device"),
        (["--set", "output_dir=/tmp"], "-o"),
        (["--set", "inferer::no_argument=1"], "no_argument"),
        (["--set", "inferer=$__import__('os').system('true')"], "not allowed in a bundle with --safe"),
        (["--set", "network_def=3"], "cannot be"),
        (["--set", "preprocessing=[1]"], "LoadImaged"),
    ],
)
def test_wrong_choices_are_one_error_and_no_traceback(bundle, tmp_path, capsys, flags, word):
    assert predict(bundle, tmp_path, "--safe", *flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("vit3d: ")
    assert word in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


ENTRIES = ["network_def", "network", "inferer", "postprocessing", "class_names", "checkpointloader"]


@pytest.mark.parametrize("value", [3, "text", [], {"_target_": "torch.nn.Identity"}])
@pytest.mark.parametrize("entry", ENTRIES)
def test_odd_entries_never_end_in_a_traceback(bundle, entry, value):
    with suppress(BundleError, UsageError, WeightsError):  # what the command says in one line
        assert load_bundle(bundle, "cpu", False, choice_of(None, {entry: value})).config_sha256


@pytest.mark.slow
def test_two_runs_of_other_values_differ(bundle, tmp_path):
    image = sharp_image(tmp_path / "a.nii.gz")
    found = []
    for i, pixdim in enumerate(([2.0, 2.0, 3.0], [6.0, 6.0, 6.0])):
        values = {"preprocessing::transforms::2::pixdim": pixdim}
        predict_folder([image], tmp_path / f"out{i}", bundle, overrides=values, device="cpu")
        found.append(np.asarray(nib.load(tmp_path / f"out{i}" / "a_seg.nii.gz").dataobj))
    assert (found[0] != found[1]).any()


def with_metadata(bundle, **entries):
    """Give the bundle's metadata.json more entries, and let the config read one of them."""
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    (bundle / "configs" / "meta.yaml").write_text("inferer#overlap: '@_meta_::plan::overlap'\n")
    return choice_of(["inference", "meta"], None)


@pytest.mark.parametrize("safe", [True, False])
def test_a_config_reads_numbers_of_the_metadata(bundle, safe):
    packages = {"optional_packages_version": {"nibabel": "5.3"}}  # a key that MONAI renames at the top of a config
    choice = with_metadata(bundle, plan={"overlap": 0.375}, **packages)
    assert load_bundle(bundle, "cpu", safe, choice).inferer.overlap == 0.375
    changed = choice_of(choice.names, {"_meta_::plan::overlap": 0.125})
    assert load_bundle(bundle, "cpu", safe, changed).inferer.overlap == 0.125


def test_metadata_are_part_of_the_hash(bundle):
    hashes = set()
    for overlap in (0.25, 0.375):
        hashes.add(load_bundle(bundle, "cpu", True, with_metadata(bundle, plan={"overlap": overlap})).config_sha256)
    assert len(hashes) == 2


def marks(path):
    return f"open({str(path)!r}, 'w').close()"


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        (lambda mark: {"plan": {"overlap": f"${mark} or 0.5"}}, "a call of"),
        (lambda mark: {"plan": {"overlap": "@_meta_::hidden"}, "hidden": f"${mark}"}, "a call of"),
        (lambda mark: {"plan": {"overlap": {"_target_": "os.system", "command": "id"}}}, "not in a module"),
        (lambda mark: {"plan": {"overlap": 0.5}, "x": f"$import os; {mark}"}, "one module in an 'import'"),
        (lambda mark: {"plan": {"overlap": 0.5}, "x": "%/etc/passwd"}, "macros are not allowed"),
        (lambda mark: {"plan": {"overlap": 0.5, "a::b": 1}}, "stand for another id"),
        (lambda mark: {"plan": {"overlap": 0.5}, "+network_def": {"_target_": "os.getcwd"}}, "stand for another id"),
    ],
)
def test_metadata_of_a_stranger_are_checked_as_configs(bundle, tmp_path, entries, word):
    choice = with_metadata(bundle, **entries(marks(tmp_path / "ran")))
    with pytest.raises(BundleError, match=word):
        load_bundle(bundle, "cpu", True, choice)
    assert not (tmp_path / "ran").exists()


def test_metadata_that_nothing_refers_to_are_inert(bundle, tmp_path):
    mark = marks(tmp_path / "ran")
    choice = with_metadata(
        bundle,
        plan={"overlap": 0.25},
        note=f"${mark}",
        tool={"_target_": "os.system", "command": "id"},
        needs="$import no_such_module",
    )
    assert load_bundle(bundle, "cpu", True, choice).inferer.overlap == 0.25
    assert not (tmp_path / "ran").exists()


def test_metadata_without_end_are_refused(bundle):
    choice = with_metadata(bundle, plan={"overlap": 0.25})
    path = bundle / "configs" / "metadata.json"
    deep = json.loads(path.read_text())
    deep["deep"] = json.loads("[" * 500 + "]" * 500)
    path.write_text(json.dumps(deep))
    for safe in (True, False):
        with pytest.raises(BundleError, match="nested deeper"):
            load_bundle(bundle, "cpu", safe, choice)
