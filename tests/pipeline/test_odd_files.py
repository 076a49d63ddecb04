"""Every key of a bundle's files and of run.json with every odd value: it works, or one line says what is wrong."""

import json
import logging
import shutil
import warnings

import pytest
import yaml

from monai_vit3d.bundle.config_file import read_config
from monai_vit3d.bundle.info import describe_bundle
from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.bundle.metadata import read_metadata
from monai_vit3d.data.errors import BundleError, Vit3dError
from monai_vit3d.pipeline.record import load_records
from tests.pipeline.tiny import CONFIG, METADATA, predict

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


def one_line(error):
    """Whether a message is one, or as many as it says itself, and not too long to read."""
    lines = getattr(error, "lines", None) or [str(error)]
    return all(line and "\n" not in line and len(line) < 3000 for line in lines)


def answered(function, *arguments):
    """Call it: it ends well, or with an error of ours that is fit to be shown."""
    failure = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(*arguments)
        except Vit3dError as error:
            failure = error
    assert failure is None or one_line(failure), failure


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
    for i, place in enumerate(CONFIG_PLACES):
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
@pytest.mark.parametrize("odd", [name for name in ODD if name not in ("deep", "macro")])
def test_a_resumed_run_with_an_odd_record_is_done_or_refused(tmp_path, clean_run, cohort, tiny_bundle, odd, capsys):
    content = json.loads((clean_run / "run.json").read_text())
    for i, place in enumerate([("files", 0, "outputs"), ("files", 0, "made_with"), ("started",), ("counts",)]):
        out = tmp_path / str(i)
        shutil.copytree(clean_run, out)
        (out / "run.json").write_text(changed(content, place, ODD[odd]))
        code = predict(cohort / "case00.nii.gz", to=out, bundle=tiny_bundle, options=["--resume"])
        assert code in (0, 2)
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert code == 0 or len(err.splitlines()) == 1, err


# YAML


def bomb(levels):
    """Ten times as much with each level, by aliases."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


def merging_bomb(levels):
    """The same by merge keys, which YAML's constructor writes out."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (bomb(20), "with all aliases written out"),
        (merging_bomb(20), "with all aliases written out"),
        ("a: &a [*a]", r"line 1: the alias \*a stands inside itself"),
        ("a: &a {b: {c: *a}}", r"stands inside itself"),
        ("a: " + "[" * 200 + "]" * 200, "nested deeper than"),
        ("a: [", "expected"),
        ("a: *b", "undefined alias"),
        ("- a", "list at the top"),
        ("", "NoneType at the top"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: 2020-13-45", "month must be"),
        ("? [a]\n: b", "unhashable"),
        ("a: \x00", "special characters|control characters"),
    ],
)
def test_yaml_that_is_refused_in_one_line(tmp_path, text, reason):
    path = tmp_path / "inference.yaml"
    path.write_text(text)
    with pytest.raises(BundleError, match=reason) as caught:
        read_config(path)
    assert one_line(caught.value)


def test_a_few_aliases_are_usual(tmp_path):
    path = tmp_path / "inference.yaml"
    path.write_text("a: &a {b: 1}\nc: *a")
    assert read_config(path) == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(("name", "text"), [("a.json", '{"a": 1, "a": 2}'), ("a.yaml", "a: 1\na: 2")])
def test_a_key_that_stands_twice_is_said_in_one_line(tmp_path, caplog, name, text):
    (tmp_path / name).write_text(text)
    assert read_config(tmp_path / name) == {"a": 2}
    (record,) = caplog.records
    assert record.getMessage() == f"{tmp_path / name}: Duplicate key: `a`; the last one counts"


def test_a_config_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_vit3d.bundle.config_file.MAX_CONFIG_BYTES", 10)
    (tmp_path / "a.json").write_text('{"a": "0123456789"}')
    with pytest.raises(BundleError, match="more than 10 bytes"):
        read_config(tmp_path / "a.json")
