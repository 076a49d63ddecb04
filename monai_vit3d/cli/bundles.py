"""`vit3d bundles`: list the bundles that come with this package."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_example

_DESCRIPTION = """List the bundles that come with this package: name, size and licence of the weights, task, scores.
vit3d predict, check and info take them by name; vit3d info NAME says more of one."""


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    bundles = verbs.add_parser("bundles", help="list the bundles that come with this package", description=_DESCRIPTION)
    add_example(bundles, "vit3d bundles")
    bundles.set_defaults(run=_run, parser=bundles)


def _run(args: argparse.Namespace) -> int:
    from monai_vit3d.bundle.info import list_bundles

    for one in list_bundles():
        size = f"{one['weights_bytes'] / 1e6:.0f} MB" if one["weights_bytes"] else "to be trained"
        print(f"{one['name']:28s} {size:>13s}  {one['licence']:20s}  {one['task']}")
        if one["scores"]:
            print(f"    {', '.join(f'{metric} {value:g}' for metric, value in one['scores'].items())}")
    return 0
