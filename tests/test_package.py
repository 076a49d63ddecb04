"""The package: light to import, its names found, its rooms importing only what they may."""

import ast
import configparser
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import monai_vit3d
from tests.helpers import ROOT as CHECKOUT

ROOT = Path(monai_vit3d.__file__).parent
HEAVY = ["torch", "monai", "timm", "nibabel", "ignite", "numpy"]


def modules_after(code):
    """Names of the modules that a fresh interpreter holds after running ``code``."""
    # one without a spec only stands for a module that loads on demand
    loaded = "sorted(name for name, module in list(sys.modules.items()) if getattr(module, '__spec__', None))"
    command = [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps({loaded}))"]
    return set(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def imports(path):
    """Absolute names of the modules that a source file imports, anywhere in it."""
    package = ["monai_vit3d", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_import_is_light():
    loaded = modules_after("import monai_vit3d; dir(monai_vit3d); monai_vit3d.__version__")
    assert "monai_vit3d" in loaded
    assert loaded.isdisjoint(HEAVY)
    assert {name for name in loaded if name.startswith("monai_vit3d.")} == {
        "monai_vit3d.dash_m",
        "monai_vit3d.deprecated",
        "monai_vit3d.discovery",
    }


def test_import_of_data_is_light():
    loaded = modules_after("from monai_vit3d.data import WeightsError, decathlon_split")
    assert loaded.isdisjoint(["torch", "monai", "timm", "nibabel", "ignite"])


@pytest.mark.parametrize("name", monai_vit3d.__all__)
def test_public_names_resolve(name):
    value = getattr(monai_vit3d, name)
    assert name in dir(monai_vit3d)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__module__.startswith("monai_vit3d.")


def test_star_import():
    space = {}
    exec("from monai_vit3d import *", space)
    assert set(monai_vit3d.__all__) <= set(space)


def rooms():
    return sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


@pytest.mark.parametrize("room", rooms())
def test_rooms_resolve_with_their_names(room):
    module = importlib.import_module(f"monai_vit3d.{room}")
    assert getattr(monai_vit3d, room) is module
    assert room in dir(monai_vit3d)
    for name in getattr(module, "__all__", []):
        assert getattr(module, name) is not None


@pytest.mark.parametrize("module", ["monai_vit3d", "monai_vit3d.data"])
def test_unknown_name(module):
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'ViT'"):
        importlib.import_module(module).ViT  # noqa: B018


@pytest.mark.parametrize(
    "path",
    [p for room in ("layers", "decoders", "networks", "inferers", "pretraining") for p in ROOT.glob(f"{room}/**/*.py")],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_networks_know_no_files_engines_or_bundles(path):
    for name in imports(path):
        for forbidden in (
            "nibabel",
            "ignite",
            "monai.bundle",
            "monai_vit3d.cli",
            "monai_vit3d.pipeline",
            "monai_vit3d.bundle",
        ):
            assert f"{name}.".startswith(f"{forbidden}.") is False, name


@pytest.mark.slow
def test_only_one_room_opens_nifti():
    # nibabel.nicom reads headers of DICOM
    users = {
        p.relative_to(ROOT).as_posix()
        for p in ROOT.rglob("*.py")
        if any(n.split(".")[0] == "nibabel" and not n.startswith("nibabel.nicom.") for n in imports(p))
    }
    assert users
    assert all(user.startswith("data/nifti/") for user in users)


@pytest.mark.slow
def test_nobody_imports_the_command_line():
    users = [p for p in ROOT.rglob("*.py") if any(f"{n}.".startswith("monai_vit3d.cli.") for n in imports(p))]
    assert {p.relative_to(ROOT).parts[0] for p in users} == {"cli", "__main__.py"}


def test_imports_are_read_right():
    """The reader above sees absolute, relative and hidden imports."""
    assert {"monai_vit3d.layers", "monai_vit3d.layers.to_3tuple", "torch", "monai_vit3d.layers.pos_embed"} <= set(
        imports(ROOT / "decoders" / "unetr.py")
    )
    assert "monai_vit3d.bundle.safety" in set(imports(ROOT / "bundle" / "open_config.py"))


def test_contributing_names_tests_that_are_there():
    text = (CHECKOUT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"tests/[\w/]+(?:\.py)?", text))
    assert len(paths) > 10
    assert [path for path in sorted(paths) if not (CHECKOUT / path).exists()] == []


def test_the_lowest_constraints_are_the_bounds_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    lines = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    requirements = [Requirement(line) for text in lines for line in text.split("\n") if line]
    bounds = {r.name: s.version for r in requirements for s in r.specifier if s.operator == ">="}
    pins = [Requirement(line) for line in (CHECKOUT / "constraints-lowest.txt").read_text().splitlines()[1:]]
    pinned = {pin.name: next(iter(pin.specifier)).version for pin in pins}
    assert {name: Version(bound) for name, bound in bounds.items()} == {k: Version(v) for k, v in pinned.items()}


def test_errors_advise_extras_that_are_there():
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    sources = "".join(path.read_text() for path in ROOT.rglob("*.py"))
    advised = set(re.findall(r"install_extra\(['\"](\w+)['\"]\)|extra=\"(\w+)\"", sources))
    names = {name for pair in advised for name in pair if name}
    assert {"cpu", "dicom", "medmnist", "peft", "ssl"} <= names <= set(setup["options.extras_require"])
    assert re.findall(r"pip install '?monai", sources) == []  # nobody has registered that name


INTERFACES = {"add_verb", "logger", "parse"}  # functions that each row of a table has under one name


def public_names(path):
    """Names that a module defines at its top level."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


@pytest.mark.slow
def test_a_public_name_means_one_thing():
    homes = {}
    for path in sorted(ROOT.rglob("*.py")):
        for name in public_names(path):
            if not name.startswith("_") and name not in INTERFACES:
                homes.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


# files of this package, of the system, or just written; what users give goes through read_regular
READ_DIRECTLY = {
    "bundle/info.py", "data/published_models.py", "deferred_imports.py", "evaluation/page.py",
    "evaluation/volume_report.py", "inferers/openvino.py", "memory_limits.py", "networks/hub.py",
    "pipeline/report/page.py", "planning/write_bundle.py",
}  # fmt: skip


def test_small_files_of_users_are_read_by_one_function():
    """So that no pipe in their place is waited for."""
    calls = (".read_text(", ".read_bytes(")
    readers = {p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py") if any(c in p.read_text() for c in calls)}
    assert readers == READ_DIRECTLY
