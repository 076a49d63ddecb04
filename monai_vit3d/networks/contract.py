"""The part of timm's model contract that changes or describes a network: heads, sizes, groups, init."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from timm.layers import AttentionPoolLatent, lecun_normal_, trunc_normal_
from timm.models import named_apply
from timm.models.vision_transformer import get_init_weights_vit
from torch import nn

from ..layers import fit_pos_embed, sincos_pos_embed, to_3tuple
from .layer_decay import backbone_matcher
from .options import check_weight_init, resolve_pool


class TimmContract(nn.Module):
    """timm's methods around the forward pass, spelled as timm spells them."""

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def init_weights(self, mode: str | None = None) -> None:
        """Initialize all weights with timm's scheme; a module's own ``init_weights`` is respected.

        Args:
            mode: ``""`` (timm's default), ``"jax"``, ``"jax_nlhb"``, ``"moco"`` or ``"reset"``; None takes the
                constructor's ``weight_init``.

        Raises:
            ValueError: an unknown scheme.
        """
        self._init_weights(self.weight_init if mode is None else mode, needs_reset=True)

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def _init_weights(self, mode: str, needs_reset: bool) -> None:
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

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone."""
        names = ("pos_embed", "cls_token", "reg_token")
        return {n for n in names if isinstance(getattr(self, n), nn.Parameter)}

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into stem, blocks and head, for layer-wise learning rates.

        Args:
            coarse: makes no difference, as in timm's Vision Transformer: a block is a group.
        """
        return backbone_matcher("")

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def get_classifier(self) -> nn.Module:
        """The classifier head."""
        return self.head

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network another head and, if wanted, another pooling.

        Where ``fc_norm`` was left to the pooling (None), the final norm moves, weights and all, to the side of
        the pooling where the new mode wants it.

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

    def _describe_features(self) -> None:
        # timm's FeatureInfo compares reductions as numbers: the largest axis, and the whole patch beside it
        info = {"num_chs": self.embed_dim, "reduction": max(self.patch_size), "patch_size": self.patch_size}
        self.feature_info = [{"module": f"blocks.{i}", **info} for i in range(len(self.blocks))]

    def _describe_data(self) -> None:
        """What timm's tools ask of a model's input; volumes come normalised as their owner has them."""
        chans = int(self.in_chans)
        self.pretrained_cfg = self.default_cfg = {
            **getattr(self, "pretrained_cfg", {}),
            **{"input_size": (chans, *self.img_size), "fixed_input_size": not self.dynamic_img_size},
            **{"mean": (0.0,) * chans, "std": (1.0,) * chans, "interpolation": "trilinear"},
            **{"crop_pct": 1.0, "crop_mode": "center", "pool_size": None, "num_classes": self.num_classes},
            **{"first_conv": "patch_embed.proj", "classifier": "head"},
        }
        if hasattr(self, "_model_args"):  # timm's record of how to build it again
            self._model_args |= {"img_size": self.img_size, "patch_size": self.patch_size}

    def _factory(self) -> dict[str, Any]:
        weight = next(chain(self.patch_embed.parameters(), self.parameters()))
        return {"device": weight.device, "dtype": weight.dtype}

    def _new_norm(self, wanted: bool) -> nn.Module:
        norm = self.norm_layer(self.embed_dim, **self._factory()) if wanted else nn.Identity()
        return norm.train(self.training)

    def _build_head(self) -> None:
        head = nn.Linear(self.embed_dim, self.num_classes, **self._factory()) if self.num_classes > 0 else nn.Identity()
        self.head = head.train(self.training)

    def _place_norms(self) -> None:
        """Move the final norm to the side of the pooling where it belongs; make it where there is none yet."""
        after = self.global_pool == "avg"
        have = self.norm if isinstance(self.fc_norm, nn.Identity) else self.fc_norm
        wanted = after or self.final_norm
        norm = self._new_norm(wanted) if isinstance(have, nn.Identity) or not wanted else have
        self.norm = self._new_norm(False) if after else norm
        self.fc_norm = norm if after else self._new_norm(False)

    def _build_attn_pool(self) -> None:
        if self.global_pool != "map":
            self.attn_pool = None
        elif self.attn_pool is None:
            pool = AttentionPoolLatent(
                self.embed_dim,
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                norm_layer=self.norm_layer,
                act_layer=self.act_layer,
                **self._factory(),
            )
            self.attn_pool = pool.train(self.training)

    @torch.jit.ignore  # type: ignore[untyped-decorator]
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
        old = self.grid_size
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
        if self.pos_embed is None or self.grid_size == old:
            return
        learned = isinstance(self.pos_embed, nn.Parameter)
        pos = fit_pos_embed(self.pos_embed.detach(), old, self.grid_size, self._pos_prefix, learned, True)
        self.pos_embed = nn.Parameter(pos, requires_grad=self.pos_embed.requires_grad) if learned else pos
