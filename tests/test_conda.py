"""The conda recipe says what setup.cfg says: version, Python, dependencies, command."""

import configparser

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import monai_vit3d
from tests.helpers import ROOT

CONDA_NAMES = {"torch": "pytorch", "isal": "python-isal"}  # where conda-forge's differ from PyPI's


@pytest.fixture(scope="module")
def recipe():
    return yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text("utf-8"))


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def bounds(lines):
    names, specifiers = zip(*((name, rest) for name, _, rest in (line.partition(" ") for line in lines)))
    return dict(zip(names, map(SpecifierSet, specifiers)))


def test_its_version_and_texts_are_the_packages(recipe, setup):
    assert recipe["context"]["version"] == monai_vit3d.__version__
    assert recipe["package"] == {"name": setup["metadata"]["name"], "version": "${{ version }}"}
    assert recipe["about"]["summary"] == setup["metadata"]["description"]
    assert recipe["about"]["license"] == setup["metadata"]["license"]
    assert (ROOT / "conda" / recipe["source"]["path"] / recipe["about"]["license_file"]).is_file()


def test_its_dependencies_are_setup_cfgs(recipe, setup):
    required = [Requirement(line) for line in setup["options"]["install_requires"].strip().splitlines()]
    expected = {CONDA_NAMES.get(one.name, one.name): one.specifier for one in required}
    expected["python"] = SpecifierSet(setup["options"]["python_requires"])
    assert bounds(recipe["requirements"]["run"]) == expected


def test_it_builds_as_pyproject_says_and_has_the_command(recipe, setup):
    host = bounds(recipe["requirements"]["host"])
    build = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("requires = ")]
    (needed,) = (Requirement(one.strip('"')) for one in build[0].partition("[")[2].rstrip("]").split(","))
    assert host[needed.name] == needed.specifier
    assert host["python"] == SpecifierSet(setup["options"]["python_requires"])
    (command,) = setup["options.entry_points"]["console_scripts"].strip().splitlines()
    assert recipe["build"]["python"]["entry_points"] == [command]
