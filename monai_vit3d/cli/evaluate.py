"""`vit3d evaluate`: score a bundle's predictions, or any folder of them, against labels."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.printable import printable

from .options import add_device, add_example, add_safe, parsed
from .progress import Progress, ScoringProgress, aligned, print_error

if TYPE_CHECKING:
    from monai_vit3d.evaluation.results import Evaluation
    from monai_vit3d.evaluation.volumes import VolumeEvaluation

_DESCRIPTION = """Score label maps: Dice, surface Dice (NSD), 95 % Hausdorff distance, volume bias and detection
F1 by component, by class and case, with 95 % bootstrap intervals. A classifier's answers: AUC,
accuracy, balanced accuracy and F1 by class; a regressor's: mean absolute error and R². OUT gets
cases.csv, classes.csv, summary.json and report.html, with the worst cases first.

A bundle:    vit3d evaluate mybundle
             Each trained fold predicts its own validation cases (into mybundle/predictions),
             which it has not seen; --section testing: all folds together predict the test cases.
Any folders: vit3d evaluate --pred out --labels labelsTs -o evaluation --classes liver,tumour
Two runs:    ... --against DIR    (another evaluation, bundle or folder of predictions)

Exit code: 0 all scored, 1 some cases failed (the page says why), 2 wrong usage or bundle."""
_OF_BUNDLE = ("bundle", "section", "folds", "device", "safe")
_OF_FOLDERS = ("predictions", "labels", "class_names", "images")


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    evaluate = verbs.add_parser(
        "evaluate",
        help="score predictions against labels",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = evaluate.add_argument
    add("bundle", nargs="?", type=Path, metavar="BUNDLE", help="a bundle that vit3d init made and vit3d train trained")
    add("-o", "--output", type=Path, metavar="OUT", help="the folder to write to (BUNDLE/evaluation)")
    add("--section", choices=["validation", "testing"], default="validation", help="cases of the bundle (validation)")
    add("--folds", type=_folds, metavar="0,2", help="trained folds of the bundle (all)")
    add("--pred", dest="predictions", type=Path, metavar="DIR", help="predicted label maps, in place of a bundle")
    add("--labels", type=Path, metavar="DIR", help="their labels, NAME.nii.gz for NAME_seg.nii.gz")
    classes = "names of the labels 1, 2, ... in order, or as 1=liver,7=tumour"
    add("--classes", dest="class_names", type=_classes, metavar="NAMES", help=classes)
    add("--images", type=Path, metavar="DIR", help="their images, for the page")
    add("--nsd-mm", type=float, default=2.0, metavar="MM", help="tolerance of the surface Dice in mm (2)")
    against = "compare case by case with another evaluation, bundle or folder of predictions"
    add("--against", type=Path, metavar="DIR", help=against)
    add_device(evaluate)
    add_safe(evaluate)
    add_example(
        evaluate,
        "vit3d evaluate mybundle --against otherbundle",
        "vit3d evaluate --pred out --labels labelsTs -o evaluation --classes liver,tumour",
    )
    evaluate.set_defaults(run=_run, parser=evaluate, go_on="run the same command again to go on")


def _folds(text: str) -> tuple[int, ...]:
    return tuple(int(fold) for fold in text.split(","))


def _classes(text: str) -> dict[int, str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    numbered = [part.partition("=") for part in parts]
    if any(sign for _, sign, _ in numbered):
        return {int(value): name.strip() for value, _, name in numbered}
    return dict(enumerate(parts, 1))


def _run(args: argparse.Namespace) -> int:
    from monai_vit3d.evaluation import evaluate_bundle, evaluate_folders
    from monai_vit3d.evaluation.volumes import VolumeEvaluation

    folders = args.predictions is not None or args.labels is not None
    if folders == (args.bundle is not None) or (folders and None in (args.predictions, args.labels, args.output)):
        raise UsageError("expected a BUNDLE, or --pred DIR, --labels DIR and -o OUT.")
    options = parsed(args, "go_on", *(_OF_BUNDLE if folders else _OF_FOLDERS))
    with Progress() as predicting, ScoringProgress() as scoring:
        if folders:
            evaluation = evaluate_folders(**options, on_case=scoring)
        else:
            to_predict: Any = {"on_plan": predicting.begin, "on_record": predicting}
            evaluation = evaluate_bundle(**options, **to_predict, on_case=scoring)
    if isinstance(evaluation, VolumeEvaluation):
        return _print_volumes(evaluation)
    for note in evaluation.notes:
        print_error(f"vit3d: {note}", logging.WARNING)
    for line in _table(evaluation):
        print(printable(line))
    for line in _comparison(evaluation):
        print(printable(line))
    scored = len(evaluation.scored) - len(evaluation.failed)
    print(printable(f"{scored} scored, {len(evaluation.failed)} failed: {evaluation.page}"))
    return 1 if evaluation.failed else 0


def _print_volumes(evaluation: VolumeEvaluation) -> int:
    for case in evaluation.failed:
        print_error(f"vit3d: {case.name} failed: {case.error}")
    for line in aligned(evaluation.table()):
        print(printable(line))
    if evaluation.against:
        print(printable(f"minus {evaluation.against}, {evaluation.shared} cases of both:"))
        for line in aligned(evaluation.comparison()):
            print(printable(line))
    print(printable(f"{len(evaluation.answered)} scored, {len(evaluation.failed)} failed: {evaluation.page}"))
    return 1 if evaluation.failed else 0


def _table(evaluation: Evaluation) -> list[str]:
    """Format the summary by class."""
    from monai_vit3d.evaluation.page import interval_text, number_text
    from monai_vit3d.evaluation.summary import METRICS

    titles = [metric.title.format(mm=evaluation.nsd_mm) for metric in METRICS]
    rows = [["class", "cases", *titles, "F1"]]
    for one in evaluation.classes:
        cells = [interval_text(one.means[m.name], m.digits) if m.name in one.means else "" for m in METRICS]
        rows.append([one.name, str(one.cases), *cells, number_text(one.detection.f1, 2)])
    return aligned(rows) if len(rows) > 1 else []


def _comparison(evaluation: Evaluation) -> list[str]:
    """Format the comparison with the other evaluation."""
    from monai_vit3d.evaluation.page import interval_text, number_text
    from monai_vit3d.evaluation.summary import METRICS

    rows = [["class", "metric", "difference", "higher", "lower", "p"]]
    for group, by_metric in evaluation.comparison.items():
        for metric in METRICS:
            if pair := by_metric.get(metric.name):
                difference = interval_text(pair.difference, metric.digits, signed=True)
                title = metric.title.format(mm=evaluation.nsd_mm)
                rows.append([group, title, difference, str(pair.higher), str(pair.lower), number_text(pair.p, 3)])
    return [f"minus {evaluation.against}:", *aligned(rows)] if len(rows) > 1 else []
