"""Dice of three networks after the same training time: ours, MONAI's UNETR and MONAI's DynUNet.

All three run the recipe of bundles/hippocampus_segmentation (its train.yaml with another network_def) on the same
split, window and seed. The time of a step is measured for the three in turn, several rounds; each network then gets
the epochs that fit into ``--minutes``, so that other load on the machine favours none. The test section, which
nothing was chosen on, is scored by the bundle's evaluate.yaml, on each case's own grid.

    python benchmarks/hippocampus.py --minutes 20 --threads 1
    python benchmarks/hippocampus.py --networks dynunet unetr      # some of them; the table shows all that are there

The limit: nnU-Net's published level on Task04 is about 0.90 anterior and 0.89 posterior (Isensee et al. 2021,
Nature Methods 18:203).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "hippocampus_segmentation"
UNETR = {
    "_target_": "UNETR",
    "in_channels": 1,
    "out_channels": 3,
    "img_size": "@window",
    "hidden_size": 384,
    "mlp_dim": 1536,
    "num_heads": 6,
}
DYNUNET = {
    "_target_": "DynUNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "kernel_size": [3, 3, 3, 3],
    "strides": [1, 2, 2, 2],
    "upsample_kernel_size": [2, 2, 2],
    "filters": [32, 64, 128, 256],
}
NETWORKS = {"ours": None, "unetr": UNETR, "dynunet": DYNUNET}


def bundle_run(configs: list[str], overrides: dict, threads: int, log: Path, bundle: Path = BUNDLE) -> None:
    """``python -m monai.bundle run`` in the bundle's folder, its output in ``log``."""
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"]
    command += ["--config_file", str([f"configs/{c}" for c in configs]), "--logging_file", "configs/logging.conf"]
    for key, value in overrides.items():
        command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        subprocess.run(command, cwd=bundle, env=env, stdout=file, stderr=subprocess.STDOUT, check=True)


def parser_for(network: dict | None, bundle: Path = BUNDLE):
    """The parsed train.yaml with this network."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.yaml"))
    parser.read_meta(str(bundle / "configs" / "metadata.json"))
    parser["bundle_root"] = str(bundle)
    if network is not None:
        parser["network_def"] = network
    return parser


def seconds_per_step(parsers: Mapping[str, Any], rounds: int) -> dict[str, float]:
    """Median time of a training step (data, forward, backward, step) of each parsed train.yaml, measured in turn."""
    steps = {}
    for name, parser in parsers.items():
        parser["limit"] = 16
        items = ("network", "optimizer", "train#loss", "train#inferer", "train#dataloader")
        steps[name] = [parser.get_parsed_content(item) for item in items]
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, (network, optimizer, loss, inferer, loader) in steps.items():
            start = time.perf_counter()
            for batch in loader:
                optimizer.zero_grad()
                loss(inferer(batch["image"], network), batch["label"]).backward()
                optimizer.step()
            if round_:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / len(loader))
    return {name: statistics.median(times) for name, times in seconds.items()}


def seconds_per_epoch(rounds: int) -> dict[str, float]:
    """Median time of a training epoch of each network."""
    cases = json.loads((BUNDLE / "configs" / "split.json").read_text())["training"]
    steps_per_epoch = len(cases) // parser_for(None)["batch_size"]
    parsers = {name: parser_for(network) for name, network in NETWORKS.items()}
    return {name: seconds * steps_per_epoch for name, seconds in seconds_per_step(parsers, rounds).items()}


def train_and_score(name: str, epochs: int, threads: int, folder: Path) -> dict:
    """Train one network, score the test section; returns what the table shows."""
    folder.mkdir(parents=True, exist_ok=True)
    network = {} if NETWORKS[name] is None else {"network_def": NETWORKS[name], "num_classes": 3}
    weights = {"ckpt_path": str(folder / "model.pt")}
    start = time.perf_counter()
    train = {"epochs": epochs, "val_interval": max(1, epochs // 5), "output_dir": str(folder)}
    bundle_run(["train.yaml"], {**network, **weights, **train}, threads, folder / "train.log")
    minutes = (time.perf_counter() - start) / 60
    scores = {"output_dir": str(folder / "test")}
    bundle_run(["inference.yaml", "evaluate.yaml"], {**network, **weights, **scores}, threads, folder / "test.log")
    parameters = sum(p.numel() for p in parser_for(NETWORKS[name]).get_parsed_content("network_def").parameters())
    training = {"epochs": epochs, "wall_minutes": round(minutes, 1), "parameters_m": round(parameters / 1e6, 2)}
    return {**training, **read_scores(folder / "test")}


def read_scores(folder: Path) -> dict:
    """Mean Dice of both structures, each case's mean, and the mean Hausdorff distance, from evaluate.yaml's files."""
    lines = (folder / "val_dice_raw.csv").read_text().splitlines()[1:]
    rows = [[float(v) for v in line.split(",")[1:3]] for line in lines]
    anterior, posterior = (statistics.mean(column) for column in zip(*rows))
    metrics = dict(line.split(",") for line in (folder / "metrics.csv").read_text().split())
    return {
        "anterior": anterior,
        "posterior": posterior,
        "mean": (anterior + posterior) / 2,
        "hausdorff_95_voxels": float(metrics["hausdorff_95_voxels"]),
        "cases": [statistics.mean(row) for row in rows],
    }


def print_table(results: dict[str, dict]) -> None:
    """The table; the last column is ours less the network's, case by case, with its standard error."""
    print("network   M param epochs  anterior posterior    mean  HD95  ours - it")
    for name, r in results.items():
        gap = ""
        if "ours" in results and name != "ours":
            gaps = [a - b for a, b in zip(results["ours"]["cases"], r["cases"])]
            gap = f"{statistics.mean(gaps):+.4f} ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.4f}"
        print(
            f"{name:8s} {r['parameters_m']:8.2f} {r['epochs']:6d} {r['anterior']:9.4f} {r['posterior']:9.4f} "
            f"{r['mean']:7.4f} {r['hausdorff_95_voxels']:5.2f}  {gap}"
        )


def main() -> None:
    """Measure, train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=20, help="training time of each network, validation not counted"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "hippocampus")
    args = parser.parse_args()
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    times_file, results_file = output / "seconds_per_epoch.json", output / "results.json"
    if not times_file.is_file():
        import torch

        torch.set_num_threads(args.threads)
        times_file.write_text(json.dumps(seconds_per_epoch(args.rounds)))
    times = json.loads(times_file.read_text())
    print("seconds per epoch, measured in turn:", {k: round(v, 1) for k, v in times.items()}, flush=True)
    for name in args.networks:
        result = train_and_score(name, max(1, round(args.minutes * 60 / times[name])), args.threads, output / name)
        results = json.loads(results_file.read_text()) if results_file.is_file() else {}
        results_file.write_text(json.dumps({**results, name: result}, indent=1))
    print_table(json.loads(results_file.read_text()))
    print("limit    nnU-Net, as published: about 0.90 anterior, 0.89 posterior")


if __name__ == "__main__":
    main()
