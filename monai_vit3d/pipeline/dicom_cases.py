"""The cases among what was found: every image, and every series of every DICOM folder once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..data.errors import ImageError
from ..data.passed_over import PassedOver
from ..data.readers import without_suffix
from .inputs import Found
from .paths import shown

if TYPE_CHECKING:
    from ..data.dicom import Series


@dataclass(frozen=True)
class NamedCase:
    """What was found at one place, or one DICOM series of it.

    Args:
        found: the place.
        name: path below OUT, without suffix.
        series: of a DICOM folder; None where the folder could not be looked through, which reading it reports.
    """

    found: Found
    name: str
    series: Series | None = None


def name_cases(found: Sequence[Found]) -> tuple[list[NamedCase], list[PassedOver]]:
    """Look through DICOM folders, and name the cases.

    A series whose files lie in several folders is one case, of the first folder; where a later folder holds the same
    images again, these are passed over.

    Returns:
        The cases in the order given, and the DICOM files that belong to none.
    """
    folders = _Folders()
    for one in found:
        if one.dicom:
            folders.look_through(one)
    return [case for one in found for case in folders.cases(one)], folders.passed_over


@dataclass
class _Folders:
    """The series of DICOM folders; those without an entry could not be looked through."""

    series: dict[Found, list[Series]] = field(default_factory=dict)
    passed_over: list[PassedOver] = field(default_factory=list)
    homes: dict[str, tuple[Found, int]] = field(default_factory=dict)  # by UID: where a series was seen first

    def look_through(self, found: Found) -> None:
        from ..data.dicom import scan_folder

        try:
            scan = scan_folder(found.images[0])
        except ImageError:
            return
        self.passed_over += scan.passed_over
        mine = self.series.setdefault(found, [])
        for one in scan.series:
            if one.uid in self.homes:
                self._merge(one)
                continue
            if one.uid:
                self.homes[one.uid] = found, len(mine)
            mine.append(one)

    def cases(self, found: Found) -> list[NamedCase]:
        place = found.relative.as_posix()
        if not found.dicom:
            return [NamedCase(found, without_suffix(place))]
        if found not in self.series:
            return [NamedCase(found, place)]
        several = self.series[found]
        if len(several) == 1:
            return [NamedCase(found, place, several[0])]
        return [NamedCase(found, f"{place}/{series.name}", series) for series in several]

    def _merge(self, other: Series) -> None:
        """Add the files of a series that was seen before, unless they are the same images again."""
        home, index = self.homes[other.uid]
        first = self.series[home][index]
        if other.images <= first.images:
            reason = f"a copy of the series in {shown(home.images[0])}"
            self.passed_over += [PassedOver(path, reason) for path in other.files]
            return
        warnings = dict.fromkeys([*first.warnings, *other.warnings, "its files lie in several folders"])
        self.series[home][index] = replace(
            first, files=first.files + other.files, images=first.images | other.images, warnings=tuple(warnings)
        )
