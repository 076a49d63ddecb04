"""Write a row a case, a column a structure: volumes, and sums and asymmetry of left and right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_vit3d.data.class_sides import left_right_pairs, name_words
from monai_vit3d.data.csv_files import csv_cell, write_csv

from .stats import case_cell

Sums = dict[str, list[str]]  # name of a sum: names of the structures that are added


def write_volumes(records: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Write the volumes of all cases in ml, all of it or nothing.

    Structures that have a left and a right side get a total and an asymmetry, ``100 (L - R) / ((L + R) / 2)`` in per
    cent; several structures of a side whose names end in one word, such as the anterior and the posterior
    hippocampus, a sum of each side before. The volume of a case's mask (``mask_ml``), of the inside of the skull or the
    body, comes last.

    Args:
        records: ``files`` of run.json; those without ``stats`` are passed over.
        path: the file to write.
    """
    cases, masks_ml = [], []
    for record in records:
        if record.get("stats"):
            cases.append((case_cell(record), {row["name"]: row["volume_ml"] for row in record["stats"]}))
            masks_ml.append(record.get("mask_ml"))
    names = list(dict.fromkeys(name for _, volumes in cases for name in volumes))
    sums, pairs = side_sums(names)
    header = ["filename", *(f"{name} ml" for name in (*names, *sums))]
    header += [column for name, _, _ in pairs for column in (f"{name} total ml", f"{name} asymmetry %")]
    known = any(ml is not None for ml in masks_ml)
    header += ["mask ml"] if known else []
    rows = []
    for (case, volumes), mask_ml in zip(cases, masks_ml):
        volumes = {name: float(volumes.get(name, 0.0)) for name in names}
        volumes |= {name: sum(volumes[part] for part in parts) for name, parts in sums.items()}
        numbers: list[float | None] = list(volumes.values())
        for _, left, right in pairs:
            total = volumes[left] + volumes[right]
            numbers += [total, 200 * (volumes[left] - volumes[right]) / total if total else None]
        numbers += [mask_ml] if known else []
        rows.append([case, *("" if number is None else f"{number:.6g}" for number in numbers)])
    write_csv([[csv_cell(name) for name in header], *rows], path)


def side_sums(names: Sequence[str]) -> tuple[Sums, list[tuple[str, str, str]]]:
    """Find what to add up of structures that have sides.

    Args:
        names: of the structures.

    Returns:
        the sums of each side of structures whose names end in one word; and name, left and right of each structure or
        sum that has both sides.
    """
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for left, right in left_right_pairs(names):
        shared = [word for word in name_words(left) if word in name_words(right)]
        name = " ".join(shared) or f"{left}, {right}"
        groups.setdefault(shared[-1] if shared else "", []).append((name, left, right))
    sums: Sums = {}
    pairs: list[tuple[str, str, str]] = []
    for last, group in groups.items():
        pairs += group
        left, right = f"left {last}", f"right {last}"
        if len(group) > 1 and last and not {left, right} & set(names):
            sums |= {left: [pair[1] for pair in group], right: [pair[2] for pair in group]}
            pairs.append((last, left, right))
    return sums, pairs
