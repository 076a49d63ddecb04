"""How far from the truth the localizer of head_hippocampus is on synthetic heads of T1's and of any contrast.

The heads are drawn from label maps that the localizer was not trained on (the last four of the folder), turned by up to
25 degrees an axis, on 2 mm voxels: half of them with T1's contrast, half with T1's inverted or any. The truth is the
centre of each hippocampus in the drawn head; a side that is not in view does not count. The limits: a median of 4 mm,
and 95 % of the sides within 12 mm.

    python benchmarks/synthetic_localization.py MAPS                      # the folder of the 20 label maps
    python benchmarks/synthetic_localization.py MAPS --localizer runs/train/localizer.pt other.pt    # side by side
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose, LoadImage, Orientation

from monai_vit3d.bundle.config import choice_of
from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.data import NiftiReader, nifti_files
from monai_vit3d.inferers import unwrap_inferer
from monai_vit3d.inferers.head_localizer import HeadLocalizer
from monai_vit3d.transforms import HEAD_STRUCTURES, RandSyntheticHead

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "head_hippocampus"
SIDES = ("left hippocampus", "right hippocampus")
CONTRASTS = {"T1": 1.0, "inverted or any": 0.0}  # the share of T1's
SPACING_MM, SIZE = 2.0, (128, 128, 128)
LEAST_ML = 1.0  # of a hippocampus that is in view
HELD_OUT = 4  # label maps


def held_out(maps: Path) -> Iterator[torch.Tensor]:
    """Load the label maps that the head networks were not trained on."""
    load = Compose(
        [LoadImage(reader=NiftiReader(labels=True), ensure_channel_first=True), Orientation("RAS", labels=None)]
    )
    return map(load, nifti_files(maps)[-HELD_OUT:])


def heads(maps: Path, count: int, seed: int):
    """Yield the contrast, the image and the places in mm of both sides, None of a side that is not in view."""
    numbers = [1 + list(HEAD_STRUCTURES).index(side) for side in SIDES]
    for labels in held_out(maps):
        for contrast, share in CONTRASTS.items():
            draw = RandSyntheticHead(
                spatial_size=SIZE, spacing_mm=SPACING_MM, rotate_degrees=25.0, shift_mm=15.0, t1_share=share
            ).set_random_state(seed=seed)
            for _ in range(count):
                image, classes = draw(labels)
                places = []
                for number in numbers:
                    inside = (classes[0] == number).nonzero().double()
                    in_view = len(inside) * SPACING_MM**3 >= 1000 * LEAST_ML
                    places.append(inside.mean(0).numpy() * SPACING_MM if in_view else None)
                yield contrast, image, places


def distances(localizer: HeadLocalizer, image: torch.Tensor, places: list) -> list[float]:
    """Return the error in mm of each side that is in view; infinity where no head was found."""
    pose = localizer(image, [SPACING_MM] * 3)
    errors = []
    for side, place in zip(SIDES, places):
        if place is not None:
            centre = pose and pose.centres_mm.get(side, pose.fit(localizer.template[side])).numpy()
            errors.append(float("inf") if pose is None else float(np.linalg.norm(centre - place)))
    return errors


def main() -> None:
    """Print a row for each localizer and contrast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path, help="the folder of the label maps")
    parser.add_argument("--localizer", nargs="*", default=[], help="weights of further localizers than the bundle's")
    parser.add_argument("--count", type=int, default=12, help="heads of each label map and contrast")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    localizers = {}
    for path in [None, *args.localizer]:
        bundle = load_bundle(
            BUNDLE, "cpu", False, choice_of(None, {"localizer_path": str(Path(path).resolve())} if path else {})
        )
        localizers[path or "the bundle's"] = unwrap_inferer(bundle.inferer).localizer
    table: dict[tuple[str, str], list[float]] = {}
    for contrast, image, places in heads(args.maps, args.count, args.seed):
        for name, localizer in localizers.items():
            table.setdefault((contrast, name), []).extend(distances(localizer, image, places))
    print(f"{'contrast':16s} {'localizer':40s} sides  median mm  90 %   within 12 mm (limit 95 %)")
    for (contrast, name), errors in table.items():
        middle, high = np.median(errors), np.quantile(errors, 0.9, method="higher")
        share = np.mean(np.array(errors) <= 12)
        print(f"{contrast:16s} {name:40.40s} {len(errors):5d}  {middle:9.1f}  {high:5.1f}  {share:8.1%}")


if __name__ == "__main__":
    main()
