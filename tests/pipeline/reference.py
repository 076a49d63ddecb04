"""Small bundles that `vit3d predict` and `monai.bundle run` both run, and the labels of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import run as run_bundle

from monai_vit3d.cli import main
from tests.pipeline import zoo

LOAD = {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True}
ORIENT = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None}
SPACING = {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 3.0], "mode": "bilinear"}
TYPED = {"_target_": "EnsureTyped", "keys": "image"}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
SAVE = {
    "_target_": "SaveImaged",
    "keys": "pred",
    "output_dir": "@output_dir",
    "output_postfix": "monai",
    "output_dtype": "uint8",
    "separate_folder": False,
    "print_log": False,
}


def invert(**options: Any) -> dict[str, Any]:
    """Invertd of labels, back by nearest neighbour."""
    return {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": True,
        "to_tensor": True,
        **options,
    }


def sharp_image(path: Path, seed: int = 0, shape=(21, 26, 18), affine=zoo.AFFINE) -> Path:
    """Write blobs and noise of -120 to 200 with no symmetry: a flipped, turned or shifted reading differs."""
    image = zoo.smooth_image(seed, shape, affine)
    noise = np.random.default_rng(seed).normal(0, 25, shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image((image.get_fdata() + noise).astype(np.float32), affine, image.header).to_filename(path)
    return path


def write_bundle(
    folder: Path,
    preprocessing: Sequence[Mapping[str, Any]] | dict[str, Any],
    postprocessing: Sequence[Mapping[str, Any]] | None = None,
    channels: int = 1,
    **entries: Any,
) -> Path:
    """A bundle of a 3 x 3 x 3 convolution with random weights, which knows left from right.

    Args:
        folder: the bundle, made anew.
        preprocessing: its transforms, or the Compose that holds them.
        postprocessing: its transforms, without saving; None is an argmax and Invertd.
        channels: of the network's input.
        entries: more of the config, or other ones.
    """
    torch.manual_seed(3)
    network = {"in_channels": channels, "out_channels": 3, "kernel_size": 3, "padding": 1}
    composed = {"_target_": "Compose", "transforms": list(preprocessing)}
    post = [ARGMAX, invert()] if postprocessing is None else postprocessing
    config = {
        **zoo.zoo_config(),
        "imports": ["$import glob"],
        "network_def": {"_target_": "torch.nn.Conv3d", **network},
        "preprocessing": preprocessing if isinstance(preprocessing, dict) else composed,
        "postprocessing": {"_target_": "Compose", "transforms": [*post, SAVE]},
        "initialize": ["$@checkpointloader(@evaluator)"],
        "evaluator::amp": False,
        **entries,
    }
    config["evaluator"] = {**config["evaluator"], "amp": config.pop("evaluator::amp")}
    state = {"weight": torch.randn(3, channels, 3, 3, 3) / 60, "bias": torch.zeros(3)}
    about = zoo.metadata(("background", "one", "two"), channels)
    return zoo.write_bundle(folder, config, about, state)


def monai_labels(bundle: Path, cases: Sequence[Mapping[str, Any]], out: Path, key: str = "image") -> list[np.ndarray]:
    """What `monai.bundle run` saves for each case, a dictionary of paths."""
    config = str(bundle / "configs" / "inference.json")
    options = {"logging_file": False, "bundle_root": str(bundle), "output_dir": str(out)}
    data = [{name: path if isinstance(path, list) else str(path) for name, path in case.items()} for case in cases]
    run_bundle(config_file=config, device="$torch.device('cpu')", dataset={**_dataset(config), "data": data}, **options)
    first = [next(iter(np.atleast_1d(case.get(key, next(iter(case.values())))))) for case in cases]
    names = [Path(path).name.removesuffix(".nii.gz") for path in first]
    return [np.asarray(nib.load(next(out.rglob(f"{name}_*.nii.gz"))).dataobj) for name in names]


def _dataset(config: str) -> dict[str, Any]:
    return dict(json.loads(Path(config).read_text())["dataset"])


def our_labels(bundle: Path, given: Path, out: Path, names: Sequence[str], *flags: str) -> list[np.ndarray]:
    """What `vit3d predict` writes for each case; by PyTorch, as test_acceleration.py is about other engines."""
    words = ["predict", str(given), "-o", str(out), "--bundle", str(bundle), "--device", "cpu", "--backend", "torch"]
    code = main([*words, *flags])
    assert code == 0
    return [np.asarray(nib.load(out / f"{name}_seg.nii.gz").dataobj) for name in names]


def several(labels: np.ndarray) -> bool:
    """Whether labels are more than one value everywhere: what a comparison needs to say anything."""
    return len(np.unique(labels)) > 1
