"""Recognise DICOM files by their first bytes, whatever their names; the module is quick to import."""

from __future__ import annotations

import struct

HEAD_BYTES = 140  # that has_dicom_start asks for
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom", ".dic")  # names that say DICOM
_FIRST_VRS = (b"UL", b"UI", b"CS", b"DA", b"TM", b"DT", b"SH", b"LO", b"OB", b"SQ", b"PN", b"ST", b"UC", b"UR")


def has_dicom_signature(head: bytes) -> bool:
    """Return whether a file begins as DICOM does: the mark after the preamble, or an element of group 2 or 8.

    Args:
        head: the first ``HEAD_BYTES``, fewer of a shorter file.
    """
    return head[128:132] == b"DICM" or (len(head) > 131 and any(_has_element_signature(head, order) for order in "<>"))


def _has_element_signature(head: bytes, order: str) -> bool:
    """Return whether bytes begin with an element of group 2 or 8, explicit or implicit, and a next one after it."""
    group, first = struct.unpack(f"{order}HH", head[:4])
    if group not in (0x0002, 0x0008) or first > 0x0080:
        return False
    if head[4:6] in _FIRST_VRS:
        return True
    (length,) = struct.unpack(f"{order}I", head[4:8])
    if length % 2 or length > 64:
        return False
    next_group, second = struct.unpack_from(f"{order}HH", head, 8 + length)
    return bool(next_group == group and second > first) or (group == 0x0002 and next_group == 0x0008)
