"""Choose labels of a bundle by name or value."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from monai_vit3d.data.class_sides import left_right_pairs
from monai_vit3d.data.errors import BundleError, UsageError
from monai_vit3d.data.printable import excerpt, printable
from monai_vit3d.data.volume import Array

if TYPE_CHECKING:
    from monai_vit3d.bundle.load import BundleSteps
    from monai_vit3d.bundle.value_names import ValueNames

_LONGEST_STEM = 60  # characters of a label in the name of a file
_SHOWN = 200  # labels in a message
_ALIKE = 0.6  # share of letters that two names have in common


@dataclass(frozen=True)
class ChosenLabel:
    """A label that is written.

    Args:
        value: in the label file; of masks, the channel's number from 1.
        name: what it stands for.
        stem: the name as files have it: letters, digits and ``_``.
    """

    value: int
    name: str
    stem: str


def choose_labels(bundle: BundleSteps, only: str | int | Sequence[str | int] = ()) -> tuple[ChosenLabel, ...]:
    """Choose labels of a bundle, in the order of their values.

    Args:
        bundle: its steps, which name the label values.
        only: names or values; letter case, spaces and ``_`` do not count. ``"left"`` and ``"right"`` are all labels of
            a side that have a partner on the other. None chooses all labels.

    Raises:
        UsageError: a label that the bundle does not have, none is chosen of a bundle that names none, or it classifies.
    """
    if bundle.metadata.classifies:
        raise UsageError(
            f"{bundle.metadata.name}: classifies whole volumes, so there are no labels to choose or to write. Leave "
            "out only=, split=True and mesh=."
        )
    texts = [str(text) for text in ((only,) if isinstance(only, str | int) else only)]
    labels = _with_stems(_labels(_expected_names(bundle)))
    if not labels:  # any value may come
        values = {int(text) for text in texts if re.fullmatch("[1-9][0-9]{0,8}", text)}
        if not texts or len(values) < len(set(texts)):
            raise UsageError(
                f"only={','.join(map(printable, texts))}: {bundle.metadata.name} does not name its labels. Give their "
                "values, as only=1,2."
            )
        return _with_stems({value: f"label {value}" for value in values})
    by_text: dict[str, list[ChosenLabel]] = {}
    for label in labels:
        for key in {str(label.value), _key(label.name)}:
            by_text.setdefault(key, []).append(label)
    for side, names in zip(("left", "right"), zip(*left_right_pairs([label.name for label in labels]))):
        by_text.setdefault(side, [label for label in labels if label.name in names])
    for text in texts:
        if _key(text) not in by_text:
            raise UsageError(_unknown(text, labels, bundle.metadata.name))
    kept = {label for text in texts for label in by_text[_key(text)]}
    return tuple(label for label in labels if label in kept or not texts)


def check_names(bundle: BundleSteps, names: ValueNames) -> None:
    """Refuse labels whose values do not mean what was expected when they were chosen.

    Args:
        bundle: as for :func:`choose_labels`.
        names: by the channels that its network has.

    Raises:
        BundleError: they are others.
    """
    if _labels(names) != _labels(_expected_names(bundle)):
        raise BundleError(
            f"{bundle.metadata.name}: its network has another number of channels than its metadata.json tells, so it "
            "was not known which labels were chosen. Correct num_channels there, or leave out only=, split=True and "
            "mesh=."
        )


def keep_labels(labels: Array, values: Sequence[int]) -> Array:
    """Make all other labels background.

    Args:
        labels: (H, W, D) integers, or (C, H, W, D) masks; channel c is label c + 1.
        values: of the labels that stay.
    """
    if labels.ndim == 4:
        kept = [c + 1 in values for c in range(len(labels))]
        return labels * np.array(kept, labels.dtype)[:, None, None, None]
    return np.where(np.isin(labels, values), labels, 0).astype(labels.dtype)


def _expected_names(bundle: BundleSteps) -> ValueNames:
    """Name label values before the network has run, by the number of channels that the metadata tell."""
    metadata = bundle.metadata
    return bundle.value_names(metadata.output_channels or max(metadata.channel_names, default=0) + 1)


def _labels(names: ValueNames) -> dict[int, str]:
    """List all values but the background's, with a name each."""
    values = {*names.names, *names.followed} - {0}
    return {value: names.names.get(value, f"label {value}") for value in values}


def _key(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip().casefold()


def _with_stems(names: dict[int, str]) -> tuple[ChosenLabel, ...]:
    """Give labels stems that stay different where letter case and ``_`` do not count."""
    labels, taken = [], set[str]()
    for value, name in sorted(names.items()):
        stem = re.sub(r"[\W_]+", "_", name).strip("_")[:_LONGEST_STEM] or f"label_{value}"
        while stem.replace("_", "").casefold() in taken:
            stem += f"_{value}"
        taken.add(stem.replace("_", "").casefold())
        labels.append(ChosenLabel(value, name, stem))
    return tuple(labels)


def _nearest(key: str, names: Mapping[str, str]) -> list[str]:
    """List up to three names that are like a key, or have a word that is; none if the nearest is not."""

    def likeness(name: str) -> float:
        return max(difflib.SequenceMatcher(None, key, part).ratio() for part in (name, *name.split()))

    best = max(map(likeness, names))
    return [names[name] for name in names if likeness(name) == best][:3] if best >= _ALIKE else []


def _unknown(text: str, labels: Sequence[ChosenLabel], bundle: str) -> str:
    near = _nearest(_key(text), {_key(label.name): label.name for label in labels})
    meant = f" Did you mean {printable(' or '.join(near))}?" if near else ""
    listed = ", ".join(f"{label.value} {label.name}" for label in labels[:_SHOWN])
    return f"only={excerpt(text, 80)}: {bundle} has no such label.{meant} Expected some of {excerpt(listed, 2000)}."
