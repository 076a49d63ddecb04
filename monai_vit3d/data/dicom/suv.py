"""Compute standardised uptake values of a PET by body weight (SUVbw) from its headers.

After the DICOM standard's PET modules (PS3.3 C.8.9) and QIBA's vendor-neutral pseudo-code: the decay-corrected activity
concentration in Bq/ml, divided by the dose in Bq that is left at the time the correction refers to, times grams.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from .headers import HeaderError, element, element_number
from .kinds import sop_class

if TYPE_CHECKING:
    from pydicom import Dataset

_PET = "1.2.840.10008.5.1.4.1.1.128"
_UNITS = {"BQML": "Bq/ml", "CNTS": "counts", "GML": "g/ml"}
_HALF_LIVES = 20.0  # between injection and scan: more is a shifted or wrong date
_SMALLEST_DOSE_BQ = 1e5  # less is a dose in MBq
_PHILIPS = "Philips PET Private Group"
_TIME = re.compile(r"(\d{2})(\d{2})?(\d{2})?(\.\d+)?")


def is_pet(header: Dataset) -> bool:
    """Return whether an image is a PET."""
    return element(header, "Modality") == "PT" or sop_class(header)[0].startswith(_PET)


def units_warning(header: Dataset) -> str:
    """Say which unit a PET's voxels have; empty if they are SUV already."""
    units = element(header, "Units")
    if units == "GML":
        return ""
    unit = f"in {_UNITS[units]} (Units {units})" if units in _UNITS else "in units that its header does not say"
    return f"PET voxels are {unit}; units=suv gives SUV by body weight"


def suv_factors(headers: Sequence[Dataset]) -> tuple[list[float], list[str]]:
    """Compute the factors from each image's rescaled values to SUVbw, and a sentence for each oddity.

    Args:
        headers: of all images of the series.

    Raises:
        HeaderError: a required attribute is missing or cannot be used, or SUV cannot be computed from these images.
    """
    units = {str(element(header, "Units") or "") for header in headers}
    if units == {"GML"}:
        if element(headers[0], "SUVType") not in (None, "BW"):
            raise HeaderError("SUVType is not BW: values are SUV, but not by body weight")
        return [1.0] * len(headers), []
    if units == {"CNTS"}:
        return _philips_factors(headers)
    if units == {"BQML"}:
        factor, warnings = _per_bqml(headers)
        return [factor] * len(headers), warnings
    raise HeaderError("Units is not one of BQML, CNTS and GML in all images")


def _philips_factors(headers: Sequence[Dataset]) -> tuple[list[float], list[str]]:
    """Read Philips' own factor from counts to SUV, or its factor to Bq/ml."""
    to_suv = [_private_number(header, 0x00) for header in headers]
    if all(to_suv):
        return [factor or 0.0 for factor in to_suv], []
    to_bqml = [_private_number(header, 0x09) for header in headers]
    if not all(to_bqml):
        raise HeaderError("Units is CNTS, and Philips' private scale factors (7053,xx00) and (7053,xx09) are missing")
    factor, warnings = _per_bqml(headers)
    return [factor * (scale or 0.0) for scale in to_bqml], warnings


def _private_number(header: Dataset, offset: int) -> float | None:
    try:
        value = float(header.private_block(0x7053, _PHILIPS)[offset].value)
    except Exception:  # no block, or a damaged value
        return None
    return value if 0 < value < float("inf") else None


def _per_bqml(headers: Sequence[Dataset]) -> tuple[float, list[str]]:
    """Compute SUVbw for one Bq/ml."""
    header, warnings = headers[0], []
    corrected = element(header, "CorrectedImage")
    corrections = None if corrected is None else {corrected} if isinstance(corrected, str) else {*map(str, corrected)}
    if corrections is not None and "DECY" not in corrections:
        raise HeaderError("CorrectedImage has no DECY: the images are not corrected for decay")
    if corrections is not None and "ATTN" not in corrections:
        warnings.append("CorrectedImage has no ATTN: without correction for attenuation SUV are too low inside")
    drug = (element(header, "RadiopharmaceuticalInformationSequence") or [None])[0]
    if drug is None:
        raise HeaderError("RadiopharmaceuticalInformationSequence is missing")
    weight = _positive(header, "PatientWeight")
    dose = _positive(drug, "RadionuclideTotalDose")
    if dose < _SMALLEST_DOSE_BQ:
        warnings.append(f"RadionuclideTotalDose is {dose:g} Bq; if that is MBq, SUV are a million times too high")
    correction = element(header, "DecayCorrection")
    if correction == "START":
        half_life = _positive(drug, "RadionuclideHalfLife")
        seconds = (_scan_start(headers) - _injection(drug, headers)).total_seconds()
        if not 0 <= seconds <= _HALF_LIVES * half_life:
            raise HeaderError(
                f"the injection (RadiopharmaceuticalStartDateTime or -Time) is {seconds / 3600:.1f} h before the scan"
            )
        dose *= 2 ** (-seconds / half_life)
    elif correction != "ADMIN":
        raise HeaderError("DecayCorrection is not START or ADMIN")
    return 1000 * weight / dose, warnings


def _positive(header: Dataset, name: str) -> float:
    value = element_number(header, name)
    if value is None or value <= 0:
        raise HeaderError(f"{name} is {'missing' if element(header, name) is None else 'not above 0'}")
    return value


def _scan_start(headers: Sequence[Dataset]) -> datetime:
    """Find the time that DecayCorrection START refers to: the series', or its first image's if that is earlier.

    A series that was derived later from other images has a time after all acquisitions.
    """
    series = _moment(headers[0], "SeriesDate", "SeriesTime")
    acquisitions = [_moment(header, "AcquisitionDate", "AcquisitionTime") for header in headers]
    times = [time for time in (series, *acquisitions) if time is not None]
    if not times:
        raise HeaderError("SeriesDate and SeriesTime, or AcquisitionDate and AcquisitionTime, are missing")
    return min(times)


def _injection(drug: Dataset, headers: Sequence[Dataset]) -> datetime:
    moment = element(drug, "RadiopharmaceuticalStartDateTime")
    if moment is not None:
        text = str(moment)
        start = _parsed(text[:8], text[8:])
        if start is None:
            raise HeaderError("RadiopharmaceuticalStartDateTime is no date and time")
        return start
    scan = _scan_start(headers)
    start = _parsed(scan.strftime("%Y%m%d"), str(element(drug, "RadiopharmaceuticalStartTime") or ""))
    if start is None:
        raise HeaderError("RadiopharmaceuticalStartDateTime and RadiopharmaceuticalStartTime are missing")
    return start if start <= scan else start - timedelta(days=1)  # injected before midnight


def _moment(header: Dataset, date: str, time: str) -> datetime | None:
    return _parsed(str(element(header, date) or element(header, "StudyDate") or ""), str(element(header, time) or ""))


def _parsed(date: str, time: str) -> datetime | None:
    """Parse a date and time as DICOM writes them, without a time zone; None if they are invalid."""
    match = _TIME.match(time)
    try:
        day = datetime.strptime(date, "%Y%m%d")
    except ValueError:
        return None
    if match is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
    return day + timedelta(hours=hours, minutes=minutes, seconds=seconds + float(match[4] or 0))
