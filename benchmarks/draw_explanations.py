"""Draw what the classification bundle looked at in both hippocampi of nilearn's MNI152 template.

Runs inference.yaml with explain.yaml once a method, as a user would, and lays each map over the MRI.

    python benchmarks/draw_explanations.py runs/train/model.pt bundles/medmnist3d_classification/docs/explanations.png
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from monai_vit3d.pipeline.demo import CENTRES_MM, cut_hippocampi

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "medmnist3d_classification"
METHODS = ("rollout", "last_block", "grad_cam", "occlusion")


def explain(method: str, weights: Path, images: Path, output: Path) -> None:
    """``python -m monai.bundle run`` on inference.yaml and explain.yaml."""
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"]
    command += ["--config_file", "['configs/inference.yaml','configs/explain.yaml']", "--method", method]
    command += ["--ckpt_path", str(weights), "--dataset_dir", str(images), "--output_dir", str(output)]
    subprocess.run(command, cwd=BUNDLE, check=True, stdout=subprocess.DEVNULL)


def draw(images: dict[str, Path], maps: Path, picture: Path) -> None:
    """A row for each side, a column for each method: the coronal plane through the structure's middle.

    Occlusion has a sign (red speaks for the answer, blue against it), the others go from dark (least) to bright.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import nibabel as nib
    import numpy as np
    from nilearn.plotting import plot_stat_map

    figure, axes = plt.subplots(len(images), len(METHODS), figsize=(11, 5.4), facecolor="black")
    for row, (side, image) in zip(axes, images.items()):
        for cell, method in zip(row, METHODS):
            overlay = maps / f"{image.name.removesuffix('.nii.gz')}_{method}.nii.gz"
            values = np.asarray(nib.load(overlay).dataobj)
            seen = values[values != 0]  # outside the network's field of view there is nothing
            signed = method == "occlusion"
            limit = np.abs(seen).max()
            low, high = (-limit, limit) if signed else (seen.min(), seen.max())
            style = {"display_mode": "y", "black_bg": True, "annotate": False, "colorbar": False, "transparency": 0.5}
            colours = {"cmap": "RdBu_r" if signed else "inferno", "vmin": low, "vmax": high, "threshold": 1e-12}
            cut = [CENTRES_MM[side][1]]
            plot_stat_map(str(overlay), bg_img=str(image), axes=cell, cut_coords=cut, **style, **colours)
            cell.set_title(f"{side} hippocampus, {method}", color="white", fontsize=9)
    figure.savefig(picture, dpi=110, facecolor="black", bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Cut, explain, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="what the bundle's train.yaml wrote, with its own network")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = cut_hippocampi(Path(folder) / "images")
        for method in METHODS:
            explain(method, args.weights.resolve(), Path(folder) / "images", Path(folder) / "maps")
        draw(images, Path(folder) / "maps", args.picture)
    print(args.picture)


if __name__ == "__main__":
    main()
