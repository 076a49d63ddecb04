"""Bundles that benchmarks run: a UNETR with random weights, and any bundle's config with MONAI's own components."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D
from monai_vit3d.weights.convert import to_monai_unetr

SHIPPED = Path(__file__).resolve().parents[1] / "bundles" / "hippocampus_segmentation"
SPACING_MM, CLASSES, WINDOW = [1.5, 1.5, 2.0], 14, [96, 96, 96]
BACKBONE = {"img_size": WINDOW, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
BACKBONE |= {"class_token": False, "global_pool": ""}
UNETR = {"in_channels": 1, "out_channels": CLASSES, "img_size": WINDOW, "hidden_size": 384, "mlp_dim": 1536}
UNETR |= {"num_heads": 6, "qkv_bias": True}
# ours and MONAI's name for the same thing
PEERS = {"monai_vit3d.transforms.SeparableSpacingd": "Spacingd", "monai_vit3d.data.NiftiReader": "NibabelReader"}


def shrink() -> None:
    """Make the UNETR of this file narrow and its window small, to see whether a benchmark runs through."""
    WINDOW[:] = [32] * 3
    BACKBONE.update(embed_dim=48, num_heads=3)
    UNETR.update(hidden_size=48, mlp_dim=192, num_heads=3)


def segmenter() -> TokenSegmenter:
    """A UNETR of 12 blocks for 14 classes, in evaluation; its weights are the same every time."""
    torch.manual_seed(0)
    return TokenSegmenter(VisionTransformer3D(**BACKBONE), "unetr", CLASSES, out_indices=(3, 6, 9)).eval()


def write_unetr_bundle(root: Path, monai: bool = False) -> Path:
    """The folder of a bundle with :func:`segmenter`, or with MONAI's UNETR of the same weights."""
    network = segmenter()
    for part in ("configs", "models"):
        (root / part).mkdir(parents=True)
    torch.save((to_monai_unetr(network) if monai else network).state_dict(), root / "models" / "model.pt")
    ConfigParser.export_config_file(_config(monai), str(root / "configs" / "inference.yaml"), fmt="yaml")
    channels = {str(i): f"label {i}" for i in range(CLASSES)}
    about = {"inputs": {"image": {"num_channels": 1}}, "outputs": {"pred": {"channel_def": channels}}}
    content = {"name": "unetr", "version": "0", "network_data_format": about}
    (root / "configs" / "metadata.json").write_text(json.dumps(content))
    return root


def _config(monai: bool) -> dict[str, Any]:
    backbone = {"_target_": "monai_vit3d.networks.VisionTransformer3D", **BACKBONE}
    ours = {"_target_": "monai_vit3d.networks.TokenSegmenter", "backbone": backbone, "decoder": "unetr"}
    ours |= {"num_classes": CLASSES, "taps": [3, 6, 9]}
    back = {"transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False, "to_tensor": True}
    saving = {"output_dir": "@output_dir", "output_postfix": "seg", "resample": False, "print_log": False}
    shipped = ConfigParser.load_config_file(SHIPPED / "configs" / "inference.yaml")
    kept = ("imports", "num_workers", "device", "data_files", "dataset", "dataloader", "network", "evaluator", "run")
    kept += ("runner", "backend")
    config = {
        **{key: shipped[key] for key in kept},
        "bundle_root": ".",
        "dataset_dir": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "network_def": {"_target_": "UNETR", **UNETR} if monai else ours,
        "preprocessing": _compose(
            ("LoadImaged", "image", {"reader": {"_target_": "monai_vit3d.data.NiftiReader"}}),
            ("EnsureChannelFirstd", "image", {}),
            ("Orientationd", "image", {"axcodes": "RAS", "labels": None}),
            ("monai_vit3d.transforms.SeparableSpacingd", "image", {"pixdim": SPACING_MM, "mode": "bilinear"}),
            ("ScaleIntensityRanged", "image", {"a_min": -57, "a_max": 164, "b_min": 0.0, "b_max": 1.0, "clip": True}),
        ),
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": WINDOW, "sw_batch_size": 1, "overlap": 0.25},
        "postprocessing": _compose(
            ("Invertd", "pred", back),
            ("AsDiscreted", "pred", {"argmax": True}),
            ("SaveImaged", "pred", saving),
        ),
    }
    del config["evaluator"]["val_handlers"]
    return config


def _compose(*steps: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": [{"_target_": n, "keys": k, **options} for n, k, options in steps]}


def with_monai_parts(root: Path) -> Path:
    """Put MONAI's own components into a bundle's config."""
    path = root / "configs" / "inference.yaml"
    text = path.read_text()
    for ours, theirs in PEERS.items():
        text = text.replace(ours, theirs)
    path.write_text(text)
    return root
