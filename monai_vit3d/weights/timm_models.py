"""timm's factory for this package's presets: its builder around ours, with sizes of three numbers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, cast

from timm.models import build_model_with_cfg
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from monai_vit3d.layers import to_3tuple
from monai_vit3d.networks import VisionTransformer3D, create_preset

from .convert.shapes import KERNEL
from .convert.timm2d_filter import checkpoint_filter_fn
from .fetch import create_published

_SOURCES = ("file", "hf_hub_id", "url", "state_dict")


class FeatureMapsNet(FeatureGetterNet):
    """timm's feature network, with a dictionary of patch grids by block number for an answer."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``(B, C, H, W, D)`` to ``{"9": (B, E, H', W', D'), ...}``."""
        blocks = cast(list[int], self.out_indices)
        return OrderedDict(zip(map(str, blocks), super().forward(x)))


# timm's own classes of these names run a network's children in a row, which leaves out class token and positions
_FEATURES = {"list": FeatureGetterNet, "dict": FeatureMapsNet}


def build_for_timm(
    name: str,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    *,
    img_size: int | Sequence[int] = 96,
    patch_size: int | Sequence[int] = 16,
    in_chans: int = 1,
    **options: Any,
) -> nn.Module:
    """Build a network by ``timm.create_model``'s arguments.

    timm's builder knows images, so sizes of three numbers are kept from it and described afterwards.

    Args:
        name: a preset.
        pretrained: load the weights that the configuration names (a folder or a file).
        pretrained_cfg: timm's configuration of weights, or its tag.
        pretrained_cfg_overlay: what is taken instead of its entries, as ``{"file": "w.pth"}``.
        img_size: input size in ``(H, W, D)``.
        patch_size: patch size in ``(H, W, D)``.
        in_chans: number of input channels.
        options: keywords of :class:`VisionTransformer3D`, and timm's: ``features_only``, ``out_indices`` (by default
            the last three blocks, as of timm's Vision Transformers), ``feature_cls`` (``"getter"``, ``"list"`` and
            ``"dict"`` give patch grids; ``"hook"`` and ``"fx"`` whole block outputs).

    Raises:
        ValueError: ``pretrained`` without a source; no weights are published under these names.
    """
    cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay).to_dict()
    if pretrained and not any(cfg.get(key) for key in _SOURCES):
        raise ValueError(f"{name}: no pretrained weights are published under this name; use pretrained=False.")
    about_weights = {key: value for key, value in cfg.items() if not key.endswith("input_size")}
    feature_cls = options.pop("feature_cls", "getter")
    if options.get("features_only"):
        options["feature_cls"] = _FEATURES.get(feature_cls, feature_cls)
    built: list[VisionTransformer3D] = []

    def build(**how: Any) -> VisionTransformer3D:
        built.append(create_preset(name, img_size, patch_size, in_chans=in_chans, **how))
        return built[0]

    model: nn.Module = build_model_with_cfg(
        build,
        name,
        pretrained,
        pretrained_cfg={**about_weights, "input_size": None, "first_conv": None},
        pretrained_filter_fn=_fitted,
        feature_cfg={"out_indices": 3},
        **options,
    )
    backbone, outer = cast(Any, built[0]), cast(Any, model)
    backbone.pretrained_cfg = {**cfg, "architecture": name}
    backbone._describe_data()
    outer.pretrained_cfg = outer.default_cfg = backbone.pretrained_cfg
    return model


def published_for_timm(
    name: str,
    pretrained: Any = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    *,
    features_only: bool = False,
    out_indices: Any = 3,
    cache_dir: Any = None,
    **options: Any,
) -> nn.Module:
    """Build a published model by ``timm.create_model``'s arguments.

    Args:
        name: of the entry.
        pretrained: True; the file says what the network is.
        pretrained_cfg: timm's configuration; of its entries ``file`` alone is taken, the weights' path.
        pretrained_cfg_overlay: what is taken instead of its entries.
        features_only: whether to return timm's feature network, which gives patch grids.
        out_indices: of which blocks, or of how many last ones.
        cache_dir: another cache of the hub.
        options: as for :func:`~monai_vit3d.weights.fetch.load_published`.

    Raises:
        UsageError: as :func:`create_published`.
        WeightsError: as :func:`create_published`.
    """
    cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay).to_dict()
    network = create_published(name, pretrained=cfg.get("file") or pretrained, cache_dir=cache_dir, **options)
    if not features_only:
        return network
    features = FeatureGetterNet(network, out_indices=out_indices)
    cast(Any, features).pretrained_cfg = cast(Any, features).default_cfg = network.pretrained_cfg
    return features


def _fitted(state: Mapping[str, Any], network: VisionTransformer3D) -> dict[str, Tensor]:
    """Fit a state dict's kernel and positions to the network, from the input size in timm's record."""
    size, kernel = getattr(network, "pretrained_model_args", {}).get("img_size"), state.get(KERNEL)
    if size is None or kernel is None:
        return checkpoint_filter_fn(state, network)
    grid = tuple(n // p for n, p in zip(to_3tuple(size, "img_size"), kernel.shape[2:]))
    return checkpoint_filter_fn(state, network, grid=grid)
