"""Check whether a case resembles a bundle's training cases, and whether its labels are plausible.

One rule for all: a value is suspicious outside the training's range widened by the row's tolerance, and a case is
refused where a value lies far outside. Each number of the rule stands once, in :data:`PLAUSIBILITY_ROWS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_vit3d.bundle.metadata import Metadata
from monai_vit3d.bundle.trained_on import Key, TrainedOn, ValueRange
from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.orientation import axis_letters
from monai_vit3d.data.volume import Array, Grid, Volume

from .measures import Values, measure_grid, measure_input, measure_labels
from .stats import LabelSummary

if TYPE_CHECKING:
    from torch import Tensor

UP_TO_HALF = (0.0, 0.5)  # of a label over one image value, or of the foreground: more is suspicious for any bundle


@dataclass(frozen=True)
class PlausibilityRow:
    """One check of a case.

    Args:
        kind: what run.json calls it.
        key: path of the measured values; ``"*"`` is any name.
        text: for each suspicious value, with ``{subject}``, ``{value}``, ``{low}`` and ``{high}``.
        before: put before the texts of all suspicious values, with ``{cases}``.
        factor: how many times below the lowest or above the highest of the training is suspicious.
        spreads: further tolerance, as a share of the spread of the training's inputs (5 % to 95 %).
        far_below: how many times below the lowest a case is refused.
        far_above: how many times above the highest a case is refused.
        always: a range that is plausible whatever the training's range is.
    """

    kind: str
    key: Key
    text: str
    before: str = ""
    factor: float = 1.0
    spreads: float = 0.0
    far_below: float = math.inf
    far_above: float = math.inf
    always: ValueRange | None = None


_OF_TRAINING = "{value:.4g} (in training {low:.4g} to {high:.4g})"
_MM = "{subject} {value:.4g} mm (in training {low:.4g} to {high:.4g})"
PLAUSIBILITY_ROWS = (
    PlausibilityRow(
        "field of view", ("field_of_view_mm", "*"), _MM, "field of view ", 1.25, far_below=2.5, far_above=2.5
    ),
    # finer voxels are resampled without loss; what coarser ones lack does not come back
    PlausibilityRow("spacing", ("spacing_mm", "*"), _MM, "spacing ", 1.25, far_above=2.5),
    PlausibilityRow(
        "intensities", ("input", "*"), "{subject} quantile " + _OF_TRAINING, "brightness of the input: ", spreads=0.5
    ),
    PlausibilityRow(
        "constant voxels",
        ("labels", "*", "share_of_one_value"),
        "{value:.0%} of {subject} lies where the image has one value only, as air or padding has",
        always=UP_TO_HALF,
    ),
    PlausibilityRow(
        "foreground",
        ("share_of_foreground",),
        "labels cover {value:.0%} of the image's foreground",
        always=UP_TO_HALF,
    ),
    PlausibilityRow(
        "missing", ("labels", "*", "present"), "{subject}", "missing here, and in each of {cases} training cases: "
    ),
    PlausibilityRow("volume", ("labels", "*", "volume_ml"), "{subject} " + _OF_TRAINING, "volume in ml: ", 1.25),
    PlausibilityRow(
        "border",
        ("labels", "*", "border_voxels"),
        "{subject} reaches the image's border in {value:.0f} voxels (in training at most {high:.0f})",
        factor=1.25,
    ),
    PlausibilityRow("pieces", ("labels", "*", "pieces"), "{subject} " + _OF_TRAINING, "pieces: ", 1.25),
    PlausibilityRow(
        "entropy", ("entropy",), "the network is undecided: entropy per labelled voxel " + _OF_TRAINING, factor=1.75
    ),
)


@dataclass(frozen=True)
class Implausibility:
    """A property of a case that is unlike the training's, or implausible.

    Args:
        kind: see :data:`PLAUSIBILITY_ROWS`.
        text: a message for the user.
        far: whether it is so far outside that the case is refused.
    """

    kind: str
    text: str
    far: bool = False


def check_geometry(grid: Grid, metadata: Metadata) -> list[Implausibility]:
    """Compare field of view, spacing and orientation with the training's; voxels are not needed."""
    findings = compare(measure_grid(grid), metadata.trained_on)
    orientations, letters = metadata.trained_on.orientations, axis_letters(grid.affine_mm)
    if orientations and letters not in orientations:
        text = f"orientation {letters} (in training {', '.join(orientations)}), and the bundle does not turn its input"
        findings.append(Implausibility("orientation", text))
    return findings


def check_input(image: Tensor, metadata: Metadata) -> list[Implausibility]:
    """Compare the brightness of the network's input with the training's.

    Args:
        image: (C, h, w, d), after the bundle's preprocessing.
        metadata: the bundle's.
    """
    trained_on = metadata.trained_on
    return compare(measure_input(image), trained_on) if trained_on.has("input") else []


def check_predicted_labels(
    labels: Array, volume: Volume, stats: Sequence[LabelSummary], entropy: float | None, metadata: Metadata
) -> list[Implausibility]:
    """Check whether labels are plausible, and compare them with the training's.

    Args:
        labels: (H, W, D) integers, or (C, H, W, D) masks; channel c is label c + 1.
        volume: the image that they belong to.
        stats: of the labels, as :func:`~monai_vit3d.pipeline.stats.label_stats` gives them.
        entropy: see :class:`~monai_vit3d.inferers.PredictionEntropy`.
        metadata: of the bundle.
    """
    trained_on = metadata.trained_on
    measured = measure_labels(labels, volume.voxels, stats, pieces=trained_on.has("pieces"))
    if entropy is not None:
        measured["entropy"] = entropy
    return compare(measured, trained_on, {str(summary.label): summary.name for summary in stats})


def compare(measured: Values, trained_on: TrainedOn, names: Mapping[str, str] | None = None) -> list[Implausibility]:
    """Find the values outside the training's ranges, one finding for each row of :data:`PLAUSIBILITY_ROWS`.

    Args:
        measured: as the functions of :mod:`monai_vit3d.pipeline.measures` give them.
        trained_on: the ranges; a value without one is checked only against its row's ``always``.
        names: of labels, by value.
    """
    values = dict(_flat(measured))
    findings = []
    for row in PLAUSIBILITY_ROWS:
        texts, far = [], False
        for key, value in values.items():
            allowed = _allowed(row, key, trained_on) if _matches(key, row.key) else None
            if allowed is None or allowed[0] <= value <= allowed[1]:
                continue
            low, high = trained_on.ranges.get(key) or row.always or allowed
            subject = (names or {}).get(key[1], f"label {key[1]}") if key[0] == "labels" else key[-1]
            texts.append(row.text.format(subject=subject, value=value, low=low, high=high))
            far = far or value < low / row.far_below or value > high * row.far_above
        if texts:
            findings.append(Implausibility(row.kind, row.before.format(cases=trained_on.cases) + ", ".join(texts), far))
    return findings


def refuse(path: Path, findings: Sequence[Implausibility], metadata: Metadata) -> None:
    """Refuse a case that is far from what the bundle was trained on.

    Raises:
        ImageError: a finding is ``far``.
    """
    far = [finding.text for finding in findings if finding.far]
    if far:
        raise ImageError(
            f"{path}: {'; '.join(far)}: too far from what {metadata.name} was trained on. Cut out or resample what its "
            "docs/README.md describes, choose a bundle for such images, or give anyway=True."
        )


def _allowed(row: PlausibilityRow, key: Key, trained_on: TrainedOn) -> ValueRange | None:
    """Return the range of values that are not suspicious; None where there is none."""
    trained = trained_on.ranges.get(key)
    if trained is None:
        return row.always
    slack = row.spreads * _spread(trained_on) if row.spreads else 0.0
    low, high = trained[0] / row.factor - slack, trained[1] * row.factor + slack
    return (low, high) if row.always is None else (min(low, row.always[0]), max(high, row.always[1]))


def _spread(trained_on: TrainedOn) -> float:
    quantiles = [pair for key, pair in trained_on.ranges.items() if key[0] == "input"]
    return max(high for _, high in quantiles) - min(low for low, _ in quantiles)


def _matches(key: Key, pattern: Key) -> bool:
    return len(key) == len(pattern) and all(p in ("*", k) for k, p in zip(key, pattern))


def _flat(values: Mapping[str, Any], place: Key = ()) -> Iterator[tuple[Key, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*place, name))
        else:
            yield (*place, name), value
