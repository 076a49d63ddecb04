"""AdrenalMNIST3D, official split and metrics: bundles/medmnist3d_classification beside a ResNet-18 of MONAI's.

Both are trained by the bundle's train.yaml, with the same data, augmentation, optimizer and schedule, and scored by its
evaluate.yaml, averaged over the flips, three seeds each. The peer gets the CPU time that ours took with the same seed,
as many epochs as fit. The test part is scored once all have been trained.

    python benchmarks/adrenal.py DATA                   # DATA holds adrenalmnist3d_64.npz
    python benchmarks/adrenal.py DATA --seeds 0 --epochs 2 --output runs/try
    python benchmarks/adrenal.py DATA --table           # prints what earlier runs left

The interval of the difference is a bootstrap over the test cases, paired: each draw scores both networks' seeds on the
same cases. PUBLISHED are results at 28 cubed of Yang et al. 2023, Scientific Data 10:41, table 7.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
from pathlib import Path

import numpy as np
from hippocampus import bundle_run

from monai_vit3d.metrics import auc
from monai_vit3d.metrics.bootstrap import bootstrap_statistic

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "medmnist3d_classification"
PEER = {"_target_": "monai.networks.nets.resnet18", "n_input_channels": 1, "num_classes": 2, "conv1_t_stride": 2}
# uncalibrated: temperature changes neither AUC nor ACC of one volume, and MONAI's network has no scale_logits
NETWORKS: dict[str, dict] = {
    "ours": {"train": {}, "evaluate": {}, "weights": "model.pt"},
    "peer": {
        "train": {"network_def": PEER, "calibration#_disabled_": True},
        "evaluate": {"network_def": PEER},
        "weights": "best.pt",
    },
}
COLUMNS = ("epochs", "cpu_seconds", "val_auc", "test_auc", "test_accuracy", "test_ece")
PUBLISHED = {"ResNet-18, 3D": (0.827, 0.721), "ResNet-18, ACS": (0.839, 0.754), "auto-sklearn": (0.828, 0.802)}
GOAL = 0.87


def cpu_seconds(configs: list[str], overrides: dict, log: Path) -> float:
    """Run the bundle on one thread; return its CPU seconds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    bundle_run(configs, overrides, 1, log, BUNDLE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(name: str, seed: int, epochs: int, data: Path, folder: Path) -> float:
    """Train one network, unless its folder says that it was; returns CPU seconds."""
    done = folder / "trained.json"
    if not done.is_file():
        options = {"dataset_dir": str(data), "output_dir": str(folder), "seed": seed, "epochs": epochs}
        seconds = cpu_seconds(["train.yaml"], {**options, **NETWORKS[name]["train"]}, folder / "train.log")
        done.write_text(json.dumps({"epochs": epochs, "cpu_seconds": seconds}))
        print(f"{folder.name}: {epochs} epochs, {seconds:.0f} CPU s", flush=True)
    return json.loads(done.read_text())["cpu_seconds"]


def score(name: str, data: Path, folder: Path) -> dict[str, float]:
    """Validation and test scores by evaluate.yaml."""
    scores = {}
    for section in ("val", "test"):
        files = {"dataset_dir": str(data), "ckpt_path": str(folder / NETWORKS[name]["weights"])}
        options = {**files, "section": section, "output_dir": str(folder / section), **NETWORKS[name]["evaluate"]}
        bundle_run(["inference.yaml", "evaluate.yaml"], options, 1, folder / f"{section}.log", BUNDLE)
        rows = csv.reader((folder / section / "metrics.csv").read_text().splitlines())
        scores |= {f"{section}_{key}": float(value) for key, value in rows}
    return scores


def epochs_within(seconds: float, data: Path, output: Path) -> int:
    """Return how many epochs of the peer fit: trainings of one and of three tell start and epoch."""
    one, three = (train("peer", 0, epochs, data, output / f"timing-{epochs}") for epochs in (1, 3))
    epoch = (three - one) / 2
    return max(1, round((seconds - (one - epoch)) / epoch))


def run(seeds: list[int], epochs: int, data: Path, output: Path) -> None:
    """Train ours and the peer, one seed after another, then score all; what is there already stays."""
    for seed in seeds:
        seconds = train("ours", seed, epochs, data, output / f"ours-{seed}")
        train("peer", seed, epochs_within(seconds, data, output), data, output / f"peer-{seed}")
    for folder in [output / f"{name}-{seed}" for name in NETWORKS for seed in seeds]:
        if not (folder / "scores.json").is_file():
            found = score(folder.name.split("-")[0], data, folder)
            (folder / "scores.json").write_text(json.dumps(found, indent=1))


def test_probabilities(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities ``(N, 2)`` of a run's test cases, and labels ``(N,)``."""
    rows = list(csv.DictReader((folder / "test" / "predictions.csv").read_text().splitlines()))
    names = [key for key in rows[0] if key.startswith("probability_")]
    found = np.array([[float(row[name]) for name in names] for row in rows])
    return found, np.array([names.index(f"probability_{row['label']}") for row in rows])


def difference(folders: dict[str, list[Path]]) -> str:
    """Mean test AUC of ours less the peer's with its 95 % bootstrap interval over the cases, and their ratio."""
    runs = {name: [test_probabilities(folder) for folder in found] for name, found in folders.items()}
    labels = runs["ours"][0][1]

    def areas(cases: np.ndarray) -> np.ndarray:
        ours, peer = (
            statistics.mean(auc(found[cases], labels[cases], "binary-class") for found, _ in runs[name])
            for name in NETWORKS
        )
        return np.array([ours - peer, ours / peer])

    gap, ratio = bootstrap_statistic(areas, len(labels))
    return f"test AUC, ours - peer {gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f}), ours / peer {ratio.mean:.3f}"


def print_table(output: Path) -> None:
    """Mean and standard deviation over the seeds, the difference, and the published results."""
    folders = {name: sorted(path.parent for path in output.glob(f"{name}-?/scores.json")) for name in NETWORKS}
    print(f"{'':15s}" + "".join(f"{column:>18s}" for column in COLUMNS))
    for name, found in folders.items():
        files = [(folder / "trained.json", folder / "scores.json") for folder in found]
        runs = [{**json.loads(one.read_text()), **json.loads(other.read_text())} for one, other in files]
        values = [[one[column] for one in runs] for column in COLUMNS]
        cells = [f"{statistics.mean(v):10.3f} ± {statistics.stdev(v) if len(v) > 1 else 0:.3f}" for v in values]
        print(f"{name:15s}" + "".join(f"{cell:>18s}" for cell in cells))
    if all(folders.values()):
        print(difference(folders))
    for name, (area, accuracy) in PUBLISHED.items():
        print(f"published, {name:15s} test AUC {area:.3f}, ACC {accuracy:.3f}")
    print(f"goal: test AUC {GOAL}")


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with adrenalmnist3d_64.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=24, help="of ours, as in train.yaml")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "adrenal")
    parser.add_argument("--table", action="store_true", help="train nothing")
    args = parser.parse_args()
    output = args.output.resolve()
    if not args.table:
        run(args.seeds, args.epochs, args.data.resolve(), output)
    print_table(output)


if __name__ == "__main__":
    main()
