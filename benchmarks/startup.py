"""What a command costs before it does anything: a process each, wall clock, in turn.

    python benchmarks/startup.py --rounds 7

`vit3d --help` and `vit3d check` of a small file, `import monai_vit3d`, and `vit3d info` of the shipped bundle, against
`python -m monai.bundle --help`. The limit is `python -c pass` of the same interpreter. The first round is not counted:
it writes Python's caches.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from in_turn import timed

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> None:
    """This interpreter."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    # monai.bundle's help ends with 0 or 2, depending on the version of fire
    subprocess.run([sys.executable, *arguments], env=env, check=False, capture_output=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), image)
        commands = {
            "limit": ("-c", "pass"),
            "vit3d --help": ("-m", "monai_vit3d.cli", "--help"),
            "import monai_vit3d": ("-c", "import monai_vit3d"),
            "vit3d check FILE": ("-m", "monai_vit3d.cli", "check", str(image)),
            "vit3d info BUNDLE": ("-m", "monai_vit3d.cli", "info", str(ROOT / "bundles" / "hippocampus_segmentation")),
            "monai.bundle --help": ("-m", "monai.bundle", "--help"),
        }
        times = timed({name: partial(run, *command) for name, command in commands.items()}, args.rounds)
    peer = statistics.median(times["monai.bundle --help"])
    print(f"{'process, s':>24s} {'median':>7s} {'least':>7s}   monai.bundle --help / this")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:>24s} {median:7.2f} {min(seconds):7.2f} {peer / median:10.1f}")


if __name__ == "__main__":
    main()
