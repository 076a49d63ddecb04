"""Map which parts of a volume support a class: thin layers over ``monai.visualize``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from monai.visualize import GradCAM, ModelWithHooks, OcclusionSensitivity
from torch import Tensor, nn
from torch.nn import functional as F

from monai_vit3d.layers import to_3tuple
from monai_vit3d.layers.patch_embed import covering_grid
from monai_vit3d.networks import VisionTransformer3D, probabilities
from monai_vit3d.networks.wrappers import evaluation_mode

from .voxels import as_batch, backbone_of, background_masked, like, on_grid, to_voxels

OCCLUSIONS = ("mean_img", "gaussian")  # MONAI's "mean_patch" multiplies by the mean instead of filling in


def scale_up(maps: Tensor) -> Tensor:
    """Scale each map of ``(B, 1, H, W, D)`` to 0 (least) .. 1 (most); MONAI's ``default_normalizer`` reverses it."""
    low, high = maps.amin((1, 2, 3, 4), keepdim=True), maps.amax((1, 2, 3, 4), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


class TokenGradCAM(GradCAM):
    """MONAI's GradCAM for a layer whose output is tokens: Selvaraju et al. 2017, arXiv:1610.02391.

    The patch tokens are the pixels, the embedding's width the channels; prefix tokens are left out. Only the graph
    after the layer is differentiated: parameters may be frozen, their ``.grad`` stays, and no hooks remain.

    Args:
        nn_module: a :class:`TokenClassifier`, or a :class:`VisionTransformer3D` with a head.
        target_layers: the layer's name in ``named_modules()``; its output is ``(B, P + N, E)``.
        postprocessing: applied to the maps on voxels.

    Raises:
        TypeError: another model.
        ValueError: no classifier, or no such layer.
    """

    def __init__(
        self, nn_module: nn.Module, target_layers: str, postprocessing: Callable[[Tensor], Tensor] = scale_up
    ) -> None:
        self.backbone = _with_head(nn_module)
        if target_layers not in dict(nn_module.named_modules()):
            raise ValueError(
                f"layer={target_layers!r} is no layer of the network; expected a name from named_modules()."
            )
        patch_size = self.backbone.patch_size
        super().__init__(
            ModelWithHooks(nn_module, target_layers),  # type: ignore[arg-type]  # MONAI wraps in it itself
            target_layers,
            upsampler=lambda size: partial(to_voxels, patch_size=patch_size, size=size),
            postprocessing=postprocessing,
        )

    def compute_map(  # type: ignore[override]
        self, x: Tensor, class_idx: int | None = None, retain_graph: bool = False, layer_idx: int = -1, **kwargs: Any
    ) -> Tensor:
        """Compute the weighted sum of the layer's channels on the patch grid.

        Args:
            x: ``(B, C, H, W, D)``.
            class_idx: number of the output; None takes each volume's largest.
            retain_graph: not used, as the graph is freed.
            layer_idx: number of the layer, if there are several.
            kwargs: passed on to the network.

        Returns:
            ``(B, 1, H', W', D')``, not negative, neither upsampled nor scaled.

        Raises:
            ValueError: no such class, or a layer whose output is not tokens.
        """
        with background_masked(self.backbone, x) as valid:
            tokens, gradient = self._differentiate(x, class_idx, self.nn_module.target_layers[layer_idx], kwargs)
        prefix = self.backbone.num_prefix_tokens
        weights = gradient[:, prefix:].mean(1, keepdim=True)
        values = F.relu((weights * tokens[:, prefix:]).sum(2))
        return on_grid(values if valid is None else values * valid, self.backbone, x)

    def _differentiate(
        self, x: Tensor, class_idx: int | None, name: str, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Compute a layer's output, and the gradient of the class score with respect to it."""
        model = self.nn_module.model
        outputs: list[Tensor] = []

        def detach(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            outputs.append(output.detach().requires_grad_())
            return outputs[-1]

        handle = self.nn_module.get_layer(name).register_forward_hook(detach)
        try:
            with evaluation_mode(model), torch.inference_mode(False), torch.enable_grad():
                logits = model(x.clone() if x.is_inference() else x, **kwargs)
                tokens = self._checked(outputs, name, x)  # now: gradient checkpointing runs the layer once more below
                score = logits.gather(1, _classes(logits, class_idx)[:, None]).sum()
                return tokens.detach(), torch.autograd.grad(score, tokens)[0]
        finally:
            handle.remove()

    def _checked(self, outputs: list[Tensor], name: str, x: Tensor) -> Tensor:
        grid = covering_grid(x, self.backbone.patch_size)
        shape = [len(x), self.backbone.num_prefix_tokens + grid[0] * grid[1] * grid[2]]
        if not outputs or outputs[-1].ndim != 3 or list(outputs[-1].shape[:2]) != shape:
            problem = f"puts out {list(outputs[-1].shape)}" if outputs else "does not run"
            raise ValueError(f"layer={name!r} {problem}; expected tokens {[*shape, 'E']}: try a block's 'norm1'.")
        return outputs[-1]


def grad_cam(
    model: nn.Module,
    volume: Tensor,
    class_idx: int | None = None,
    layer: str | None = None,
    postprocessing: Callable[[Tensor], Tensor] = scale_up,
) -> Tensor:
    """Compute Grad-CAM on the volume's own voxels, by :class:`TokenGradCAM`.

    Args:
        model: a :class:`TokenClassifier`, or a :class:`VisionTransformer3D` with a head.
        volume: ``(B, C, H, W, D)``, or one ``(C, H, W, D)``.
        class_idx: number of the output to explain; None takes each volume's largest.
        layer: the layer's name in ``named_modules()``; None uses the first norm of the last block, after which the
            patches still reach every pooling (after the last block none reaches a class token).
        postprocessing: applied to the maps on voxels; the default scales each volume's to 0 (least) .. 1 (most).

    Returns:
        ``(B, 1, H, W, D)`` float32 with the leading axes of ``volume``, and its metadata if it is a MetaTensor. If no
        patch supports the class the map is 0.

    Raises:
        TypeError: another model.
        ValueError: no classifier, no such class or layer, or what the backbone refuses.
    """
    batch = as_batch(volume)
    backbone = _with_head(model)
    default = f"{'' if model is backbone else 'backbone.'}blocks.{len(backbone.blocks) - 1}.norm1"
    cam = TokenGradCAM(model, default if layer is None else layer, postprocessing)
    return like(cam(batch, class_idx=class_idx), volume)


def occlusion_map(
    model: nn.Module,
    volume: Tensor,
    class_idx: int | None = None,
    mask_size: int | Sequence[int] | None = None,
    overlap: float = 0.0,
    mode: str | float = "mean_img",
    task: str = "multi-class",
    n_batch: int = 16,
) -> Tensor:
    """Map how far the class's probability drops when a box is covered, by MONAI's OcclusionSensitivity.

    The method is that of Zeiler and Fergus 2014, arXiv:1311.2901, section 2. The network runs once for each box.

    Args:
        model: a :class:`TokenClassifier`, or a :class:`VisionTransformer3D` with a head.
        volume: ``(B, C, H, W, D)``, or one ``(C, H, W, D)``.
        class_idx: number of the class, label or value to explain; None takes each volume's largest.
        mask_size: the box ``(h, w, d)`` in voxels; None is one patch.
        overlap: share of a box that the next one overlaps, 0 to below 1; voxels get the mean of the boxes over them.
        mode: what covers: the volume's mean (``"mean_img"``), a number, or ``"gaussian"`` for a soft hole of 0.
        task: what the outputs mean, as in :func:`probabilities`.
        n_batch: boxes in one run of the network.

    Returns:
        ``(B, 1, H, W, D)`` float32 with the leading axes of ``volume``, and its metadata if it is a MetaTensor:
        probability as it is minus probability when covered, -1 .. 1; positive where the volume supports the class.
        (MONAI's own map is the latter probability.) For a regression the difference of the values.

    Raises:
        TypeError: another model.
        ValueError: no classifier, no such class, mode or task, or what the backbone refuses.
    """
    if isinstance(mode, str) and mode not in OCCLUSIONS:
        raise ValueError(f"mode={mode!r}; expected a number or one of {', '.join(map(repr, OCCLUSIONS))}.")
    backbone, batch = _with_head(model), as_batch(volume)
    box = backbone.patch_size if mask_size is None else to_3tuple(mask_size, "mask_size")
    occlusion = OcclusionSensitivity(
        model,
        mask_size=[min(b, s) for b, s in zip(box, batch.shape[2:])],
        n_batch=n_batch,
        verbose=False,
        mode=mode if isinstance(mode, str) else float(mode),
        overlap=overlap,
        activate=partial(probabilities, task=task),  # MONAI's choice counts the image's channels, not the classes
    )
    with torch.no_grad(), evaluation_mode(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a non-tuple sequence")  # MONAI 1.6.1 indexes by lists of slices
        whole = probabilities(model(batch), task)
        drops = [
            whole[i, c] - as_batch(occlusion(batch[i : i + 1])[0])[:, c : c + 1]
            for i, c in enumerate(_classes(whole, class_idx).tolist())
        ]
    return like(torch.cat(drops), volume)


def _with_head(model: nn.Module) -> VisionTransformer3D:
    """Return the backbone of a network that classifies.

    Raises:
        TypeError: another model.
        ValueError: a backbone without a classifier.
    """
    backbone = backbone_of(model)
    if isinstance(model, VisionTransformer3D) and (model.num_classes < 1 or not model.global_pool):
        raise ValueError(
            f"num_classes={model.num_classes}, global_pool={model.global_pool!r}: there is no class to explain; "
            "expected a network with a classifier and a pooling."
        )
    return backbone


def _classes(scores: Tensor, class_idx: int | None) -> Tensor:
    """Choose the class to explain for each row of ``(B, K)``: ``(B,)``.

    Raises:
        ValueError: no such class.
    """
    if class_idx is None:
        return scores.argmax(1)
    if not 0 <= class_idx < scores.shape[1]:
        raise ValueError(f"class_idx={class_idx}; expected 0 to {scores.shape[1] - 1}, or None for the largest.")
    return torch.full_like(scores[:, 0], class_idx, dtype=torch.long)
