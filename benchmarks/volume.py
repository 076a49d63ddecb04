"""From a compressed NIfTI to a compressed NIfTI: `vit3d predict` against MONAI's own components, in turn.

    python benchmarks/volume.py --rounds 5
    python benchmarks/volume.py --quick      # smaller images, three rounds

Two bundles. `hippocampus` is the shipped one with its trained weights, over nilearn's MNI152 template (1 mm, the whole
head). `unetr` is made on the fly: a UNETR of 12 blocks with 14 classes and random weights, windows of 96^3, overlap
0.25, over the CT-like image of reading.py (512x512x100, 0.8x0.8x2.5 mm, resampled to 1.5x1.5x2 mm), inverted before
the argmax as the zoo's bundles do.

Ours is PyTorch's float32, and `--backend auto` (OpenVINO where it is installed) in float32 and bfloat16.

The peer is the same config with MONAI's own reader and Spacingd, and for `unetr` MONAI's own UNETR with the same
weights: transforms, SlidingWindowInferer, Invertd, AsDiscreted, SaveImaged, called one after another. Ours is all that
`vit3d predict` does for a case: SHA-256 of input and outputs, statistics, picture and report count. Warm: both are
loaded and have run once. The limit is the time that our network alone took in that run. Labels are compared voxel by
voxel, and by Dice against ours by PyTorch in float32. Cold: one process each, `vit3d predict` against `monai.bundle
run`, imports counted, and its peak resident memory; the limit is a process that loads our bundle and runs one window.
Overlap: three volumes in one run, against the sum of their stages.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import reading
import torch
from in_turn import timed, with_each_allocator
from made_up_bundle import SHIPPED, with_monai_parts, write_unetr_bundle
from monai.bundle import ConfigParser
from nilearn.datasets import load_mni152_template

from monai_vit3d.data import cut_box
from monai_vit3d.inferers import resolve_backend
from monai_vit3d.pipeline.acceleration import accelerated
from monai_vit3d.pipeline.bundle import Bundle, load_bundle
from monai_vit3d.pipeline.cohort import predict_cohort
from monai_vit3d.pipeline.folder import publish
from monai_vit3d.pipeline.plan import plan_cases
from monai_vit3d.pipeline.predict import Options
from monai_vit3d.pipeline.record import RunRecord

ROOT = Path(__file__).resolve().parents[1]
PEER, PLAIN = "MONAI", "torch float32"
ENGINES = {PLAIN: ("torch", False), "auto float32": ("auto", False), "auto bfloat16": ("auto", True)}

ONE_WINDOW = """
import sys, torch
from pathlib import Path
from monai_vit3d.inferers import unwrapped
from monai_vit3d.pipeline.bundle import load_bundle
bundle = load_bundle(Path(sys.argv[1]), "cpu")
with torch.no_grad():
    bundle.network(torch.zeros(1, 1, *unwrapped(bundle.inferer).roi_size))
"""


@dataclass
class Case:
    """A file, our bundle's folder and the peer's."""

    name: str
    image: Path
    bundle: Path
    peer: Path


def cases(folder: Path, quick: bool, only: str | None) -> Iterator[Case]:
    """Images and bundles, written one after another."""
    if only != "unetr":
        template = load_mni152_template(resolution=1)
        image = image_in(folder / "hippocampus")
        (cut_box(template, (0, -22, -14), (96, 64, 64)) if quick else template).to_filename(image)
        peer = Path(shutil.copytree(SHIPPED, folder / "hippocampus-peer"))
        yield Case("hippocampus", image, SHIPPED, with_monai_parts(peer))
    if only != "hippocampus":
        reading.SHAPE = (256, 176, 48) if quick else reading.SHAPE
        image = image_in(folder / "unetr")
        reading.write_ct(image)
        peer = with_monai_parts(write_unetr_bundle(folder / "unetr-peer", monai=True))
        yield Case("unetr", image, write_unetr_bundle(folder / "unetr-ours"), peer)


def image_in(folder: Path) -> Path:
    """Where a case's image goes."""
    (folder / "images").mkdir(parents=True)
    return folder / "images" / "image.nii.gz"


class Clock(torch.nn.Module):
    """A network, and the seconds that were spent in it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the network gives."""
        start = time.perf_counter()
        found = self.network(x)
        self.seconds += time.perf_counter() - start
        return found


def ours(bundle: Bundle, images: list[Path], out: Path) -> list[dict]:
    """All that `vit3d predict` does once the bundle is loaded; the cases' records."""
    plan = plan_cases(images, out, existing="overwrite")
    record, records = RunRecord(plan.output, {}), []
    try:
        predict_cohort(plan, bundle, record, Options(), tell=records.append)
    finally:
        record.close()
    publish(plan.output)
    if any(one["status"] != "done" for one in records):
        raise SystemExit(f"failed: {records}")
    return records


def by_monai(root: Path, image: Path, out: Path) -> tuple[Callable[[], None], Clock]:
    """MONAI's components of the bundle's config, one after another, and the clock of its network."""
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "inference.yaml"))
    parser["bundle_root"], parser["dataset_dir"], parser["output_dir"] = str(root), str(image.parent), str(out)
    parser["device"] = "$torch.device('cpu')"
    parser.get_parsed_content("imports")
    parts = [parser.get_parsed_content(name) for name in ("network", "preprocessing", "inferer", "postprocessing")]
    network, preprocessing, inferer, postprocessing = parts
    clock = Clock(network.eval())

    def run() -> None:
        data = preprocessing({"image": str(image)})
        with torch.no_grad():
            data["pred"] = inferer(data["image"][None], clock)[0]
        postprocessing(data)

    return run, clock


def warm(case: Case, folder: Path, rounds: int) -> None:
    """Rows 1 and 2: each engine and precision of ours, and MONAI in float32, all in turn."""
    loaded, clocks, calls = load_bundle(case.bundle, "cpu"), {}, {}
    records: dict[str, dict] = {}
    for name, (backend, bf16) in ENGINES.items():
        bundle = accelerated(loaded, backend, bf16)
        clocks[name] = Clock(bundle.network)
        bundle = replace(bundle, network=clocks[name])

        def call(name: str = name, bundle: Bundle = bundle) -> None:
            clocks[name].seconds = 0.0
            records[name] = ours(bundle, [case.image], folder / name)[0]

        calls[name] = call
    calls[PEER], clocks[PEER] = by_monai(case.peer, case.image, folder / PEER)
    times = timed(calls, rounds)
    found = {name: labels(folder / name) for name in calls}
    network = clocks[PEER].seconds / (rounds + 1)
    print(f"{case.name}, {'x'.join(map(str, found[PEER].shape))}: MONAI, of it network {network:.1f} s")
    for name in ENGINES:
        line(name, times, clocks[name].seconds)
        same = float((found[name] == found[PEER]).mean())
        print(f"{'labels equal to MONAI in':>26s} {100 * same:.5f} %, Dice to ours in float32 {dice(found, name)}")
        print(f"{'stages, s':>26s} {records[name]['stages']}", flush=True)


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
    bundle = accelerated(load_bundle(case.bundle, "cpu"), "auto")
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
        with subprocess.Popen(
            [sys.executable, *command], cwd=where, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{name}: {command} ended with {process.returncode}")
        peaks[name].append(usage.ru_maxrss / 2**10)

    first = time.perf_counter()
    start("auto float32")
    first = time.perf_counter() - first
    times = timed({name: lambda name=name: start(name) for name in commands}, rounds)
    least, theirs = statistics.median(times["one window"]), statistics.median(peaks[PEER])
    for name in ENGINES:
        line(name, times, least)
        mine, window = (statistics.median(peaks[one]) for one in (name, "one window"))
        print(
            f"{'peak, MiB':>26s} ours {mine:7.0f}  MONAI {theirs:7.0f}  ratio {theirs / mine:5.2f}  limit {window:7.0f}"
        )
    print(f"{'the first time, exported':>26s} ours {first:7.2f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="smaller images, three rounds")
    parser.add_argument("--only", choices=["hippocampus", "unetr"])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds = 3 if args.quick else args.rounds
    if not args.child:
        print(f"torch {torch.__version__}, {resolve_backend('auto')}, {args.threads} threads")
        with_each_allocator()
    with tempfile.TemporaryDirectory() as temporary:
        for case in cases(Path(temporary), args.quick, args.only):
            folder = Path(temporary) / case.name
            if args.child:
                warm(case, folder, rounds)
            else:
                print(f"\n{case.name}, a run of three volumes, and a process for each volume", flush=True)
                overlap(case, folder)
                cold(case, folder, 1 if args.quick else rounds)


if __name__ == "__main__":
    main()
