"""timm's Block with rotary positions as an argument."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Block
from torch import Tensor


class RotaryBlock(Block):
    """timm's Block, its attention timm's AttentionRope, with the angles as an argument.

    timm's Block has no way to hand them on, and angles left on the attention as an attribute would be the wrong ones
    when a checkpointed block runs again, when threads share a network, and in ``torch.export``. The parameters and
    their names are those of Block.

    Args:
        num_prefix_tokens: tokens before the patches, which are not rotated.
        rotate_half: that of the :class:`~monai_vit3d.layers.RotaryPositions3D`.
        args: as Block.
        kwargs: as Block; ``attn_layer`` must be timm's AttentionRope.
    """

    def __init__(self, *args: Any, num_prefix_tokens: int = 0, rotate_half: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        attention: Any = self.attn
        attention.num_prefix_tokens, attention.rotate_half = num_prefix_tokens, rotate_half

    def forward(  # type: ignore[override]
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Run the block.

        Args:
            x: ``(B, P + N, E)``.
            rope: the patches' ``(S, 1, N, 2 * head_dim)`` as :func:`~monai_vit3d.layers.rope.rotary_table`.
            attn_mask: as timm's attention takes it.
            is_causal: each token attends to those before it only.

        Raises:
            ValueError: no angles. (They have a default because TorchScript compiles ``nn.Sequential.forward``.)
        """
        if rope is None:
            raise ValueError(
                "a RotaryBlock needs the patches' angles: call the network, or pass rope=network.rope(...)"
            )
        attended = self.attn(self.norm1(x), rope=rope, attn_mask=attn_mask, is_causal=is_causal)
        x = x + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
