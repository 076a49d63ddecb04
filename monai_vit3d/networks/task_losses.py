"""Output layers, encoded targets, losses and probabilities of classification tasks, by the task's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_vit3d.data.task_names import resolve_task

LOSSES: dict[str, type[nn.Module]] = {
    "multi-class": nn.CrossEntropyLoss,
    "multi-label": nn.BCEWithLogitsLoss,
    "ordinal": nn.BCEWithLogitsLoss,
    "regression": nn.MSELoss,
}


class OrdinalLinear(nn.Module):
    """One score and K - 1 thresholds: cumulative logits of the classes' order (CORAL, Cao et al. 2020).

    Logit k is that of "the class is above k" (arXiv:1901.07884, eq. 4). The thresholds are sorted, so that these
    probabilities never grow with k.

    Args:
        in_features: width of the input.
        num_classes: number K of ordered classes.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, in_features))
        above = torch.arange(num_classes - 1, 0, -1) / num_classes  # of K equally frequent classes
        self.bias = nn.Parameter(torch.logit(above))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Compute cumulative logits ``(B, K - 1)`` of ``(B, in_features)``."""
        return F.linear(x, self.weight) + torch.sort(self.bias, descending=True)[0]


def output_layer(task: str, in_features: int, num_classes: int) -> nn.Module:
    """Build the last layer of a head: ``(B, in_features)`` to plain logits.

    Args:
        task: ``"multi-class"``, ``"multi-label"``, ``"ordinal"``, ``"regression"``, or MedMNIST's name for one.
        in_features: width of the input.
        num_classes: classes, labels or values; an ordinal task has one logit fewer.

    Raises:
        ValueError: an unknown task, or fewer classes than it needs.
    """
    task = resolve_task(task)
    least = 2 if task in ("multi-class", "ordinal") else 1
    if num_classes < least:
        raise ValueError(f"num_classes={num_classes}: task {task!r} needs {least} or more.")
    if task == "ordinal":
        return OrdinalLinear(in_features, num_classes)
    layer = nn.Linear(in_features, num_classes)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def encode_target(label: Any, task: str, num_classes: int) -> Tensor:
    """Encode a label as the vector that the task's loss reads.

    Args:
        label: class number (multi-class, ordinal), or the values of a multi-label or regression case ``(L,)``.
        task: the task's name.
        num_classes: number of classes.

    Returns:
        One-hot ``(K,)``, multi-hot ``(K,)``, levels "above k" ``(K - 1,)`` or values ``(L,)``, float32.

    Raises:
        ValueError: a class number that is none of the classes', or another number of labels.
    """
    task = resolve_task(task)
    if task in ("multi-label", "regression"):
        values = torch.as_tensor(label, dtype=torch.float32).reshape(-1)
        if len(values) != num_classes:
            raise ValueError(f"label {label} has {len(values)} values; expected {num_classes}.")
        return values
    numbers = torch.as_tensor(label, dtype=torch.float64).reshape(-1).tolist()  # MedMNIST's files hold arrays of one
    if len(numbers) != 1 or numbers[0] not in range(num_classes):
        raise ValueError(f"label {label}; expected a class number from 0 to {num_classes - 1}.")
    number = int(numbers[0])
    if task == "ordinal":
        return (torch.arange(num_classes - 1) < number).float()
    return F.one_hot(torch.tensor(number), num_classes).float()


def task_loss(task: str, **options: Any) -> nn.Module:
    """Build torch's loss of logits and encoded targets: cross-entropy, binary cross-entropy or squared error.

    Args:
        task: the task's name.
        options: keywords of the loss, such as ``label_smoothing`` for multi-class.

    Raises:
        ValueError: an unknown task.
    """
    return LOSSES[resolve_task(task)](**options)


class EqualDrawLoss(nn.Module):
    """Cross-entropy for training cases of which every class is drawn equally often, however many it has.

    Sampled so, a network learns probabilities of a world in which all classes are equally frequent, and calls the rare
    ones too often. Here the loss alone is of that world: it reads ``logits - log(share)``, so that the logits
    themselves are of the data's own shares (logit adjustment, Menon et al. 2021, arXiv:2007.07314, turned round).

    Args:
        labels: class number of each training case, as the data have them.
        num_classes: number K of classes.

    Example:
        >>> loss = EqualDrawLoss([0, 0, 0, 1], num_classes=2)
        >>> loss(torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[1.0, 0.0]])).exp()  # knows the shares alone
        tensor(2.)
    """

    log_shares: Tensor

    def __init__(self, labels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        counts = torch.bincount(torch.as_tensor(labels, dtype=torch.long), minlength=num_classes).double()
        log_shares = (counts.clamp(min=1) / len(labels)).log().float()  # a class without a case is never drawn
        self.register_buffer("log_shares", log_shares, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the mean over cases of ``(B, K)``, targets as for ``CrossEntropyLoss``."""
        return F.cross_entropy(logits - self.log_shares.to(logits.device), target)


def probabilities(logits: Tensor, task: str) -> Tensor:
    """Turn logits into a probability per class or label, or into the values of a regression.

    Args:
        logits: ``(..., K)``; ordinal ``(..., K - 1)``.
        task: the task's name.

    Returns:
        ``(..., K)``.

    Raises:
        ValueError: an unknown task.
    """
    task = resolve_task(task)
    if task == "multi-class":
        return logits.softmax(-1)
    if task == "multi-label":
        return logits.sigmoid()
    if task == "ordinal":
        above = F.pad(F.pad(logits.sigmoid(), (1, 0), value=1.0), (0, 1))
        # a vectorised sigmoid of equal logits can differ in the last place
        return (above[..., :-1] - above[..., 1:]).clamp(min=0)
    return logits
