"""Volume to patch tokens: Dosovitskiy et al. 2021 (arXiv:2010.11929), equation 1, on three axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .patch_conv import PatchConv3d
from .pos_embed import GridShape

PATCH_FORMATS = ("NLC", "NCHWD", "NHWDC")


def to_3tuple(value: int | Sequence[int], name: str = "value") -> GridShape:
    """Return one positive integer per axis ``(H, W, D)``.

    Args:
        value: one integer for all three axes, or three integers.
        name: the argument's name, for the message.

    Raises:
        ValueError: not one or three positive integers.
    """
    items = tuple(value) if isinstance(value, Iterable) else (value,) * 3
    if len(items) != 3 or any(not isinstance(v, Integral) or v < 1 for v in items):
        raise ValueError(f"{name}={value!r}; expected one positive integer, or three in (H, W, D).")
    return int(items[0]), int(items[1]), int(items[2])


def check_divisible(img_size: GridShape, patch_size: GridShape) -> None:
    """Refuse an input size that is no multiple of the patch.

    Raises:
        ValueError: the next size that is one is named.
    """
    if any(i % p for i, p in zip(img_size, patch_size)):
        need = tuple(-(-i // p) * p for i, p in zip(img_size, patch_size))
        raise ValueError(
            f"img_size={img_size} is not divisible by patch_size={patch_size}; the next size that is: {need}."
        )


def covering_grid(x: Tensor, patch_size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the patch grid of volumes ``(B, C, H, W, D)``; an axis' last patch may lie partly outside."""
    h, w, d = patch_size
    # of positive numbers: ONNX rounds the quotient of a negative one another way than Python
    return (x.shape[2] + h - 1) // h, (x.shape[3] + w - 1) // w, (x.shape[4] + d - 1) // d


def pad_to_patch(x: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """Pad ``(B, C, H, W, D)`` with zeros, at the end of each axis, to the next multiple of the patch."""
    gh, gw, gd = covering_grid(x, patch_size)
    h, w, d = gh * patch_size[0], gw * patch_size[1], gd * patch_size[2]
    return F.pad(x, [0, d - x.shape[4], 0, w - x.shape[3], 0, h - x.shape[2]])


def check_volume(
    x: Tensor, in_chans: int, img_size: tuple[int, int, int], patch_size: tuple[int, int, int], strict: bool, pad: bool
) -> Tensor:
    """Refuse a batch as :func:`refuse_volume`; with ``pad`` pad it with zeros to the next multiple of the patch."""
    refuse_volume(x, in_chans, img_size, patch_size, strict, pad)
    return pad_to_patch(x, patch_size) if pad else x


def refuse_volume(
    x: Tensor, in_chans: int, img_size: tuple[int, int, int], patch_size: tuple[int, int, int], strict: bool, pad: bool
) -> None:
    """Refuse a batch that the embedding cannot take.

    Args:
        x: ``(B, C, H, W, D)``.
        in_chans: the expected C.
        img_size: the size that the network was built for.
        patch_size: the patch, in voxels.
        strict: only ``img_size`` passes (with ``pad``: any size up to it).
        pad: it will be padded at the end of each axis, to the next multiple of the patch.

    Raises:
        ValueError: wrong rank, channels or size.
    """
    if x.dim() != 5:
        raise ValueError(f"input of shape {list(x.shape)}; expected a batch of volumes (B, C, H, W, D).")
    if x.shape[1] != in_chans:
        raise ValueError(f"input of shape {list(x.shape)} has {x.shape[1]} channels; expected in_chans={in_chans}.")
    size = [x.shape[2], x.shape[3], x.shape[4]]
    want = [img_size[0], img_size[1], img_size[2]]
    short = [-size[0] % patch_size[0], -size[1] % patch_size[1], -size[2] % patch_size[2]]
    if strict and not pad and size != want:
        raise ValueError(
            f"input of size {size}, but the network was built for img_size={want}: pad or crop the input to {want}, "
            "or build with dynamic_img_size=True, or call set_input_size."
        )
    if strict and pad and (size[0] > want[0] or size[1] > want[1] or size[2] > want[2]):
        raise ValueError(
            f"input of size {size} is larger than img_size={want}, up to which dynamic_img_pad=True pads: crop the "
            "input, or add dynamic_img_size=True for any size."
        )
    if not pad and (short[0] > 0 or short[1] > 0 or short[2] > 0):
        need = [size[0] + short[0], size[1] + short[1], size[2] + short[2]]
        raise ValueError(
            f"input of size {size} is not divisible by patch_size={list(patch_size)}: pad it to {need}, "
            "or build with dynamic_img_pad=True."
        )


# A leaf for torch.fx: its branches depend on the input's shape, which a symbolic trace does not know.
torch.fx.wrap("check_volume")


def resample_patch_kernel(weight: Tensor, patch_size: int | Sequence[int]) -> Tensor:
    """Resample a patch kernel to another patch size so that the tokens of a resized patch change least.

    Pseudo-inverse resize of FlexiViT (Beyer et al. 2023, arXiv:2212.08013, equation 3). Linear resizing is
    separable, and the pseudo-inverse of a Kronecker product is the product of the pseudo-inverses, so each
    axis is solved by itself.

    Args:
        weight: ``(E, C, h, w, d)``.
        patch_size: the new ``(h, w, d)``.

    Returns:
        ``(E, C, h', w', d')`` in the dtype of ``weight``.
    """
    kernel = weight.detach().double()
    for axis, new in enumerate(to_3tuple(patch_size, "patch_size"), start=2):
        old = kernel.shape[axis]
        if old == new:
            continue
        basis = torch.eye(old, dtype=torch.float64, device=kernel.device)[:, None]
        resize = F.interpolate(basis, size=new, mode="linear", align_corners=False)[:, 0]  # (old, new)
        kernel = (kernel.movedim(axis, -1) @ torch.linalg.pinv(resize).T).movedim(-1, axis)
    return kernel.to(weight.dtype)


def line_up_patches(x: Tensor, ids_keep: Tensor, patch_size: GridShape) -> Tensor:
    """Put some patches side by side: a volume of these alone.

    Args:
        x: ``(B, C, H, W, D)``, of whole patches.
        ids_keep: ``(B, K)`` long, their numbers, D fastest.
        patch_size: ``(h, w, d)``, in voxels.

    Returns:
        ``(B, C, h, w, K * d)``.
    """
    h, w, d = patch_size
    batch, channels, *grid = x.shape[0], x.shape[1], x.shape[2] // h, x.shape[3] // w, x.shape[4] // d
    patches = x.reshape(batch, channels, grid[0], h, grid[1], w, grid[2], d).permute(0, 2, 4, 6, 1, 3, 5, 7)
    samples = torch.arange(batch, device=x.device)[:, None]
    i, j, k = torch.unravel_index(ids_keep, grid)
    some = patches[samples, i, j, k]  # (B, K, C, h, w, d)
    return some.permute(0, 2, 3, 4, 1, 5).flatten(4)


class PatchEmbed3D(nn.Module):
    """Patch embedding of a volume: one strided convolution, :class:`~monai_vit3d.layers.PatchConv3d`.

    Args:
        img_size: input size in ``(H, W, D)``, divisible by ``patch_size``.
        patch_size: patch size in ``(H, W, D)``; any axes may differ.
        in_chans: number of input channels.
        embed_dim: width of a token.
        bias: whether the projection has a bias.
        strict_img_size: whether only ``img_size`` is accepted.
        flatten: tokens ``(B, N, C)`` if True, on their grid if False.
        output_fmt: ``"NLC"`` for tokens; of a grid ``"NHWDC"`` for ``(B, H', W', D', C)``, else
            ``(B, C, H', W', D')``.
        dynamic_img_pad: pad inputs with zeros, at each axis' end, to the next multiple of the patch.
        norm_layer: constructor of a norm of the tokens, as AIMv2 has one; None for none.
        device: where to create the parameters.
        dtype: in which type to create them.

    Raises:
        ValueError: ``img_size`` not divisible by ``patch_size``, or an unknown format.
    """

    # of the convolutions that see the image, one value for each of its channels
    image_kernels: tuple[str, ...] = ("proj.weight",)
    patch_is_of = ""  # the kind of stem whose layers are made for one patch size

    def __init__(
        self,
        img_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        in_chans: int = 1,
        embed_dim: int = 768,
        bias: bool = True,
        strict_img_size: bool = True,
        flatten: bool = True,
        output_fmt: str = "NLC",
        *,
        dynamic_img_pad: bool = False,
        norm_layer: Callable[..., nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if output_fmt not in PATCH_FORMATS:
            raise ValueError(f"output_fmt={output_fmt!r}; one of {', '.join(map(repr, PATCH_FORMATS))} is expected.")
        if flatten and output_fmt != "NLC":
            raise ValueError(f"output_fmt={output_fmt!r}: tokens are 'NLC'; for a map pass flatten=False.")
        self.img_size = to_3tuple(img_size, "img_size")
        self.patch_size = to_3tuple(patch_size, "patch_size")
        check_divisible(self.img_size, self.patch_size)
        self.in_chans = in_chans
        self.strict_img_size = strict_img_size
        self.flatten = flatten
        self.output_fmt = output_fmt
        self.dynamic_img_pad = dynamic_img_pad
        self._set_grid()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        patch = self.patch_size
        self.proj: nn.Conv3d = PatchConv3d(in_chans, embed_dim, patch, stride=patch, bias=bias, **factory)
        self.norm = nn.Identity() if norm_layer is None else norm_layer(embed_dim, **factory)

    def _set_grid(self) -> None:
        self.grid_size = self.dynamic_feat_size(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1] * self.grid_size[2]

    def feat_ratio(self) -> GridShape:
        """Return the voxels per token along each axis."""
        return self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the patch grid ``(H', W', D')`` of an input of size ``(H, W, D)``, padding included."""
        h, w, d = self.patch_size
        return (img_size[0] + h - 1) // h, (img_size[1] + w - 1) // w, (img_size[2] + d - 1) // d

    @torch.jit.ignore
    def set_input_size(
        self, img_size: int | Sequence[int] | None = None, patch_size: int | Sequence[int] | None = None
    ) -> None:
        """Change the input size and, by :func:`resample_patch_kernel`, the patch size.

        Args:
            img_size: new ``(H, W, D)``; None keeps it.
            patch_size: new patch ``(h, w, d)``; None keeps it.

        Raises:
            ValueError: the new sizes do not divide, or the patch size is built into a stem; nothing was changed then.
        """
        img = self.img_size if img_size is None else to_3tuple(img_size, "img_size")
        patch = self.patch_size if patch_size is None else to_3tuple(patch_size, "patch_size")
        if self.patch_is_of and patch != self.patch_size:
            raise ValueError(f"patch_size={patch_size}: {self.patch_is_of} keeps the {self.patch_size} it has.")
        check_divisible(img, patch)
        if patch != self.patch_size:
            weight = resample_patch_kernel(self.proj.weight, patch)
            self.proj.weight = nn.Parameter(weight, requires_grad=self.proj.weight.requires_grad)
            self.proj.kernel_size = self.proj.stride = patch
        self.img_size, self.patch_size = img, patch
        self._set_grid()

    def forward(self, x: Tensor) -> Tensor:
        """Embed a batch of volumes.

        Args:
            x: ``(B, C, H, W, D)``.

        Returns:
            ``(B, N, C)``; if ``flatten`` is False, ``(B, C, H', W', D')`` or ``(B, H', W', D', C)``.

        Raises:
            ValueError: wrong rank, channels or size.
        """
        x = check_volume(x, self.in_chans, self.img_size, self.patch_size, self.strict_img_size, self.dynamic_img_pad)
        x = self.norm(self._project(x))
        if self.flatten:
            return x.flatten(1, 3)
        return x if self.output_fmt == "NHWDC" else x.permute(0, 4, 1, 2, 3)

    @torch.jit.ignore
    def embed_some(self, x: Tensor, ids_keep: Tensor) -> Tensor:
        """Embed some patches alone, of a layer that embeds each patch by itself.

        Args:
            x: ``(B, C, H, W, D)``.
            ids_keep: ``(B, K)`` long, their numbers, D fastest.

        Returns:
            ``(B, K, E)``, whatever the output's format.

        Raises:
            ValueError: wrong rank, channels or size.
        """
        x = check_volume(x, self.in_chans, self.img_size, self.patch_size, self.strict_img_size, self.dynamic_img_pad)
        return self.norm(self._project(line_up_patches(x, ids_keep, self.patch_size))).flatten(1, 3)

    def _project(self, x: Tensor) -> Tensor:
        """Project checked volumes to tokens on their grid, ``(B, H', W', D', E)``."""
        return self.proj(x).permute(0, 2, 3, 4, 1)
