"""gzip by ISA-L and by the standard library: the same bytes, the same refusals in the same words."""

import gzip
import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data import Grid, ImageError
from monai_vit3d.data.nifti import gzip_io, read_nifti, write_labels, write_map, writer
from monai_vit3d.data.nifti.gzip_io import GzipReader, gzip_writer

from .conftest import nifti_bytes

CONTENT = nifti_bytes(np.random.default_rng(0).integers(0, 999, (8, 9, 10)).astype(np.int16))
PACKED = gzip.compress(CONTENT, mtime=0)


@pytest.fixture
def by_library(monkeypatch):
    """Calls a function with ISA-L, and without."""
    pytest.importorskip("isal")

    def both(call):
        fast = call()
        with monkeypatch.context() as patch:
            patch.setattr(gzip_io, "igzip", None)
            patch.setattr(gzip_io, "isal_zlib", None)
            return fast, call()

    return both


def inflated(content, sizes):
    """What comes of a file that is read in pieces, and how it ends."""
    reader, found = GzipReader(io.BytesIO(content)), b""
    try:
        for size in sizes:
            found += reader.read(size)
        while piece := reader.read(1000):
            found += piece
    except Exception as error:
        return type(error).__name__, str(error)
    return found


@given(
    pieces=st.lists(st.binary(max_size=5000), min_size=1, max_size=4),
    level=st.integers(0, 9),
    padding=st.integers(0, 600),
    sizes=st.lists(st.integers(1, 4000), max_size=4),
)
def test_members_come_back(pieces, level, padding, sizes):
    content = b"".join(gzip.compress(piece, level) for piece in pieces) + bytes(padding)
    assert inflated(content, sizes) == b"".join(pieces)


@pytest.mark.parametrize("sizes", [[], [352], [1, 700], [1792], [1793]])
@pytest.mark.parametrize(
    "content",
    [
        PACKED, PACKED[:-1], PACKED[:-8], PACKED[:700], PACKED[:20], PACKED[:5], PACKED + b"g", PACKED + b"garbage",
        PACKED + bytes(20) + b"g", PACKED + PACKED[:300], PACKED[:-8] + b"1234" + PACKED[-4:], PACKED[:-4] + b"1234",
        PACKED[:2] + b"\7" + PACKED[3:], PACKED[:700] + bytes(200) + PACKED[900:],
    ],
)  # fmt: skip
def test_faults_have_the_standard_librarys_words(by_library, content, sizes):
    fast, plain = by_library(lambda: inflated(content, sizes))
    assert fast == plain
    assert isinstance(plain, tuple) == (content != PACKED)


@pytest.mark.parametrize("tail", [b"g", b"garbage", PACKED[:-1], PACKED[:-8] + b"1234" + PACKED[-4:]])
def test_a_fault_far_from_the_beginning(by_library, tail):
    noise = np.random.default_rng(2).bytes(3 * gzip_io.CHUNK // 2)
    content = gzip.compress(noise, 1) + tail
    found = []

    def read():
        reader = GzipReader(io.BytesIO(content))
        found.append(reader.read(gzip_io.CHUNK) + reader.read(gzip_io.CHUNK // 4))
        with pytest.raises((EOFError, gzip.BadGzipFile)) as caught:
            [*iter(lambda: reader.read(gzip_io.CHUNK), b"")]
        return str(caught.value)

    fast, plain = by_library(read)
    assert fast == plain
    assert found[0] == found[1] == noise[: gzip_io.CHUNK // 4 * 5]


def test_the_standard_library_goes_on_where_isal_stopped(monkeypatch):
    isal = pytest.importorskip("isal.igzip")
    read, calls = isal.GzipFile.read, []

    def failing(self, size=-1):
        calls.append(size)
        if len(calls) == 3:
            raise EOFError
        return read(self, size)

    monkeypatch.setattr(isal.GzipFile, "read", failing)
    assert inflated(PACKED, [352, 500, 500]) == CONTENT
    assert len(calls) == 3


def test_flipped_bits_end_alike(by_library):
    rng = np.random.default_rng(1)
    for bit in rng.integers(0, len(PACKED) * 8, 200):
        flipped = bytearray(PACKED)
        flipped[bit // 8] ^= 1 << bit % 8
        fast, plain = by_library(lambda content=bytes(flipped): inflated(content, [352]))
        assert fast == plain


@pytest.mark.parametrize("tail", [b"", b"g", PACKED[:99]])
def test_a_volume_is_the_same_without_isal(by_library, raw, tail):
    path = raw("t1.nii.gz", PACKED + tail)

    def read():
        try:
            return read_nifti(path).voxels.tobytes()
        except ImageError as error:
            return str(error)

    fast, plain = by_library(read)
    assert fast == plain


def by_both(by_library, write, values, path):
    """Sizes of ISA-L's file and of zlib's at level 1; the standard library writes the same content."""

    def packed():
        write(values, Grid(values.shape, np.eye(4)), path)
        return path.read_bytes()

    fast, plain = by_library(packed)
    assert gzip.decompress(fast) == gzip.decompress(plain)
    return len(fast), len(gzip.compress(gzip.decompress(plain), 1))


def test_labels_are_the_same_without_isal_and_not_larger(by_library, tmp_path):
    x, y, z = np.indices((96, 80, 60))
    labels = ((x - 48) ** 2 + (y - 40) ** 2 + (z - 30) ** 2 < 900) + (x // 20 + y // 16) % 5
    fast, plain = by_both(by_library, write_labels, labels, tmp_path / "x.nii.gz")
    assert fast < plain


def test_a_map_is_the_same_without_isal_and_little_larger(by_library, tmp_path):
    x, y, z = np.indices((96, 80, 60))
    chances = 1 / (1 + np.exp(np.sqrt((x - 48) ** 2 + (y - 40) ** 2 + (z - 30) ** 2) / 2 - 15))
    fast, plain = by_both(by_library, write_map, chances, tmp_path / "x.nii.gz")
    assert fast < 1.1 * plain


def test_isal_does_the_work_where_it_is_installed(monkeypatch):
    isal = pytest.importorskip("isal.igzip")
    assert isinstance(gzip_writer(io.BytesIO()), isal.GzipFile)
    monkeypatch.setattr(gzip.GzipFile, "read", lambda *_: pytest.fail("the standard library inflates"))
    monkeypatch.setattr(isal.GzipFile, "read", lambda self, size=-1: self._buffer.read(size))
    assert inflated(PACKED, [352]) == CONTENT


@pytest.mark.slow
def test_without_isal_the_package_reads(tmp_path):
    (tmp_path / "t1.nii.gz").write_bytes(PACKED)
    program = (
        "import sys; sys.modules['isal'] = None\n"
        "from monai_vit3d.data.nifti import gzip_io, read_nifti\n"
        "print(gzip_io.igzip, read_nifti(sys.argv[1]).voxels.sum())"
    )
    out = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "t1.nii.gz")], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["None", str(read_nifti(tmp_path / "t1.nii.gz").voxels.sum())]


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    order=st.sampled_from("CF"),
    given_=st.sampled_from([bool, np.uint8, np.int64, np.float32, ">i2"]),
    slab=st.integers(1, 200),
    cached=st.integers(1, 20),
)
def test_any_partition_writes_the_same_file(tmp_path_factory, shape, order, given_, slab, cached):
    labels = np.asarray(np.random.default_rng(0).integers(0, 2, shape), given_, order=order)
    path = tmp_path_factory.mktemp("any") / "x.nii"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_SLAB_BYTES", slab)
        patch.setattr(writer, "_CACHED_LINES", cached)
        write_labels(labels, Grid(shape, np.eye(4)), path)
    assert path.read_bytes()[352:] == labels.astype(np.uint8).tobytes("F")
