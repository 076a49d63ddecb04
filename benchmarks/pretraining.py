"""What pretraining is worth on the hippocampus: I-JEPA, I-JEPA with a leak, MAE, and no pretraining.

All read the images of the split's training part (bundles/hippocampus_segmentation) by the recipes of
bundles/ijepa_pretraining and bundles/mae_pretraining, with a small network (width 96, 4 blocks), whose patches have
a side of 8 or 4 voxels. ``PRETRAINING`` has what differs by patch. The leak is that of a published implementation: 82 %
of the targets' tokens are visible to the context. Then

- the features' figures of the pretraining's monitor, on the split's validation part;
- the tertile of the hippocampus' volume (``hippovolume3d_48.npz``, made by make_hippocampus_volume.py), from frozen,
  mean-pooled tokens by logistic regression and k nearest neighbours;
- segmentation by the segmentation bundle's train.yaml, on 10, 25, 50 and all 150 training cases, drawn by the seed,
  about as many steps each (``JOBS``). ``linear``: one linear layer from each token to its patch's voxels, so that
  tokens are all that there is, fine-tuned, and with the encoder frozen; ``unetr``: UNETR's decoder, whose convolutions
  see the image itself; ``light``: transposed convolutions on small patches, tokens alone again. The last step's
  average is scored by evaluate.yaml on the test part, on which nothing was chosen. ``light`` looks at the validation
  part on the way, keeps the best of these averages, and has each arm's best learning rate there (seed 0).

    python benchmarks/pretraining.py DATA                       # all of it; DATA holds hippovolume3d_48.npz,
                                                                # $MONAI_DATA_DIRECTORY holds Task04_Hippocampus
    python benchmarks/pretraining.py DATA --arms mae --seeds 0  # a part; several may run side by side
    python benchmarks/pretraining.py DATA --jobs "light, 10 cases" --arms scratch mae --picture pretraining.png
    python benchmarks/pretraining.py DATA --arms                # the table of what is there
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hippocampus import read_scores
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from torch import Tensor, nn

from monai_vit3d.data import MedMNIST3DDataset, decathlon_split
from monai_vit3d.pretraining import (
    JEPAMasks,
    extract_features,
    knn_probe,
    logistic_probe,
    sample_jepa_masks,
    unpatchify,
)
from monai_vit3d.visualize.chart import Curve, draw_chart
from monai_vit3d.weights import load_backbone, save_backbone

ROOT = Path(__file__).resolve().parents[1]
SEGMENTATION = ROOT / "bundles" / "hippocampus_segmentation"
DATASETS = ROOT / "bundles" / "medmnist3d_classification" / "configs" / "datasets.json"
ARMS = {"scratch": None, "ijepa": "ijepa_pretraining", "ijepa-leak": "ijepa_pretraining", "mae": "mae_pretraining"}
LEAK = 0.82
CASES = (10, 25, 50, 150)
NETWORK = {"embed_dim": 96, "depth": 4, "num_heads": 2}
PRETRAINING: dict[tuple[str, int], dict[str, Any]] = {  # bundle and patch: what differs from the bundle's train.yaml
    ("ijepa_pretraining", 8): {"epochs": 250, "predictor_dim": 48, "predictor_depth": 2},
    ("mae_pretraining", 8): {"epochs": 250, "decoder_dim": 48, "decoder_depth": 2, "decoder_heads": 2},
    ("mae_pretraining", 4): {
        **{"epochs": 120, "batch_size": 8, "learning_rate": 0.0015, "mask_ratio": 0.75, "monitor_interval": 50},
        **{"decoder_dim": 96, "decoder_depth": 1, "decoder_heads": 2},
        # normalised, patches this small are mostly noise: after 80 epochs the loss was still 0.97
        "network_def#normalize_targets": False,
    },
}


class Job(NamedTuple):
    """A kind of segmentation: what is trained, on how many cases, for how many steps, at which learning rates."""

    decoder: str
    cases: int
    steps: int
    patch: int = 8
    frozen: bool = False
    looks: int = 1  # at the validation part, evenly over the steps; one look is at a single case, for none
    rates: tuple[tuple[str, float], ...] = ()  # by arm, where they are not the bundle's


JOBS = {
    "linear, frozen": Job("linear", 150, 500, frozen=True),
    **{f"{kind}, {n} cases": Job(kind, n, steps) for kind, steps in (("linear", 500), ("unetr", 600)) for n in CASES},
    "light, 10 cases": Job("light", 10, 300, patch=4, looks=3, rates=(("mae", 0.002),)),
    "light, 10 cases, longer": Job("light", 10, 500, patch=4, looks=5, rates=(("scratch", 0.003), ("mae", 0.002))),
}


class LinearDecoder(nn.Module):
    """One linear layer from each token to the class scores of its patch's voxels."""

    def __init__(self, embed_dim: int, patch_size: int, num_classes: int) -> None:
        super().__init__()
        self.patch_size = (patch_size,) * 3
        self.project = nn.Linear(embed_dim, num_classes * patch_size**3)

    @staticmethod
    def num_maps(patch_size: tuple[int, int, int]) -> int:
        """The final tokens alone."""
        return 1

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """``(B, num_classes, H, W, D)``."""
        grid = maps[-1].shape[2:]
        return unpatchify(self.project(maps[-1].flatten(2).transpose(1, 2)), self.patch_size, grid)


def leaky_masks(batch: int, grid: tuple[int, int, int], *, generator: torch.Generator, **options: Any) -> JEPAMasks:
    """Masks whose context has every token, targets' or not, with probability ``LEAK``."""
    masks = sample_jepa_masks(batch, grid, generator=generator, **options)
    count = grid[0] * grid[1] * grid[2]
    order = torch.rand(batch, count, generator=generator).argsort(1)[:, : round(LEAK * count)]
    return JEPAMasks(order.sort(1).values, masks.targets)


def workflow(bundle: Path, *configs: str, **options: Any) -> ConfigWorkflow:
    """A bundle's configs with overrides, initialised."""
    files = [str(bundle / "configs" / f"{name}.yaml") for name in configs]
    started = ConfigWorkflow(files, logging_file=False, bundle_root=str(bundle), **options)
    started.initialize()
    return started


def pretrain(arm: str, seed: int, patch: int, folder: Path) -> dict[str, Any]:
    """Write ``encoder.safetensors``; returns the features' figures by epoch, and the CPU seconds."""
    bundle = ARMS[arm] or "mae_pretraining"
    options = {"seed": seed, "output_dir": str(folder), "resume": False, "patch_size": patch, **NETWORK}
    options |= PRETRAINING[bundle, patch]
    if arm == "ijepa-leak":
        options |= {"masks#_target_": f"{__name__}.leaky_masks"}
    run = workflow(ROOT / "bundles" / bundle, "train", **options)
    monitor = run.parser.get_parsed_content("monitor#handler")
    history, start = [{"epoch": 0, **monitor.report().as_dict()}], time.process_time()
    if ARMS[arm] is None:
        save_backbone(monitor.encoder, folder / "encoder.safetensors")
    else:
        run.run()
    return {"history": history + monitor.history, "seconds": time.process_time() - start}


def backbone(size: int | list[int], patch: int) -> dict[str, Any]:
    """The config of the encoder's network for volumes of a size."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundles" / "mae_pretraining" / "configs" / "train.yaml"))
    plain = {"_target_": "monai_vit3d.layers.PatchEmbed3D", "_mode_": "callable"}
    fixed = {"img_size": size, "patch_size": patch, "in_chans": 1, "pos_embed": "sincos", "rope": None}
    return {**parser["backbone"], **fixed, "embed_layer": plain, **NETWORK}


def probe(encoder: Path, data: Path) -> dict[str, float]:
    """Test AUC of the volume's tertile from frozen, mean-pooled tokens."""
    net = load_backbone(ConfigParser({"net": backbone(48, 8)}).get_parsed_content("net"), encoder)
    sections = []
    for section in ("train", "val", "test"):
        items = MedMNIST3DDataset("hippovolume3d", section, data, 48, info_file=DATASETS).data
        images = torch.stack([torch.as_tensor(item["image"]).float() for item in items])
        std, mean = torch.std_mean(images, (1, 2, 3, 4), keepdim=True)
        labels = torch.tensor([int(np.ravel(item["label"])[0]) for item in items])
        sections.append(extract_features(net, [((images - mean) / std, labels)]))
    scores = {"logistic": logistic_probe(*sections), "knn": knn_probe(*sections)}
    return {name: score.scores["auc"] for name, score in scores.items()}


def segment(encoder: Path | None, arm: str, job: Job, seed: int, folder: Path) -> dict[str, Any]:
    """Train the segmentation bundle from an encoder on some of its cases; returns the test part's scores.

    ``curve`` is the validation part's Dice after so many steps each.
    """
    data = Path(os.environ.get("MONAI_DATA_DIRECTORY", ".")) / "Task04_Hippocampus"
    items = decathlon_split(data, SEGMENTATION / "configs" / "split.json", "training")
    linear = {"_target_": f"{__name__}.LinearDecoder", "embed_dim": 96, "patch_size": job.patch, "num_classes": 3}
    named = {"decoder": job.decoder, "num_classes": 3, "feature_size": 8 if job.decoder == "unetr" else 16}
    network = {"_target_": "monai_vit3d.networks.TokenSegmenter", "backbone": backbone([32, 48, 32], job.patch)}
    network |= {"decoder": linear} if job.decoder == "linear" else named
    epochs = -(-job.steps // (job.cases // 2))
    options = {} if job.looks > 1 else {"validate#dataset#data": items[:1]}
    options |= {"train#dataset#data": random.Random(seed).sample(items, job.cases)}
    options |= {"epochs": epochs, "val_interval": epochs // job.looks, "warmup_epochs": epochs / 20, "ema_decay": 0.98}
    options |= {"seed": seed, "resume": False, "output_dir": str(folder), "ckpt_path": str(folder / "model.pt")}
    options |= {"network_def": network, "num_classes": 3, "pretrained": None if encoder is None else str(encoder)}
    options |= {"learning_rate": dict(job.rates).get(arm, 0.001)}
    options |= {"optimizer#params": "$@network.decoder.parameters()", "learning_rate": 0.01} if job.frozen else {}
    run = workflow(SEGMENTATION, "train", **options)
    trainer, evaluator = (run.parser.get_parsed_content(key) for key in ("train#trainer", "validate#evaluator"))
    curve: list[tuple[int, float]] = []
    evaluator.add_event_handler(
        Events.COMPLETED, lambda end: curve.append((trainer.state.iteration, end.state.metrics["val_dice"]))
    )
    run.run()
    places = {key: options[key] for key in ("ckpt_path", "network_def", "num_classes")}
    workflow(SEGMENTATION, "inference", "evaluate", output_dir=str(folder / "test"), **places).run()
    return {**read_scores(folder / "test"), "curve": curve if job.looks > 1 else []}


def measure(arm: str, seed: int, jobs: list[str], data: Path, output: Path) -> None:
    """What is asked for of one arm and seed; what is there already is not done again."""
    folder = output / f"{arm}-{seed}"
    work: dict[str, Callable[[], dict[str, Any]]] = {}
    for name in jobs:
        job = JOBS[name]
        if ((ARMS[arm] or "mae_pretraining"), job.patch) not in PRETRAINING:
            continue
        place = folder / f"patch{job.patch}"
        place.mkdir(parents=True, exist_ok=True)
        work[f"{place.name}/pretraining"] = partial(pretrain, arm, seed, job.patch, place)
        if job.patch == 8:
            work["probe"] = partial(probe, place / "encoder.safetensors", data)
        # frozen tokens of no training are the untrained network's, which the file has
        start = place / "encoder.safetensors" if ARMS[arm] or job.frozen else None
        work[name] = partial(segment, start, arm, job, seed, folder / name.replace(", ", "-").replace(" ", "-"))
    for name, do in work.items():
        file = folder / f"{name}.json"
        if not file.is_file():
            result = do()
            file.write_text(json.dumps(result, indent=1))
            print(arm, seed, name, round(result["mean"], 4) if "mean" in result else "", flush=True)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over the seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def results(output: Path, arm: str, name: str) -> list[dict[str, Any]]:
    """What one measurement of an arm gave, a seed each."""
    return [json.loads(file.read_text()) for file in sorted(output.glob(f"{arm}-[0-9]*/{name}.json"))]


def print_table(output: Path) -> None:
    """A row a figure, a column an arm, over its seeds."""
    figures: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
        "CPU seconds": ("patch8/pretraining", lambda r: r["seconds"]),
        "RankMe, start": ("patch8/pretraining", lambda r: r["history"][0]["rankme"]),
        "RankMe, lowest": ("patch8/pretraining", lambda r: min(h["rankme"] for h in r["history"])),
        "RankMe, end": ("patch8/pretraining", lambda r: r["history"][-1]["rankme"]),
        "cosine to mean": ("patch8/pretraining", lambda r: r["history"][-1]["cosine_to_mean"]),
        "CPU seconds, patch 4": ("patch4/pretraining", lambda r: r["seconds"]),
        "AUC, logistic": ("probe", lambda r: r["logistic"]),
        "AUC, k-NN": ("probe", lambda r: r["knn"]),
        **{f"Dice, {job}": (job, lambda r: r["mean"]) for job in JOBS},
    }
    print(f"{'':24s}" + "".join(f"{arm:>18s}" for arm in ARMS))
    for title, (name, pick) in figures.items():
        columns = [[pick(r) for r in results(output, arm, name)] for arm in ARMS]
        print(f"{title:24s}" + "".join(f"{spread(values) if values else '':>18s}" for values in columns))
    print("\nDice less that from scratch: mean of the cases' differences, each over its seeds, and standard error")
    for job in JOBS:
        print_gains(output, job)


def print_gains(output: Path, job: str) -> None:
    """A line a kind of training: what each arm gains."""
    cases = {arm: [r["cases"] for r in results(output, arm, job)] for arm in ARMS}
    means = {arm: np.mean(rows, axis=0) for arm, rows in cases.items() if rows}
    gaps = {arm: values - means["scratch"] for arm, values in means.items() if arm != "scratch" and "scratch" in means}
    cells = {arm: f"{gap.mean():+.4f} ± {gap.std(ddof=1) / len(gap) ** 0.5:.4f}" for arm, gap in gaps.items()}
    print(f"{job:24s}{'':18s}" + "".join(f"{cells.get(arm, ''):>18s}" for arm in list(ARMS)[1:]))


def draw_curves(output: Path, file: Path) -> None:
    """The validation part's Dice on the way of each job that looked, a line an arm, mean over the seeds."""
    curves = []
    for name, arm in itertools.product([name for name in JOBS if JOBS[name].looks > 1], ARMS):
        looks = zip(*(r["curve"] for r in results(output, arm, name)))
        points = [(seeds[0][0], statistics.mean(dice for _, dice in seeds)) for seeds in looks]
        curves += [Curve(f"{arm}, {JOBS[name].steps} steps", points)] if points else []
    chart = draw_chart(curves, "Dice of the validation part against steps, 10 labelled cases")
    chart.resize((640, 320)).quantize(32).save(file)


def main() -> None:
    """Measure what is not there yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with hippovolume3d_48.npz")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", nargs="*", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "pretraining")
    parser.add_argument("--picture", type=Path, help="draw the light decoder's curves here (PNG)")
    args = parser.parse_args()
    args.data, args.output = args.data.resolve(), args.output.resolve()
    for seed in args.seeds:
        for arm in args.arms:
            measure(arm, seed, args.jobs, args.data, args.output)
    print_table(args.output)
    if args.picture:
        draw_curves(args.output, args.picture)


if __name__ == "__main__":
    main()
