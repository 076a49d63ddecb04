"""Old public names give the new objects, with a warning."""

import importlib
import sys
from pydoc import locate

import pytest

from monai_vit3d import weights
from monai_vit3d.deprecated import MOVED, RENAMED
from monai_vit3d.networks import checkpoints

ROWS = [(package, old, new) for package, names in RENAMED.items() for old, new in names.items()]


@pytest.mark.parametrize(("package", "old", "new"), ROWS)
def test_an_old_name_warns_and_is_the_new_one(package, old, new):
    module = importlib.import_module(package)
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(module, old) is locate(new if "." in new else f"{package}.{new}")
    assert old not in module.__all__


@pytest.mark.parametrize("package", RENAMED)
def test_other_names_are_missing_as_in_any_module(package):
    with pytest.raises(AttributeError, match="no_such_name"):
        importlib.import_module(package).__getattr__("no_such_name")


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_moved_module_is_found_under_its_old_path(old, new, monkeypatch):
    package, _, name = old.rpartition(".")
    monkeypatch.delitem(sys.modules, old, raising=False)
    monkeypatch.delitem(vars(importlib.import_module(package)), name, raising=False)
    with pytest.warns(DeprecationWarning, match=new):
        assert importlib.import_module(old) is importlib.import_module(new)


def test_a_moved_module_is_an_attribute_of_its_former_package(monkeypatch):
    monkeypatch.delitem(sys.modules, "monai_vit3d.weights.files", raising=False)
    monkeypatch.delitem(vars(weights), "files", raising=False)
    with pytest.warns(DeprecationWarning, match=r"weights\.files is now monai_vit3d\.networks\.checkpoints"):
        assert weights.files.read_checkpoint is checkpoints.read_checkpoint
