"""Draw what the classification bundle looked at in two adrenal glands of AdrenalMNIST3D's validation part.

Runs inference.yaml with explain.yaml once a method, as a user would, and lays each map over the mask.

    python benchmarks/draw_explanations.py DATA bundles/medmnist3d_classification/docs/explanations.png
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "medmnist3d_classification"
METHODS = ("rollout", "last_block", "grad_cam", "occlusion")
NAMES = ("normal", "hyperplasia")


def write_masks(data: Path, folder: Path) -> dict[str, Path]:
    """The first validation case of each class as NIfTI, 1 mm voxels on axes to the left, back and top."""
    import nibabel as nib

    folder.mkdir(parents=True)
    with np.load(data / "adrenalmnist3d_64.npz") as arrays:
        images, labels = arrays["val_images"], arrays["val_labels"][:, 0]
    written = {name: folder / f"{name}.nii.gz" for name in NAMES}
    for number, path in enumerate(written.values()):
        mask = (images[np.flatnonzero(labels == number)[0]] > 0).astype(np.uint8)
        nib.Nifti1Image(mask, np.diag([-1.0, -1.0, 1.0, 1.0])).to_filename(path)
    return written


def explain(method: str, weights: Path, images: Path, output: Path) -> None:
    """``python -m monai.bundle run`` on inference.yaml and explain.yaml."""
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"]
    command += ["--config_file", "['configs/inference.yaml','configs/explain.yaml']", "--method", method]
    command += ["--ckpt_path", str(weights), "--dataset_dir", str(images), "--output_dir", str(output)]
    subprocess.run(command, cwd=BUNDLE, check=True, stdout=subprocess.DEVNULL)


def draw(images: dict[str, Path], maps: Path, picture: Path) -> None:
    """A row for each gland, a column for each method: the coronal plane with most of the gland, its outline in white.

    Occlusion has a sign (red speaks for the answer, blue against it), the others go from dark (least) to bright.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import nibabel as nib

    figure, axes = plt.subplots(len(images), len(METHODS) + 1, figsize=(12, 5.2), facecolor="black")
    for row, (name, image) in zip(axes, images.items()):
        mask = np.asarray(nib.load(image).dataobj)
        plane = int(mask.sum((0, 2)).argmax())
        row[0].imshow(mask[:, plane].T, cmap="gray", origin="lower")
        row[0].set_title(f"{name} (the label)", color="white", fontsize=9)
        for cell, method in zip(row[1:], METHODS):
            values = np.asarray(nib.load(maps / f"{name}_{method}.nii.gz").dataobj)
            limit = np.abs(values).max()
            signed = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
            style = signed if method == "occlusion" else {"cmap": "inferno", "vmin": 0, "vmax": limit}
            cell.imshow(values[:, plane].T, origin="lower", **style)
            cell.contour(mask[:, plane].T, [0.5], colors="black" if method == "occlusion" else "white", linewidths=0.8)
            cell.set_title(method, color="white", fontsize=9)
        for cell in row:
            cell.set(xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(picture, dpi=80, facecolor="black", bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Write, explain, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with adrenalmnist3d_64.npz")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--weights", type=Path, default=BUNDLE / "models" / "model.pt", help="those of a training")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = write_masks(args.data, Path(folder) / "images")
        for method in METHODS:
            explain(method, args.weights.resolve(), Path(folder) / "images", Path(folder) / "maps")
        draw(images, Path(folder) / "maps", args.picture)
    print(args.picture)


if __name__ == "__main__":
    main()
