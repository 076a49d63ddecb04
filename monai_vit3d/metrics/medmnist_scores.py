"""Write a classifier's predictions in the format of MedMNIST's own Evaluator."""

from __future__ import annotations

import csv
from pathlib import Path

from monai_vit3d.data.errors import ScoreError
from monai_vit3d.data.files import write_text_atomic

SPLITS = ("train", "val", "test")
_PROBABILITY = "probability_"


def write_medmnist_scores(
    predictions: str | Path, folder: str | Path, dataset: str, split: str = "test", size: int = 28, run: str = "vit3d"
) -> Path:
    """Write ``predictions.csv`` as ``medmnist.Evaluator.parse_and_evaluate`` reads it: an index and the scores a line.

    The n-th line of ``predictions.csv`` is taken for the n-th image of the split, from 0.

    Args:
        predictions: of ``vit3d predict`` or of :class:`~monai_vit3d.handlers.PredictionsCSV`.
        folder: where the file goes; MedMNIST prescribes its name.
        dataset: MedMNIST's name for it, such as ``"nodulemnist3d"``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: edge length of the images, in voxels.
        run: name of this run.

    Returns:
        The file.

    Raises:
        ScoreError: another split, or no probabilities in the table.

    Example:
        >>> path = write_medmnist_scores("out/predictions.csv", "out", "nodulemnist3d")
        >>> medmnist.Evaluator.parse_and_evaluate(str(path))
    """
    if split not in SPLITS:
        raise ScoreError(f"split={split!r}; expected one of {', '.join(SPLITS)}.")
    with open(predictions, newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    columns = [i for i, name in enumerate(header) if name.lstrip("'").startswith(_PROBABILITY)]
    if not columns or not rows:
        raise ScoreError(f"{predictions}: no columns {_PROBABILITY}NAME, or no rows; expected a classifier's table.")
    lines = [",".join([str(n), *(row[i] for i in columns)]) for n, row in enumerate(rows)]
    name = f"{dataset}{'' if size == 28 else f'_{size}'}_{split}@{run}.csv"
    path = Path(folder) / name
    write_text_atomic("\n".join(lines) + "\n", path)
    return path
