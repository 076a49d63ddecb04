"""TokenClassifier: a token backbone with a head that reads the tokens of several blocks."""

# annotations stay objects, not strings: TorchScript reads that of ``out_indices``

import math
from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from monai_vit3d.deprecated import renamed_argument, renamed_attribute

from .heads import Tokens, create_head
from .layer_decay import backbone_matcher, backbone_no_weight_decay
from .model_args import describe_around_backbone
from .options import require_final_norm, resolve_indices, spread_blocks
from .pretrained import Pretrained
from .task_losses import output_layer
from .vit3d import VisionTransformer3D


class TokenClassifier(Pretrained):
    """A token backbone and a head over the tokens of some of its blocks.

    For accelerate's ``cpu_offload`` pass ``preload_module_classes=["TokenClassifier"]``: it brings back a module's
    weights when ``forward`` is called, and here ``backbone.forward_intermediates`` is, as in timm's feature wrappers.

    Args:
        backbone: a network that keeps the contract of :class:`VisionTransformer3D`; its own head, its pooling and
            the blocks after the last tap are removed.
        head: ``"linear"``, ``"attentive"`` or ``"mlp"`` (see :mod:`monai_vit3d.networks.heads`), built to fit; or a
            head that is built already, called with the list of tapped tokens and, of a backbone with tokens of
            foreground only (:meth:`set_tokens`), with the patches that count as ``patch_valid``.
        num_classes: classes (multi-class, ordinal), labels or values; required with a name.
        task: ``"multi-class"``, ``"multi-label"``, ``"ordinal"`` or ``"regression"``; MedMNIST's names are understood;
            with a name only.
        out_indices: block numbers that the head reads, after the final norm; negative ones count from the end. None
            takes the ends of the depth's four quarters.
        freeze: ``"backbone"`` trains the head alone, a number n leaves out the embedding and the first n blocks,
            None trains everything. Frozen parts stay in evaluation mode, without dropout; once their parameters
            take gradients again, ``train()`` puts them in training mode as the rest.
        options: keywords of the head; with a name only.

    Raises:
        ValueError: a block number out of range, an unknown head, task or freeze, a name without ``num_classes``,
            options for a head that is built already.

    Example:
        >>> backbone = VisionTransformer3D((64, 64, 64), 8, embed_dim=384, num_heads=6)
        >>> net = TokenClassifier(backbone, "attentive", num_classes=11, freeze="backbone")
        >>> net(torch.zeros(2, 1, 64, 64, 64)).shape
        torch.Size([2, 11])
    """

    __jit_unused_properties__ = ["taps"]  # noqa: RUF012 - TorchScript reads a list
    out_indices: list[int]
    _head_takes_valid: torch.jit.Final[bool]
    if TYPE_CHECKING:  # TorchScript would read annotations of modules that it cannot compile
        backbone: VisionTransformer3D  # or any network that keeps its contract
        num_classes: int | None
        head: Any
    taps = renamed_attribute("taps", "out_indices")

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module | str = "linear",
        num_classes: int | None = None,
        task: str = "multi-class",
        out_indices: int | Sequence[int] | None = None,
        freeze: str | int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        out_indices = renamed_argument("taps", "out_indices", out_indices, options)
        require_final_norm(backbone, "classifier")
        vit = cast(VisionTransformer3D, backbone)
        depth = len(vit.blocks)
        if out_indices is None:
            out_indices = spread_blocks(depth, min(4, depth))
        self.out_indices = resolve_indices(out_indices, depth)
        if not self.out_indices:
            raise ValueError("out_indices=(); expected one block or more, or None for the ends of the quarters.")
        self.num_classes, self._head_args = num_classes, dict[str, Any]()
        if isinstance(head, str):
            if num_classes is None:
                raise ValueError(f"head={head!r} is a name; expected num_classes with it.")
            prefix, class_token = vit.num_prefix_tokens, vit.has_class_token
            tokens = Tokens(vit.embed_dim, vit.num_heads, len(self.out_indices), prefix, class_token)
            self._head_args = {"head": head, "task": task, "options": options}
            head = create_head(head, tokens, num_classes, task, **options)
            self.task: str | None = task
        elif options or num_classes is not None:
            raise ValueError("the head is built already: give its options and num_classes to its own constructor.")
        else:
            self.task = None
        self.freeze = freeze
        frozen = _frozen_blocks(freeze, depth)
        self.backbone, self.head = vit, head
        self._head_takes_valid = "patch_valid" in signature(head.forward).parameters
        if getattr(vit, "tokens", "all") != "all":
            self.set_tokens(vit.tokens)
        vit.reset_classifier(0, "")  # a head would be a parameter without a gradient, and so would
        vit.prune_intermediate_layers(self.out_indices)  # the blocks that nobody reads
        self._freeze(freeze, frozen)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits.

        Args:
            image: ``(B, C, H, W, D)``.

        Returns:
            Plain logits: ``(B, num_classes)``, for an ordinal task ``(B, num_classes - 1)`` of "above class k".

        Raises:
            ValueError: wrong rank, channels or size.
        """
        if torch.jit.is_scripting():
            levels = self.backbone.token_levels(image, self.out_indices)
            if self._head_takes_valid:  # known when it is compiled: another head need not take two arguments
                patch_valid = self.backbone.foreground_patches(image)
                return self.head(levels) if patch_valid is None else self.head(levels, patch_valid)
            return self.head(levels)
        return self._read(image)

    @torch.jit.unused
    def _read(self, image: Tensor) -> Tensor:
        """Hand the head the tapped tokens, by the public contract that every backbone keeps."""
        levels = self.backbone.forward_intermediates(image, self.out_indices, norm=True, intermediates_only=True)
        if getattr(self.backbone, "tokens", "all") == "all":
            return self.head(levels)
        return self.head(levels, self.backbone.foreground_patches(image))

    @torch.jit.ignore
    def set_tokens(self, tokens: str | float) -> None:
        """Choose which patches get a token, as :meth:`VisionTransformer3D.set_tokens`.

        Raises:
            ValueError: as there; or a head that cannot leave patches out.
        """
        if tokens != "all" and not self._head_takes_valid:
            raise ValueError(
                f"tokens={tokens!r}: {type(self.head).__name__}.forward has no argument patch_valid, (B, N) bool, the "
                "patches that count. Give it one, or use tokens='all'."
            )
        self.backbone.set_tokens(tokens)

    def train(self, mode: bool = True) -> "TokenClassifier":
        """Set training or evaluation mode; parts that ``freeze`` named stay in evaluation mode while frozen."""
        super().train(mode)
        for parts, parameters in self._frozen:
            if not any(parameter.requires_grad for parameter in parameters):
                for part in parts:
                    part.eval()
        return self

    @torch.jit.ignore
    def scale_logits(self, factor: float) -> None:
        """Multiply all logits by ``factor``, in the weights of the last layer: temperature scaling with 1 / T.

        Args:
            factor: a positive number.

        Raises:
            ValueError: not positive, or a head without a last layer ``output``.
        """
        layer: Any = getattr(self.head, "output", None)
        if not 0 < factor < math.inf or getattr(layer, "weight", None) is None:
            raise ValueError(f"factor={factor}; expected a positive number, and a head with a last layer 'output'.")
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(factor)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that weight decay should leave alone."""
        own = {"head.level_embed", "head.pool.latent"} & {name for name, _ in self.named_parameters()}
        return backbone_no_weight_decay(self.backbone) | own

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters into stem, blocks and head, for layer-wise learning rates.

        Args:
            coarse: makes no difference, as in timm's Vision Transformer: a block is a group.
        """
        return backbone_matcher()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.backbone.set_grad_checkpointing(enable)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the head's last layer, or the whole of a head built elsewhere."""
        return getattr(self.head, "output", self.head)

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int) -> None:
        """Give the head another last layer, for the same task; everything else keeps its weights.

        Args:
            num_classes: classes, labels or values.

        Raises:
            ValueError: fewer than the task needs, or a head of one's own.
        """
        if self.task is None:
            raise ValueError(f"{type(self.head).__name__} was built elsewhere: give the classifier another head there.")
        old = self.head.output
        new = output_layer(self.task, old.weight.shape[1], num_classes)
        self.head.output = new.to(old.weight.device, old.weight.dtype).train(old.training)
        self.num_classes = num_classes

    @torch.jit.unused
    def _described(self) -> dict[str, Any]:
        return describe_around_backbone(self, "head", self._head_args)

    def _freeze(self, freeze: str | int | None, blocks: int) -> None:
        # parts in evaluation mode, and the parameters that say whether they still are; an adapter's are not among them
        self._frozen: list[tuple[list[nn.Module], list[nn.Parameter]]] = []
        if freeze is None:
            return
        # the embedding is what is neither a block nor the final norm
        embedding = [part for name, part in self.backbone.named_children() if name not in ("blocks", "norm")]
        own = list(self.backbone.parameters(recurse=False))
        self._frozen.append((embedding, [*own, *(p for part in embedding for p in part.parameters())]))
        last = [self.backbone.norm] if freeze == "backbone" else []
        if last:
            self._frozen.append(([self.backbone], list(self.backbone.parameters())))
        self._frozen += [([part], list(part.parameters())) for part in (*self.backbone.blocks[:blocks], *last)]
        for parts, parameters in self._frozen:
            for parameter in parameters:
                parameter.requires_grad_(False)
            for part in parts:
                part.eval()


def _frozen_blocks(freeze: str | int | None, depth: int) -> int:
    """Return how many of the first blocks are frozen.

    Raises:
        ValueError: neither "backbone" nor a number of blocks nor None.
    """
    if freeze is None:
        return 0
    if freeze == "backbone":
        return depth
    if isinstance(freeze, bool) or not isinstance(freeze, int) or not 0 <= freeze <= depth:
        raise ValueError(f"freeze={freeze!r}; expected 'backbone', a number of blocks from 0 to {depth}, or None.")
    return freeze
