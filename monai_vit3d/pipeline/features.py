"""Gather the vectors of a run: a table, an array, and a map of where they lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_vit3d.data.csv_files import csv_cell
from monai_vit3d.data.files import replacing, write_text_atomic
from monai_vit3d.data.printable import printable
from monai_vit3d.data.volume import Array
from monai_vit3d.visualize.overlay import write_png
from monai_vit3d.visualize.scatter import draw_scatter

from .token_maps import principal_components

_SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
_FEWEST = 3  # vectors of a map: two lie on a line


class Feature(NamedTuple):
    """The vector of a case.

    Args:
        name: of the case.
        subject: whose image it is.
        windows: how many were run.
        vector: (F,) float32.
    """

    name: str
    subject: str
    windows: int
    vector: Array


def subject_of(name: str) -> str:
    """Return the subject of a case: ``sub-01`` where its path has that, else the whole name."""
    match = _SUBJECT.search(name)
    return match[1] if match else name


def read_features(records: Iterable[Mapping[str, Any]], output: Path) -> list[Feature]:
    """Read the vectors of all cases that have one.

    Args:
        records: of the cases, in the order that the features get.
        output: OUT.
    """
    features = []
    for record in records:
        paths = [path for path in record.get("outputs", {}) if path.endswith("_embedding.npy")]
        if record["status"] in ("done", "skipped") and paths:
            name, vector = record["name"], np.load(output / paths[0], allow_pickle=False)
            features.append(Feature(name, subject_of(name), int(record.get("windows", 0)), vector))
    return features


def write_features(features: Sequence[Feature], output: Path) -> None:
    """Write ``features.csv`` and ``features.npz``, a row a case.

    Args:
        features: one or more.
        output: OUT.
    """
    vectors = np.stack([feature.vector for feature in features])
    lines = [",".join(["name", "subject", "windows", *(f"f{i}" for i in range(vectors.shape[1]))])]
    for name, subject, windows, vector in features:
        numbers = (f"{value:.9g}" for value in vector.tolist())
        lines.append(",".join([csv_cell(name), csv_cell(subject), str(windows), *numbers]))
    write_text_atomic("\n".join(lines) + "\n", output / "features.csv")
    names, subjects = (np.array(texts, np.str_) for texts in list(zip(*features))[:2])
    with replacing(output / "features.npz", "wb") as file:
        np.savez(file, names=names, subjects=subjects, vectors=vectors)


def draw_features(features: Sequence[Feature], output: Path) -> str | None:
    """Draw ``features.png``: the first two principal components of three vectors or more, each under its name.

    Args:
        features: all of a run.
        output: OUT.

    Returns:
        The picture's name; None of fewer vectors.
    """
    if len(features) < _FEWEST:
        return None
    scores, shares = principal_components(np.stack([feature.vector for feature in features]), 2)
    first, second = (f"{share:.0%}" for share in shares)
    title = f"Principal components of {len(features)} vectors: across {first} of the variance, up {second}"
    names = [printable(feature.name.rpartition("/")[2]) for feature in features]
    if len(set(names)) < len(names):  # the files of all subjects may be called alike
        names = [printable(feature.name) for feature in features]
    write_png(draw_scatter([(x, y) for x, y in scores.tolist()], names, title), output / "features.png")
    return "features.png"
