"""`vit3d init`: plan a training from labelled data, and write it as a MONAI bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.data.errors import DatasetError, UsageError
from monai_vit3d.data.printable import printable

from .options import add_example, parse_override
from .progress import print_error
from .verbosity import is_showing_progress

if TYPE_CHECKING:
    from monai_vit3d.planning.init import InitReport

_DESCRIPTION = """DATA is a folder in nnU-Net's, the Medical Segmentation Decathlon's, BIDS's or BraTS's layout,
two folders of like names, a MONAI data list (JSON) or a CSV with columns image (or image_*) and
label. Every file is read and checked first; then a recipe is planned from what the data are,
each choice with its reason, and a MONAI bundle is written that trains as it stands:

    vit3d init DATA -o mybundle
    vit3d train mybundle
    vit3d evaluate mybundle
    vit3d predict scans -o out --bundle mybundle

Exit code: 0 written (or planned), 2 the data cannot be trained on, or wrong usage."""


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    init = verbs.add_parser(
        "init",
        help="plan a training from labelled data, and write its bundle",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = init.add_argument
    add("data", type=Path, metavar="DATA", help="the labelled data: a folder, a JSON or a CSV file")
    add("-o", "--output", type=Path, metavar="DIR", help="the bundle's folder, a new one")
    add("--layout", metavar="NAME", help="how DATA is laid out, where that is not plain")
    channel = "a channel to train on, such as T1w, if not all; may be given several times"
    add("--channel", dest="channels", action="append", default=[], metavar="NAME", help=channel)
    add("--memory", metavar="SIZE", help="of the device that will train, such as 8GB")
    add(
        "--pretrained",
        metavar="FILE",
        help="encoder to start from: any weights, or a name of `vit3d weights list` or timm's",
    )
    accept = "its licence was read and is kept; needed unless a published encoder may be used commercially"
    add("--accept-licence", action="store_true", help=accept)
    value = "a choice of the plan, such as epochs=100 or window=[96,96,64]"
    add("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=value)
    add("--dry-run", action="store_true", help="say what would be chosen, and write nothing")
    add_example(init, "vit3d init Task04_Hippocampus -o mybundle", "vit3d init DATA --dry-run --memory 8GB")
    init.set_defaults(run=_run, parser=init)


def _plan(args: argparse.Namespace) -> InitReport:
    """Read the data, plan, and write the bundle; data that cannot be read are wrong usage, as they were given."""
    from tqdm import tqdm

    from monai_vit3d.planning.init import plan_bundle

    overrides = dict(map(parse_override, args.overrides))
    if args.accept_licence:
        overrides["encoder_options"] = {**overrides.get("encoder_options", {}), "accept_licence": True}
    with tqdm(unit="case", dynamic_ncols=True, disable=not is_showing_progress(), desc="reading") as bar:
        try:
            return plan_bundle(
                args.data,
                args.output,
                layout=args.layout,
                channels=args.channels,
                memory=args.memory,
                pretrained=args.pretrained,
                overrides=overrides,
                dry_run=args.dry_run,
                timed=True,
                on_case=lambda *_: bar.update(),
            )
        except DatasetError as error:
            raise UsageError(str(error)) from error


def _run(args: argparse.Namespace) -> int:
    report = _plan(args)
    cases = f"{len(report.dataset.section('training'))} labelled cases, read as {report.dataset.layout}"
    print(printable(f"{report.dataset.root}: {cases}"))
    for problem in report.problems:
        print(printable(f"{problem.severity:8s} {problem.file}: {problem.text}"))
    if report.plan is None:
        errors = sum(problem.severity == "error" for problem in report.problems)
        count, them = ("1 error", "it") if errors == 1 else (f"{errors} errors", "them")
        print_error(f"vit3d: {args.data}: {count} in the data, listed above. Fix {them} and run again.")
        return 2
    reason = "given" if args.channels else "all that the data have; --channel NAME takes some"
    print(printable(f"channels: {', '.join(report.dataset.channel_names)}  ({reason})"))
    for line in report.plan.lines():
        print(printable(line))
    if report.training_seconds is not None:
        print(f"time: about {_duration(report.training_seconds)} a fold  (by a step that was timed on this machine)")
    if report.bundle is not None:
        print(printable(f"{report.bundle}: written. Next: vit3d train {report.bundle}"))
    return 0


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{max(1, round(minutes))} min" if minutes < 90 else f"{minutes / 60:.1f} h"
