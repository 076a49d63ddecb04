"""Average a network over small rotations and scales of its input (test-time augmentation)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_vit3d.data.errors import UsageError


class AffineEnsemble(nn.Module):
    """Average a network's outputs over its input as it is, rotated and scaled, each output resampled back.

    Rotations and scales are about the input's centre and in voxels, as ``RandAffined`` has them in training. The input
    is interpolated linearly and continues beyond its border with the border's values; what a view does not show of the
    input is averaged over the other views. Under a :class:`FlipEnsemble` each flip gets all views.

    Args:
        network: ``(B, C, H, W, D)`` to a map ``(B, K, H, W, D)``, or to vectors ``(B, K)``, which are not resampled; a
            module or any other callable.
        degrees: for each axis, the angle of a rotation about it; there is one each way, and none where it is 0.
        scales: factors by which the views enlarge the input.

    Raises:
        UsageError: other than three angles of less than 90 degrees, or factors that are not above 0.
    """

    def __init__(
        self, network: Callable[[Tensor], Tensor], degrees: Sequence[float] = (0, 0, 0), scales: Sequence[float] = ()
    ) -> None:
        super().__init__()
        require_views(degrees, scales)
        self.network = network
        angles = [(axis, sign * angle) for axis, angle in enumerate(degrees) if angle for sign in (1, -1)]
        self.matrices = [_rotation(axis, angle) for axis, angle in angles]
        self.matrices += [torch.eye(3, dtype=torch.float64) / factor for factor in scales]

    def forward(self, x: Tensor) -> Tensor:
        """Run the network on all views of ``(B, C, H, W, D)``.

        Returns:
            the mean output, in float32 or the network's own type if that is wider.

        Raises:
            UsageError: an input that is no batch of volumes, or an output that is no map of its size and no vectors.
        """
        if x.ndim != 5:
            raise UsageError(f"input {tuple(x.shape)}; expected (B, C, H, W, D): rotations are those of volumes.")
        total = self._run(x)
        if total.ndim == 2:
            return sum((self._run(_resample(x, m, "border")) for m in self.matrices), total) / (1 + len(self.matrices))
        count = torch.ones_like(total[:, :1])
        shown = count.clone()
        for matrix in self.matrices:
            output = self._run(_resample(x, matrix, "border"))
            inverse = torch.linalg.inv(matrix)
            total = total + _resample(output, inverse, "zeros")
            count = count + _resample(shown, inverse, "zeros")
        return total / count

    def _run(self, x: Tensor) -> Tensor:
        output = self.network(x)
        if not isinstance(output, Tensor) or not (output.ndim == 2 or output.shape[2:] == x.shape[2:]):
            received = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise UsageError(f"network: {received}; expected one tensor, a map of the input's size or (B, K).")
        return output.to(torch.promote_types(output.dtype, torch.float32))


def require_views(degrees: Sequence[float], scales: Sequence[float]) -> None:
    """Refuse angles and factors that :class:`AffineEnsemble` cannot use.

    Raises:
        UsageError: other than three angles of less than 90 degrees, or factors that are not above 0.
    """
    if len(degrees) != 3 or not all(abs(angle) < 90 for angle in degrees):
        raise UsageError(f"degrees={list(degrees)}; expected three angles of less than 90, one about each axis.")
    if not all(0 < factor < math.inf for factor in scales):
        raise UsageError(f"scales={list(scales)}; expected factors above 0.")


def _rotation(axis: int, degrees: float) -> Tensor:
    angle = math.radians(degrees)
    matrix = torch.eye(3, dtype=torch.float64)
    i, j = [other for other in range(3) if other != axis]
    matrix[i, i] = matrix[j, j] = math.cos(angle)
    matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
    return matrix


def _resample(x: Tensor, matrix: Tensor, padding: str) -> Tensor:
    """Take the value at ``matrix`` times its place for each voxel, both in voxels from the centre."""
    half = torch.tensor(x.shape[:1:-1], dtype=torch.float64) / 2  # affine_grid's axes run from the last to the first
    normalized = F.pad(matrix.flip(0, 1) * half / half[:, None], (0, 1)).to(x)
    grid = F.affine_grid(normalized.expand(len(x), 3, 4), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode=padding, align_corners=False)
