"""Estimate the memory that a training step needs, without running one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_vit3d.layers import EMBED_LAYERS
from monai_vit3d.networks import TokenClassifier, TokenSegmenter, VisionTransformer3D, build_network
from monai_vit3d.weights.convert.building import options_checked

# copies of the weights in float32: themselves, their gradients, AdamW's two moments, the moving average
COPIES_OF_WEIGHTS = 5
# maps of all classes in float32 that Dice and cross-entropy hold together, measured
LOSS_MAPS = 20
# of the largest tensor that is kept: gradients and workspaces of the layer that is at work, measured
LARGEST_COPIES = 4
WORKSPACE = 64 * 2**20  # of the libraries, measured
_FLOAT = 4


def build_segmenter(
    options: Mapping[str, Any],
    window: Sequence[int],
    channels: int,
    classes: int,
    encoder: Mapping[str, Any] | None = None,
) -> TokenSegmenter:
    """Build the network of a plan.

    Args:
        options: the plan's ``patch_size, embed_dim, depth, num_heads, embed_layer, decoder, feature_size,
            image_levels``.
        window: its input size in voxels.
        channels: of the images.
        classes: background included.
        encoder: arguments of a pretrained encoder, as :func:`~monai_vit3d.networks.model_args` returns them.
    """
    decoder_options = {key: options[key] for key in ("feature_size", "image_levels")}
    with options_checked("the planned network"):
        backbone = _backbone(options, window, channels, encoder)
        return TokenSegmenter(backbone, options["decoder"], classes, **decoder_options)


def build_classifier(
    options: Mapping[str, Any],
    window: Sequence[int],
    channels: int,
    outputs: int,
    encoder: Mapping[str, Any] | None = None,
) -> TokenClassifier:
    """Build the network of a plan for whole volumes.

    Args:
        options: the plan's ``patch_size, embed_dim, depth, num_heads, embed_layer, head``.
        window: its input size in voxels.
        channels: of the images.
        outputs: classes or values.
        encoder: as for :func:`build_segmenter`.
    """
    task = "multi-class" if outputs > 1 else "regression"
    with options_checked("the planned network"):
        return TokenClassifier(_backbone(options, window, channels, encoder), options["head"], outputs, task)


def _backbone(
    options: Mapping[str, Any], window: Sequence[int], channels: int, encoder: Mapping[str, Any] | None
) -> VisionTransformer3D:
    if encoder:
        sizes = {"img_size": list(window), "patch_size": list(options["patch_size"]), "in_chans": channels}
        network: VisionTransformer3D = build_network({**encoder, **sizes, "num_classes": 0, "global_pool": ""})
        return network
    return VisionTransformer3D(
        list(window),
        options["patch_size"],
        in_chans=channels,
        embed_dim=options["embed_dim"],
        depth=options["depth"],
        num_heads=options["num_heads"],
        class_token=False,
        global_pool="",
        embed_layer=EMBED_LAYERS[options["embed_layer"]],
    )


def training_bytes(network: nn.Module, image_shape: Sequence[int], classes: int, amp: bool = True) -> int:
    """Estimate the peak of a training step: weights, what autograd keeps, the loss, and the largest layer at work.

    What autograd keeps is counted, not fitted: the forward pass runs on tensors without memory, and the sizes of all
    tensors that it saves for the backward pass are added. The program itself and cached data are not in it.

    Args:
        network: of the plan, on the CPU.
        image_shape: ``(B, C, H, W, D)`` of a step.
        classes: channels of a dense output; 0 of one for whole volumes.
        amp: whether it runs in bfloat16.
    """
    weights = sum(p.numel() for p in network.parameters())
    kept = _kept_for_backward(network, image_shape, amp)
    loss = LOSS_MAPS * _FLOAT * classes * image_shape[0] * math.prod(image_shape[2:])
    at_work = LARGEST_COPIES * max(kept, default=0) + WORKSPACE
    return COPIES_OF_WEIGHTS * _FLOAT * weights + sum(kept) + loss + at_work


def _kept_for_backward(network: nn.Module, image_shape: Sequence[int], amp: bool) -> list[int]:
    """Return the bytes of each tensor that the forward pass keeps, the weights aside."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept: dict[int, tuple[Any, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()  # held, so that no later one takes its number
            kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        image = torch.zeros(*image_shape)
        saved = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with saved, torch.autocast("cpu", torch.bfloat16, enabled=amp):
            network.train()(image)
    return [size for _, size in kept.values()]
