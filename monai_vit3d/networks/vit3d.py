"""VisionTransformer3D: timm's Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) for volumes."""

# annotations stay objects, not strings: torch.fx copies that of ``forward`` into its graphs, and TorchScript reads it

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
from monai.data import MetaTensor
from timm.layers import (
    Attention,
    AttentionPoolLatent,
    Mlp,
    PatchDropout,
    calculate_drop_path_rates,
    lecun_normal_,
    trunc_normal_,
)
from timm.layers.patch_dropout import patch_dropout_forward
from timm.models.vision_transformer import Block, get_init_weights_vit, global_pool_nlc, named_apply
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_vit3d.deprecated import warn_renamed
from monai_vit3d.layers import PatchEmbed3D, fit_pos_embed, keep_rows, sincos_pos_embed, to_3tuple
from monai_vit3d.layers.embed_contract import refuse_tokens
from monai_vit3d.layers.foreground import (
    KeptTokens,
    find_foreground,
    keep_foreground,
    key_mask,
    pool_foreground,
    refuse_masks,
    spread_tokens,
)
from monai_vit3d.layers.patch_embed import check_divisible, check_volume, covering_grid, refuse_volume

from .backbone_args import describe_backbone
from .build_layer import build
from .layer_decay import backbone_matcher
from .options import (
    Indices,
    check_ids_keep,
    check_numbers,
    check_weight_init,
    last_blocks,
    resolve_act,
    resolve_attn,
    resolve_embed,
    resolve_indices,
    resolve_map_format,
    resolve_mlp,
    resolve_norm,
    resolve_pool,
    resolve_rope,
    resolve_tokens,
    rotary_block,
)
from .pos_cache import PositionCache, outlives_the_call
from .pretrained import Pretrained

# Leaves for torch.fx: their branches depend on the input's shape, which a symbolic trace does not know.
torch.fx.wrap("check_volume")
torch.fx.wrap("fit_pos_embed")
torch.fx.wrap("find_foreground")
torch.fx.wrap("refuse_masks")
torch.fx.wrap("refuse_volume")


class VisionTransformer3D(Pretrained):
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
        embed_layer: constructor of the patch embedding, or its name in
            :data:`~monai_vit3d.layers.EMBED_LAYERS` (``"patch"``, ``"conv_stem"``, ``"primus_v2"``, ``"primus_v3"``).
            A constructor gets those that it takes of ``img_size``, ``patch_size``, ``in_chans``, ``embed_dim``,
            ``bias``, ``strict_img_size``, ``device``, ``dtype``, and its layer turns ``(B, C, H, W, D)`` into
            ``(B, N, embed_dim)``, a token for each patch, D fastest. :meth:`set_input_size` needs a method of that
            name on it.
        norm_layer: constructor of the norms, timm's name for one, or None for the default.
        act_layer: constructor of the activation, timm's name for one, or None for the default.
        block_fn: constructor of a block; it gets those keywords that it knows.
        mlp_layer: constructor of the MLP, its name, or None for the default.
        attn_layer: constructor of the attention, its name (timm's ``"attn"`` and ``"diff"``; ``"head_gated"``), or None
            for the default.
        init_values: initial value of timm's LayerScale; passed on to the blocks only when set.
        patch_drop_rate: share of patch tokens left out in training.
        dynamic_img_pad: pad inputs with zeros at each axis' end to the next multiple of the patch; tokens that
            would hold nothing but padding are never made. Any size up to ``img_size``, and with
            ``dynamic_img_size`` any size at all.
        weight_init: timm's scheme, ``""``, ``"jax"``, ``"jax_nlhb"``, ``"moco"``, ``"reset"`` or ``"skip"``.
        fix_init: divide the initial weights of block i's two output projections by ``sqrt(2 (i + 1))``, as BEiT does
            (Bao et al. 2022, arXiv:2106.08254, section 2.6).
        embed_norm_layer: norm of the patch embedding's tokens: a constructor, timm's name for one, or None for none.
        pool_include_prefix: let ``"avg"``, ``"max"``, ``"avgmax"`` and ``"map"`` see the prefix tokens.
        rope: rotary positions in every block, besides ``pos_embed`` (``"none"`` leaves them alone): ``"patch"``,
            ``"mm"`` (by the voxel spacing, see :func:`~monai_vit3d.layers.set_spacing`), ``"box"``, or a constructor
            that is called with a head's width (a partial of :class:`~monai_vit3d.layers.RotaryPositions3D`).
        tokens: which patches get a token, see :meth:`set_tokens`: ``"all"``; ``"foreground"``, those that are not
            constant; or a number, those with a voxel above it.
        device: where to create the parameters.
        dtype: in which type to create them.

    Raises:
        ValueError: an option out of its range; the message says what is expected.

    Example:
        >>> net = VisionTransformer3D(img_size=(96, 80, 48), patch_size=(16, 16, 4), num_classes=3)
        >>> net(torch.zeros(1, 1, 96, 80, 48)).shape
        torch.Size([1, 3])
    """

    if TYPE_CHECKING:  # TorchScript would read annotations of modules that it cannot compile
        img_size: tuple[int, int, int]
        patch_size: tuple[int, int, int]
        grid_size: tuple[int, int, int]
        num_patches: int
        in_chans: int
        num_classes: int
        global_pool: str
        embed_dim: int
        num_features: int
        head_hidden_size: int
        num_heads: int
        mlp_ratio: float
        num_prefix_tokens: int
        num_reg_tokens: int
        has_class_token: bool
        no_embed_class: bool
        final_norm: bool
        fc_norm_arg: bool | None
        pool_include_prefix: bool
        dynamic_img_size: bool
        dynamic_img_pad: bool
        grad_checkpointing: bool
        weight_init: str
        fix_init: bool
        pos_embed_type: str
        tokens: str | float
        norm_layer: Callable[..., nn.Module]
        act_layer: Callable[..., nn.Module]
        patch_embed: nn.Module
        cls_token: nn.Parameter | None
        reg_token: nn.Parameter | None
        pos_embed: Tensor | None
        pos_drop: nn.Module
        patch_drop: nn.Module
        norm_pre: nn.Module
        rope: nn.Module | None
        blocks: nn.Sequential
        norm: nn.Module
        attn_pool: nn.Module | None
        fc_norm: nn.Module
        head_drop: nn.Module
        head: nn.Module
        feature_info: list[dict[str, Any]]
        pretrained_cfg: dict[str, Any]
        default_cfg: dict[str, Any]
        _model_args: dict[str, Any]  # written by timm's factory

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
        embed_layer: Callable[..., nn.Module] | str = PatchEmbed3D,
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
        fix_init: bool = False,
        embed_norm_layer: Callable[..., nn.Module] | str | None = None,
        pool_include_prefix: bool = False,
        rope: Callable[..., nn.Module] | str | None = None,
        tokens: str | float = "all",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_numbers(embed_dim, depth, num_heads, reg_tokens, pos_embed)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.img_size, self.patch_size = to_3tuple(img_size, "img_size"), to_3tuple(patch_size, "patch_size")
        check_divisible(self.img_size, self.patch_size)
        self._set_grid()
        self.in_chans, self.num_classes = in_chans, int(num_classes)
        self.global_pool = resolve_pool(global_pool, class_token)
        self.pool_include_prefix = bool(pool_include_prefix)
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_heads, self.mlp_ratio, self.grad_checkpointing = num_heads, mlp_ratio, False
        self.has_class_token, self.num_reg_tokens = bool(class_token), int(reg_tokens)
        self.num_prefix_tokens = int(class_token) + int(reg_tokens)
        self.no_embed_class, self.final_norm, self.fc_norm_arg = bool(no_embed_class), bool(final_norm), fc_norm
        self.dynamic_img_size, self.dynamic_img_pad = bool(dynamic_img_size), bool(dynamic_img_pad)
        self.weight_init, self.fix_init = weight_init, bool(fix_init)
        self.norm_layer, self.act_layer = resolve_norm(norm_layer), resolve_act(act_layer)

        # patches; sizes as they came, for layers of one's own
        embed_options: dict[str, Any] = {
            "img_size": img_size,
            "patch_size": patch_size,
            "bias": not pre_norm,
            **factory,
        }
        if embed_norm_layer is not None:
            embed_options["norm_layer"] = resolve_norm(embed_norm_layer)
        self._build_patch_embed(resolve_embed(embed_layer), embed_options)

        # prefix tokens and positions
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **factory)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim, **factory)) if reg_tokens else None
        self.pos_embed_type = pos_embed
        # how many of the positions belong to prefix tokens
        self._pos_prefix = 0 if self.no_embed_class or pos_embed != "learned" else self.num_prefix_tokens
        positions = torch.zeros(1, self._pos_prefix + self.num_patches, embed_dim, **factory)
        if pos_embed == "learned":
            self.pos_embed = nn.Parameter(positions)
        else:
            self.register_buffer("pos_embed", positions if pos_embed == "sincos" else None, persistent=False)
        self._pos_cache = PositionCache()
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.patch_drop = PatchDropout(patch_drop_rate, self.num_prefix_tokens) if patch_drop_rate else nn.Identity()
        self.norm_pre = self._new_norm(pre_norm)
        self.set_tokens(tokens)

        # blocks
        attention = resolve_attn(attn_layer)
        self.rope = resolve_rope(rope, embed_dim // num_heads)
        if self.rope is not None:
            block_fn, attention = rotary_block(self.rope, block_fn, attention, self.num_prefix_tokens)
        block_options: dict[str, Any] = {
            **{"dim": embed_dim, "num_heads": num_heads, "mlp_ratio": mlp_ratio, "attn_layer": attention},
            **{"norm_layer": self.norm_layer, "act_layer": self.act_layer, "mlp_layer": resolve_mlp(mlp_layer)},
            **{"qkv_bias": qkv_bias, "proj_bias": proj_bias, "qk_norm": qk_norm},
            **{"scale_attn_norm": scale_attn_norm, "scale_mlp_norm": scale_mlp_norm},
            **{"proj_drop": proj_drop_rate, "attn_drop": attn_drop_rate, **factory},
            **({} if init_values is None else {"init_values": init_values}),
        }
        rates = calculate_drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.Sequential(
            *[build(block_fn, **block_options, drop_path=rate, depth=i) for i, rate in enumerate(rates)]
        )
        self._describe_features()

        # final norm, pooling and head
        norm_after_pool = self.global_pool == "avg" if fc_norm is None else bool(fc_norm)
        self.norm = self._new_norm(final_norm and not norm_after_pool)
        self.fc_norm = self._new_norm(norm_after_pool)
        self.attn_pool = None
        self._build_attn_pool()
        self.head_drop = nn.Dropout(drop_rate)
        self._build_head()
        self._describe_data()
        self.init_weights(weight_init, needs_reset=False)

    @torch.jit.unused
    def _described(self) -> dict[str, Any]:
        return describe_backbone(self)

    def _build_patch_embed(self, embed_layer: Callable[..., nn.Module], options: dict[str, Any]) -> None:
        """Build the patch embedding: one of ours, or a layer that knows no more than how to embed."""
        self.takes_grid = self.dynamic_img_size or self.dynamic_img_pad
        kind = getattr(embed_layer, "func", embed_layer)
        if self.takes_grid and isinstance(kind, type) and issubclass(kind, PatchEmbed3D):
            options = {**options, "flatten": False, "output_fmt": "NHWDC"}
        self.patch_embed = build(
            embed_layer,
            in_chans=self.in_chans,
            embed_dim=self.embed_dim,
            strict_img_size=not self.dynamic_img_size,
            dynamic_img_pad=self.dynamic_img_pad,
            **options,
        )
        self._checks_input = not isinstance(self.patch_embed, PatchEmbed3D)
        self._embeds_flat = getattr(self.patch_embed, "flatten", True)
        self._embeds_each_patch = type(self.patch_embed) is PatchEmbed3D  # a stem mixes neighbours
        grid = tuple(getattr(self.patch_embed, "grid_size", self.grid_size))
        if grid != self.grid_size:
            raise ValueError(
                f"embed_layer={type(self.patch_embed).__name__} makes a grid of {grid}; one token for each patch, "
                f"{self.grid_size} of img_size={self.img_size} and patch_size={self.patch_size}, is expected."
            )

    def _set_grid(self) -> None:
        h, w, d = (i // p for i, p in zip(self.img_size, self.patch_size))
        self.grid_size, self.num_patches = (h, w, d), h * w * d

    def _factory(self) -> dict[str, Any]:
        weight = next(chain(self.patch_embed.parameters(), self.parameters()))
        return {"device": weight.device, "dtype": weight.dtype}

    def _new_norm(self, exists: bool) -> nn.Module:
        norm = self.norm_layer(self.embed_dim, **self._factory()) if exists else nn.Identity()
        return norm.train(self.training)

    def _build_head(self) -> None:
        head = nn.Linear(self.embed_dim, self.num_classes, **self._factory()) if self.num_classes > 0 else nn.Identity()
        self.head = head.train(self.training)

    def _build_attn_pool(self) -> None:
        if self.global_pool != "map":
            self.attn_pool = None
        elif self.attn_pool is None:
            layers: dict[str, Any] = {"norm_layer": self.norm_layer, "act_layer": self.act_layer, **self._factory()}
            pool = AttentionPoolLatent(self.embed_dim, num_heads=self.num_heads, mlp_ratio=self.mlp_ratio, **layers)
            self.attn_pool = pool.train(self.training)

    def _describe_features(self) -> None:
        # timm's FeatureInfo compares reductions as numbers: the largest axis, and the whole patch beside it
        info: dict[str, Any] = {
            "num_chs": self.embed_dim,
            "reduction": max(self.patch_size),
            "patch_size": self.patch_size,
        }
        self.feature_info = [{"module": f"blocks.{i}", **info} for i in range(len(self.blocks))]

    def _describe_data(self) -> None:
        """Describe the input for timm's tools; volumes come normalised as their owner has them."""
        chans = int(self.in_chans)
        config = getattr(self, "pretrained_cfg", {})
        if len(config.get("mean", ())) != chans:
            config = {**config, "mean": (0.0,) * chans, "std": (1.0,) * chans}
        self.pretrained_cfg = self.default_cfg = {
            **config,
            **{"input_size": (chans, *self.img_size), "fixed_input_size": not self.dynamic_img_size},
            **{"interpolation": "trilinear"},
            **{"crop_pct": 1.0, "crop_mode": "center", "pool_size": None, "num_classes": self.num_classes},
            **{"first_conv": "patch_embed.proj", "classifier": "head"},
        }
        if hasattr(self, "_model_args"):  # timm's record of how to build it again
            self._model_args |= {"img_size": self.img_size, "patch_size": self.patch_size}

    @torch.jit.ignore
    def init_weights(self, mode: str | None = None, needs_reset: bool = True) -> None:
        """Initialize all weights with timm's scheme; a module's own ``init_weights`` is respected.

        Args:
            mode: ``""`` (timm's default), ``"jax"``, ``"jax_nlhb"``, ``"moco"`` or ``"reset"``; None takes the
                constructor's ``weight_init``.
            needs_reset: also call ``reset_parameters`` of the layers that the scheme leaves alone; the constructor,
                whose layers have just been made, does not.

        Raises:
            ValueError: an unknown scheme.
        """
        mode = self.weight_init if mode is None else mode
        check_weight_init(mode)
        if isinstance(self.pos_embed, nn.Parameter):
            trunc_normal_(self.pos_embed, std=0.02)
        elif self.pos_embed is not None:
            # refilled here, so that a network built on the meta device gets its table with its weights
            table = sincos_pos_embed(self.grid_size, self.embed_dim, device=self.pos_embed.device)
            self.pos_embed.copy_(table)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        head_bias = -math.log(self.num_classes) if mode == "jax_nlhb" and self.num_classes > 0 else 0.0
        init = get_init_weights_vit("reset" if mode == "skip" else mode, head_bias, needs_reset=needs_reset)
        for name, child in self.named_children():
            named_apply(init, child, name=name, include_root=True)
        proj = getattr(self.patch_embed, "proj", None)
        if mode.startswith("jax") and isinstance(proj, nn.Conv3d):  # timm knows the 2D convolution only
            lecun_normal_(proj.weight)
            if proj.bias is not None:
                nn.init.zeros_(proj.bias)
        if self.fix_init:
            self.fix_init_weight()

    @torch.jit.ignore
    def fix_init_weight(self) -> None:
        """Divide the weights of block i's two output projections by ``sqrt(2 (i + 1))``, as BEiT does."""
        with torch.no_grad():
            for i, block in enumerate(self.blocks):
                for name in ("attn.proj", "mlp.fc2"):
                    block.get_submodule(name).get_parameter("weight").div_(math.sqrt(2.0 * (i + 1)))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that weight decay should leave alone."""
        names = ("pos_embed", "cls_token", "reg_token")
        return {n for n in names if isinstance(getattr(self, n), nn.Parameter)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters into stem, blocks and head, for layer-wise learning rates.

        Args:
            coarse: makes no difference, as in timm's Vision Transformer: a block is a group.
        """
        return backbone_matcher("")

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier head."""
        return self.head

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network another head and optionally another pooling.

        Where ``fc_norm`` was left to the pooling (None), the final norm moves, weights and all, to the side of
        the pooling where the new mode has it.

        Args:
            num_classes: outputs of the new head; 0 for none.
            global_pool: new pooling mode; None keeps it.

        Raises:
            ValueError: unknown mode, or a class-token pool without a class token; nothing was changed then.
        """
        if global_pool is not None:
            self.global_pool = resolve_pool(global_pool, self.has_class_token)
            if self.fc_norm_arg is None:
                self._place_norms()
            self._build_attn_pool()
        self.num_classes = int(num_classes)
        self._build_head()
        self._describe_data()

    def _place_norms(self) -> None:
        """Move the final norm to the side of the pooling where it belongs; make it where there is none yet."""
        after = self.global_pool == "avg"
        present = self.norm if isinstance(self.fc_norm, nn.Identity) else self.fc_norm
        exists = after or self.final_norm
        norm = self._new_norm(exists) if isinstance(present, nn.Identity) or not exists else present
        self.norm = self._new_norm(False) if after else norm
        self.fc_norm = norm if after else self._new_norm(False)

    @torch.jit.ignore
    def set_tokens(self, tokens: str | float) -> None:
        """Choose which patches get a token; the weights stay as they are.

        Patches of background are left out before the first block, which saves their time and memory: the others'
        tokens are those of attention with the keys of background masked. The outputs keep their shapes: background
        has zeros in all that this network returns, after the norm, and pooling leaves it out. Of a volume without
        foreground all patches are zeros; so is what is pooled of them, and the prefix tokens attend to themselves.

        Exported and compiled forms (TorchScript, torch.export, ONNX, torch.compile), whose shapes may not depend on
        values, run all tokens and mask the keys: the same values, at the price of ``"all"``.

        Args:
            tokens: ``"all"``; ``"foreground"``, patches that are not constant in each channel (of a normalised image
                background is not 0); or a number in the units of the input, patches with a voxel above it in any
                channel, for air that is noisy.

        Raises:
            ValueError: none of these; or patch dropout, which chooses patches by itself.
        """
        self._has_foreground_only, self._background_max = resolve_tokens(tokens)
        if self._has_foreground_only and not isinstance(self.patch_drop, nn.Identity):
            raise ValueError(f"tokens={tokens!r} chooses patches, and so does patch_drop_rate > 0: use 0, or 'all'.")
        self.tokens = tokens if isinstance(tokens, str) else float(tokens)

    @torch.jit.ignore
    def set_input_size(
        self, img_size: int | Sequence[int] | None = None, patch_size: int | Sequence[int] | None = None
    ) -> None:
        """Change the input size, the patch size or both; positions and patch kernel are resampled.

        Args:
            img_size: new ``(H, W, D)``; None keeps it.
            patch_size: new patch ``(h, w, d)``; None keeps it.

        Raises:
            ValueError: the sizes do not divide, or a patch embedding that cannot change; nothing was changed then.
        """
        old_grid = self.grid_size
        resize = getattr(self.patch_embed, "set_input_size", None)
        if resize is None:
            kind = type(self.patch_embed).__name__
            raise ValueError(
                f"embed_layer={kind} has no method set_input_size(img_size, patch_size): build a new network."
            )
        resize(img_size, patch_size)
        self.img_size = self.img_size if img_size is None else to_3tuple(img_size, "img_size")
        self.patch_size = self.patch_size if patch_size is None else to_3tuple(patch_size, "patch_size")
        self._set_grid()
        self._describe_features()
        self._describe_data()
        if self.pos_embed is None or self.grid_size == old_grid:
            return
        learned = isinstance(self.pos_embed, nn.Parameter)
        pos = fit_pos_embed(self.pos_embed.detach(), old_grid, self.grid_size, self._pos_prefix, learned, True)
        self.pos_embed = nn.Parameter(pos, requires_grad=self.pos_embed.requires_grad) if learned else pos

    def _patch_tokens(self, x: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Embed patches: ``(B, N, E)``, or ``(B, H', W', D', E)`` where the input's size may vary (as in timm).

        Those that ``ids_keep`` does not name may be zeros.
        """
        if not torch.jit.is_scripting():
            if isinstance(x, MetaTensor):
                x = x.as_tensor()  # tokens have no affine; decoders take the metadata from the image
            if ids_keep is not None and self._embeds_each_patch:
                return self._some_patch_tokens(x, ids_keep)
        if self._checks_input:
            strict = not self.dynamic_img_size
            x = check_volume(x, self.in_chans, self.img_size, self.patch_size, strict, self.dynamic_img_pad)
        tokens: Tensor = self.patch_embed(x)
        if not torch.jit.is_scripting():  # noqa: SIM102
            if self._checks_input and outlives_the_call((), tokens):
                kind, on_grid = type(self.patch_embed).__name__, self.takes_grid and not self._embeds_flat
                refuse_tokens(tokens, kind, x, self.patch_size, self.embed_dim, on_grid)
        if self.takes_grid and self._embeds_flat:
            grid = covering_grid(x, self.patch_size)
            tokens = tokens.reshape(tokens.shape[0], grid[0], grid[1], grid[2], tokens.shape[2])
        return tokens

    @torch.jit.unused
    def _some_patch_tokens(self, x: Tensor, ids_keep: Tensor) -> Tensor:
        embed: Any = self.patch_embed
        some, grid = embed.embed_some(x, ids_keep), covering_grid(x, self.patch_size)
        tokens = some.new_zeros(some.shape[0], grid[0] * grid[1] * grid[2], some.shape[2])
        tokens = tokens.scatter(1, ids_keep[:, :, None].expand(-1, -1, some.shape[2]), some)
        return tokens.unflatten(1, grid) if self.takes_grid else tokens

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
            pos = self._fitted_positions((x.shape[1], x.shape[2], x.shape[3]))
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

    def _fitted_positions(self, grid: tuple[int, int, int]) -> Tensor | None:
        """Return the positions for a patch grid: as they are, resampled, or their corner."""
        pos: Tensor | None = self.pos_embed
        if pos is None:
            return None
        learned, resample = self.pos_embed_type == "learned", self.dynamic_img_size
        if not torch.jit.is_scripting():  # noqa: SIM102
            if outlives_the_call(grid, pos) and not (pos.requires_grad and torch.is_grad_enabled()):  # noqa: SIM102
                # looking whether learned positions changed is cheaper than resampling them on a CPU only
                if pos.device.type == "cpu" or not learned:
                    return self._pos_cache.fit(pos, self.grid_size, grid, self._pos_prefix, learned, resample)
        return fit_pos_embed(pos, self.grid_size, grid, self._pos_prefix, learned, resample)

    def _tokens(
        self, x: Tensor, ids_keep: Tensor | None = None, embed_all: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Make the sequence that enters the first block.

        Args:
            x: ``(B, C, H, W, D)``.
            ids_keep: ``(B, K)`` long, the patches to keep; None keeps those that patch dropout leaves.
            embed_all: False leaves out the others' embedding, too, where each patch has its own.

        Returns:
            ``(B, P + N, E)``, and with rotary positions the patches' angles for every block.
        """
        rope: Tensor | None = None
        if self.rope is not None:
            rope = self.rope(x, covering_grid(x, self.patch_size), self.patch_size)
        tokens = self._pos_embed(self._patch_tokens(x, None if embed_all else ids_keep))
        if ids_keep is not None:
            p = self.num_prefix_tokens
            rows = ids_keep.to(tokens.device)[:, :, None].expand(-1, -1, tokens.shape[2])
            tokens = torch.cat([tokens[:, :p], tokens[:, p:].gather(1, rows)], dim=1)
            if rope is not None:
                rope = keep_rows(rope, ids_keep)
            return self.norm_pre(tokens), rope
        if not torch.jit.is_scripting():  # noqa: SIM102 - in TorchScript patch dropout and rope do not train
            if rope is not None and isinstance(self.patch_drop, PatchDropout):
                drop = self.patch_drop
                tokens, kept = patch_dropout_forward(
                    tokens, drop.prob, drop.num_prefix_tokens, drop.ordered, drop.training
                )
                return self.norm_pre(tokens), rope if kept is None else keep_rows(rope, kept)
        return self.norm_pre(self.patch_drop(tokens)), rope

    def foreground_patches(self, x: Tensor) -> Tensor | None:
        """Find the patches that get a token.

        Args:
            x: ``(B, C, H, W, D)``.

        Returns:
            ``(B, N)`` bool, D fastest; None where all do (``tokens="all"``).

        Raises:
            ValueError: wrong rank, channels or size.
        """
        if not self._has_foreground_only:
            return None
        if not torch.jit.is_scripting():  # noqa: SIM102
            if isinstance(x, MetaTensor):
                x = x.as_tensor()
        strict, pad = not self.dynamic_img_size, self.dynamic_img_pad
        refuse_volume(x, self.in_chans, self.img_size, self.patch_size, strict, pad)
        return find_foreground(x, self.patch_size, self._background_max)

    def _kept_tokens(self, x: Tensor) -> KeptTokens | None:
        """Choose the tokens of :meth:`foreground_patches`; None for all."""
        patch_valid = self.foreground_patches(x)
        if patch_valid is None:
            return None
        fixed_shapes = True
        if not torch.jit.is_scripting():
            fixed_shapes = not outlives_the_call((), patch_valid)
        return keep_foreground(patch_valid, self.num_prefix_tokens, fixed_shapes)

    def _encode(
        self, x: Tensor, take: list[int], attn_mask: Tensor | None = None, is_causal: bool = False, last: int = -1
    ) -> tuple[Tensor, list[Tensor], KeptTokens | None]:
        """Embed and run the blocks, as :meth:`_run_blocks`; also return which tokens they ran on, None for all."""
        kept = self._kept_tokens(x)
        if kept is None:
            tokens, rope = self._tokens(x)
        else:
            refuse_masks(attn_mask, is_causal)
            is_causal = False  # the ONNX exporter made a tensor of it
            tokens, rope = self._tokens(x, kept.ids, kept.is_whole)
            attn_mask = kept.key_mask
        x, taken = self._run_blocks(tokens, take, rope, attn_mask, is_causal, last)
        return x, taken, kept

    def _whole(self, tokens: Tensor, kept: KeptTokens | None, norm: bool = True) -> Tensor:
        """Return ``(B, P + N, E)`` of what the blocks gave, normed or not."""
        tokens = self.norm(tokens) if norm else tokens
        return tokens if kept is None else spread_tokens(tokens, kept)

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

    @torch.jit.unused
    def _run_block(
        self, block: nn.Module, x: Tensor, rope: Tensor | None, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        given: tuple[Any, ...] = () if rope is None else (rope,)
        if attn_mask is not None or is_causal:  # in this order: torch.fx, which cannot ask the second, takes the first
            given = (*given, attn_mask, is_causal)
        return checkpoint(block, x, *given, use_reentrant=False) if self.grad_checkpointing else block(x, *given)

    def _as_map(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Put patch tokens ``(B, P + N, E)`` on their grid ``(B, E, H', W', D')``, contiguous as timm's."""
        tokens = tokens[:, self.num_prefix_tokens :].transpose(1, 2)
        return tokens.reshape(tokens.shape[0], tokens.shape[1], grid[0], grid[1], grid[2]).contiguous()

    def token_maps(self, x: Tensor, indices: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Compute patch grids of some blocks and of the final, normed tokens; TorchScript can compile it.

        Args:
            x: ``(B, C, H, W, D)``.
            indices: block numbers from 0, in block order.

        Returns:
            The final grid ``(B, E, H', W', D')``, and one such grid a block, not normed.
        """
        final, taken, kept = self._encode(x, indices)
        grid = covering_grid(x, self.patch_size)
        maps = [self._as_map(self._whole(y, kept, False), grid) for y in taken]
        return self._as_map(self._whole(final, kept), grid), maps

    def token_levels(self, x: Tensor, indices: list[int]) -> list[Tensor]:
        """Compute normed outputs of some blocks, prefix tokens first; TorchScript can compile it.

        Args:
            x: ``(B, C, H, W, D)``.
            indices: block numbers from 0, in block order.

        Returns:
            One ``(B, P + N, E)`` a block.
        """
        _, taken, kept = self._encode(x, indices)
        return [self._whole(y, kept) for y in taken]

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = (-1,),
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
        """Compute final tokens and the outputs of chosen blocks, in block order.

        Args:
            x: ``(B, C, H, W, D)``.
            indices: block numbers in any order, repeats allowed (each is returned once, in block order, as by
                timm); negative ones count from the end. An int is that one block (timm's int means the last n
                blocks); None means all.
            norm: apply the final norm to the intermediates too.
            output_fmt: ``"NLC"`` gives whole block outputs ``(B, P + N, E)``, prefix tokens first; ``"NCHWD"``
                gives contiguous patch grids ``(B, E, H', W', D')`` (timm's spelling ``"NCHW"`` is understood).
            intermediates_only: leave out the final tokens.
            return_prefix_tokens: pair each intermediate with its prefix tokens ``(B, P, E)``; ``"NLC"`` then
                holds patch tokens only.
            stop_early: do not run the blocks after the last one listed; the final tokens are then those of
                that block.
            output_dict: return a dict with timm's keys ``image_features``, ``image_intermediates`` and
                ``image_intermediates_prefix``.
            attn_mask: passed on to every block, as timm's attention takes it.
            is_causal: each token attends to those before it only; passed on to every block.

        Returns:
            ``(final, intermediates)``; ``intermediates`` alone; or the dict.

        Raises:
            ValueError: unknown format, an index out of range, or ``"NCHWD"`` while patch dropout removes patches.
        """
        as_map = resolve_map_format(output_fmt)
        if as_map and self.training and not isinstance(self.patch_drop, nn.Identity):
            raise ValueError("output_fmt='NCHWD' needs every patch, but patch_drop_rate > 0 drops some in training.")
        take = resolve_indices(indices, len(self.blocks), once=False)
        last = take[-1] if stop_early and take else -1
        final, taken, kept = self._encode(x, take, attn_mask, is_causal, last)
        grid = covering_grid(x, self.patch_size)
        taken = [self._whole(y, kept, norm) for y in taken]
        p = self.num_prefix_tokens
        prefix = [y[:, :p] for y in taken]
        if as_map:
            taken = [self._as_map(y, grid) for y in taken]
        elif return_prefix_tokens:
            taken = [y[:, p:] for y in taken]
        if output_dict:
            result = {} if intermediates_only else {"image_features": self._whole(final, kept)}
            extra = {"image_intermediates_prefix": prefix} if return_prefix_tokens and p else {}
            return {**result, "image_intermediates": taken, **extra}
        pairs = list(zip(taken, prefix)) if return_prefix_tokens else taken
        return pairs if intermediates_only else (self._whole(final, kept), pairs)

    @torch.jit.ignore
    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        attn_mask: Tensor | None = None,
    ) -> list[Any]:
        """Compute patch tokens of the last ``n`` blocks, or of the blocks listed: DINO's interface, as timm has it.

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
        pairs: list[Any] = self.forward_intermediates(
            x, last_blocks(n, len(self.blocks)), norm, fmt, True, return_prefix_tokens=True, attn_mask=attn_mask
        )
        return pairs if return_prefix_tokens else [tokens for tokens, _ in pairs]

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the chosen blocks do not use, as timm's feature wrappers ask for.

        Args:
            indices: the last n blocks if an int (timm's meaning), else block numbers.
            prune_norm: remove the final norm.
            prune_head: remove the head, its norm and its pooling.

        Returns:
            The block numbers kept for.

        Raises:
            ValueError: an index out of range.
        """
        take = resolve_indices(last_blocks(indices, len(self.blocks)), len(self.blocks), once=False)
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

    @torch.jit.ignore
    def forward_masked(self, x: Tensor, ids_keep: Tensor) -> Tensor:
        """Compute token features of some patches as if the others were not there, whatever ``tokens`` is.

        The other patches' voxels are set to 0, for embeddings that mix neighbours (ConvStem3D), and their tokens are
        left out before the first block, which saves their time and memory. So the result cannot depend on them.

        Args:
            x: ``(B, C, H, W, D)``.
            ids_keep: ``(B, N)`` long, numbers of the patches to keep, D fastest, in any order, each once.

        Returns:
            ``(B, P + N, E)``, normed: prefix tokens, then the kept patches' tokens in the order of ``ids_keep``.

        Raises:
            ValueError: wrong rank, channels or size; ``ids_keep`` of another shape or type or with numbers that no
                patch has; patch dropout, which would choose patches by itself.
        """
        if self.training and not isinstance(self.patch_drop, nn.Identity):
            raise ValueError("ids_keep says which patches to keep, but patch_drop_rate > 0 drops some: build with 0.")
        if x.dim() == 5:  # else the embedding says what is wrong with it
            x = self._without_hidden(x, ids_keep)
        tokens, rope = self._tokens(x, ids_keep)
        tokens, _ = self._run_blocks(tokens, [], rope)
        return self.norm(tokens)

    @torch.jit.ignore
    def forward_visible(self, x: Tensor, keep: Tensor) -> Tensor:
        """Call :meth:`forward_masked` under its former name, with a warning."""
        warn_renamed("forward_visible", "forward_masked")
        return self.forward_masked(x, keep)

    def _without_hidden(self, x: Tensor, ids_keep: Tensor) -> Tensor:
        """Return ``x`` with 0 wherever ``ids_keep`` does not name the patch."""
        grid = covering_grid(x, self.patch_size)
        check_ids_keep(ids_keep, x.shape[0], grid[0] * grid[1] * grid[2])
        visible = torch.zeros(x.shape[0], grid[0] * grid[1] * grid[2], dtype=torch.bool, device=x.device)
        visible = visible.scatter(1, ids_keep.to(x.device), True).view(-1, 1, *grid)
        for axis, voxels in enumerate(self.patch_size, 2):
            visible = visible.repeat_interleave(voxels, axis)
        plain = x.as_tensor() if isinstance(x, MetaTensor) else x
        return plain.where(visible[..., : x.shape[2], : x.shape[3], : x.shape[4]], 0)

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compute token features.

        Args:
            x: ``(B, C, H, W, D)``.
            attn_mask: passed on to every block, as timm's attention takes it.
            is_causal: each token attends to those before it only; passed on to every block.

        Returns:
            ``(B, P + N, E)``: prefix tokens, then patch tokens with D fastest.

        Raises:
            ValueError: wrong rank, channels or size; a mask of a network with tokens of foreground only.
        """
        tokens, _, kept = self._encode(x, [], attn_mask, is_causal)
        return self._whole(tokens, kept)

    def pool(self, x: Tensor, pool_type: str | None = None, patch_valid: Tensor | None = None) -> Tensor:
        """Pool token features.

        Args:
            x: ``(B, P + N, E)``.
            pool_type: pooling mode; None takes the network's own.
            patch_valid: ``(B, N)`` bool, the patches that count, as :meth:`foreground_patches` returns them; None: all.

        Returns:
            ``(B, E)``, or the full sequence if the mode is ``""``.

        Raises:
            ValueError: unknown mode, a class-token pool without a class token, or ``"map"`` on a network that
                was built without it; patches to pool of a network with tokens of foreground only, and no
                ``patch_valid``.
        """
        mode = self.global_pool if pool_type is None else pool_type
        if not torch.jit.is_scripting():
            mode = resolve_pool(mode, self.has_class_token)
        mode = "token" if mode == "cls_token" else mode
        pooled = x if self.pool_include_prefix else x[:, self.num_prefix_tokens :]
        valid = None if mode in ("token", "") else self._pooled_tokens(patch_valid)
        if mode == "map":
            if self.attn_pool is None:
                raise ValueError("pool_type='map' needs a network built with global_pool='map'.")
            if valid is None:
                return self.attn_pool(pooled)
            return self.attn_pool(pooled, key_mask(valid, 0)).masked_fill(~valid.any(1, keepdim=True), 0.0)
        if valid is not None:
            return pool_foreground(pooled, valid, mode)
        return global_pool_nlc(x, mode, self.num_prefix_tokens, self.pool_include_prefix)

    def _pooled_tokens(self, patch_valid: Tensor | None) -> Tensor | None:
        """Return which of the tokens that a pooling sees count; None: all."""
        if patch_valid is None:
            if self._has_foreground_only:
                raise ValueError(
                    "tokens of foreground only: the patches to pool are needed. Call "
                    "forward_head(x, patch_valid=network.foreground_patches(volume)), or the network itself."
                )
            return None
        if not self.pool_include_prefix:
            return patch_valid
        return torch.cat([patch_valid.new_ones(patch_valid.shape[0], self.num_prefix_tokens), patch_valid], 1)

    def forward_head(self, x: Tensor, pre_logits: bool = False, patch_valid: Tensor | None = None) -> Tensor:
        """Apply pooling and the classification head.

        Args:
            x: ``(B, P + N, E)``.
            pre_logits: return the pooled features before the classifier.
            patch_valid: ``(B, N)`` bool, the patches that are pooled, as for :meth:`pool`; None: all.

        Returns:
            ``(B, num_classes)`` or ``(B, E)``; with ``global_pool=""`` the same for every token.
        """
        x = self.head_drop(self.fc_norm(self.pool(x, None, patch_valid)))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Compute logits, or pooled features where there is no head.

        Args:
            x: ``(B, C, H, W, D)``.
            attn_mask: passed on to every block, as timm's attention takes it.
            is_causal: each token attends to those before it only; passed on to every block.

        Returns:
            ``(B, num_classes)``, ``(B, E)``, or with ``global_pool=""`` one such row per token.
        """
        features = self.forward_features(x, attn_mask, is_causal)
        return self.forward_head(features, patch_valid=self.foreground_patches(x))
