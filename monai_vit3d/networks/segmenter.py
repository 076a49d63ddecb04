"""TokenSegmenter: a token backbone with a dense decoder."""

# annotations stay objects, not strings: TorchScript reads that of ``out_indices``, which may be empty

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from monai_vit3d.decoders import create_decoder, decoders_for
from monai_vit3d.deprecated import renamed_argument, renamed_attribute
from monai_vit3d.layers import pad_to_patch

from .layer_decay import backbone_matcher, backbone_no_weight_decay
from .model_args import describe_around_backbone
from .options import patch_size_of, require_final_norm, resolve_indices, spread_blocks
from .pretrained import Pretrained
from .vit3d import VisionTransformer3D


class TokenSegmenter(Pretrained):
    """A token backbone and a dense decoder over its intermediate tokens.

    The decoder gets the patch grids of the tapped blocks as they are and, last, the final tokens after the
    backbone's own norm, as UNETR does.

    For accelerate's ``cpu_offload`` pass ``preload_module_classes=["TokenSegmenter"]``: it brings back a module's
    weights when ``forward`` is called, and here ``backbone.forward_intermediates`` is, as in timm's feature wrappers.

    Args:
        backbone: a network that keeps the contract of :class:`VisionTransformer3D`; its head and pooling are removed.
        decoder: a dense decoder, or the name of one (see :mod:`monai_vit3d.decoders`), built to fit.
        num_classes: channels of the dense map; required with a name.
        out_indices: block numbers that the decoder reads besides the final tokens; negative ones count from the end.
            None spreads them evenly over the depth (quarters for a patch of 16: blocks 2, 5, 8 of 12).
        options: keywords of the decoder; with a name only. One that is None counts as not given.

    Raises:
        ValueError: a wrong number of blocks, one out of range, a name without ``num_classes``, options for a
            decoder that is built already.

    Example:
        >>> backbone = VisionTransformer3D((96, 96, 96), 16, embed_dim=384, num_heads=6)
        >>> net = TokenSegmenter(backbone, "unetr", num_classes=14)
        >>> net(torch.zeros(1, 1, 96, 96, 96)).shape
        torch.Size([1, 14, 96, 96, 96])
    """

    __jit_unused_properties__ = ["taps"]  # noqa: RUF012 - TorchScript reads a list
    out_indices: list[int]
    if TYPE_CHECKING:  # TorchScript would read annotations of modules that it cannot compile
        backbone: VisionTransformer3D  # or any network that keeps its contract
        num_classes: int | None
        decoder: Any
    taps = renamed_attribute("taps", "out_indices")

    def __init__(
        self,
        backbone: nn.Module,
        decoder: nn.Module | str,
        num_classes: int | None = None,
        out_indices: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        out_indices = renamed_argument("taps", "out_indices", out_indices, options)
        patch_size, vit = patch_size_of(backbone), cast(VisionTransformer3D, backbone)
        self.num_classes, self._decoder_args = num_classes, dict[str, Any]()
        if isinstance(decoder, str):
            if num_classes is None:
                raise ValueError(f"decoder={decoder!r} is a name; expected num_classes with it.")
            given = {key: value for key, value in options.items() if value is not None}
            self._decoder_args = {"decoder": decoder, "options": given}
            decoder = create_decoder(decoder, vit.in_chans, vit.embed_dim, patch_size, num_classes, **options)
        elif num_classes is not None or any(value is not None for value in options.values()):
            raise ValueError("the decoder is built already: give its options and num_classes to its own constructor.")
        depth, needed = len(vit.blocks), cast(Any, decoder).num_maps(patch_size) - 1
        if out_indices is None:
            if depth <= needed:
                raise ValueError(
                    f"the backbone has {depth} blocks; {type(decoder).__name__} with patch_size={tuple(patch_size)} "
                    f"reads {needed} and the final one: build the backbone with depth={needed + 1} or more, or take a "
                    f"decoder that reads fewer ({', '.join(decoders_for(depth, patch_size))})."
                )
            out_indices = spread_blocks(depth, needed + 1)[:-1]  # the last part ends in the final tokens
        self.out_indices = resolve_indices(tuple(out_indices), depth)
        if len(self.out_indices) != needed:
            raise ValueError(
                f"out_indices={tuple(out_indices)}: {type(decoder).__name__} with patch_size={tuple(patch_size)} reads "
                f"{needed} blocks besides the final tokens; give as many."
            )
        require_final_norm(backbone, "segmenter")
        self.backbone, self.decoder = vit, decoder
        self.patch_size = patch_size
        self.pad = bool(getattr(backbone, "dynamic_img_pad", False))
        vit.reset_classifier(0, "")  # a head would be a parameter without a gradient

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits of each voxel.

        Args:
            image: ``(B, C, H, W, D)``.

        Returns:
            Logits ``(B, num_classes, H, W, D)``, with the metadata of ``image`` if it is a MetaTensor. In training, of
            a decoder with deep supervision, a list of them, finest first, as MONAI's ``DeepSupervisionLoss`` takes it.

        Raises:
            ValueError: wrong rank, channels or size.
        """
        size = image.shape
        if self.pad and image.dim() == 5:  # image and patch grids must cover the same field
            image = pad_to_patch(image, self.patch_size)
        if torch.jit.is_scripting():
            final, maps = self.backbone.token_maps(image, self.out_indices)
        else:
            final, maps = self._read(image)
        logits = self.decoder(image, maps + [final])
        if not torch.jit.is_scripting() and isinstance(logits, list):
            return cast(Any, [part[..., : size[2], : size[3], : size[4]] for part in logits])
        return logits[..., : size[2], : size[3], : size[4]] if self.pad else logits

    @torch.jit.unused
    def _read(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the final grid and the tapped grids, by the public contract that every backbone keeps."""
        now = patch_size_of(self.backbone)
        if now != self.patch_size:
            raise ValueError(
                f"the backbone's patch_size is {now} now, the decoder was built for {self.patch_size}: build a new "
                "TokenSegmenter after set_input_size."
            )
        final, maps = self.backbone.forward_intermediates(image, self.out_indices, output_fmt="NCHWD")
        grid = [image.shape[axis + 2] // self.patch_size[axis] for axis in range(3)]
        tokens = final[:, self.backbone.num_prefix_tokens :].transpose(1, 2)
        return tokens.reshape(tokens.shape[0], tokens.shape[1], grid[0], grid[1], grid[2]), maps

    @torch.jit.ignore
    def set_tokens(self, tokens: str | float) -> None:
        """Choose which patches get a token, as :meth:`VisionTransformer3D.set_tokens`; the decoder sees zeros there.

        Raises:
            ValueError: as there.
        """
        self.backbone.set_tokens(tokens)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that weight decay should leave alone."""
        return backbone_no_weight_decay(self.backbone)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters into stem, blocks and decoder, for layer-wise learning rates.

        Args:
            coarse: makes no difference, as in timm's Vision Transformer: a block is a group.
        """
        return backbone_matcher()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks and the decoder's stages in the backward pass instead of keeping their activations."""
        for part in (self.backbone, self.decoder):
            setting = getattr(part, "set_grad_checkpointing", None)
            if setting is not None:
                setting(enable)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the decoder's last layer."""
        return self.decoder.get_classifier()

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int) -> None:
        """Give the decoder another last layer; everything else keeps its weights.

        Args:
            num_classes: channels of the dense map.

        Raises:
            ValueError: fewer than 1, or a decoder of one's own without this method.
        """
        reset = getattr(self.decoder, "reset_classifier", None)
        if reset is None:
            raise ValueError(f"{type(self.decoder).__name__} has no method reset_classifier(num_classes).")
        reset(num_classes)
        self.num_classes = num_classes

    @torch.jit.unused
    def _described(self) -> dict[str, Any]:
        return describe_around_backbone(self, "decoder", self._decoder_args)
