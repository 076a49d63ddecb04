"""VisionTransformer3D: timm's Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) for volumes."""

# annotations are left alive here: torch.fx writes that of ``forward`` into its graphs, and TorchScript reads it there

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import Attention, AttentionRope, Mlp, PatchDropout, calculate_drop_path_rates
from timm.models.vision_transformer import Block, global_pool_nlc
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import PatchEmbed3D
from ..layers.patch_embed import check_divisible, to_3tuple
from .backbone_args import describe_backbone
from .contract import TimmContract
from .embedding import TokenEmbedding
from .features import TokenFeatures
from .options import (
    build,
    check_numbers,
    resolve_act,
    resolve_attn,
    resolve_mlp,
    resolve_norm,
    resolve_pool,
    resolve_rope,
    rotary_block,
)
from .pretrained import Pretrained


class VisionTransformer3D(TokenEmbedding, TokenFeatures, TimmContract, Pretrained):
    """3D Vision Transformer with a timm-like interface.

    timm's Block is reused as it is; only the patch embedding and the positions are 3D.

    Args:
        img_size: input size in ``(H, W, D)`` voxels, one number for a cube.
        patch_size: patch size in ``(H, W, D)`` voxels; axes may differ.
        in_chans: number of input channels.
        num_classes: number of output classes; the head is an identity if not positive.
        global_pool: ``"cls_token"`` (timm's ``"token"`` is understood), ``"avg"``, ``"max"``, ``"avgmax"``,
            ``"map"`` (attentive pooling), or ``""`` for the full token sequence.
        embed_dim: width of a token.
        depth: number of transformer blocks.
        num_heads: number of attention heads.
        mlp_ratio: hidden width of the MLP over ``embed_dim``.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: whether queries and keys are normed.
        scale_attn_norm: whether the attention's output is normed before its projection.
        scale_mlp_norm: whether the MLP's hidden layer is normed.
        proj_bias: whether the projections of attention and MLP have a bias.
        class_token: whether to prepend a class token.
        reg_tokens: number of register tokens (Darcet et al. 2024, arXiv:2309.16588).
        no_embed_class: positions are defined on patch tokens only.
        pre_norm: norm before the blocks; the patch embedding then has no bias.
        final_norm: norm after the blocks.
        fc_norm: norm after pooling instead; None means ``global_pool == "avg"``.
        dynamic_img_size: take any size that the patch divides; positions follow (learned ones trilinearly).
        pos_embed: ``"learned"``, ``"sincos"`` or ``"none"``.
        drop_rate: dropout before the head.
        pos_drop_rate: dropout after the positions.
        proj_drop_rate: dropout after the projections in each block.
        attn_drop_rate: dropout of attention weights in each block.
        drop_path_rate: largest stochastic-depth rate; it grows linearly over the blocks.
        embed_layer: constructor of the patch embedding. It gets those that it takes of ``img_size``, ``patch_size``,
            ``in_chans``, ``embed_dim``, ``bias``, ``strict_img_size``, ``device``, ``dtype``, and turns
            ``(B, C, H, W, D)`` into ``(B, N, embed_dim)``, a token for each patch, D fastest. For
            :meth:`set_input_size` it needs a method of that name.
        norm_layer: constructor of the norms, timm's name for one, or None for the default.
        act_layer: constructor of the activation, timm's name for one, or None for the default.
        block_fn: constructor of a block; it gets those keywords that it knows.
        mlp_layer: constructor of the MLP, its name, or None for the default.
        attn_layer: constructor of the attention, timm's name for it (``"attn"``, ``"diff"``), or None for the default.
        init_values: start of timm's LayerScale; passed on to the blocks only when set.
        patch_drop_rate: share of patch tokens left out in training.
        dynamic_img_pad: pad inputs with zeros at each axis' end to the next multiple of the patch; tokens that
            would hold nothing but padding are never made. Any size up to ``img_size``, and with
            ``dynamic_img_size`` any size at all.
        weight_init: timm's scheme, ``""``, ``"jax"``, ``"jax_nlhb"``, ``"moco"``, ``"reset"`` or ``"skip"``.
        pool_include_prefix: let ``"avg"``, ``"max"``, ``"avgmax"`` and ``"map"`` see the prefix tokens.
        rope: rotary positions in every block, besides ``pos_embed`` (``"none"`` leaves them alone): ``"patch"``,
            ``"mm"`` (by the voxel spacing, see :func:`~monai_vit3d.layers.set_spacing`), ``"box"``, or a constructor
            that is called with a head's width (a partial of :class:`~monai_vit3d.layers.RotaryPositions3D`).
        device: where to create the parameters.
        dtype: in which type to create them.

    Raises:
        ValueError: an option out of its range; the message says what is needed.

    Example:
        >>> net = VisionTransformer3D(img_size=(96, 80, 48), patch_size=(16, 16, 4), num_classes=3)
        >>> net(torch.zeros(1, 1, 96, 80, 48)).shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        img_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        in_chans: int = 1,
        num_classes: int = 0,
        global_pool: str = "cls_token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        scale_mlp_norm: bool = False,
        proj_bias: bool = True,
        class_token: bool = True,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
        pre_norm: bool = False,
        final_norm: bool = True,
        fc_norm: bool | None = None,
        dynamic_img_size: bool = False,
        pos_embed: str = "learned",
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        embed_layer: Callable[..., nn.Module] = PatchEmbed3D,
        norm_layer: Callable[..., nn.Module] | str | None = nn.LayerNorm,
        act_layer: Callable[..., nn.Module] | str | None = nn.GELU,
        block_fn: Callable[..., nn.Module] = Block,
        mlp_layer: Callable[..., nn.Module] | str | None = Mlp,
        attn_layer: Callable[..., nn.Module] | str | None = Attention,
        *,
        init_values: float | None = None,
        patch_drop_rate: float = 0.0,
        dynamic_img_pad: bool = False,
        weight_init: str = "",
        pool_include_prefix: bool = False,
        rope: Callable[..., nn.Module] | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_numbers(embed_dim, depth, num_heads, reg_tokens, pos_embed)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.global_pool = resolve_pool(global_pool, class_token)
        self.norm_layer, self.act_layer = resolve_norm(norm_layer), resolve_act(act_layer)
        self.in_chans, self.num_classes = in_chans, int(num_classes)
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_heads, self.mlp_ratio, self.grad_checkpointing = num_heads, mlp_ratio, False
        self.has_class_token, self.num_reg_tokens = bool(class_token), int(reg_tokens)
        self.num_prefix_tokens = int(class_token) + int(reg_tokens)
        self.no_embed_class, self.final_norm, self.fc_norm_arg = bool(no_embed_class), bool(final_norm), fc_norm
        self.pool_include_prefix, self.weight_init = bool(pool_include_prefix), weight_init
        self.dynamic_img_size, self.dynamic_img_pad = bool(dynamic_img_size), bool(dynamic_img_pad)
        self.img_size, self.patch_size = to_3tuple(img_size, "img_size"), to_3tuple(patch_size, "patch_size")
        check_divisible(self.img_size, self.patch_size)
        sizes = {"img_size": img_size, "patch_size": patch_size}  # as they came, for layers of one's own
        self._build_patches(embed_layer, **sizes, embed_dim=embed_dim, bias=not pre_norm, **factory)
        self._build_tokens(class_token, reg_tokens, pos_embed, factory)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.patch_drop = PatchDropout(patch_drop_rate, self.num_prefix_tokens) if patch_drop_rate else nn.Identity()
        self.norm_pre = self._new_norm(pre_norm)
        layers = {"norm_layer": self.norm_layer, "act_layer": self.act_layer, "mlp_layer": resolve_mlp(mlp_layer)}
        norms = {"qk_norm": qk_norm, "scale_attn_norm": scale_attn_norm, "scale_mlp_norm": scale_mlp_norm}
        drops = {"proj_drop": proj_drop_rate, "attn_drop": attn_drop_rate}
        attention = resolve_attn(attn_layer)
        self.rope = resolve_rope(rope, embed_dim // num_heads)
        if self.rope is not None:
            block_fn, attention = rotary_block(self.rope, block_fn, attention, self.num_prefix_tokens), AttentionRope
        layer_scale = {} if init_values is None else {"init_values": init_values}
        self.blocks = nn.Sequential(
            *[
                build(
                    block_fn,
                    **{"dim": embed_dim, "num_heads": num_heads, "mlp_ratio": mlp_ratio, "attn_layer": attention},
                    **{"qkv_bias": qkv_bias, "proj_bias": proj_bias, "drop_path": rate, "depth": i},
                    **{**layers, **norms, **drops, **layer_scale, **factory},
                )
                for i, rate in enumerate(calculate_drop_path_rates(drop_path_rate, depth))
            ]
        )
        self._describe_features()
        self._describe_data()
        norm_after_pool = self.global_pool == "avg" if fc_norm is None else bool(fc_norm)
        self.norm = self._new_norm(final_norm and not norm_after_pool)
        self.fc_norm = self._new_norm(norm_after_pool)
        self.attn_pool: nn.Module | None = None
        self._build_attn_pool()
        self.head_drop = nn.Dropout(drop_rate)
        self._build_head()
        self._init_weights(weight_init, needs_reset=False)

    @torch.jit.unused  # type: ignore[untyped-decorator]
    def _described(self) -> dict[str, Any]:
        return describe_backbone(self)

    def _run_blocks(
        self,
        x: Tensor,
        take: list[int],
        rope: Tensor | None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        last: int = -1,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the blocks (up to ``last``, if not negative); also return the outputs of those in ``take``.

        With rotary positions, ``rope`` holds the patches' angles.
        """
        taken: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if last < 0 or i <= last:
                if torch.jit.is_scripting():
                    if self.rope is not None:
                        x = block(x, rope, attn_mask, is_causal)
                    elif attn_mask is not None or is_causal:
                        x = block(x, attn_mask, is_causal)
                    else:
                        x = block(x)
                else:
                    x = self._run_block(block, x, rope, attn_mask, is_causal)
                if i in take:
                    taken.append(x)
        return x, taken

    @torch.jit.unused  # type: ignore[untyped-decorator]
    def _run_block(
        self, block: nn.Module, x: Tensor, rope: Tensor | None, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        given = () if rope is None else (rope,)
        if attn_mask is not None or is_causal:  # in this order: torch.fx, which cannot ask the second, takes the first
            given = (*given, attn_mask, is_causal)
        return checkpoint(block, x, *given, use_reentrant=False) if self.grad_checkpointing else block(x, *given)

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compute token features.

        Args:
            x: ``(B, C, H, W, D)``.
            attn_mask: passed on to every block, as timm's attention takes it.
            is_causal: each token attends to those before it only; passed on to every block.

        Returns:
            ``(B, P + N, E)``: prefix tokens, then patch tokens with D fastest.

        Raises:
            ValueError: wrong rank, channels or size.
        """
        tokens, rope = self._embed_rotary(x)
        x, _ = self._run_blocks(tokens, [], rope, attn_mask, is_causal)
        return self.norm(x)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool token features.

        Args:
            x: ``(B, P + N, E)``.
            pool_type: pooling mode; None takes the network's own.

        Returns:
            ``(B, E)``, or the full sequence if the mode is ``""``.

        Raises:
            ValueError: unknown mode, a class-token pool without a class token, or ``"map"`` on a network that
                was built without it.
        """
        mode = self.global_pool if pool_type is None else pool_type
        if not torch.jit.is_scripting():
            mode = resolve_pool(mode, self.has_class_token)
        if mode == "map":
            if self.attn_pool is None:
                raise ValueError("pool_type='map' needs a network built with global_pool='map'.")
            return self.attn_pool(x if self.pool_include_prefix else x[:, self.num_prefix_tokens :])
        mode = "token" if mode == "cls_token" else mode
        return global_pool_nlc(x, mode, self.num_prefix_tokens, self.pool_include_prefix)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Apply pooling and the classification head.

        Args:
            x: ``(B, P + N, E)``.
            pre_logits: return the pooled features before the classifier.

        Returns:
            ``(B, num_classes)`` or ``(B, E)``; with ``global_pool=""`` the same for every token.
        """
        x = self.head_drop(self.fc_norm(self.pool(x)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Logits, or pooled features where there is no head.

        Args:
            x: ``(B, C, H, W, D)``.
            attn_mask: passed on to every block, as timm's attention takes it.
            is_causal: each token attends to those before it only; passed on to every block.

        Returns:
            ``(B, num_classes)``, ``(B, E)``, or with ``global_pool=""`` one such row per token.
        """
        return self.forward_head(self.forward_features(x, attn_mask, is_causal))
