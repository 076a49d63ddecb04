"""Predict one volume: voxels and affine in, labels on the same grid out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_vit3d.bundle.config import choice_of
from monai_vit3d.bundle.load import Bundle, load_bundle
from monai_vit3d.bundle.unpack import open_bundle
from monai_vit3d.bundle.value_names import ValueNames
from monai_vit3d.data.in_memory import labels_like, volumes_from
from monai_vit3d.data.one_grid import onto_first_grid
from monai_vit3d.data.volume import Array, Grid, Volume

from .acceleration import accelerate
from .chosen_labels import check_names, choose_labels, keep_labels
from .inference import NetworkOutput, infer
from .memory import check_memory
from .options import Options, choose_views, output_kinds
from .plausibility import Implausibility, check_geometry, check_input, check_predicted_labels, refuse
from .prepare import Prepared, prepare
from .stats import LabelSummary, label_stats
from .to_file_grid import labels_on_file_grid, map_on_file_grid

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Prediction:
    """The result of one case, on the image's own grid.

    Args:
        volume: the case's image; of several channels, the first.
        labels: (H, W, D) integers, or (C, H, W, D) overlapping masks; None for a classifier.
        maps: further maps by kind (``"prob"``, ``"entropy"``, ``"variance"``), each (H, W, D) or (C, H, W, D) float32.
        scores: a classifier's, a number for each class.
        stats: size and intensities of each label.
        findings: what is unlike the bundle's training, or cannot be true.
        warnings: what was odd on the way.
    """

    volume: Volume
    labels: Array | None = None
    maps: dict[str, Array] = field(default_factory=dict)
    scores: list[float] | None = None
    stats: list[LabelSummary] = field(default_factory=list)
    findings: list[Implausibility] = field(default_factory=list)
    warnings: tuple[str, ...] = ()


class Predictor:
    """Label or classify volumes with a MONAI bundle, as ``vit3d predict`` does with files.

    Args:
        bundle: a bundle's folder, zip or name, or a loaded bundle, which keeps its own device, backend and precision. A
            bundle's config is code: give ``safe`` unless you trust it.
        device: a torch device; None takes a GPU where there is one.
        tta: whether to average over the flips of the axes that the bundle's ``flip_axes`` names, or these axes;
            ``"full"``, over the rotations and scales that it names, too.
        uncertainty: ``"entropy"`` or, with ``tta``, ``"variance"``: a map of it in :attr:`Prediction.maps`.
        probabilities: whether to keep them in :attr:`Prediction.maps`, too, a map a class.
        config: config files of the bundle to merge, by name; None is its ``inference``.
        overrides: values to set in the config, by id such as ``"inferer::overlap"``.
        backend: what runs the network: ``"auto"``, OpenVINO on a CPU if it is installed and gives PyTorch's answer,
            else PyTorch; ``"torch"``, whose numbers are those of ``monai.bundle run``; ``"compile"``; ``"openvino"``.
        bf16: whether the network computes in bfloat16, whatever the bundle says.
        safe: whether to refuse a bundle whose config is more than settings.
        anyway: whether to run images, too, that are far from what the bundle was trained on.
        resample_channels: whether channels on other grids than the first are resampled onto that, with a warning.
        only: names or values of the labels that are kept, the others become background; none keeps all.
        folds: which trained folds of the bundle run, from 0, their probabilities averaged; None is the bundle's choice.
        options: all that is computed, instead of ``tta``, ``uncertainty``, ``probabilities``, ``resample_channels``
            and ``only``.

    Attributes:
        bundle: the loaded bundle.
        options: what is computed.

    Raises:
        BundleError: a bundle that cannot be used, or is not safe.
        WeightsError: weights that are missing, damaged or of another network.
        UsageError: arguments that contradict each other or the bundle.

    Example:
        >>> predictor = Predictor("bundles/hippocampus_segmentation", safe=True)  # doctest: +SKIP
        >>> labels = predictor.predict(voxels, affine)  # doctest: +SKIP
        >>> predictor.predict(nibabel.load("t1.nii.gz")).to_filename("labels.nii.gz")  # doctest: +SKIP
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        device: str | None = None,
        *,
        tta: bool | str | Sequence[int] = False,
        uncertainty: str | None = None,
        probabilities: bool = False,
        config: str | Sequence[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        backend: str = "auto",
        bf16: bool = False,
        safe: bool = False,
        anyway: bool = False,
        resample_channels: bool = False,
        only: str | int | Sequence[str | int] = (),
        folds: Sequence[int] | None = None,
        options: Options | None = None,
    ) -> None:
        self._unpacked = ExitStack()  # the folder of a zip is there as long as the predictor
        if not isinstance(bundle, Bundle):
            root = self._unpacked.enter_context(open_bundle(bundle))
            bundle = accelerate(load_bundle(root, device, safe, choice_of(config, overrides, folds)), backend, bf16)
        if options is None:
            output_kinds(bundle.metadata, tta, uncertainty, probabilities)
            kept = tuple(label.value for label in choose_labels(bundle, only)) if only else ()
            views = choose_views(tta, bundle)
            given: dict[str, Any] = {"uncertainty": uncertainty, "probabilities": probabilities, "only": kept}
            options = Options(resample_channels=resample_channels, **given, **views)
        self.bundle, self.options, self.anyway = bundle, options, anyway

    def predict(self, image: Any, affine: Any = None) -> Any:
        """Predict one volume, and return labels in the same kind of image.

        Args:
            image: (H, W, D) voxels, or (C, H, W, D) for a bundle of C channels, as array or tensor with ``affine``, or
                as MetaTensor; or a ``nibabel.Nifti1Image``, 4D of several channels, or a list of them, one a channel.
            affine: (4, 4), voxel index to world, RAS+ mm; None for images that have their own.

        Returns:
            Labels on the image's own grid, (H, W, D) integers or (C, H, W, D) overlapping masks: an array, tensor,
            MetaTensor or NIfTI image like ``image``. Of a classifier, the numbers of the classes by name.

        Raises:
            ImageError: an image that cannot be used, that is far from the bundle's training, or too large for memory.
            BundleError: a bundle whose steps leave no labels.
        """
        prediction = self.predict_volumes(volumes_from(image, affine, self.bundle.images_per_case))
        for text in (*prediction.warnings, *(finding.text for finding in prediction.findings)):
            logger.warning("%s: %s", prediction.volume.path, text)
        if prediction.labels is None:
            return dict(zip(self.bundle.class_names, prediction.scores or ()))
        return labels_like(image, prediction.labels, prediction.volume.grid)

    def predict_volumes(self, volumes: Sequence[Volume]) -> Prediction:
        """Predict one case: labels, the chosen maps, statistics and findings.

        Args:
            volumes: one for each channel; see :func:`monai_vit3d.data.read_volume`.

        Raises:
            ImageError: as :meth:`predict`.
            BundleError: as :meth:`predict`.
        """
        if self.options.resample_channels:
            volumes = onto_first_grid(volumes)
        findings = self.check(volumes[0].path, volumes[0].grid, len(volumes))
        prepared = self.prepare(volumes)
        prediction = self.finish(self.infer(prepared))
        prediction.findings = [*findings, *self.check_input(prepared), *prediction.findings]
        prediction.warnings = (*(text for volume in volumes for text in volume.warnings), *prediction.warnings)
        return prediction

    def check(self, path: Path, grid: Grid, channels: int) -> list[Implausibility]:
        """Compare a case's grid with the bundle's training, and its size with the free memory; voxels are not needed.

        Raises:
            ImageError: it is too far from the training, or would not fit into memory.
        """
        findings = check_geometry(grid, self.bundle.metadata)
        if not self.anyway:
            refuse(path, findings, self.bundle.metadata)
        check_memory(path, grid, channels, self.bundle, self.options)
        return findings

    def prepare(self, volumes: Sequence[Volume]) -> Prepared:
        """Run the bundle's preprocessing."""
        return prepare(volumes, self.bundle)

    def check_input(self, prepared: Prepared) -> list[Implausibility]:
        """Compare the brightness of the network's input with the bundle's training."""
        return check_input(prepared.image, self.bundle.metadata)

    def infer(self, prepared: Prepared) -> NetworkOutput:
        """Run the network, and the bundle's steps that treat each voxel alone."""
        return infer(prepared, self.bundle, self.options)

    def finish(self, output: NetworkOutput) -> Prediction:
        """Run the bundle's steps on whole volumes, take the result to the image's grid, and check it."""
        volume = output.prepared.volume
        maps = {kind: _on_file_grid(output.prepared, values) for kind, values in output.maps.items()}
        if output.labels is None:
            return Prediction(volume, None, maps, output.scores, warnings=output.warnings)
        on_grid, warnings = labels_on_file_grid(output)
        labels = on_grid.numpy()
        labels = labels[0] if len(labels) == 1 else labels
        names = self.bundle.value_names(output.classes)
        stats = label_stats(labels, volume.voxels, volume.grid, names.names)
        findings = [Implausibility("localization", text) for text in output.doubts]
        findings += check_predicted_labels(labels, volume, stats, output.entropy, self.bundle.metadata)
        warnings = [*output.warnings, *warnings, *_values_without_names(labels, names, self.bundle)]
        if self.options.only or self.options.split or self.options.mesh:
            check_names(self.bundle, names)
        if self.options.only:
            labels = keep_labels(labels, self.options.only)
            stats = [summary for summary in stats if summary.label in self.options.only]
        return Prediction(volume, labels, maps, None, stats, findings, tuple(warnings))


def _on_file_grid(prepared: Prepared, values: Any) -> Array:
    # channel after channel: classes x volume is held once, not once for each step of the inversion
    on_grid = np.empty((len(values), *prepared.volume.grid.shape), np.float32)
    for i, channel in enumerate(values):
        on_grid[i] = map_on_file_grid(prepared, channel[None], nearest=False)[0]
    return on_grid[0] if len(on_grid) == 1 else on_grid


def _values_without_names(labels: Array, names: ValueNames, bundle: Bundle) -> list[str]:
    """Warn of label values whose meaning is not known."""
    if labels.ndim == 4:
        values = list(range(1, len(labels) + 1))
    else:  # a byte's values are counted ten times as fast as sorted
        values = (np.bincount(labels.ravel()).nonzero()[0] if labels.dtype == np.uint8 else np.unique(labels)).tolist()
    unknown = [value for value in values if value and value not in names.followed]
    if not unknown or not bundle.metadata.channel_names:
        return []
    return [
        f"label {', '.join(map(str, unknown))}: written without a name, as the bundle's steps do not show which "
        "channels of its network that is"
    ]
