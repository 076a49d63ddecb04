"""State dicts as their authors published them, under the names of timm's VisionTransformer, each key accounted for."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from timm.models.eva import Eva
from timm.models.eva import checkpoint_filter_fn as eva_filter_fn
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.networks.checkpoints import as_state_dict

from .shapes import KERNEL
from .timm_eva import under_block_names
from .transformers_vit import is_transformers_2d, under_timms_2d_names
from .unwrap import holds_known, unwrap

# signs of weights as their authors published them, which timm knows how to rename
_FOREIGN = ("mask_token", "pre_logits", "gamma_")
_FOREIGN_EVA = ("mask_token", "storage_tokens", "rope", "lm_head", ".ls1.", "mlp.w1", "_ln.", "visual.")


_NO_VALUES = re.compile(
    r"(mask_token|bias_mask|periods|logit_scale|logit_bias|text_projection)$|\.B\.|rope|local_cls_norm"
)
_NUMBERED = re.compile(r".*?(?:blocks|resblocks|layers?)\.\d+\.")

# of which a published state dict has one, by what timm's functions look for
_PUBLISHED = (
    *(KERNEL, "visual.class_embedding", "visual.conv1.weight", "conv1.weight", "vision_encoder.mask_token"),
    *("visual.trunk.pos_embed", "visual.trunk.patch_embed.proj.weight", "visual.pos_embed"),
    *("preprocessor.patchifier.proj.weight", "patch_embed.projection.weight"),
    "radio_model.model.patch_generator.embedder.weight",
)


def taken_out(state: Any, name: str, take: str = "teacher") -> tuple[Any, tuple[str, ...]]:
    """Unwrap one network's state dict from a trainer's checkpoint; also return the names of the other entries.

    Args:
        state: a state dict, or a checkpoint that has one, as for :func:`~monai_vit3d.weights.identify`.
        name: where it came from, for messages.
        take: which of several networks, as there.

    Returns:
        The tensors, under any names that timm can read; what has none of them comes back as it is.

    Raises:
        WeightsError: ``take`` does not single one out.
    """
    if take == "teacher" and not holds_known(state, _published):
        return state, ()
    unwrapped = unwrap(state, _published, name, take)
    return unwrapped.state, unwrapped.beside


def _published(state: Mapping[str, Tensor]) -> str:
    published = any(sign in state for sign in _PUBLISHED) or any(key.startswith("beit3.") for key in state)
    published = published or is_transformers_2d(state)
    return "timm2d" if published else ""


class _Traced(Tensor):
    """A tensor that knows the keys of the tensors that it was made from."""

    keys: frozenset[str] = frozenset()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        came = [leaf.keys for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, cls)]
        for leaf in tree_leaves(result):
            if isinstance(leaf, cls):
                leaf.keys = leaf.keys.union(*came)
        return result


def _traced(state: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a state dict so that its tensors know their keys; timm's function removes entries from what it gets."""
    copy: dict[str, Any] = {}
    for key, value in state.items():
        copy[key] = _traced(value) if isinstance(value, Mapping) else value
        if isinstance(value, Tensor):
            copy[key] = value.detach().as_subclass(_Traced)
            copy[key].keys = frozenset([key])
    return copy


def under_timms_names(
    state: Mapping[str, Any], model: nn.Module, name: str, strict: bool = True
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """Rename a state dict's keys to timm's, whichever project's they are.

    Args:
        state: under timm's keys, or as its authors published it, in the wrappings that timm knows.
        model: the timm model that it is for.
        name: where it came from, for messages.
        strict: refuse to leave out values of what the network is made of.

    Returns:
        The tensors, Eva's under the names of timm's Block; where those come from that were renamed or made of
        others; the keys that timm leaves out.

    Raises:
        WeightsError: no state dict, one that timm cannot read, or one with values for which the model has no place, as
            biases of queries and values.
    """
    if not isinstance(state, Mapping):
        raise WeightsError(f"{name}: a {type(state).__name__}; expected a state dict of tensors.")
    for wrapping in ("model", "state_dict"):  # before timm does, which would resample positions to its own grid
        state = state[wrapping] if isinstance(state.get(wrapping), Mapping) else state
    if is_transformers_2d(state):
        named, renamed, left_out = under_timms_2d_names(as_state_dict(dict(state), name))
        return _without_zero_biases(*_as_ours(named, renamed, model, left_out), model)
    if isinstance(model, Eva):
        state = _with_masked_biases(state, name, strict)
    if _under_timms(state, model):
        return _as_ours(as_state_dict(dict(state), name), {}, model, ())
    traced = _traced(state)
    given = {leaf_key for tensor in tree_leaves(traced) if isinstance(tensor, _Traced) for leaf_key in tensor.keys}
    try:
        with redirect_stdout(io.StringIO()):  # timm prints what it does not find
            made = _filtered(traced, model)
    except (KeyError, RuntimeError, AttributeError, ValueError) as error:
        raise WeightsError(f"{name}: timm cannot read these weights ({type(error).__name__}: {error}).") from error
    used: set[str] = set()
    origins = {}
    made = {key: value for key, value in made.items() if isinstance(value, Tensor)}
    for key, value in made.items():
        came: frozenset[str] = getattr(value, "keys", frozenset())
        used |= came
        if came != {key}:
            origins[key] = f"from {' and '.join(sorted(came))}" if came else "zeros"
    tensors = {key: value.as_subclass(Tensor) for key, value in made.items()}
    if strict:
        _refuse_dropped(traced, used, name)
    return _as_ours(tensors, origins, model, tuple(sorted(given - used)))


def _with_masked_biases(state: Mapping[str, Any], name: str, strict: bool) -> Mapping[str, Any]:
    """Return DINOv3's biases as they are computed, times their mask; keys have none."""
    masked = dict(state)
    for key, mask in state.items():
        bias = state.get(key.removesuffix("_mask")) if key.endswith("attn.qkv.bias_mask") else None
        if isinstance(bias, Tensor) and isinstance(mask, Tensor):
            masked[key.removesuffix("_mask")] = bias * mask.to(bias.dtype)
    for key, value in masked.items() if strict else ():
        if "storage_tokens" in state and key.endswith("attn.qkv.bias") and bool(value.chunk(3)[1].any()):
            raise WeightsError(f"{name}: {key} has values for the keys, for which timm's model has no place.")
    return masked


def _refuse_dropped(traced: Mapping[str, Any], used: set[str], name: str) -> None:
    """Refuse tensors with values that were left out, though their neighbours are the network's.

    A neighbour is of the same layer or block. The token of a mask, the mask of a bias and fixed angles compute nothing.
    """
    homes = {home for key in used for home in _homes(key)}
    leaves = {key: leaf for leaf in tree_leaves(traced) if isinstance(leaf, _Traced) for key in leaf.keys}
    dropped = [
        key
        for key, leaf in leaves.items()
        if key not in used and not _NO_VALUES.search(key) and {*_homes(key)} & homes and bool(leaf.any())
    ]
    if dropped:
        more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
        advice = "Name the timm model that has them"
        if any(key.endswith("qkv.bias") for key in dropped):
            advice += ", which ends in _qkvb for DINOv3's trained biases"
        raise WeightsError(
            f"{name}: the model has no place for {', '.join(dropped[:3])}{more}, whose values are not 0. {advice}, or "
            "pass strict=False."
        )


def _homes(key: str) -> list[str]:
    """Return the layer and the numbered block that a tensor is of, and the network of a token or table."""
    block = _NUMBERED.match(key)
    return [key.rpartition(".")[0], *([block[0]] if block else [])]


def _without_zero_biases(
    tensors: dict[str, Tensor], origins: dict[str, str], dropped: tuple[str, ...], model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """Leave out biases of queries, keys and values that are 0 where the model has none."""
    block = model.blocks[0].attn
    biased = getattr(block, "q_bias", None) is not None or any(
        getattr(getattr(block, layer, None), "bias", None) is not None for layer in ("qkv", "q_proj")
    )
    zeros = [key for key in tensors if key.endswith("attn.qkv.bias") and not biased and not tensors[key].any()]
    kept = {key: value for key, value in tensors.items() if key not in zeros}
    gone = tuple(part for key in zeros for part in origins.pop(key, key).removeprefix("from ").split(" and "))
    return kept, origins, (*dropped, *(part for part in gone if part != "zeros"))


def _under_timms(state: Mapping[str, Any], model: nn.Module) -> bool:
    if isinstance(model, Eva):  # signs of others are names of its own, or their parts
        return "patch_embed.proj.weight" in state and not any(sign in key for key in state for sign in _FOREIGN_EVA)
    return "patch_embed.proj.weight" in state and not any(sign in key for key in state for sign in _FOREIGN)


def _filtered(traced: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    if isinstance(model, Eva):
        return eva_filter_fn(traced, model)
    return checkpoint_filter_fn(traced, model, adapt_layer_scale=True)


def _as_ours(
    tensors: dict[str, Tensor], origins: dict[str, str], model: nn.Module, dropped: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """Rename to the names of timm's VisionTransformer, which are ours."""
    if isinstance(model, Eva):
        tensors, origins = under_block_names(tensors, origins, model)
    return tensors, origins, dropped
