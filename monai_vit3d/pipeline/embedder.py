"""Embed one volume: prepare it by the model's recipe, run the network in windows, pool to one vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import dense_patch_slices
from monai.transforms import MapTransform
from torch import Tensor

from monai_vit3d.data.errors import ImageError, UsageError
from monai_vit3d.data.published_models import PublishedModel, published_model, published_models
from monai_vit3d.data.volume import Array, Grid
from monai_vit3d.inferers.window_progress import tell_windows
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.weights.fetch import load_published
from monai_vit3d.weights.recipes import RECIPE_STEPS, Recipe, load_recipe, recipe_transform
from monai_vit3d.weights.sources import OURS, backbone_from, read_source
from monai_vit3d.weights.whole_network import network_from

from .scan_vector import scan_vector

OVERLAP = 0.25  # of windows, where the recipe states none


@dataclass(frozen=True, eq=False)
class Embedding:
    """The features of a volume.

    Args:
        vector: (F,) float32.
        tokens: (E, h, w, d) float32, the patch tokens, averaged where windows overlap; None unless they were kept.
        grid: of the patches, a voxel each, in the scan's world.
        windows: how many were run.
    """

    vector: Array
    tokens: Array | None
    grid: Grid
    windows: int


class Embedder:
    """Turn volumes into vectors with a published model or weights of one's own.

    A volume larger than the network's input is run in overlapping windows, and one that is smaller is padded with its
    least value. The vector is the mean of the windows' vectors, each weighted by its foreground: the part of its
    voxels above the prepared volume's least value; the plain mean where no window has any. Of a model with a network
    over the windows (``feature="combiner"``) it is that network's class token.

    Args:
        model: the name of a published model (``vit3d weights list``), a file of weights, or a backbone.
        weights: of a published model: its file, where it lies already.
        recipe: how a scan is prepared: a mapping, a YAML file or the name of a published model; None takes the
            model's own.
        feature: one of :data:`~monai_vit3d.pipeline.scan_vector.FEATURES`, or of a published model that has it
            ``"attention_pool"`` (COLIPRI) or ``"combiner"`` (SPECTRE); None takes what the model's authors do, and
            where that is not stated the mean of the patch tokens.
        combiner: of ``feature="combiner"``: the file of that network, where it lies already.
        overlap: part of a window that the next one covers; None takes the recipe's, or 0.25.
        whole: whether the whole volume is one input, whatever its size; of networks with rotary positions alone.
        tokens: which patches get a token, as :meth:`~monai_vit3d.networks.VisionTransformer3D.set_tokens` takes it;
            those of background are left out of the mean, and zeros among the tokens. None leaves the network as it is.
        device: a torch device; None takes a GPU where there is one.
        accept_licence: whether the licence of a published model was accepted, see
            :func:`~monai_vit3d.weights.fetch_weights`.
        stated: of the recipe, values that its authors do not state, by name, as ``{"orientation": "RAS"}``.
        options: keywords of the network that no tensor of the file shows, as ``num_heads``.

    Attributes:
        name: the published model's, or the file's.
        network: the backbone, in evaluation mode.
        recipe: how scans are prepared, with what was stated.
        vector: how tokens become a vector, with ``feature``.

    Raises:
        UsageError: no recipe, or one with fields that are not stated; a feature that the network does not have; as
            :func:`~monai_vit3d.weights.fetch_weights`.
        WeightsError: weights that cannot be fetched or loaded.

    Example:
        >>> embedder = Embedder("colipri")  # doctest: +SKIP
        >>> vector = embedder("chest.nii.gz")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path | VisionTransformer3D,
        *,
        weights: str | Path | None = None,
        recipe: str | Path | Recipe | None = None,
        feature: str | None = None,
        combiner: str | Path | None = None,
        overlap: float | None = None,
        whole: bool = False,
        tokens: str | float | None = None,
        device: str | torch.device | None = None,
        accept_licence: bool = False,
        stated: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        entry = published_model(str(model)) if str(model) in published_models() else None
        if weights is not None and entry is None:
            raise UsageError(f"weights={weights}: for a published model. Give the file as model.")
        network = _load(model, entry, weights, accept_licence, dict(options or {}))
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.entry, self.network = entry, network.to(place).eval()
        if tokens is not None:
            self.network.set_tokens(tokens)
        self.vector = scan_vector(feature, self.network, entry, weights, combiner, accept_licence).to(place).eval()
        self.feature = self.vector.feature
        if recipe is None and (entry is None or entry.recipe is None):
            raise UsageError(
                f"{model if isinstance(model, str | Path) else 'model'}: how its scans are prepared is not stated. "
                "Give recipe=, a YAML file with orientation and steps, or the name of a published model."
            )
        chosen = load_recipe(recipe) if recipe is not None else (entry and entry.recipe) or {}
        stem = Path(model).stem if isinstance(model, str | Path) else "backbone"
        self.name = stem if entry is None else entry.name
        of = "recipe" if entry is None else entry.name
        self.prepare = recipe_transform(chosen, int(self.network.in_chans), of, **(stated or {}))
        self.recipe = {**chosen, "stated": dict(stated or {})}
        self.overlap = chosen.get("overlap", OVERLAP) if overlap is None else overlap
        if not 0 <= self.overlap < 1:
            raise UsageError(f"overlap={self.overlap}; expected 0 or more, and less than 1.")
        if whole and self.network.pos_embed is not None:
            raise UsageError(f"whole=True: the network's positions are of {self.network.img_size}. Leave it out.")
        if self.vector.combiner is not None and (whole or self.overlap):
            raise UsageError(
                f"whole={whole}, overlap={self.overlap}: the combiner takes windows side by side. Leave them out, or "
                "give feature='class_token+mean'."
            )
        self.whole = whole

    def __call__(self, image: Any) -> Array:
        """Return the vector of an image, (F,) float32.

        Args:
            image: a path, volumes that were read, or an image in memory with its affine (MetaTensor, NIfTI image).

        Raises:
            ImageError: it cannot be used, or nothing is left of it.
        """
        return self.embed(image).vector

    def embed(self, image: Any, keep_tokens: bool = False) -> Embedding:
        """Prepare an image and run the network; arguments and errors as of calling it.

        Args:
            image: the image.
            keep_tokens: whether to return the patch tokens, too.
        """
        return self.run(self.prepare(image), keep_tokens)

    @torch.inference_mode()
    def run(self, prepared: MetaTensor, keep_tokens: bool = False) -> Embedding:
        """Run the network over a prepared image.

        Args:
            prepared: (C, H, W, D), what :attr:`prepare` returned.
            keep_tokens: whether to return the patch tokens, too.

        Raises:
            ImageError: values or features that are not finite.
        """
        if not prepared.numel() or not bool(torch.isfinite(prepared).all()):
            raise ImageError("image: nothing, or NaN or infinite values, after its preparation. Look at it.")
        patch, background = self.network.patch_size, float(prepared.min())
        image = _fitted(prepared, self.network.img_size, patch, self.whole)
        shape = tuple(image.shape[1:])
        if self.whole and shape != self.network.img_size:
            self.network.set_input_size(img_size=shape)
        window = self.network.img_size
        steps = [max(int(n * (1 - self.overlap)) // p, 1) * p for n, p in zip(window, patch)]
        pooled = _Pooled(tuple(n // p for n, p in zip(shape, patch)), patch, keep_tokens)
        places = dense_patch_slices(shape, window, steps)
        grid = tuple(len({place[axis].start for place in places}) for axis in range(3))
        for i, place in enumerate(places, 1):
            at = (slice(None), *place)
            part = image.as_tensor()[at]
            prefix, patches, patch_valid = self._window(part[None])
            vector = self.vector.of_window(prefix, patches if patch_valid is None else patches[patch_valid])
            pooled.add(vector.cpu(), patches.cpu(), place, float((part > background).float().mean()))
            tell_windows(i, len(places))
        vector_of_scan = self.vector.of_scan(pooled.vectors, pooled.weights, grid)
        return Embedding(vector_of_scan, pooled.tokens(), _patch_grid(image, patch), len(places))

    def _window(self, window: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return normed prefix tokens (P, E) and patch tokens (N, E), and which of these have foreground; None: all."""
        network = self.network
        window = window.to(next(network.parameters()))  # where it is, and of its type
        tokens, patch_valid = network.forward_features(window)[0].float(), network.foreground_patches(window)
        prefix = network.fc_norm(tokens[: network.num_prefix_tokens])
        patches = network.fc_norm(tokens[network.num_prefix_tokens :])
        if patch_valid is None:
            return prefix, patches, None
        return prefix, patches.masked_fill(~patch_valid[0, :, None], 0.0), patch_valid[0]


class _Pooled:
    """The windows' vectors and foreground, and the mean of tokens where windows overlap."""

    def __init__(self, grid: tuple[int, ...], patch: tuple[int, ...], keep_tokens: bool) -> None:
        self.grid, self.patch, self.keep = grid, patch, keep_tokens
        self.vectors: list[Array] = []
        self.weights: list[float] = []
        self.sums: Array | None = None
        self.counts = np.zeros(grid)

    def add(self, vector: Tensor, patches: Tensor, place: tuple[slice, ...], foreground: float) -> None:
        """Add a window's vector (F,), its patch tokens (N, E), its place in voxels and its part of foreground."""
        self.vectors.append(vector.double().numpy())
        self.weights.append(foreground)
        if not self.keep:
            return
        sides = [slice(side.start // p, side.stop // p) for side, p in zip(place, self.patch)]
        block = patches.double().numpy().T.reshape(-1, *(side.stop - side.start for side in sides))
        at = (slice(None), *sides)
        if self.sums is None:
            self.sums = np.zeros((len(block), *self.grid))
        self.sums[at] += block
        self.counts[tuple(sides)] += 1

    def tokens(self) -> Array | None:
        """Return the tokens' means, float32."""
        return None if self.sums is None else (self.sums / self.counts).astype(np.float32)


class Embedd(MapTransform):
    """Give dictionaries the vector of an image, as a MONAI transform.

    Args:
        keys: of the images: paths, or images in memory with their affine.
        embedder: what embeds them.
        suffix: of the keys that get the vectors.

    Example:
        >>> embed = Embedd("image", Embedder("colipri"))  # doctest: +SKIP
        >>> embed({"image": "chest.nii.gz"})["image_embedding"]  # doctest: +SKIP
    """

    def __init__(self, keys: Any, embedder: Embedder, suffix: str = "embedding") -> None:
        super().__init__(keys)
        self.embedder, self.suffix = embedder, suffix

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the dictionary with ``KEY_embedding``, (F,) float32 tensors."""
        embedded = dict(data)
        for key in self.key_iterator(embedded):
            embedded[f"{key}_{self.suffix}"] = torch.from_numpy(self.embedder(data[key]))
        return embedded


def input_channels(model: str | Path | VisionTransformer3D, options: Mapping[str, Any] | None = None) -> int:
    """Return how many channels a model takes; the weights of a published one are not fetched for that.

    Args:
        model: as for :class:`Embedder`.
        options: see there.

    Raises:
        WeightsError: a file that cannot be loaded.
    """
    if str(model) in published_models():
        return published_model(str(model)).input_size[0]
    return int(_load(model, None, None, False, dict(options or {})).in_chans)


def _load(
    model: str | Path | VisionTransformer3D,
    entry: PublishedModel | None,
    weights: str | Path | None,
    accept_licence: bool,
    options: dict[str, Any],
) -> VisionTransformer3D:
    if isinstance(model, VisionTransformer3D):
        return model
    if entry is not None:
        return load_published(entry, path=weights, accept_licence=accept_licence, **options).network
    if str(model).isidentifier() and not Path(model).exists():
        published_model(str(model))  # raises: a name, not a file, and misspelt
    source = read_source(model)
    if source.family != OURS:
        return backbone_from(source, **options).network
    network: Any = network_from(model)
    return getattr(network, "backbone", network)


def _fitted(image: MetaTensor, size: tuple[int, ...], patch: tuple[int, ...], whole: bool) -> MetaTensor:
    """Pad an image to a window at least, and to whole patches."""
    least = patch if whole else size
    shape = [max(-(-n // p) * p, m) for n, p, m in zip(image.shape[1:], patch, least)]
    return image if shape == [*image.shape[1:]] else RECIPE_STEPS["pad"](shape, "minimum")(image)


def _patch_grid(image: MetaTensor, patch: tuple[int, ...]) -> Grid:
    """Return the grid whose voxels are an image's patches."""
    affine = image.affine.cpu().numpy().astype(np.float64)
    to_voxels = np.diag([*map(float, patch), 1.0])
    to_voxels[:3, 3] = [(p - 1) / 2 for p in patch]
    height, width, depth = (n // p for n, p in zip(image.shape[1:], patch))
    return Grid((height, width, depth), affine @ to_voxels)
