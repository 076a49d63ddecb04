"""A labelled data set, whatever layout its files are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from monai_vit3d.data.errors import UsageError


@dataclass(frozen=True)
class LabelledCase:
    """One case of a data set.

    Args:
        name: unique in the data set.
        images: one 3D file a channel, or one 4D file that holds all channels, absolute.
        label: absolute path of a label map; the number of a class; the value to regress; None without a label.
        subject: who was scanned; the name where the data do not say it. Cases of a subject belong into one fold.
        fold: where the data give it, from 0.
        section: ``"training"`` or ``"testing"``.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | int | float | None
    subject: str
    fold: int | None = None
    section: str = "training"


@dataclass(frozen=True)
class LabelledDataset:
    """All cases of a data set, and what their channels and labels mean.

    Args:
        root: the folder that holds all files, absolute.
        layout: name of the layout that was read, a row of ``LAYOUTS``.
        task: ``"segmentation"``, ``"classification"`` or ``"regression"``.
        cases: in the order of their names within the data set.
        channel_names: one for each channel.
        class_names: value to name, in the order of the values; 0 is "background" of a segmentation. Empty for
            regression.
    """

    root: Path
    layout: str
    task: str
    cases: tuple[LabelledCase, ...]
    channel_names: tuple[str, ...]
    class_names: dict[int, str]

    def with_subjects(self, names: Mapping[str, str]) -> LabelledDataset:
        """Return the data set with other names of some subjects, by their own."""
        cases = tuple(replace(case, subject=names.get(case.subject, case.subject)) for case in self.cases)
        return replace(self, cases=cases)

    def with_channels(self, names: Sequence[str]) -> LabelledDataset:
        """Return the data set with these channels of its cases, in this order; as it is if none are named.

        Raises:
            UsageError: a name that no channel has, or twice; or channels that lie in one file.
        """
        if not names:
            return self
        if unknown := [name for name in names if name not in self.channel_names or names.count(name) > 1]:
            held = ", ".join(self.channel_names)
            raise UsageError(f"channels={unknown[0]}: expected names of channels, each once; {self.root} has {held}.")
        if any(len(case.images) != len(self.channel_names) for case in self.cases):
            raise UsageError(f"channels={names[0]}: {self.root} has all channels in one file. Take all of them.")
        chosen = [self.channel_names.index(name) for name in names]
        cases = tuple(replace(case, images=tuple(case.images[i] for i in chosen)) for case in self.cases)
        return replace(self, cases=cases, channel_names=tuple(names))

    def section(self, name: str) -> tuple[LabelledCase, ...]:
        """Return the cases of ``"training"`` or ``"testing"``."""
        return tuple(case for case in self.cases if case.section == name)
