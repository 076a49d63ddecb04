"""Postprocessing chains for the comparison with MONAI's own run: a table, a row a chain."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from tests.helpers import pairwise

NAMES = ("background", "grey", "white")
PLAIN = {1: "grey", 2: "white"}  # what labels of an argmax are called
BRATS = ("tumour core", "whole tumour", "enhancing tumour")
TURN = nib.eulerangles.euler2mat(*np.deg2rad([20, -10, 35]))
GRIDS = {
    "aligned": ((20, 18, 16), np.eye(3) * 2.0),
    "anisotropic": ((26, 24, 9), np.diag([1.4, 1.4, 4.0])),
    "flipped and permuted": ((12, 20, 18), np.diag([2.0, 2.0, 2.5])[:, [2, 0, 1]] * [-1, 1, -1]),
    "oblique": ((19, 20, 14), TURN @ np.diag([1.8, 2.0, 2.6])),
}


def step(name: str, keys: str | list[str] = "pred", **options: object) -> dict[str, object]:
    """A transform as a config has it."""
    return {"_target_": name, "keys": keys, **options}


def function(text: str, keys: str = "pred") -> dict[str, object]:
    """A Lambdad."""
    return step("Lambdad", keys, func=f"$lambda x: {text}")


def invert(nearest: bool, keys: str | list[str] = "pred", **options: object) -> dict[str, object]:
    """An Invertd of the preprocessing."""
    given = {"transform": "@preprocessing", "orig_keys": "image", "nearest_interp": nearest, "to_tensor": True}
    return step("Invertd", keys, **{**given, **options})


def save(keys: str = "pred") -> dict[str, object]:
    """A SaveImaged that writes what it gets."""
    options = {"output_dir": "@output_dir", "output_postfix": "seg", "output_dtype": "$np.float32", "resample": False}
    return step("SaveImaged", keys, separate_folder=False, print_log=False, **options)


SOFTMAX = step("Activationsd", softmax=True)
SIGMOID = step("Activationsd", sigmoid=True)
ARGMAX = step("AsDiscreted", argmax=True)
ONEHOT = step("AsDiscreted", argmax=True, to_onehot=3)
HALF = step("AsDiscreted", threshold=0.5)
ROUND = step("AsDiscreted", rounding="torchrounding")
NEAREST, LINEAR = invert(True), invert(False)
COPY = step("CopyItemsd", times=1, names="other")
LARGEST = step("KeepLargestConnectedComponentd", applied_labels=[1, 2])
HOLES = step("FillHolesd", applied_labels=[1, 2])
SMALL = step("RemoveSmallObjectsd", min_size=12)
CONTOUR = step("LabelToContourd")
MAPPED = step("MapLabelValued", orig_labels=[0, 1, 2], target_labels=[0, 300, 7])
WHERE = function("torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))")
BRATS_NAMES = {
    1: "tumour core without enhancing tumour",
    2: "whole tumour without tumour core, enhancing tumour",
    4: "enhancing tumour",
}
MASKS = {1: BRATS[0], 2: BRATS[1], 3: BRATS[2]}

# steps from labels to labels, and what values are called behind them
LABEL_STEPS = {
    "largest": (LARGEST, PLAIN),
    "largest of all": (step("KeepLargestConnectedComponentd", independent=False), PLAIN),
    "holes": (HOLES, PLAIN),
    "small": (SMALL, PLAIN),
    "small in mm3": (step("RemoveSmallObjectsd", min_size=90, by_measure=True), PLAIN),
    "filter": (step("LabelFilterd", applied_labels=[2]), {2: "white"}),
    "contour": (CONTOUR, {1: "grey or white"}),
    "mapped": (MAPPED, {300: "grey", 7: "white"}),
    "swapped": (step("MapLabelValued", orig_labels=[1, 2], target_labels=[2, 1]), {2: "grey", 1: "white"}),
    "arithmetic": (function("x * 200"), {200: "grey", 400: "white"}),
    "below zero": (function("3 - 2 * x"), {1: "grey", 3: "background", -1: "white"}),
    "merged": (function("(x > 0).float()"), {1: "grey or white"}),
    "median": (step("MedianSmoothd", radius=1), PLAIN),
}


@dataclass(frozen=True)
class Chain:
    """A row: steps before saving, and what is expected.

    Args:
        steps: of the postprocessing.
        names: of the label values, in stats.csv.
        pre: further steps of the preprocessing.
        channels: names of the network's output.
        like: what the written labels are of MONAI's: ``"equal"``, ``"highest"`` of its scores, ``"half"`` where its
            probabilities are 0.5 and above.
        reference: steps that MONAI runs instead, where it would write fractions of labels, or under another file name.
        warns: whether fractions are said to be made whole.
        saved: key of what is saved.
        grids: of the images.
    """

    steps: list[dict[str, object]]
    names: dict[int, str] = field(default_factory=lambda: dict(PLAIN))
    pre: list[dict[str, object]] = field(default_factory=list)
    channels: tuple[str, ...] = NAMES
    like: str = "equal"
    reference: list[dict[str, object]] | None = None
    warns: bool = False
    saved: str = "pred"
    grids: tuple[str, ...] = tuple(GRIDS)


# where such a step stands, and the names of these chains
PLACES = {
    "{}, inverted nearest": lambda one: [ARGMAX, one, NEAREST],
    "inverted nearest, {}": lambda one: [ARGMAX, NEAREST, one],
    "inverted linearly, {}": lambda one: [SOFTMAX, LINEAR, ARGMAX, one],
}


def _chains() -> dict[str, Chain]:
    """Each step in each place; each step and each place on each grid."""
    grids: dict[tuple[str, str], list[str]] = {}
    for step_name, place, grid in pairwise(LABEL_STEPS, PLACES, GRIDS):
        grids.setdefault((step_name, place), []).append(grid)
    return {
        place.format(step_name): Chain(PLACES[place](one), names, grids=tuple(grids[step_name, place]))
        for step_name, (one, names) in LABEL_STEPS.items()
        for place in PLACES
    }


CROP = [step("CenterSpatialCropd", "image", roi_size=[14, 12, 10])]
CHAINS = {
    **_chains(),
    "argmax, inverted": Chain([ARGMAX, NEAREST]),
    "softmax, nearest, argmax": Chain([SOFTMAX, NEAREST, ARGMAX]),
    "nearest, softmax, argmax": Chain([NEAREST, SOFTMAX, ARGMAX]),
    "nearest of scores, argmax, largest": Chain([NEAREST, ARGMAX, LARGEST]),
    "cropped": Chain([SOFTMAX, LINEAR, ARGMAX], pre=CROP),
    "cropped, nearest before sigmoid": Chain([NEAREST, SIGMOID, HALF], MASKS, CROP, BRATS),
    "cropped, nearest after sigmoid": Chain([SIGMOID, NEAREST, HALF], MASKS, CROP, BRATS),
    "resized, linear": Chain(
        [SOFTMAX, LINEAR, ARGMAX, SMALL],
        pre=[step("Resized", "image", spatial_size=[22, 24, 20], mode="trilinear")],
    ),
    "flipped": Chain([SOFTMAX, LINEAR, ARGMAX, HOLES], pre=[step("Flipd", "image", spatial_axis=1)]),
    "holes, largest, small, inverted": Chain([ARGMAX, HOLES, LARGEST, SMALL, NEAREST]),
    "small, inverted, largest, holes": Chain([ARGMAX, SMALL, NEAREST, LARGEST, HOLES]),
    "inverted, largest, contour": Chain([ARGMAX, NEAREST, LARGEST, CONTOUR], {1: "grey or white"}),
    "largest of scores' argmax, mapped": Chain([SOFTMAX, LINEAR, ARGMAX, LARGEST, MAPPED], {300: "grey", 7: "white"}),
    "argmax by a function, linear": Chain([SOFTMAX, LINEAR, function("x.argmax(0, keepdim=True)")]),
    "argmax by a function, nearest": Chain([function("x.argmax(0, keepdim=True)"), NEAREST]),
    "argmax by a function, float, linear before": Chain(
        [LINEAR, function("x.argmax(0, keepdim=True).float()"), LARGEST]
    ),
    "smoothed scores": Chain([SOFTMAX, LINEAR, step("GaussianSmoothd", sigma=1.0), ARGMAX]),
    "smoothed before": Chain([step("GaussianSmoothd", sigma=0.7), SOFTMAX, LINEAR, ARGMAX]),
    "softmax by a function": Chain([function("x.softmax(0)"), LINEAR, ARGMAX]),
    "one-hot": Chain([ONEHOT, NEAREST], {1: "background", 2: "grey", 3: "white"}),
    "one-hot, linear, argmax": Chain([ONEHOT, LINEAR, ARGMAX]),
    "one-hot, largest": Chain(
        [SOFTMAX, LINEAR, ONEHOT, step("KeepLargestConnectedComponentd", is_onehot=True, applied_labels=[1, 2])],
        {1: "background", 2: "grey", 3: "white"},
    ),
    "masks": Chain([SIGMOID, LINEAR, HALF], MASKS, channels=BRATS),
    "masks first": Chain([SIGMOID, HALF, NEAREST], MASKS, channels=BRATS),
    "masks first, largest, contour": Chain(
        [SIGMOID, HALF, step("KeepLargestConnectedComponentd"), CONTOUR, NEAREST], MASKS, channels=BRATS
    ),
    "masks, smooth": Chain([SIGMOID, HALF, LINEAR, HALF], MASKS, channels=BRATS),
    "BraTS": Chain([SIGMOID, LINEAR, HALF, WHERE], BRATS_NAMES, channels=BRATS),
    "BraTS, nearest": Chain([SIGMOID, HALF, WHERE, NEAREST], BRATS_NAMES, channels=BRATS),
    "BraTS, inverted between": Chain([SIGMOID, HALF, NEAREST, WHERE, LARGEST], BRATS_NAMES, channels=BRATS),
    "one mask of three": Chain([SIGMOID, LINEAR, HALF, function("x[[2]]")], {1: BRATS[2]}, channels=BRATS),
    "masks in another order": Chain(
        [SIGMOID, LINEAR, HALF, function("x[[2, 0, 1]]")], {1: BRATS[2], 2: BRATS[0], 3: BRATS[1]}, channels=BRATS
    ),
    "softmax above a limit": Chain([SOFTMAX, LINEAR, step("AsDiscreted", threshold=0.4)], dict(enumerate(NAMES, 1))),
    "rounded": Chain([ARGMAX, LINEAR, ROUND]),
    "typed": Chain([step("EnsureTyped"), ARGMAX, step("CastToTyped", dtype="$np.int16"), NEAREST, LARGEST]),
    "in numpy": Chain(
        [ARGMAX, NEAREST, step("ToNumpyd"), function("(x > 1) * 5")],
        {5: "white"},
        reference=[ARGMAX, NEAREST, function("(x > 1) * 5")],
    ),
    "on a device": Chain([step("ToDeviced", device="cpu"), SOFTMAX, LINEAR, ARGMAX]),
    "a copy": Chain(
        [COPY, ARGMAX, step("AsDiscreted", "other", argmax=True), invert(True, ["pred", "other"]), LARGEST]
    ),
    "a copy is saved": Chain(
        [ARGMAX, NEAREST, COPY, function("x * 0"), step("KeepLargestConnectedComponentd", "other")], saved="other"
    ),
    "two are inverted, linearly and not": Chain(
        [COPY, ARGMAX, invert(False, "other"), NEAREST, step("AsDiscreted", "other", argmax=True)], saved="other"
    ),
    "mean of two": Chain([COPY, step("MeanEnsembled", ["pred", "other"], output_key="pred"), LINEAR, ARGMAX]),
    "vote of two": Chain(
        [
            ARGMAX,
            COPY,
            step("RemoveSmallObjectsd", "other", min_size=12),
            step("VoteEnsembled", ["pred", "other"], output_key="pred", num_classes=3),
            NEAREST,
        ]
    ),
    "mask of a label": Chain([ARGMAX, NEAREST, step("LabelToMaskd", select_labels=[2])], {1: "white"}),
    "mask of two masks": Chain(
        [SIGMOID, LINEAR, HALF, step("LabelToMaskd", select_labels=[0, 2], merge_channels=True)],
        {1: "tumour core or enhancing tumour"},
        channels=BRATS,
    ),
    "one-hot behind": Chain([ARGMAX, NEAREST, step("AsDiscreted", to_onehot=3)], dict(enumerate(NAMES, 1))),
    "split": Chain([SIGMOID, LINEAR, HALF, step("SplitDimd", dim=0)], {1: BRATS[1]}, channels=BRATS, saved="pred_1"),
    "repeated": Chain([ARGMAX, step("RepeatChanneld", repeats=2), step("RemoveRepeatedChanneld", repeats=2), NEAREST]),
    "above a value": Chain([ARGMAX, NEAREST, step("ThresholdIntensityd", threshold=1.5)], {2: "white"}),
    "deleted": Chain([SOFTMAX, LINEAR, step("DeleteItemsd", "image"), ARGMAX, LARGEST]),
    "with a function behind": Chain([SOFTMAX, invert(False, post_func="$lambda x: x ** 2"), ARGMAX]),
    "steps behind saving": Chain([ARGMAX, NEAREST, save(), function("x * 0")]),
    "saved twice": Chain([ARGMAX, NEAREST, save(), LARGEST, save()]),
    # MONAI writes fractions
    "scores": Chain([SOFTMAX, LINEAR], like="highest", warns=True),
    "logits": Chain([LINEAR], like="highest", warns=True),
    "probabilities": Chain([SIGMOID, LINEAR], MASKS, channels=BRATS, like="half", warns=True),
    "labels, linear": Chain([ARGMAX, LINEAR], reference=[ARGMAX, NEAREST], warns=True),
    "labels, linear, largest": Chain([ARGMAX, LINEAR, LARGEST], reference=[ARGMAX, NEAREST, LARGEST], warns=True),
    "labels of a function, linear": Chain(
        [function("x.argmax(0, keepdim=True).float()"), LINEAR], reference=[ARGMAX, NEAREST], warns=True
    ),
    "mapped labels, linear": Chain(
        [ARGMAX, MAPPED, LINEAR], {300: "grey", 7: "white"}, reference=[ARGMAX, MAPPED, NEAREST], warns=True
    ),
}


def write_image(path: Path, grid: str) -> Path:
    """Soft blobs of brightness 0 to 120 with islands and holes, int16."""
    shape, axes = GRIDS[grid]
    affine = nib.affines.from_matvec(axes, [-11, 23, 7])
    rng = np.random.default_rng(len(grid))
    noise = gaussian_filter(rng.normal(size=shape), 1.6 * 2 / np.linalg.norm(axes, axis=0), mode="constant")
    values = np.clip(60 + 45 * noise / noise.std(), 0, 120)
    image = nib.Nifti1Image(values.astype(np.int16), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def write_bundle(
    root: Path,
    chain: Chain,
    steps: list[dict[str, object]] | None = None,
    pre: list[dict[str, object]] | None = None,
) -> Path:
    """A bundle of one convolution with the chain's steps, or with others, and with other preprocessing.

    Of the first names, the output is 1 above a brightness of 30 and 2 above 70; of the other, masks that lie in each
    other.
    """
    steps = steps or chain.steps
    steps = steps if save() in steps else [*steps, save(chain.saved)]
    pre = pre or [
        step("LoadImaged", "image", ensure_channel_first=True),
        step("Orientationd", "image", axcodes="RAS", labels=None),
        step("Spacingd", "image", pixdim=[1.5, 1.7, 2.0], mode="bilinear"),
        *chain.pre,
        step("EnsureTyped", "image"),
    ]
    config = {
        "imports": ["$import glob", "$import os", "$import numpy as np"],
        "bundle_root": ".",
        "dataset_dir": ".",
        "output_dir": ".",
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1},
        "network": "$@network_def.to('cpu')",
        "preprocessing": {"_target_": "Compose", "transforms": pre},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.25},
        "postprocessing": {"_target_": "Compose", "transforms": steps},
        "files": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))",
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @files]", "transform": "@preprocessing"},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "$torch.device('cpu')",
            "val_data_loader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "initialize": ["$@network.load_state_dict(torch.load(@bundle_root + '/models/model.pt'))"],
        "run": ["$@evaluator.run()"],
    }
    names = {str(i): name for i, name in enumerate(chain.channels)}
    formats = {"inputs": {"image": {"num_channels": 1}}, "outputs": {"pred": {"channel_def": names}}}
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    about = {"name": "chain", "version": "1", "network_data_format": formats}
    (root / "configs" / "metadata.json").write_text(json.dumps(about))
    nested = chain.channels == BRATS
    weight, bias = ([0.1, 0.1, 0.1], [-6.05, -3.05, -9.05]) if nested else ([0.0, 0.1, 0.2], [0.0, -3.05, -10.07])
    state = {"weight": torch.tensor(weight).reshape(3, 1, 1, 1, 1), "bias": torch.tensor(bias)}
    torch.save(state, root / "models" / "model.pt")
    return root
