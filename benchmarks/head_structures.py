"""Dice of head_structures, and of MONAI's DynUNet trained on the same heads, on synthetic heads of held-out label maps.

Synthetic heads are drawn from the label maps that neither network was trained on (the last four of the folder): turned
by up to 25 degrees an axis, on 1.5 mm voxels, of T1's contrast, of T1's inverted, and of any. All networks get the same
box by the bundle's localizer, so that this compares networks and not ways to find a head. Beside a peer both label
every box: the bundle's least probability, below which a head is not labelled and counts as 0, was measured on ours.

    python benchmarks/head_structures.py MAPS                    # the folder of the 20 label maps
    python benchmarks/head_structures.py MAPS --ours runs/train/structures.pt --dynunet runs/train_dynunet/structures.pt
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from synthetic_localization import held_out

from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.transforms import BRAIN_STRUCTURES, RandSyntheticHead
from monai_vit3d.weights import network_from

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "head_structures"
CONTRASTS = {"T1": (1.0, 0.0), "T1 inverted": (0.0, 1.0), "any": (0.0, 0.0)}  # shares of T1's, of inverted ones
SPACING_MM, SIZE = 1.5, (160, 160, 160)
OURS, PEER = "head_structures", "DynUNet"


def synthetic_heads(maps: Path, count: int, seed: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield the contrast, the image and the classes of its voxels."""
    for labels in held_out(maps):
        for contrast, (t1, inverted) in CONTRASTS.items():
            draw = RandSyntheticHead(
                BRAIN_STRUCTURES,
                SIZE,
                SPACING_MM,
                rotate_degrees=25.0,
                shift_mm=10.0,
                t1_share=t1,
                inverted_share=inverted,
                cut_share=0.0,
            ).set_random_state(seed=seed)
            for _ in range(count):
                yield contrast, *draw(labels)


def dice(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Compute the Dice of classes 1, 2, …; NaN of one that is in neither."""
    pairs = np.bincount(truth.ravel().astype(np.int64) * classes + predicted.ravel(), minlength=classes**2)
    pairs = pairs.reshape(classes, classes).astype(float)
    with np.errstate(invalid="ignore"):
        return (2 * pairs.diagonal() / (pairs.sum(0) + pairs.sum(1)))[1:]


def dynunet(path: Path, classes: int) -> torch.nn.Module:
    """Build the peer as its configuration says, with the weights of its training."""
    parser = ConfigParser({"num_classes": classes})
    parser.update({"network_def": ConfigParser.load_config_file(BUNDLE / "configs/train_dynunet.yaml")["network_def"]})
    network = parser.get_parsed_content("network_def")
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state.get("state_dict", state))
    return network.eval()


def main() -> None:
    """Print a row for each structure, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path, help="the folder of the label maps")
    parser.add_argument("--ours", type=Path, help="weights instead of the bundle's")
    parser.add_argument("--dynunet", type=Path, help="weights of the peer, from configs/train_dynunet.yaml")
    parser.add_argument("--count", type=int, default=2, help="heads of each label map and contrast")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    bundle, classes = load_bundle(BUNDLE, "cpu", False), 1 + len(BRAIN_STRUCTURES)
    networks = {OURS: network_from(args.ours).eval() if args.ours else bundle.network}
    if args.dynunet:
        networks[PEER] = dynunet(args.dynunet, classes)
        bundle.inferer.least_probability = 0.0
    scores: dict[tuple[str, str], list[np.ndarray]] = {}
    for contrast, image, truth in synthetic_heads(args.maps, args.count, args.seed):
        for name, network in networks.items():
            with torch.no_grad():
                logits = bundle.inferer(image[None], network)
            predicted = logits[0].argmax(0).numpy()
            scores.setdefault((name, contrast), []).append(dice(predicted, truth[0].numpy(), classes))
    columns = [(name, contrast) for contrast in CONTRASTS for name in networks]
    means = {column: np.nanmean(scores[column], axis=0) for column in columns}
    heads = len(scores[columns[0]])
    print(f"Dice, {heads} heads a column")
    print(f"{'':30s}" + "".join(f"{contrast + ', ' + name:>30s}" for name, contrast in columns))
    for row, structure in enumerate(BRAIN_STRUCTURES):
        print(f"{structure:30s}" + "".join(f"{means[column][row]:30.3f}" for column in columns))
    print(f"{'mean':30s}" + "".join(f"{means[column].mean():30.3f}" for column in columns))
    for contrast in CONTRASTS if args.dynunet else ():
        differences = np.nanmean(scores[OURS, contrast], 1) - np.nanmean(scores[PEER, contrast], 1)
        error = differences.std(ddof=1) / len(differences) ** 0.5
        print(f"{contrast}: {OURS} - {PEER} = {differences.mean():+.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
