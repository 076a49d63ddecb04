"""MONAI's own checks of a bundle's training and inference workflow, and what its documentation is made of."""

import warnings

import pytest
from monai.bundle import ConfigWorkflow

from monai_vit3d.handlers import AttachHandlers
from tests.helpers import BUNDLES

NAMES = sorted(path.name for path in BUNDLES.iterdir() if (path / "configs").is_dir())
# the section names that MONAI's model zoo asks for
SECTIONS = ["Model Overview", "Data", "Training configuration", "Performance", "Commands", "Limitations", "License"]


class Unparsed(ConfigWorkflow):
    """A workflow whose parts are looked up and not built: no data set is needed."""

    def _get_property(self, name, property):
        return self.parser.get(property["id"]) if property["id"] in self.parser else None


def unknown_properties(bundle, *configs):
    """The properties that MONAI misses in configs that are read one after another; the first says what they do."""
    paths = [str(bundle / "configs" / f"{name}.yaml") for name in configs]
    options = {"workflow_type": configs[0], "logging_file": False, "bundle_root": str(bundle)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = Unparsed(paths, str(bundle / "configs" / "metadata.json"), **options)
    workflow.parser.parse()
    return workflow.check_properties()


def config_sets(bundle):
    """What a bundle's files are run as: train or inference alone, and with each that changes one of them."""
    found = {path.stem for path in (bundle / "configs").glob("*.yaml")}
    first = [("train",), ("inference",)]
    more = {"train": ["multi_gpu_train", "decathlon", "nifti", "medmnist"], "inference": ["evaluate", "explain"]}
    second = [(kind, name) for kind, names in more.items() for name in names if name in found]
    third = [("inference", "evaluate", "multi_gpu_evaluate")] if "multi_gpu_evaluate" in found else []
    return [*first, *second, *third]


@pytest.mark.parametrize(
    ("name", "configs"),
    [(name, configs) for name in NAMES for configs in config_sets(BUNDLES / name)],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_monai_knows_all_properties(name, configs):
    assert unknown_properties(BUNDLES / name, *configs) == []


def test_attached_handlers_keep_their_order():
    order = []

    class Handler:
        def __init__(self, name):
            self.name = name

        def attach(self, engine):
            order.append((self.name, engine))

    AttachHandlers([Handler("a"), Handler("b")]).attach("engine")
    assert order == [("a", "engine"), ("b", "engine")]


@pytest.mark.parametrize("name", NAMES)
def test_documentation_has_the_zoos_sections(name):
    lines = (BUNDLES / name / "docs" / "README.md").read_text().splitlines()
    titles = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert [title for title in titles if title in SECTIONS] == sorted(set(titles) & set(SECTIONS), key=titles.index)
    assert set(SECTIONS) <= set(titles)
    assert titles[0] == SECTIONS[0]
    for title in SECTIONS:
        place = lines.index(f"## {title}")
        assert any(line.strip() for line in lines[place + 1 : place + 4] if not line.startswith("## ")), title
