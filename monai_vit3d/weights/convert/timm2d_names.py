"""State dicts as their authors published them, under the names of timm's VisionTransformer, each key accounted for."""

from __future__ import annotations

import io
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
from .unwrap import holds_known, unwrap

# signs of weights as their authors published them, which timm knows how to rename
_FOREIGN = ("mask_token", "pre_logits", "gamma_")
_FOREIGN_EVA = ("mask_token", "storage_tokens", "rope", "lm_head", ".ls1.", "mlp.w1", "_ln.", "visual.")


# of which a published state dict has one, by what timm's functions look for
_PUBLISHED = (
    *(KERNEL, "visual.class_embedding", "visual.conv1.weight", "conv1.weight", "vision_encoder.mask_token"),
    *("visual.trunk.pos_embed", "visual.trunk.patch_embed.proj.weight", "visual.pos_embed"),
    *("preprocessor.patchifier.proj.weight", "patch_embed.projection.weight"),
    "radio_model.model.patch_generator.embedder.weight",
)


def taken_out(state: Any, name: str, take: str = "teacher") -> tuple[Any, tuple[str, ...]]:
    """One network's state dict, out of what a trainer wrote around it, and what lay beside it.

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
    """A copy whose tensors know their keys; timm's function takes entries out of the dicts that it gets."""
    copy: dict[str, Any] = {}
    for key, value in state.items():
        copy[key] = _traced(value) if isinstance(value, Mapping) else value
        if isinstance(value, Tensor):
            copy[key] = value.detach().as_subclass(_Traced)
            copy[key].keys = frozenset([key])
    return copy


def under_timms_names(
    state: Mapping[str, Any], model: nn.Module, name: str
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """A state dict under timm's keys, whoever named it.

    Args:
        state: under timm's keys, or as its authors published it, in the wrappings that timm knows.
        model: the timm model that it is for.
        name: where it came from, for messages.

    Returns:
        The tensors, Eva's under the names of timm's Block; where those come from that were renamed or made of
        others; the keys that timm leaves out.

    Raises:
        WeightsError: no state dict, or one that timm cannot read.
    """
    if not isinstance(state, Mapping):
        raise WeightsError(f"{name}: a {type(state).__name__}, a state dict of tensors is needed.")
    for wrapping in ("model", "state_dict"):  # before timm does, which would resample positions to its own grid
        state = state[wrapping] if isinstance(state.get(wrapping), Mapping) else state
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
    return _as_ours(tensors, origins, model, tuple(sorted(given - used)))


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
    """Under the names of timm's VisionTransformer, which are ours."""
    if isinstance(model, Eva):
        tensors, origins = under_block_names(tensors, origins, model)
    return tensors, origins, dropped
