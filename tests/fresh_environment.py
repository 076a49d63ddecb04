"""A virtual environment that holds this package, what it requires, and what a reader was told to install, alone.

Nothing is downloaded: the files of each distribution are links to those that the tests themselves run with.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import sys
import venv
from collections import deque
from collections.abc import Collection, Iterator
from importlib.metadata import Distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers import ROOT

OURS = "monai-vit3d"
_SCRIPT = "#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"


def requirements_of_ours(extras: Collection[str] = ()) -> list[Requirement]:
    """Return what setup.cfg requires: for the package itself, or, of extras, for these alone."""
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg", "utf-8")
    of = options["options.extras_require"]
    texts = [of[extra] for extra in extras] if extras else [options["options"]["install_requires"]]
    lines = (Requirement(line) for text in texts for line in text.split("\n") if line and line[0] != "#")
    return [one for one in lines if one.marker is None or one.marker.evaluate()]


def required(words: Collection[str]) -> dict[str, Distribution]:
    """Return the distributions that ``pip install WORDS`` installs, by name, as far as they are here.

    Args:
        words: requirements, as ``.[bundle]``.
    """
    found: dict[str, Distribution] = {}
    todo = deque(Requirement(_ours(word)) for word in words)
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        wanted = todo.popleft()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # of another version of its parent, or optional there
            continue
        if name == OURS:
            todo += requirements_of_ours() + (requirements_of_ours(extras) if extras else [])
            continue
        for one in map(Requirement, found[name].requires or ()):
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append(one)
    return found


def missing(words: Collection[str]) -> list[str]:
    """Return what this package's extras and other packages among ``pip install WORDS`` need that is not here."""
    given = [Requirement(_ours(word)) for word in words]
    wanted = [needed.name for one in given if one.name == OURS for needed in requirements_of_ours(one.extras)]
    return [name for name in (*wanted, *(one.name for one in given)) if not required([name])]


def _ours(word: str) -> str:
    return word.replace(".", OURS, 1) if word[0] == "." else word


def make_environment(folder: Path, words: Collection[str] = ()) -> Path:
    """Make the environment; its folder of programs, with ``python``, ``vit3d`` and ``torchrun``.

    Args:
        folder: a new one.
        words: what a reader installs: ``.``, ``.[bundle]``, or names of other packages.
    """
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    programs = folder / "bin"
    (site,) = folder.glob("lib/python*/site-packages")
    for name, one in required([".", *words]).items():
        for entry in one.entry_points.select(group="console_scripts"):
            program = programs / entry.name
            if not program.exists():
                text = _SCRIPT.format(python=programs / "python", module=entry.module, function=entry.attr)
                program.write_text(text)
                program.chmod(0o755)
        for path in _top_level(one):
            if not (site / path.name).exists() and not (name == OURS and path.suffix != ".dist-info"):
                (site / path.name).symlink_to(path)
    (site / "clone.pth").write_text(f"{ROOT}\n")
    return programs


def _top_level(distribution: Distribution) -> Iterator[Path]:
    """Yield the files and folders of site-packages that a distribution has."""
    names = {file.parts[0] for file in distribution.files or ()}
    for name in sorted(names - {"..", "__pycache__"}):
        path = Path(str(distribution.locate_file(name)))
        if path.exists():
            yield path


def environment_variables(programs: Path, **more: str) -> dict[str, str]:
    """Return the variables of a shell in which the environment is active."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(programs.parent), **more}


if sys.platform == "win32":
    raise ImportError("the environments are made of links and of programs with a first line #!")
