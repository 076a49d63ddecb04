"""What the bundles of whole heads were trained on: `trained_on` of their metadata.json, where `vit3d measure` cannot.

Their localizer was trained on heads that were drawn from label maps. The smallest field of view is that of a file that
is cropped to a skull-stripped brain, so the smallest extent of a brain in the maps that were trained on; the largest is
the grid of the drawn heads. Volumes and pieces of the labels of head_hippocampus are those of hippocampus_segmentation,
whose network makes the labels of each side; those of head_structures are the label maps' own. The spacings, 0.5 to 5
mm, are those that benchmarks/head_localization.py and docs/README.md have.

    python benchmarks/head_trained_on.py head_hippocampus --dataset_dir $MONAI_DATA_DIRECTORY/head_label_maps
    python benchmarks/head_trained_on.py head_structures --dataset_dir $MONAI_DATA_DIRECTORY/head_label_maps --write
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from monai_vit3d.bundle.metadata import read_metadata
from monai_vit3d.bundle.trained_on import merge_ranges
from monai_vit3d.data import read_volume
from monai_vit3d.data.volume import Grid
from monai_vit3d.pipeline.measure_training import format_json, write_trained_on
from monai_vit3d.pipeline.measures import measure_grid, measure_labels
from monai_vit3d.pipeline.stats import label_stats
from monai_vit3d.transforms.synthesis import BRAIN_STRUCTURES, structure_lookup
from monai_vit3d.transforms.synthesis.head_labels import FIRST_OUTSIDE, FLUID

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
TRIED_SPACINGS_MM = [0.5, 5.0]
OF_LABELS = ("present", "volume_ml", "pieces")


def trained_on(bundle: str, dataset_dir: Path) -> dict[str, Any]:
    """Measure the label maps and the grid of the localizer's `configs/train.yaml`, and the labels of a bundle."""
    config = ConfigParser.load_config_file(BUNDLES / "head_hippocampus" / "configs" / "train.yaml")
    maps = sorted(dataset_dir.glob("*.nii.gz"))[: -config["validation_maps"]]
    extent = np.array(config["window"]) * config["spacing"]
    drawn = Grid(tuple(config["window"]), np.diag([config["spacing"]] * 3 + [1.0]))
    fields = merge_ranges([*(measure_brain(path) for path in maps), measure_grid(drawn)])["field_of_view_mm"]
    if any(high != mm for (_, high), mm in zip(fields.values(), extent)):
        raise ValueError(f"brains that are larger than the grid of the drawn heads: {fields}")
    spacings = {"field_of_view_mm": fields, "spacing_mm": dict.fromkeys(fields, TRIED_SPACINGS_MM)}
    return spacings | LABELS[bundle](maps)


def labels_of_crops(maps: Sequence[Path]) -> Mapping[str, Any]:
    """Take both labels of hippocampus_segmentation for the left side, then for the right one."""
    crops: Mapping[str, Any] = read_metadata(BUNDLES / "hippocampus_segmentation").content["trained_on"]
    labels = {str(value): crops["labels"][str(2 - value % 2)] for value in range(1, 5)}
    return {"cases": crops["cases"], "labels": of_labels(labels)}


def labels_of_maps(maps: Sequence[Path]) -> Mapping[str, Any]:
    """Measure the structures of the label maps, and their share of the whole head; of a stripped one they are all."""
    lookup, measured = structure_lookup(BRAIN_STRUCTURES), [{"share_of_foreground": 1.0}]
    for path in maps:
        volume = read_volume(path)
        classes = lookup[volume.voxels.astype(int)]
        stats = label_stats(classes, volume.voxels, volume.grid, dict(enumerate(BRAIN_STRUCTURES, 1)))
        measured.append(measure_labels(classes, (volume.voxels > 0).astype(np.float32), stats))
    ranges = merge_ranges(measured)
    return {
        "cases": len(maps),
        "share_of_foreground": ranges["share_of_foreground"],
        "labels": of_labels(ranges["labels"]),
    }


def of_labels(ranges: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the ranges that a new head's labels are compared with."""
    return {value: {key: row[key] for key in OF_LABELS} for value, row in ranges.items()}


LABELS = {"head_hippocampus": labels_of_crops, "head_structures": labels_of_maps}


def measure_brain(path: Path) -> Mapping[str, Any]:
    """Measure the grid of a label map that is cropped to the brain."""
    volume = read_volume(path)
    brain = (volume.voxels > 0) & (volume.voxels < FIRST_OUTSIDE) & (volume.voxels != FLUID)
    shape = tuple(int(np.ptp(index)) + 1 for index in brain.nonzero())
    return {"field_of_view_mm": measure_grid(Grid(shape, volume.grid.affine_mm))["field_of_view_mm"]}


def main() -> None:
    """Print it, or write it into the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", choices=LABELS)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="the folder with the 20 label maps")
    parser.add_argument("--write", action="store_true", help="into metadata.json")
    args = parser.parse_args()
    measured = trained_on(args.bundle, args.dataset_dir)
    if args.write:
        write_trained_on(measured, BUNDLES / args.bundle)
    print(format_json({"trained_on": measured}))


if __name__ == "__main__":
    main()
