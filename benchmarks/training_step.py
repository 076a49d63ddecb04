"""A training step with its data, and its parts: the shipped recipe against MONAI's trainer and nnU-Net's loading.

    MONAI_DATA_DIRECTORY=DATA python benchmarks/training_step.py --rounds 5
    python benchmarks/training_step.py --only unetr --rounds 3     # made-up volumes, no data needed
    pip install batchgenerators    # for the rows of nnU-Net's loading; no dependency of this package

Two networks, each with configs/train.yaml of bundles/hippocampus_segmentation: its own on DATA's Task04_Hippocampus
(batch 2), and a UNETR of 96^3 windows with 14 classes on made-up volumes of 160x160x80 voxels of 1x1x2 mm (batch 1).
Rows:

- ours: the recipe as shipped, with its moving average, checks and metric; bfloat16 where the device computes in it.
- ours, float32: the same with amp=false.
- MONAI: the same config with MONAI's reader, Spacingd and inferer and none of our handlers, in float32: the random
  transforms are MONAI's in both.
- MONAI, amp: the trainer's own option, which is CUDA's alone; without CUDA the row is left out.
- MONAI, nnU-Net's data: the row "MONAI" with the same cached volumes cropped and augmented by batchgenerators
  with nnU-Net's transforms and probabilities.

All start from the same weights and take turns, an epoch each. Seconds are of a step in the trainer's own process (no
workers), of wall clock and of CPU, by ignite's events from asking for a batch to the end of the iteration; the ratio is
"MONAI"'s over this row's, the median over rounds. Parts are of CPU seconds. The limit is ours' forward, backward and
optimizer: a step without data, metric and moving average.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from hippocampus import parser_for
from ignite.engine import Engine, Events
from in_turn import command_line, with_each_allocator
from made_up_bundle import BACKBONE, CLASSES, WINDOW, shrink
from monai.engines.utils import IterationEvents
from monai.utils import set_determinism
from torch import Tensor

PEER = "MONAI"
PARTS = {
    "data": Events.GET_BATCH_COMPLETED,
    "forward": IterationEvents.LOSS_COMPLETED,
    "backward": IterationEvents.BACKWARD_COMPLETED,
    "optimizer": IterationEvents.MODEL_COMPLETED,
    "rest": Events.ITERATION_COMPLETED,
}
MONAIS = {
    "train#deterministic_transforms#0#reader": {"_target_": "NibabelReader"},
    "load_label#reader": {"_target_": "NibabelReader"},
    "train#loading": "$@train#deterministic_transforms[:1] + [@load_label] + @train#deterministic_transforms[1:]",
    "train#deterministic_transforms#2#_target_": "Spacingd",
    "train#inferer": {"_target_": "SimpleInferer"},
    "train#loss_of_maps": "@train#loss",
    "train#handlers": [],
    "average": None,
}
ROWS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, float32": {"amp": False},
    PEER: MONAIS,
    "MONAI, amp": {**MONAIS, "train#trainer#amp": True},
    "MONAI, nnU-Net's data": MONAIS,
}
if not torch.cuda.is_available():
    del ROWS["MONAI, amp"]
if find_spec("batchgenerators") is None:
    print("nnU-Net's data: left out, batchgenerators is not installed")
    del ROWS["MONAI, nnU-Net's data"]


class PartClock:
    """Seconds of wall clock and CPU from mark to mark of a trainer's iterations."""

    def __init__(self, trainer: Engine) -> None:
        self.steps: list[dict[str, tuple[float, float]]] = []
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self.start)
        for part, event in PARTS.items():
            trainer.add_event_handler(event, self.mark, part)

    def now(self) -> tuple[float, float]:
        """A GPU's work included."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def start(self) -> None:
        """A batch is asked for."""
        self.steps.append({})
        self.last = self.now()

    def mark(self, part: str) -> None:
        """A part has ended."""
        now = self.now()
        if part not in self.steps[-1]:  # a trainer may ask for a batch when the last step is done
            self.steps[-1][part] = (now[0] - self.last[0], now[1] - self.last[1])
        self.last = now


class NNUNetLoader:
    """Batches of a data set's cached volumes by batchgenerators, with nnU-Net's crop, transforms and probabilities."""

    def __init__(self, dataset: Any, window: list[int], batch_size: int) -> None:
        from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
        from batchgenerators.transforms.abstract_transforms import Compose
        from batchgenerators.transforms.color_transforms import (
            BrightnessMultiplicativeTransform,
            ContrastAugmentationTransform,
            GammaTransform,
        )
        from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
        from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
        from batchgenerators.transforms.spatial_transforms import MirrorTransform, SpatialTransform

        self.volumes = [[np.asarray(item[key])[None] for key in ("image", "label")] for item in dataset._cache]
        self.batch_size, self.window = batch_size, window
        self.reach = [int(1.4 * side) for side in window]  # what a turned and scaled window may see
        angle, third = (-np.pi / 6, np.pi / 6), {"order_data": 3, "border_mode_data": "constant", "order_seg": 1}
        turned = {"do_elastic_deform": False, "random_crop": False, "p_rot_per_sample": 0.2, "p_scale_per_sample": 0.2}
        turned |= {"angle_x": angle, "angle_y": angle, "angle_z": angle, "scale": (0.7, 1.4)}
        gamma = {"gamma_range": (0.7, 1.5), "retain_stats": True}
        steps = [
            SpatialTransform(window, None, **turned, **third),
            GaussianNoiseTransform(p_per_sample=0.1),
            GaussianBlurTransform((0.5, 1.0), p_per_sample=0.2, p_per_channel=0.5),
            BrightnessMultiplicativeTransform((0.75, 1.25), p_per_sample=0.15),
            ContrastAugmentationTransform(p_per_sample=0.15),
            SimulateLowResolutionTransform((0.5, 1), order_upsample=3, p_per_sample=0.25, p_per_channel=0.5),
            GammaTransform(invert_image=True, p_per_sample=0.1, **gamma),
            GammaTransform(invert_image=False, p_per_sample=0.3, **gamma),
            MirrorTransform((0, 1, 2)),
        ]
        self.batches = SingleThreadedAugmenter(iter(self.crops()), Compose(steps))

    def crops(self) -> Iterator[dict[str, np.ndarray]]:
        """Crops of the size that the spatial transform needs, for ever."""
        rng = np.random.default_rng(0)
        while True:
            chosen = [self.crop(*self.volumes[i], rng) for i in rng.integers(len(self.volumes), size=self.batch_size)]
            yield {key: np.concatenate(arrays) for key, arrays in zip(("data", "seg"), zip(*chosen))}

    def crop(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """One, padded where the volume ends."""
        gaps = [max(0, reach - side) for side, reach in zip(image.shape[2:], self.reach)]
        widths = [(0, 0), (0, 0), *((gap // 2, gap - gap // 2) for gap in gaps)]
        padded = [np.pad(array, widths, mode="edge") for array in (image, label)]
        starts = [rng.integers(side - reach + 1) for side, reach in zip(padded[0].shape[2:], self.reach)]
        where = (..., *(slice(start, start + reach) for start, reach in zip(starts, self.reach)))
        return [array[where] for array in padded]

    def __len__(self) -> int:
        return len(self.volumes) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _, batch in zip(range(len(self)), self.batches):
            yield {"image": torch.from_numpy(batch["data"]), "label": torch.from_numpy(batch["seg"])}


def made_up_task(folder: Path, cases: int) -> dict[str, Any]:
    """Write volumes and labels, and return the recipe's overrides for a UNETR of 96^3 windows."""
    rng = np.random.default_rng(0)
    names = [f"case_{i}" for i in range(cases)]
    for name in names:
        label = np.kron(rng.integers(0, CLASSES, (10, 10, 10)), np.ones((16, 16, 8))).astype(np.uint8)
        image = (label * 20 + rng.normal(0, 10, label.shape)).astype(np.int16)
        for kind, array in (("imagesTr", image), ("labelsTr", label)):
            (folder / kind).mkdir(exist_ok=True, parents=True)
            nib.save(nib.Nifti1Image(array, np.diag([1, 1, 2, 1.0])), folder / kind / f"{name}.nii.gz")
    split = folder / "split.json"
    split.write_text(json.dumps({"training": names, "validation": names[:1]}))
    backbone = {"_target_": "monai_vit3d.networks.VisionTransformer3D", **BACKBONE, "tokens": "@tokens"}
    network = {"_target_": "monai_vit3d.networks.TokenSegmenter", "backbone": backbone, "decoder": "@decoder"}
    network |= {"num_classes": CLASSES, "taps": [3, 6, 9]}
    return {
        "dataset_dir": str(folder),
        "split_file": str(split),
        "window": WINDOW,
        "network_def": network,
        "batch_size": 1,
    }


def trainer_of(row: str, overrides: Mapping[str, Any], limit: int, output: Path) -> Engine:
    """The recipe's trainer with a row's parts, and all rows' weights."""
    parser = parser_for(None)
    never = {"val_interval": 10**6, "output_dir": str(output), "resume": False, "limit": limit, "epochs": 10**4}
    for key, value in {**never, **overrides, **ROWS[row]}.items():
        parser[key] = value
    set_determinism(0)
    if "nnU-Net" in row:
        cached = parser.get_parsed_content("train#dataset")
        loader = NNUNetLoader(cached, parser["window"], parser["batch_size"])
        parser["train#trainer#epoch_length"] = len(loader)
    trainer = parser.get_parsed_content("train#trainer")
    if "nnU-Net" in row:
        trainer.data_loader = loader
    trainer.state.max_epochs = 0
    return trainer


def measure(title: str, overrides: Mapping[str, Any], limit: int, rounds: int, output: Path) -> None:
    """Train in turn and print the rows."""
    trainers = {row: trainer_of(row, overrides, limit, output / row) for row in ROWS}
    weights = [trainer.network.state_dict() for trainer in trainers.values()]
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=0, atol=0)
    clocks = {row: PartClock(trainer) for row, trainer in trainers.items()}
    found: dict[str, list[list[dict[str, tuple[float, float]]]]] = {row: [] for row in ROWS}
    for round_ in range(rounds + 1):
        for row, trainer in trainers.items():
            trainer.state.max_epochs = round_ + 1
            trainer.run()
            steps, clocks[row].steps = clocks[row].steps, []
            if round_:  # the first one warms up
                found[row].append([step for step in steps if len(step) == len(PARTS)])
    show(title, found)


def show(title: str, found: Mapping[str, list[list[dict[str, tuple[float, float]]]]]) -> None:
    """A line for each row: medians of the rounds' mean seconds, and the parts."""

    def mean(steps: list[dict[str, tuple[float, float]]], clock: int, parts: Any = PARTS) -> float:
        return statistics.mean(sum(step[part][clock] for part in parts) for step in steps)

    print(f"{title:>24s} {'wall s':>7s} {'CPU s':>7s} {'ratio':>6s} {'of wall':>7s}", end="")
    print("".join(f" {part:>9s}" for part in PARTS))
    for row, rounds in found.items():
        wall, cpu = (statistics.median(mean(steps, clock) for steps in rounds) for clock in (0, 1))
        ratios = [
            statistics.median(mean(theirs, clock) / mean(mine, clock) for theirs, mine in zip(found[PEER], rounds))
            for clock in (1, 0)
        ]
        print(f"{row:>24s} {wall:7.3f} {cpu:7.3f} {ratios[0]:6.2f} {ratios[1]:7.2f}", end="")
        print("".join(f" {statistics.median(mean(s, 1, [part]) for s in rounds):9.4f}" for part in PARTS), flush=True)
    core = ("forward", "backward", "optimizer")
    wall, cpu = (statistics.median(mean(s, clock, core) for s in found["ours"]) for clock in (0, 1))
    print(f"{'limit':>24s} {wall:7.3f} {cpu:7.3f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--only", choices=["hippocampus", "unetr"])
    parser.add_argument("--small", action="store_true", help="a narrow UNETR in windows of 32^3")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)
    if not args.child:
        print(f"torch {torch.__version__}, {args.threads} threads")
        with_each_allocator()
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.only != "unetr":
            os.environ["MONAI_DATA_DIRECTORY"]  # the recipe reads it
            measure("hippocampus, batch 2", {}, 16, args.rounds, folder / "hippocampus")
        if args.only != "hippocampus":
            if args.small:
                shrink()
            title = f"UNETR {WINDOW[0]}^3, batch 1"
            measure(title, made_up_task(folder / "task", 2), 2, args.rounds, folder / "unetr")


if __name__ == "__main__":
    main()
