"""Packages that `vit3d predict` leaves empty until something of them is asked for: what is then found is what it is."""

import hashlib
import inspect
import json
import shutil
import subprocess
import sys
import threading

import nibabel as nib
import pytest
from monai.bundle.config_item import ComponentLocator

import monai_vit3d.deferred_imports as deferred
from monai_vit3d.bundle.components import AMBIGUOUS, PACKAGES
from monai_vit3d.deferred_imports import DEFERRED, DeferredPackage, is_deferred, run_deferred
from tests.helpers import HIPPOCAMPUS, phantom, run_python

# each name of the packages that only collect, and where the object behind it is defined
NAMES = """
import importlib, json, sys
import monai_vit3d.deferred_imports as deferred
if {defer}:
    deferred.defer_imports()
found = {{}}
for package, row in deferred.DEFERRED.items():
    if row.only_collects:
        module = importlib.import_module(package)
        for name in deferred.collected_names(deferred.Path(module.__file__)):
            value = getattr(module, name)
            called = getattr(value, "__qualname__", str(type(value)))
            found[f"{{package}}.{{name}}"] = [getattr(value, "__module__", ""), called]
print(json.dumps([found, deferred.is_deferred("monai"), deferred.is_deferred("ignite")]))
"""


def answer(code, *arguments):
    """What a fresh interpreter prints as JSON."""
    status, out, err = run_python("-W", "ignore", "-c", code, *arguments)
    assert status == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_each_name_is_the_object_that_it_always_is():
    mine, waits, ignite_waits = answer(NAMES.format(defer=True))
    theirs, _, _ = answer(NAMES.format(defer=False))
    assert len(theirs) > 1000
    assert mine == theirs
    assert (waits, ignite_waits) == (True, True)  # none of them needed the whole package


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a deferred package of a table of files."""
    names = []

    def make(name, row, **files):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in files.items():
            (folder / f"{file}.py").write_text(text)
        monkeypatch.setitem(DEFERRED, name, row)
        names.append(name)
        return name

    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    deferred.defer_imports()
    yield make
    sys.meta_path[:] = before
    for name in [name for name in sys.modules if name.removeprefix("deferred:").partition(".")[0] in names]:
        del sys.modules[name]


def test_a_name_imports_only_the_module_that_it_comes_from(package):
    package("pack1", DeferredPackage(("*",), only_collects=True), __init__="from .a import x\nfrom .b import *\n1 / 0",
            a="x = object()", b="y = 2\ndef f(): pass", c="z = 3")  # fmt: skip
    import pack1
    from pack1 import x

    assert x is sys.modules["pack1.a"].x
    assert "pack1.b" not in sys.modules
    assert (pack1.y, pack1.c.z) == (2, 3)  # of a star, of a submodule
    assert is_deferred("pack1")
    assert not hasattr(pack1, "__wrapped__")  # what only looks at a module does not run it
    with pytest.raises(ZeroDivisionError):  # a name that is nowhere: its __init__ says so, and runs
        pack1.nothing  # noqa: B018


def test_a_package_runs_when_a_submodule_needs_it_and_each_module_runs_once(package):
    text = "from .other import runs\nran = True"
    package("pack2", DeferredPackage(("part",)), __init__=text, part="", other="import sys\nruns = []\nruns.append(1)")
    import pack2.part

    assert is_deferred("pack2")
    import pack2.other

    assert not is_deferred("pack2")
    assert pack2.ran
    assert pack2.other.runs is pack2.runs
    assert sys.modules["pack2.other"] is pack2.other
    assert type(pack2) is type(sys)
    assert type(pack2.__loader__).__module__ != deferred.__name__


def test_a_circular_import_ends_as_it_would(package):
    package("pack3", DeferredPackage(("*",)), __init__="from .a import f\nlate = 1", a="from pack3 import late\nf = 1")
    import pack3

    with pytest.raises(ImportError, match="late"):
        pack3.f  # noqa: B018
    assert is_deferred("pack3")


def test_threads_wait_for_the_one_that_runs_a_package(package):
    package("pack4", DeferredPackage(), __init__="import time\nstarted = 1\ntime.sleep(0.2)\nended = 2")
    import pack4

    found = []
    threads = [threading.Thread(target=lambda: found.append(pack4.ended)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [2] * 4


def test_what_is_called_later_runs_its_package_when_it_is_used(package):
    package("pack5", DeferredPackage(called_later=("C", "f")), __init__="class C:\n    n = 7\ndef f(a): return -a")
    from pack5 import C, f

    assert is_deferred("pack5")
    assert f(3) == -3
    assert not is_deferred("pack5")
    assert C.n == 7
    assert isinstance(C(), C)

    class D(C):
        pass

    assert issubclass(D, C)
    assert not isinstance(3, C)


@pytest.mark.parametrize("name", [name for name, row in DEFERRED.items() if row.called_later])
def test_what_is_called_later_is_there(name):
    module = pytest.importorskip(name)
    assert all(callable(getattr(module, one)) for one in DEFERRED[name].called_later)


@pytest.mark.parametrize("name", [name for name, row in DEFERRED.items() if row.distribution])
def test_a_version_is_the_packages_own(name):
    module = pytest.importorskip(name)
    assert deferred.version(DEFERRED[name].distribution) == module.__version__


def test_the_locator_finds_what_monais_finds():
    locator, count = ComponentLocator(), 0
    for package in PACKAGES:
        for name, value in vars(pytest.importorskip(package)).items():
            is_component = inspect.isclass(value) or inspect.isfunction(value)
            if is_component and value.__module__.startswith("monai.") and name not in AMBIGUOUS:
                assert locator.get_component_module_name(name) == value.__module__, name
                count += 1
    assert count > 900


LOCATED = """
import json, sys
from monai_vit3d.deferred_imports import defer_imports, is_deferred
defer_imports()
from monai_vit3d.bundle.components import DeferredLocator
locator, found = DeferredLocator(), []
for name in ("LoadImaged", "SlidingWindowInferer", "os.path.join", "UNet", "Affine", "DiceLoss", "nothing"):
    found.append([locator.get_component_module_name(name), is_deferred("monai")])
import timm
found.append(timm.list_models("vit3d_*") != [])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_name_that_no_usual_package_has_is_looked_for_in_all_of_monai():
    assert answer(LOCATED) == [
        ["monai.transforms.io.dictionary", True],
        ["monai.inferers.inferer", True],
        [None, True],
        ["monai.networks.nets.unet", True],
        [["monai.transforms.lazy.utils", "monai.transforms.spatial.array"], False],
        ["monai.losses.dice", False],
        [None, False],
        True,
    ]


OPENED = """
import json, sys
from pathlib import Path
from monai_vit3d.deferred_imports import defer_imports, is_deferred
defer_imports()
from monai_vit3d.bundle.load import load_steps
found = []
for root in sys.argv[1:]:
    load_steps(Path(root))
    found.append(is_deferred("monai"))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_bundle_that_is_code_has_all_of_monai(tmp_path):
    code = shutil.copytree(HIPPOCAMPUS, tmp_path / "code")
    config = code / "configs" / "inference.yaml"
    text = config.read_text()
    assert "flip_axes: [0] " in text
    config.write_text(text.replace("flip_axes: [0] ", "flip_axes: $__import__('json').loads('[0]')"))
    assert answer(OPENED, HIPPOCAMPUS, code) == [True, False]


RUN = """
import atexit, json, sys
from monai_vit3d.cli import command
import monai_vit3d.deferred_imports as deferred
if not {defer}:
    command.defer_imports = lambda: None
waiting = ("monai", "timm", "timm.models", "torchvision", "pandas")
atexit.register(lambda: print(json.dumps([deferred.is_deferred(name) for name in waiting])))
sys.argv[0] = "vit3d"
command.run_process()
"""


@pytest.mark.slow
def test_the_command_labels_the_same_without_what_it_does_not_need(tmp_path):
    image = tmp_path / "image.nii.gz"
    nib.save(phantom(0)[0], image)
    found = {}
    for defer in (True, False):
        out = tmp_path / str(defer)
        words = ["predict", str(image), "-o", str(out), "--bundle", str(HIPPOCAMPUS), "--anyway"]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RUN.format(defer=defer), *words], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        labels = hashlib.sha256((out / "image_seg.nii.gz").read_bytes()).hexdigest()
        found[defer] = (
            labels,
            [line for line in done.stderr.splitlines() if "exporting" not in line and "done" not in line],
        )
        waiting = json.loads(done.stdout.splitlines()[-1])
        assert all(waiting) if defer else not any(waiting)
    assert found[True] == found[False]


def test_running_what_is_not_deferred_does_nothing():
    run_deferred("json")
    run_deferred("no.such.package")
    assert "no" not in sys.modules
