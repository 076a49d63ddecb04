"""Bundles of the shape that MONAI's model zoo gives its CT segmentations, small and with random weights."""

import json
import shutil
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.networks.nets import UNet
from torch.nn import functional as F

AFFINE = np.array([[-2.0, 0.1, 0, 20], [0.1, 2.0, 0, -25], [0, 0, 2.5, 7], [0, 0, 0, 1]])
SHAPE = (22, 24, 15)
WINDOW = (16, 16, 8)
FINAL = "model.2.1.conv.unit0.conv."  # of the UNet's state, the last layer's weight and bias


def smooth_image(seed=0, shape=SHAPE, affine=AFFINE):
    """A CT-like volume of a few soft blobs, in HU, float32; a NIfTI image that was not saved yet."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"), axis=-1)
    values = np.full(shape, -120.0)
    for _ in range(4):
        centre, width = rng.uniform(-0.5, 0.5, 3), rng.uniform(0.4, 0.7)
        values += rng.uniform(120, 260) * np.exp(-(((grid - centre) / width) ** 2).sum(-1))
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    return image


def unet_arguments(out_channels=2, in_channels=1):
    """What the config's UNet gets."""
    return {
        "spatial_dims": 3,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "channels": [4, 8],
        "strides": [2],
        "num_res_units": 1,
        "norm": "batch",
    }


@cache
def seeded_state(out_channels=2, in_channels=1, steps=60):
    """Weights of the config's UNet, the same each time: it tells brighter from darker, with smooth borders.

    Purely random weights would draw the chequers of a transposed convolution, all border and no inside.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(**unet_arguments(out_channels, in_channels))
        optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
        for _ in range(steps):
            soft = F.interpolate(torch.rand(6, in_channels, 4, 4, 2), size=WINDOW, mode="trilinear")
            classes = (soft.mean(1) * out_channels).long().clamp(max=out_channels - 1)
            optimizer.zero_grad()
            F.cross_entropy(network(soft), classes).backward()
            optimizer.step()
    return network.state_dict()


def preprocessing(key="@image_key"):
    """The zoo's way from a CT to the network, a dictionary a transform."""
    return [
        {"_target_": "LoadImaged", "keys": key},
        {"_target_": "EnsureChannelFirstd", "keys": key},
        {"_target_": "Orientationd", "keys": key, "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": key, "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
        {
            "_target_": "ScaleIntensityRanged",
            "keys": key,
            "a_min": -57,
            "a_max": 164,
            "b_min": 0,
            "b_max": 1,
            "clip": True,
        },
        {"_target_": "EnsureTyped", "keys": key},
    ]


def inverting():
    """Invertd as the zoo has it: the probabilities go back, interpolated."""
    return {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "@image_key",
        "nearest_interp": False,
        "to_tensor": True,
    }


def saving():
    """SaveImaged as the zoo has it."""
    names = ("output_dir", "output_ext", "output_dtype", "output_postfix", "separate_folder")
    return {"_target_": "SaveImaged", "keys": "pred", **{name: f"@{name}" for name in names}}


def zoo_config():
    """configs/inference.json of such a bundle."""
    softmax = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
    argmax = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    return {
        "imports": ["$import glob", "$import numpy", "$import os"],
        "bundle_root": ".",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "output_ext": ".nii.gz",
        "output_dtype": "$numpy.float32",
        "output_postfix": "trans",
        "separate_folder": True,
        "load_pretrain": True,
        "dataset_dir": "/workspace/data/Task09_Spleen",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "UNet", **unet_arguments()},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": preprocessing()},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{@image_key: i} for i in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(WINDOW),
            "sw_batch_size": 4,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": [softmax, inverting(), argmax, saving()]},
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": True,
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "initialize": [
            "$monai.utils.set_determinism(seed=123)",
            "$@checkpointloader(@evaluator) if @load_pretrain else None",
        ],
        "run": ["$@evaluator.run()"],
    }


def metadata(channel_names=("background", "spleen"), in_channels=1):
    """configs/metadata.json of such a bundle."""
    shape = list(WINDOW)
    image = {"type": "hounsfield", "format": "hounsfield", "modality": "CT", "num_channels": in_channels}
    pred = {"type": "image", "format": "segmentation", "num_channels": len(channel_names)}
    plain = {"spatial_shape": shape, "dtype": "float32", "is_patch_data": True}
    return {
        "name": "Toy spleen CT segmentation",
        "version": "0.5.3",
        "task": "Segmentation of the spleen in 3D CT",
        "network_data_format": {
            "inputs": {"image": {**image, **plain, "value_range": [0, 1], "channel_def": {"0": "image"}}},
            "outputs": {
                "pred": {
                    **pred,
                    **plain,
                    "value_range": [0, 1],
                    "channel_def": {str(i): name for i, name in enumerate(channel_names)},
                }
            },
        },
    }


def write_bundle(folder, config=None, about=None, state=None):
    """A bundle's three files.

    Args:
        folder: the bundle, made anew.
        config: of inference.json; None is :func:`zoo_config`.
        about: of metadata.json; None is :func:`metadata`.
        state: what models/model.pt holds; None is :func:`seeded_state`.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("configs", "models"):
        (folder / part).mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(config or zoo_config(), indent=4))
    (folder / "configs" / "metadata.json").write_text(json.dumps(about or metadata(), indent=4))
    torch.save(seeded_state() if state is None else state, folder / "models" / "model.pt")
    return folder


def write_images(folder, count=2):
    """Smooth volumes under ``imagesTs``, as the Decathlon has them; returns their paths."""
    (folder / "imagesTs").mkdir(parents=True)
    paths = [folder / "imagesTs" / f"spleen_{i}.nii.gz" for i in range(count)]
    for i, path in enumerate(paths):
        smooth_image(i).to_filename(path)
    return paths
