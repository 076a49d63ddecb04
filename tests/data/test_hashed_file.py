"""The hash of what was read is the file's, however it is read."""

import hashlib
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_vit3d.data.files import HashedFile

CONTENT = bytes(range(256)) * 9000  # above a buffer


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["read", "into", "seek", "start"]), st.integers(0, 10**6)), max_size=8))
def test_the_hash_is_the_files_whatever_was_read_of_it(steps):
    plain, hashed = io.BytesIO(CONTENT), HashedFile(io.BytesIO(CONTENT))
    for step, count in steps:
        if step == "read":
            assert hashed.read(count) == plain.read(count)
        elif step == "into":
            found, expected = bytearray(count), bytearray(count)
            assert hashed.readinto(found) == plain.readinto(expected)
            assert found == expected
        elif step == "seek":
            assert hashed.seek(plain.tell() + count) == min(plain.seek(plain.tell() + count), len(CONTENT))
            plain.seek(min(plain.tell(), len(CONTENT)))
        else:
            assert hashed.seek(0) == plain.seek(0)
    assert hashed.sha256() == hashlib.sha256(CONTENT).hexdigest()


def test_no_way_back_into_the_middle():
    hashed = HashedFile(io.BytesIO(CONTENT))
    hashed.read(100)
    for place in ((50,), (0, 2), (5, 1)):
        with pytest.raises(io.UnsupportedOperation):
            hashed.seek(*place)
