"""Rules for the network: device, size, decoder, and the window that fits the memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monai_vit3d.data.errors import UsageError

from .plan import Evidence
from .rules_geometry import resampled_shape

GIB = 2**30
CPU_MEMORY_GB = 4.0
# the largest window in voxels: on CPUs a matter of time, on GPUs what nnU-Net takes
LARGEST_WINDOW = {"cpu": 64 * 64 * 40, "cuda": 128**3}
CPU_DEPTH = 8  # blocks: as the shipped hippocampus bundle, which trains in 20 minutes
SMALL_FROM_GB = 12.0  # of GPU memory, from which the wider network is taken


def decide_device(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Plan for a GPU where this machine has one."""
    import torch

    if torch.cuda.is_available():
        return "cuda", f"this machine has a {torch.cuda.get_device_name()}"
    return "cpu", "this machine has no GPU; set device to cuda to plan for one"


def decide_memory_gb(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take what was given; else 90 % of the GPU's, or 4 GB."""
    if evidence.memory_bytes is not None:
        return round(evidence.memory_bytes / GIB, 3), "given"
    if plan["device"] == "cuda":
        import torch

        if torch.cuda.is_available():
            return round(0.9 * torch.cuda.get_device_properties(0).total_memory / GIB, 1), "90 % of this GPU's"
        return 8.0, "GB, of most GPUs"
    return CPU_MEMORY_GB, "GB to train in, on a CPU, if nothing else is said"


def decide_preset(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take the encoder's size; else one that the device trains in a sensible time."""
    if evidence.encoder:
        return "pretrained", "the pretrained encoder's size"
    if plan["device"] == "cuda" and plan["memory_gb"] >= SMALL_FROM_GB:
        return "vit3d_small", f"a GPU with {SMALL_FROM_GB:g} GB or more"
    return "vit3d_tiny", "trains from scratch in a sensible time" if plan["device"] == "cpu" else "a small GPU"


def _size(name: str) -> Any:
    def decide(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
        from monai_vit3d.networks.presets import PRESETS

        if evidence.encoder:
            return evidence.encoder[name], "the pretrained encoder's"
        if plan["preset"] not in PRESETS:
            raise UsageError(f"preset={plan['preset']}: unknown; expected one of {', '.join(PRESETS)}.")
        value = getattr(PRESETS[plan["preset"]], name)
        if name == "depth" and plan["device"] == "cpu":
            return min(value, CPU_DEPTH), "fewer blocks on a CPU"
        return value, f"of {plan['preset']}"

    decide.__doc__ = f"Take the preset's or the pretrained encoder's {name}."
    return decide


decide_embed_dim, decide_depth, decide_num_heads = _size("embed_dim"), _size("depth"), _size("num_heads")


def decide_embed_layer(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take a convolutional stem where nothing is pretrained and the patch is made of halvings."""
    if evidence.encoder:
        from monai_vit3d.layers import EMBED_LAYERS

        names = {layer.__name__: name for name, layer in EMBED_LAYERS.items()}
        return names[evidence.encoder["embed_layer"]], "the pretrained encoder's"
    if all(math.log2(size).is_integer() for size in plan["patch_size"]):
        return "conv_stem", "learns faster from few data than one large convolution"
    return "patch", "a convolutional stem needs patches of powers of two"


def decide_decoder(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take UNETR's; of networks with fewer blocks than it reads, one that reads them."""
    from monai_vit3d.decoders import decoders_for

    usable = decoders_for(plan["depth"], plan["patch_size"])
    if usable and "unetr" not in usable:
        return usable[0], f"the one that reads no more than {plan['depth']} blocks with this patch; unetr reads more"
    return "unetr", "convolutions at all resolutions keep thin and small structures"


def decide_feature_size(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Take UNETR's 16 channels at full resolution, 32 on a large GPU."""
    if plan["preset"] == "vit3d_small" and plan["device"] == "cuda":
        return 32, "channels at full resolution"
    return 16, "channels at full resolution"


def decide_image_levels(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Let all levels of a UNETR decoder see the image."""
    if plan["decoder"] != "unetr":
        return None, "of the UNETR decoder alone"
    levels = max(1, round(math.log2(max(plan["patch_size"]))))
    return levels, "levels that see the image itself: all of the decoder's"


def decide_amp(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Use bfloat16 where the device computes in it; a CPU without instructions for it takes up to 50 times as long."""
    import torch

    from monai_vit3d.inferers import computes_in_bfloat16

    if plan["device"] == "cuda" and not torch.cuda.is_available():
        return True, "bfloat16: there is no GPU here to ask"
    if computes_in_bfloat16(plan["device"]):
        return True, "bfloat16, which the device computes in"
    return False, "float32: the device has no instructions for bfloat16"


def decide_window(evidence: Evidence, plan: Mapping[str, Any]) -> tuple[Any, str]:
    """Cover about 95 % of the median case, as far as time and memory allow; two patches or more on each axis."""
    patch, shape = plan["patch_size"], resampled_shape(evidence, plan)
    sizes = [p * max(2, round(0.95 * n / p)) for n, p in zip(shape, patch)]
    whole, least = list(sizes), [2 * p for p in patch]
    while math.prod(sizes) > LARGEST_WINDOW[plan["device"]] and sizes != least:
        sizes = _smaller(sizes, patch, shape)
    limit = plan["memory_gb"] * GIB
    needed = step_bytes(evidence, plan, sizes)
    while needed > limit:
        if sizes == least:
            raise UsageError(
                f"memory={plan['memory_gb']:g}GB: the smallest window {least} needs {needed / GIB:.2g} GB to train. "
                "Give more memory, or a smaller network (preset, embed_dim, depth, batch_size)."
            )
        aim = math.prod(sizes) * max(limit / needed, 0.5)
        while math.prod(sizes) > aim and sizes != least:
            sizes = _smaller(sizes, patch, shape)
        needed = step_bytes(evidence, plan, sizes)
    part = "nearly a whole median case" if sizes == whole else f"of a median case of {shape} voxels"
    return sizes, f"{part}; a step needs about {needed / GIB:.2g} GB"


def _smaller(sizes: list[int], patch: list[int], shape: list[int]) -> list[int]:
    """Take a patch off the axis on which the window covers most of the case."""
    axes = [axis for axis in range(3) if sizes[axis] > 2 * patch[axis]]
    axis = max(axes, key=lambda axis: (sizes[axis] / shape[axis], sizes[axis]))
    return [size - patch[axis] * (i == axis) for i, size in enumerate(sizes)]


def step_bytes(evidence: Evidence, plan: Mapping[str, Any], sizes: list[int]) -> int:
    """Estimate the memory of a training step with a window."""
    from .memory import build_segmenter, training_bytes

    channels, classes = len(evidence.fingerprint["channels"]), len(evidence.fingerprint["classes"]) + 1
    network = build_segmenter(plan, sizes, channels, classes, evidence.encoder)
    windows = plan["batch_size"] * plan["samples_per_case"]
    return training_bytes(network, (windows, channels, *sizes), classes, plan["amp"])
