"""An ensemble of the networks that a cross-validation trained, one a fold, whose probabilities are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, logsigmoid

from monai_vit3d.data.errors import UsageError

AVERAGES = ("softmax", "sigmoid", "mean")


class FoldEnsemble(nn.Module):
    """Run several networks over one input and average their probabilities.

    The output is logits again, whose softmax (or sigmoid) is the mean of the members' probabilities, so that all steps
    after a network are as after one of them. The members run one after another, and the memory of two outputs is
    needed, however many there are.

    Args:
        members: the networks, each with one tensor in and one tensor ``(B, C, ...)`` out.
        average: ``"softmax"`` for classes that exclude each other, ``"sigmoid"`` for those that overlap or are levels,
            ``"mean"`` for outputs that are no logits, as a regression's.

    Raises:
        UsageError: an unknown ``average``, fewer than two members, or members that differ in ``num_classes`` or input
            channels.

    Example:
        >>> ensemble = FoldEnsemble([network_from(f"models/fold_{k}.pt") for k in range(5)])  # doctest: +SKIP
    """

    def __init__(self, members: Sequence[nn.Module], average: str = "softmax") -> None:
        super().__init__()
        if average not in AVERAGES:
            raise UsageError(f"average={average!r}; expected one of {', '.join(AVERAGES)}.")
        if len(members) < 2:
            raise UsageError(f"{len(members)} network(s); two or more make an ensemble. Use the network itself.")
        self.members, self.average = nn.ModuleList(members), average
        self.num_classes = _common(members, "num_classes")
        self.in_chans = _common([getattr(member, "backbone", member) for member in members], "in_chans")
        if average == "softmax" and self.num_classes == 1:
            raise UsageError("average='softmax': of one output it is 1 whatever comes. Give 'sigmoid' or 'mean'.")

    def forward(self, x: Tensor) -> Tensor:
        """Average the outputs for ``x`` ``(B, in_chans, H, W, D)``: ``(B, C, ...)``, float32 also under autocast."""
        total = torch.empty(0)
        for i, member in enumerate(self.members):
            terms = _terms(member(x).float(), self.average)
            total = terms if i == 0 else _sum(total, terms, self.average)
        if self.average == "mean":
            return total[0] / len(self.members)
        if self.average == "sigmoid":
            return total[0] - total[1]
        return total[0] - math.log(len(self.members))


def _terms(output: Tensor, average: str) -> Tensor:
    """Return what is summed over the members: logs of the probabilities, and for sigmoids also of their complements.

    Logs, as a probability below 1e-45 is 0 in float32, and its log is lost.
    """
    if average == "softmax":
        return log_softmax(output, 1)[None]
    if average == "sigmoid":
        return torch.stack([logsigmoid(output), logsigmoid(-output)])
    return output[None]


def _sum(total: Tensor, terms: Tensor, average: str) -> Tensor:
    return total + terms if average == "mean" else torch.logaddexp(total, terms)


def _common(parts: Sequence[nn.Module], name: str) -> int | None:
    """Return an attribute that all parts have in common; None where none of them has it.

    Raises:
        UsageError: they differ.
    """
    values = [getattr(part, name, None) for part in parts]
    if len(set(values)) > 1:
        raise UsageError(f"networks with {name} {', '.join(map(str, values))}; an ensemble needs the same of all.")
    return values[0]
