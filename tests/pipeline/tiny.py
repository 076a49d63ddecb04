"""A bundle of one convolution, which labels by brightness and passes --safe, and what tests of whole runs share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_vit3d import cli
from tests.clinical import AFFINE, SHAPE, nifti, packed, sampled

# numbers of the phantom's 0 to 120, after ScaleIntensityd 0 to 1: none that a rounded value comes near to
FIRST, SECOND = 20.3 / 120, 60.3 / 120

CONFIG = """imports:
  - $import os
bundle_root: .
output_dir: $@bundle_root + '/eval'
ckpt_path: $@bundle_root + '/models/model.pt'
network_def:
  _target_: torch.nn.Conv3d
  in_channels: 1
  out_channels: 3
  kernel_size: 1
preprocessing:
  _target_: Compose
  transforms:
    - {_target_: LoadImaged, keys: image, ensure_channel_first: true}
    - {_target_: Orientationd, keys: image, axcodes: RAS, labels: null}
    - {_target_: Spacingd, keys: image, pixdim: [2.0, 2.0, 2.0], mode: bilinear}
    - {_target_: ScaleIntensityd, keys: image}
    - {_target_: EnsureTyped, keys: image}
inferer: {_target_: SlidingWindowInferer, roi_size: [16, 16, 16], sw_batch_size: 4, overlap: 0.25, mode: gaussian}
postprocessing:
  _target_: Compose
  transforms:
    - {_target_: AsDiscreted, keys: pred, argmax: true}
    - {_target_: Invertd, keys: pred, transform: '@preprocessing', orig_keys: image, nearest_interp: true}
    - {_target_: SaveImaged, keys: pred, output_dir: '@output_dir', output_postfix: seg, resample: false}
"""
METADATA = {
    "name": "tiny",
    "version": "0.0.1",
    "network_data_format": {
        "inputs": {"image": {"type": "image", "num_channels": 1}},
        "outputs": {"pred": {"format": "segmentation", "channel_def": {"0": "background", "1": "grey", "2": "white"}}},
    },
}


def write_bundle(root: Path, first: float = FIRST, second: float = SECOND) -> Path:
    """A bundle that labels brightness x: 1 above ``first``, 2 above ``second``."""
    (root / "configs").mkdir(parents=True, exist_ok=True)
    (root / "models").mkdir(exist_ok=True)
    (root / "configs" / "inference.yaml").write_text(CONFIG)
    (root / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    weight = torch.tensor([0.0, 100.0, 200.0]).reshape(3, 1, 1, 1, 1)
    bias = torch.tensor([0.0, -100 * first, -100 * (first + second)])
    torch.save({"weight": weight, "bias": bias}, root / "models" / "model.pt")
    return root


def reconfigure(bundle: Path, *changes: tuple[str, str], more: str = "") -> Path:
    """Write the bundle's config with texts replaced and lines added; it imports this package, too."""
    text = CONFIG
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (bundle / "configs" / "inference.yaml").write_text(text.replace("  - $import os", "  - $import monai_vit3d") + more)
    return bundle


def write_images(folder: Path, count: int, shape: tuple[int, ...] = SHAPE) -> list[Path]:
    """Phantoms in noise, each another one; every third below a folder of its own."""
    paths = []
    for i in range(count):
        paths.append(folder / ("deep" if i % 3 == 2 else "") / f"case{i:02d}.nii.gz")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        values = sampled(shape, AFFINE) + np.random.default_rng(i).normal(0, 5, shape)
        paths[-1].write_bytes(packed(nifti(shape=shape, values=values)))
    return paths


def predict(*inputs: Path, to: Path, bundle: Path, options: Iterable[str] = (), safe: bool = True) -> int:
    """``vit3d predict`` in this process; returns its exit code."""
    return cli.main(arguments(*inputs, to=to, bundle=bundle, options=options, safe=safe))


def arguments(*inputs: Path, to: Path, bundle: Path, options: Iterable[str] = (), safe: bool = True) -> list[str]:
    """The command's arguments; on the CPU."""
    words = ["predict", *map(str, inputs), "-o", str(to), "--bundle", str(bundle), "--device", "cpu"]
    return [*words, *["--safe"] * safe, *options]


def records(out: Path) -> dict[str, dict[str, Any]]:
    """``files`` of run.json by name."""
    return {one["name"]: one for one in json.loads((out / "run.json").read_text())["files"]}


def statuses(out: Path) -> dict[str, str]:
    """What became of each case."""
    return {name: one["status"] for name, one in records(out).items()}


def products(out: Path) -> dict[str, str]:
    """SHA-256 of all that must not depend on how a run went: labels, pictures, the table."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    kept = [path for path in files if path.name not in ("run.json", "report.html")]  # they tell times
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def leftovers(out: Path) -> list[str]:
    """Hidden files but for locks: nothing of a run that has ended may be there."""
    return sorted(p.relative_to(out).as_posix() for p in out.rglob(".*") if p.suffix != ".lock")


def fits_the_terminal(error: Exception) -> bool:
    """Whether an error's message is one line, or as many as it has ``lines``, each not too long to read."""
    lines = getattr(error, "lines", None) or [str(error)]
    return all(line and "\n" not in line and len(line) < 3000 for line in lines)
