"""How far from the truth the bundle head_hippocampus finds both hippocampi, and what is refused.

Each head is taken as it is, and turned, shifted, resampled, cropped and inverted in brightness, by a seed. The truth is
the centre of each hippocampus in MNI space, for heads that lie in it, or the two points that ``--centres`` gives.
Errors are distances in mm of the localizer's centre and of the centre of the labels. The limits: a median of 4 mm, and
every side within 12 mm or left out. The labels of the head as it is are compared with those of the box network in a box
that is cut at the true centre, without any localizer: Dice of each side (limit 0.95) and volume (within 5 %).

    python benchmarks/head_localization.py                      # nilearn's MNI152 template
    python benchmarks/head_localization.py HEAD.nii.gz …        # further heads in MNI space
    python benchmarks/head_localization.py HEAD.nii.gz --centres -25 -18 -12 27 -17 -13   # left, right, in its own mm
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import KeepLargestConnectedComponent, NormalizeIntensity
from nibabel.affines import apply_affine
from scipy.ndimage import affine_transform, zoom
from scipy.spatial.transform import Rotation

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.data import read_volume
from monai_vit3d.inferers import unwrap_inferer
from monai_vit3d.pipeline.demo import CENTRES_MM

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "head_hippocampus"
SIDES = ("left", "right")


def upright(path: str | Path, centres_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read a head, onto 1 mm RAS voxels; the voxels and the places of the centres, (2, 3), in them."""
    from monai.transforms import Compose, Orientation

    from monai_vit3d.transforms import SeparableSpacing

    volume = read_volume(path)
    image = MetaTensor(torch.from_numpy(np.array(volume.voxels, np.float32))[None], torch.tensor(volume.grid.affine_mm))
    image = Compose([Orientation("RAS", labels=None), SeparableSpacing((1.0, 1.0, 1.0))])(image)
    return image.numpy()[0], apply_affine(np.linalg.inv(image.affine.numpy()), centres_mm)


def moved(voxels: np.ndarray, centres: np.ndarray, turn: Rotation, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn a head about the middle of its image and shift it."""
    middle = (np.array(voxels.shape) - 1) / 2
    matrix = turn.inv().as_matrix()
    image = affine_transform(voxels, matrix, middle - matrix @ (middle + shift), order=1)
    return image, turn.apply(centres - middle) + middle + shift


def sampled(voxels: np.ndarray, step: tuple[float, ...]) -> np.ndarray:
    """Interpolate 1 mm voxels at points of another step in mm, and back."""
    coarse = zoom(voxels, 1 / np.array(step), order=1, grid_mode=True, mode="nearest")
    return zoom(coarse, np.array(voxels.shape) / np.array(coarse.shape), order=1, grid_mode=True, mode="nearest")


def variations(voxels: np.ndarray, centres: np.ndarray, rng: np.random.Generator, count: int):
    """Yield name, voxels and centres of the head as it is, of thick slices, and ``count`` of each other kind."""
    yield "as it is", voxels, centres
    for step in ((5, 1, 1), (1, 5, 1), (1, 1, 5)):
        yield "slices of 5 mm along an axis", sampled(voxels, step), centres
    for _ in range(count):
        angles, shift = rng.uniform(-25, 25, 3), rng.uniform(-15, 15, 3)
        yield (
            "turned to 25 degrees, shifted to 15 mm",
            *moved(voxels, centres, Rotation.from_euler("xyz", angles, True), shift),
        )
        step = rng.choice([(0.7, 0.7, 0.7), (1.5, 1.5, 1.5), (1, 1, 5), (5, 1, 1)])
        yield "sampled at 0.7 to 5 mm", sampled(voxels, step), centres
        top = np.percentile(voxels[voxels > 0], 99.5)
        yield "inverted", np.where(voxels > 0, np.clip(1.1 * top - voxels, 0, None), 0), centres
        axis, sign = rng.integers(3), rng.choice([1, 2, 3])
        turn = Rotation.from_euler("xyz"[axis], 90 * sign, True)
        yield "header wrong by 90 to 180 degrees", *moved(voxels, centres, turn, np.zeros(3))


def label(voxels: np.ndarray, inferer, network) -> np.ndarray:
    """Label a head of 1 mm voxels."""
    with torch.no_grad():
        image = torch.from_numpy(np.ascontiguousarray(voxels, np.float32))[None, None]
        return inferer(image, network)[0].argmax(0).numpy()


def of_side(labels: np.ndarray, i: int) -> np.ndarray:
    """Return the mask of both parts of a side, 0 the left and 1 the right."""
    return (labels == 1 + 2 * i) | (labels == 2 + 2 * i)


def errors(labels: np.ndarray, centres: np.ndarray, inferer) -> tuple[list[float], list[float]]:
    """Compute the errors of the localizer and of the labels in the inferer's last head, NaN where there are none."""
    first, second = [], []
    for i, side in enumerate(SIDES):
        pose = inferer.pose
        name = f"{side} hippocampus"
        centre = pose.centres_mm.get(name, pose.fit(inferer.localizer.template[name])).numpy() if pose else np.nan
        first.append(float(np.linalg.norm(centre - centres[i])))
        inside = of_side(labels, i)
        place = np.argwhere(inside).mean(0) if inside.any() else np.nan
        second.append(float(np.linalg.norm(place - centres[i])))
    return first, second


def beside_true_boxes(voxels: np.ndarray, centres: np.ndarray, labels: np.ndarray, inferer, network) -> list[tuple]:
    """Label a box at each true centre; Dice of the pipeline's side with it, and the ratio of their volumes."""
    rows = []
    for i, centre in enumerate(centres):
        start = np.round(centre - (np.array(inferer.box) - 1) / 2).astype(int)
        box = tuple(slice(low, low + n) for low, n in zip(start, inferer.box))
        image = NormalizeIntensity()(torch.from_numpy(np.ascontiguousarray(voxels[box], np.float32))[None])
        with torch.no_grad():
            answer = inferer.inferer(image[None], network)[0].argmax(0, keepdim=True)
        true = np.zeros(voxels.shape, bool)
        true[box] = KeepLargestConnectedComponent(independent=False)(answer)[0].numpy() > 0
        ours = of_side(labels, i)
        rows.append((2 * (true & ours).sum() / (true.sum() + ours.sum()), ours.sum() / true.sum()))
    return rows


def main() -> None:
    """Print a row for each variation of each head, and the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=3, help="variations of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the variations")
    parser.add_argument("--centres", nargs=6, type=float, help="left x, y, z and right x, y, z in mm; default MNI's")
    parser.add_argument("--localizer", help="weights of another localizer than the bundle's")
    args = parser.parse_args()
    if not args.heads:
        import nilearn.datasets

        folder = Path(nilearn.datasets.__file__).parent / "data"
        args.heads = [folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"]
    overrides = {"localizer_path": args.localizer} if args.localizer else {}
    from monai_vit3d.bundle.config import choice_of

    bundle = load_bundle(BUNDLE, "cpu", False, choice_of(None, overrides))
    inferer = unwrap_inferer(bundle.inferer)
    centres_mm = np.reshape(args.centres or [CENTRES_MM[side] for side in SIDES], (2, 3))
    table: dict[str, list[tuple[list[float], list[float], float]]] = {}
    for path in args.heads:
        voxels, centres = upright(path, centres_mm)
        for name, image, truth in variations(voxels, centres, np.random.default_rng(args.seed), args.count):
            start = time.perf_counter()
            labels = label(image, inferer, bundle.network)
            seconds, doubts = time.perf_counter() - start, inferer.doubts
            first, second = errors(labels, truth, inferer)
            table.setdefault(name, []).append((first, second, seconds))
            places = "localizer {:5.1f} {:5.1f}  labels {:5.1f} {:5.1f}".format(*first, *second)
            print(f"{path.name:36.36s} {name:40s} {places}  {'; '.join(doubts)}", flush=True)
            if name == "as it is":
                for side, (dice, ratio) in zip(SIDES, beside_true_boxes(image, truth, labels, inferer, bundle.network)):
                    print(f"{'':36s} {side} by a box at the true centre: Dice {dice:.3f}, volume {ratio:.3f} of its")
    print(f"\n{'':40s} cases  localizer: median, largest  labels: median, largest, beyond 12 mm, left out   s")
    for name, rows in table.items():
        seen, labelled, seconds = (np.array([row[i] for row in rows]).ravel() for i in range(3))
        kept = labelled[np.isfinite(labelled)]
        numbers = [np.nanmedian(seen), np.nanmax(seen), *((np.median(kept), kept.max()) if len(kept) else [np.nan] * 2)]
        text = "  ".join(f"{number:7.1f}" for number in numbers)
        missing = len(labelled) - len(kept)
        print(f"{name:40s} {len(rows):5d}  {text} {(kept > 12).sum():6d} {missing:6d}  {np.median(seconds):6.1f}")


if __name__ == "__main__":
    main()
