"""Every key of a bundle's files and of run.json with every odd value: it works, or one line says what is wrong."""

import argparse
import json
import logging
import os
import shutil
import signal
import warnings

import pytest
import yaml

from monai_vit3d.bundle.info import describe_bundle
from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.bundle.metadata import read_metadata
from monai_vit3d.cli.lab_defaults import use_lab_defaults
from monai_vit3d.data import datalist, decathlon_split, medmnist3d_info
from monai_vit3d.data.csv_files import read_csv_rows
from monai_vit3d.data.errors import Vit3dError
from monai_vit3d.pipeline.inputs import find_images
from monai_vit3d.pipeline.measure_training import find_cases
from monai_vit3d.pipeline.record import load_records
from monai_vit3d.planning.layouts.common import class_names_beside
from monai_vit3d.planning.layouts.table import read_dataset
from monai_vit3d.weights.recipes import load_recipe
from tests.helpers import side_by_side
from tests.pipeline.tiny import CONFIG, METADATA, fits_the_terminal, predict

DEEP = "[" * 3000 + "]" * 3000
# JSON texts; YAML reads them alike, but for the deep one, which its own check refuses
ODD = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "negative": "-1",
    "fraction": "0.5",
    "infinite": "1e999",
    "nan": "NaN",
    "huge": "1" + "0" * 400,
    "more digits than Python reads": "1" * 5000,
    "empty text": '""',
    "NUL": '"a\\u0000b"',
    "half a character": '"\\ud800"',
    "escape": '"\\u001b[31m\\n\\u202e"',
    "reference to nothing": '"@nowhere"',
    "reference to itself": '"@network"',
    "empty reference": '"@"',
    "expression that fails": '"$1/0"',
    "expression that is none": '"$("',
    "macro": '"%nowhere.json::a"',
    "long": '"' + "x" * 100_000 + '"',
    "empty list": "[]",
    "list of all": '[null, 1, "a", [], {}]',
    "empty object": "{}",
    "object": '{"a": {"b": null}}',
    "target that is none": '{"_target_": 3}',
    "target nowhere": '{"_target_": "nowhere.Nobody"}',
    "deep": DEEP,
}


def places(content, where=()):
    """Where something stands in a JSON file, the whole first."""
    yield where
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield from places(value, (*where, key))


def changed(content, where, text):
    """The JSON text of a file with another value at one place."""
    copied = json.loads(json.dumps(content))
    if not where:
        return text
    inner = copied
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = "PLACE"
    return json.dumps(copied).replace('"PLACE"', text)


def answered(function, *arguments):
    """Call it: it ends well, or with an error of ours that is fit to be shown."""
    failure = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*arguments)
        except Vit3dError as error:
            failure = error
    assert failure is None or fits_the_terminal(failure), failure


BUNDLE = yaml.safe_load(CONFIG)
BUNDLE |= {"network": "@network_def", "class_names": ["a"], "flip_axes": [0], "task": "multi-class"}
_LOADING, _SPACING = (("preprocessing", "transforms", i) for i in (0, 2))
INNER = [("imports", 0), ("network_def", "_target_"), ("network_def", "kernel_size"), ("inferer", "roi_size")]
INNER += [_LOADING, (*_LOADING, "keys"), (*_SPACING, "pixdim"), ("postprocessing", "transforms", 1)]
CONFIG_PLACES = [*((key,) for key in BUNDLE), *INNER]


@pytest.mark.slow
@pytest.mark.parametrize("odd", ODD)
def test_configs(tmp_path, tiny_bundle, odd, caplog):
    caplog.set_level(logging.CRITICAL)
    root = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, root)
    (root / "configs" / "inference.yaml").unlink()
    # two of three places: each place has most values, each value most places
    for i, place in enumerate(CONFIG_PLACES):
        if (i + list(ODD).index(odd)) % 3 == 2:
            continue
        (root / "configs" / "inference.json").write_text(changed(BUNDLE, place, ODD[odd]))
        answered(load_bundle, root, "cpu", i % 3 == 0)


@pytest.mark.parametrize("odd", ODD)
def test_metadata(tmp_path, tiny_bundle, odd):
    root = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, root)
    extra = {"task": "a", "image_classes": "b", "data_source": "c", "intended_use": "d"}
    content = {**METADATA, **extra}
    for place in places(content):
        (root / "configs" / "metadata.json").write_text(changed(content, place, ODD[odd]))
        answered(read_metadata, root)
    for place in [(), ("name",), ("task",), ("network_data_format",)]:
        (root / "configs" / "metadata.json").write_text(changed(content, place, ODD[odd]))
        answered(describe_bundle, root)


@pytest.mark.parametrize("odd", ODD)
def test_run_records(tmp_path, clean_run, odd):
    content = json.loads((clean_run / "run.json").read_text())
    content["files"] = content["files"][:2]
    for place in places(content):
        if "options" not in place and "made_with" not in place:
            (tmp_path / "run.json").write_text(changed(content, place, ODD[odd]))
            answered(load_records, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("odd", "place"),
    side_by_side(
        [name for name in ODD if name not in ("deep", "macro")],
        [("files", 0, "outputs"), ("files", 0, "made_with"), ("started",), ("counts",)],
    ),
)
def test_a_resumed_run_with_an_odd_record_is_done_or_refused(
    tmp_path, clean_run, cohort, tiny_bundle, odd, place, capsys
):
    out = tmp_path / "out"
    shutil.copytree(clean_run, out)
    content = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(changed(content, place, ODD[odd]))
    code = predict(cohort / "case00.nii.gz", to=out, bundle=tiny_bundle, options=["--resume"])
    assert code in (0, 2)
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert code == 0 or len(err.splitlines()) == 1, err


# what reads a small file that a user gives, or that lies where a user points to
READERS_OF_TEXT = {
    "cases.json": lambda path: find_images([path], path.parent / "out"),
    "cases.csv": lambda path: find_images([path], path.parent / "out"),
    "run.json": lambda path: find_images([path.parent], path.parent / "out"),
    "split.json": lambda path: find_cases(path.parent, split=path),
    "decathlon.json": lambda path: decathlon_split(path.parent, path, "training"),
    "folds.json": lambda path: datalist(path.parent, path, "training"),
    "sets.json": lambda path: medmnist3d_info("own", path),
    "training.json": read_dataset,
    "dseg.tsv": lambda path: class_names_beside(path.parent),
    "table.csv": read_csv_rows,
    "recipe.yaml": load_recipe,
    "vit3d.toml": lambda path: use_lab_defaults(argparse.ArgumentParser(), ["check"]),
}


@pytest.fixture
def text_file(request, tmp_path, monkeypatch):
    """Where such a file is looked for, beside an image."""
    monkeypatch.setenv("VIT3D_CONFIG", str(tmp_path / "vit3d.toml"))
    (tmp_path / "t1.nii.gz").touch()
    return tmp_path / request.param


@pytest.mark.parametrize(
    ("text_file", "read"), READERS_OF_TEXT.items(), indirect=["text_file"], ids=list(READERS_OF_TEXT)
)
def test_files_that_users_give(text_file, read):
    lists = {name: f'{{"training": {text}}}' for name, text in ODD.items()}
    sections = {f"{name} test": f'{{"training": [{{"image": "t1.nii.gz"}}], "test": {ODD[name]}}}' for name in ODD}
    for text in [*ODD.values(), *lists.values(), *sections.values(), "", "{", "\0", b"\xff\xfe"]:
        text_file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        answered(read, text_file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes as POSIX has them")
@pytest.mark.parametrize(
    ("text_file", "read"), READERS_OF_TEXT.items(), indirect=["text_file"], ids=list(READERS_OF_TEXT)
)
def test_pipes_in_their_place_are_not_waited_for(text_file, read):
    os.mkfifo(text_file)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(20)  # a KeyboardInterrupt: nothing but a reader that waits gets it
    try:
        answered(read, text_file)
    finally:
        signal.alarm(0)
