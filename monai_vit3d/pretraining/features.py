"""Extract frozen features: pool every volume's tokens, and describe how."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.volume import Array
from monai_vit3d.metrics.checks import require_finite
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.options import require_all_tokens
from monai_vit3d.networks.wrappers import evaluation_mode

# from patch tokens (B, N, E) and prefix tokens (B, P, E) to (B, E); the class token is the first prefix token
POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda patches, prefix: patches.mean(1),
    "std": lambda patches, prefix: patches.std(1, correction=0),
    "max": lambda patches, prefix: patches.amax(1),
    "class": lambda patches, prefix: prefix[:, 0],
}


@dataclass(frozen=True)
class Features:
    """Features ``values`` ``(N, F)`` float32 and ``labels`` ``(N,)`` or ``(N, L)`` of N volumes, and a description."""

    values: Array
    labels: Array
    description: str


def extract_features(
    backbone: VisionTransformer3D,
    batches: Iterable[Any],
    pooling: str = "mean",
    taps: int | Sequence[int] | None = None,
    device: torch.device | str | None = None,
    *,
    encoder: str = "encoder",
    keys: tuple[str, str] = ("image", "label"),
) -> Features:
    """Pool the tokens of every volume, in evaluation mode and without gradients.

    The modules' modes, the parameters and torch's global random state stay as they are.

    Args:
        backbone: a network that keeps the contract of :class:`~monai_vit3d.networks.VisionTransformer3D`.
        batches: a data loader, or any iterable of dictionaries with ``keys`` or of pairs (image ``(B, C, H, W, D)``,
            label ``(B,)`` or ``(B, L)``). Its order is the order of the features: do not shuffle.
        pooling: ``"mean"``, ``"std"`` or ``"max"`` over patch tokens, ``"class"`` for the class token; several joined
            by ``+``, such as ``"class+mean"``, stand side by side.
        taps: blocks whose tokens to read, after the final norm, side by side; negative numbers count from the end.
            None is the last one.
        device: where to compute; None is the backbone's device. For another one the backbone is copied.
        encoder: name of the network in the description, such as "target encoder" for I-JEPA.
        keys: of image and label in dictionaries.

    Returns:
        F is E times the number of poolings and taps.

    Raises:
        UsageError: an unknown pooling, ``"class"`` without a class token, no batches, or ones of another form.
        ScoreError: NaN or infinite features.
        ValueError: a tap out of range, or twice; or a backbone whose background has no tokens.
    """
    require_all_tokens(backbone, "extract_features")
    names = _poolings(pooling, backbone)
    blocks = (-1,) if taps is None else (taps,) if isinstance(taps, int) else tuple(taps)
    if not blocks:
        raise UsageError("taps=(): expected one block or more; None is the last one.")
    rows, labels = [], []
    with _frozen(backbone, device) as net:
        for batch in batches:
            image, label = _image_and_label(batch, keys)
            rows.append(_pooled(net, image, names, blocks))
            labels.append(label)
    if not rows:
        raise UsageError("no batches came; expected one or more. Was the iterator used before?")
    values, all_labels = np.concatenate(rows), np.concatenate(labels)
    require_finite(values, "features")
    all_labels = all_labels[:, 0] if all_labels.shape[1:] == (1,) else all_labels
    return Features(values, all_labels, _describe(backbone, encoder, names, blocks))


@contextmanager
def _frozen(backbone: VisionTransformer3D, device: torch.device | str | None) -> Iterator[VisionTransformer3D]:
    """Yield the backbone on a device in evaluation mode, without gradients; afterwards all is as before."""
    own_device = next(backbone.parameters()).device
    is_elsewhere = device is not None and torch.empty(0, device=device).device != own_device
    net = copy.deepcopy(backbone).to(device) if is_elsewhere else backbone
    # a data loader draws a seed, which must not change a training that is probed on its way;
    # no_grad, as tensors that a network keeps from inference_mode cannot be trained with
    with evaluation_mode(net), torch.random.fork_rng(devices=[]), torch.no_grad():
        yield net


def _pooled(net: VisionTransformer3D, image: Tensor, names: Sequence[str], blocks: tuple[int, ...]) -> Array:
    """Compute the features ``(B, F)`` float32 of one batch."""
    weight = next(net.parameters())
    pairs = net.forward_intermediates(
        image.to(weight.device, weight.dtype), blocks, True, "NLC", True, return_prefix_tokens=True, stop_early=True
    )
    parts = [POOLINGS[name](patches.float(), prefix.float()) for patches, prefix in pairs for name in names]
    return torch.cat(parts, 1).cpu().numpy()


def _poolings(pooling: str, backbone: VisionTransformer3D) -> list[str]:
    names = pooling.split("+")
    unknown = [name for name in names if name not in POOLINGS]
    if unknown or len(set(names)) < len(names):
        choices = ", ".join(map(repr, POOLINGS))
        raise UsageError(f"pooling={pooling!r}: expected {choices}, each once at most, joined by '+'.")
    if "class" in names and not backbone.has_class_token:
        raise UsageError(f"pooling={pooling!r}: the encoder has no class token. Choose 'mean', 'std', 'max' or a sum.")
    return names


def _image_and_label(batch: Any, keys: tuple[str, str]) -> tuple[Tensor, Array]:
    """Take image ``(B, C, H, W, D)`` and label ``(B, ...)`` out of a batch, as plain tensor and array."""
    if isinstance(batch, Mapping):
        missing = [key for key in keys if key not in batch]
        if missing:
            raise UsageError(f"batch with the keys {', '.join(map(str, batch))}; expected {missing[0]!r}: set keys.")
        batch = [batch[key] for key in keys]
    if not isinstance(batch, (list, tuple)) or len(batch) != 2 or not isinstance(batch[0], Tensor):
        raise UsageError(f"batch of type {type(batch).__name__}; expected a dictionary or a pair (image, label).")
    image = batch[0].as_subclass(Tensor)  # MONAI's MetaTensor is slow in a network
    label = torch.as_tensor(batch[1]).as_subclass(Tensor).detach().cpu().numpy()
    if label.ndim not in (1, 2) or len(label) != len(image):
        raise UsageError(
            f"batch of images {tuple(image.shape)} and labels {label.shape}; expected ({len(image)},) or "
            f"({len(image)}, L) labels."
        )
    return image, label


def _describe(backbone: VisionTransformer3D, encoder: str, names: Sequence[str], blocks: tuple[int, ...]) -> str:
    depth = len(backbone.blocks)
    read = ", ".join(str(block % depth + 1) for block in sorted(blocks, key=lambda b: b % depth))
    norm = "no final norm" if isinstance(backbone.norm, nn.Identity) else "final norm"
    pools = " + ".join("class token" if name == "class" else f"{name} of patch tokens" for name in names)
    return (
        f"{encoder} ({type(backbone).__name__}, width {backbone.embed_dim}): {pools}, "
        f"after block {read} of {depth}, {norm}"
    )
