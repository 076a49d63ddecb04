"""From a volume to the token sequence that enters the first block: patches, prefix tokens, positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from monai.data import MetaTensor
from timm.layers.patch_dropout import PatchDropout, patch_dropout_forward
from torch import Tensor, nn

from ..layers import fit_pos_embed, keep_rows

# A leaf for torch.fx: its branches depend on the input's shape, which a symbolic trace does not know.
torch.fx.wrap("fit_pos_embed")


class TokenEmbedding(nn.Module):
    """The part of the backbone before its blocks."""

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

    def _embed(self, x: Tensor) -> Tensor:
        """Volumes ``(B, C, H, W, D)`` to the token sequence ``(B, P + N, E)`` that enters the first block."""
        return self.norm_pre(self.patch_drop(self._all_tokens(x)))

    def _embed_rotary(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """As :meth:`_embed`; with rotary positions, also the angles of those patches that patch dropout leaves."""
        rope = self._rotary(x)
        if not torch.jit.is_scripting():  # noqa: SIM102 - in TorchScript patch dropout and rope do not train
            if rope is not None and isinstance(self.patch_drop, PatchDropout):
                drop = self.patch_drop
                tokens, keep = patch_dropout_forward(
                    self._all_tokens(x), drop.prob, drop.num_prefix_tokens, drop.ordered, drop.training
                )
                return self.norm_pre(tokens), rope if keep is None else keep_rows(rope, keep)
        return self._embed(x), rope

    def _all_tokens(self, x: Tensor) -> Tensor:
        """Prefix tokens and all patches', with their positions."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips what is inside, and only that
            if isinstance(x, MetaTensor):
                x = x.as_tensor()  # tokens have no affine; decoders take the metadata from the image
        tokens = self.patch_embed(x)
        prefix: list[Tensor] = []
        if self.cls_token is not None:
            prefix.append(self.cls_token.expand(x.shape[0], -1, -1))
        if self.reg_token is not None:
            prefix.append(self.reg_token.expand(x.shape[0], -1, -1))
        pos = self._positions(x)
        if pos is not None and self._pos_prefix == 0:
            tokens = tokens + pos
        tokens = torch.cat(prefix + [tokens], dim=1)
        if pos is not None and self._pos_prefix > 0:
            tokens = tokens + pos
        return self.pos_drop(tokens)

    def _rotary(self, x: Tensor) -> Tensor | None:
        """The angles of the patches of ``x`` for every block, if there are rotary positions."""
        if self.rope is None:
            return None
        grid = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3], x.shape[4]))
        return self.rope(x, grid, self.patch_embed.patch_size)

    def _positions(self, x: Tensor) -> Tensor | None:
        """The positions for the grid of ``x``: as they are, resampled, or the corner of them."""
        pos = self.pos_embed
        if pos is None or not (self.dynamic_img_size or self.dynamic_img_pad):
            return pos
        grid = self.patch_embed.dynamic_feat_size((x.shape[2], x.shape[3], x.shape[4]))
        learned = self.pos_embed_type == "learned"
        # looking whether learned positions changed is cheaper than resampling them on a CPU only
        cheap = pos.device.type == "cpu" or not learned
        if not torch.jit.is_scripting():  # noqa: SIM102
            if cheap and _is_plain(x) and not (pos.requires_grad and torch.is_grad_enabled()):
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
            kept = self._pos_cache = (key, pos.detach().clone(), fitted)
        return kept[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pos_cache": None}


def _is_plain(x: Tensor) -> bool:
    """Whether ``x`` is a tensor with values, not a stand-in of a tracer (a proxy, a fake tensor)."""
    return type(x) is Tensor and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
