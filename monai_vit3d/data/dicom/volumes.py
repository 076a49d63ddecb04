"""Split a series into volumes (time points, echoes, b-values, stacks) by geometry and by attributes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.volume import Array

from .headers import element
from .slices import Slice

SAME_PLACE_MM = 1e-3

# attribute of a classic file; functional group and attribute of a frame. Earlier ones are tried first
_LABELS = (
    ("TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex"),
    ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    ("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    ("InversionTime", "MRModifierSequence", "InversionTimes"),
    ("FlipAngle", "MRTimingAndRelatedParametersSequence", "FlipAngle"),
    ("ImageType", "MRImageFrameTypeSequence", "FrameType"),
    ("ComplexImageComponent", "MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("ConvolutionKernel", "CTReconstructionSequence", "ConvolutionKernel"),
    ("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
    ("TriggerTime", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("NominalPercentageOfCardiacPhase", "CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("AcquisitionTime", "FrameContentSequence", "FrameAcquisitionDateTime"),
)
# these only order the slices of one position
_ORDER = ("TriggerTime", "AcquisitionTime", "InstanceNumber")


def split_volumes(slices: Sequence[Slice], where: str) -> tuple[list[list[Slice]], str]:
    """Sort the slices of a series into volumes.

    Args:
        slices: all slices of the series, in the order of its files.
        where: the series, for messages.

    Returns:
        The volumes, and the attributes in which they differ, for a message.

    Raises:
        ImageError: an image is there twice, or several slices have one position and no attribute separates them.
    """
    stacks, differences = _by_geometry(slices)
    parts = [_by_attributes(stack, where) for stack in stacks]
    names = [*differences, *dict.fromkeys(name for _, separating in parts for name in separating)]
    return [volume for volumes, _ in parts for volume in volumes], ", ".join(names)


def pick_volume(slices: Sequence[Slice], volume: int | None, where: str) -> list[Slice]:
    """Return the slices of one volume of a series.

    Args:
        slices: all slices of the series.
        volume: which one, from 0; None requires that there is only one.
        where: the series, for messages.

    Raises:
        ImageError: as :func:`split_volumes`, several and none is picked, or no such volume.
    """
    volumes, differ = split_volumes(slices, where)
    last = len(volumes) - 1
    if volume is None and last:
        sizes = ", ".join(str(len(slices)) for slices in volumes[:5]) + (", ..." if last > 4 else "")
        raise ImageError(
            f"{where}: {last + 1} volumes in one series ({sizes} slices), which differ in {differ}; expected one 3D "
            f"volume. Pick one with volume=N, from 0 to {last}."
        )
    if not 0 <= (volume or 0) <= last:
        raise ImageError(f"{where}: volume {volume} of {last + 1}; 0 to {last} can be picked with volume=N.")
    return volumes[volume or 0]


def _by_geometry(slices: Sequence[Slice]) -> tuple[list[list[Slice]], list[str]]:
    """Group slices that can belong to one volume, and say how the first ones that cannot differ."""
    stacks: list[list[Slice]] = []
    differences: list[str] = []
    for plane in slices:
        first_difference = ""
        for stack in stacks:
            difference = _geometry_difference(stack[0], plane)
            if not difference:
                stack.append(plane)
                break
            first_difference = first_difference or difference
        else:
            stacks.append([plane])
            differences += [first_difference] if first_difference and not differences else []
    return stacks, differences


def _geometry_difference(one: Slice, other: Slice) -> str:
    for name, values, tolerance in (
        ("size (rows, columns)", (one.shape, other.shape), 0.0),
        ("PixelSpacing", (one.spacing, other.spacing), 1e-4),
        ("orientation", (one.orientation, other.orientation), 1e-3),
    ):
        first, second = (np.array(value, np.float64) for value in values)
        if np.abs(first - second).max() > tolerance:
            return f"{name} ({first.tolist()} in {one.path.name}, {second.tolist()} in {other.path.name})"
    frames = [element(s.header, "FrameOfReferenceUID") for s in (one, other)]
    if None not in frames and frames[0] != frames[1]:
        return f"FrameOfReferenceUID (of {one.path.name} and {other.path.name}: positions cannot be compared)"
    if _value(one, "FrameContentSequence", "StackID") != _value(other, "FrameContentSequence", "StackID"):
        return "StackID"
    return ""


def _by_attributes(stack: list[Slice], where: str) -> tuple[list[list[Slice]], list[str]]:
    """Split slices of one geometry into volumes, and name the attributes that separate them."""
    places = _places(stack)
    count = max(Counter(places).values())
    if count == 1:
        return [stack], []
    _check_copies(stack, places, where)
    separating = [row for row in _LABELS if _differs_at_a_place(places, [_label(s, row) for s in stack])]
    for count_of_rows in range(1, min(3, len(separating)) + 1):
        for rows in combinations(separating, count_of_rows):
            keys = [tuple(_label(s, row) for row in rows) for s in stack]
            if len(set(keys)) == count and len(set(zip(keys, places))) == len(stack):
                return _grouped(stack, keys), [row[0] for row in rows]
    if set(Counter(places).values()) == {count}:
        for name in _ORDER:
            order = [_order(s, name) for s in stack]
            if None not in order and len(set(zip(order, places))) == len(stack):
                return _ranked(stack, places, order, count), [name]
    raise ImageError(_doubled(stack, places, [row[0] for row in separating], where))


def _places(stack: list[Slice]) -> list[int]:
    """Number the positions along the normal."""
    along, down = stack[0].orientation.reshape(2, 3)
    heights = np.array([s.position for s in stack]) @ np.cross(along, down)
    order = np.argsort(heights, kind="stable")
    steps = np.diff(heights[order], prepend=heights[order[0]]) >= SAME_PLACE_MM
    places: Array = np.empty(len(stack), int)
    places[order] = np.cumsum(steps)
    return [int(place) for place in places]


def _differs_at_a_place(places: list[int], labels: list[Hashable]) -> bool:
    first: dict[int, Hashable] = {}
    return any(first.setdefault(place, label) != label for place, label in zip(places, labels))


def _grouped(stack: list[Slice], keys: Sequence[Any]) -> list[list[Slice]]:
    groups: dict[Any, list[Slice]] = {}
    for one, key in zip(stack, keys):
        groups.setdefault(key, []).append(one)
    return [groups[key] for key in sorted(groups, key=_sortable)]


def _ranked(stack: list[Slice], places: list[int], order: Sequence[Any], count: int) -> list[list[Slice]]:
    """Group the n-th slices of all positions, in the order of an attribute."""
    volumes: list[list[Slice]] = [[] for _ in range(count)]
    sorted_at: Counter[int] = Counter()
    for k in sorted(range(len(stack)), key=lambda k: _sortable((order[k],))):
        volumes[sorted_at[places[k]]].append(stack[k])
        sorted_at[places[k]] += 1
    return volumes


def _sortable(key: tuple[Hashable, ...]) -> list[tuple[bool, bool, Any]]:
    """Make a sort key: numbers first, then texts, then missing values."""
    return [(value is None, isinstance(value, str), value if value is not None else 0) for value in key]


def _label(one: Slice, row: tuple[str, str, str]) -> Hashable:
    name, macro, own = row
    return _value(one, macro, own) if one.groups else _plain(element(one.header, name))


def _value(one: Slice, macro: str, name: str) -> Hashable:
    item = one.macro(macro)
    return None if item is one.header else _plain(element(item, name))


def _plain(value: Any) -> Hashable:
    """Convert a value to a number if possible, else to text; None stays."""
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _order(one: Slice, name: str) -> Hashable:
    row = next((row for row in _LABELS if row[0] == name), None)
    if row is not None:
        return _label(one, row)
    instance = _plain(element(one.header, name))
    return (instance if isinstance(instance, float) else 0.0, one.frame) if one.groups else instance


def _check_copies(stack: list[Slice], places: list[int], where: str) -> None:
    seen: dict[tuple[Any, ...], Slice] = {}
    for one, place in zip(stack, places):
        uid = element(one.header, "SOPInstanceUID")
        other = seen.setdefault((uid, one.frame, place), one)
        if uid is not None and other is not one:
            raise ImageError(
                f"{where}: {other.path.name} and {one.path.name} are the same image; expected one of each. Remove one."
            )


def _doubled(stack: list[Slice], places: list[int], apart: list[str], where: str) -> str:
    most = Counter(places).most_common(1)[0][0]
    names = " and ".join(dict.fromkeys([s.path.name for s, place in zip(stack, places) if place == most][:2]))
    differ = f" They differ in {', '.join(apart)}, but not in a way that sorts them into volumes." if apart else ""
    files = len({s.path for s in stack})
    advice = "Give the slices of one volume a folder of their own." if files > 1 else "Split it with dcm2niix."
    return f"{where}: several slices at one place, as in {names}; expected one 3D volume.{differ} {advice}"
