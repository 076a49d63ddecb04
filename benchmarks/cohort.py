"""Folders end to end, imports counted: `vit3d predict` against `monai.bundle run` and a loop written by hand.

    MONAI_DATA_DIRECTORY=DATA python benchmarks/cohort.py --volumes 60 --rounds 2    # crops of the hippocampus
    python benchmarks/cohort.py --whole --volumes 8 --rounds 1                       # CT-like volumes, UNETR 96^3

DATA holds the Decathlon's Task04_Hippocampus, labelled by the shipped bundle. Whole volumes are of 512x512x100 voxels
(`--shape`), resampled to 1.5x1.5x2 mm, 14 classes by random weights (made_up_bundle.py). A process each, in turn,
after one round, which is not counted, of those that export the network. MONAI's bundle has MONAI's own reader and
Spacingd, and of the UNETR MONAI's own network; cohort_loop.py is the loop.

Seconds are of wall clock and, as others may use the machine, of CPU; the ratios are MONAI's seconds over this row's,
the median of the rounds. The limit is the network alone: what run.json has under "network". Labels are compared with
MONAI's voxel by voxel. `torchrun` starts two processes of one thread; beside it the same two shards by hand, a thread
each: torchrun is to have 95 % of their throughput. `--jobs 1` holds the threads that read and write at one each.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import reading
from in_turn import command_line
from made_up_bundle import SHIPPED, with_monai_parts, write_unetr_bundle

from monai_vit3d.inferers import computes_in_bfloat16

ROOT = Path(__file__).resolve().parents[1]
PEER, LOOP, TORCHRUN, SHARDS = "monai.bundle run", "nibabel + torch", "torchrun x 2", "two shards x 1"
EXPORTING = ("vit3d predict", "--bf16")


class Row(NamedTuple):
    """Commands that run side by side, each the words after Python, in a folder, with so many threads each."""

    commands: list[list[str]]
    where: Path = ROOT
    threads: int | None = None


def rows_of(images: Path, folder: Path, whole: bool) -> dict[str, Row]:
    """All rows by name; outputs go to a folder of the row's name."""
    mine, peer = bundles(folder, whole)
    verb = ["-m", "monai_vit3d", "predict", str(images), "--bundle", str(mine), "--device", "cpu", "--overwrite"]

    def predict(name: str, *options: str) -> list[str]:
        return [*verb, "-o", str(folder / name), *options]

    rows = {"vit3d predict": Row([predict("vit3d predict")])}
    options = {"--jobs 1": ["--jobs", "1"], "--backend torch": ["--backend", "torch"]}
    if computes_in_bfloat16("cpu"):
        options["--bf16"] = ["--bf16"]
    rows |= {name: Row([predict(name, *words)]) for name, words in options.items()}
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *predict(TORCHRUN)]
    rows[TORCHRUN] = Row([two], threads=1)
    rows[SHARDS] = Row([predict(SHARDS, "--shard", f"{i}/2") for i in (1, 2)], threads=1)
    run = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml", "--dataset_dir", str(images)]
    run += ["--output_dir", str(folder / PEER), "--device", "$torch.device('cpu')"]
    rows[PEER] = Row([run], peer)
    loop = [str(ROOT / "benchmarks" / "cohort_loop.py"), "ct" if whole else "crops"]
    rows[LOOP] = Row([[*loop, str(mine), str(images), str(folder / LOOP)]])
    return rows


def bundles(folder: Path, whole: bool) -> tuple[Path, Path]:
    """Our bundle, and the same with MONAI's parts."""
    if whole:
        peer = write_unetr_bundle(folder / "peer", monai=True)
        return write_unetr_bundle(folder / "ours"), with_monai_parts(peer)
    return SHIPPED, with_monai_parts(Path(shutil.copytree(SHIPPED, folder / "peer")))


def write_images(images: Path, whole: bool, count: int, shape: tuple[int, int, int]) -> None:
    """So many images: crops of the Decathlon's, or one CT-like volume again and again."""
    images.mkdir()
    if whole:
        reading.SHAPE = shape
        reading.write_ct(images / "ct_0.nii.gz")
        for i in range(1, count):
            shutil.copyfile(images / "ct_0.nii.gz", images / f"ct_{i}.nii.gz")
        return
    data = Path(os.environ["MONAI_DATA_DIRECTORY"]) / "Task04_Hippocampus" / "imagesTr"
    for path in sorted(data.glob("hippocampus_*.nii.gz"))[:count]:
        shutil.copyfile(path, images / path.name)


def measured(row: Row, env: Mapping[str, str]) -> tuple[float, float]:
    """Seconds of wall clock and of CPU that a row's processes take."""
    env = {**env, "OMP_NUM_THREADS": str(row.threads)} if row.threads else dict(env)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    piped = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([sys.executable, "-W", "ignore", *words], cwd=row.where, env=env, **piped)
        for words in row.commands
    ]
    for process in started:
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"{process.args}\n{said}")
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def labels(folder: Path) -> np.ndarray:
    """All labels of a row's outputs, one after another."""
    paths = sorted(folder.rglob("*_seg.nii.gz"))
    return np.concatenate([np.asarray(nib.as_closest_canonical(nib.load(p)).dataobj, np.uint8).ravel() for p in paths])


def show(folder: Path, times: Mapping[str, list[tuple[float, float]]], volumes: int) -> None:
    """A line for each row."""
    print(f"{'':>18s} {'wall s':>7s} {'CPU s':>7s} {'volumes / s':>12s} {'ratio':>6s} ", end="")
    print(f"{'of CPU':>6s} {'limit':>7s} {'labels equal':>14s}")
    theirs = labels(folder / PEER)
    for name, pairs in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs))
        ratios = [statistics.median(peer[i] / mine[i] for peer, mine in zip(times[PEER], pairs)) for i in (0, 1)]
        run = folder / name / "run.json"
        limit = f"{json.loads(run.read_text())['stages']['network']:7.2f}" if run.is_file() else ""
        same = 100 * float((labels(folder / name) == theirs).mean())
        print(f"{name:>18s} {wall:7.2f} {cpu:7.2f} {volumes / wall:12.3f} {ratios[0]:6.2f} ", end="")
        print(f"{ratios[1]:6.2f} {limit:>7s} {same:12.4f} %", flush=True)
    share = statistics.median(two[0] / one[0] for two, one in zip(times[SHARDS], times[TORCHRUN]))
    print(f"throughput by torchrun: {share:.0%} of two shards' by hand (limit 95 %)")


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--volumes", type=int, default=12)
    parser.add_argument("--whole", action="store_true", help="CT-like volumes instead of crops")
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 100), help="of whole volumes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = folder / "images"
        write_images(images, args.whole, args.volumes, tuple(args.shape))
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(args.threads)}
        env |= {"XDG_CACHE_HOME": str(folder / "cache")}
        rows = rows_of(images, folder, args.whole)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
        for i in range(args.rounds + 1):
            for name, row in rows.items():
                if i or name in EXPORTING:
                    found = measured(row, env)
                    times[name] += [found] if i else []
        print(f"{args.volumes} volumes, {args.threads} threads, medians of {args.rounds} rounds")
        show(folder, times, args.volumes)


if __name__ == "__main__":
    main()
