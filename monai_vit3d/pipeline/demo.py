"""Segment both hippocampi of the MNI152 template that nilearn ships."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_vit3d.bundle.config import config_files
from monai_vit3d.bundle.metadata import read_metadata
from monai_vit3d.data import ImageError, cut_box, label_volumes_ml

from .folder import predict_folder

CENTRES_MM = {"left": (-26, -22, -14), "right": (26, -22, -14)}
SIZE_MM = (48, 64, 48)


@dataclass(frozen=True)
class Demo:
    """The files that the demo wrote, and the volume of each structure."""

    images: dict[str, Path]
    labels: dict[str, Path]
    report: Path
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
        BundleError: ``bundle`` is no bundle.
        WeightsError: the bundle has no trained weights.
        ImageError: an image could not be segmented.
    """
    bundle, output = Path(bundle).resolve(), Path(output).resolve()
    config_files(bundle)
    images = cut_hippocampi(output / "images")
    predicted = output / "labels"
    summary = predict_folder([output / "images"], predicted, bundle, existing="overwrite", safe=True)
    if summary.failed:
        raise ImageError(f"{predicted / 'run.json'}: {summary.failed} of {len(images)} images failed; it says why.")
    labels = {side: predicted / f"{side}_hippocampus_seg.nii.gz" for side in images}
    names = {value: name for value, name in read_metadata(bundle).channel_names.items() if value > 0}
    volumes = {side: label_volumes_ml(path, names) for side, path in labels.items()}
    picture = draw(images, labels, names, output / "hippocampi.png")
    return Demo(images, labels, predicted / "report.html", picture, volumes)


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


def draw(images: dict[str, Path], labels: dict[str, Path], names: dict[int, str], picture: Path) -> Path:
    """Draw three planes through the middle of each structure, labels over the image."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from nilearn.plotting import find_parcellation_cut_coords, plot_roi

    colours = [plt.get_cmap("Set1")(i) for i in range(len(names))]
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
