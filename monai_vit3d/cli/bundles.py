"""`vit3d bundles`: list the bundles that come with this package."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

_DESCRIPTION = """List the bundles that come with this package: name, size and licence of the weights, task, scores.
vit3d predict, check and info take them by name; vit3d info NAME says more of one."""


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    bundles = verbs.add_parser("bundles", help="list the bundles that come with this package", description=_DESCRIPTION)
    bundles.set_defaults(run=_run, parser=bundles)


def _run(args: argparse.Namespace) -> int:
    from monai_vit3d.bundle.metadata import read_metadata
    from monai_vit3d.bundle.shipped import shipped_bundles, shipped_weights

    for name, folder in shipped_bundles().items():
        content = read_metadata(folder).content
        weights = sum(path.stat().st_size for path in shipped_weights(folder).values())
        size = f"{weights / 1e6:.0f} MB" if weights else "to be trained"
        print(f"{name:28s} {size:>13s}  {_licence(folder):20s}  {content.get('task', '')}")
        if scores := content.get("eval_metrics"):
            print(f"    {', '.join(f'{metric} {value:g}' for metric, value in scores.items())}")
    return 0


def _licence(folder: Path) -> str:
    """Return the name that stands above a bundle's licence, in its first two lines with text: name and version."""
    lines = (line.strip() for line in (folder / "LICENSE").read_text("utf-8").splitlines())
    title, version = itertools.islice(filter(None, lines), 2)
    return f"{title} {version.removeprefix('Version ').partition(',')[0]}"
