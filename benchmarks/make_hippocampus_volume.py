"""Make ``hippovolume3d_48.npz``: real MRIs in MedMNIST3D's format, to be classified by the hippocampus' volume.

MSD Task04's crops around one hippocampus, with the split of bundles/hippocampus_segmentation (its training part only
has trained that bundle's encoder). The class is the tertile of the experts' volume (anterior + posterior), with
limits from the training part. Each image is what the classification bundle makes of the file (the ``geometry`` of
its inference.yaml): the same 31 x 40 x 26 mm from the middle of every crop, which is the largest box that all of them
have, so that nothing of the crop's own size, drawn around the hippocampus, can be read; its border is replicated to
48 cubed, equally in every case.

    python benchmarks/make_hippocampus_volume.py OUTPUT_DIR      # reads Task04_Hippocampus under MONAI_DATA_DIRECTORY

Also prints what a logistic regression reads from the crop's size alone, the baseline to beat, and the limit: what it
reads from the volume of the labels that bundles/hippocampus_segmentation gives, learned from the experts' outlines.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from monai.bundle import ConfigParser
from monai.transforms import Compose

from monai_vit3d.data import decathlon_split, label_volumes_ml
from monai_vit3d.metrics import accuracy, auc

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
STRUCTURES = {1: "anterior", 2: "posterior"}
Section = tuple[list[dict[str, str]], np.ndarray, np.ndarray]
Features = dict[str, tuple[np.ndarray, np.ndarray]]
SECTIONS = {"train": "training", "val": "validation", "test": "test"}


def geometry() -> Compose:
    """The bundle's own way from a file to its volume."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / "medmnist3d_classification" / "configs" / "inference.yaml"))
    parser["bundle_root"] = str(BUNDLES / "medmnist3d_classification")
    parser["dataset_name"] = "hippovolume3d"
    return Compose(parser.get_parsed_content("geometry"))


def read(section: str, dataset_dir: Path) -> Section:
    """Files, crop sizes ``(N, 3)`` in voxels and hippocampal volumes ``(N,)`` in ml of a section."""
    import nibabel as nib

    files = decathlon_split(dataset_dir, BUNDLES / "hippocampus_segmentation" / "configs" / "split.json", section)
    volumes = [sum(label_volumes_ml(pair["label"], STRUCTURES).values()) for pair in files]
    return files, np.array([nib.load(pair["image"]).shape for pair in files]), np.array(volumes)


def make(sections: dict[str, Section], output: Path) -> Features:
    """Write the npz; returns crop sizes and labels ``(N,)`` of each section."""
    to_volume, arrays, sizes = geometry(), {}, {}
    limits = np.quantile(sections["train"][2], [1 / 3, 2 / 3])
    print(f"limits of the classes, in ml: {limits[0]:.3f} and {limits[1]:.3f}")
    for name, (files, shapes, volumes) in sections.items():
        labels = (volumes[:, None] > limits).sum(1)
        images = [np.asarray(to_volume({"image": pair["image"]})["image"])[0] for pair in files]
        arrays[f"{name}_images"] = np.stack(images).astype(np.uint8)
        arrays[f"{name}_labels"] = labels[:, None].astype(np.uint8)
        sizes[name] = (shapes, labels)
        print(f"{name:5s} {len(labels)} cases, {np.bincount(labels, minlength=3).tolist()} small, medium, large")
    output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(output / "hippovolume3d_48.npz", **arrays)
    return sizes


def segmented_ml(images: list[str]) -> np.ndarray:
    """Hippocampal volumes ``(N, 1)`` in ml by the segmentation bundle's own labels."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "images", Path(folder) / "labels"
        source.mkdir()
        for image in images:
            (source / Path(image).name).symlink_to(Path(image).resolve())
        command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"]
        command += [
            "--config_file",
            "configs/inference.yaml",
            "--dataset_dir",
            str(source),
            "--output_dir",
            str(target),
        ]
        subprocess.run(command, cwd=BUNDLES / "hippocampus_segmentation", check=True, stdout=subprocess.DEVNULL)
        labels = [target / Path(image).name.replace(".nii", "_seg.nii") for image in images]
        return np.array([[sum(label_volumes_ml(path, STRUCTURES).values())] for path in labels])


def regression(features: Features) -> dict[str, np.ndarray]:
    """Class probabilities ``(N, 3)`` by a logistic regression on logarithms, fitted to the training part."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=100.0))
    model.fit(np.log(features["train"][0]), features["train"][1])
    return {name: model.predict_proba(np.log(numbers)) for name, (numbers, _) in features.items()}


def print_scores(title: str, found: dict[str, np.ndarray], features: Features) -> None:
    """AUC and ACC of each section."""
    for name, (_, labels) in features.items():
        scores = [f"{f(found[name], labels, 'multi-class'):.3f}" for f in (auc, accuracy)]
        print(f"{title}, {name}: AUC {scores[0]}, ACC {scores[1]}")


def main() -> None:
    """Make the file, print the baseline and the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the folder to write hippovolume3d_48.npz to")
    data = Path(os.environ.get("MONAI_DATA_DIRECTORY", ".")) / "Task04_Hippocampus"
    parser.add_argument("--dataset_dir", type=Path, default=data)
    args = parser.parse_args()
    sections = {name: read(section, args.dataset_dir) for name, section in SECTIONS.items()}
    sizes = make(sections, args.output)
    alone = regression(sizes)
    print_scores("crop size alone", alone, sizes)
    np.savez(args.output / "crop_size_alone.npz", probabilities=alone["test"], labels=sizes["test"][1])
    # fitted to the experts' volumes of the training part, which the segmentation bundle has learned from
    volumes = {"train": (sections["train"][2][:, None], sizes["train"][1])}
    volumes |= {n: (segmented_ml([p["image"] for p in sections[n][0]]), sizes[n][1]) for n in ("val", "test")}
    print_scores("segmented volume, the limit", regression(volumes), volumes)
    print(args.output / "hippovolume3d_48.npz")


if __name__ == "__main__":
    main()
