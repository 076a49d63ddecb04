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
) -> list[dict[str, Any]]:
    """Read every file to its end, as :func:`~.folder.predict_folder` does.

    Args:
        inputs: one or several NIfTI files, folders or lists.
        volume: which volume of 4D files, from 0; None refuses them.
        max_voxels: the largest volume that is taken.
        include_labels: whether label files and the outputs of earlier runs are images, too.
        suffixes: last words of the names of images to take from folders; none takes all.
        units: ``"stored"``, or ``"suv"`` for DICOM PET.
        bundle: the bundle to compare the files with, a folder or zip: images far from what it was trained on are
            refused, others unlike it are odd.
        safe: whether to refuse a bundle whose config is more than settings.
        anyway: whether images far from what the bundle was trained on are no more than odd.
        config: config files of the bundle, as for :func:`~.folder.predict_folder`; its weights are not needed.
        overrides: values to set in the config.

    Returns:
        For each file, or each series of a DICOM folder, ``file``, ``verdict`` (``"good"``, ``"odd"`` with
        ``warnings``, ``"refused"`` with ``error``,
        ``"passed over"`` with ``reason``), a ``text`` to show, of those that were read ``shape``, ``spacing_mm`` and
        ``orientation`` (of the axes' far ends), and of a DICOM folder ``series``, its name.

    Raises:
        UsageError: no such file, or a folder without any.
        BundleError: a bundle that cannot be used, or is not safe.
    """
    inputs_found = find_images(inputs, "vit3d_check_writes_nothing", include_labels=include_labels, suffixes=suffixes)
    file = partial(_read_file, volume=volume, max_voxels=max_voxels, include_labels=include_labels)
    cases, no_volumes = split_series(inputs_found.cases)
    with _comparing(bundle, safe, anyway, choice_of(config, overrides)) as doubts:
        checked = []
        for case in cases:
            if case.dicom:
                series = partial(_read_series, series=case.series, volume=volume, max_voxels=max_voxels, units=units)
                checked.append(_check(case.images[0], series, doubts, case.series))
            else:
                checked += [_check(path, file, doubts) for path in case.images]
    return [*checked, *_passed_over([*inputs_found.passed_over, *no_volumes])]


@contextmanager
def _comparing(
    bundle: str | Path | None, safe: bool, anyway: bool, choice: Choice
) -> Iterator[Callable[[Volume], list[str]]]:
    """Yield a function that compares an image with a bundle's training; without a bundle it finds nothing."""
    if bundle is None:
        yield lambda volume: []
    else:
        with open_bundle(bundle) as root:
            yield partial(_doubts, bundle=load_steps(root, safe, choice), anyway=anyway)


def _doubts(volume: Volume, bundle: BundleSteps, anyway: bool) -> list[str]:
    """Compare an image with a bundle's training; brightness only if the bundle takes one image a case.

    Raises:
        ImageError: too far from the training, or the bundle's preprocessing fails.
    """
    from .prepare import prepare

    findings = check_geometry(volume.grid, bundle.metadata)
    if not anyway:
        refuse(volume.path, findings, bundle.metadata)
    if bundle.metadata.channels == 1:
        findings += check_input(prepare([volume], bundle).image, bundle.metadata)
    return [finding.text for finding in findings]


def _passed_over(files: Sequence[PassedOver]) -> list[dict[str, Any]]:
    return [
        {"file": str(path), "verdict": "passed over", "reason": reason, "text": f"{printable(path)}: {reason}"}
        for reason, paths in by_reason(files).items()
        for path in paths
    ]


def _read_file(path: Path, volume: int | None, max_voxels: int, include_labels: bool) -> Volume:
    from monai_vit3d.data.readers import read_volume

    from .label_values import check_label_values

    read = read_volume(path, volume, max_voxels)
    return read if include_labels else check_label_values(read)


def _read_series(path: Path, series: Series | None, volume: int | None, max_voxels: int, units: str) -> Volume:
    from monai_vit3d.data.dicom import find_series, read_series

    # a folder that could not be looked through says here why
    return read_series(series or find_series(path)[0], max_voxels, volume, units)


def _check(
    path: Path,
    read: Callable[[Path], Volume],
    doubts: Callable[[Volume], list[str]],
    series: Series | None = None,
) -> dict[str, Any]:
    from monai_vit3d.data.orientation import axis_letters

    about = {"file": str(path)} | ({} if series is None else {"series": series.name})
    try:
        volume = read(path)
        warnings = [*volume.warnings, *doubts(volume)]
    except ImageError as error:
        return {**about, "verdict": "refused", "error": str(error), "text": str(error)}
    spacing = [round(mm, 4) for mm in volume.grid.spacing_mm]
    letters = axis_letters(volume.grid.affine_mm)
    size = " x ".join(map(str, volume.grid.shape))
    name = str(path) if series is None else f"{path}, {series.name}"
    text = f"{name}: {size} voxels, {' x '.join(map(str, spacing))} mm, {letters}"
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
