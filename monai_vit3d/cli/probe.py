"""`vit3d probe`: how well features predict a target, cross-validated by subject."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai_vit3d.data.printable import printable

from .options import add_example, parsed

_DESCRIPTION = """FEATURES is features.csv of `vit3d embed`; LABELS a CSV file with a column name or subject, one of
the target, and perhaps fold. Classes are read by logistic regression and nearest neighbours, values
(numbers of more than ten different ones) by ridge regression and neighbours. Scans of one subject,
and scans with the same features, are in one fold; intervals are of 95 %, over subjects."""


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    probe = verbs.add_parser(
        "probe",
        help="how well features predict a target: linear and neighbour probes",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = probe.add_argument
    add("features", type=Path, metavar="FEATURES", help="features.csv")
    add("labels", type=Path, metavar="LABELS", help="a CSV file with the target")
    add("--target", required=True, metavar="COLUMN", help="of LABELS, such as age or diagnosis")
    add("-o", "--output", type=Path, metavar="OUT", help="a folder for probe.json, predictions.csv and probe.png")
    add("--kind", choices=["class", "value"], help="what the target is, unless as its values look")
    add("--folds", type=int, default=5, metavar="N", help="how many (5)")
    add("--seed", type=int, default=0, metavar="N", help="of the folds and the intervals (0)")
    add_example(probe, "vit3d probe vectors/features.csv ages.csv --target age -o probe")
    probe.set_defaults(run=_run, parser=probe)


def _run(args: argparse.Namespace) -> int:
    from monai_vit3d.evaluation.probe_features import probe_features

    report = probe_features(**parsed(args))
    kinds = f"{len(report['classes'])} classes" if report["classes"] else "values"
    print(
        f"{printable(report['target'])}: {kinds}, {report['scans']} scans of {report['subjects']} subjects, "
        f"{report['folds']} folds, {report['left_out']} scans without a label"
    )
    for one, other in report["duplicates"]:
        print(f"the same features under two subjects: {printable(one)} and {printable(other)}; kept in one fold")
    for name, scores in report["probes"].items():
        for score, (value, low, high) in scores.items():
            print(f"{name:9s} {score:9s} {value:8.3f}  [{low:.3f}, {high:.3f}]")
    return 0
