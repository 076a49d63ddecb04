"""What head_structures does with real heads and with noise, and its tissues beside MNI152's own tissue maps.

For nilearn's MNI152, it with exchanged brightness, and each further file: seconds of a prediction, the median of the
structures' mean probabilities, the labelled millilitres, and why nothing is labelled. Ten images of noise follow. Last,
Dice on MNI152 against the tissue maps that nilearn has of it, at a probability of one half.

    python benchmarks/real_heads.py [HEAD.nii.gz …]

The limits: 30 s a head, and the bundle's least median, which all heads are to reach and no noise.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from scipy.ndimage import gaussian_filter

from monai_vit3d import Predictor
from monai_vit3d.transforms import BRAIN_STRUCTURES

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "head_structures"
VALUE = {name: value for value, name in enumerate(BRAIN_STRUCTURES, 1)}
NO_BRAIN = ("ventricle", "fluid")  # in the names of what the tissue maps do not count
NOISE_SHAPE = (180, 200, 180)


def images(paths: list[Path]) -> Iterator[tuple[str, nib.Nifti1Image]]:
    """Yield the templates, the files, and noise, each with a name."""
    template = load_mni152_template(resolution=1)
    yield "MNI152", template
    voxels = np.asarray(template.dataobj, np.float32)
    inverted = np.where(voxels > 0, 1.1 * np.percentile(voxels[voxels > 0], 99.5) - voxels, 0).clip(0)
    yield "MNI152, inverted", nib.Nifti1Image(inverted.astype(np.float32), template.affine)
    for path in paths:
        yield path.name, nib.load(path)
    for number, smoothing in enumerate([0, 0, 0, 1, 2, 3, 5, 8, 12, 20]):
        noise = np.random.default_rng(number).normal(size=NOISE_SHAPE)
        smooth = gaussian_filter(noise, smoothing) if smoothing else noise
        voxels = (100 + 20 * smooth / smooth.std()).astype(np.float32)
        yield f"noise, smoothed by {smoothing}", nib.Nifti1Image(voxels, np.eye(4))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the Dice of two masks."""
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def print_tissues(labels: np.ndarray) -> None:
    """Compare the brain with the maps and, within the labelled cerebrum, its white matter and cortex."""
    maps = (load_mni152_wm_template(resolution=1), load_mni152_gm_template(resolution=1))
    white, grey = (np.asarray(one.dataobj) for one in maps)
    brain = [value for name, value in VALUE.items() if not any(word in name for word in NO_BRAIN)]
    print(f"Dice of the brain {dice(np.isin(labels, brain), white + grey > 0.5):.3f}")
    sides = {
        tissue: np.isin(labels, [VALUE[f"{side} cerebral {tissue}"] for side in ("left", "right")])
        for tissue in ("white matter", "cortex")
    }
    cerebrum = sides["white matter"] | sides["cortex"]
    for (tissue, mask), own, other in zip(sides.items(), (white, grey), (grey, white)):
        print(f"Dice of the cerebral {tissue} {dice(mask, (own > other) & (own > 0.5) & cerebrum):.3f}")


def main() -> None:
    """Label all, print a line each, then the tissues."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", nargs="*", type=Path, help="further heads")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # the doubts stand in the lines
    predictor = Predictor(BUNDLE, device="cpu", anyway=True)
    inferer, template_labels = predictor.bundle.inferer, None
    print(f"least median {inferer.least_probability}\n{'':40s} {'s':>5s} {'median':>7s} {'ml':>6s}")
    for name, image in images(args.heads):
        start = time.perf_counter()
        found = predictor.predict(image)
        seconds, labels = time.perf_counter() - start, np.asarray(found.dataobj)
        template_labels = labels if template_labels is None else template_labels
        volume_ml = (labels > 0).sum() * abs(np.linalg.det(found.affine[:3, :3])) / 1000
        median = "" if inferer.certain is None else f"{inferer.certain:.3f}"
        print(f"{name:40s} {seconds:5.1f} {median:>7s} {volume_ml:6.0f} {'; '.join(inferer.doubts)}", flush=True)
    print_tissues(template_labels)


if __name__ == "__main__":
    main()
