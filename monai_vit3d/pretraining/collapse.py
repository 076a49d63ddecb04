"""Detect the collapse of self-supervised features: measure how far they differ, and stop a training in time.

A network that predicts its own features can make the task easy by giving all volumes the same ones (complete
collapse) or ones that differ along few directions (dimensional collapse). The loss falls all the same.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from monai_vit3d.data.errors import ScoreError, TrainingCollapsed, UsageError

logger = logging.getLogger(__name__)
EPSILON = 1e-7  # of RankMe
COLLAPSE_ADVICE = (
    "Start anew, or from an earlier checkpoint where there is one, with a lower learning rate, a longer warm-up or a "
    "slower moving average of the target encoder, if it has one; look whether the volumes differ at all; or, if these "
    "figures are normal for them, widen the alarm's limits."
)


def rankme(features: Tensor) -> float:
    """Compute RankMe, a smooth rank (Garrido et al. 2023, arXiv:2210.02885).

    With the singular values s of the features, which are not centred::

        p_k = s_k / sum(s) + 1e-7,   RankMe = exp(-sum_k p_k log p_k),   k = 1 .. min(N, E)

    clipped to 1 .. ``min(N, E)``, which the 1e-7 would exceed by up to some thousandths. It grows with N until there
    are several times as many samples as directions: compare figures of equal N only.

    Args:
        features: ``(N, E)``, one row a sample.

    Returns:
        1 if all features point in one direction, or are zero; k if k directions are equally strong.

    Raises:
        UsageError: another shape.
        ScoreError: NaN or infinite features.
    """
    features = _checked(features)
    values = torch.linalg.svdvals(features)
    if not values.sum() > 0:
        return 1.0
    shares = values / values.sum() + EPSILON
    rank = math.exp(-(shares * shares.log()).sum().item())
    return min(max(rank, 1.0), float(len(values)))


def feature_std(features: Tensor) -> float:
    """Average the standard deviation of L2-normalised features over dimensions (Chen & He 2021, arXiv:2011.10566, 4.1).

    It is 0 if all point in one direction, and at most ``1 / sqrt(E)``, for isotropic features.

    Args:
        features: ``(N, E)``.

    Raises:
        UsageError: another shape.
        ScoreError: NaN or infinite features.
    """
    return _directions(_checked(features)).std(0, correction=0).mean().item()


def cosine_to_mean(features: Tensor) -> float:
    """Average the cosine of the angle between a feature and the mean feature: 1 if all point in one direction.

    Args:
        features: ``(N, E)``.

    Raises:
        UsageError: another shape.
        ScoreError: NaN or infinite features.
    """
    features = _checked(features)
    return (_directions(features) @ _directions(features.mean(0))).mean().item()


def target_variance(targets: Tensor) -> float:
    """Compute the variance over samples, averaged over all other axes.

    Args:
        targets: ``(N, E)``; or ``(B, T, E)``, the same T tokens of each of B volumes: targets that depend on nothing
            but a token's position then have variance 0, too. Layer-normed ones have at most about 1.

    Raises:
        UsageError: another shape.
        ScoreError: NaN or infinite targets.
    """
    return _checked(targets, "targets", (2, 3)).var(0, correction=0).mean().item()


@dataclass(frozen=True)
class CollapseReport:
    """Figures of N features of E dimensions; see the functions of the same names."""

    samples: int
    dimensions: int
    rankme: float
    feature_std: float
    cosine_to_mean: float
    target_variance: float | None = None

    @property
    def relative_std(self) -> float:
        """Ratio of ``feature_std`` to that of isotropic features, ``1 / sqrt(E)``."""
        return self.feature_std * math.sqrt(self.dimensions)

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name, for a log."""
        figures = {**asdict(self), "relative_std": self.relative_std}
        return {name: float(value) for name, value in figures.items() if value is not None}


def collapse_report(features: Tensor, targets: Tensor | None = None) -> CollapseReport:
    """Compute all figures, in float64 on the CPU.

    Args:
        features: ``(N, E)`` of two samples or more: pooled ones of the same volumes every epoch.
        targets: as for :func:`target_variance`.

    Raises:
        UsageError: another shape, or a single sample.
        ScoreError: NaN or infinite values.
    """
    features = _checked(features)
    if len(features) < 2:
        raise UsageError("features of 1 sample; expected two or more to measure how they differ. Give more volumes.")
    variance = None if targets is None else target_variance(targets)
    samples, dimensions = features.shape
    figures = rankme(features), feature_std(features), cosine_to_mean(features)
    return CollapseReport(samples, dimensions, *figures, variance)


class CollapseAlarm:
    """Stop a training whose features have collapsed for several epochs in a row.

    An epoch is bad if one of the figures is beyond its limit. Each bad one is logged as a warning. Give several
    processes the same reports, so that all of them stop.

    The limits are far from healthy figures. Networks fresh from their initialisation, whose features are similar for
    similar volumes, come nearest: on phantoms and with sin-cos positions, RankMe is 3.4 or more, the cosine up to
    0.998, the std share 0.06 or more. If the tokens depend a thousand times less on the volumes, these are 1.005,
    1 - 2e-8 and 1e-4.

    Args:
        patience: bad epochs in a row at which the training stops.
        rank_floor: lowest RankMe that is not bad.
        rank_share: lowest RankMe, as a share of the best so far.
        std_share: lowest ``feature_std``, as a share of isotropic features' ``1 / sqrt(E)``.
        cosine_limit: highest ``cosine_to_mean``.
        variance_share: lowest ``target_variance``, as a share of the best so far; only if the reports have it.

    Raises:
        UsageError: an argument out of its range.

    Example:
        >>> alarm = CollapseAlarm(patience=3)
        >>> alarm.update(describe(torch.randn(100, 32)))
    """

    def __init__(
        self,
        patience: int = 3,
        rank_floor: float = 1.5,
        rank_share: float = 0.1,
        std_share: float = 0.01,
        cosine_limit: float = 0.9999,
        variance_share: float = 0.01,
    ) -> None:
        shares = {"rank_share": rank_share, "std_share": std_share, "variance_share": variance_share}
        for name, value in {**shares, "cosine_limit": cosine_limit}.items():
            if not 0 <= value <= 1:
                raise UsageError(f"{name}={value}; expected a number from 0 to 1.")
        if patience < 1 or not 0 <= rank_floor < math.inf:
            raise UsageError(f"patience={patience}, rank_floor={rank_floor}; expected at least 1 and at least 0.")
        self.patience, self.rank_floor, self.cosine_limit = patience, rank_floor, cosine_limit
        self.rank_share, self.std_share, self.variance_share = rank_share, std_share, variance_share
        self.epoch = self.bad_epochs = 0
        self.best_rank = self.best_variance = 0.0

    def update(self, report: CollapseReport) -> None:
        """Compare the report of the next epoch with those before.

        Raises:
            TrainingCollapsed: this is the last bad epoch that ``patience`` allows.
        """
        self.epoch += 1
        self.best_rank = max(self.best_rank, report.rankme)
        self.best_variance = max(self.best_variance, report.target_variance or 0.0)
        faults = self._violations(report)
        self.bad_epochs = self.bad_epochs + 1 if faults else 0
        if not faults:
            return
        summary = f"report {self.epoch}, features ({report.samples}, {report.dimensions}): {'; '.join(faults)}"
        if self.bad_epochs >= self.patience:
            raise TrainingCollapsed(
                f"The features have collapsed: {self.bad_epochs} bad reports in a row. {summary}. {COLLAPSE_ADVICE}"
            )
        logger.warning("features may be collapsing (%d of %d): %s", self.bad_epochs, self.patience, summary)

    def _violations(self, report: CollapseReport) -> list[str]:
        """Describe the figures that are beyond their limits, and the limits."""
        rank, variance, cosine = report.rankme, report.target_variance, report.cosine_to_mean
        most, isotropic = min(report.samples, report.dimensions), report.dimensions**-0.5
        least = max(self.rank_floor, self.rank_share * self.best_rank)
        faults = []
        if rank < least:
            faults.append(f"RankMe {rank:.3g} of at most {most}, best {self.best_rank:.3g}; expected {least:.3g}")
        if report.feature_std < self.std_share * isotropic:
            limit = f"expected {self.std_share * isotropic:.3g}, isotropic features have {isotropic:.3g}"
            faults.append(f"feature std {report.feature_std:.3g}; {limit}")
        if cosine > self.cosine_limit:
            faults.append(f"cosine to the mean {cosine:.6g}; expected at most {self.cosine_limit:g}")
        if variance is not None and not variance > self.variance_share * self.best_variance:
            limit = f"expected more than {self.variance_share * self.best_variance:.3g}"
            faults.append(f"target variance {variance:.3g}, best {self.best_variance:.3g}; {limit}")
        return faults

    def state_dict(self) -> dict[str, Any]:
        """Return the state with which a resumed run raises the alarm at the same epoch; plain numbers."""
        names = ("epoch", "bad_epochs", "best_rank", "best_variance")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``.

        Raises:
            KeyError: a number is missing.
        """
        for name in self.state_dict():
            setattr(self, name, state[name])


def _directions(features: Tensor) -> Tensor:
    """L2-normalise along the last axis; zeros stay zeros."""
    return features / features.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(features.dtype).tiny)


def _checked(values: Tensor, name: str = "features", ranks: tuple[int, ...] = (2,)) -> Tensor:
    """Check values, and return them on the CPU in float64: float32 loses singular values below 1e-7 of the largest."""
    if values.ndim not in ranks or values.numel() == 0:
        raise UsageError(
            f"{name} of shape {tuple(values.shape)}; expected (samples, dimensions). Pool each volume's tokens."
        )
    values = values.detach().to("cpu", torch.float64)
    bad = ~torch.isfinite(values)
    if bad.any():
        raise ScoreError(
            f"{name}: {int(bad.sum())} of {bad.numel()} are NaN or infinite, first in sample {bad.nonzero()[0, 0]}. "
            "Look at that sample's image, and at whether the training diverged."
        )
    return values
