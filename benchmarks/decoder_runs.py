"""The training half of decoders.py: runs of the hippocampus bundle's recipe, their table and their picture.

A run is a folder and a file beside it, named by decoder, epochs and seed: ``unetr-12-0.json``.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from hippocampus import BUNDLE, bundle_run, read_scores
from monai.bundle import ConfigParser

PEER = "unetr"
DECODERS: dict[str, dict] = {
    "unetr": {"decoder": "unetr"},
    "unetr, 3 levels": {"decoder": "unetr", "image_levels": 3},
    "dpt": {"decoder": "dpt"},
    "pyramid": {"decoder": "pyramid"},
    "light + image": {"decoder": "light", "image_channels": 8},
    "light": {"decoder": "light"},
}
TRAIN = {"warmup_epochs": 1, "ema_decay": 0.99}  # of the recipe, for a budget this short


def network_def(name: str) -> dict:
    """The bundle's network with this decoder."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.yaml"))
    network = {k: v for k, v in parser["network_def"].items() if k != "image_levels"}
    return {**network, **DECODERS[name]}


def train_and_score(name: str, seed: int, epochs: int, data: Path, folder: Path) -> dict:
    """Train one network from one seed, score the test section."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = {
        "network_def": str(network_def(name)),  # in Python's words: the command line reads no false
        "dataset_dir": str(data / "Task04_Hippocampus"),
        "ckpt_path": str(folder / "model.pt"),
    }
    # one validation, at the end: the last average is the one that is kept
    train = {**TRAIN, "seed": seed, "epochs": epochs, "val_interval": epochs, "output_dir": str(folder)}
    start = time.perf_counter()
    bundle_run(["train.yaml"], {**shared, **train}, torch.get_num_threads(), folder / "train.log")
    minutes = (time.perf_counter() - start) / 60
    test = {"output_dir": str(folder / "test")}
    bundle_run(["inference.yaml", "evaluate.yaml"], {**shared, **test}, torch.get_num_threads(), folder / "test.log")
    return {"name": name, "seed": seed, "epochs": epochs, "minutes": round(minutes, 1), **read_scores(folder / "test")}


def train_all(decoders: Sequence[str], seeds: Sequence[int], epochs: int, data: Path, runs: Path) -> None:
    """Every decoder and seed that is not there yet; seeds outside, so that an early end leaves whole rounds."""
    for seed in seeds:
        for name in decoders:
            folder = runs / f"{slug(name)}-{epochs}-{seed}"
            file = runs / f"{folder.name}.json"
            if file.is_file():
                continue
            result = train_and_score(name, seed, epochs, data.resolve(), folder)
            file.write_text(json.dumps(result, indent=1))
            print(f"{name}, seed {seed}: test Dice {result['mean']:.4f} in {result['minutes']} min", flush=True)


def slug(name: str) -> str:
    """A name for files."""
    return "".join(c if c.isalnum() else "_" for c in name)


def read_results(runs: Path, epochs: int) -> dict[str, list[dict]]:
    """What has been trained for as many epochs: the runs of each decoder."""
    found = {name: sorted(runs.glob(f"{slug(name)}-{epochs}-*.json")) for name in DECODERS}
    return {name: [json.loads(file.read_text()) for file in files] for name, files in found.items() if files}


def print_pareto(results: dict[str, list[dict]], costs: dict[str, dict]) -> None:
    """Test Dice beside the cost; the last column is UNETR's Dice of the same seed subtracted, case by case."""
    epochs = next(iter(results.values()))[0]["epochs"]
    print(f"\nhippocampus, test Dice after {epochs} epochs; cost of the decoder alone in the bundle's window")
    heads = ("anterior", "posterior", "mean", "± SD", "GMAC", "ms", "MiB")
    print(f"{'decoder':16s} seeds" + "".join(f" {h:>9s}" for h in heads) + "   it - unetr (± SE over cases)")
    for name, runs in results.items():
        means = [run["mean"] for run in runs]
        spread = statistics.stdev(means) if len(means) > 1 else float("nan")
        scores = [statistics.mean(run[key] for run in runs) for key in ("anterior", "posterior", "mean")]
        cost = [costs[name][key] for key in ("decoder_gmac", "decoder_ms", "decoder_mib")]
        line = "".join(f" {v:9.4f}" for v in (*scores, spread)) + "".join(f" {v:9.2f}" for v in cost)
        print(f"{name:16s} {len(runs):5d}{line}   {gap(runs, results.get(PEER, []))}")


def gap(runs: list[dict], peers: list[dict]) -> str:
    """Mean difference to the peer over the seeds that both have, with the standard error over the cases."""
    pairs = [(a, b) for a in runs for b in peers if a["seed"] == b["seed"] and a["name"] != b["name"]]
    if not pairs:
        return ""
    cases = [statistics.mean(row) for row in zip(*([x - y for x, y in zip(a["cases"], b["cases"])] for a, b in pairs))]
    return f"{statistics.mean(cases):+.4f} ± {statistics.stdev(cases) / len(cases) ** 0.5:.4f}"


def draw(results: dict[str, list[dict]], costs: dict[str, dict], picture: Path) -> None:
    """Dice against GMAC, time and memory of the decoder; bars are the spread of the seeds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
    axes = {"decoder_gmac": "decoder, GMAC", "decoder_ms": "decoder, ms (CPU)", "decoder_mib": "decoder, added MiB"}
    for panel, (key, label) in zip(panels, axes.items()):
        for name, runs in results.items():
            means = [run["mean"] for run in runs]
            spread = statistics.stdev(means) if len(means) > 1 else 0
            panel.errorbar(costs[name][key], statistics.mean(means), spread, fmt="o", capsize=3, label=name)
        panel.set(xscale="log", xlabel=label)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test Dice, mean ± SD over seeds")
    panels[0].legend(fontsize=8)
    figure.savefig(picture, dpi=120)
    plt.close(figure)
