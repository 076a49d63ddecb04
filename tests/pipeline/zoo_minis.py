"""MONAI's model zoo in miniature: the shapes of its inference configs, with small networks and random weights.

Written by hand after https://github.com/Project-MONAI/model-zoo (Apache-2.0): which transforms, inferers, readers and
expressions stand where. Sizes, weights and texts are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from tests.pipeline import zoo

CHECKPOINT = "$@bundle_root + '/models/model.pt'"
DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"


@dataclass(frozen=True)
class Mini:
    """A bundle of the zoo.

    Args:
        config: of configs/inference.json.
        metadata: of configs/metadata.json.
        kind: what it is, as ``monai_vit3d.bundle.kinds`` calls it.
        safe: whether it passes --safe.
        scripts: the bundle's own Python files, by name.
        keys: of the images of a case; several for a key for each modality.
        channels: files of a case.
    """

    config: dict[str, Any]
    metadata: dict[str, Any]
    kind: str = "segmentation"
    safe: bool = True
    scripts: dict[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ("image",)
    channels: int = 1

    @property
    def served(self) -> bool:
        """Whether it is for volumes and gives labels of them."""
        return self.kind.startswith("segmentation") and not self.kind.endswith("2D images")


def step(name: str, keys: Any = "image", **options: Any) -> dict[str, Any]:
    """A dictionary transform."""
    return {"_target_": name, "keys": keys, **options}


def loading(keys: Any = "image", **options: Any) -> list[dict[str, Any]]:
    """What nearly all begin with."""
    return [step("LoadImaged", keys, **options), step("EnsureChannelFirstd", keys)]


def scaled(keys: Any = "image") -> dict[str, Any]:
    """CT values to 0 to 1."""
    return step("ScaleIntensityRanged", keys, a_min=-175, a_max=250, b_min=0.0, b_max=1.0, clip=True)


def oriented(keys: Any = "image", pixdim: Any = (1.5, 1.5, 2.0)) -> list[dict[str, Any]]:
    """To RAS and to one spacing."""
    spacing = step("Spacingd", keys, pixdim=list(pixdim), mode="bilinear")
    return [step("Orientationd", keys, axcodes="RAS"), spacing]


SOFTMAX = step("Activationsd", "pred", softmax=True)
ARGMAX = step("AsDiscreted", "pred", argmax=True)
SAVE = step("SaveImaged", "pred", output_dir="@output_dir", separate_folder=False, print_log=False)


def inverting(nearest: bool = False, key: str = "image", **options: Any) -> dict[str, Any]:
    """Invertd as the zoo has it."""
    same = {"transform": "@preprocessing", "orig_keys": key, "nearest_interp": nearest, "to_tensor": True}
    return step("Invertd", "pred", **same, **options)


def config(
    network: Any, pre: list[Any], post: list[Any], inferer: Any = None, handlers: bool = True, **more: Any
) -> dict[str, Any]:
    """An inference config of the zoo's frame; the checkpoint is loaded by a handler or by ``initialize``."""
    sliding = {"_target_": "SlidingWindowInferer", "roi_size": list(zoo.WINDOW), "sw_batch_size": 4, "overlap": 0.5}
    loader = {"_target_": "CheckpointLoader", "load_path": CHECKPOINT, "load_dict": {"model": "@network"}}
    stats = {"_target_": "StatsHandler", "iteration_log": False}
    frame = zoo.zoo_config()
    first = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii*')))",
        "device": DEVICE,
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": pre},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": frame["dataloader"],
        "inferer": inferer or sliding,
        "postprocessing": {"_target_": "Compose", "transforms": [*post, SAVE]},
        "handlers": [loader, stats] if handlers else [stats],
        "evaluator": {**frame["evaluator"], "amp": False},
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "run": ["$@evaluator.run()"],
    }
    if not handlers:
        first |= {"checkpointloader": loader}
        first["initialize"] = [*first["initialize"], "$@checkpointloader(@evaluator)"]
    return copy.deepcopy({**first, **more})


def unet(out_channels: int, in_channels: int = 1, dims: int = 3) -> dict[str, Any]:
    """The zoo's favourite, small."""
    return {"_target_": "UNet", **zoo.unet_arguments(out_channels, in_channels), "spatial_dims": dims}


def segresnet(out_channels: int, in_channels: int = 1) -> dict[str, Any]:
    """A small SegResNet."""
    blocks = {"blocks_down": [1, 1], "blocks_up": [1], "init_filters": 8, "dropout_prob": 0.2}
    return {"_target_": "SegResNet", "in_channels": in_channels, "out_channels": out_channels, **blocks}


def about(
    task: str, names: list[str], channels: int = 1, shape: Any = zoo.WINDOW, channel_def: Any = None, **pred: Any
) -> dict[str, Any]:
    """metadata.json; ``pred`` changes what it says of the output."""
    content = zoo.metadata(tuple(names), channels)
    image = content["network_data_format"]["inputs"]["image"]
    image |= {"spatial_shape": list(shape), "channel_def": channel_def or {"0": "image"}}
    content["network_data_format"]["outputs"]["pred"] |= pred
    return {**content, "name": task, "task": task}


NAMES = ["background", "one", "two"]
UNEST = '''"""A network of the bundle's own."""

from torch import nn


class UNesT(nn.Sequential):
    def __init__(self, in_channels, out_channels):
        super().__init__(nn.Conv3d(in_channels, 6, 3, padding=1), nn.InstanceNorm3d(6), nn.Conv3d(6, out_channels, 1))
'''
CONCAT = '''"""A transform of the bundle's own."""

import torch


class ConcatImages:
    def __init__(self, keys_merge, keys_out):
        self.keys_merge, self.keys_out = keys_merge, keys_out

    def __call__(self, data):
        return {**data, self.keys_out: torch.cat([data[key] for key in self.keys_merge])}
'''
BRATS = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
PHASES = ["artery", "vein", "excret"]


def _spleen() -> Mini:
    pre = [*loading(), *oriented(), scaled(), step("EnsureTyped")]
    return Mini(config(unet(2), pre, [SOFTMAX, inverting(), ARGMAX], handlers=False), about("Spleen CT", NAMES[:2]))


def _whole_body() -> Mini:
    pre = [*loading("@image_key"), *oriented("@image_key", (2.5, 2.5, 2.5))]
    pre[-1]["pixdim"] = "@pixdim"
    pre += [step("NormalizeIntensityd", "@image_key", nonzero=True)]
    pre += [step("ScaleIntensityd", "@image_key", minv=-1.0, maxv=1.0)]
    window = {"_target_": "SlidingWindowInferer", "roi_size": list(zoo.WINDOW), "padding_mode": "replicate"}
    window |= {"sw_batch_size": "@displayable_configs#sw_batch_size", "overlap": "@displayable_configs#sw_overlap"}
    window |= {"mode": "gaussian", "device": DEVICE}
    more = {
        "displayable_configs": {"highres": True, "sw_overlap": 0.25, "sw_batch_size": 1},
        "imports": ["$import glob", "$import numpy", "$import os"],
        "image_key": "image",
        "pixdim": "$[2.5, 2.5, 2.5] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
    }
    post = [SOFTMAX, ARGMAX, inverting(nearest=True, key="@image_key")]
    parts = config(segresnet(105), pre, post, window, handlers=False, **more)
    return Mini(parts, about("Whole body CT", [f"structure {i}" for i in range(105)]))


def _template() -> Mini:
    pre = [*loading("@image", image_only=True), step("ScaleIntensityd", "@image")]
    post = [step("Activationsd", "@pred", softmax=True), step("AsDiscreted", "@pred", argmax=True)]
    more = {
        "image": "$monai.utils.CommonKeys.IMAGE",
        "pred": "$monai.utils.CommonKeys.PRED",
        "num_classes": 3,
        "transforms": pre,
        "preprocessing": {"_target_": "Compose", "transforms": "$@transforms"},
    }
    parts = config({**unet(0), "out_channels": "@num_classes"}, [], post, {"_target_": "SimpleInferer"}, **more)
    return Mini(parts, about("Segmentation template", NAMES))


def _brats() -> Mini:
    pre = [step("LoadImaged"), step("NormalizeIntensityd", nonzero=True, channel_wise=True)]
    post = [step("Activationsd", "pred", sigmoid=True), inverting(meta_keys="pred_meta_dict")]
    post += [step("AsDiscreted", "pred", threshold=0.5), step("Lambdad", "pred", func=BRATS)]
    channels = {str(i): name for i, name in enumerate(("T1c", "T1", "T2", "FLAIR"))}
    described = about("Brain tumour MRI", ["Tumor core", "Whole tumor", "Enhancing tumor"], 4, channel_def=channels)
    return Mini(config(segresnet(3, 4), pre, post), described, channels=4)


def _swin() -> Mini:
    network = {"_target_": "SwinUNETR", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "feature_size": 12}
    network |= {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
    pre = [*loading(reader="ITKReader"), *oriented(), scaled(), step("EnsureTyped")]
    window = {"_target_": "SlidingWindowInferer", "roi_size": [64, 64, 64], "sw_batch_size": 4, "overlap": 0.5}
    return Mini(config(network, pre, [SOFTMAX, inverting(), ARGMAX], window), about("Abdominal CT", NAMES))


def _prostate() -> Mini:
    pre = [*loading(), *oriented(pixdim=(1.5, 1.5, 1.5)), step("ScaleIntensityd", minv=0, maxv=1)]
    pre += [step("NormalizeIntensityd"), step("EnsureTyped")]
    largest = step("KeepLargestConnectedComponentd", "pred", applied_labels=[1, 2])
    more = {"imports": ["$import pandas as pd", "$import os", "$import glob"]}
    parts = config(unet(3), pre, [ARGMAX, largest, inverting(meta_key_postfix="meta_dict")], **more)
    return Mini(parts, about("Prostate MRI", NAMES))


def _ventricle() -> Mini:
    pre = [step("LoadImaged", image_only=False), step("EnsureChannelFirstd"), step("ScaleIntensityd")]
    pre += [step("EnsureTyped", device="@device")]
    slices = {"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2}
    described = about("Ventricles in short-axis MRI", [*NAMES, "three"], shape=(16, 16))
    post = [SOFTMAX, inverting(meta_key_postfix="meta_dict"), ARGMAX]
    return Mini(config(unet(4, dims=2), pre, post, slices), described, "segmentation, slice by slice")


def _renal_cect() -> Mini:
    join = {"_target_": "scripts.my_transforms.ConcatImages", "keys_merge": PHASES, "keys_out": "image"}
    pre = [*loading(PHASES), *oriented(PHASES), join, scaled(), step("EnsureTyped")]
    post = [inverting(key="artery", meta_keys="pred_meta_dict"), step("Activationsd", "pred", sigmoid=True)]
    post += [step("AsDiscreted", "pred", threshold=0.5)]
    parts = config(segresnet(3, 3), pre, post)
    described = about("Renal structures in three phases of CT", NAMES, 3)
    scripts = {"my_transforms.py": CONCAT}
    return Mini(parts, described, safe=False, scripts=scripts, keys=tuple(PHASES), channels=3)


def _unest(task: str, norm: bool) -> Mini:
    network = {"_target_": "scripts.networks.UNesT", "in_channels": 1, "out_channels": 4}
    pre = [*loading(), step("NormalizeIntensityd", nonzero="True", channel_wise="True")] if norm else []
    pre = pre or [*loading(), *oriented(pixdim=(2.0, 2.0, 2.0)), scaled()]
    parts = config(network, [*pre, step("EnsureTyped")], [SOFTMAX, inverting(meta_key_postfix="meta_dict"), ARGMAX])
    parts["handlers"][0]["strict"] = "True"
    return Mini(parts, about(task, [*NAMES, "three"]), safe=False, scripts={"networks.py": UNEST})


def _dints(task: str) -> Mini:
    space = {"_target_": "monai.networks.nets.TopologyInstance", "channel_mul": 0.25, "num_blocks": 2, "num_depths": 2}
    space |= {
        "use_downsample": True,
        "arch_code": [f"$@arch_ckpt['arch_code_{one}'].numpy()" for one in "ac"],
    }
    space |= {"device": "@device"}
    network = {"_target_": "monai.networks.nets.DiNTS", "dints_space": "@dints_space", "in_channels": 1}
    network |= {"num_classes": 3, "use_downsample": True, "node_a": "$@arch_ckpt['node_a']"}
    more = {
        "arch_ckpt_path": "$@bundle_root + '/models/search_code.pt'",
        "arch_ckpt": "$torch.load(@arch_ckpt_path, map_location=@device)",
        "dints_space": space,
    }
    pre = [*loading(), *oriented(pixdim=(2.0, 2.0, 2.0)), scaled(), step("EnsureTyped")]
    window = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.625}
    parts = config(network, pre, [SOFTMAX, inverting(meta_key_postfix="meta_dict"), ARGMAX], window, **more)
    return Mini(parts, about(task, NAMES), safe=False)


def _deepedit() -> Mini:
    guidance = {"ref_image": "@image_key", "label_names": "@label_names", "guidance": "guidance"}
    steps = [{"_target_": "AddGuidanceFromPointsDeepEditd", **guidance}, step("Resized", spatial_size=[16, 16, 16])]
    steps += [step("AddGuidanceSignalDeepEditd", guidance="guidance", number_intensity_ch=1)]
    more = {
        "image_key": "image",
        "label_names": {"spleen": 1, "background": 0},
        "preprocessing_transforms": loading("@image_key", reader="ITKReader"),
        "deepedit_transforms": steps,
        "preprocessing": {"_target_": "Compose", "transforms": "$@preprocessing_transforms + @deepedit_transforms"},
    }
    parts = config(unet(2, 3), [], [SOFTMAX, ARGMAX], {"_target_": "SimpleInferer"}, **more)
    return Mini(parts, about("Decathlon spleen segmentation", NAMES[:2], 3), "interactive segmentation")


def _vista3d() -> Mini:
    pre = "monai.apps.vista3d.transforms.VistaPreTransformd"
    inferer = {"_target_": "scripts.inferer.Vista3dInferer", "roi_size": [16, 16, 16], "overlap": 0.3}
    network = "$monai.networks.nets.vista3d132(in_channels=1)"
    parts = config(network, [*loading(), step(pre, subclass={}, labels_dict={})], [ARGMAX], inferer)
    return Mini(parts, about("Segmentation of anything in CT", NAMES), "interactive segmentation")


def _lung_nodule() -> Mini:
    detector = {"_target_": "RetinaNetDetector", "network": "@network", "anchor_generator": "@anchor_generator"}
    network = {"_target_": "RetinaNet", "spatial_dims": 3, "num_classes": 1, "num_anchors": 3}
    boxes = {"_target_": "ClipBoxToImaged", "box_keys": "box", "label_keys": "label", "box_ref_image_keys": "image"}
    inferer = {"_target_": "scripts.detection_inferer.RetinaNetInferer", "detector": "@detector"}
    parts = config(network, loading(), [boxes], inferer, detector=detector)
    return Mini(parts, about("CT lung nodule detection", [], type="object", format="dict"), "detection")


def _mednist_reg() -> Mini:
    network = {"_target_": "scripts.net.RegResNet", "image_size": [64, 64], "spatial_dims": 2}
    parts = config(network, [{"_target_": "LoadImage", "image_only": True}], [], {"_target_": "SimpleInferer"})
    described = about("Spatial transformer for hand image registration", [], 2, (64, 64), format="magnitude")
    return Mini(parts, described, "registration")


def _mednist_gan() -> Mini:
    network = {"_target_": "Generator", "latent_shape": 64, "start_shape": [64, 8, 8], "channels": [8, 1]}
    parts = config(network, [], [step("Activationsd", "pred", sigmoid=True)], {"_target_": "SimpleInferer"})
    del parts["preprocessing"]
    described = about("Generate random hand images", ["image"], shape=(64, 64), format="magnitude")
    described["network_data_format"]["inputs"] = {"latent": {"type": "tuples", "format": "latent", "num_channels": 0}}
    return Mini(parts, described, "image generation")


def _brain_synthesis() -> Mini:
    parts = {
        "imports": ["$import torch", "$from pathlib import Path"],
        "bundle_root": ".",
        "dataset": "",
        "evaluator": "",
        "inferer": "",
        "autoencoder_def": {"_target_": "monai.networks.nets.AutoencoderKL", "spatial_dims": 3},
        "network_def": "@autoencoder_def",
        "sampler": {"_target_": "scripts.sampler.Sampler"},
        "sample": "$@sampler.sampling_fn(@autoencoder_def)",
        "saver": {"_target_": "SaveImage", "output_dir": "eval"},
        "run": "$@saver(@sample[0][0])",
    }
    described = about("Brain image synthesis", ["T1w"], format="image")
    described["network_data_format"]["inputs"]["image"] |= {"type": "tabular", "format": "nii"}
    return Mini(parts, described, "image generation")


def _pathology() -> Mini:
    network = {"_target_": "TorchVisionFCModel", "model_name": "resnet18", "num_classes": 1, "pretrained": True}
    slides = {"_target_": "MaskedPatchWSIDataset", "data": [], "patch_size": [224, 224], "reader": "cuCIM"}
    pre = [step("CastToTyped", dtype="float32"), scaled(), step("ToTensord")]
    parts = config(network, pre, [], {"_target_": "SimpleInferer"}, dataset=slides)
    pred = {"type": "probability", "format": "classification"}
    return Mini(parts, about("Metastasis detection", ["metastasis"], 3, (224, 224), **pred), "whole-slide pathology")


def _endoscopic_tool() -> Mini:
    network = {"_target_": "FlexibleUNet", "in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"}
    pre = [step("LoadImaged"), step("EnsureChannelFirstd", channel_dim=-1), step("Resized", spatial_size=[64, 48])]
    post = [
        inverting(),
        step("AsDiscreted", "pred", argmax=True, to_onehot=2),
        step("Lambdad", "pred", func="$lambda x: x[1:]"),
    ]
    parts = config({**network, "spatial_dims": 2}, pre, post, {"_target_": "SimpleInferer"})
    return Mini(parts, about("Tools in endoscopic video", NAMES[:2], 3, (64, 48)), "segmentation of 2D images")


def _endoscopic_inbody() -> Mini:
    network = {"_target_": "SEResNet50", "spatial_dims": 2, "in_channels": 3, "num_classes": 2}
    post = [step("AsDiscreted", ["pred"], argmax=True, to_onehot=2)]
    parts = config(network, [*loading(), step("Resized", spatial_size=[64, 64])], post, {"_target_": "SimpleInferer"})
    pred = {"type": "probabilities", "format": "classes"}
    return Mini(parts, about("In or out of the body", NAMES[:2], 3, (64, 64), **pred), "classification of 2D images")


def _valve_landmarks() -> Mini:
    network = {"_target_": "valve_landmarks.PointRegressor", "in_shape": [1, 64, 64], "out_shape": [2, 10]}
    inferer = {"_target_": "valve_landmarks.LandmarkInferer", "spatial_dim": 2, "stack_dim": 1}
    parts = config(network, [{"_target_": "LoadImage"}], [], inferer)
    return Mini(parts, about("Valve insertion points", [], type="tuples", format="points"), "landmarks")


MINIS: dict[str, Callable[[], Mini]] = {
    "spleen_ct_segmentation": _spleen,
    "wholeBody_ct_segmentation": _whole_body,
    "segmentation_template": _template,
    "brats_mri_segmentation": _brats,
    "swin_unetr_btcv_segmentation": _swin,
    "prostate_mri_anatomy": _prostate,
    "ventricular_short_axis_3label": _ventricle,
    "renalStructures_CECT_segmentation": _renal_cect,
    "renalStructures_UNEST_segmentation": lambda: _unest("Kidneys", norm=False),
    "wholeBrainSeg_Large_UNEST_segmentation": lambda: _unest("Whole brain", norm=True),
    "multi_organ_segmentation": lambda: _dints("Multi-organ CT"),
    "pancreas_ct_dints_segmentation": lambda: _dints("Pancreas CT"),
    "spleen_deepedit_annotation": _deepedit,
    "vista3d": _vista3d,
    "lung_nodule_ct_detection": _lung_nodule,
    "mednist_reg": _mednist_reg,
    "mednist_gan": _mednist_gan,
    "brain_image_synthesis_latent_diffusion_model": _brain_synthesis,
    "pathology_tumor_detection": _pathology,
    "endoscopic_tool_segmentation": _endoscopic_tool,
    "endoscopic_inbody_classification": _endoscopic_inbody,
    "valve_landmarks": _valve_landmarks,
}


def write(folder: Path, name: str) -> tuple[Path, Mini]:
    """Write one of ``MINIS`` with random weights; returns its folder and what it is."""
    mini = MINIS[name]()
    root = zoo.write_bundle(folder / name, mini.config, mini.metadata, {})
    (root / "models" / "model.pt").unlink()
    for file, text in mini.scripts.items():
        (root / "scripts").mkdir(exist_ok=True)
        (root / "scripts" / file).write_text(text)
    if not mini.served:
        return root, mini
    if "dints_space" in mini.config:
        codes = {"arch_code_a": torch.ones(2, 4), "arch_code_c": torch.ones(2, 4), "node_a": torch.ones(3, 2)}
        torch.save(codes, root / "models" / "search_code.pt")
    torch.save(_weights(root, mini), root / "models" / "model.pt")
    return root, mini


def _weights(root: Path, mini: Mini) -> dict[str, Any]:
    from monai_vit3d.bundle.scripts import add_to_sys_path

    add_to_sys_path(root)
    parser = ConfigParser(copy.deepcopy(mini.config))
    parser["bundle_root"], parser["device"] = str(root), "$torch.device('cpu')"
    torch.manual_seed(len(mini.metadata["name"]))
    state = parser.get_parsed_content("network_def").state_dict()
    # larger than at the start of a training: labels then differ from voxel to voxel
    return {key: value * 2 if value.ndim > 1 and value.is_floating_point() else value for key, value in state.items()}
