"""Stitch MONAI's sliding windows band by band, so that no float map of classes x volume is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.utils import PytorchPadMode, convert_data_type, ensure_tuple_rep, fall_back_tuple, look_up_option
from torch import Tensor, nn
from torch.nn import functional as F

from monai_vit3d.data.errors import UsageError

from .autocast import AutocastInferer
from .spacing import SpacingInferer, inferer_wrappers, unwrap_inferer, with_spacing
from .window_progress import tell_windows

Slices = tuple[slice, ...]
Windows = Iterable[tuple[Slices, Tensor]]


class CannotStitch(UsageError):
    """The network's output is not a map of the windows' size; MONAI's own inferer may still be able to use it."""


def can_stitch(inferer: Callable[..., Any]) -> bool:
    """Return whether :func:`stitch_windows` gives the same result as ``inferer``.

    True for MONAI's ``SlidingWindowInferer`` and ``SlidingWindowInfererAdapt`` without buffering and coordinates, bare,
    in an :class:`AutocastInferer`, a :class:`SpacingInferer` or both. False for subclasses, which may do anything.
    """
    window: Any = unwrap_inferer(inferer)
    if type(window) not in (SlidingWindowInferer, SlidingWindowInfererAdapt):
        return False
    return not window.with_coord and not window.buffer_steps


@torch.no_grad()
def stitch_windows(
    image: Tensor,
    network: Callable[[Tensor], Tensor],
    inferer: Callable[..., Any],
    reduce: Callable[[Tensor], Tensor],
    device: torch.device | str | None = None,
) -> Tensor:
    """Compute ``reduce(inferer(image, network))`` without the float map of the whole volume.

    The windows, their batches and the order of every addition are MONAI's (``sliding_window_inference``), so that
    the result is the same to the last bit. But only a band of planes along the first axis, as high as a window, is
    summed up at a time: planes that no later window touches are divided by their weights, reduced and freed. And
    the output for batches of constant windows (air) is cached if the network is a module in evaluation mode.

    The band lies on ``inferer.device``; if that is None, on ``device``, or on the CPU for a volume above
    ``inferer.cpu_thresh``. ``inferer.progress`` is ignored.

    Args:
        image: ``(1, C, H, W, D)``; best on the CPU, as only windows of it go to the device. With its metadata for a
            :class:`SpacingInferer`.
        network: windows ``(n, C, h, w, d)`` to ``(n, K, h, w, d)``.
        inferer: one that :func:`can_stitch`.
        reduce: planes ``(1, K, h, W, D)`` to ``(1, K', h, W, D)``, voxel by voxel along the first axis, such as an
            argmax over the channels. ``h`` differs from call to call.
        device: the network's; None is ``inferer.sw_device``, or else the image's.

    Returns:
        ``(1, K', H, W, D)`` on the CPU, a plain tensor of the type that ``reduce`` gives.

    Raises:
        CannotStitch: the network gives anything but one floating-point tensor of the windows' size.
        UsageError: another inferer, more than one image, an overlap not in [0, 1); a ``reduce`` that drops an axis or
            changes the size; an image without the spacing that a :class:`SpacingInferer` needs.

    Example:
        >>> inferer = SlidingWindowInferer((96, 96, 96), sw_batch_size=4, overlap=0.5, mode="gaussian")
        >>> labels = stitch_windows(ct, network, inferer, lambda x: x.argmax(1, keepdim=True).to(torch.uint8))
    """
    if not can_stitch(inferer):
        raise UsageError(f"inferer={type(inferer).__name__}: not one that can_stitch() knows. Call the inferer itself.")
    if len(image) != 1:
        raise UsageError(f"image: {len(image)} in a batch; expected one (1, C, H, W, D). Stitch one after another.")
    window: Any = unwrap_inferer(inferer)
    outer = inferer_wrappers(inferer)
    autocast_dtypes = [w.dtype for w in outer if isinstance(w, AutocastInferer) and w.enabled]
    needs_spacing = any(isinstance(w, SpacingInferer) for w in outer)
    device = torch.device(device or window.sw_device or image.device)

    def run(windows: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=autocast_dtypes[-1]) if autocast_dtypes else nullcontext():
            return network(windows.to(device))

    is_fixed = isinstance(network, nn.Module) and not any(module.training for module in network.modules())
    predict, result = _ConstantWindowCache(run) if is_fixed else run, torch.empty(0)
    with with_spacing(network, image) if needs_spacing else nullcontext():  # type: ignore[arg-type]  # checked there
        for rows, planes in _Stitcher(window, image, device).planes(predict):
            reduced = reduce(planes.float() if autocast_dtypes else planes)
            if reduced.ndim != image.ndim or reduced.shape[2:] != planes.shape[2:]:
                raise UsageError(
                    f"reduce: {tuple(planes.shape)} became {tuple(reduced.shape)}; only channels may change. Keep "
                    "their axis."
                )
            if not result.numel():
                result = torch.empty((1, reduced.shape[1], *image.shape[2:]), dtype=reduced.dtype)
            result[:, :, rows] = reduced
    return result


class _ConstantWindowCache:
    """Cache the output for constant-valued windows (air).

    Args:
        network: gives the same output for the same input.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        self.network = network
        self.values: Tensor | None = None
        self.output: Any = None

    def __call__(self, windows: Tensor) -> Tensor:
        """Run the network, or return its last output for the same constant windows."""
        values = windows[..., :1, :1, :1]
        if not bool((windows == values).all()):
            return self.network(windows)
        if self.values is None or not torch.equal(values, self.values):
            self.values, self.output = values.clone(), self.network(windows)
        return self.output


class _Layout(NamedTuple):
    """Where the windows lie in the padded image."""

    roi: tuple[int, ...]  # size of a window
    size: tuple[int, ...]  # of the padded image
    image: Slices  # the image in the padded one
    pads: list[int]  # as F.pad takes them, the last axis first
    windows: list[Slices]


def _layout(window: SlidingWindowInferer, shape: tuple[int, ...]) -> _Layout:
    """Lay out the windows as MONAI does over an image of ``shape``; their starts along axis 0 never decrease."""
    overlap = ensure_tuple_rep(window.overlap, len(shape))
    if not all(0 <= o < 1 for o in overlap):
        raise UsageError(f"overlap={window.overlap}; expected a share of the window from 0 to below 1.")
    roi = fall_back_tuple(window.roi_size, shape)
    missing = [max(r - n, 0) for r, n in zip(roi, shape)]
    size = tuple(n + m for n, m in zip(shape, missing))
    steps = [max(int(r * (1 - o)), 1) for r, o in zip(roi, overlap)]
    image = tuple(slice(m // 2, m // 2 + n) for n, m in zip(shape, missing))
    pads = [pad for m in reversed(missing) for pad in (m // 2, m - m // 2)]
    return _Layout(roi, size, image, pads, dense_patch_slices(size, roi, steps))


class _Stitcher:
    """Sum up the windows of one image, a band at a time, in the image's type and by the options of MONAI's inferer."""

    def __init__(self, window: SlidingWindowInferer, image: Tensor, device: torch.device) -> None:
        self.batch, self.device = window.sw_batch_size, device
        self.layout = _layout(window, tuple(image.shape[2:]))
        self.image = convert_data_type(image, torch.Tensor)[0]
        if any(self.layout.pads):
            mode = look_up_option(window.padding_mode, PytorchPadMode)
            self.image = F.pad(self.image, self.layout.pads, mode=mode, value=window.cval)
        weights = window.roi_weight_map
        if weights is None:  # on the network's device: a GPU's exp differs from the CPU's in the last place
            weights = compute_importance_map(self.layout.roi, window.mode, window.sigma_scale, device)
        self.weights = weights.to(device, image.dtype).reshape(1, *self.layout.roi)
        large = window.cpu_thresh is not None and image.shape[2:].numel() > window.cpu_thresh
        self.band_device = torch.device(window.device or ("cpu" if large else device))

    def planes(self, predict: Callable[[Tensor], Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """Yield finished planes ``(1, K, h, W, D)`` from first to last, and their rows in the image.

        The planes are views of the band, which is used again.
        """
        inside, box = self.layout.image[0], self.layout.image[1:]
        for first, logits in self._finished(self._outputs(predict)):
            start, stop = max(first, inside.start), min(first + logits.shape[2], inside.stop)
            in_image = (..., slice(start - first, stop - first)) + box
            yield slice(start - inside.start, stop - inside.start), logits[in_image]

    def _outputs(self, predict: Callable[[Tensor], Tensor]) -> Windows:
        """Yield each window and its output ``(K, h, w, d)``, in MONAI's order and batches."""
        for i in range(0, len(self.layout.windows), self.batch):
            windows = self.layout.windows[i : i + self.batch]
            views = [self.image[(...,) + window] for window in windows]
            # a lone window stays a view, as in MONAI: a network's sums over it run in the order of its strides
            output = predict(views[0] if self.batch == 1 else torch.cat(views))
            self._check(output, len(windows), i)
            yield from zip(windows, output)
            tell_windows(i + len(windows), len(self.layout.windows))
            del output  # or it would be held while the network runs on the next windows

    def _finished(self, outputs: Windows) -> Iterator[tuple[int, Tensor]]:
        """Yield planes of weighted means and the number of the first, as soon as no later window touches them."""
        weights = self.weights.to(self.band_device)
        band, first, height = weights.new_empty(0), 0, self.layout.roi[0]
        for window, logits in outputs:
            if not len(band):  # the logits' sums, and as a last channel the weights'
                band = weights.new_zeros((1, len(logits) + 1, height, *self.layout.size[1:]))
            if done := int(window[0].start) - first:
                yield first, _means(band, done)
                _advance(band, done)
                first += done
            in_band = band[0][(..., slice(None)) + window[1:]]
            for sums, products in zip(in_band, self._products(logits)):
                sums += products
            in_band[-1:] += weights
            del logits, products
        yield first, _means(band, height)

    def _products(self, logits: Tensor) -> Iterator[Tensor]:
        """Yield each channel's logits times the weights, rounded to the network's own type, as MONAI's product is."""
        if self.device.type != "cpu" or self.band_device.type != "cpu":
            yield from (logits * self.weights).to(logits.dtype).to(self.band_device)
            return
        product = torch.empty(self.layout.roi, dtype=logits.dtype)  # one for all: it stays in the cache
        for channel in logits:
            yield torch.mul(channel, self.weights[0], out=product)

    def _check(self, output: Tensor, count: int, before: int) -> None:
        roi, is_float = self.layout.roi, isinstance(output, Tensor) and output.is_floating_point()
        if is_float and output.shape[:1] + output.shape[2:] == (count, *roi):
            return
        is_tensor = isinstance(output, Tensor)
        received = f"{output.dtype} {tuple(output.shape)}" if is_tensor else f"a {type(output).__name__}"
        raise CannotStitch(
            f"network: {received} for {count} windows {roi} after {before} of {len(self.layout.windows)}; expected one "
            f"floating-point tensor ({count}, K, {', '.join(map(str, roi))}). Call the inferer itself."
        )


def _means(band: Tensor, count: int) -> Tensor:
    """Divide the first ``count`` planes' sums in place by their weights."""
    return band[:, :-1, :count].div_(band[:, -1:, :count])


def _advance(band: Tensor, count: int) -> None:
    """Drop the first ``count`` planes and start as many at the end."""
    height = band.shape[2]
    for plane in range(count, height):  # one by one: as a whole, the copy's two ends would overlap
        band[:, :, plane - count] = band[:, :, plane]
    band[:, :, height - count :] = 0
