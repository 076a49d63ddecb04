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


@pytest.mark.parametrize("kind", ["train", "inference"])
@pytest.mark.parametrize("name", NAMES)
def test_monai_knows_all_properties(name, kind):
    configs = BUNDLES / name / "configs"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"workflow_type": kind, "logging_file": False, "bundle_root": str(BUNDLES / name)}
        workflow = Unparsed(str(configs / f"{kind}.yaml"), str(configs / "metadata.json"), **options)
    workflow.parser.parse()
    assert workflow.check_properties() == []


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
