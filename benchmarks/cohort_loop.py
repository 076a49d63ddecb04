"""What one writes by hand, timed by cohort.py: nibabel, PyTorch, MONAI's sliding windows, an argmax, nibabel.

It has no components, no report and no checks. A CT is resampled by PyTorch, and its labels by nearest neighbours.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from made_up_bundle import SPACING_MM, WINDOW, segmenter
from monai.inferers import sliding_window_inference
from torch.nn.functional import interpolate

from monai_vit3d.weights import network_from


def label_crops(x: torch.Tensor, spacing_mm: tuple[float, ...], network: torch.nn.Module) -> torch.Tensor:
    """Labels of the hippocampus bundle."""
    x = (x - x.mean()) / x.std(correction=0)
    return sliding_window_inference(x, (32, 48, 32), 4, network, overlap=0.5, mode="gaussian").argmax(1, keepdim=True)


def label_ct(x: torch.Tensor, spacing_mm: tuple[float, ...], network: torch.nn.Module) -> torch.Tensor:
    """Labels of the made-up UNETR, on the file's grid."""
    shape = x.shape[2:]
    x = interpolate(x, [round(n * a / b) for n, a, b in zip(shape, spacing_mm, SPACING_MM)], mode="trilinear")
    x = ((x + 57) / 221).clamp(0, 1)
    labels = sliding_window_inference(x, WINDOW, 1, network, overlap=0.25).argmax(1, keepdim=True)
    return interpolate(labels.to(torch.uint8), shape, mode="nearest-exact")


def main() -> None:
    """Label each image of a folder: ``crops|ct BUNDLE IMAGES OUT``."""
    kind, (bundle, images, out) = sys.argv[1], map(Path, sys.argv[2:])
    network = network_from(bundle / "models" / "model.pt").eval() if kind == "crops" else segmenter()
    label = label_crops if kind == "crops" else label_ct
    out.mkdir(exist_ok=True)
    for path in sorted(images.glob("*.nii.gz")):
        image = nib.as_closest_canonical(nib.load(path))
        x = torch.from_numpy(image.get_fdata(dtype=np.float32))[None, None]
        with torch.no_grad():
            labels = label(x, image.header.get_zooms(), network)
        made = nib.Nifti1Image(labels[0, 0].numpy().astype(np.uint8), image.affine)
        nib.save(made, out / path.name.replace(".nii", "_seg.nii"))


if __name__ == "__main__":
    main()
