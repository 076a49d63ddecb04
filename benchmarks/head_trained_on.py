"""What the bundle head_hippocampus was trained on: `trained_on` of its metadata.json, where `vit3d measure` cannot.

Its localizer was trained on heads that were drawn from label maps. The smallest field of view is that of a file that is
cropped to a skull-stripped brain, so the smallest extent of a brain in the maps that were trained on; the largest is
the grid of the drawn heads. Volumes and pieces of labels are those of hippocampus_segmentation, whose network makes the
labels of each side. The spacings, 0.5 to 5 mm, are those that benchmarks/head_localization.py and docs/README.md have.

    python benchmarks/head_trained_on.py --dataset_dir $MONAI_DATA_DIRECTORY/head_label_maps
    python benchmarks/head_trained_on.py --dataset_dir $MONAI_DATA_DIRECTORY/head_label_maps --write
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from monai_vit3d.bundle.metadata import read_metadata
from monai_vit3d.bundle.trained_on import merge_ranges
from monai_vit3d.data import read_volume
from monai_vit3d.data.volume import Grid
from monai_vit3d.pipeline.measure_training import format_json, write_trained_on
from monai_vit3d.pipeline.measures import measure_grid
from monai_vit3d.transforms.synthesis.head_labels import FIRST_OUTSIDE, FLUID

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
HEAD = BUNDLES / "head_hippocampus"
TRIED_SPACINGS_MM = [0.5, 5.0]
OF_LABELS = ("present", "volume_ml", "pieces")


def trained_on(dataset_dir: Path) -> dict[str, Any]:
    """Measure the label maps and the grid of `configs/train.yaml`, and take the rest from hippocampus_segmentation."""
    config = ConfigParser.load_config_file(HEAD / "configs" / "train.yaml")
    maps = sorted(dataset_dir.glob("*.nii.gz"))[: -config["validation_maps"]]
    extent = np.array(config["window"]) * config["spacing"]
    drawn = Grid(tuple(config["window"]), np.diag([config["spacing"]] * 3 + [1.0]))
    hippocampus: Mapping[str, Any] = read_metadata(BUNDLES / "hippocampus_segmentation").content["trained_on"]
    labels = [{key: hippocampus["labels"][value][key] for key in OF_LABELS} for value in ("1", "2")]
    fields = merge_ranges([*(measure_brain(path) for path in maps), measure_grid(drawn)])["field_of_view_mm"]
    if any(high != mm for (_, high), mm in zip(fields.values(), extent)):
        raise ValueError(f"brains that are larger than the grid of the drawn heads: {fields}")
    return {
        "cases": hippocampus["cases"],
        "field_of_view_mm": fields,
        "spacing_mm": dict.fromkeys(fields, TRIED_SPACINGS_MM),
        "labels": {str(value): row for value, row in enumerate(labels * 2, 1)},
    }


def measure_brain(path: Path) -> Mapping[str, Any]:
    """Measure the grid of a label map that is cropped to the brain."""
    volume = read_volume(path)
    brain = (volume.voxels > 0) & (volume.voxels < FIRST_OUTSIDE) & (volume.voxels != FLUID)
    shape = tuple(int(np.ptp(index)) + 1 for index in brain.nonzero())
    return {"field_of_view_mm": measure_grid(Grid(shape, volume.grid.affine_mm))["field_of_view_mm"]}


def main() -> None:
    """Print it, or write it into the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="the folder with the 20 label maps")
    parser.add_argument("--write", action="store_true", help="into metadata.json")
    args = parser.parse_args()
    measured = trained_on(args.dataset_dir)
    if args.write:
        write_trained_on(measured, HEAD)
    print(format_json({"trained_on": measured}))


if __name__ == "__main__":
    main()
