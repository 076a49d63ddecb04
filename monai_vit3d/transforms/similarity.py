"""Fit the rotation, scale and shift that take one set of points to another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Similarity:
    """A map of points: ``y = scale * rotation @ x + shift``.

    Args:
        rotation: (3, 3) without mirroring, float64.
        scale: above 0.
        shift: (3,) float64.
    """

    rotation: Tensor
    scale: float
    shift: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Map points, (..., 3)."""
        return self.scale * points @ self.rotation.T + self.shift


def turn_degrees(rotation: Tensor) -> float:
    """Measure the angle of a rotation, (3, 3), about its axis."""
    cosine = (float(rotation.trace()) - 1) / 2
    return math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))


def fit_similarity(points: Tensor, targets: Tensor, tolerance: float, rounds: int = 10) -> tuple[Similarity, Tensor]:
    """Fit a similarity in least squares, in which pairs far off count less (Umeyama, IEEE TPAMI 13:376, 1991).

    Args:
        points: (N, 3), N at least 3.
        targets: (N, 3).
        tolerance: residuals above it are weighted down by Huber's rule.
        rounds: of reweighting.

    Returns:
        the map of points to targets, and the distance that remains of each pair, (N,).

    Raises:
        ValueError: fewer than three pairs.
    """
    if len(points) < 3 or points.shape != targets.shape:
        raise ValueError(
            f"points {tuple(points.shape)} and targets {tuple(targets.shape)}; expected (N, 3) each, N at least 3."
        )
    points, targets = points.double(), targets.double()
    weights = torch.ones(len(points), dtype=torch.float64)
    for _ in range(rounds):
        similarity = _weighted_fit(points, targets, weights)
        residuals = (similarity(points) - targets).norm(dim=1)
        weights = tolerance / residuals.clamp(min=tolerance)
    return similarity, residuals


def _weighted_fit(points: Tensor, targets: Tensor, weights: Tensor) -> Similarity:
    weights = weights / weights.sum()
    centre, target_centre = weights @ points, weights @ targets
    around, target_around = points - centre, targets - target_centre
    u, singular, vt = torch.linalg.svd(target_around.T @ (weights[:, None] * around))
    signs = torch.ones(3, dtype=torch.float64)
    signs[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))  # a mirror image is no pose
    rotation = u @ torch.diag(signs) @ vt
    scale = float((singular * signs).sum() / (weights @ around.square().sum(1)))
    return Similarity(rotation, scale, target_centre - scale * rotation @ centre)
