"""`vit3d measure`: measure a bundle's training files, for comparison with new ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import add_device, add_example, add_safe
from .verbosity import is_showing_progress

_DESCRIPTION = """Measure field of view, spacing, brightness, volumes, ... of a bundle's training
files, and how decided its network is about them. `vit3d predict` and `vit3d check`
compare new files with these ranges, which stand as "trained_on" in metadata.json."""


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    measure = verbs.add_parser(
        "measure",
        help="measure what a bundle was trained on, for its metadata.json",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = measure.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    add("--images", type=Path, required=True, metavar="DIR", help="the folder with its training images, as NIfTI")
    add("--labels", type=Path, metavar="DIR", help="the folder with their labels, named as the images are")
    add("--split", type=Path, metavar="FILE", help="JSON with lists of case names; all images without it")
    add("--section", default="training", help="which list of it (training)")
    add("--write", action="store_true", help="write it into the bundle's configs/metadata.json")
    add_device(measure)
    add_safe(measure)
    add_example(measure, "vit3d measure mybundle --images data/imagesTr --labels data/labelsTr --write")
    measure.set_defaults(run=_run, parser=measure)


def _run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from monai_vit3d.pipeline.measure_training import find_cases, format_json, measure_training, write_trained_on

    cases = find_cases(args.images, args.labels, args.split, args.section)
    with tqdm(total=len(cases), unit="case", dynamic_ncols=True, disable=not is_showing_progress()) as bar:
        trained_on = measure_training(
            cases, args.bundle, device=args.device, safe=args.safe, on_case=lambda count: bar.update()
        )
    if args.write:
        print(write_trained_on(trained_on, args.bundle))
    else:
        print(format_json({"trained_on": trained_on}))
    return 0
