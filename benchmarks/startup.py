"""What a command costs before it does anything, and for one small crop: a process each, in turn.

    python benchmarks/startup.py --rounds 7

Wall clock: `vit3d --help` and `vit3d check` of a small file, `import monai_vit3d`, and `vit3d info` of the shipped
bundle, against `python -m monai.bundle --help`; the limit is `python -c pass` of the same interpreter. Seconds of CPU,
one thread: `vit3d predict` of one crop around a hippocampus (of nilearn's MNI152) by the shipped bundle against
`monai.bundle run` of it; "all imported" is the same command without monai_vit3d/deferred_imports.py, the limit is
`import torch`. The first round is not counted: it writes Python's caches, and exports the network.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from in_turn import timed
from made_up_bundle import SHIPPED
from nilearn.datasets import load_mni152_template

from monai_vit3d.data import cut_box

ROOT = Path(__file__).resolve().parents[1]


ALL_IMPORTED = "from monai_vit3d.cli import command as c; c.defer_imports = lambda: 0; c.run_process()"


def run(*arguments: str, cwd: Path | None = None) -> int:
    """This interpreter; its exit code."""
    env = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    # monai.bundle's help ends with 0 or 2, depending on the version of fire
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, check=False, capture_output=True).returncode


def cpu_seconds(*arguments: str, cwd: Path | None = None) -> float:
    """Of this interpreter, user's and system's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if run(*arguments, cwd=cwd):
        raise SystemExit(f"failed: {arguments}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def one_crop(folder: Path, rounds: int) -> None:
    """Seconds of CPU for one crop, ours and MONAI's, in turn."""
    image = folder / "crop" / "image.nii.gz"
    image.parent.mkdir()
    cut_box(load_mni152_template(resolution=1), (-26, -20, -14), (36, 50, 36)).to_filename(image)
    predict = ["predict", str(image), "-o", str(folder / "out"), "--bundle", str(SHIPPED), "--device", "cpu"]
    predict += ["--overwrite", "--anyway"]
    given = [
        "--dataset_dir",
        str(image.parent),
        "--output_dir",
        str(folder / "peer"),
        "--device",
        "$torch.device('cpu')",
    ]
    commands: dict[str, tuple[list[str], Path]] = {
        "import torch": (["-c", "import torch"], ROOT),
        "vit3d predict": (["-m", "monai_vit3d", *predict], ROOT),
        "all imported": (["-c", ALL_IMPORTED, *predict], ROOT),
        "monai.bundle run": (["-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml", *given], SHIPPED),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(rounds + 1):
        for name, (words, where) in commands.items():
            found = cpu_seconds(*words, cwd=where)
            seconds[name] += [found] if i else []
    print(f"{'one crop, s of CPU':>24s} {'median':>7s} {'least':>7s}   monai.bundle run / this, median of the pairs")
    for name, times in seconds.items():
        ratio = statistics.median(peer / mine for peer, mine in zip(seconds["monai.bundle run"], times))
        print(f"{name:>24s} {statistics.median(times):7.2f} {min(times):7.2f} {ratio:10.2f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--crop", action="store_true", help="the crop alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one_crop(Path(folder), args.rounds)
        if args.crop:
            return
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
