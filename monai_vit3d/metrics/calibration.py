"""Calibrate probabilities by temperature scaling."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from monai_vit3d.data.errors import ScoreError

logger = logging.getLogger(__name__)
MAX_LOG_TEMPERATURE = 7.0  # either sign; no useful network needs more


def fit_temperature(logits: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Find the temperature T that minimises ``loss(logits / T, targets)`` (Guo et al. 2017, arXiv:1706.04599, 4.2).

    The loss is convex in 1 / T and so has one minimum in log T, searched by Brent's method in float64. If it has none,
    because every prediction is right or they are no better than chance, T stays 1 and a warning is logged.

    Args:
        logits: ``(N, K)``, finite.
        targets: of ``loss``, ``(N, K)`` or class numbers ``(N,)``.
        loss: convex in its logits and a mean, such as ``CrossEntropyLoss()`` or ``BCEWithLogitsLoss()``.

    Returns:
        T > 0; the loss at T is never above that at 1.

    Raises:
        ScoreError: no logits, more or fewer than targets, or NaN or infinite logits.
    """
    from scipy.optimize import minimize_scalar

    logits, targets = _check(logits, targets)
    loss = copy.deepcopy(loss).to("cpu", torch.float64) if isinstance(loss, nn.Module) else loss

    def loss_at(log_temperature: float) -> float:
        return float(loss(logits / math.exp(log_temperature), targets))

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    minimum = minimize_scalar(loss_at, bounds=bounds, method="bounded", options={"xatol": 1e-7})
    if not minimum.fun < min(map(loss_at, bounds)):
        reason = "every answer is right, or they are no better than chance"
        logger.warning("no temperature is best for these %d cases (%s): it stays 1", len(logits), reason)
        return 1.0
    return math.exp(minimum.x) if minimum.fun < loss_at(0.0) else 1.0


def _check(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Check both, and return them on the CPU, in float64 unless they are class numbers."""
    logits, targets = logits.detach().cpu().double(), targets.detach().cpu()
    if len(logits) == 0 or len(logits) != len(targets):
        raise ScoreError(f"{len(logits)} logits and {len(targets)} targets: expected as many of both, one or more.")
    bad = (~torch.isfinite(logits)).flatten(1).any(1).nonzero().flatten()
    if len(bad):
        raise ScoreError(
            f"the logits of {len(bad)} of {len(logits)} cases are NaN or infinite, case {int(bad[0])} first. Look at "
            "that case's image, and at whether the training diverged."
        )
    return logits, targets.double() if targets.is_floating_point() else targets
