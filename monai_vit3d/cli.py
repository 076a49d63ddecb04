"""`vit3d`, the command: every verb calls a function that Python users can call too."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def _demo(args: argparse.Namespace) -> None:
    from .pipeline.demo import run_demo

    demo = run_demo(args.bundle, args.output)
    for side, volumes in demo.volumes_ml.items():
        print(f"{side:5s}  " + "  ".join(f"{name} {ml:.2f} ml" for name, ml in volumes.items()))
    for path in [*demo.images.values(), *demo.labels.values(), demo.picture]:
        print(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vit3d", description="3D Vision Transformers for NIfTI volumes.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    demo = verbs.add_parser("demo", help="segment both hippocampi of nilearn's MNI152 template")
    demo.add_argument(
        "--bundle", type=Path, default=Path("bundles/hippocampus_segmentation"), help="the bundle's folder"
    )
    demo.add_argument("-o", "--output", type=Path, default=Path("demo_output"), help="the folder to write to")
    demo.set_defaults(run=_demo)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 failed with a message, 2 usage.

    Args:
        argv: the arguments, without the command's name; None takes the process' own.
    """
    args = _parser().parse_args(argv)
    from .data.errors import Vit3dError

    try:
        args.run(args)
    except (Vit3dError, RuntimeError) as error:
        print(f"vit3d: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
