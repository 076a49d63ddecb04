"""The state dicts of MONAI's Vision Transformers: what their keys and shapes show, and the same under our keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor

from monai_vit3d.data.errors import WeightsError

from .shapes import even_side, mlp_ratio

UNETR_PATCH = (16, 16, 16)
KERNEL, LINEAR = "patch_embedding.patch_embeddings.weight", "patch_embedding.patch_embeddings.1.weight"
MONAI_POSITIONS = "patch_embedding.position_embeddings"
# MONAI's key, ours; both ways
RENAMES = [
    ("patch_embedding.patch_embeddings.", "patch_embed.proj."),
    (MONAI_POSITIONS, "pos_embed"),
    ("norm.", "norm."),
    ("cls_token", "cls_token"),
    ("classification_head.", "head."),
    ("blocks.", "blocks."),
]
IN_BLOCK = [("attn.out_proj.", "attn.proj."), ("mlp.linear1.", "mlp.fc1."), ("mlp.linear2.", "mlp.fc2.")]
# made by MONAI in every block (by older versions in the patch embedding, too), and never used by these networks
STALE = re.compile(r"(vit\.)?(blocks\.\d+\.(cross_attn|norm_cross_attn)\.|patch_embedding\.cls_token$)")
# keys that only one of the networks has; without any of them it is the plain ViT
SIGNS: dict[str, tuple[str, ...]] = {
    "monai_unetr": ("encoder1.layer.conv1.conv.weight",),
    "monai_mae": ("decoder_embed.weight", "mask_tokens"),
    "monai_vit_autoenc": ("conv3d_transpose.weight",),
    "monai_vit": (),
}
# what of a network is no part of its encoder
UNETR_DECODER_KEYS = {
    "monai_vit": re.compile(r"(?!)"),
    "monai_unetr": re.compile(r"(encoder[1-4]|decoder[2-5]|out)\."),
    "monai_vit_autoenc": re.compile(r"conv3d_transpose(_1)?\."),
    "monai_mae": re.compile(r"(decoder_(embed|blocks|pred)\.|decoder_pos_embedding$|mask_tokens$)"),
}


def linear_to_kernel(weight: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Convert a linear layer's weight on MONAI's flattened patches to the convolution's kernel that computes the same.

    MONAI flattens a patch with its channels last: ``(p1 p2 p3 c)``.

    Args:
        weight: ``(E, h * w * d * C)``.
        patch: the patch ``(h, w, d)``, in voxels.

    Returns:
        ``(E, C, h, w, d)``.

    Raises:
        WeightsError: the patch does not divide the width.
    """
    if weight.dim() != 2 or weight.shape[1] % prod(patch):
        raise WeightsError(
            f"{LINEAR} is {tuple(weight.shape)}, which is no number of channels times the voxels of a patch of "
            f"{patch}. Pass patch_size= as the network was trained with."
        )
    return weight.reshape(weight.shape[0], *patch, -1).permute(0, 4, 1, 2, 3).contiguous()


def kernel_to_linear(kernel: Tensor) -> Tensor:
    """Convert a convolution's kernel to a linear layer's weight, the inverse of :func:`linear_to_kernel`."""
    return kernel.permute(0, 2, 3, 4, 1).flatten(1)


def is_of(state: Mapping[str, Tensor], family: str) -> bool:
    """Return whether these are the keys of one of MONAI's networks.

    Args:
        state: a state dict.
        family: a key of ``SIGNS``.
    """
    prefix = "vit." if family == "monai_unetr" else ""
    here = any(f"{prefix}{key}" in state for key in (KERNEL, LINEAR))
    return here and (not SIGNS[family] or any(key in state for key in SIGNS[family]))


def split_encoder(state: Mapping[str, Tensor], family: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Split keys into the encoder's, and those of the decoder and of layers that are never used.

    Keys that are neither stay with the encoder: whoever loads it refuses them.
    """
    left_out = tuple(key for key in state if STALE.match(key) or UNETR_DECODER_KEYS[family].match(key))
    return {key: value for key, value in state.items() if key not in left_out}, left_out


def encoder_options(
    state: Mapping[str, Tensor], family: str, patch: tuple[int, int, int] | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read keywords of VisionTransformer3D off shapes and keys; also return which of them were assumed.

    Args:
        state: the whole network's, under MONAI's keys.
        family: which of MONAI's networks it is.
        patch: the patch ``(h, w, d)``, where it is known from elsewhere.

    Returns:
        The keywords. ``num_heads`` is never among them. ``img_size`` is of a cubic grid, and missing where there is
        none. A linear patch embedding does not show its patch: ``patch_size`` and ``in_chans`` are missing then,
        but for UNETR and ViTAutoEnc, whose patch is known.

    Raises:
        WeightsError: a network in 2D, or not all of one.
    """
    own = {key.removeprefix("vit."): value for key, value in split_encoder(state, family)[0].items()}
    depth = len({key.split(".")[1] for key in own if re.match(r"blocks\.\d+\.norm1\.", key)})
    if not depth or "blocks.0.mlp.linear1.weight" not in own or MONAI_POSITIONS not in own:
        raise WeightsError(
            f"MONAI's layout ({family}), but not all of a network: blocks.0 or {MONAI_POSITIONS} is not there."
        )
    hidden, width = own["blocks.0.mlp.linear1.weight"].shape
    head = next((own[key] for key in own if re.fullmatch(r"classification_head\.(0\.)?weight", key)), None)
    options: dict[str, Any] = {"embed_dim": width, "depth": depth, "mlp_ratio": mlp_ratio(width, hidden)}
    options |= {
        "class_token": "cls_token" in own,
        "no_embed_class": True,
        "fc_norm": False,
        "qkv_bias": "blocks.0.attn.qkv.bias" in own,
    }
    options |= {
        "pos_embed": "learned",
        "global_pool": "cls_token" if "cls_token" in own else "",
        "num_classes": 0 if head is None else len(head),
    }
    options |= _patch_options(state, own, family, patch)
    side = even_side(own[MONAI_POSITIONS].shape[1])
    if not side or "patch_size" not in options:
        return options, ()
    return {**options, "img_size": tuple(side * p for p in options["patch_size"])}, ("img_size",)


def _patch_options(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], family: str, patch: tuple[int, int, int] | None
) -> dict[str, Any]:
    """Return ``patch_size`` and ``in_chans``, if they are known."""
    if KERNEL in own:
        kernel = own[KERNEL]
        if kernel.dim() != 5:
            raise WeightsError(f"{KERNEL} is {tuple(kernel.shape)}, of a 2D network; expected (E, C, h, w, d).")
        return {"patch_size": tuple(kernel.shape[2:]), "in_chans": kernel.shape[1]}
    if family == "monai_unetr":
        patch = UNETR_PATCH
    if family == "monai_vit_autoenc" and "conv3d_transpose.weight" in state:
        sides = [n * n for n in state["conv3d_transpose.weight"].shape[2:]]  # two of them make a patch
        patch = patch or (sides[0], sides[1], sides[-1])
    width = own[LINEAR].shape[1]
    if patch is not None and width % prod(patch) == 0:
        return {"patch_size": patch, "in_chans": width // prod(patch)}
    return {}


def to_our_keys(state: Mapping[str, Tensor], patch: tuple[int, int, int]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Rename the encoder's tensors to VisionTransformer3D's keys; also return the key that each came from.

    Args:
        state: of the encoder alone, under MONAI's keys; keys that are not known keep their names.
        patch: the patch ``(h, w, d)``, for a linear patch embedding.

    Raises:
        WeightsError: the patch does not divide the linear layer's width.
    """
    renamed_state, origins = {}, {}
    depth = len({key.split(".")[1] for key in state if ".norm1." in key and "blocks." in key})
    for key, value in state.items():
        name = _our_name(key.removeprefix("vit."), depth)
        if key.endswith(LINEAR):
            value = linear_to_kernel(value, patch)
        renamed_state[name], origins[name] = value, f"from {key}"
    return renamed_state, {name: origin for name, origin in origins.items() if origin != f"from {name}"}


def _our_name(key: str, depth: int) -> str:
    if re.match(rf"blocks\.{depth}\.(weight|bias)$", key):  # a masked autoencoder's norm is the last of its blocks
        return "norm." + key.rsplit(".", 1)[1]
    key = key.replace("patch_embeddings.1.", "patch_embeddings.", 1)
    return renamed(key, RENAMES) or key


def to_monai_key(key: str) -> str:
    """Return MONAI's name, in its class ``ViT``, of one of our keys.

    Raises:
        WeightsError: it has none.
    """
    renamed_state = renamed(key, RENAMES, forward=False)
    if not renamed_state:
        raise WeightsError(f"MONAI's ViT has no place for {key}.")
    return renamed_state


def renamed(key: str, renames: Sequence[tuple[str, str]], forward: bool = True) -> str:
    """Return a key under the other project's name; empty if it has none.

    Args:
        key: MONAI's, or ours.
        renames: beginnings of keys, MONAI's and ours; one that ends in ``"blocks."`` is a transformer's.
        forward: from MONAI's to ours; else the way back.
    """
    for pair in renames:
        old, new = pair if forward else pair[::-1]
        if key.startswith(old):
            key = new + key[len(old) :]
            for part in IN_BLOCK if new.endswith("blocks.") else []:
                key = key.replace(*(part if forward else part[::-1]))
            return key
    return ""
