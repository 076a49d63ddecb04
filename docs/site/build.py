"""Build the documentation site: `python docs/site/build.py site` (`make docs`); a warning is an error.

The site's sources are the repository's documents under the paths that they have, so that links among them hold, and
pages that are written here from the code: the API of the public names, the command's verbs, the tutorials' gallery.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sphinx.cmd.build import main as sphinx_build

import monai_vit3d
from monai_vit3d.cli.command import build_parser

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# what the site shows of the repository
SOURCES = (
    "docs/*.md",
    "docs/*.svg",
    "tutorials/*.ipynb",
    "tutorials/pictures/*.png",
    "bundles/*/docs/*",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
)
# caption of the sidebar and its pages
CONTENTS = {
    "Start": ("tutorials/index",),
    "How to": ("docs/predict", "docs/viewers", "docs/machines", "docs/train", "docs/features", "docs/networks",
               "docs/pretraining", "docs/bundles", "docs/safe_bundles", "docs/weights", "docs/export", "docs/agents"),
    "Bundles": ("bundles/*/docs/README",),
    "Explanation": ("docs/explanation",),
    "Reference": ("reference/cli", "reference/index", "docs/files", "docs/zoo"),
    "Measured": ("docs/comparison", "docs/speed"),
    "Project": ("CONTRIBUTING", "SECURITY", "CHANGELOG"),
}  # fmt: skip


def write_sources(folder: Path) -> None:
    """Write all sources of the site into an empty folder."""
    for path in itertools.chain.from_iterable(map(ROOT.glob, SOURCES)):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (folder / "index.md").write_text(f"{(ROOT / 'README.md').read_text('utf-8')}\n{_sidebar()}", "utf-8")
    (folder / "reference").mkdir()
    (folder / "reference" / "cli.md").write_text(command_page(), "utf-8")
    for name, page in api_pages().items():
        (folder / "reference" / f"{name}.md").write_text(page, "utf-8")
    (folder / "tutorials" / "index.md").write_text(gallery(folder / "tutorials"), "utf-8")


def _sidebar() -> str:
    return "\n".join(_toctree(pages, f":hidden:\n:caption: {caption}\n:glob:") for caption, pages in CONTENTS.items())


def _toctree(pages: Any, options: str) -> str:
    return "\n".join(["```{toctree}", options, "", *pages, "```", ""])


def command_page() -> str:
    """Return the page of all verbs, each with the help that the command prints."""
    os.environ["COLUMNS"] = "90"
    parser = build_parser()
    verbs = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = ["# The command", f"```text\n{parser.format_help()}```"]
    parts += [f"## vit3d {name}\n\n```text\n{verb.format_help()}```" for name, verb in verbs.items()]
    return "\n\n".join(parts) + "\n"


def api_pages() -> dict[str, str]:
    """Return a page for each package with public names, by its name, and one of the names of ``monai_vit3d`` itself."""
    homes: dict[int, str] = {}  # of an object, the package that lists it
    pages = {}
    for name in sorted(path.parent.name for path in (ROOT / "monai_vit3d").glob("*/__init__.py")):
        module = importlib.import_module(f"monai_vit3d.{name}")
        if names := sorted(getattr(module, "__all__", ())):
            pages[module.__name__] = _api_page(module, names)
            homes |= {id(getattr(module, each)): f"{module.__name__}.{each}" for each in names}
    objects = {name: getattr(monai_vit3d, name) for name in monai_vit3d.__all__ if name != "__version__"}
    lines = [
        "# Python",
        *(f"- {_link(name, homes[id(value)])}" for name, value in objects.items() if id(value) in homes),
        *(entry for name, value in objects.items() if id(value) not in homes for entry in _entry(monai_vit3d, name)),
    ]
    return pages | {"index": "\n\n".join([*lines, _toctree(pages, ":caption: Packages\n:titlesonly:")])}


def _link(name: str, target: str) -> str:
    return f"{{py:obj}}`monai_vit3d.{name} <{target}>`"


def _api_page(module: Any, names: list[str]) -> str:
    parts = [f"# {module.__name__}", f"```{{eval-rst}}\n{inspect.cleandoc(module.__doc__)}\n```"]
    return "\n\n".join([*parts, *(entry for name in names for entry in _entry(module, name))]) + "\n"


def _entry(module: Any, name: str) -> Iterator[str]:
    value = getattr(module, name)
    if inspect.isclass(value):
        directive = f".. autoclass:: {module.__name__}.{name}\n   :members:\n   :show-inheritance:"
    elif callable(value):
        directive = f".. autofunction:: {module.__name__}.{name}"
    else:
        directive = f".. py:data:: {module.__name__}.{name}\n\n   {_contents(value)}"
    yield f"## {name}\n\n```{{eval-rst}}\n{directive}\n```"


def _contents(value: Any) -> str:
    """A constant's keys or value."""
    return ", ".join(f"``{key}``" for key in value) if isinstance(value, Mapping | tuple) else f"``{value!r}``"


def gallery(folder: Path) -> str:
    """Return the page of a folder's notebooks: the picture of each, its title, and what one has at its end."""
    notebooks = sorted(folder.glob("*.ipynb"))
    cards = []
    for path in notebooks:
        title, *_, end, picture = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"]).split("\n\n")
        cards.append("\n\n".join([":::{container}", picture, f"**[{title.lstrip('# ')}]({path.name})**", end, ":::"]))
    toctree = _toctree([path.stem for path in notebooks], ":hidden:")
    return "\n\n".join(["# Tutorials", "::::{container} gallery", *cards, "::::", toctree])


def build(site: Path) -> int:
    """Build the site into a folder, in place of what is there; returns Sphinx's exit status."""
    with tempfile.TemporaryDirectory() as folder:  # myst-nb leaves a folder beside the pages
        sources, pages = Path(folder, "sources"), Path(folder, "site")
        sources.mkdir()
        write_sources(sources)
        options = ["-q", "-W", "--keep-going", "-c", str(HERE), "-d", str(Path(folder, "doctrees"))]
        status = sphinx_build([*options, str(sources), str(pages)])
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(pages, site)
    return status


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]).resolve()))
