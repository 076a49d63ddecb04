"""What type checkers and editors know of the public names after `import monai_vit3d`, which loads them on demand."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import monai_vit3d

ROOT = Path(monai_vit3d.__file__).parents[1]
SCRIPT = """\
import monai_vit3d
from monai_vit3d import TokenSegmenter, VisionTransformer3D, create_model

net = VisionTransformer3D(img_size=96, patch_size=(16, 16, 8), num_classes=2)
sizes: tuple[int, int, int] = net.grid_size
segmenter = TokenSegmenter(net, "unetr", num_classes=3, out_indices=[2, 5, 8])
layers: dict[str, type] = dict(monai_vit3d.layers.EMBED_LAYERS)
"""
MISTAKES = [
    "VisionTransformer3D(img_sze=96, patch_size=16)",
    "monai_vit3d.VisionTransformer3D(96, 16, depth='twelve')",
    "TokenSegmenter(net, num_clases=2)",  # without decoder; further keywords are the decoder's
    "monai_vit3d.VisionTransformer4D",
    "create_model(224)",
    "net.num_heads.upper()",
]


def test_checkers_see_every_public_name():
    tree = ast.parse((ROOT / "monai_vit3d/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {name.asname: node.module for node in block.body for name in node.names}
    rooms = set(monai_vit3d._ROOMS) - {"cli"}  # which nobody imports
    assert seen == {**monai_vit3d._HOMES, **dict.fromkeys(rooms)}


def lines_with_errors(checker, path):
    """The script's lines that a checker finds fault with."""
    environment = {**os.environ, "MYPYPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    commands = {
        # with what `make lint` has kept of the package, which takes minutes to be checked anew
        "mypy": [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--output", "json",
                 "--cache-dir", ROOT / ".mypy_cache", path],
        "pyright": [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", path.parent],
    }  # fmt: skip
    config = {"include": [path.name], "extraPaths": [str(ROOT)], "typeCheckingMode": "basic"}
    (path.parent / "pyrightconfig.json").write_text(json.dumps(config))
    run = subprocess.run(
        list(map(str, commands[checker])), capture_output=True, text=True, cwd=path.parent, env=environment
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    if checker == "mypy":
        errors = [json.loads(line) for line in run.stdout.splitlines()]
        return {error["line"] for error in errors if error["severity"] == "error"}
    report = json.loads(run.stdout)["generalDiagnostics"]
    return {error["range"]["start"]["line"] + 1 for error in report if error["severity"] == "error"}


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_mistakes_in_a_users_script_are_found_and_nothing_else(checker, tmp_path):
    pytest.importorskip(checker)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + "\n".join(MISTAKES) + "\n")
    first = SCRIPT.count("\n") + 1
    assert lines_with_errors(checker, script) == set(range(first, first + len(MISTAKES)))
