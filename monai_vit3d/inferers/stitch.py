"""MONAI's sliding windows, stitched band by band: no float map of classes x volume is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.utils import PytorchPadMode, convert_data_type, ensure_tuple_rep, fall_back_tuple, look_up_option
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.errors import UsageError
from .autocast import AutocastInferer
from .spacing import SpacingInferer, inferer_wrappers, unwrap_inferer, with_spacing

Slices = tuple[slice, ...]
Windows = Iterable[tuple[Slices, Tensor]]


class CannotStitch(UsageError):
    """A network's output that is no map of the windows' size, which only MONAI's own inferer may know how to take."""


def can_stitch(inferer: Inferer) -> bool:
    """Whether :func:`stitch_windows` gives what ``inferer`` would.

    True for MONAI's ``SlidingWindowInferer`` and ``SlidingWindowInfererAdapt`` that neither buffer nor hand the network
    coordinates, bare, in an :class:`AutocastInferer`, a :class:`SpacingInferer` or both; a subclass may do anything,
    and is False.
    """
    window = unwrap_inferer(inferer)
    known = type(window) in (SlidingWindowInferer, SlidingWindowInfererAdapt)
    return known and not window.with_coord and not window.buffer_steps


@torch.no_grad()
def stitch_windows(
    image: Tensor,
    network: Callable[[Tensor], Tensor],
    inferer: Inferer,
    reduce: Callable[[Tensor], Tensor],
    device: torch.device | str | None = None,
) -> Tensor:
    """``reduce(inferer(image, network))``, without the float map of the whole volume.

    The windows, their batches and the order of every addition are MONAI's (``sliding_window_inference``), so that
    the result is the same to the last bit. But only a band of planes along the first axis, as high as a window, is
    summed up at a time: planes that no later window touches are divided by their weights, reduced and let go. And
    batches of windows that each hold one value, as air does, are answered once, by a module that is in evaluation.

    The band lies on ``inferer.device``; where that is None, on ``device``, or on the CPU for a volume above
    ``inferer.cpu_thresh``. ``inferer.progress`` is passed over.

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
        CannotStitch: a network that gives anything but one floating-point tensor of the windows' size.
        UsageError: another inferer, more than one image, an overlap not in [0, 1); a ``reduce`` that drops an axis or
            changes the size; an image whose spacing a :class:`SpacingInferer` cannot tell.

    Example:
        >>> inferer = SlidingWindowInferer((96, 96, 96), sw_batch_size=4, overlap=0.5, mode="gaussian")
        >>> labels = stitch_windows(ct, network, inferer, lambda x: x.argmax(1, keepdim=True).to(torch.uint8))
    """
    if not can_stitch(inferer):
        raise UsageError(f"inferer={type(inferer).__name__}: not one that can_stitch() knows. Call the inferer itself.")
    if len(image) != 1:
        raise UsageError(f"image: {len(image)} in a batch; one (1, C, H, W, D) is needed. Stitch one after another.")
    window, around = unwrap_inferer(inferer), inferer_wrappers(inferer)
    reduced = [w.dtype for w in around if isinstance(w, AutocastInferer) and w.enabled]
    spaced = any(isinstance(w, SpacingInferer) for w in around)
    device = torch.device(device or window.sw_device or image.device)

    def run(windows: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=reduced[-1]) if reduced else nullcontext():
            return network(windows.to(device))

    fixed = isinstance(network, nn.Module) and not any(module.training for module in network.modules())
    predict, result = _AirOnce(run) if fixed else run, None
    with with_spacing(network, image) if spaced else nullcontext():
        for rows, planes in _Stitcher(window, image, device).planes(predict):
            part = reduce(planes.float() if reduced else planes)
            if part.ndim != image.ndim or part.shape[2:] != planes.shape[2:]:
                raise UsageError(
                    f"reduce: {tuple(planes.shape)} became {tuple(part.shape)}; only channels may change. Keep their "
                    "axis."
                )
            if result is None:
                result = torch.empty((1, part.shape[1], *image.shape[2:]), dtype=part.dtype)
            result[:, :, rows] = part
    return result


class _AirOnce:
    """A network with one answer to one input; batches of constant windows, the same as the last such ones, get it."""

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        self.network = network
        self.values: Tensor | None = None
        self.output: Any = None

    def __call__(self, windows: Tensor) -> Tensor:
        values = windows[..., :1, :1, :1]
        if not bool((windows == values).all()):
            return self.network(windows)
        if self.values is None or not torch.equal(values, self.values):
            self.values, self.output = values.clone(), self.network(windows)
        return self.output


class _Layout(NamedTuple):
    """Where the windows lie: ``roi`` their size, ``size`` the padded image's, ``image`` the image's place in it."""

    roi: tuple[int, ...]
    size: tuple[int, ...]
    image: Slices
    pads: list[int]  # as F.pad takes them, the last axis first
    windows: list[Slices]


def _layout(window: SlidingWindowInferer, shape: tuple[int, ...]) -> _Layout:
    """The windows that MONAI lays over an image of ``shape``; their starts along the first axis never go back."""
    overlap = ensure_tuple_rep(window.overlap, len(shape))
    if not all(0 <= o < 1 for o in overlap):
        raise UsageError(f"overlap={window.overlap}: a share of the window from 0 to below 1 is needed.")
    roi = fall_back_tuple(window.roi_size, shape)
    missing = [max(r - n, 0) for r, n in zip(roi, shape)]
    size = tuple(n + m for n, m in zip(shape, missing))
    steps = [max(int(r * (1 - o)), 1) for r, o in zip(roi, overlap)]
    image = tuple(slice(m // 2, m // 2 + n) for n, m in zip(shape, missing))
    pads = [pad for m in reversed(missing) for pad in (m // 2, m - m // 2)]
    return _Layout(roi, size, image, pads, dense_patch_slices(size, roi, steps))


class _Stitcher:
    """The sums of one image's windows, a band at a time; in the image's type and by the options of MONAI's inferer."""

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
        """Finished planes ``(1, K, h, W, D)`` from first to last, and their rows in the image; views of the band."""
        inside, box = self.layout.image[0], self.layout.image[1:]
        for first, values in self._finished(self._weighted(predict)):
            start, stop = max(first, inside.start), min(first + values.shape[2], inside.stop)
            kept = (..., slice(start - first, stop - first)) + box
            yield slice(start - inside.start, stop - inside.start), values[kept]

    def _weighted(self, predict: Callable[[Tensor], Tensor]) -> Windows:
        """Each window's place and its output ``(K, h, w, d)``; MONAI's order and batches."""
        for i in range(0, len(self.layout.windows), self.batch):
            places = self.layout.windows[i : i + self.batch]
            views = [self.image[(...,) + place] for place in places]
            # a lone window stays a view, as in MONAI: a network's sums over it run in the order of its strides
            output = predict(views[0] if self.batch == 1 else torch.cat(views))
            self._check(output, len(places), i)
            yield from zip(places, output)
            del output  # or it would be held while the network runs on the next windows

    def _finished(self, windows: Windows) -> Iterator[tuple[int, Tensor]]:
        """Planes of weighted means and the number of the first, as soon as no later window touches them."""
        weights = self.weights.to(self.band_device)
        band, first, height = weights.new_empty(0), 0, self.layout.roi[0]
        for place, values in windows:
            if not len(band):  # the values' sums, and as a last channel the weights'
                band = weights.new_zeros((1, len(values) + 1, height, *self.layout.size[1:]))
            if done := int(place[0].start) - first:
                yield first, _means(band, done)
                _move_on(band, done)
                first += done
            at = band[0][(..., slice(None)) + place[1:]]
            for sums, products in zip(at, self._products(values)):
                sums += products
            at[-1:] += weights
            del values, products
        yield first, _means(band, height)

    def _products(self, values: Tensor) -> Iterator[Tensor]:
        """Each channel's values times the weights, rounded to the network's own type, as MONAI's product is."""
        if self.device.type != "cpu" or self.band_device.type != "cpu":
            yield from (values * self.weights).to(values.dtype).to(self.band_device)
            return
        product = torch.empty(self.layout.roi, dtype=values.dtype)  # one for all: it stays in the cache
        for channel in values:
            yield torch.mul(channel, self.weights[0], out=product)

    def _check(self, output: Tensor, count: int, before: int) -> None:
        roi, floats = self.layout.roi, isinstance(output, Tensor) and output.is_floating_point()
        if floats and output.shape[:1] + output.shape[2:] == (count, *roi):
            return
        found = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise CannotStitch(
            f"network: {found} for {count} windows {roi} after {before} of {len(self.layout.windows)}; one "
            f"floating-point tensor ({count}, K, {', '.join(map(str, roi))}) is needed. Call the inferer itself."
        )


def _means(band: Tensor, count: int) -> Tensor:
    """The first ``count`` planes' values, divided in place by their weights."""
    return band[:, :-1, :count].div_(band[:, -1:, :count])


def _move_on(band: Tensor, count: int) -> None:
    """Let the first ``count`` planes go and start as many at the end."""
    height = band.shape[2]
    for plane in range(count, height):  # one by one: as a whole, the copy's two ends would overlap
        band[:, :, plane - count] = band[:, :, plane]
    band[:, :, height - count :] = 0
