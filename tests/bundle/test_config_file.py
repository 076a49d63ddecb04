"""Config files: what must not be built or walked is refused in one line."""

import pytest

from monai_vit3d.bundle.config_file import read_config
from monai_vit3d.data.errors import BundleError
from tests.pipeline.tiny import fits_the_terminal


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
    assert fits_the_terminal(caught.value)


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
