"""Mixed precision that works on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor


def computes_in_bfloat16(device: torch.device | str) -> bool:
    """Return whether a device has instructions for bfloat16; a CPU without them takes up to 50 times as long.

    Args:
        device: a device, or its name in torch.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class AutocastInferer(Inferer):
    """Run another inferer under ``torch.autocast`` on the input's own device, and hand out float32.

    MONAI's engines know autocast on CUDA only (their ``amp``); an inferer reaches training, evaluation and
    inference alike. With bfloat16 no gradient scaling is needed.

    Args:
        inferer: runs the network; None runs it on the whole input.
        dtype: the reduced type, or its name in torch.
        enabled: False runs the inferer without autocast.

    Raises:
        ValueError: not a floating-point type of torch.
    """

    def __init__(
        self, inferer: Callable[..., Any] | None = None, dtype: torch.dtype | str = torch.bfloat16, enabled: bool = True
    ) -> None:
        super().__init__()
        resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
            raise ValueError(f"dtype={dtype!r}; expected a floating-point type such as 'bfloat16'.")
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.dtype, self.enabled = resolved, enabled

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``network`` over ``inputs`` ``(B, C, H, W, D)``.

        Returns:
            its output, in float32 if autocast is enabled. An output that is not a tensor is returned as it is, such as
            that of a pretraining network, whose loss is float32.
        """
        if not self.enabled:
            return self.inferer(inputs, network, *args, **kwargs)
        with torch.autocast(inputs.device.type, dtype=self.dtype):
            output = self.inferer(inputs, network, *args, **kwargs)
        return output.float() if isinstance(output, Tensor) else output
