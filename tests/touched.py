"""Run the quick tests under coverage and name the modules of the package of which they run no function.

``python -m tests.touched [pytest's arguments]``; ends with 1 if there is one, or if a test fails.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / "monai_vit3d"


def function_lines(path: Path) -> set[int]:
    """Collect the lines inside the functions of a file, without their signatures and docstrings."""
    return {
        line
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for statement in node.body[ast.get_docstring(node) is not None :]
        for line in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
    }


def untouched(ran: coverage.CoverageData) -> Iterator[str]:
    """Name the modules that have functions of which none ran."""
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = function_lines(path)
        if lines and not lines & set(ran.lines(str(path)) or ()):
            yield path.relative_to(PACKAGE).as_posix()


if __name__ == "__main__":
    measured = coverage.Coverage(source=[str(PACKAGE)])
    measured.start()
    code = pytest.main(["-q", "-m", "not slow", *(sys.argv[1:] or [str(ROOT / "tests")])])
    measured.stop()
    missed = list(untouched(measured.get_data()))
    print("\n".join(f"monai_vit3d/{name}: none of its functions ran" for name in missed) or "Each module was touched.")
    sys.exit(code or bool(missed))
