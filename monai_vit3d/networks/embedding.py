"""From a volume to the token sequence that enters the first block: patches, prefix tokens, positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from monai.data import MetaTensor
from timm.layers.patch_dropout import PatchDropout, patch_dropout_forward
from torch import Tensor, nn

from ..layers import PatchEmbed3D, fit_pos_embed, keep_rows
from ..layers.patch_embed import check_volume, covering_grid
from .options import build

# Leaves for torch.fx: their branches depend on the input's shape, which a symbolic trace does not know.
torch.fx.wrap("check_volume")
torch.fx.wrap("fit_pos_embed")


class TokenEmbedding(nn.Module):
    """The part of the backbone before its blocks."""

    def _build_patches(self, embed_layer: Callable[..., nn.Module], **options: Any) -> None:
        """The patch embedding: one of ours, or a layer that knows no more than how to embed.

        Args:
            embed_layer: its constructor.
            options: ``img_size`` and ``patch_size`` as they were handed, and what else it may take.
        """
        self.takes_grid = self.dynamic_img_size or self.dynamic_img_pad
        kind = getattr(embed_layer, "func", embed_layer)
        ours = isinstance(kind, type) and issubclass(kind, PatchEmbed3D)
        how = {"flatten": False, "output_fmt": "NHWDC"} if self.takes_grid and ours else {}
        self.patch_embed = build(
            embed_layer,
            **{"in_chans": self.in_chans, "strict_img_size": not self.dynamic_img_size},
            dynamic_img_pad=self.dynamic_img_pad,
            **how,
            **options,
        )
        self._checks_input = not isinstance(self.patch_embed, PatchEmbed3D)
        self._embeds_flat = getattr(self.patch_embed, "flatten", True)
        self._set_grid()
        grid = tuple(getattr(self.patch_embed, "grid_size", self.grid_size))
        if grid != self.grid_size:
            raise ValueError(
                f"embed_layer={type(self.patch_embed).__name__} makes a grid of {grid}; one token for each patch, "
                f"{self.grid_size} of img_size={self.img_size} and patch_size={self.patch_size}, is expected."
            )

    def _set_grid(self) -> None:
        h, w, d = (i // p for i, p in zip(self.img_size, self.patch_size))
        self.grid_size, self.num_patches = (h, w, d), h * w * d

    def _build_tokens(self, class_token: bool, reg_tokens: int, pos_embed: str, factory: dict[str, Any]) -> None:
        width: int = self.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width, **factory)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, width, **factory)) if reg_tokens else None
        self.pos_embed_type = pos_embed
        # how many of the positions belong to prefix tokens
        self._pos_prefix = 0 if self.no_embed_class or pos_embed != "learned" else self.num_prefix_tokens
        table = torch.zeros(1, self._pos_prefix + self.num_patches, width, **factory)
        if pos_embed == "learned":
            self.pos_embed = nn.Parameter(table)
        else:
            self.register_buffer("pos_embed", table if pos_embed == "sincos" else None, persistent=False)
        self._pos_cache: tuple[Any, Tensor, Tensor] | None = None

    def _patch_tokens(self, x: Tensor) -> Tensor:
        """Patches ``(B, N, E)``, on their grid ``(B, H', W', D', E)`` where the input's size may vary (as in timm)."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips what is inside, and only that
            if isinstance(x, MetaTensor):
                x = x.as_tensor()  # tokens have no affine; decoders take the metadata from the image
        if self._checks_input:
            strict = not self.dynamic_img_size
            x = check_volume(x, self.in_chans, self.img_size, self.patch_size, strict, self.dynamic_img_pad)
        tokens = self.patch_embed(x)
        if self.takes_grid and self._embeds_flat:
            grid = self._grid_of(x)
            tokens = tokens.reshape(tokens.shape[0], grid[0], grid[1], grid[2], tokens.shape[2])
        return tokens

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Put prefix tokens before the patches and add positions, as timm's method of this name.

        Args:
            x: what ``patch_embed`` gives: ``(B, N, E)``, or ``(B, H', W', D', E)`` of a network that takes several
                sizes (``dynamic_img_size``, ``dynamic_img_pad``).

        Returns:
            ``(B, P + N, E)``.
        """
        pos: Tensor | None = self.pos_embed
        if self.takes_grid:
            pos = self._positions((x.shape[1], x.shape[2], x.shape[3]))
            x = x.flatten(1, 3)
        prefix: list[Tensor] = []
        if self.cls_token is not None:
            prefix.append(self.cls_token.expand(x.shape[0], -1, -1))
        if self.reg_token is not None:
            prefix.append(self.reg_token.expand(x.shape[0], -1, -1))
        if pos is not None and self._pos_prefix == 0:
            x = x + pos
        x = torch.cat(prefix + [x], dim=1)
        if pos is not None and self._pos_prefix > 0:
            x = x + pos
        return self.pos_drop(x)

    def _embed(self, x: Tensor) -> Tensor:
        """Volumes ``(B, C, H, W, D)`` to the token sequence ``(B, P + N, E)`` that enters the first block."""
        return self.norm_pre(self.patch_drop(self._pos_embed(self._patch_tokens(x))))

    def _embed_rotary(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """As :meth:`_embed`; with rotary positions, also the angles of those patches that patch dropout leaves."""
        rope = self._rotary(x)
        if not torch.jit.is_scripting():  # noqa: SIM102 - in TorchScript patch dropout and rope do not train
            if rope is not None and isinstance(self.patch_drop, PatchDropout):
                drop, tokens = self.patch_drop, self._pos_embed(self._patch_tokens(x))
                tokens, keep = patch_dropout_forward(
                    tokens, drop.prob, drop.num_prefix_tokens, drop.ordered, drop.training
                )
                return self.norm_pre(tokens), rope if keep is None else keep_rows(rope, keep)
        return self._embed(x), rope

    def _grid_of(self, x: Tensor) -> tuple[int, int, int]:
        """The patch grid of volumes ``(B, C, H, W, D)``, padding counted."""
        return covering_grid(x, self.patch_size)

    def _rotary(self, x: Tensor) -> Tensor | None:
        """The angles of the patches of ``x`` for every block, if there are rotary positions."""
        if self.rope is None:
            return None
        return self.rope(x, self._grid_of(x), self.patch_size)

    def _positions(self, grid: tuple[int, int, int]) -> Tensor | None:
        """The positions for a patch grid: as they are, resampled, or the corner of them."""
        pos = self.pos_embed
        if pos is None or not (self.dynamic_img_size or self.dynamic_img_pad):
            return pos
        learned = self.pos_embed_type == "learned"
        if not torch.jit.is_scripting():  # noqa: SIM102
            if _are_plain(grid, pos) and not (pos.requires_grad and torch.is_grad_enabled()):  # noqa: SIM102
                # looking whether learned positions changed is cheaper than resampling them on a CPU only
                if pos.device.type == "cpu" or not learned:
                    return self._kept_positions(pos, grid)
        return fit_pos_embed(pos, self.grid_size, grid, self._pos_prefix, learned, self.dynamic_img_size)

    @torch.jit.unused  # type: ignore[untyped-decorator]
    def _kept_positions(self, pos: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """The positions of the last grid are kept: a cohort or a sliding window asks for one grid many times."""
        learned = self.pos_embed_type == "learned"
        key = (self.grid_size, grid, pos.device, pos.dtype)
        kept = self._pos_cache
        if kept is None or kept[0] != key or (learned and not torch.equal(kept[1], pos)):
            fitted = fit_pos_embed(pos, self.grid_size, grid, self._pos_prefix, learned, self.dynamic_img_size)
            kept = key, pos.detach().clone(), fitted
            if _are_plain(grid, fitted):
                self._pos_cache = kept
        return kept[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pos_cache": None}


def _are_plain(grid: tuple[Any, ...], values: Tensor) -> bool:
    """Whether sizes are numbers and a tensor has values that outlast the call.

    Neither is so while a tracer runs (proxies, symbolic sizes, fake tensors), nor are the tensors that
    ``torch.func``'s transforms and forward-mode differentiation hand around.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not all(type(n) is int for n in grid):
        return False
    if type(values) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(values):
        return False
    return torch.autograd.forward_ad.unpack_dual(values).tangent is None
