"""From the tokens of a scan's windows to its vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from monai_vit3d.data.errors import ImageError, UsageError
from monai_vit3d.data.published_models import PublishedModel
from monai_vit3d.data.volume import Array
from monai_vit3d.layers import ProjectedAttentionPool
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.weights.published_features import load_combiner, load_pool

WindowFeature = Callable[[Tensor, Tensor], Tensor]

# from normed prefix tokens (P, E) and patch tokens (N, E) to one vector; the class token is the first prefix token
FEATURES: dict[str, WindowFeature] = {
    "class_token": lambda prefix, patches: prefix[0],
    "mean": lambda prefix, patches: _mean(patches),
    "first_patch": lambda prefix, patches: patches[0],
    "class_token+mean": lambda prefix, patches: torch.cat([prefix[0], _mean(patches)]),
}
# those that a published model has weights for
LEARNED_FEATURES = ("attention_pool", "combiner")


class ScanVector(nn.Module):
    """How the tokens of a scan's windows become one vector: of each window one, of these their mean or a network's.

    Args:
        feature: a key of ``FEATURES``, or one of ``LEARNED_FEATURES``.
        network: whose tokens they are.
        pool: of ``"attention_pool"``.
        combiner: of ``"combiner"``: the network over the grid of windows, whose class token is the vector.

    Raises:
        UsageError: a feature that the network does not have, or one that no weights came for.
    """

    def __init__(
        self,
        feature: str,
        network: VisionTransformer3D,
        pool: ProjectedAttentionPool | None = None,
        combiner: VisionTransformer3D | None = None,
    ) -> None:
        super().__init__()
        self.feature, self.pool, self.combiner = feature, pool, combiner
        usable = [key for key in FEATURES if network.has_class_token or not key.startswith("class_token")]
        usable += [key for key, part in zip(LEARNED_FEATURES, (pool, combiner)) if part is not None]
        if feature not in usable:
            raise UsageError(f"feature={feature!r}; of this network expected one of {', '.join(usable)}.")
        if feature == "first_patch" and network.tokens != "all":
            raise UsageError(f"feature={feature!r}: it may be background, without a token. Give tokens='all'.")
        width = int(network.embed_dim)
        if pool is not None and pool.projection.in_features != width:
            raise UsageError(
                f"feature={feature!r}: its pool takes tokens of {pool.projection.in_features}, not {width}."
            )
        if combiner is not None and combiner.in_chans != 2 * width:
            raise UsageError(
                f"feature={feature!r}: its combiner takes vectors of {combiner.in_chans}, not {2 * width}."
            )

    @property
    def in_words(self) -> str:
        """What becomes of several windows."""
        if self.combiner is not None:
            return "class token of the combiner over the grid of windows"
        return "windows' vectors, weighted by their part of voxels above the prepared volume's least value"

    def of_window(self, prefix: Tensor, patches: Tensor) -> Tensor:
        """Return the vector of a window's normed prefix tokens (P, E) and patch tokens (N, E)."""
        if self.combiner is not None:
            return FEATURES["class_token+mean"](prefix, patches)
        if self.pool is None:
            return FEATURES[self.feature](prefix, patches)
        if not len(patches):  # a window of background alone
            return patches.new_zeros(self.pool.projection.out_features)
        vector: Tensor = self.pool(patches[None])[0]
        return vector

    def of_scan(self, vectors: Sequence[Array], foreground: Sequence[float], grid: tuple[int, ...]) -> Array:
        """Return the vector of a scan, (F,) float32.

        Args:
            vectors: of its windows, (F,) float64 each, the last axis of the grid fastest.
            foreground: the part of each window that is no background.
            grid: windows along ``(H, W, D)``.

        Raises:
            ImageError: values that are not finite.
        """
        if self.combiner is None:
            vector = np.average(np.stack(vectors), axis=0, weights=foreground if any(foreground) else None)
        else:
            of_windows = torch.from_numpy(np.stack(vectors).T.astype(np.float32)).reshape(1, -1, *grid)
            tokens = self.combiner.forward_features(of_windows.to(next(self.combiner.parameters())))
            vector = tokens[0, 0].cpu().numpy()
        if not np.isfinite(vector).all():
            raise ImageError("image: NaN or infinite features. Look at it, and at the weights.")
        return vector.astype(np.float32)


def scan_vector(
    feature: str | None,
    network: VisionTransformer3D,
    entry: PublishedModel | None = None,
    weights: str | Path | None = None,
    combiner: str | Path | None = None,
    accept_licence: bool = False,
) -> ScanVector:
    """Build what a model's authors take as a scan's vector, or what was chosen instead.

    Args:
        feature: see :class:`ScanVector`; None takes the entry's, and where that has none the mean.
        network: whose tokens they are.
        entry: the published model, if it is one.
        weights: its file, where it lies already.
        combiner: the file of its network over the windows, where it lies already.
        accept_licence: as for :func:`~monai_vit3d.weights.fetch_weights`.

    Raises:
        UsageError: as :class:`ScanVector`, or a file of a combiner for another feature.
        WeightsError: weights that cannot be fetched or loaded.
    """
    feature = feature or (entry and entry.feature) or "mean"
    if combiner is not None and feature != "combiner":
        raise UsageError(f"combiner={combiner}: for feature='combiner', not for {feature!r}. Leave it out.")
    pool = over_windows = None
    if entry is not None and entry.pool and feature == "attention_pool":
        pool = load_pool(entry, weights, accept_licence=accept_licence)
    if entry is not None and entry.combiner is not None and feature == "combiner":
        over_windows = load_combiner(entry, combiner, accept_licence=accept_licence)
    return ScanVector(feature, network, pool, over_windows)


def _mean(patches: Tensor) -> Tensor:
    """Return the mean of patch tokens (N, E); zeros where there is none, as in a window of background alone."""
    return patches.sum(0) / max(len(patches), 1)
