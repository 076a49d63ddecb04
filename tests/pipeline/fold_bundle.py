"""A bundle of two channels and several folds: the planned inference config around small networks with seeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

import monai_vit3d.planning
from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D
from tests.pipeline import zoo
from tests.pipeline.reference import sharp_image

WINDOW = [16, 16, 16]
CHANNELS = ["CT", "PET"]
CLASSES = ["background", "lesion", "organ"]
TEMPLATES = Path(monai_vit3d.planning.__file__).parent / "templates" / "segmentation"
METADATA: dict[str, Any] = {
    "name": "folds",
    "version": "0.1.0",
    "network_data_format": {
        "inputs": {
            "image": {
                "type": "image",
                "num_channels": 2,
                "spatial_shape": WINDOW,
                "channel_def": {str(i): name for i, name in enumerate(CHANNELS)},
            }
        },
        "outputs": {
            "pred": {
                "type": "image",
                "format": "segmentation",
                "num_channels": 3,
                "channel_def": {str(i): name for i, name in enumerate(CLASSES)},
            }
        },
    },
    "plan": {
        "orientation": "RAS",
        "spacing_mm": [2.0, 2.0, 3.0],
        "intensity": [{"scheme": "clip_z", "low": -100, "high": 150, "mean": 20, "std": 60}, {"scheme": "z"}],
        "flip_axes": [1],
        "tta_degrees": [0.0, 0.0, 8.0],
        "tta_scales": [1.1],
        "keep_largest": [],
        "overlap": 0.25,
    },
}


def segmenter(seed: int, channels: int = 2, classes: int = 3) -> TokenSegmenter:
    """A small network with random weights, whose classes all occur."""
    torch.manual_seed(seed)
    plain = {"embed_dim": 24, "depth": 3, "num_heads": 2, "class_token": False, "global_pool": ""}
    network = TokenSegmenter(VisionTransformer3D(WINDOW, 8, in_chans=channels, **plain), "light", classes)
    for parameter in network.decoder.parameters():
        parameter.data.mul_(3)
    return network.eval()


def write_fold_bundle(root: Path, folds: Sequence[int] = (0, 1), **plan: Any) -> Path:
    """Write the bundle; ``plan`` replaces numbers of its plan."""
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    shutil.copy(TEMPLATES / "inference.yaml", root / "configs")
    (root / "configs" / "metadata.json").write_text(json.dumps({**METADATA, "plan": {**METADATA["plan"], **plan}}))
    for fold in folds:
        torch.save(segmenter(fold).state_dict(), root / "models" / f"fold_{fold}.pt")
    return root


def write_case(folder: Path, name: str, seed: int = 0, as_4d: bool = False, affine: Any = zoo.AFFINE) -> list[Path]:
    """Write the channels of a case as NAME_0000 and NAME_0001, or as one 4D file."""
    paths = [sharp_image(folder / f"{name}_{i:04d}.nii.gz", 10 * seed + i, affine=affine) for i in range(2)]
    if not as_4d:
        return paths
    images: list[Any] = [nib.load(path) for path in paths]
    whole = nib.Nifti1Image(np.stack([image.get_fdata(dtype=np.float32) for image in images], 3), affine)
    for path in paths:
        path.unlink()
    nib.save(whole, folder / f"{name}.nii.gz")
    return [folder / f"{name}.nii.gz"]
