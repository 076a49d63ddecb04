"""An inferer that returns explanation maps instead of the network's output."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from monai.inferers import Inferer
from torch import Tensor, nn

from .attention import attention_maps
from .saliency import grad_cam, occlusion_map


def _rollout(model: nn.Module, volume: Tensor) -> Tensor:
    return attention_maps(model, volume).rollout


def _last_block(model: nn.Module, volume: Tensor) -> Tensor:
    return attention_maps(model, volume).last_block


def _head(model: nn.Module, volume: Tensor) -> Tensor:
    maps = attention_maps(model, volume).head
    if maps is None:
        raise ValueError("method='head': the network has no attentive head; use 'rollout' or 'last_block'.")
    return maps


EXPLAIN_METHODS: dict[str, Callable[..., Tensor]] = {
    "rollout": _rollout,
    "last_block": _last_block,
    "head": _head,
    "grad_cam": grad_cam,
    "occlusion": occlusion_map,
}


class ExplainInferer(Inferer):
    """Explain a classifier in MONAI's engines and bundles: from NIfTI to a map on its grid, by Invertd and SaveImaged.

    Args:
        method: ``"rollout"``, ``"last_block"`` or ``"head"`` (fields of :class:`AttentionMaps`), ``"grad_cam"`` or
            ``"occlusion"``.
        options: keywords of :func:`grad_cam` or :func:`occlusion_map`.

    Raises:
        ValueError: an unknown method, or an option that the method does not have.

    Example:
        >>> ExplainInferer("grad_cam", class_idx=1)(torch.zeros(1, 1, 64, 64, 64), network).shape
        torch.Size([1, 1, 64, 64, 64])
    """

    def __init__(self, method: str = "rollout", **options: Any) -> None:
        super().__init__()
        if method not in EXPLAIN_METHODS:
            raise ValueError(f"method={method!r}; expected one of {', '.join(map(repr, EXPLAIN_METHODS))}.")
        try:
            inspect.signature(EXPLAIN_METHODS[method]).bind(None, None, **options)
        except TypeError as error:
            raise ValueError(f"method={method!r}: {error}.") from None
        self.method, self.options = method, options

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Explain ``network``.

        Args:
            inputs: ``(B, C, H, W, D)``.
            network: a :class:`TokenClassifier` or a :class:`VisionTransformer3D`.
            args: not used.
            kwargs: not used.

        Returns:
            The map ``(B, 1, H, W, D)`` float32, with the metadata of ``inputs`` if it is a MetaTensor.

        Raises:
            TypeError: another network.
            ValueError: what the method refuses.
        """
        return EXPLAIN_METHODS[self.method](network, inputs, **self.options)
