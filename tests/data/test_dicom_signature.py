"""DICOM is recognised by its first bytes, and nothing else is."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data.dicom_signature import HEAD_BYTES, has_dicom_signature


def element(order, explicit, group, number, content):
    """An element as it stands in a file."""
    if explicit:
        return struct.pack(f"{order}HH2sH", group, number, b"UI", len(content)) + content
    return struct.pack(f"{order}HHI", group, number, len(content)) + content


@given(st.binary(min_size=128, max_size=128), st.binary())
def test_the_mark_after_any_preamble(preamble, rest):
    assert has_dicom_signature((preamble + b"DICM" + rest)[:HEAD_BYTES])


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("explicit", [True, False])
@given(
    st.sampled_from([0, 0x01, 0x05, 0x08, 0x16]), st.binary(min_size=0, max_size=64).filter(lambda b: len(b) % 2 == 0)
)
def test_data_sets_without_preamble(order, explicit, number, content):
    head = element(order, explicit, 8, number, content) + element(order, explicit, 8, 0x18, bytes(200))
    assert has_dicom_signature(head[:HEAD_BYTES])


@pytest.mark.slow
@given(st.text(max_size=200))
def test_no_text_is_dicom(text):
    content = text.encode()
    assert has_dicom_signature(content[:HEAD_BYTES]) == (content[128:132] == b"DICM")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        bytes(200),  # an empty image of Analyze
        bytes(range(200)),
        struct.pack("<i", 348) + bytes(196),  # NIfTI
        b"\x1f\x8b\x08\x00" + bytes(196),  # gzip
        b"\x89PNG\r\n\x1a\n" + bytes(192),
        struct.pack("<100H", *[8] * 100),  # raw voxels of value 8
        struct.pack("<100H", *range(100)),
        struct.pack("<50I", *[2] * 50),
    ],
)
def test_other_formats_are_not(head):
    assert not has_dicom_signature(head[:HEAD_BYTES])
