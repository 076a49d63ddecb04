"""The main job on real data that a dependency ships: both hippocampi of nilearn's MNI152 template."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import DatasetError, WeightsError, cut_box, label_volumes_ml

CENTRES_MM = {"left": (-26, -22, -14), "right": (26, -22, -14)}
SIZE_MM = (48, 64, 48)


@dataclass(frozen=True)
class Demo:
    """What the demo wrote, and the volume of each structure."""

    images: dict[str, Path]
    labels: dict[str, Path]
    picture: Path
    volumes_ml: dict[str, dict[str, float]]


def run_demo(bundle: str | Path, output: str | Path) -> Demo:
    """Cut out both hippocampus regions, segment them with the bundle, and draw what came out.

    Args:
        bundle: the folder of ``hippocampus_segmentation``.
        output: the folder to write to.

    Returns:
        Files and volumes, by side.

    Raises:
        DatasetError: ``bundle`` is no bundle.
        WeightsError: the bundle has no trained weights.
        RuntimeError: ``monai.bundle run`` failed; the message ends with the error it gave first.
    """
    bundle, output = Path(bundle).resolve(), Path(output).resolve()
    if not (bundle / "configs" / "inference.yaml").is_file():
        raise DatasetError(f"{bundle}: no configs/inference.yaml here. Give the folder of a bundle.")
    if not (bundle / "models" / "model.pt").is_file():
        raise WeightsError(f"{bundle}: no models/model.pt here. Train the bundle first: its docs/README.md says how.")
    images = cut_hippocampi(output / "images")
    run_bundle(bundle, images["left"].parent, output / "labels")
    labels = {side: output / "labels" / f"{side}_hippocampus_seg.nii.gz" for side in images}
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    names = {int(value): name for value, name in channels.items() if int(value) > 0}
    volumes = {side: label_volumes_ml(path, names) for side, path in labels.items()}
    picture = draw(images, labels, names, output / "hippocampi.png")
    return Demo(images, labels, picture, volumes)


def cut_hippocampi(folder: Path) -> dict[str, Path]:
    """Write the two regions of the MNI152 T1 template (1 mm) as NIfTI files, in their place in world space."""
    from nilearn.datasets import load_mni152_template

    folder.mkdir(parents=True, exist_ok=True)
    template: Any = load_mni152_template(resolution=1)
    paths = {}
    for side, centre in CENTRES_MM.items():
        paths[side] = folder / f"{side}_hippocampus.nii.gz"
        cut_box(template, centre, SIZE_MM).to_filename(paths[side])
    return paths


def run_bundle(bundle: Path, dataset_dir: Path, output_dir: Path) -> None:
    """``python -m monai.bundle run`` on a bundle's inference.yaml.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"]
    options = {
        "config_file": bundle / "configs" / "inference.yaml",
        "logging_file": bundle / "configs" / "logging.conf",
        "bundle_root": bundle,
        "dataset_dir": dataset_dir,
        "output_dir": output_dir,
    }
    for key, value in options.items():
        command += [f"--{key}", str(value)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        # the first error of a chain is the cause, the last ones only say where it was raised
        causes = [line for line in result.stderr.splitlines() if re.match(r"\S*Error: ", line)] or [result.stderr]
        raise RuntimeError(f"{' '.join(command)}\nfailed with {causes[0]}")


def draw(images: dict[str, Path], labels: dict[str, Path], names: dict[int, str], picture: Path) -> Path:
    """Three planes through each structure's middle, labels over the image."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from nilearn.plotting import find_parcellation_cut_coords, plot_roi

    colours = plt.get_cmap("Set1").colors[: len(names)]
    figure, rows = plt.subplots(len(images), 1, figsize=(9, 3.4 * len(images)), facecolor="black")
    for row, (side, image) in zip(rows, images.items()):
        cut = tuple(find_parcellation_cut_coords(str(labels[side])).mean(axis=0))
        style = {"cmap": ListedColormap(colours), "alpha": 0.5, "black_bg": True, "colorbar": False}
        plot_roi(str(labels[side]), bg_img=str(image), cut_coords=cut, axes=row, title=side, **style)
    legend = [Patch(color=colour, label=name) for colour, name in zip(colours, names.values())]
    figure.legend(handles=legend, loc="lower center", ncols=len(names), facecolor="black", labelcolor="white")
    figure.savefig(picture, dpi=110, facecolor="black", bbox_inches="tight")
    plt.close(figure)
    return picture
