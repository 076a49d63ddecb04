"""The notebooks: what a reader's machine needs is installed by a cell that does nothing elsewhere."""

import configparser
import importlib.util
import json
import os

import pytest
from packaging.requirements import Requirement

from tests.helpers import ROOT

NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))


def cells(path):
    return json.loads(path.read_text("utf-8"))["cells"]


def install_cell(path):
    (cell,) = [cell for cell in cells(path) if "install" in cell["metadata"].get("tags", ())]
    return "".join(cell["source"])


@pytest.fixture
def shell(monkeypatch):
    """A notebook's interpreter, and what its install commands would have run."""
    from IPython.core.interactiveshell import InteractiveShell

    shell, ran = InteractiveShell(), []
    shell.register_magic_function(lambda line: ran.append(("pip", line)), "line", "pip")
    shell.register_magic_function(lambda line: (ran.append(("cd", line)), os.chdir(line)), "line", "cd")
    shell.system = lambda line: ran.append(("!", shell.var_expand(line)))
    monkeypatch.setattr("builtins.input", lambda prompt: "https://host.example/fork")
    return shell, ran


def test_every_notebook_begins_with_the_same_cell():
    assert len(NOTEBOOKS) == 9
    assert {install_cell(path) for path in NOTEBOOKS} == {install_cell(NOTEBOOKS[0])}
    for path in NOTEBOOKS:
        first, second = cells(path)[:2]
        assert first["cell_type"] == "markdown"
        assert "install" in second["metadata"]["tags"]


@pytest.mark.slow
def test_the_cell_installs_only_what_is_missing(shell, tmp_path, monkeypatch):
    shell, ran = shell
    monkeypatch.chdir(ROOT / "tutorials")
    shell.run_cell(install_cell(NOTEBOOKS[0])).raise_error()
    assert ran == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    shell.run_cell(install_cell(NOTEBOOKS[0])).raise_error()
    ((magic, line),) = ran
    path, _, extras = line.removeprefix('install --quiet "').removesuffix('"').partition("[")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert (magic, path) == ("pip", "..")
    assert Requirement(f"monai-vit3d[{extras}").extras <= {*setup["options.extras_require"]}

    ran.clear()  # the notebook alone, as Colab opens it
    (tmp_path / "monai_vit3d_source" / "tutorials").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    shell.run_cell(install_cell(NOTEBOOKS[0])).raise_error()
    clone = "git clone --quiet --depth 1 https://host.example/fork monai_vit3d_source"
    assert [one for one in ran if one[0] != "pip"] == [("!", clone), ("cd", "monai_vit3d_source/tutorials")]
    assert ran[-1] == (magic, line)
