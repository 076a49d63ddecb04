"""Run MONAI's SliceInferer as a sliding window over slices, so that a 2D network labels a 3D volume."""

from __future__ import annotations

from typing import Any

from monai.inferers import Inferer, SliceInferer, SlidingWindowInferer
from torch import Tensor, nn

from monai_vit3d.data.errors import UsageError

from .spacing import rewrap_inferer, unwrap_inferer

_WINDOW_OPTIONS = (
    "sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval", "sw_device", "device", "progress",
    "cpu_thresh", "buffer_steps", "buffer_dim", "with_coord",
)  # fmt: skip


class SliceNetwork(nn.Module):
    """Run a 2D network on windows of one slice each.

    Args:
        network: ``(B, C, H, W)`` to a map ``(B, K, H, W)``.
        axis: the spatial axis, 0 to 2, along which windows are one voxel thick.
    """

    def __init__(self, network: nn.Module, axis: int) -> None:
        super().__init__()
        self.network = network
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Map a window ``(B, C, H, W, D)`` of one slice to ``(B, K, H, W, D)``."""
        output = self.network(x.squeeze(self.axis + 2))
        if not isinstance(output, Tensor):
            raise UsageError(f"network: a {type(output).__name__} for a slice; expected one tensor (B, K, H, W).")
        return output.unsqueeze(self.axis + 2)


def sliding_over_slices(inferer: Inferer, network: nn.Module) -> tuple[Inferer, nn.Module]:
    """Turn a SliceInferer and its 2D network into a sliding window and a network on 3D windows.

    Any other inferer is returned as it is. The windows, their order and their weights stay MONAI's (``SliceInferer``
    inserts a 1 into ``roi_size`` itself), so the result is the same, and all that runs sliding windows, such as flips,
    runs slices too.

    Args:
        inferer: bare or wrapped; a SliceInferer has two numbers in ``roi_size``.
        network: takes slices.

    Returns:
        the inferer and the network to run.

    Raises:
        UsageError: not two sizes, or an axis that a volume does not have.
    """
    inner = unwrap_inferer(inferer)
    if type(inner) is not SliceInferer:
        return inferer, network
    sizes, axis = list(inner.orig_roi_size), inner.spatial_dim
    if len(sizes) != 2 or axis not in (0, 1, 2):
        raise UsageError(
            f"SliceInferer(roi_size={sizes}, spatial_dim={axis}): expected two sizes and an axis of 0, 1 or 2."
        )
    sizes.insert(axis, 1)
    options: dict[str, Any] = {name: getattr(inner, name) for name in _WINDOW_OPTIONS}
    return rewrap_inferer(inferer, SlidingWindowInferer(roi_size=sizes, **options)), SliceNetwork(network, axis)
