"""Average a network over flips of its input (test-time augmentation), and measure how far the flips disagree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.nn import functional as F

from monai_vit3d.data.errors import UsageError

ACTIVATIONS = ("softmax", "sigmoid")


class FlipEnsemble(nn.Module):
    """Average a network's outputs over all flips of its input, each flipped back.

    This is the mirroring of nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z): logits are averaged, and
    window by window if a sliding-window inferer runs it. With k axes the network runs 2^k times.

    Args:
        network: ``(B, C, H, W, D)`` to a map ``(B, K, H', W', D')``, or to vectors ``(B, K)``, which are not flipped;
            a module or any other callable.
        axes: spatial axes that are flipped, 0 to 2. Leave out the left-right axis if classes differ by side.

    Raises:
        UsageError: an axis that comes twice or is negative.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], axes: Sequence[int] = (0, 1, 2)) -> None:
        super().__init__()
        if len(set(axes)) < len(axes) or any(axis < 0 for axis in axes):
            raise UsageError(f"axes={tuple(axes)}: expected spatial axes counted from 0, each once.")
        self.network = network
        self.flips = [tuple(a + 2 for a in chosen) for n in range(len(axes) + 1) for chosen in combinations(axes, n)]

    def forward(self, x: Tensor) -> Tensor:
        """Run the network on all flips of ``(B, C, H, W, D)``.

        Returns:
            the mean output, in float32 or the network's own type if that is wider.

        Raises:
            UsageError: an axis that the input does not have, or an output that is neither a map nor vectors.
        """
        if max(self.flips[-1], default=0) >= x.ndim:
            raise UsageError(f"input {tuple(x.shape)} has {x.ndim - 2} spatial axes; give axes that are among them.")
        total = self._run_flipped(x, self.flips[0])
        for dims in self.flips[1:]:
            total = total + self._run_flipped(x, dims)
        return total / len(self.flips)

    def _run_flipped(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        output = self.network(x.flip(dims))
        if not isinstance(output, Tensor) or output.ndim not in (2, x.ndim):
            received = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise UsageError(f"network: {received}; expected one tensor, a map like the input or (B, K).")
        # float32: a sum of eight in bfloat16 would lose what the flips add
        summand = self.summand(output.to(torch.promote_types(output.dtype, torch.float32)))
        return summand if output.ndim == 2 else summand.flip(dims)

    def summand(self, logits: Tensor) -> Tensor:
        """Turn one flip's output into what is averaged."""
        return logits


class FlipInferer(Inferer):
    """Run another inferer over all flips of the input and average, as :class:`FlipEnsemble`; for a bundle's config.

    Args:
        axes: spatial axes that are flipped, 0 to 2; without any the inferer runs once, on the input.
        inferer: runs the network; None runs it on the whole input.

    Raises:
        UsageError: axes that :class:`FlipEnsemble` refuses.

    Example:
        >>> FlipInferer(axes=[0, 1])(torch.rand(2, 1, 8, 8, 8), lambda x: x.mean((2, 3, 4))).shape
        torch.Size([2, 1])
    """

    def __init__(self, axes: Sequence[int] = (), inferer: Callable[..., Any] | None = None) -> None:
        super().__init__()
        FlipEnsemble(nn.Identity(), axes)
        self.axes, self.inferer = tuple(axes), SimpleInferer() if inferer is None else inferer

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``network`` over ``inputs`` ``(B, C, H, W, D)``; returns the mean of its outputs."""
        if not self.axes:
            return self.inferer(inputs, network, *args, **kwargs)
        return FlipEnsemble(lambda flipped: self.inferer(flipped, network, *args, **kwargs), self.axes)(inputs)


class FlipSpread(FlipEnsemble):
    """Average logits, probabilities and squared probabilities over flips, for :func:`ensemble_variance`.

    They are its channels, K each. All three are means, so windows of them may be blended like logits.

    Args:
        network: as for :class:`FlipEnsemble`.
        axes: as for :class:`FlipEnsemble`.
        activation: ``"softmax"`` or ``"sigmoid"``, over the channels.

    Raises:
        UsageError: another activation, or axes that :class:`FlipEnsemble` refuses.
    """

    def __init__(self, network: nn.Module, axes: Sequence[int] = (0, 1, 2), activation: str = "softmax") -> None:
        super().__init__(network, axes)
        self.activation = known_activation(activation)

    def summand(self, logits: Tensor) -> Tensor:
        """Stack logits, probabilities and their squares: ``(B, K, ...)`` to ``(B, 3K, ...)``."""
        probabilities = logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()
        return torch.cat([logits, probabilities, probabilities * probabilities], 1)


def ensemble_variance(stacked: Tensor, classes: int) -> Tensor:
    """Compute the variance of the probabilities over the flips, summed over the classes.

    Args:
        stacked: output of :class:`FlipSpread`, ``(B, 3 * classes, ...)``; windows may have been blended.
        classes: channels K of the network.

    Returns:
        ``(B, 1, ...)``, 0 or more. Float32 values below 1e-6 are rounding errors.

    Raises:
        UsageError: another number of channels.
    """
    if stacked.shape[1] != 3 * classes:
        raise UsageError(f"stacked: {stacked.shape[1]} channels; expected 3 x {classes}, as FlipSpread gives them.")
    _, mean, mean_square = stacked.split(classes, 1)
    return (mean_square - mean * mean).sum(1, keepdim=True).clamp(min=0)


def predictive_entropy(logits: Tensor, activation: str) -> Tensor:
    """Compute the entropy of the predicted distribution, from 0 (certain) to 1 (all classes equally likely).

    Args:
        logits: ``(B, K, ...)``.
        activation: ``"softmax"``: the entropy over K classes, divided by log K. ``"sigmoid"``: the mean of the K
            channels' binary entropies, divided by log 2.

    Returns:
        ``(B, 1, ...)`` in [0, 1], float32 or wider.

    Raises:
        UsageError: another activation, or a softmax over a single class.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if known_activation(activation) == "sigmoid":
        both = _entropy_term(F.logsigmoid(logits)) + _entropy_term(F.logsigmoid(-logits))
        return (both.mean(1, keepdim=True) / math.log(2)).clamp(0, 1)
    classes = logits.shape[1]
    if classes < 2:
        raise UsageError(f"logits {tuple(logits.shape)}: a softmax needs 2 classes or more. Use activation='sigmoid'.")
    return (_entropy_term(logits.log_softmax(1)).sum(1, keepdim=True) / math.log(classes)).clamp(0, 1)


def _entropy_term(log_p: Tensor) -> Tensor:
    """Compute ``-p log p`` in nats."""
    return -log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)  # 0 times -inf is no number


def known_activation(activation: str) -> str:
    """Return ``activation``.

    Raises:
        UsageError: it is not one of ``ACTIVATIONS``.
    """
    if activation not in ACTIVATIONS:
        raise UsageError(f"activation={activation!r}; expected one of {', '.join(map(repr, ACTIVATIONS))}.")
    return activation
