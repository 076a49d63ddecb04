"""Check the options for loading weights of this package, before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.layers.patch_embed import to_3tuple

_MEANT = {"torch_dtype": "dtype", "map_location": "device"}
_NEVER = {"strict": "a network is loaded whole or not at all"}


def check_options(options: dict[str, Any], args: Mapping[str, Any], factory: type[nn.Module], name: str) -> None:
    """Refuse options that nobody takes or that cannot be; a ``dtype`` in words becomes torch's.

    Args:
        options: as for :meth:`VisionTransformer3D.from_pretrained`; ``dtype`` is changed in place.
        args: the architecture of the weights.
        factory: the class that is to be built.
        name: where the weights are from, for messages.

    Raises:
        UsageError: an unknown word, a ``dtype`` of no real numbers, ``num_classes`` below 0, or another ``patch_size``
            for rotary positions that count patches.
    """
    parameters = inspect.signature(factory).parameters.values()
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    unknown = [key for key in options if key not in {one.name for one in parameters}]
    for key in unknown:
        if takes_all and key not in _MEANT and key not in _NEVER:  # a subclass hands on what it does not name
            continue
        advice = f"{_MEANT[key]}= is meant" if key in _MEANT else _NEVER.get(key, f"{factory.__name__} has none such")
        raise UsageError(f"{name}: unknown option {key}; {advice}. Leave {key} out.")
    if options.get("dtype") is not None:
        options["dtype"] = _dtype(options["dtype"])
    classes = options.get("num_classes")
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, Integral) or classes < 0):
        raise UsageError(f"{name}: num_classes={classes!r}; expected a whole number from 0 (0: no head).")
    _refuse_patch(options, args, name)


def _dtype(value: Any) -> torch.dtype:
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UsageError(f"dtype={value!r}; expected a type of real numbers, as torch.float32 or 'bfloat16'.")
    return dtype


def _refuse_patch(options: Mapping[str, Any], args: Mapping[str, Any], name: str) -> None:
    """Refuse another patch size for rotary positions that count patches: smaller patches would be further apart."""
    rope = args.get("rope")
    counts = isinstance(rope, Mapping) and rope.get("unit") == "patch" and rope.get("reference") is None
    if not counts or options.get("patch_size") is None:
        return
    if list(to_3tuple(options["patch_size"], "patch_size")) != list(args["patch_size"]):
        raise UsageError(
            f"{name}: patch_size={options['patch_size']}; the rotary positions count patches of {args['patch_size']}, "
            "and would mean other places. Leave patch_size out, and resample the volumes instead."
        )
