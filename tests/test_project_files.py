"""What other programs read of the repository: workflows, forms, hooks and the image's recipe name what is there."""

import re

import pytest
import yaml

from tests.fresh_environment import requirements_of_ours
from tests.helpers import ROOT

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
SETUP = (ROOT / "setup.cfg").read_text()


def test_the_workflow_tests_every_python_from_the_lowest_on():
    lowest = re.search(r"python_requires = >=(\S+)", SETUP)[1]
    tested = {lowest, *WORKFLOW["jobs"]["newest"]["strategy"]["matrix"]["python"]}
    oldest = [step["with"]["python-version"] for step in WORKFLOW["jobs"]["oldest"]["steps"] if "setup" in str(step)]
    assert oldest == [lowest]
    assert tested == {f"3.{minor}" for minor in range(10, 15)}


def test_what_the_workflow_runs_is_there():
    lines = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = {word for line in lines if line.startswith("make ") for word in line.split()[1:]}
    assert made <= targets
    assert [line for line in lines if line.startswith(".ci/") and not (ROOT / line).is_file()] == []
    assert [path for line in lines for path in re.findall(r"tests/\S+", line) if not (ROOT / path).exists()] == []
    assert {"python -m build", "twine check --strict dist/*"} <= set(lines)
    assert any(line.startswith("check-wheel-contents ") for line in lines)


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_forms_for_issues_are_whole(form):
    """As GitHub's syntax for issue forms asks: https://docs.github.com/communities (name, description, body, ids)."""
    content = yaml.safe_load(form.read_text())
    assert content["name"]
    assert content["description"]
    kinds = {"checkboxes", "dropdown", "input", "markdown", "textarea"}
    assert {field["type"] for field in content["body"]} <= kinds
    asked = [field for field in content["body"] if field["type"] != "markdown"]
    assert asked
    assert all(field["attributes"]["label"] for field in asked)
    named = [field["id"] for field in asked if "id" in field]
    assert len(named) == len({*named})


def test_hooks_are_tools_of_the_dev_extra():
    hooks = [
        hook for one in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for hook in one["hooks"]
    ]
    tools = {"lint-imports": "import-linter"}
    names = {re.match(r"\.venv/bin/(\S+)", hook["entry"])[1] for hook in hooks}
    assert names
    assert {tools.get(name, name) for name in names} <= {one.name for one in requirements_of_ours(["dev"])}


def test_the_image_installs_extras_that_there_are_and_starts_the_command():
    text = (ROOT / "Dockerfile").read_text()
    for extra in re.search(r"/source\[([\w,]+)\]", text)[1].split(","):
        assert requirements_of_ours([extra])
    assert re.search(r"--constraint /source/(\S+)", text)[1] == "constraints.txt"
    assert (ROOT / "constraints.txt").is_file()
    assert 'ENTRYPOINT ["vit3d"]' in text
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"monai_vit3d", "bundles", "setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"} & {
        *ignored
    }
