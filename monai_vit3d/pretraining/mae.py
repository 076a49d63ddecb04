"""MAE for volumes: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", arXiv:2111.06377."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_vit3d.data.errors import UsageError
from monai_vit3d.layers import fit_pos_embed, sincos_pos_embed
from monai_vit3d.layers.pos_embed import GridShape
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.options import require_final_norm

from .masking import MAEMasks
from .patches import patchify, unpatchify


class MAEOutput(NamedTuple):
    """Scalar ``loss``, and ``prediction`` ``(B, Nm, C * h * w * d)`` of the masked patches, as the target is scaled."""

    loss: Tensor
    prediction: Tensor


class MAEDecoder(nn.Module):
    """Predict the values of masked patches from encoded visible tokens (section 3, "MAE decoder").

    Args:
        embed_dim: width of the encoder's tokens.
        dim: width of the decoder's tokens.
        depth: number of blocks.
        heads: number of attention heads.
        grid: patches ``(H', W', D')`` of a volume; other grids work too.
        values: C * h * w * d, of a patch.
    """

    positions: Tensor

    def __init__(self, embed_dim: int, dim: int, depth: int, heads: int, grid: GridShape, values: int) -> None:
        super().__init__()
        self.grid, self.grad_checkpointing = grid, False
        self.embed = nn.Linear(embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos_pos_embed(grid, dim), persistent=False)
        self.blocks = nn.ModuleList([Block(dim, heads, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, values)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():  # the paper's appendix A.1
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, masks: MAEMasks, grid: GridShape) -> Tensor:
        """Predict the masked patches.

        Args:
            tokens: ``(B, P + Nv, E)``: prefix tokens, then the visible ones in the order of ``masks.visible``.
            masks: which tokens were visible.
            grid: the volume's patches along each axis.

        Returns:
            ``(B, Nm, C * h * w * d)`` in the order of ``masks.masked``.
        """
        prefix, visible = self.embed(tokens).tensor_split([tokens.shape[1] - masks.visible.shape[1]], dim=1)
        mask_tokens = self.mask_token.to(visible.dtype).expand(len(visible), prod(grid), -1)
        x = mask_tokens.scatter(1, _index(masks.visible, visible), visible)
        x = x + fit_pos_embed(self.positions, self.grid, grid, 0, learned=False, resample=True)
        x = torch.cat([prefix, x], dim=1)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
        return self.head(self.norm(_take(x[:, prefix.shape[1] :], masks.masked)))


class MAE(nn.Module):
    """Masked autoencoder: the backbone encodes the visible tokens, a light decoder predicts the voxels of the others.

    The loss is the mean squared error on masked patches only. By default each patch of the target is normalised by
    its own mean and standard deviation (section 4.1), over all its values, all channels. The standard deviation is
    the population's, as the paper words it ("of all pixels in a patch"), with 1e-6 added to the variance; the paper's
    code uses the sample's, larger by ``sqrt(n / (n - 1))``, which is undefined for a patch of one value.

    Train it, then use ``mae.backbone``. The backbone keeps its weights; ``weight_init="jax"`` initialises it as in the
    paper (appendix A.1). Its own head and pooling are removed.

    Args:
        backbone: a network that keeps the contract of :class:`monai_vit3d.networks.VisionTransformer3D`.
        decoder_dim: width of the decoder, 6 or more.
        decoder_depth: number of its blocks.
        decoder_heads: number of its attention heads.
        normalize_targets: predict normalised patches; False for the voxels as they come.

    Raises:
        UsageError: a decoder that cannot be built.
        ValueError: a backbone with ``fc_norm=True``.

    Example:
        >>> backbone = VisionTransformer3D((64, 64, 64), 8, embed_dim=384, num_heads=6)
        >>> mae = MAE(backbone, decoder_dim=192, decoder_depth=4, decoder_heads=6)
        >>> masks = sample_random_masks(2, (8, 8, 8), 0.75, generator=torch.Generator().manual_seed(0))
        >>> mae(torch.zeros(2, 1, 64, 64, 64), masks).loss.backward()
    """

    def __init__(
        self,
        backbone: VisionTransformer3D,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        normalize_targets: bool = True,
    ) -> None:
        super().__init__()
        if decoder_dim < 6 or decoder_depth < 1 or decoder_heads < 1 or decoder_dim % decoder_heads:
            raise UsageError(
                f"decoder_dim={decoder_dim}, decoder_depth={decoder_depth}, decoder_heads={decoder_heads}; expected a "
                "width of 6 or more that the heads divide, one head and one block or more."
            )
        require_final_norm(backbone, "masked autoencoder")
        backbone.reset_classifier(0, "")  # a head would be a parameter without a gradient
        self.backbone, self.normalize_targets = backbone, normalize_targets
        self.patch_size: GridShape = backbone.patch_size
        values = backbone.in_chans * prod(self.patch_size)
        self.decoder = MAEDecoder(
            backbone.embed_dim, decoder_dim, decoder_depth, decoder_heads, backbone.grid_size, values
        )

    def forward(self, x: Tensor, masks: MAEMasks) -> MAEOutput:
        """Compute the loss of a batch, in float32 or wider.

        Args:
            x: ``(B, C, H, W, D)``.
            masks: from :func:`sample_random_masks` or :func:`sample_block_masks`, with the grid of ``x``.

        Raises:
            UsageError: masks of another batch or grid, or a size that the patch does not divide.
            ValueError: a volume that the backbone refuses.
        """
        target = _take(self._patches(x, masks), masks.masked)
        target = target.float() if target.dtype in (torch.float16, torch.bfloat16) else target
        if self.normalize_targets:
            mean, deviation = _statistics(target)
            target = (target - mean) / deviation
        prediction = self._predict(x, masks).to(target.dtype)
        return MAEOutput((prediction - target).square().mean(), prediction)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, masks: MAEMasks) -> Tensor:
        """Reconstruct the volume: masked patches as predicted, in the input's units, visible ones from the input.

        If targets are normalised, a prediction has no level and contrast: it gets the mean and standard deviation of
        the true patch, which the network has not seen. Judge the structure within patches.

        Args:
            x: ``(B, C, H, W, D)``.
            masks: which tokens are visible.

        Returns:
            ``(B, C, H, W, D)`` in the dtype of ``x``.

        Raises:
            UsageError: as :meth:`forward`.
        """
        patches = self._patches(x, masks)
        prediction = self._predict(x, masks).to(torch.promote_types(patches.dtype, torch.float32))
        if self.normalize_targets:
            mean, deviation = _statistics(_take(patches, masks.masked).to(prediction.dtype))
            prediction = prediction * deviation + mean
        patches = patches.scatter(1, _index(masks.masked, patches), prediction.to(patches.dtype))
        return unpatchify(patches, self.patch_size, self._grid(x))

    @torch.no_grad()
    def reconstruction_slices(self, x: Tensor, masks: MAEMasks, channel: int = 0, axis: int = 2) -> np.ndarray:
        """Draw the middle slice: ``imshow(np.hstack(slices[0]))`` shows the first sample's three pictures side by side.

        Args:
            x: ``(B, C, H, W, D)``.
            masks: which tokens are visible.
            channel: the channel to show.
            axis: the axis of the slice: 0, 1, 2 for H, W, D.

        Returns:
            float32 ``(B, 3, rows, columns)`` in the input's units: the input, the input with its masked patches at
            the sample's lowest value, and :meth:`reconstruct`'s.

        Raises:
            UsageError: as :meth:`forward`.
        """
        result = self.reconstruct(x, masks)
        patches = self._patches(x, masks)
        hidden = torch.zeros_like(patches).scatter(1, _index(masks.masked, patches), 1)
        hidden = unpatchify(hidden, self.patch_size, self._grid(x))[:, channel] > 0
        image = unpatchify(patches, self.patch_size, self._grid(x))[:, channel]
        masked = torch.where(hidden, image.amin((1, 2, 3), keepdim=True), image)
        views = torch.stack([image, masked, result[:, channel]], 1)
        return views.select(axis + 2, views.shape[axis + 2] // 2).float().cpu().numpy()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block, of encoder and decoder, in the backward pass instead of keeping its activations."""
        self.backbone.set_grad_checkpointing(enable)
        self.decoder.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Name the parameters without weight decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()} | {"decoder.mask_token"}

    def _grid(self, x: Tensor) -> GridShape:
        h, w, d = (n // p for n, p in zip(x.shape[2:], self.patch_size))
        return h, w, d

    def _patches(self, x: Tensor, masks: MAEMasks) -> Tensor:
        patches = patchify(x.as_tensor() if isinstance(x, MetaTensor) else x, self.patch_size)
        count = sum(m.shape[-1] for m in masks)
        if any(m.dim() != 2 or len(m) != len(x) for m in masks) or count != patches.shape[1]:
            raise UsageError(
                f"masks of shapes {tuple(masks.visible.shape)} and {tuple(masks.masked.shape)}; expected masks for "
                f"{len(x)} samples of {patches.shape[1]} tokens. "
                f"Sample them with batch={len(x)} and grid={self._grid(x)}."
            )
        return patches

    def _predict(self, x: Tensor, masks: MAEMasks) -> Tensor:
        return self.decoder(self.backbone.forward_masked(x, masks.visible), masks, self._grid(x))


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation ``(B, N, 1)`` of each patch."""
    variance, mean = torch.var_mean(patches, dim=-1, correction=0, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def _index(tokens: Tensor, like: Tensor) -> Tensor:
    """Expand token numbers ``(B, n)`` to an index into ``(B, N, C)``."""
    return tokens.to(like.device)[..., None].expand(-1, -1, like.shape[-1])


def _take(values: Tensor, tokens: Tensor) -> Tensor:
    """Gather the values ``(B, N, C)`` at token numbers ``(B, n)``."""
    return values.gather(1, _index(tokens, values))
