"""Patch embedding by residual stages, as in Primus V2 and V3 (dynamic-network-architectures' tokenizers)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .patch_embed import PatchEmbed3D
from .pos_embed import GridShape


def stage_strides(patch_size: GridShape) -> list[GridShape]:
    """Return strides, finest first, whose product is the patch: the prime factors of each axis.

    Axes with few factors take theirs last, so that fine stages work in-plane when slices are thick; where the patch
    is a power of two, each stage halves. A patch of one voxel has one stage without a stride.
    """
    factors = [_prime_factors(p) for p in patch_size]
    count = max(1, *map(len, factors))
    padded = [[1] * (count - len(axis)) + axis for axis in factors]
    return [(h, w, d) for h, w, d in zip(*padded)]


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


class ResidualStage(nn.Module):
    """A residual block of two 3x3x3 convolutions with instance norm; the skip pools and projects (ResNet-D).

    He et al. 2019, arXiv:1812.01187, section 4.2.

    Args:
        in_chans: channels that come.
        width: channels that go.
        stride: of the first convolution, and of the skip's average pooling.
        bias: whether the two convolutions have a bias.
        activation: after the first convolution, and after the sum.
        factory: ``device`` and ``dtype``.
    """

    def __init__(
        self,
        in_chans: int,
        width: int,
        stride: GridShape,
        bias: bool,
        activation: Callable[[], nn.Module] = nn.ReLU,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_chans, width, 3, stride, 1, bias=bias, **factory)
        self.norm1 = nn.InstanceNorm3d(width, affine=True, **factory)
        self.conv2 = nn.Conv3d(width, width, 3, 1, 1, bias=bias, **factory)
        self.norm2 = nn.InstanceNorm3d(width, affine=True, **factory)
        self.pool = nn.AvgPool3d(stride, stride) if max(stride) > 1 else nn.Identity()
        same = in_chans == width
        self.skip = nn.Identity() if same else nn.Conv3d(in_chans, width, 1, bias=False, **factory)
        self.skip_norm = nn.Identity() if same else nn.InstanceNorm3d(width, affine=True, **factory)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W, D)`` to ``(B, width, H / h, W / w, D / d)`` of a stride ``(h, w, d)``."""
        main = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(main + self.skip_norm(self.skip(self.pool(x))))


class ResidualStem3D(PatchEmbed3D):
    """Patch embedding of Primus V2: a residual stage at full resolution, one for each stride, and a last 1x1x1.

    The stages' strides are the prime factors of the patch (:func:`stage_strides`), which may be anisotropic.

    Args:
        img_size: input size in ``(H, W, D)``, divisible by ``patch_size``.
        patch_size: voxels per token along each axis.
        in_chans: number of input channels.
        embed_dim: width of a token.
        bias: whether the last projection has a bias.
        widths: channels of the stage at full resolution and of each further one; None takes those of the class, and
            after its last one doubles them, up to 1024.
        options: the other keywords of :class:`PatchEmbed3D`.

    Raises:
        ValueError: another number of ``widths``, or as :class:`PatchEmbed3D`.
    """

    image_kernels = ("stages.0.conv1.weight", "stages.0.skip.weight")
    patch_is_of = "a residual stem"
    base_widths = (32, 32, 64, 128)
    activation: Callable[[], nn.Module] = nn.ReLU

    def __init__(
        self,
        img_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        in_chans: int = 1,
        embed_dim: int = 768,
        bias: bool = True,
        *,
        widths: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(img_size, patch_size, in_chans, embed_dim, bias, **options)
        factory: dict[str, Any] = {"device": self.proj.weight.device, "dtype": self.proj.weight.dtype}
        strides = [(1, 1, 1), *stage_strides(self.patch_size)]
        self.widths = None if widths is None else tuple(int(width) for width in widths)
        channels = self.widths or _extended(self.base_widths, len(strides))
        if len(channels) != len(strides):
            raise ValueError(
                f"widths={channels}; a patch of {self.patch_size} has {len(strides)} stages, a number each is expected."
            )
        self.stages = nn.ModuleList(
            ResidualStage(before, width, stride, i == 0, type(self).activation, **factory)
            for i, (before, width, stride) in enumerate(zip([in_chans, *channels], channels, strides))
        )
        self.proj = nn.Conv3d(channels[-1], embed_dim, 1, bias=bias, **factory)

    def _project(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.proj(x).permute(0, 2, 3, 4, 1)


class SkipStem3D(ResidualStem3D):
    """Patch embedding of Primus V3: wider stages with leaky ReLUs, all but the last projected to the tokens, too.

    Each projection is multiplied by a learned number that starts at 1e-5. Arguments as :class:`ResidualStem3D`.
    """

    base_widths = (32, 64, 256, 1024)
    activation = nn.LeakyReLU

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        weight, left = self.proj.weight, self.patch_size
        factory: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.skips = nn.ModuleList()
        stages: list[Any] = list(self.stages)[:-1]
        for stage, stride in zip(stages, [(1, 1, 1), *stage_strides(self.patch_size)]):
            left = (left[0] // stride[0], left[1] // stride[1], left[2] // stride[2])
            self.skips.append(nn.Conv3d(stage.conv2.out_channels, weight.shape[0], left, left, **factory))
        self.skip_scales = nn.Parameter(torch.empty(len(self.skips), **factory))
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Start the skip projections' factors at 1e-5."""
        nn.init.constant_(self.skip_scales, 1e-5)

    def _project(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        tokens = self.proj(x)
        for i, skip in enumerate(self.skips):
            tokens = tokens + self.skip_scales[i] * skip(maps[i])
        return tokens.permute(0, 2, 3, 4, 1)


def _extended(widths: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return ``count`` channels: the first of ``widths``, then the last of them doubled repeatedly, up to 1024."""
    extended = list(widths[:count])
    while len(extended) < count:
        extended.append(max(extended[-1], min(2 * extended[-1], 1024)))
    return tuple(extended)
