"""Names and colours of labels, read back by small parsers of each viewer's format."""

import csv
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from monai_vit3d.pipeline.label_tables import LABEL_TABLES, write_label_tables
from monai_vit3d.pipeline.plan import RESERVED
from monai_vit3d.visualize.colours import PALETTE
from tests.pipeline.tiny import predict

NAMES = {1: "left hippocampus", 2: 'so-called "x"', 4: "label 4", 14: "Größe\t\u202e=1"}


def bids(text):
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert all(re.fullmatch("#[0-9a-f]{6}", row["color"]) for row in rows)
    return {int(row["index"]): (row["name"], tuple(bytes.fromhex(row["color"][1:]))) for row in rows}


def slicer(text):
    """Slicer shows underscores as spaces."""
    first, *lines = text.splitlines()
    assert first.startswith("# Color table file")
    table = {}
    for value, name, *colour, opacity in (line.split(" ") for line in lines if not line.startswith("#")):
        table[int(value)] = (name.replace("_", " "), tuple(map(int, colour)))
        assert opacity == ("0" if value == "0" else "255")
    assert table.pop(0) == ("Background", (0, 0, 0))
    return table


def itk_snap(text):
    lines = [shlex.split(line, posix=True) for line in text.splitlines() if not line.startswith("#")]
    table = {int(value): (name, tuple(map(int, rgb))) for value, *rgb, _, _, _, name in lines}
    assert table.pop(0) == ("Clear Label", (0, 0, 0))
    assert all(line[4:7] == ["1", "1", "1"] for line in lines[1:])
    return table


def fsleyes(text):
    rows = [line.split(" ", 4) for line in text.splitlines()]
    values = [int(row[0]) for row in rows]
    assert values == sorted(values)
    return {v: (name, tuple(round(255 * float(part)) for part in rgb)) for v, (_, *rgb, name) in zip(values, rows)}


READERS = {"labels.tsv": bids, "labels.ctbl": slicer, "labels_itksnap.txt": itk_snap, "labels.lut": fsleyes}


def test_every_table_is_reserved_and_read_back_here():
    assert READERS.keys() == LABEL_TABLES.keys() <= set(RESERVED)


@pytest.mark.parametrize("file", READERS)
def test_names_and_colours_come_back(tmp_path, file):
    stats = [{"label": value, "name": name} for value, name in NAMES.items()]
    write_label_tables([{"name": "failed"}, {"stats": stats[2:]}, {"stats": stats[:2]}], tmp_path)
    table = READERS[file]((tmp_path / file).read_text(encoding="utf-8"))
    assert {value: colour for value, (_, colour) in table.items()} == {k: PALETTE[(k - 1) % 12] for k in NAMES}
    names = {value: name for value, (name, _) in table.items()}
    assert names[1] == NAMES[1]
    assert names[2].replace("'", '"') == NAMES[2]
    assert names[4] == "label 4"
    assert names[14] == r"Größe\t\u202e=1"


def test_a_value_of_two_bundles_has_both_names(tmp_path):
    write_label_tables([{"stats": [{"label": 1, "name": name}]} for name in ("liver", "spleen", "liver")], tmp_path)
    assert bids((tmp_path / "labels.tsv").read_text())[1][0] == "liver or spleen"


def test_no_labels_no_table(tmp_path):
    write_label_tables([{"name": "a", "cells": {}}, {"stats": []}], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_writes_the_colours_that_its_pictures_have(clean_run):
    pixels = np.asarray(Image.open(clean_run / "qc" / "case00.png")).reshape(-1, 3)
    drawn = {tuple(map(int, pixel)) for pixel in np.unique(pixels, axis=0)}
    for file, reader in READERS.items():
        table = reader((clean_run / file).read_text())
        assert {value: name for value, (name, _) in table.items()} == {1: "grey", 2: "white"}
        assert {colour for _, colour in table.values()} <= drawn


def test_a_bids_derivative_has_its_lookup_table(tmp_path, cohort, tiny_bundle):
    scan = tmp_path / "data" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_bytes((cohort / "case00.nii.gz").read_bytes())
    (tmp_path / "data" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    assert predict(tmp_path / "data", to=tmp_path / "out", bundle=tiny_bundle) == 0
    assert bids((tmp_path / "out" / "dseg.tsv").read_text()) == {1: ("grey", PALETTE[0]), 2: ("white", PALETTE[1])}
