"""`vit3d demo`: segment both hippocampi of nilearn's MNI152 template, a whole head."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import add_example


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    demo = verbs.add_parser("demo", help="segment both hippocampi of nilearn's MNI152 template")
    shipped = Path("head_hippocampus")
    demo.add_argument("--bundle", type=Path, default=shipped, help="the bundle's folder or name (%(default)s)")
    demo.add_argument("-o", "--output", type=Path, default=Path("demo_output"), help="the folder to write to")
    add_example(demo, "vit3d demo -o demo_output")
    demo.set_defaults(run=_run, parser=demo)


def _run(args: argparse.Namespace) -> int:
    from monai_vit3d.pipeline.demo import run_demo

    demo = run_demo(args.bundle, args.output)
    width = max(map(len, demo.volumes_ml))
    for name, ml in demo.volumes_ml.items():
        print(f"{name:{width}s}  {ml:.2f} ml")
    print(f"{demo.seconds:.1f} s")
    for path in (demo.image, demo.labels, demo.volumes, demo.report, demo.picture):
        print(path)
    return 0
