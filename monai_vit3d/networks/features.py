"""Intermediate tokens of a VisionTransformer3D: what decoders, probes and timm's feature tools read."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from ..layers import keep_rows
from .options import resolve_indices

INTERMEDIATE_FORMATS = {"NLC": False, "NCHWD": True, "NCHW": True}


class TokenFeatures(nn.Module):
    """The part of the backbone's contract that returns intermediate block outputs."""

    def token_maps(self, x: Tensor, indices: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Patch grids of some blocks and of the final, normed tokens; the core that TorchScript can compile.

        Args:
            x: ``(B, C, H, W, D)``.
            indices: block numbers from 0, in block order.

        Returns:
            The final grid ``(B, E, H', W', D')``, and one such grid a block, not normed.
        """
        tokens, rope = self._embed_rotary(x)
        grid = self._grid_of(x)
        x, taken = self._run_blocks(tokens, indices, rope)
        return self._as_map(self.norm(x), grid), [self._as_map(y, grid) for y in taken]

    def token_levels(self, x: Tensor, indices: list[int]) -> list[Tensor]:
        """Normed outputs of some blocks, prefix tokens first; the core that TorchScript can compile.

        Args:
            x: ``(B, C, H, W, D)``.
            indices: block numbers from 0, in block order.

        Returns:
            One ``(B, P + N, E)`` a block.
        """
        tokens, rope = self._embed_rotary(x)
        _, taken = self._run_blocks(tokens, indices, rope)
        return [self.norm(y) for y in taken]

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def forward_visible(self, x: Tensor, keep: Tensor) -> Tensor:
        """Token features of some patches, computed as if the others were not there.

        The other patches' voxels are set to 0, for embeddings that mix neighbours (ConvStem3D), and their tokens are
        left out before the first block, which saves their time and memory. So the result cannot depend on them.

        Args:
            x: ``(B, C, H, W, D)``.
            keep: ``(B, N)`` long, numbers of the patches to keep, D fastest, in any order, each once.

        Returns:
            ``(B, P + N, E)``, normed: prefix tokens, then the kept patches' tokens in the order of ``keep``.

        Raises:
            ValueError: wrong rank, channels or size; ``keep`` of another shape or type or with numbers that no
                patch has; patch dropout, which would choose patches by itself.
        """
        if self.training and not isinstance(self.patch_drop, nn.Identity):
            raise ValueError("keep says which patches to keep, but patch_drop_rate > 0 drops some: build with 0.")
        tokens, p = self._embed(self._without_hidden(x, keep)), self.num_prefix_tokens
        kept = (keep.to(tokens.device) + p)[..., None].expand(-1, -1, tokens.shape[2])
        rope = self._rotary(x)
        rope = None if rope is None else keep_rows(rope, keep)
        x, _ = self._run_blocks(torch.cat([tokens[:, :p], tokens.gather(1, kept)], dim=1), [], rope)
        return self.norm(x)

    def _without_hidden(self, x: Tensor, keep: Tensor) -> Tensor:
        """``x`` with 0 wherever ``keep`` does not name the patch."""
        if x.dim() != 5:
            return x  # the embedding says what is wrong with it
        grid = self._grid_of(x)
        _check_keep(keep, x.shape[0], grid[0] * grid[1] * grid[2])
        seen = torch.zeros(x.shape[0], grid[0] * grid[1] * grid[2], dtype=torch.bool, device=x.device)
        seen = seen.scatter(1, keep.to(x.device), True).view(-1, 1, *grid)
        for axis, voxels in enumerate(self.patch_size, 2):
            seen = seen.repeat_interleave(voxels, axis)
        plain = x.as_tensor() if isinstance(x, MetaTensor) else x
        return plain.where(seen[..., : x.shape[2], : x.shape[3], : x.shape[4]], 0)

    def _as_map(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        tokens = tokens[:, self.num_prefix_tokens :].transpose(1, 2)
        return tokens.reshape(tokens.shape[0], tokens.shape[1], grid[0], grid[1], grid[2])

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | tuple[int, ...] | None = (-1,),
        norm: bool = False,
        output_fmt: str = "NLC",
        intermediates_only: bool = False,
        *,
        return_prefix_tokens: bool = False,
        stop_early: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Final tokens and the outputs of chosen blocks, in block order.

        Args:
            x: ``(B, C, H, W, D)``.
            indices: block numbers in any order, each as often as wanted (it is returned once, in block order, as by
                timm); negative ones count from the end. An int is that one block (timm's int means the last n
                blocks); None means all.
            norm: apply the final norm to the intermediates too.
            output_fmt: ``"NLC"`` gives whole block outputs ``(B, P + N, E)``, prefix tokens first; ``"NCHWD"``
                gives patch grids ``(B, E, H', W', D')`` (timm's spelling ``"NCHW"`` is understood).
            intermediates_only: leave out the final tokens.
            return_prefix_tokens: pair each intermediate with its prefix tokens ``(B, P, E)``; ``"NLC"`` then
                holds patch tokens only.
            stop_early: do not run the blocks after the last one asked for; the final tokens are then those of
                that block.
            output_dict: return a dict with timm's keys ``image_features``, ``image_intermediates`` and
                ``image_intermediates_prefix``.
            attn_mask: passed on to every block, as timm's attention takes it.
            is_causal: each token attends to those before it only; passed on to every block.

        Returns:
            ``(final, intermediates)``; ``intermediates`` alone; or the dict.

        Raises:
            ValueError: unknown format, an index out of range, or patch grids asked for while patch
                dropout removes patches.
        """
        fmt = getattr(output_fmt, "value", output_fmt)
        if fmt not in INTERMEDIATE_FORMATS:
            raise ValueError(f"output_fmt={fmt!r}; one of 'NLC', 'NCHWD' is needed.")
        as_map = INTERMEDIATE_FORMATS[fmt]
        if as_map and self.training and not isinstance(self.patch_drop, nn.Identity):
            raise ValueError("output_fmt='NCHWD' needs every patch, but patch_drop_rate > 0 drops some in training.")
        take = resolve_indices(indices, len(self.blocks), once=False)
        tokens, rope = self._embed_rotary(x)
        grid = self._grid_of(x)
        last = take[-1] if stop_early and take else -1
        x, taken = self._run_blocks(tokens, take, rope, attn_mask, is_causal, last)
        if norm:
            taken = [self.norm(y) for y in taken]
        p = self.num_prefix_tokens
        prefix = [y[:, :p] for y in taken]
        if as_map:
            taken = [self._as_map(y, grid) for y in taken]
        elif return_prefix_tokens:
            taken = [y[:, p:] for y in taken]
        if output_dict:
            result = {} if intermediates_only else {"image_features": self.norm(x)}
            extra = {"image_intermediates_prefix": prefix} if return_prefix_tokens and p else {}
            return {**result, "image_intermediates": taken, **extra}
        pairs = list(zip(taken, prefix)) if return_prefix_tokens else taken
        return pairs if intermediates_only else (self.norm(x), pairs)

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | list[int] | tuple[int, ...] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        attn_mask: Tensor | None = None,
    ) -> list[Any]:
        """DINO's interface, as timm has it: patch tokens of the last ``n`` blocks, or of the blocks listed.

        Args:
            x: ``(B, C, H, W, D)``.
            n: the last n blocks if an int, else block numbers.
            reshape: patch grids ``(B, E, H', W', D')`` instead of ``(B, N, E)``.
            return_prefix_tokens: pair each with its prefix tokens ``(B, P, E)``.
            norm: apply the final norm.
            attn_mask: passed on to every block.

        Raises:
            ValueError: as :meth:`forward_intermediates`.
        """
        fmt = "NCHWD" if reshape else "NLC"
        pairs = self.forward_intermediates(
            x, _last_n(n, len(self.blocks)), norm, fmt, True, return_prefix_tokens=True, attn_mask=attn_mask
        )
        return pairs if return_prefix_tokens else [tokens for tokens, _ in pairs]

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def prune_intermediate_layers(
        self, indices: int | list[int] | tuple[int, ...] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the chosen blocks do not need, as timm's feature wrappers ask for.

        Args:
            indices: the last n blocks if an int (timm's meaning), else block numbers.
            prune_norm: remove the final norm.
            prune_head: remove the head, its norm and its pooling.

        Returns:
            The block numbers kept for.

        Raises:
            ValueError: an index out of range.
        """
        take = resolve_indices(_last_n(indices, len(self.blocks)), len(self.blocks), once=False)
        self.blocks = self.blocks[: take[-1] + 1]
        self.feature_info = self.feature_info[: take[-1] + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.attn_pool = None
            self.global_pool = ""
            self.num_classes, self.head = 0, nn.Identity()
        return take


def _last_n(indices: int | list[int] | tuple[int, ...], depth: int) -> list[int] | tuple[int, ...]:
    """Timm's reading of an int: the last n of ``depth`` blocks."""
    if not isinstance(indices, int):
        return indices
    if not 1 <= indices <= depth:
        raise ValueError(f"the last {indices} blocks were asked for; the network has {depth}: 1 to {depth} are needed.")
    return list(range(depth - indices, depth))


def _check_keep(keep: Tensor, batch: int, count: int) -> None:
    if keep.dim() != 2 or keep.shape[0] != batch or keep.shape[1] < 1 or keep.dtype != torch.long:
        raise ValueError(
            f"keep of shape {tuple(keep.shape)}, {keep.dtype}; patch numbers of shape ({batch}, N), N of 1 or more, "
            "torch.long, are needed."
        )
    if bool(((keep < 0) | (keep >= count)).any()):
        raise ValueError(
            f"keep has numbers from {int(keep.min())} to {int(keep.max())}; the input has {count} patches, "
            f"0 to {count - 1}."
        )
