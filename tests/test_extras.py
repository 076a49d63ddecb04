"""Without extras: all that needs none works, and what needs one says which."""

import importlib.metadata
import json
import subprocess

import pytest
from packaging.utils import canonicalize_name

from monai_vit3d.data.errors import MODULES_OF_EXTRAS, explain_missing_module
from tests.fresh_environment import environment_variables, make_environment, required, requirements_of_ours
from tests.helpers import ONE_THREAD
from tests.training.tiny_bundle import write_tiny

pytestmark = pytest.mark.slow
NEED_IGNITE = ("monai_vit3d.handlers", "monai_vit3d.training")
IMPORTS = """
import importlib, json, pkgutil
import monai_vit3d

failed = []
for module in pkgutil.walk_packages(monai_vit3d.__path__, "monai_vit3d.", onerror=lambda name: None):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            failed.append([module.name, error.name])
print(json.dumps(failed))
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return make_environment(tmp_path_factory.mktemp("environment") / "venv")


def run(programs, *words, folder):
    return subprocess.run(
        [programs / words[0], *words[1:]], cwd=folder, env=environment_variables(programs, **ONE_THREAD),
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_every_module_but_those_of_trainings_is_imported(programs, tmp_path):
    done = run(programs, "python", "-W", "ignore", "-c", IMPORTS, folder=tmp_path)
    failed = json.loads(done.stdout.splitlines()[-1])
    assert {missing for _, missing in failed} == {"ignite"}
    assert [name for name, _ in failed if not name.startswith(NEED_IGNITE)] == []


@pytest.mark.parametrize(
    ("words", "extra"),
    [("train bundle", "bundle"), ("demo --output out", "viz"), ("serve --stdio", "serve"),
     ("probe features.csv ages.csv --target age", "ssl")],
)  # fmt: skip
def test_a_verb_that_needs_an_extra_says_which_in_one_line(words, extra, programs, tmp_path):
    write_tiny(tmp_path)
    (tmp_path / "features.csv").write_text("name,subject,windows,f0\n" + "".join(f"c{k},{k},1,{k}\n" for k in range(9)))
    (tmp_path / "ages.csv").write_text("subject,age\n" + "".join(f"{k},{k}.5\n" for k in range(9)))
    done = run(programs, "vit3d", *words.split(), folder=tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("vit3d: ")
    assert line.endswith(f"which is not installed: install this package with its '{extra}' extra.")


USER_EXTRAS = ("bundle", "completion", "cpu", "dicom", "medmnist", "peft", "serve", "ssl", "viz")


@pytest.mark.parametrize("extra", USER_EXTRAS)
def test_the_modules_of_each_extra_are_known(extra):
    """By the names that the installed packages say they have; scikit-learn is of two extras."""
    modules = importlib.metadata.packages_distributions()
    for one in requirements_of_ours([extra]):
        if not required([one.name]):
            continue
        names = [module for module, owners in modules.items()
                 if canonicalize_name(one.name) in map(canonicalize_name, owners)]  # fmt: skip
        assert {MODULES_OF_EXTRAS.get(name) for name in names} & {extra, "ssl"}, one.name


def test_a_module_of_no_extra_is_not_explained():
    assert explain_missing_module(ModuleNotFoundError("", name="monai_vit3d.nothing")) is None
    assert "'dicom' extra" in explain_missing_module(ModuleNotFoundError("", name="pydicom.dataset"))
