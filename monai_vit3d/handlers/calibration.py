"""Calibrate a trained classifier on its validation cases."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from monai_vit3d.data.files import write_text_atomic
from monai_vit3d.data.task_names import resolve_task
from monai_vit3d.metrics import decode, expected_calibration_error, fit_temperature, negative_log_likelihood
from monai_vit3d.networks.checkpoints import load_weights
from monai_vit3d.networks.task_losses import probabilities

from .checkpoint import save_atomic

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """A temperature, and the expected calibration error and negative log-likelihood before and after it.

    Regression has no probabilities to calibrate: temperature 1, the others None, no cases read.
    """

    temperature: float = 1.0
    ece_before: float | None = None
    ece_after: float | None = None
    nll_before: float | None = None
    nll_after: float | None = None
    cases: int = 0


def calibrate(
    network: Any,
    dataloader: Iterable[dict[str, Any]],
    loss: Callable[[Tensor, Tensor], Tensor],
    device: torch.device | str,
    source: str | Path,
    target: str | Path,
    task: str = "multi-class",
    report: str | Path | None = None,
    inferer: Inferer | None = None,
) -> Calibration:
    """Fit a temperature to the best weights of a run and fold it into their last layer (arXiv:1706.04599).

    The predicted classes stay the same. Run it in one process.

    Args:
        network: of these weights, with a method ``scale_logits(factor)``. It ends calibrated, in evaluation mode.
        dataloader: the validation cases; batches with ``"image"`` and ``"label"``, the target vectors.
        loss: of logits and target vectors, to minimise.
        device: where to run.
        source: the weights to calibrate, a state dict.
        target: where the calibrated state dict goes; may be ``source``.
        task: ``"multi-class"``, ``"multi-label"``, ``"ordinal"``, ``"regression"``, or MedMNIST's name for one.
        report: a JSON file for the numbers; None writes none.
        inferer: runs the network; None runs it on the whole image.

    Raises:
        WeightsError: ``source`` cannot be read or is of another network.
        ScoreError: no cases, or NaN or infinite logits; nothing is written then.
        TypeError: a network without ``scale_logits``.
    """
    task = resolve_task(task)
    if task != "regression" and not hasattr(network, "scale_logits"):
        raise TypeError(f"{type(network).__name__} has no scale_logits(factor): use a TokenClassifier.")
    load_weights(network, source)
    result = Calibration()
    if task != "regression":
        logits, targets = _run(network.to(device).eval(), dataloader, device, inferer or SimpleInferer())
        result = _measure(logits, targets, fit_temperature(logits, targets, loss), task)
        network.scale_logits(1 / result.temperature)
    save_atomic(network.state_dict(), target)
    if report is not None:
        write_text_atomic(json.dumps(asdict(result), indent=2) + "\n", report)
    logger.info("calibrated %s into %s: %s", source, target, result)
    return result


@torch.no_grad()
def _run(
    network: nn.Module, dataloader: Iterable[dict[str, Any]], device: torch.device | str, inferer: Inferer
) -> tuple[Tensor, Tensor]:
    """Compute the logits of all cases, and collect their targets; on the CPU, in float64."""
    logits, targets = [torch.empty(0)], [torch.empty(0)]  # torch.cat skips these
    for batch in dataloader:
        logits.append(_plain(inferer(batch["image"].to(device), network)))
        targets.append(_plain(batch["label"]))
    return torch.cat(logits), torch.cat(targets)


def _plain(tensor: Tensor) -> Tensor:
    return convert_to_tensor(tensor, track_meta=False).cpu().double()


def _measure(logits: Tensor, targets: Tensor, temperature: float, task: str) -> Calibration:
    before, after = probabilities(logits, task), probabilities(logits / temperature, task)
    labels = decode(targets, task)
    return Calibration(
        temperature,
        expected_calibration_error(before, labels, task),
        expected_calibration_error(after, labels, task),
        negative_log_likelihood(before, labels, task),
        negative_log_likelihood(after, labels, task),
        len(logits),
    )
