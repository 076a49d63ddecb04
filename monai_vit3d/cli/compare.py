"""`vit3d compare`: two runs' labels side by side."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from monai_vit3d.data.printable import printable

from .options import add_example, parsed
from .progress import ScoringProgress, aligned, print_error

_DESCRIPTION = """Compare the labels of two runs of vit3d predict over the same inputs: by case and label the
volume in ml of both, their difference and Dice. OUT gets comparison.csv, and report.html with
the least agreement first and pictures of where the runs differ. Neither run is the truth: to
score labels against references, see vit3d evaluate.

Exit code: 0 all compared, 1 some cases could not be, such as on different grids, 2 wrong usage."""


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    compare = verbs.add_parser(
        "compare",
        help="compare the labels of two runs",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("a", type=Path, metavar="A", help="a folder that vit3d predict wrote")
    compare.add_argument("b", type=Path, metavar="B", help="another one")
    output = "the folder to write to; without it the table alone is printed"
    compare.add_argument("-o", "--output", type=Path, metavar="OUT", help=output)
    add_example(compare, "vit3d compare out out_tta -o comparison")
    compare.set_defaults(run=_run, parser=compare, go_on="run the same command again")


def _run(args: argparse.Namespace) -> int:
    from monai_vit3d.evaluation import compare_runs
    from monai_vit3d.evaluation.compare_page import summary_table

    with ScoringProgress() as progress:
        comparison = compare_runs(**parsed(args), on_case=progress)
    for name, (letter, reason) in comparison.alone.items():
        print_error(f"vit3d: {name} only in {letter}: {reason}", logging.WARNING)
    for line in aligned(summary_table(comparison)):
        print(printable(line))
    failed = len(comparison.failed)
    counts = f"{len(comparison.scored) - failed} compared, {failed} failed, {len(comparison.alone)} in one run only"
    print(printable(f"{counts}: {comparison.page}" if comparison.page else counts))
    return 1 if failed else 0
