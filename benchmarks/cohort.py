"""Volumes per second of a folder of small crops, imports counted: `vit3d predict` against `monai.bundle run`.

    MONAI_DATA_DIRECTORY=DATA python benchmarks/cohort.py --volumes 12 --rounds 3

DATA holds the Decathlon's Task04_Hippocampus. All run the shipped hippocampus bundle, a process each, in turn, after
one round of ours that is not counted: it exports the network. MONAI's bundle has MONAI's own reader
and Spacingd. The loop is what one writes by hand: nibabel, PyTorch, MONAI's `sliding_window_inference`, an argmax,
nibabel; it has no components, no report and no checks. Seconds are of wall clock and, as others may use the machine, of
CPU; the ratio is MONAI's CPU seconds over this one's, the median of the pairs. The limit is the network alone: what
run.json has under "network". Labels are compared with MONAI's voxel by voxel.
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
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from in_turn import command_line
from made_up_bundle import SHIPPED, with_monai_parts

from monai_vit3d.inferers import computes_in_bfloat16

ROOT = Path(__file__).resolve().parents[1]
PEER = "monai.bundle run"
LOOP = """
import sys
from pathlib import Path
import nibabel as nib, numpy as np, torch
from monai.inferers import sliding_window_inference
from monai_vit3d.weights import network_from
weights, images, out = map(Path, sys.argv[1:])
network = network_from(weights).eval()
out.mkdir(exist_ok=True)
for path in sorted(images.glob("*.nii.gz")):
    image = nib.as_closest_canonical(nib.load(path))
    x = torch.from_numpy(image.get_fdata(dtype=np.float32))[None, None]
    x = (x - x.mean()) / x.std(correction=0)
    with torch.no_grad():
        labels = sliding_window_inference(x, (32, 48, 32), 4, network, overlap=0.5, mode="gaussian").argmax(1)[0]
    made = nib.Nifti1Image(labels.numpy().astype(np.uint8), image.affine)
    nib.save(made, out / path.name.replace(".nii", "_seg.nii"))
"""


def commands(images: Path, folder: Path) -> dict[str, tuple[Path, list[str]]]:
    """Of each row the folder to start in and the words after Python; outputs go to a folder of the row's name."""
    predict = ["-m", "monai_vit3d", "predict", str(images), "--bundle", str(SHIPPED), "--device", "cpu", "--overwrite"]
    options: dict[str, list[str]] = {
        "vit3d predict": [],
        "--jobs 2": ["--jobs", "2"],
        "--backend torch": ["--backend", "torch"],
    }
    if computes_in_bfloat16("cpu"):
        options["--bf16"] = ["--bf16"]
    rows = {name: (ROOT, [*predict, "-o", str(folder / name), *more]) for name, more in options.items()}
    run = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml", "--dataset_dir", str(images)]
    run += ["--output_dir", str(folder / PEER), "--device", "$torch.device('cpu')"]
    rows[PEER] = (with_monai_parts(Path(shutil.copytree(SHIPPED, folder / "peer"))), run)
    loop = [str(SHIPPED / "models" / "model.pt"), str(images), str(folder / "nibabel + torch")]
    rows["nibabel + torch"] = (ROOT, ["-c", LOOP, *loop])
    return rows


def measured(where: Path, words: Sequence[str], env: Mapping[str, str]) -> tuple[float, float]:
    """Seconds of wall clock and of CPU that a process takes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-W", "ignore", *words], cwd=where, env=env, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{words}\n{done.stderr}")
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def labels(folder: Path) -> np.ndarray:
    """All labels of a row's outputs, one after another."""
    paths = sorted(folder.rglob("*_seg.nii.gz"))
    return np.concatenate([np.asarray(nib.as_closest_canonical(nib.load(p)).dataobj, np.uint8).ravel() for p in paths])


def show(folder: Path, times: Mapping[str, list[tuple[float, float]]], volumes: int) -> None:
    """A line for each row."""
    print(
        f"{'':>18s} {'wall s':>7s} {'CPU s':>7s} {'volumes / CPU s':>16s} {'ratio':>6s} {'limit':>6s}"
        f" {'labels equal':>13s}"
    )
    theirs = labels(folder / PEER)
    for name, pairs in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs))
        ratio = statistics.median(peer[1] / mine[1] for peer, mine in zip(times[PEER], pairs))
        run = folder / name / "run.json"
        limit = f"{json.loads(run.read_text())['stages']['network']:6.2f}" if run.is_file() else ""
        same = 100 * float((labels(folder / name) == theirs).mean())
        print(
            f"{name:>18s} {wall:7.2f} {cpu:7.2f} {volumes / cpu:16.2f} {ratio:6.2f} {limit:>6s} {same:11.4f} %",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--volumes", type=int, default=12)
    args = parser.parse_args()
    data = Path(os.environ["MONAI_DATA_DIRECTORY"]) / "Task04_Hippocampus" / "imagesTr"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = folder / "images"
        images.mkdir()
        for path in sorted(data.glob("hippocampus_*.nii.gz"))[: args.volumes]:
            shutil.copyfile(path, images / path.name)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(args.threads)}
        env |= {"XDG_CACHE_HOME": str(folder / "cache")}
        rows = commands(images, folder)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
        for i in range(args.rounds + 1):
            for name, (where, words) in rows.items():
                if not i and name in (PEER, "nibabel + torch"):
                    continue  # they export nothing
                found = measured(where, words, env)
                times[name] += [found] if i else []
        print(f"{args.volumes} volumes, {args.threads} threads, medians of {args.rounds} rounds")
        show(folder, times, args.volumes)


if __name__ == "__main__":
    main()
