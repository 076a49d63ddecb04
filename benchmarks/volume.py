"""From a compressed NIfTI to a compressed NIfTI: `vit3d predict` against MONAI's own components, in turn.

    python benchmarks/volume.py --rounds 5
    python benchmarks/volume.py --quick      # a smaller CT, three rounds

Two bundles. `hippocampus` is the shipped one with its trained weights, over a box of 96x64x64 mm of nilearn's MNI152
template, with both hippocampi in it. `unetr` is made on the fly: a UNETR of 12 blocks with 14 classes and random
weights, windows of 96^3, overlap 0.25, over the CT-like image of reading.py (512x512x100, 0.8x0.8x2.5 mm, resampled to
1.5x1.5x2 mm), inverted before the argmax as the zoo's bundles do.

Ours is PyTorch's float32, and `--backend auto` (OpenVINO where it is installed) in float32 and bfloat16. The peer is
the same config with MONAI's own reader and Spacingd, and for `unetr` MONAI's own UNETR with the same weights:
transforms, SlidingWindowInferer, Invertd, AsDiscreted, SaveImaged, called one after another. Ours is all that `vit3d
predict` does for a case: SHA-256 of input and outputs, statistics, picture and report count. Each is a process of its
own, and they take turns; ours has huge pages, as `vit3d predict` has. The last table has small pages for ours and huge
ones for MONAI. Warm: all are loaded and have run once. The limit is the time that our network alone took in the last
run. Labels are compared voxel by voxel, and by Dice against ours by PyTorch in float32. Cold: one process each, `vit3d
predict` against `monai.bundle run`, imports counted, and its peak resident memory; the limit is a process that loads
our bundle and runs one window. Overlap: three volumes in one run, against the sum of their stages.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from in_turn import ALLOCATORS, timed
from volume_runs import ENGINES, PEER, Case, cases, ours

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.inferers import resolve_backend
from monai_vit3d.pipeline.acceleration import accelerate

ROOT = Path(__file__).resolve().parents[1]
PLAIN = next(iter(ENGINES))
SMALL, HUGE = ALLOCATORS.values()
# a process that is small itself: a child's peak counts what its parent held when it was started
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
ONE_WINDOW = """
import sys, torch
from pathlib import Path
from monai_vit3d.inferers import unwrap_inferer
from monai_vit3d.bundle.load import load_bundle
bundle = load_bundle(Path(sys.argv[1]), "cpu")
with torch.no_grad():
    bundle.network(torch.zeros(1, 1, *unwrap_inferer(bundle.inferer).roi_size))
"""


class Worker:
    """A process that runs once whenever it is called."""

    def __init__(self, name: str, case: Case, out: Path, env: dict[str, str], threads: int) -> None:
        root = case.peer if name == PEER else case.bundle
        words = [sys.executable, "-W", "ignore", ROOT / "benchmarks" / "volume_runs.py", name, case.image, root, out]
        self.process = subprocess.Popen(
            [*map(str, words), str(threads)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.said: dict = {}

    def __call__(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.said = json.loads(self.process.stdout.readline())

    def end(self) -> None:
        """No more turns."""
        self.process.communicate()


def warm(case: Case, folder: Path, rounds: int, threads: int, mine: dict[str, str], theirs: dict[str, str]) -> None:
    """Rows 1 and 2: each engine and precision of ours, and MONAI in float32, all in turn."""
    workers = {
        name: Worker(name, case, folder / name, theirs if name == PEER else mine, threads) for name in (*ENGINES, PEER)
    }
    times = timed(workers, rounds)
    found = {name: labels(folder / name) for name in workers}
    print(
        f"{case.name}, {'x'.join(map(str, found[PEER].shape))}; MONAI's network {workers[PEER].said['network']:.2f} s"
    )
    for name in ENGINES:
        line(name, times, workers[name].said["network"])
        same = float((found[name] == found[PEER]).mean())
        print(f"{'labels equal to MONAI in':>26s} {100 * same:.5f} %, Dice to ours in float32 {dice(found, name)}")
        print(f"{'stages, s':>26s} {workers[name].said['stages']}", flush=True)
    for worker in workers.values():
        worker.end()


def line(name: str, times: dict[str, list[float]], limit: float) -> None:
    """Medians in s, the median of the ratios of each pair, and what the network alone took."""
    mine, theirs = (statistics.median(times[one]) for one in (name, PEER))
    ratio = statistics.median(t / m for t, m in zip(times[PEER], times[name]))
    print(f"{name:>26s} ours {mine:7.2f}  MONAI {theirs:7.2f}  ratio {ratio:5.2f}  limit {limit:7.2f}")


def labels(folder: Path) -> np.ndarray:
    """Those of the one image in a folder."""
    (path,) = folder.rglob("*_seg.nii.gz")
    return np.asarray(nib.load(path).dataobj).astype(np.uint8)


def dice(found: dict[str, np.ndarray], name: str) -> str:
    """Of each label that is there, the least and the mean."""
    one, other = found[name], found[PLAIN]
    present = [v for v in np.unique(other) if v]
    values = [2 * np.sum((one == v) & (other == v)) / (np.sum(one == v) + np.sum(other == v)) for v in present]
    return f"{min(values):.4f} to {statistics.mean(values):.4f}" if values else "(no label)"


def overlap(case: Case, folder: Path) -> None:
    """Three volumes, read ahead and written behind."""
    images = [folder / "three" / f"image{i}.nii.gz" for i in range(3)]
    images[0].parent.mkdir()
    for path in images:
        shutil.copyfile(case.image, path)
    bundle = accelerate(load_bundle(case.bundle, "cpu"), "auto")
    ours(bundle, images[:1], folder / "three-out")
    start = time.perf_counter()
    records = ours(bundle, images, folder / "three-out")
    wall, alone = time.perf_counter() - start, sum(one["seconds"] for one in records)
    network = sum(one["stages"]["network"] for one in records)
    beside = f"their stages {alone:.2f} s, of that network {network:.2f} s"
    print(f"{'three volumes':>26s} {wall:.2f} s, {beside}; {1 - wall / alone:.0%} overlapped", flush=True)


def cold(case: Case, folder: Path, rounds: int) -> None:
    """Rows 3 and 5: a process each; "auto" exports its network in the first one and finds it in the others."""
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    predict = ["-m", "monai_vit3d.cli", "predict", str(case.image), "--bundle", str(case.bundle), "--overwrite"]
    run = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml", "--output_dir", str(folder / "cold")]
    commands = {
        name: (ROOT, [*predict, "-o", str(folder / name), "--device", "cpu", "--backend", backend] + ["--bf16"] * bf16)
        for name, (backend, bf16) in ENGINES.items()
    }
    given = ["--dataset_dir", str(case.image.parent), "--device", "$torch.device('cpu')"]
    commands[PEER] = (case.peer, [*run, *given])
    commands["one window"] = (ROOT, ["-c", ONE_WINDOW, str(case.bundle)])
    peaks: dict[str, list[float]] = {name: [] for name in commands}

    def start(name: str) -> None:
        where, command = commands[name]
        words = [sys.executable, "-S", "-c", PEAK, sys.executable, *command]
        done = subprocess.run(words, cwd=where, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {command}\n{done.stderr}")
        peaks[name].append(int(done.stdout.split()[-1]) / 2**10)

    first = time.perf_counter()
    start("auto float32")
    first = time.perf_counter() - first
    times = timed({name: lambda name=name: start(name) for name in commands}, rounds, warm=0)
    least, theirs = statistics.median(times["one window"]), statistics.median(peaks[PEER])
    for name in ENGINES:
        line(name, times, least)
        mine, window = (statistics.median(peaks[one]) for one in (name, "one window"))
        print(f"{'peak, MiB':>26s} ours {mine:7.0f}  MONAI {theirs:7.0f}", end="")
        print(f"  ratio {theirs / mine:5.2f}  limit {window:7.0f}")
    print(f"{'the first time, exported':>26s} ours {first:7.2f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="smaller images, three rounds")
    parser.add_argument("--only", choices=["hippocampus", "unetr"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds = 3 if args.quick else args.rounds
    print(f"torch {torch.__version__}, {resolve_backend('auto')}, {args.threads} threads")
    with tempfile.TemporaryDirectory() as temporary:
        for case in cases(Path(temporary), args.quick, args.only):
            folder = Path(temporary) / case.name
            print("\nwarm, as vit3d predict runs: ours with huge pages, MONAI with small ones", flush=True)
            warm(case, folder, rounds, args.threads, HUGE, SMALL)
            overlap(case, folder)
            print(f"\n{case.name}, a process for each volume", flush=True)
            cold(case, folder, 1 if args.quick else rounds)
            print("\nwarm, the pages the other way round", flush=True)
            warm(case, folder, rounds, args.threads, SMALL, HUGE)


if __name__ == "__main__":
    main()
