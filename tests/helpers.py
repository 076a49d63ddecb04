"""Shared by the tests of all rooms: paths, seeded tensors, phantoms, and other Python processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = ROOT / "bundles"
HIPPOCAMPUS = BUNDLES / "hippocampus_segmentation"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# seconds after which a process is taken to hang: some twenty times what the slowest takes on an idle machine
HANG = 1200


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Draw a standard normal tensor; float64, so that comparisons can be exact."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def phantom(seed, shape=(34, 44, 30)):
    """A noisy ellipsoid, its front half brighter; image int16 and label uint8 on a rotated, flipped grid."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    centre = rng.uniform(-0.1, 0.1, size=(3, 1, 1, 1))
    inside = (((grid - centre) / np.array([0.4, 0.6, 0.4]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 1
    label = inside.astype(np.uint8) + (inside & (grid[1] < centre[1]))
    image = (200 * label + 100 + 15 * rng.standard_normal(shape)).astype(np.int16)
    angle = rng.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.1, 1.0, 0.9])  # the first axis runs from left to right: not RAS
    affine[:3, 3] = rng.uniform(-30, 30, size=3)
    return nib.Nifti1Image(image, affine), nib.Nifti1Image(label, affine)


def start_python(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start another Python in the repository's root, one thread a process, its output as text through pipes."""
    env = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT} | options
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=env, **pipes)


def run_python(*arguments: str | Path, timeout: float = HANG, **options: Any) -> tuple[int, str, str]:
    """Run another Python to its end (it is killed when it hangs); its exit code, output and errors."""
    with start_python(*arguments, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, out, err
