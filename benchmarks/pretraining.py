"""What pretraining is worth on the hippocampus: I-JEPA, I-JEPA with a leak, MAE, and no pretraining.

All read the images of the split's training part (bundles/hippocampus_segmentation) by the recipes of
bundles/ijepa_pretraining and bundles/mae_pretraining, the same number of optimizer steps each, with a small network
(width 96, 4 blocks, patches of 8). Then

- the features' figures of the pretraining's monitor, on the split's validation part;
- the tertile of the hippocampus' volume (``hippovolume3d_48.npz``, made by make_hippocampus_volume.py), from frozen,
  mean-pooled tokens by logistic regression and k nearest neighbours;
- segmentation by the segmentation bundle's train.yaml, on 10, 25, 50 and all 150 training cases, drawn by the seed,
  about as many steps each. ``linear``: one linear layer from each token to its patch's voxels, so that tokens are all
  that there is, fine-tuned, and with the encoder frozen; ``unetr``: UNETR's decoder, whose convolutions see the image
  itself. The last step's average is scored by evaluate.yaml on the test part, on which nothing was chosen.

The leak is that of a published implementation: 82 % of the targets' tokens are visible to the context.

    python benchmarks/pretraining.py DATA                       # all of it; DATA holds hippovolume3d_48.npz,
                                                                # $MONAI_DATA_DIRECTORY holds Task04_Hippocampus
    python benchmarks/pretraining.py DATA --arms mae --seeds 0  # a part; several may run side by side
    python benchmarks/pretraining.py DATA --arms                # the table of what is there
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hippocampus import read_scores
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
from monai_vit3d.weights import load_backbone, save_backbone

ROOT = Path(__file__).resolve().parents[1]
SEGMENTATION = ROOT / "bundles" / "hippocampus_segmentation"
DATASETS = ROOT / "bundles" / "medmnist3d_classification" / "configs" / "datasets.json"
ARMS = {"scratch": None, "ijepa": "ijepa_pretraining", "ijepa-leak": "ijepa_pretraining", "mae": "mae_pretraining"}
LEAK = 0.82
CASES = (10, 25, 50, 150)
NETWORK = {"embed_dim": 96, "depth": 4, "num_heads": 2}
HEADS = {
    "ijepa_pretraining": {"predictor_dim": 48, "predictor_depth": 2},
    "mae_pretraining": {"decoder_dim": 48, "decoder_depth": 2, "decoder_heads": 2},
}
JOBS = {
    "linear, frozen": ("linear", True, 150),
    **{f"linear, {n} cases": ("linear", False, n) for n in CASES},
    **{f"unetr, {n} cases": ("unetr", False, n) for n in CASES},
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


def pretrain(arm: str, seed: int, folder: Path, epochs: int) -> dict[str, Any]:
    """Write ``encoder.safetensors``; returns the features' figures by epoch, and the CPU seconds."""
    bundle = ARMS[arm] or "mae_pretraining"
    options = {"seed": seed, "epochs": epochs, "output_dir": str(folder), "resume": False, **NETWORK, **HEADS[bundle]}
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


def backbone(size: int | list[int]) -> dict[str, Any]:
    """The config of the encoder's network for volumes of a size."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundles" / "mae_pretraining" / "configs" / "train.yaml"))
    plain = {"_target_": "monai_vit3d.layers.PatchEmbed3D", "_mode_": "callable"}
    fixed = {"img_size": size, "patch_size": 8, "in_chans": 1, "pos_embed": "sincos", "embed_layer": plain}
    return {**parser["backbone"], **fixed, **NETWORK}


def probe(encoder: Path, data: Path) -> dict[str, float]:
    """Test AUC of the volume's tertile from frozen, mean-pooled tokens."""
    net = load_backbone(ConfigParser({"net": backbone(48)}).get_parsed_content("net"), encoder)
    sections = []
    for section in ("train", "val", "test"):
        items = MedMNIST3DDataset("hippovolume3d", section, data, 48, info_file=DATASETS).data
        images = torch.stack([torch.as_tensor(item["image"]).float() for item in items])
        std, mean = torch.std_mean(images, (1, 2, 3, 4), keepdim=True)
        labels = torch.tensor([int(np.ravel(item["label"])[0]) for item in items])
        sections.append(extract_features(net, [((images - mean) / std, labels)]))
    scores = {"logistic": logistic_probe(*sections), "knn": knn_probe(*sections)}
    return {name: score.scores["auc"] for name, score in scores.items()}


def segment(encoder: Path | None, job: str, seed: int, folder: Path, steps: int) -> dict[str, Any]:
    """Train the segmentation bundle from an encoder on some of its cases; returns the test part's scores."""
    kind, frozen, cases = JOBS[job]
    data = Path(os.environ.get("MONAI_DATA_DIRECTORY", ".")) / "Task04_Hippocampus"
    items = decathlon_split(data, SEGMENTATION / "configs" / "split.json", "training")
    linear = {"_target_": f"{__name__}.LinearDecoder", "embed_dim": 96, "patch_size": 8, "num_classes": 3}
    decoder = {"decoder": linear} if kind == "linear" else {"decoder": kind, "num_classes": 3, "feature_size": 8}
    network = {"_target_": "monai_vit3d.networks.TokenSegmenter", "backbone": backbone([32, 48, 32]), **decoder}
    epochs = -(-steps // (cases // 2))
    options = {"train#dataset#data": random.Random(seed).sample(items, cases), "validate#dataset#data": items[:1]}
    options |= {"epochs": epochs, "val_interval": epochs, "warmup_epochs": epochs / 20, "ema_decay": 0.98}
    options |= {"seed": seed, "resume": False, "output_dir": str(folder), "ckpt_path": str(folder / "model.pt")}
    options |= {"network_def": network, "num_classes": 3, "pretrained": None if encoder is None else str(encoder)}
    options |= {"optimizer#params": "$@network.decoder.parameters()", "learning_rate": 0.01} if frozen else {}
    workflow(SEGMENTATION, "train", **options).run()
    places = {"output_dir": str(folder / "test"), "ckpt_path": str(folder / "model.pt")}
    places |= {"network_def": network, "num_classes": 3}
    workflow(SEGMENTATION, "inference", "evaluate", **places).run()
    return read_scores(folder / "test")


def measure(arm: str, seed: int, jobs: list[str], args: argparse.Namespace) -> None:
    """What is asked for of one arm and seed; what is there already is not done again."""
    folder = args.output / f"{arm}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    encoder = folder / "encoder.safetensors"
    work = {"pretraining": lambda: pretrain(arm, seed, folder, args.epochs), "probe": lambda: probe(encoder, args.data)}
    for job in jobs:
        # frozen tokens of no training are the untrained network's, which the file has
        start = encoder if ARMS[arm] or JOBS[job][1] else None
        steps = args.steps[JOBS[job][0]]
        work[job] = partial(segment, start, job, seed, folder / job.replace(", ", "-").replace(" ", "-"), steps)
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
        "CPU seconds": ("pretraining", lambda r: r["seconds"]),
        "RankMe, start": ("pretraining", lambda r: r["history"][0]["rankme"]),
        "RankMe, lowest": ("pretraining", lambda r: min(h["rankme"] for h in r["history"])),
        "RankMe, end": ("pretraining", lambda r: r["history"][-1]["rankme"]),
        "cosine to mean": ("pretraining", lambda r: r["history"][-1]["cosine_to_mean"]),
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


def main() -> None:
    """Measure what is not there yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with hippovolume3d_48.npz")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", nargs="*", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--epochs", type=int, default=250, help="of pretraining, 9 steps each")
    parser.add_argument("--linear_steps", type=int, default=500, help="of training the linear decoder")
    parser.add_argument("--unetr_steps", type=int, default=600, help="of training UNETR's")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "pretraining")
    args = parser.parse_args()
    args.data, args.output = args.data.resolve(), args.output.resolve()
    args.steps = {"linear": args.linear_steps, "unetr": args.unetr_steps}
    for seed in args.seeds:
        for arm in args.arms:
            measure(arm, seed, args.jobs, args)
    print_table(args.output)


if __name__ == "__main__":
    main()
