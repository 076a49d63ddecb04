"""Write names and colours of a run's labels as the tables that BIDS, 3D Slicer, ITK-SNAP and FSLeyes read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from monai_vit3d.data.csv_files import csv_cell
from monai_vit3d.data.files import write_text_atomic
from monai_vit3d.data.printable import printable
from monai_vit3d.visualize.colours import Colour, label_colour

Label = tuple[int, str, Colour]  # value, name on one line, RGB from 0 to 255


def write_label_tables(records: Iterable[Mapping[str, Any]], output: str | Path) -> None:
    """Write a file for each row of :data:`LABEL_TABLES`; none where no case has labels.

    Colours are those of the pictures in the report.

    Args:
        records: ``files`` of run.json, which hold names and values in ``stats``. A value that has several names, of
            several bundles, gets all of them.
        output: OUT.
    """
    names: dict[int, list[str]] = {}
    for row in (row for record in records for row in record.get("stats") or ()):
        names.setdefault(row["label"], []).append(row["name"])
    joined = {value: printable(" or ".join(dict.fromkeys(names[value]))) for value in sorted(names) if value > 0}
    labels = [(value, name, label_colour(value)) for value, name in joined.items()]
    for name, lines in LABEL_TABLES.items() if labels else ():
        write_text_atomic("".join(f"{line}\n" for line in lines(labels)), Path(output, name))


def _bids(labels: list[Label]) -> list[str]:
    """Format a lookup table of https://bids-specification.readthedocs.io, "Common image-derived labels"."""
    rows = [f"{value}\t{csv_cell(name)}\t#{bytes(colour).hex()}" for value, name, colour in labels]
    return ["index\tname\tcolor", *rows]


def _slicer(labels: list[Label]) -> list[str]:
    """Format a colour table of https://slicer.readthedocs.io, "Color table file format": names without spaces."""
    rows = [f"{value} {'_'.join(name.split())} {_bytes(colour)} 255" for value, name, colour in labels]
    return ["# Color table file", f"# {len(rows) + 1} values", "0 Background 0 0 0 0", *rows]


def _itk_snap(labels: list[Label]) -> list[str]:
    """Format label descriptions as ITK-SNAP: opacity, visibility of voxels and mesh, and the name in quotes."""
    quoted = [(value, name.replace('"', "'"), colour) for value, name, colour in labels]
    rows = [f'{value:5} {_bytes(colour)} 1 1 1 "{name}"' for value, name, colour in quoted]
    head = ["# ITK-SNAP Label Description File", "# IDX R G B A VIS MSH LABEL"]
    return [*head, f'{0:5} 0 0 0 0 0 0 "Clear Label"', *rows]


def _fsleyes(labels: list[Label]) -> list[str]:
    """Format a lookup table of https://open.win.ox.ac.uk/pages/fsl/fsleyes: RGB from 0 to 1, values ascend."""
    return [f"{value} {' '.join(f'{part / 255:.5f}' for part in colour)} {name}" for value, name, colour in labels]


def _bytes(colour: Colour) -> str:
    return " ".join(map(str, colour))


# name of the file below OUT: the lines of it
LABEL_TABLES: dict[str, Callable[[list[Label]], list[str]]] = {
    "labels.tsv": _bids,
    "labels.ctbl": _slicer,
    "labels_itksnap.txt": _itk_snap,
    "labels.lut": _fsleyes,
}
