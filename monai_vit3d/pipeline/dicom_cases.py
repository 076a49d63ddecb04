"""Split DICOM folders into cases: every series once, also where its files lie in several folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.passed_over import PassedOver
from monai_vit3d.data.printable import printable

from .case import Case

if TYPE_CHECKING:
    from monai_vit3d.data.dicom import Series


def split_series(cases: Sequence[Case]) -> tuple[list[Case], list[PassedOver]]:
    """Search DICOM folders, and make a case of each series.

    A series whose files lie in several folders is one case, of the first folder; where a later folder holds the same
    images again, these are passed over.

    Returns:
        The cases in the order given, and the DICOM files that belong to none.
    """
    folders = _Folders()
    for case in cases:
        if case.dicom:
            folders.scan(case)
    return [part for case in cases for part in folders.split(case)], folders.passed_over


@dataclass
class _Folders:
    """The series of DICOM folders; a folder that could not be searched has no entry."""

    series: dict[Case, list[Series]] = field(default_factory=dict)
    passed_over: list[PassedOver] = field(default_factory=list)
    homes: dict[str, tuple[Case, int]] = field(default_factory=dict)  # by UID: where a series was seen first

    def scan(self, case: Case) -> None:
        """Read the headers of a folder's files; a folder where that fails is left for the run to report."""
        from monai_vit3d.data.dicom import scan_folder

        try:
            scan = scan_folder(case.images[0])
        except ImageError:
            return
        self.passed_over += scan.passed_over
        own = self.series.setdefault(case, [])
        for series in scan.series:
            if series.uid in self.homes:
                self._merge(series)
                continue
            if series.uid:
                self.homes[series.uid] = case, len(own)
            own.append(series)

    def split(self, case: Case) -> list[Case]:
        """Make a case of each series of a folder; any other case stays as it is."""
        if case not in self.series:
            return [case]
        several = self.series[case]
        if len(several) == 1:
            return [replace(case, series=several[0])]
        return [replace(case, relative=case.relative / series.name, series=series) for series in several]

    def _merge(self, other: Series) -> None:
        """Add the files of a series that was seen before, unless they are the same images again."""
        home, index = self.homes[other.uid]
        first = self.series[home][index]
        if other.images <= first.images:
            reason = f"a copy of the series in {printable(home.images[0])}"
            self.passed_over += [PassedOver(path, reason) for path in other.files]
            return
        warnings = dict.fromkeys([*first.warnings, *other.warnings, "its files lie in several folders"])
        self.series[home][index] = replace(
            first, files=first.files + other.files, images=first.images | other.images, warnings=tuple(warnings)
        )
