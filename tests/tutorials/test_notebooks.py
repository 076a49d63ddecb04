"""The notebooks: what a reader's machine needs is installed by a cell that does nothing elsewhere."""

import configparser
import importlib.util
import json
import os
import re

import pytest
from packaging.requirements import Requirement

from tests.helpers import ROOT

EXPECTED = {  # of answers that end with other words
    "04": ["['a/t1_seg.nii.gz', 'b/t1_seg.nii.gz']", "['t1_seg.nii.gz']"],
    "05": [str([0] * 8)],
    "08": ["sub-07 sub-07"],
}
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_it_opens_with_what_one_will_have_and_a_picture(path):
    text = "".join(cells(path)[0]["source"])
    assert "\n\nAt the end you have " in text
    (picture,) = re.findall(r"!\[[^]]+\]\((pictures/\w+\.png)\)", text)
    assert (path.parent / picture).read_bytes()[:4] == b"\x89PNG"
    assert (path.parent / picture).stat().st_size < 100_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_answers_to_the_exercises_are_folded_and_right(path, capsys):
    """Each prints what the comment at its end says."""
    text = "".join(cells(path)[-1]["source"])
    assert text.startswith("## Exercises\n")
    answers = re.findall(r"<details><summary>Answer</summary>\n\n(.*?)\n\n</details>", text, re.DOTALL)
    assert len(answers) == text.count("<details>") >= 1
    programs = [code for answer in answers for code in re.findall(r"```python\n(.*?)\n```", answer, re.DOTALL)]
    assert programs
    for code in programs:
        exec(compile(code, str(path), "exec"), {})
        printed = capsys.readouterr().out.splitlines()
        expected = EXPECTED.get(path.stem[:2]) or [code.rpartition("# ")[2]] * len(printed)
        assert printed == expected
