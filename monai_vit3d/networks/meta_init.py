"""Build networks on the meta device, without memory, and give them the loaded tensors themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from monai_vit3d.data.errors import WeightsError

from .checkpoints import unlike_kinds

if TYPE_CHECKING:
    from .vit3d import VisionTransformer3D


def blank_network(make: Callable[..., VisionTransformer3D], **options: Any) -> VisionTransformer3D:
    """Build a network on the meta device; :func:`fill` gives it its tensors.

    A network with a buffer that is not in its state dict could not be filled: it is built with memory as usual.

    Args:
        make: :class:`VisionTransformer3D`, or what takes its keyword ``device``, too.
        options: its keywords.
    """
    network = make(**{**options, "device": "meta"})
    buffers = {name for name, _ in network.named_buffers()} - set(network.state_dict())
    return network if buffers <= {"pos_embed"} else make(**options)


def fill(
    network: nn.Module,
    state: Mapping[str, Tensor],
    device: torch.device | str,
    *,
    owned: bool,
    keep_types: bool = False,
) -> None:
    """Give a network its tensors; a blank one makes those that do not come as its ``init_weights`` does.

    Random numbers are drawn for the latter alone. A network that is not blank copies them, and keeps the rest.

    Args:
        network: any; blank, if it is on the meta device.
        state: tensors of the network's shapes, by its keys.
        device: where to.
        owned: nobody else has the tensors: they become the network's own where they are whole; else each is copied.
        keep_types: the network takes the tensors' types, each its own; else they take the network's.

    Raises:
        WeightsError: whole or complex numbers where real ones are needed, or the reverse. The network is unchanged.
    """
    unlike = unlike_kinds(network.state_dict(), state)
    if unlike:
        raise WeightsError(f"state_dict: {'; '.join(unlike[:5])}; expected weights that are not quantised.")
    if not any(value.is_meta for _, value in _tensors(network)):
        for key, value in _tensors(network) if keep_types else ():
            value.data = value.data.to(state[key].dtype if key in state else value.dtype)
        network.load_state_dict(state, strict=False)
        return
    own_state = network.state_dict()
    missing = [(key, value) for key, value in _tensors(network) if key not in state and value.is_meta]
    for key, value in missing:
        path, _, leaf = key.rpartition(".")
        empty = torch.empty_like(value, device=device)
        made = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
        setattr(network.get_submodule(path), leaf, made)
    if missing:
        network.init_weights()  # type: ignore[operator]  # what is on the meta device yet stays as it is
    seen: set[int] = set()
    network.load_state_dict(
        {
            key: _own(value, device, (value if keep_types else own_state[key]).dtype, owned, seen)
            for key, value in state.items()
        },
        strict=False,
        assign=True,
    )


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _own(value: Tensor, device: torch.device | str, dtype: torch.dtype, owned: bool, seen: set[int]) -> Tensor:
    """Return the tensor itself where nobody shares its memory, else a copy: a view would keep all of its storage."""
    tensor = value.detach().to(device, dtype)
    place = tensor.untyped_storage().data_ptr()
    ours = owned or place != value.untyped_storage().data_ptr()
    if ours and tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes and place not in seen:
        seen.add(place)
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
