"""Watch the features of an encoder in training, and stop the training when they collapse."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import Tensor

from monai_vit3d.data.errors import TrainingCollapsed, UsageError
from monai_vit3d.inferers import with_spacing
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.options import require_all_tokens
from monai_vit3d.networks.wrappers import evaluation_mode
from monai_vit3d.pretraining import CollapseAlarm, CollapseReport, collapse_report

from .pretraining import image_of

logger = logging.getLogger(__name__)
MAX_POSITIONS = 32  # all tokens of all volumes may be gigabytes; the variance is a mean over positions
FIGURES = ("rankme", "feature_std", "relative_std", "cosine_to_mean", "target_variance")


class FeatureMonitor:
    """Measure an encoder's features after each epoch, by :func:`~monai_vit3d.pretraining.collapse_report`.

    A volume's feature is the mean of its normed patch tokens. Target variance is that of I-JEPA's targets, the same
    tokens normed once more without weights, at up to 32 positions, evenly spread over the grid. The figures go to
    the trainer's metrics, to the log and, with the epoch, to ``history``.

    Put it before StatsHandler and TensorBoardStatsHandler, which log the metrics, and before
    :class:`~monai_vit3d.handlers.AtomicCheckpoint`, which saves the history and the alarm if it is among its objects;
    the last checkpoint of a collapsed run is then that of the epoch before.

    Torch's random state, the encoder and its modes stay as they are. Each of several processes computes all figures,
    and so stops at the same epoch as the others: give each the same, whole loader.

    Args:
        encoder: the plain network: ``IJEPA.encoder``, ``MAE.backbone``.
        loader: dictionaries with volumes ``(B, C, H, W, D)``, two volumes or more and always the same ones.
        alarm: stops the training when the features collapse; None never stops it.
        interval: epochs from one measurement to the next.
        key: of the volumes in a batch.

    Raises:
        UsageError: an interval below 1, or a loader of fewer than two volumes.
        ValueError: an encoder whose background has no tokens.
    """

    def __init__(
        self,
        encoder: VisionTransformer3D,
        loader: Iterable[Any],
        alarm: CollapseAlarm | None = None,
        interval: int = 1,
        key: str = "image",
    ) -> None:
        if interval < 1:
            raise UsageError(f"interval={interval}; expected 1 epoch or more.")
        require_all_tokens(encoder, "FeatureMonitor")
        dataset: Any = getattr(loader, "dataset", None)
        if hasattr(dataset, "__len__"):  # fail now, not after an epoch
            _require_two(len(dataset))
        self.encoder, self.loader, self.alarm, self.interval, self.key = encoder, loader, alarm, interval, key
        self.history: list[dict[str, float]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.forget)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def forget(self, engine: Engine) -> None:
        """Remove the figures from the metrics: an epoch without a measurement has none to log."""
        for name in FIGURES:
            engine.state.metrics.pop(name, None)

    def __call__(self, engine: Engine) -> None:
        """Measure the encoder at the end of an epoch.

        Raises:
            TrainingCollapsed: the alarm's patience is at its end.
            UsageError: fewer than two volumes, volumes of several sizes, or none in the batches.
            ScoreError: NaN or infinite features.
        """
        epoch, report = engine.state.epoch, self.report()
        figures = report.as_dict()
        self.history.append({"epoch": epoch, **figures})
        logged = {name: figures[name] for name in FIGURES}
        engine.state.metrics.update(logged)
        text = ", ".join(f"{name} {value:.6g}" for name, value in logged.items())
        logger.info("epoch %d: features of %d volumes: %s", epoch, report.samples, text)
        if self.alarm is None:
            return
        try:
            self.alarm.update(report)
        except TrainingCollapsed as error:
            raise TrainingCollapsed(f"epoch {epoch}: {error}") from error

    def report(self) -> CollapseReport:
        """Measure the encoder as it is now.

        Raises:
            UsageError: fewer than two volumes, volumes of several sizes, or none in the batches.
            ScoreError: NaN or infinite features.
        """
        pooled, targets, counts = [], [], set()
        # a data loader draws a seed, which must not change the training
        with evaluation_mode(self.encoder), torch.random.fork_rng(devices=[]), torch.no_grad():
            for batch in self.loader:
                tokens = self._tokens(batch)
                counts.add(tokens.shape[1])
                pooled.append(tokens.mean(1).cpu())
                targets.append(_targets(tokens).cpu())
        _require_two(sum(map(len, pooled)))
        if len(counts) > 1:
            raise UsageError(
                f"FeatureMonitor: volumes of {min(counts)} to {max(counts)} patches; expected one size. "
                "Crop or pad the loader's volumes."
            )
        return collapse_report(torch.cat(pooled), torch.cat(targets))

    def state_dict(self) -> dict[str, Any]:
        """Return history and alarm as plain numbers."""
        alarm = None if self.alarm is None else self.alarm.state_dict()
        return {"history": [dict(row) for row in self.history], "alarm": alarm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``; an alarm without a saved state starts anew.

        Raises:
            KeyError: a part is missing.
        """
        self.history = [dict(row) for row in state["history"]]
        if self.alarm is not None and state["alarm"] is not None:
            self.alarm.load_state_dict(state["alarm"])

    def _tokens(self, batch: Any) -> Tensor:
        """Compute normed patch tokens ``(B, N, E)``."""
        weight = next(self.encoder.parameters())
        image = image_of(batch, self.key).to(weight.device, weight.dtype)
        # a plain tensor has no spacing: set_spacing must have been called, or the encoder raises an error
        with with_spacing(self.encoder, image) if isinstance(image, MetaTensor) else nullcontext():
            return self.encoder.forward_features(image)[:, self.encoder.num_prefix_tokens :].float()


def _targets(tokens: Tensor) -> Tensor:
    """Compute I-JEPA's targets ``(B, T, E)`` at some of the N positions."""
    count = tokens.shape[1]
    chosen = min(count, MAX_POSITIONS)
    positions = torch.arange(chosen, device=tokens.device) * (count - 1) // max(1, chosen - 1)
    return F.layer_norm(tokens[:, positions], tokens.shape[2:])


def _require_two(count: int) -> None:
    if count < 2:
        raise UsageError(
            f"FeatureMonitor: loader of {count} volume(s); expected two or more to measure whether their features "
            "differ. Give it more volumes."
        )
