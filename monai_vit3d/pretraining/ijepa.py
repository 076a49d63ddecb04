"""I-JEPA in 3D: predict the tokens of target blocks from those of the context (Assran et al. 2023, 2301.08243)."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, get_init_weights_vit, named_apply
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from monai_vit3d.data.errors import UsageError
from monai_vit3d.layers import fit_pos_embed, sincos_pos_embed
from monai_vit3d.layers.patch_embed import covering_grid
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.networks.options import require_all_tokens, require_final_norm

from .masking import JEPAMasks


class IJEPAOutput(NamedTuple):
    """``loss``, a scalar; ``predictions`` and ``targets``, tokens ``(B, M, Nt, E)`` of the M target blocks."""

    loss: Tensor
    predictions: Tensor
    targets: Tensor


class IJEPAPredictor(nn.Module):
    """A narrow vision transformer that predicts the tokens at given positions from context tokens.

    Args:
        embed_dim: width E of the encoders' tokens.
        grid: patches along ``(H, W, D)`` of the volumes that the positions are built for.
        width: its own width, at least 6.
        depth: number of blocks.
        num_heads: attention heads; they divide ``width``.

    Raises:
        UsageError: a width, depth or number of heads that does not fit.
    """

    pos_embed: Tensor

    def __init__(self, embed_dim: int, grid: tuple[int, int, int], width: int, depth: int, num_heads: int) -> None:
        super().__init__()
        if width < 6 or depth < 1 or num_heads < 1 or width % num_heads:
            raise UsageError(
                f"predictor_dim={width}, predictor_depth={depth}, predictor_heads={num_heads}: expected a width of 6 "
                "or more, one block or more, and heads that divide the width."
            )
        self.grid, self.grad_checkpointing = grid, False
        self.embed = nn.Linear(embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("pos_embed", sincos_pos_embed(grid, width), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, qkv_bias=True, norm_layer=nn.LayerNorm, depth=i) for i in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, embed_dim)
        named_apply(get_init_weights_vit(needs_reset=False), self)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tensor, masks: JEPAMasks, grid: tuple[int, int, int]) -> Tensor:
        """Predict each target block on its own; the blocks of a volume are rows of one batch.

        Args:
            context: tokens ``(B, Nc, E)`` at ``masks.context``.
            masks: token numbers of context and targets.
            grid: patches along ``(H, W, D)`` of these volumes.

        Returns:
            ``(B, M, Nt, E)``.
        """
        blocks, count = masks.targets.shape[1:]
        pos = fit_pos_embed(self.pos_embed, self.grid, grid, 0, learned=False, resample=False)[0]
        context_tokens = self.embed(context) + pos[masks.context]
        mask_tokens = self.mask_token + pos[masks.targets.flatten(0, 1)]
        x = torch.cat([context_tokens.repeat_interleave(blocks, dim=0), mask_tokens], dim=1)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
        return self.project(self.norm(x[:, -count:])).unflatten(0, (-1, blocks))


class IJEPA(nn.Module):
    """Context encoder, target encoder and predictor of I-JEPA, and their loss.

    The context encoder gets the context's voxels and tokens only: the other voxels are 0, the other tokens are left
    out before its first block. The target encoder, a moving average of it, reads the whole volume in eval mode and
    without gradient; its normed tokens, each normed once more without weights, are the targets. The loss is smooth L1
    on these, as in data2vec (Baevski et al. 2022, arXiv:2202.03555), while the paper has the squared distance: a few
    outlying tokens do not outweigh the rest.

    Class and register tokens take part in the encoders; the predictor sees patch tokens only. No loss trains a class
    token to summarise the volume: pool pretrained features by their mean.

    A step is ``loss = model(x, masks).loss``, ``backward``, the optimizer's step, and then
    ``model.update_target(momentum_at(step, total))``.

    Args:
        backbone: becomes the context encoder; its head is removed.
        predictor_dim: the predictor's width; None for half the backbone's, as ViT-B has in the paper.
        predictor_depth: the predictor's blocks.
        predictor_heads: the predictor's attention heads; None for the backbone's number.

    Raises:
        UsageError: a predictor that cannot be built, or patch dropout.
        ValueError: a backbone with ``fc_norm=True``, or whose background has no tokens.

    Example:
        >>> model = IJEPA(create_model("vit3d_tiny", (64, 64, 64), 8))
        >>> masks = sample_jepa_masks(2, model.encoder.grid_size, generator=torch.Generator().manual_seed(0))
        >>> model(torch.zeros(2, 1, 64, 64, 64), masks).loss.shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: VisionTransformer3D,
        predictor_dim: int | None = None,
        predictor_depth: int = 6,
        predictor_heads: int | None = None,
    ) -> None:
        super().__init__()
        require_final_norm(backbone, "JEPA")
        require_all_tokens(backbone, "JEPA")
        if not isinstance(backbone.patch_drop, nn.Identity):
            raise UsageError("backbone: patch_drop_rate > 0 drops patches at random, but masks choose them. Use 0.")
        width = backbone.embed_dim // 2 if predictor_dim is None else predictor_dim
        heads = backbone.num_heads if predictor_heads is None else predictor_heads
        self.predictor = IJEPAPredictor(backbone.embed_dim, backbone.grid_size, width, predictor_depth, heads)
        weight = next(backbone.patch_embed.parameters())
        self.predictor.to(weight.device, weight.dtype)
        backbone.reset_classifier(0, "")  # a head would be parameters without a gradient
        self.context_encoder = backbone
        self.target_encoder = deepcopy(backbone).requires_grad_(False).eval()
        self.target_encoder.set_grad_checkpointing(False)

    @property
    def encoder(self) -> VisionTransformer3D:
        """The network to export and to probe: the target encoder, frozen and in eval mode.

        The paper evaluates it, too: it is the average of many steps, and has always read whole volumes, as all later
        uses do. To fine-tune, load its ``state_dict`` into a network of your own.
        """
        return self.target_encoder

    def train(self, mode: bool = True) -> IJEPA:
        """Set the mode of context encoder and predictor; the target encoder stays in eval mode."""
        super().train(mode)
        self.target_encoder.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block of context encoder and predictor in the backward pass: less memory, more time."""
        self.context_encoder.set_grad_checkpointing(enable)
        self.predictor.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Name the parameters without weight decay, besides biases and norms."""
        return {f"context_encoder.{name}" for name in self.context_encoder.no_weight_decay()} | {"predictor.mask_token"}

    def forward(self, x: Tensor, masks: JEPAMasks) -> IJEPAOutput:
        """Compute the loss of a batch; with DistributedDataParallel, call this through the wrapper.

        Args:
            x: ``(B, C, H, W, D)``.
            masks: from :func:`sample_jepa_masks` for the patch grid of ``x``, on any device; on the CPU, checking them
                does not wait for a GPU.

        Returns:
            The loss, a mean over all target tokens and channels in float32 or wider, and the tokens compared.

        Raises:
            ValueError: ``x`` of wrong rank, channels or size; masks of another shape or type or with numbers beyond
                the last patch (for targets a UsageError, which is a ValueError).
        """
        targets = self._targets(x, masks.targets)
        prefix = self.context_encoder.num_prefix_tokens
        context = self.context_encoder.forward_masked(x, masks.context)[:, prefix:]
        grid = covering_grid(x, self.context_encoder.patch_size)
        device_masks = JEPAMasks(masks.context.to(x.device), masks.targets.to(x.device))
        predictions = self.predictor(context, device_masks, grid)
        loss = F.smooth_l1_loss(_at_least_float32(predictions), targets)
        return IJEPAOutput(loss, predictions, targets)

    @torch.no_grad()
    def _targets(self, x: Tensor, token_ids: Tensor) -> Tensor:
        """Compute the targets at ``token_ids`` ``(B, M, Nt)``."""
        tokens = self.target_encoder.forward_features(x)[:, self.target_encoder.num_prefix_tokens :]
        _check_targets(token_ids, tokens.shape[0], tokens.shape[1])
        tokens = F.layer_norm(_at_least_float32(tokens), (tokens.shape[2],))
        index = token_ids.to(tokens.device).flatten(1)[..., None].expand(-1, -1, tokens.shape[2])
        return tokens.gather(1, index).unflatten(1, token_ids.shape[1:])

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move the target encoder towards the context encoder; call it after each optimizer step.

        Args:
            momentum: share of the old target in the new one, 0 to 1; see :func:`momentum_at`. Buffers are copied.

        Raises:
            UsageError: a momentum out of its range, or parameters of 16 bits, which are too coarse for the average's
                small steps.
        """
        if not 0 <= momentum <= 1:
            raise UsageError(f"momentum={momentum}; expected a share from 0 to 1.")
        old, new = list(self.target_encoder.parameters()), list(self.context_encoder.parameters())
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in old):
            raise UsageError("parameters of 16 bits; the moving average needs float32. Keep them so and use autocast.")
        get_ema_multi_avg_fn(momentum)(old, new, None)
        for target, context in zip(self.target_encoder.buffers(), self.context_encoder.buffers()):
            target.copy_(context)


def _check_targets(token_ids: Tensor, batch: int, count: int) -> None:
    if token_ids.dim() != 3 or token_ids.shape[0] != batch or not token_ids.numel() or token_ids.dtype != torch.long:
        raise UsageError(
            f"masks.targets of shape {tuple(token_ids.shape)}, {token_ids.dtype}; expected patch numbers of shape "
            f"({batch}, M, Nt), torch.long. Draw them by sample_jepa_masks for this batch."
        )
    if bool(((token_ids < 0) | (token_ids >= count)).any()):
        raise UsageError(
            f"masks.targets has numbers from {int(token_ids.min())} to {int(token_ids.max())}; the volumes have "
            f"{count} patches, 0 to {count - 1}. Draw the masks for the grid of these volumes."
        )


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
