"""Mixed precision that works on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor


class AutocastInferer(Inferer):
    """Run another inferer under ``torch.autocast`` on the input's own device, and hand out float32.

    MONAI's engines know autocast on CUDA only (their ``amp``); an inferer reaches training, evaluation and
    inference alike. With bfloat16 no gradient scaling is needed.

    Args:
        inferer: what runs the network; None runs it on the whole input.
        dtype: the reduced type, or its name in torch.
        enabled: False leaves everything as it is.

    Raises:
        ValueError: not a floating-point type of torch.
    """

    def __init__(
        self, inferer: Inferer | None = None, dtype: torch.dtype | str = torch.bfloat16, enabled: bool = True
    ) -> None:
        super().__init__()
        kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise ValueError(f"dtype={dtype!r}; a floating-point type such as 'bfloat16' is needed.")
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.dtype, self.enabled = kind, enabled

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``network`` over ``inputs`` ``(B, C, H, W, D)``; returns its output, if enabled a tensor in float32.

        What is no tensor is handed out as it is, such as the output of a pretraining network, whose loss is float32.
        """
        if not self.enabled:
            return self.inferer(inputs, network, *args, **kwargs)
        with torch.autocast(inputs.device.type, dtype=self.dtype):
            output = self.inferer(inputs, network, *args, **kwargs)
        return output.float() if isinstance(output, Tensor) else output
