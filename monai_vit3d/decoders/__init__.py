"""Dense decoders: patch grids in, a dense map out. One decoder a file, all with one signature, found by name.

A decoder is an ``nn.Module`` built as ``Decoder(in_chans, embed_dim, patch_size, num_classes, **options)`` and
called as ``decoder(image, maps)``: the image ``(B, C, H, W, D)`` and a list of patch grids
``(B, E, H', W', D')``, the last one the backbone's final tokens. It returns ``(B, num_classes, H, W, D)``. Its
static method ``num_maps(patch_size)`` returns how many grids it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import Parameter, signature
from typing import Any, cast

from torch import nn

from monai_vit3d.data.nearest import did_you_mean

from .dpt import DPTDecoder
from .light import LightDecoder
from .pyramid import PyramidDecoder
from .unetr import UNETRDecoder

DECODERS: dict[str, type[nn.Module]] = {
    "dpt": DPTDecoder,
    "light": LightDecoder,
    "pyramid": PyramidDecoder,
    "unetr": UNETRDecoder,
}


_COMMON = ("in_chans", "embed_dim", "patch_size", "num_classes")


def decoder_class(name: str) -> type[nn.Module]:
    """Return the decoder class registered under ``name``.

    Raises:
        ValueError: an unknown name.
    """
    if name not in DECODERS:
        raise ValueError(
            f"decoder={name!r} is unknown; expected one of {', '.join(sorted(DECODERS))}.{did_you_mean(name, DECODERS)}"
        )
    return DECODERS[name]


def decoders_for(depth: int, patch_size: Sequence[int]) -> list[str]:
    """Return the names of the decoders that read no more patch grids than a backbone has blocks.

    Args:
        depth: the backbone's blocks.
        patch_size: voxels per token along each axis; none has a decoder where all are 1.
    """
    usable = DECODERS.items() if max(patch_size) > 1 else ()
    return [name for name, build in usable if cast(Any, build).num_maps(patch_size) <= depth]


def create_decoder(
    name: str, in_chans: int, embed_dim: int, patch_size: int | Sequence[int], num_classes: int, **options: Any
) -> nn.Module:
    """Build a decoder by name.

    Args:
        name: a key of ``DECODERS``.
        in_chans: channels of the image.
        embed_dim: channels of a patch grid.
        patch_size: voxels per token along each axis.
        num_classes: channels of the dense map.
        options: the decoder's own keywords; one that is None is left at its default, or out where it has none.

    Raises:
        ValueError: an unknown name, or options that the decoder does not have.
    """
    build = decoder_class(name)
    given = {key: value for key, value in options.items() if value is not None}
    parameters = {key: value.kind for key, value in signature(build).parameters.items() if key not in _COMMON}
    unknown = [key for key in given if key not in parameters]
    if unknown and Parameter.VAR_KEYWORD not in parameters.values():
        raise ValueError(
            f"decoder={name!r} has no option {', '.join(unknown)}; it has {', '.join(parameters)}. Leave out what it "
            "does not have."
        )
    return build(in_chans, embed_dim, patch_size, num_classes, **given)


__all__ = [
    "DECODERS",
    "DPTDecoder",
    "LightDecoder",
    "PyramidDecoder",
    "UNETRDecoder",
    "create_decoder",
    "decoder_class",
    "decoders_for",
]
