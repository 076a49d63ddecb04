"""Probe a table of features: predict a target by a linear model or neighbours, cross-validated by subject."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_vit3d.data.csv_files import csv_cell, read_csv_rows
from monai_vit3d.data.errors import DatasetError, UsageError
from monai_vit3d.data.files import replacing, write_text_atomic
from monai_vit3d.data.volume import Array
from monai_vit3d.metrics import accuracy, auc, mean_absolute_error, r2
from monai_vit3d.metrics.bootstrap import STATISTIC_RESAMPLES, bootstrap_statistic
from monai_vit3d.pretraining.features import Features
from monai_vit3d.pretraining.probe import ProbeScore, knn_probe, knn_value_probe, logistic_probe, ridge_probe
from monai_vit3d.visualize.chart import Curve, draw_chart

MOST_CLASSES = 10  # more different numbers are values
PROBES: dict[str, dict[str, Callable[..., ProbeScore]]] = {
    "class": {"logistic": logistic_probe, "knn": knn_probe},
    "value": {"ridge": ridge_probe, "knn": knn_value_probe},
}
# a score of predictions and labels, with the fold that each was predicted in
FoldScore = Callable[[Array, Array, Array], float]


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features with the target of each scan.

    Args:
        names: of the scans.
        subjects: of the scans.
        values: (N, F).
        labels: (N,) class numbers or values.
        classes: names of the classes; empty of values.
        folds: of each scan, where the labels' table says them; else None.
        left_out: scans without a label.
    """

    names: list[str]
    subjects: list[str]
    values: Array
    labels: Array
    classes: tuple[str, ...]
    folds: Array | None
    left_out: int


def probe_features(
    features: str | Path,
    labels: str | Path,
    target: str,
    output: str | Path | None = None,
    *,
    kind: str | None = None,
    folds: int = 5,
    seed: int = 0,
    resamples: int = STATISTIC_RESAMPLES,
) -> dict[str, Any]:
    """Probe features by cross-validation over subjects; each setting is chosen on a fold beside the test fold.

    Scans of one subject, and scans with the same features, which were made of the same bytes, are in one fold. Scores
    are of the test predictions: of classes the mean over folds, of values of all folds together. Their 95 % intervals
    are drawn over subjects (bootstrap).

    Args:
        features: ``features.csv`` of ``vit3d embed``.
        labels: a CSV file with a column ``name`` or ``subject``, one of the target, and perhaps ``fold``, numbers that
            are taken for the folds.
        target: that column.
        output: a folder for ``probe.json``, ``predictions.csv`` and ``probe.png``; None writes nothing.
        kind: ``"class"`` or ``"value"``; None takes numbers of more than ten different values for values.
        folds: how many; at least 3.
        seed: of the folds and of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        JSON's types: ``target``, ``kind``, ``classes``, ``scans``, ``subjects``, ``left_out``, ``folds``,
        ``duplicates`` (pairs of scans of different subjects with the same features), and under ``probes`` each
        probe's scores as ``[score, low, high]``.

    Raises:
        DatasetError: a table that cannot be used, or too few subjects of a class.
        UsageError: an unknown kind or column, less than 3 folds, or given folds that share a subject or bytes.
    """
    table = read_table(Path(features), Path(labels), target, kind)
    kind = "class" if table.classes else "value"
    groups, duplicates = _groups(table)
    if table.folds is None:
        places = _deal(groups, table.labels, folds, seed)
    else:
        places = table.folds
        _refuse_leakage(table, groups)
    count = int(places.max()) + 1
    if folds < 3 or count < 3:
        raise UsageError(f"folds={min(folds, count)}; expected 3 or more, for training, choosing and testing.")
    predictions = {name: _out_of_fold(probe, table, places, count) for name, probe in PROBES[kind].items()}
    scores = {
        name: dict(zip(PROBE_SCORES[kind], _intervals(kind, values, table.labels, places, groups, resamples, seed)))
        for name, values in predictions.items()
    }
    report = {
        **{"target": target, "kind": kind, "classes": list(table.classes), "scans": len(table.names)},
        **{"subjects": len(set(table.subjects)), "left_out": table.left_out, "folds": count, "seed": seed},
        **{"duplicates": duplicates, "probes": scores},
    }
    if output is not None:
        _write(Path(output), report, table, places, predictions)
    return report


def read_table(features: Path, labels: Path, target: str, kind: str | None = None) -> FeatureTable:
    """Join features and labels by name or subject; arguments and errors as of :func:`probe_features`."""
    rows = [row for _, row in read_csv_rows(features)]
    columns = [key for key in rows[0] if key[:1] == "f" and key[1:].isdigit()]
    if not columns or not {"name", "subject"} <= rows[0].keys():
        raise DatasetError(f"{features}: expected columns name, subject, f0, f1, ..., as vit3d embed writes them.")
    labelled = [row for _, row in read_csv_rows(labels)]
    key = next((key for key in ("name", "subject") if key in labelled[0]), None)
    if key is None or target not in labelled[0]:
        raise UsageError(f"{labels}: columns {', '.join(labelled[0])}; expected name or subject, and target={target}.")
    by_key = {row[key]: row for row in labelled if row[target]}
    kept = [row for row in rows if row[key] in by_key]
    if not kept:
        raise DatasetError(f"{labels}: no {key} of {features} has a {target}. Write them as they are there.")
    texts = [by_key[row[key]][target] for row in kept]
    values, classes = _targets(texts, kind, target)
    fold_texts = [by_key[row[key]].get("fold", "") for row in kept]
    given = None
    if any(fold_texts):
        order = {text: i for i, text in enumerate(sorted(set(fold_texts)))}
        given = np.array([order[text] for text in fold_texts])
    vectors = np.array([[float(row[column]) for column in columns] for row in kept])
    names, subjects = ([row[column] for row in kept] for column in ("name", "subject"))
    return FeatureTable(names, subjects, vectors, values, classes, given, len(rows) - len(kept))


def _targets(texts: Sequence[str], kind: str | None, target: str) -> tuple[Array, tuple[str, ...]]:
    """Return class numbers and the classes' names, or values and no names."""
    if kind not in (None, "class", "value"):
        raise UsageError(f"kind={kind}; expected class or value.")
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        numbers = None
    if kind == "value" and numbers is None:
        raise UsageError(f"kind=value, but {target} has texts that are no numbers. Give kind=class.")
    if numbers is not None and kind != "class" and (kind == "value" or len(set(texts)) > MOST_CLASSES):
        return numbers, ()
    classes = tuple(sorted(set(texts), key=lambda text: (len(text), text) if numbers is not None else (0, text)))
    if len(classes) < 2:
        raise DatasetError(f"{target}: {classes[0]!r} alone; expected two classes or more.")
    return np.array([classes.index(text) for text in texts]), classes


def _groups(table: FeatureTable) -> tuple[Array, list[list[str]]]:
    """Return a number for each scan, shared by those that must stay together, and pairs that only bytes join."""
    group = {subject: i for i, subject in enumerate(dict.fromkeys(table.subjects))}
    numbers = np.array([group[subject] for subject in table.subjects])
    first: dict[bytes, int] = {}
    duplicates = []
    for i, vector in enumerate(table.values):
        other = first.setdefault(vector.tobytes(), i)
        if numbers[other] != numbers[i]:
            numbers[numbers == numbers[i]] = numbers[other]
            duplicates.append([table.names[other], table.names[i]])
    return np.unique(numbers, return_inverse=True)[1], duplicates


def _refuse_leakage(table: FeatureTable, groups: Array) -> None:
    """Refuse folds that were given where two share a subject, or scans with the same features."""
    places = table.folds if table.folds is not None else np.zeros(0)
    for number in range(int(groups.max()) + 1):
        inside = np.flatnonzero(groups == number)
        apart = [int(i) for i in inside if places[i] != places[inside[0]]]
        if apart:
            one, other = table.names[inside[0]], table.names[apart[0]]
            same = "subject" if table.subjects[inside[0]] == table.subjects[apart[0]] else "bytes"
            raise UsageError(f"fold: {one} and {other} have the same {same}, but are in two folds. Put them into one.")


def _deal(groups: Array, labels: Array, folds: int, seed: int) -> Array:
    """Deal groups to folds in the order of their mean label, so that each fold has all of its range."""
    count = int(groups.max()) + 1
    if count < folds:
        raise DatasetError(f"{count} subjects; expected one or more for each of {folds} folds. Give fewer folds=.")
    means = np.bincount(groups, labels.astype(float), count) / np.bincount(groups, minlength=count)
    shuffled = np.random.default_rng(seed).permutation(count)
    order = shuffled[np.argsort(means[shuffled], kind="stable")]
    place = np.empty(count, int)
    place[order] = np.arange(count) % folds
    return place[groups]


def _out_of_fold(probe: Callable[..., ProbeScore], table: FeatureTable, places: Array, count: int) -> Array:
    """Return the predictions of each scan by the probe whose test fold it is in."""
    parts = [Features(table.values[places == k], table.labels[places == k], "features") for k in range(count)]
    predictions: Array | None = None
    for k in range(count):
        chosen_on = (k + 1) % count
        rest = [parts[j] for j in range(count) if j not in (k, chosen_on)]
        values, labels = (np.concatenate([getattr(part, key) for part in rest]) for key in ("values", "labels"))
        train = Features(values, labels, "features")
        tested = probe(train, parts[chosen_on], parts[k]).predictions
        predictions = np.empty((len(places), *tested.shape[1:])) if predictions is None else predictions
        predictions[places == k] = tested
    return np.empty(0) if predictions is None else predictions


def _by_fold(score: Callable[..., float]) -> FoldScore:
    """Average a score of classes over folds, whose probes' probabilities are not on one scale; NaN if none has all."""

    def averaged(predictions: Array, labels: Array, places: Array) -> float:
        classes = predictions.shape[1]
        folds = [places == k for k in np.unique(places)]
        whole = [rows for rows in folds if len(np.unique(labels[rows])) == classes]
        scores = [score(predictions[rows], labels[rows], "multi-class") for rows in whole]
        return float(np.mean(scores)) if scores else float("nan")

    return averaged


def _together(score: Callable[..., float]) -> FoldScore:
    """Compute a score of values over all folds together."""
    return lambda predictions, labels, places: float(score(predictions, labels))


PROBE_SCORES: dict[str, dict[str, FoldScore]] = {
    "class": {"auc": _by_fold(auc), "accuracy": _by_fold(accuracy)},
    "value": {"r2": _together(r2), "mae": _together(mean_absolute_error)},
}


def _intervals(
    kind: str, predictions: Array, labels: Array, places: Array, groups: Array, resamples: int, seed: int
) -> list[list[float]]:
    """Return each score of ``PROBE_SCORES``, and its interval over groups."""

    def scored(rows: Array) -> Array:
        return np.array([score(predictions[rows], labels[rows], places[rows]) for score in PROBE_SCORES[kind].values()])

    return [list(one) for one in bootstrap_statistic(scored, len(labels), groups.tolist(), resamples, seed)]


def _write(
    output: Path, report: Mapping[str, Any], table: FeatureTable, places: Array, predictions: Mapping[str, Array]
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_text_atomic(json.dumps(report, indent=1) + "\n", output / "probe.json")
    columns = [f"{name}_{one}" for name in predictions for one in table.classes or ("prediction",)]
    lines = [",".join(["name", "subject", "fold", "label", *map(csv_cell, columns)])]
    for i, name in enumerate(table.names):
        numbers = (f"{value:.6g}" for values in predictions.values() for value in np.atleast_1d(values[i]))
        label = table.classes[int(table.labels[i])] if table.classes else f"{table.labels[i]:.6g}"
        cells = [csv_cell(name), csv_cell(table.subjects[i]), str(places[i]), csv_cell(label), *numbers]
        lines.append(",".join(cells))
    write_text_atomic("\n".join(lines) + "\n", output / "predictions.csv")
    name, values = next(iter(predictions.items()))
    curves = _rocs(table, values) if table.classes else _ranked(table, values)
    title = "true against false positive rate" if table.classes else "scans by their label"
    picture = draw_chart(curves, f"{report['target']}, {name}: {title}", (0.0, 1.0) if table.classes else None)
    with replacing(output / "probe.png", "wb") as file:
        picture.save(file, "PNG")


def _rocs(table: FeatureTable, probabilities: Array) -> list[Curve]:
    """Return each class' ROC curve against the rest; of two classes, that of the second."""
    from sklearn.metrics import roc_curve

    numbers = range(1, 2) if len(table.classes) == 2 else range(len(table.classes))
    curves = [Curve("chance", [(0.0, 0.0), (1.0, 1.0)], bold=True)]
    for k in numbers:
        false, true, _ = roc_curve(table.labels == k, probabilities[:, k])
        curves.append(Curve(table.classes[k], list(zip(false.tolist(), true.tolist()))))
    return curves


def _ranked(table: FeatureTable, values: Array) -> list[Curve]:
    """Return labels in rising order, and the predictions of the same scans."""
    order = np.argsort(table.labels, kind="stable")
    return [
        Curve("label", list(enumerate(table.labels[order].tolist())), bold=True),
        Curve("prediction", list(enumerate(values[order].tolist()))),
    ]
