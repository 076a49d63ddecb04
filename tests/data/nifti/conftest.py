"""NIfTI files made of nibabel's raw header structures, so that any field can be wrong."""

import gzip
import logging

import nibabel as nib
import numpy as np
import pytest

SHAPE = (8, 9, 10)


def nifti_bytes(data=None, affine=None, version=1, endian="<", tail=b"", **fields):
    """A single file: ``affine`` goes to the sform; ``fields`` are set last, as they come."""
    data = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) if data is None else data
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(endianness=endian)
    header.set_data_shape(data.shape)
    header.set_data_dtype(data.dtype)
    header.set_sform(np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine, code=1)
    header["pixdim"][1:4] = nib.affines.voxel_sizes(header.get_sform())
    header["xyzt_units"], header["scl_slope"], header["scl_inter"] = 2, 1, 0
    header["vox_offset"] = header.single_vox_offset
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + data.astype(data.dtype.newbyteorder(endian)).tobytes("F") + tail


@pytest.fixture
def save(tmp_path):
    """Writer of an image, or of any bytes, to a file; gzip where the name says so."""

    def write(name="t1.nii.gz", content=None, **options):
        content = nifti_bytes(**options) if content is None else content
        packed = gzip.compress(content, mtime=0) if name.endswith(".gz") else content
        (tmp_path / name).write_bytes(packed)
        return tmp_path / name

    return write


@pytest.fixture
def raw(tmp_path):
    """Writer of bytes as they are."""

    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


@pytest.fixture(autouse=True)
def quiet_nibabel():
    """What nibabel says of the odd headers made here is not looked at."""
    logger = logging.getLogger("nibabel.global")
    level, logger.level = logger.level, logging.CRITICAL
    yield
    logger.level = level
