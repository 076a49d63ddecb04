"""Compute learning rate, weight decay and momentum of pretraining from the optimizer's step."""

from __future__ import annotations

from math import cos, pi

from monai_vit3d.data.errors import UsageError


def learning_rate_at(
    step: int, total: int, *, warmup: int = 0, peak: float = 1e-3, start: float = 1e-4, end: float = 1e-6
) -> float:
    """Compute the learning rate: linear from ``start`` to ``peak``, then half a cosine to ``end`` (SGDR, 1608.03983).

    The defaults are I-JEPA's (arXiv:2301.08243, appendix A), there for batches of 2048 images.

    Args:
        step: optimizer steps done; from ``total`` on the rate is ``end``.
        total: steps of the whole training.
        warmup: steps of the linear part; I-JEPA has 15 epochs of it.
        peak: highest rate.
        start: rate of the first step, if there is a warm-up.
        end: rate after the last step.

    Raises:
        UsageError: a negative step, no steps, or a warm-up as long as the training.
    """
    _check_steps(step, total)
    if not 0 <= warmup < total:
        raise UsageError(f"warmup={warmup} steps of total={total}; expected 0 or more, and fewer than total.")
    if step < warmup:
        return start + (peak - start) * step / warmup
    return _cosine(min(1.0, (step - warmup) / (total - warmup)), peak, end)


def weight_decay_at(step: int, total: int, *, start: float = 0.04, end: float = 0.4) -> float:
    """Compute the weight decay: half a cosine from ``start`` to ``end`` (DINO, arXiv:2104.14294, section 3.2).

    I-JEPA has the same ends and a straight line between them.

    Args:
        step: optimizer steps done; from ``total`` on the decay is ``end``.
        total: steps of the whole training.
        start: decay of the first step.
        end: decay after the last step.

    Raises:
        UsageError: a negative step, or no steps.
    """
    _check_steps(step, total)
    return _cosine(min(1.0, step / total), start, end)


def momentum_at(step: int, total: int, start: float = 0.996, end: float = 1.0) -> float:
    """Compute the target encoder's momentum: linear from ``start`` to ``end`` (I-JEPA, arXiv:2301.08243, appendix A).

    Args:
        step: optimizer steps done; from ``total`` on the momentum is ``end``.
        total: steps of the whole training.
        start: momentum at the first step.
        end: momentum after the last step.

    Raises:
        UsageError: a negative step, or no steps.
    """
    _check_steps(step, total)
    done = min(1.0, step / total)
    return start * (1 - done) + end * done  # exact at both ends


def _cosine(done: float, start: float, end: float) -> float:
    weight = (1 + cos(pi * done)) / 2
    return start * weight + end * (1 - weight)


def _check_steps(step: int, total: int) -> None:
    if step < 0 or total < 1:
        raise UsageError(f"step={step} of total={total}; expected a step of 0 or more and a total of 1 or more.")
