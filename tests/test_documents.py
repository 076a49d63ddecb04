"""README.md and docs/: their links lead somewhere, their commands and settings are the parser's."""

import json
import re
import shlex

import pytest

from monai_vit3d.cli.command import build_parser
from monai_vit3d.cli.lab_defaults import use_lab_defaults
from monai_vit3d.pipeline.folder import predict_folder
from tests.helpers import ROOT
from tests.pipeline.tiny import write_bundle, write_images

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


COMMANDS = sorted(
    {line.split("#")[0].strip() for page in PAGES for text in blocks(page, "bash") for line in text.splitlines()
     if line.startswith("vit3d ")}
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_the_parsers(command):
    build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("text", [text for page in PAGES for text in blocks(page, "toml")])
def test_a_labs_defaults_are_the_parsers(text, tmp_path, monkeypatch):
    (tmp_path / "vit3d.toml").write_text(text)
    monkeypatch.setenv("VIT3D_CONFIG", str(tmp_path / "vit3d.toml"))
    assert use_lab_defaults(build_parser(), ["predict", "in", "-o", "out"]).values


@pytest.mark.parametrize("text", [text for page in PAGES for text in blocks(page, "json")])
def test_settings_of_other_programs_start_the_command(text):
    (server,) = json.loads(text)["mcpServers"].values()
    assert server["command"] == "vit3d"
    assert build_parser().parse_args(server["args"]).stdio


def keys_of(record):
    """The keys of a record, and of its records of labels and warnings."""
    return {*record, *(key for value in record.values() if isinstance(value, list) for one in value
                       if isinstance(one, dict) for key in one)}  # fmt: skip


@pytest.mark.slow
def test_what_is_in_the_files_is_documented(tmp_path):
    """Every key of a run's record and of the shipped bundles' ``trained_on`` stands on the page, as code."""
    documented = set(re.findall(r"`\{?([\w:%]+)", (ROOT / "docs" / "files.md").read_text().replace(", ", "`")))
    write_images(tmp_path / "in", 1)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    predict_folder(tmp_path / "in", tmp_path / "out", write_bundle(tmp_path / "bundle"))
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (keys_of(run) | keys_of(run["files"][0])) - documented == set()
    metadata = (json.loads(path.read_text()) for path in ROOT.glob("bundles/*/configs/metadata.json"))
    ranges = [one["trained_on"] for one in metadata if "trained_on" in one]
    assert len(ranges) > 1
    measured = {key for one in ranges for key in one}
    measured |= {key for one in ranges for label in one.get("labels", {}).values() for key in label}
    assert measured - documented == set()


def test_the_table_of_bundles_has_all_of_them():
    table = [line for line in (ROOT / "docs" / "bundles.md").read_text().splitlines() if line.startswith("| [")]
    weights = {line.split("[")[1].split("]")[0]: line.endswith("| yes |") for line in table}
    assert weights == {path.name: (path / "models").is_dir() for path in (ROOT / "bundles").iterdir() if path.is_dir()}
