"""What heads, freezing and the segmentation bundle's encoder are worth: hippocampal volume from MRI, three seeds each.

Every run is bundles/medmnist3d_classification (train.yaml, then evaluate.yaml on the test section) with overrides;
the data are those of make_hippocampus_volume.py, whose baseline, a logistic regression on the crop's size alone,
stands beside.

    python benchmarks/make_hippocampus_volume.py DATA_DIR
    python benchmarks/hippocampus_volume.py DATA_DIR --seeds 0 1 2
    python benchmarks/hippocampus_volume.py DATA_DIR --only linear-tuned-scratch   # shows all there are

The limit: the volume of the segmentation bundle's own labels, which were learned from the experts' outlines; here the
experts' outlines are known as one of three classes only.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from monai_vit3d.metrics import auc

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "medmnist3d_classification"
ENCODER = ROOT / "bundles" / "hippocampus_segmentation" / "models" / "model.pt"
# a network too small for the segmentation bundle's backbone, the learning rate that it bears, epochs that take as long
SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 1, "taps": [0, 1], "learning_rate": 0.001, "epochs": 70}
STARTS = {"scratch": {}, "scratch_small": SMALL, "segmentation": {"pretrained": str(ENCODER)}}
FROZEN = {"network_def#freeze": "backbone", "learning_rate": 0.001}
RUNS = {
    f"{head}-{training}-{start}": {**options, **(FROZEN if training == "frozen" else {}), "head": head}
    for head in ("linear", "attentive")
    for training in ("frozen", "tuned")
    for start, options in STARTS.items()
}
OF_TRAINING = ("pretrained", "epochs", "learning_rate", "network_def#freeze")


def bundle_run(configs: list[str], overrides: dict, log: Path) -> None:
    """``python -m monai.bundle run`` in the bundle's folder, its output in ``log``."""
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"]
    command += ["--config_file", str([f"configs/{c}" for c in configs]), "--logging_file", "configs/logging.conf"]
    for key, value in overrides.items():
        command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    with log.open("w") as file:
        env = {"OMP_NUM_THREADS": "1", **os.environ}
        subprocess.run(command, cwd=BUNDLE, env=env, stdout=file, stderr=subprocess.STDOUT, check=True)


def train_and_score(name: str, seed: int, data: Path, folder: Path, epochs: int | None) -> dict[str, float]:
    """Validation and test scores of one run; trained only where its folder has none."""
    folder.mkdir(parents=True, exist_ok=True)
    network = {k: v for k, v in RUNS[name].items() if k not in OF_TRAINING}
    common = {"dataset_dir": str(data), "ckpt_path": str(folder / "model.pt"), **network}
    if not (folder / "model.pt").is_file():
        options = {k: v for k, v in RUNS[name].items() if k in OF_TRAINING}
        length = {} if epochs is None else {"epochs": epochs}
        train = {"seed": seed, "output_dir": str(folder), **length}
        bundle_run(["train.yaml"], {**common, **options, **train}, folder / "train.log")
    scores = {}
    for section in ("val", "test"):
        options = {"section": section, "output_dir": str(folder / section)}
        bundle_run(["inference.yaml", "evaluate.yaml"], {**common, **options}, folder / f"{section}.log")
        rows = csv.reader((folder / section / "metrics.csv").read_text().splitlines())
        scores |= {f"{section}_{key}": float(value) for key, value in rows}
    return scores


def test_probabilities(folder: Path) -> np.ndarray:
    """Class probabilities ``(N, 3)`` of a run's test cases."""
    rows = csv.DictReader((folder / "test" / "predictions.csv").read_text().splitlines())
    return np.array([[float(v) for k, v in row.items() if k.startswith("probability_")] for row in rows])


def gap(folders: list[Path], data: Path, resamples: int = 1000) -> str:
    """Mean test AUC of the seeds less the crop size's, and its 95 % bootstrap interval over the cases."""
    base = np.load(data / "crop_size_alone.npz")
    labels, runs, rng = base["labels"], [test_probabilities(folder) for folder in folders], np.random.default_rng(0)

    def difference(cases: np.ndarray) -> float:
        ours = [auc(run[cases], labels[cases], "multi-class") for run in runs]
        return statistics.mean(ours) - auc(base["probabilities"][cases], labels[cases], "multi-class")

    drawn = (rng.integers(0, len(labels), len(labels)) for _ in range(resamples))
    low, high = np.quantile([difference(c) for c in drawn if len(set(labels[c])) == 3], [0.025, 0.975])
    return f"{difference(np.arange(len(labels))):+.3f} ({low:+.3f} to {high:+.3f})"


def print_table(results: dict[str, list[Path]], data: Path) -> None:
    """Mean and standard deviation over the seeds."""
    columns = ("val_auc", "test_auc", "test_accuracy", "test_ece")
    print(f"{'head-backbone-start':32s} seeds " + "".join(f"{c:>17s}" for c in columns) + "  test AUC - crop size's")
    for name, folders in results.items():
        cells = ""
        for column in columns:
            values = [json.loads((folder / "scores.json").read_text())[column] for folder in folders]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells += f"{statistics.mean(values):10.3f} ± {spread:.3f}"
        print(f"{name:32s} {len(folders):5d} {cells}  {gap(folders, data)}")


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with hippovolume3d_48.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--epochs", type=int, help="another number of epochs than train.yaml's")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "hippocampus_volume")
    args = parser.parse_args()
    data, output = args.data.resolve(), args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for name in args.only:
            scores = train_and_score(name, seed, data, output / f"{name}-{seed}", args.epochs)
            (output / f"{name}-{seed}" / "scores.json").write_text(json.dumps(scores, indent=1))
            print(name, seed, {k: round(v, 3) for k, v in scores.items()}, flush=True)
    found = {name: sorted(path.parent for path in output.glob(f"{name}-?/scores.json")) for name in RUNS}
    print_table({name: folders for name, folders in found.items() if folders}, data)


if __name__ == "__main__":
    main()
