"""Segment both hippocampi of the MNI152 template, a whole head, that nilearn ships."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_vit3d.bundle.config import config_files
from monai_vit3d.bundle.metadata import read_metadata
from monai_vit3d.bundle.shipped import find_bundle
from monai_vit3d.data import ImageError, cut_box, label_volumes_ml

from .folder import predict_folder

CENTRES_MM = {"left": (-26, -22, -14), "right": (26, -22, -14)}  # of the hippocampi in MNI space
SIZE_MM = (40, 60, 44)  # of a box around one, which no hippocampus of the templates leaves
NAME = "mni152"


@dataclass(frozen=True)
class Demo:
    """The files that the demo wrote, the volume of each structure, and the seconds that the prediction took."""

    image: Path
    labels: Path
    volumes: Path
    report: Path
    picture: Path
    volumes_ml: dict[str, float]
    seconds: float


def run_demo(bundle: str | Path, output: str | Path) -> Demo:
    """Write the MNI152 head as a NIfTI file, and predict it as ``vit3d predict`` does.

    Args:
        bundle: the folder of ``head_hippocampus``, or of another bundle that labels whole heads.
        output: the folder to write to.

    Returns:
        Files and volumes.

    Raises:
        BundleError: ``bundle`` is no bundle.
        WeightsError: the bundle has no trained weights.
        ImageError: the image could not be segmented.
    """
    bundle, output = find_bundle(bundle).resolve(), Path(output).resolve()
    config_files(bundle)
    image = _template(output / "images")
    predicted = output / "labels"
    start, records = time.perf_counter(), list[Any]()
    summary = predict_folder(image, predicted, bundle, existing="overwrite", safe=True, on_case=records.append)
    if summary.failed:
        raise ImageError(f"{predicted / 'run.json'}: {image.name} failed; it says why.")
    seconds = time.perf_counter() - start
    names = {value: name for value, name in read_metadata(bundle).channel_names.items() if value > 0}
    labels, picture = Path(records[0]["output"]), predicted / records[0]["picture"]
    volumes_ml = label_volumes_ml(labels, names)
    return Demo(image, labels, predicted / "volumes.csv", predicted / "report.html", picture, volumes_ml, seconds)


def cut_hippocampi(folder: Path) -> dict[str, Path]:
    """Write the two hippocampus regions of the MNI152 T1 template (1 mm) as NIfTI files, in their place in world."""
    template: Any = _load_template()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for side, centre in CENTRES_MM.items():
        paths[side] = folder / f"{side}_hippocampus.nii.gz"
        cut_box(template, centre, SIZE_MM).to_filename(paths[side])
    return paths


def _template(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.nii.gz"
    _load_template().to_filename(path)
    return path


def _load_template() -> Any:
    from nilearn.datasets import load_mni152_template

    return load_mni152_template(resolution=1)
