"""`vit3d info`: say what a bundle is for and what it needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai_vit3d.data.printable import printable

from .flags import with_flags
from .options import add_config, add_example, parsed


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    info = verbs.add_parser("info", help="say what a bundle is for and what it needs")
    of = "a folder, a zip, a name of vit3d bundles, or hf:OWNER/NAME@COMMIT of the hub"
    info.add_argument("bundle", type=Path, metavar="BUNDLE", help=of)
    add_config(info)
    add_example(info, "vit3d info head_hippocampus", "vit3d info mybundle.zip --config inference")
    info.set_defaults(run=_run, parser=verbs.choices["predict"])


def _run(args: argparse.Namespace) -> int:
    from monai_vit3d.bundle.info import describe_bundle

    for key, value in describe_bundle(**parsed(args)).items():
        print(f"{key:12s}  {printable(with_flags(value))}")
    return 0
