"""Check whether files can be used, by any bundle or by a given one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.bundle.config import Choice, choice_of
from monai_vit3d.bundle.load import BundleSteps, load_steps
from monai_vit3d.bundle.unpack import open_bundle
from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.passed_over import PassedOver, by_reason
from monai_vit3d.data.printable import printable
from monai_vit3d.data.readers import reader_for
from monai_vit3d.data.volume import Volume

from .channels import order_channels
from .dicom_cases import split_series
from .inputs import find_images
from .plausibility import check_geometry, check_input, refuse

if TYPE_CHECKING:
    from monai_vit3d.data.dicom import Series


def check_files(
    inputs: str | Path | Sequence[str | Path],
    volume: int | None = None,
    max_voxels: int = 2**30,
    include_labels: bool = False,
    suffixes: Sequence[str] = (),
    units: str = "stored",
    bundle: str | Path | None = None,
    safe: bool = False,
    anyway: bool = False,
    config: str | Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    resample_channels: bool = False,
) -> list[dict[str, Any]]:
    """Read every file to its end, as :func:`~.folder.predict_folder` does.

    Args:
        inputs: one or several NIfTI files, folders or lists.
        volume: which volume of 4D files, from 0; None refuses them.
        max_voxels: the largest volume that is taken.
        include_labels: whether label files and the outputs of earlier runs are images, too.
        suffixes: last words of the names of images to take from folders; none takes all.
        units: ``"stored"``, or ``"suv"`` for DICOM PET.
        bundle: the bundle to compare the files with, a folder, zip or name: images far from what it was trained on are
            refused, others unlike it are odd.
        safe: whether to refuse a bundle whose config is more than settings.
        anyway: whether images far from what the bundle was trained on are no more than odd.
        config: config files of the bundle, as for :func:`~.folder.predict_folder`; its weights are not needed.
        overrides: values to set in the config.
        resample_channels: whether channels on other grids than the first of their case are odd instead of refused.

    Returns:
        For each file, each series of a DICOM folder, or, with a bundle, each case of several files, ``file`` (the
        first), ``verdict`` (``"good"``, ``"odd"`` with
        ``warnings``, ``"refused"`` with ``error``,
        ``"passed over"`` with ``reason``), a ``text`` to show, of those that were read ``shape``, ``spacing_mm`` and
        ``orientation`` (of the axes' far ends), and of a DICOM folder ``series``, its name.

    Raises:
        UsageError: no such file, or a folder without any.
        BundleError: a bundle that cannot be used, or is not safe.
    """
    limits: dict[str, Any] = {"volume": volume, "max_voxels": max_voxels}
    with _opened(bundle, safe, choice_of(config, overrides)) as steps:
        channels = 1 if steps is None else steps.images_per_case
        include_labels = include_labels or (steps is not None and steps.metadata.takes_masks)
        chosen: dict[str, Any] = {"include_labels": include_labels, "suffixes": suffixes, "channels": channels}
        inputs_found = find_images(inputs, "vit3d_check_writes_nothing", **chosen)
        split, no_volumes = split_series(inputs_found.cases)
        cases = tuple(split) if steps is None else order_channels(split, steps)[0]
        read = partial(_read_files, **limits, labels=include_labels, channels=channels, resample=resample_channels)
        doubts = partial(_doubts, bundle=steps, anyway=anyway)
        checked = []
        for case in cases:
            if case.dicom:
                series = partial(_read_series, series=case.series, **limits, units=units)
                checked.append(_check(case.images, series, doubts, case.series))
            else:
                together = [case.images] if steps is not None else [(path,) for path in case.images]
                checked += [_check(paths, read, doubts) for paths in together]
    return [*checked, *_passed_over([*inputs_found.passed_over, *no_volumes])]


@contextmanager
def _opened(bundle: str | Path | None, safe: bool, choice: Choice) -> Iterator[BundleSteps | None]:
    """Yield the steps of a bundle, if there is one."""
    if bundle is None:
        yield None
    else:
        with open_bundle(bundle) as root:
            yield load_steps(root, safe, choice)


def _doubts(volumes: Sequence[Volume], bundle: BundleSteps | None, anyway: bool) -> list[str]:
    """Compare the images of a case with a bundle's training; without a bundle nothing is found.

    Raises:
        ImageError: too far from the training, another number of images, or the bundle's preprocessing fails.
    """
    from .prepare import prepare

    if bundle is None:
        return []
    findings = check_geometry(volumes[0].grid, bundle.metadata)
    if not anyway:
        refuse(volumes[0].path, findings, bundle.metadata)
    findings += check_input(prepare(volumes, bundle).image, bundle.metadata)
    return [finding.text for finding in findings]


def _passed_over(files: Sequence[PassedOver]) -> list[dict[str, Any]]:
    return [
        {"file": str(path), "verdict": "passed over", "reason": reason, "text": f"{printable(path)}: {reason}"}
        for reason, paths in by_reason(files).items()
        for path in paths
    ]


def _read_files(
    paths: Sequence[Path], volume: int | None, max_voxels: int, labels: bool, channels: int, resample: bool
) -> list[Volume]:
    from monai_vit3d.data.case_files import read_channels
    from monai_vit3d.data.one_grid import onto_first_grid

    from .label_values import check_label_values

    volumes = read_channels(paths, channels, volume, max_voxels)
    volumes = volumes if labels else [check_label_values(one) for one in volumes]
    return onto_first_grid(volumes) if resample else volumes


def _read_series(
    paths: Sequence[Path], series: Series | None, volume: int | None, max_voxels: int, units: str
) -> list[Volume]:
    from monai_vit3d.data.dicom import find_series, read_series

    # a folder that could not be looked through says here why
    return [read_series(series or find_series(paths[0])[0], max_voxels, volume, units)]


def _check(
    paths: Sequence[Path],
    read: Callable[[Sequence[Path]], list[Volume]],
    doubts: Callable[[Sequence[Volume]], list[str]],
    series: Series | None = None,
) -> dict[str, Any]:
    from monai_vit3d.data.orientation import axis_letters

    path = paths[0]
    about: dict[str, Any] = {"file": str(path)} | ({"files": [*map(str, paths)]} if len(paths) > 1 else {})
    about |= {} if series is None else {"series": series.name}
    try:
        volumes = read(paths)
        warnings = [*(text for one in volumes for text in one.warnings), *doubts(volumes)]
    except ImageError as error:
        return {**about, "verdict": "refused", "error": str(error), "text": str(error)}
    volume = volumes[0]
    spacing = [round(mm, 4) for mm in volume.grid.spacing_mm]
    letters = axis_letters(volume.grid.affine_mm)
    size = " x ".join(map(str, volume.grid.shape))
    name = " + ".join(map(str, paths)) if series is None else f"{path}, {series.name}"
    count = f"{len(volumes)} x " if len(volumes) > 1 else ""
    text = f"{name}: {count}{size} voxels, {' x '.join(map(str, spacing))} mm, {letters}"
    reader = None if series is not None else reader_for(path)
    if reader is not None and reader.converter:
        text += f", {reader.name} ({reader.converter} converts it)"
    return {
        **about,
        "verdict": "odd" if warnings else "good",
        "shape": list(volume.grid.shape),
        "spacing_mm": spacing,
        "orientation": letters,
        "warnings": warnings,
        "text": "; ".join([text, *warnings]),
    }
