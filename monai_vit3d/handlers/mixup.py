"""Mix a batch's volumes and targets: mixup (Zhang et al. 2018, arXiv:1710.09412), by MONAI's MixUp."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import PrepareBatch, default_prepare_batch
from monai.transforms import MixUp
from monai.utils import convert_to_tensor
from torch import Tensor


class PrepareBatchMixUp(PrepareBatch):
    """Mix image and target with those of other cases of the batch; for a trainer's ``prepare_batch``.

    Args:
        alpha: of the distribution Beta(alpha, alpha) of the weights; 0 leaves the batch as it is.

    Raises:
        ValueError: a negative alpha.
    """

    def __init__(self, alpha: float) -> None:
        if alpha < 0:
            raise ValueError(f"alpha={alpha}; expected 0 (no mixup) or a positive number.")
        self.alpha = alpha

    def __call__(
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Return images ``(B, C, H, W, D)`` and targets ``(B, K)`` on the device, mixed."""
        if self.alpha == 0:
            return default_prepare_batch(batchdata, device, non_blocking, **kwargs)
        batch = default_prepare_batch(batchdata, "cpu")  # MONAI's MixUp has its weights on the CPU
        image, target = (convert_to_tensor(x, track_meta=False) for x in batch)  # and fails on MetaTensors
        mixup = MixUp(len(image), self.alpha)
        # EpochSeed seeds torch each epoch: a resumed run mixes as an uninterrupted one
        mixup.set_random_state(seed=int(torch.randint(2**31, ())))
        # MONAI's MixUp needs three axes after the batch's
        image, target = mixup(image, target[:, :, None, None])
        return default_prepare_batch((image, target[:, :, 0, 0]), device, non_blocking, **kwargs)
