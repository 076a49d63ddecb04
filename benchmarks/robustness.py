"""What tilts, coarse voxels, noise and other contrasts cost the hippocampus network, in Dice, volume and certainty.

Each crop is taken as it is and changed in each way by a seed; the labels are turned with it, as shares of each class
that are interpolated linearly. Inference is the bundle's: windows with half overlap, the largest piece kept. Printed
for each way: mean Dice of both structures, its difference to the crops as they are, the largest loss of a case, and the
coefficient of variation of the volume (the spread of changed against unchanged, in %). Then over all of them: how well
the mean entropy of the labelled voxels ranks the cases by Dice (Spearman), the calibration error of each class (ECE, 15
bins), and the bias and 95 % limits of agreement of the volumes against the labels' on the crops as they are.

    python benchmarks/robustness.py                                  # the shipped weights, test part
    python benchmarks/robustness.py OTHER.pt dynunet:PEER.pt --section validation --picture curves.png
    python benchmarks/robustness.py ONE.pt OTHER.pt --together       # the mean of their probabilities

``dynunet:`` and ``unetr:`` stand before the weights of a peer of hippocampus.py. The limits: 0.02 of Dice for a tilt of
30 degrees, a coefficient of variation of 2 %, a Spearman correlation of 0.5.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hippocampus import BUNDLE, NETWORKS, parser_for
from monai.transforms import KeepLargestConnectedComponent, NormalizeIntensity, SpatialPad
from scipy.ndimage import affine_transform, zoom
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr

from monai_vit3d.data import decathlon_split, read_volume
from monai_vit3d.weights import load_weights

CLASSES = ("background", "anterior", "posterior")
UNCHANGED = {"voxels of mm": 1.0, "slices of mm": 1.0}  # the degree of a crop as it is; 0 in other groups
BINS = 15


class Way(NamedTuple):
    """A change of a crop: group and degree for the curves, and the change of image and shares by a random generator."""

    group: str
    degree: float
    change: Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def tilted(degrees: float):
    """Turn image and shares about a random axis through the middle."""

    def change(image, shares, rng):
        axis = rng.normal(size=3)
        matrix = Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis)).as_matrix()
        middle = (np.array(image.shape) - 1) / 2

        def turn(volume):
            return affine_transform(volume, matrix, middle - matrix @ middle, order=1, mode="nearest")

        return turn(image), np.stack([turn(share) for share in shares])

    return change


def coarse(step: tuple[float, float, float]):
    """Sample the image at so many mm and back to 1 mm; the labels stay."""

    def change(image, shares, rng):
        low = zoom(image, 1 / np.array(step), order=1, grid_mode=True, mode="nearest")
        return zoom(low, np.array(image.shape) / low.shape, order=1, grid_mode=True, mode="nearest"), shares

    return change


def noisy(deviations: float):
    """Add Gaussian noise of so many standard deviations of the image."""
    return lambda image, shares, rng: (image + deviations * image.std() * rng.normal(size=image.shape), shares)


def shaded(strength: float):
    """Multiply by a smooth field that is 1 - strength at one end and 1 + strength at the other."""

    def change(image, shares, rng):
        axis = rng.normal(size=3)
        places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in image.shape], indexing="ij"), -1)
        ramp = places @ axis
        return image * (1 + strength * ramp / np.abs(ramp).max()), shares

    return change


def inverted(image, shares, rng):
    """Exchange dark and bright."""
    return image.max() - image, shares


def as_it_is(image, shares, rng):
    """Leave the crop."""
    return image, shares


WAYS = [
    Way("as it is", 0, as_it_is),
    *[Way("tilt in degrees", d, tilted(d)) for d in (8, 15, 30, 45)],
    *[Way("voxels of mm", s, coarse((s, s, s))) for s in (0.6, 1.5, 2.0)],
    *[Way("slices of mm", s, coarse((1, 1, s))) for s in (3.0, 5.0)],
    *[Way("noise in SD", n, noisy(n)) for n in (0.1, 0.3)],
    *[Way("shading", s, shaded(s)) for s in (0.2, 0.4)],
    Way("inverted", 1, inverted),
]


class Answer(NamedTuple):
    """What the network said of a crop: Dice and volumes of both structures, entropy, and sums for the calibration."""

    dice: float
    volume_ml: float
    reference_ml: float
    entropy: float
    bins: np.ndarray  # (classes, bins, 3): voxels, sum of probabilities, sum of shares


def dice_of(labels: np.ndarray, reference: np.ndarray) -> float:
    """Mean Dice of the structures."""
    scores = []
    for k in range(1, len(CLASSES)):
        a, b = labels == k, reference == k
        scores.append(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))
    return float(np.mean(scores))


def calibration_sums(probabilities: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Voxels, probabilities and hits in each bin of each class's probability."""
    sums = np.zeros((len(CLASSES), BINS, 3))
    for k, share in enumerate(probabilities):
        index = np.minimum((share * BINS).astype(int), BINS - 1).ravel()
        for j, weights in enumerate((None, share.ravel(), (reference == k).ravel())):
            sums[k, :, j] = np.bincount(index, weights, BINS)
    return sums


def network_of(weights: str) -> torch.nn.Module:
    """The network of a file, or of ``name:file`` a peer's."""
    name, found, file = weights.rpartition(":")
    network = parser_for(NETWORKS[name] if found else None).get_parsed_content("network_def")
    return load_weights(network, Path(file)).eval()


class Labeller:
    """The bundle's inference on an array of 1 mm voxels, by the mean of the networks' probabilities."""

    def __init__(self, weights: Sequence[str]) -> None:
        self.networks = [network_of(file) for file in weights]
        parser = parser_for(None)
        self.inferer = parser.get_parsed_content("validate#inferer")
        self.prepare = [NormalizeIntensity(), SpatialPad(parser.get_parsed_content("window"))]
        self.clean = KeepLargestConnectedComponent(applied_labels=[1, 2], independent=False)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, shares: np.ndarray) -> Answer:
        """Label a crop and compare with its shares of each class."""
        reference = shares.argmax(0)
        x = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None]
        for step in self.prepare:
            x = step(x)
        x = torch.as_tensor(x)
        before = [(a - b) // 2 for a, b in zip(x.shape[1:], image.shape)]
        inside = (slice(None), *(slice(b, b + n) for b, n in zip(before, image.shape)))
        answers = [self.inferer(x[None], network)[0].float().softmax(0)[inside] for network in self.networks]
        probabilities = torch.stack(answers).mean(0)
        labels = torch.as_tensor(self.clean(probabilities.argmax(0, keepdim=True)))[0].numpy()
        p = probabilities.numpy()
        entropy = -(p * np.log(np.clip(p, 1e-12, 1))).sum(0)
        return Answer(
            dice_of(labels, reference),
            float((labels > 0).sum() / 1000),
            float((reference > 0).sum() / 1000),
            float(entropy.sum() / max((labels > 0).sum(), 1)),
            calibration_sums(p, reference),
        )


def measure(weights: Sequence[str], cases: list[dict], ways: list[Way]) -> dict[Way, list[Answer]]:
    """All answers, by way."""
    labeller = Labeller(weights)
    answers: dict[Way, list[Answer]] = {way: [] for way in ways}
    for number, case in enumerate(cases):
        image = np.array(read_volume(case["image"]).voxels, np.float32)
        labels = np.array(read_volume(case["label"]).voxels)
        shares = np.stack([(labels == k).astype(np.float32) for k in range(len(CLASSES))])
        for i, way in enumerate(ways):
            answers[way].append(labeller(*way.change(image, shares, np.random.default_rng([number, i]))))
    return answers


def print_answers(answers: dict[Way, list[Answer]]) -> None:
    """The table, and what holds over all ways."""
    plain = next(iter(answers.values()))
    print(f"{'way':22s}   Dice   change  worst case  volume CV %")
    for way, ones in answers.items():
        losses = [b.dice - a.dice for a, b in zip(plain, ones)]
        pairs = np.array([[a.volume_ml, b.volume_ml] for a, b in zip(plain, ones)])
        spread = 100 * np.sqrt(np.mean(pairs.var(1, ddof=1) / pairs.mean(1) ** 2))
        name = f"{way.group} {way.degree:g}" if way.degree else way.group
        dice = np.mean([one.dice for one in ones])
        print(f"{name:22s} {dice:.4f}  {np.mean(losses):+.4f}     {min(losses):+.4f}        {spread:5.2f}")
    everything = [one for ones in answers.values() for one in ones]
    rank = spearmanr([one.entropy for one in everything], [one.dice for one in everything]).statistic
    print(f"entropy a labelled voxel against Dice, {len(everything)} crops: Spearman {rank:+.2f} (limit -0.5)")
    sums = np.sum([one.bins for one in plain], 0)
    for name, rows in zip(CLASSES, sums):
        error = np.abs(rows[:, 1] - rows[:, 2]).sum() / rows[:, 0].sum()
        print(f"ECE of {name}, crops as they are: {error:.4f}")
    gaps = np.array([one.volume_ml - one.reference_ml for one in plain])
    low, high = gaps.mean() - 1.96 * gaps.std(ddof=1), gaps.mean() + 1.96 * gaps.std(ddof=1)
    print(f"volume less the labels': {gaps.mean():+.3f} ml, limits of agreement {low:+.3f} to {high:+.3f} ml")


def draw(results: dict[str, dict[Way, list[Answer]]], path: Path) -> None:
    """Curves of Dice by group, one line for each file of weights."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(dict.fromkeys(way.group for way in WAYS[1:]))
    figure, axes = plt.subplots(1, len(groups), figsize=(2.2 * len(groups), 2.8), sharey=True, layout="constrained")
    for axis, group in zip(axes, groups):
        for name, answers in results.items():
            plain, *changed = (way for way in answers if way.group in (WAYS[0].group, group))
            degrees = {UNCHANGED.get(group, 0.0): plain, **{way.degree: way for way in changed}}
            means = [np.mean([one.dice for one in answers[degrees[degree]]]) for degree in sorted(degrees)]
            axis.plot(sorted(degrees), means, marker="o", label=name)
        axis.set_title(group, fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean Dice")
    if len(results) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", default=[str(BUNDLE / "models" / "model.pt")])
    parser.add_argument("--together", action="store_true", help="average the networks' probabilities")
    parser.add_argument("--section", choices=("training", "validation", "test"), default="test")
    parser.add_argument("--limit", type=int, help="so many cases alone")
    parser.add_argument("--ways", type=int, help="so many of the ways alone; 1 leaves the crops as they are")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    data = parser_for(None).get_parsed_content("dataset_dir")
    cases = decathlon_split(data, BUNDLE / "configs" / "split.json", args.section)[: args.limit]
    results = {}
    for weights in [args.weights] if args.together else [[one] for one in args.weights]:
        name = " + ".join(weights)
        print(f"{name} on {len(cases)} {args.section} cases", flush=True)
        results[name] = measure(weights, cases, WAYS[: args.ways])
        print_answers(results[name])
    if args.picture:
        draw(results, args.picture)


if __name__ == "__main__":
    main()
