"""Balls whose radius is their class, a mask like a gland's, options of a small network, and reading what it wrote."""

import csv

import numpy as np
import torch

from tests.helpers import BUNDLES

BUNDLE = BUNDLES / "medmnist3d_classification"
SECTIONS, NAMES, SIZE = {"train": 24, "val": 9, "test": 12}, ["small", "medium", "large"], 16
NET = {"patch_size": 4, "embed_dim": 48, "num_heads": 3, "depth": 2, "taps": [0, 1], "head": "attentive"}
QUICK = {"learning_rate": 0.003, "warmup_epochs": 1, "layer_decay": 1.0, "ema_decay": 0.9, "batch_size": 4}


def ball(kind, rng, size=SIZE):
    """A noisy ball of radius 2.5, 4 or 5.5 voxels; opposite corners hold 0 and 255, so that scaling changes nothing."""
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"))
    centre = (size - 1) / 2 + rng.uniform(-1.5, 1.5, size=(3, 1, 1, 1))
    inside = ((grid - centre) ** 2).sum(0) < (2.5 + 1.5 * kind) ** 2
    image = np.clip(60 + 120 * inside + rng.normal(0, 15, inside.shape), 0, 255).round().astype(np.uint8)
    image[:3, :3, :3], image[-3:, -3:, -3:] = 0, 255
    return image


def gland(scan, start, thickness=2):
    """Draw three plates that meet, as limbs of an adrenal gland do, into a mask; returns it."""
    x, y, z = (slice(a, a + n) for a, n in zip(start, (12, 20, 24)))
    box = scan[x, y, z]
    box[5 : 5 + thickness, :, 12:] = 1  # the body, above
    for step in range(12):  # two limbs, downwards and apart
        for side in (5 - step // 3, 5 + step // 3):
            box[side : side + thickness, :, 11 - step] = 1
    return scan


def of(root, name="balls"):
    """The options that name a data set of the folder, and those of the network."""
    return {"datasets_file": root / "sets.json", "dataset_name": name, "dataset_dir": root, **NET}


def arrays(root, name="balls"):
    """What the npz of a set holds."""
    with np.load(root / f"{name}_{SIZE}.npz") as held:
        return dict(held)


def load(path):
    return torch.load(path, weights_only=True)


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_metrics(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return {name: float(value) for name, value in csv.reader(file)}


def probabilities(rows, names=NAMES):
    return np.array([[float(row[f"probability_{name}"]) for name in names] for row in rows])
