"""A bundle as vit3d init writes it, of a network and scans so small that an epoch takes a moment."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from monai_vit3d.planning.dataset import LabelledCase, LabelledDataset
from monai_vit3d.planning.plan import Decision, TrainingPlan
from monai_vit3d.planning.write_bundle import write_bundle

SHAPE = (16, 16, 8)
CLASS_NAMES = {0: "background", 1: "liver", 2: "lesion"}
CHOICES = {
    "folds": 2, "modality": ["MR"], "orientation": "RAS", "window": list(SHAPE), "spacing_mm": [1.0, 1.0, 2.0],
    "flip_axes": [1], "tta_degrees": [0.0, 0.0, 8.0], "tta_scales": [1.1],
    "intensity": [{"scheme": "z"}], "overlap": 0.5,
    "epochs": 2, "val_interval": 1, "batch_size": 1, "samples_per_case": 2, "repeats": 1, "cached_cases": 4,
    "num_workers": 0, "learning_rate": 0.001, "weight_decay": 0.01, "warmup_epochs": 1, "frozen_epochs": 0,
    "layer_decay": 1.0, "ema_decay": 0.5, "clip_norm": 12.0, "amp": False, "seed": 0, "pretrained": None,
    "encoder_options": {}, "lora_rank": 0, "loss": "DiceCELoss", "class_ratios": [1.0, 1.0, 1.0],
    "rotate_range": [0.2, 0.2, 0.2],
    "decoder": "light", "feature_size": 4, "image_levels": None,
    "patch_size": [8, 8, 4], "embed_dim": 12, "depth": 3, "num_heads": 2, "embed_layer": "patch",
}  # fmt: skip


def write_scans(folder: Path, cases: int = 4) -> list[LabelledCase]:
    """Write scans with a liver and a lesion, and their labels."""
    folder.mkdir(parents=True)
    affine, written = np.diag([1.0, 1.0, 2.0, 1.0]), []
    for i in range(cases):
        rng = np.random.default_rng(i)
        labels = np.zeros(SHAPE, np.uint8)
        labels[2:10, 3:12, 1:6] = 1
        labels[11:14, 4:8, 2:5] = 2
        image = (100 * labels + rng.normal(0, 10, SHAPE) + 200).astype(np.float32)
        paths = folder / f"case_{i}.nii.gz", folder / f"case_{i}_seg.nii.gz"
        for path, values in zip(paths, (image, labels)):
            nib.save(nib.Nifti1Image(values, affine), path)
        written.append(LabelledCase(f"case_{i}", (paths[0],), paths[1], f"case_{i}"))
    return written


def write_tiny(folder: Path, cases: int = 4, **choices) -> Path:
    """Write scans and a bundle for them; its folder."""
    dataset = LabelledDataset(
        folder / "data", "folders", "segmentation", tuple(write_scans(folder / "data", cases)), ("T1w",), CLASS_NAMES
    )
    plan = TrainingPlan([Decision(key, value, "tiny") for key, value in (CHOICES | choices).items()])
    return write_bundle(dataset, {}, plan, folder / "bundle")


def scan(bundle: Path, name: str) -> Path:
    """Find a file of the data by its name."""
    return Path(json.loads((bundle / "configs/split.json").read_text())["data_root"]) / name
