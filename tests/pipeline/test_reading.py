"""A case's hashes are of the bytes that its voxels were made of."""

import hashlib
import os
from pathlib import PurePosixPath

import numpy as np
import pytest

from monai_vit3d.data import ImageError
from monai_vit3d.data.dicom import find_series
from monai_vit3d.pipeline import reading
from monai_vit3d.pipeline.case import Case
from monai_vit3d.pipeline.options import Options
from tests.clinical import nifti, packed
from tests.dicom import series as write_series


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_hashes_of_channels(tmp_path):
    paths = [tmp_path / "a.nii.gz", tmp_path / "b.nii"]
    for path in paths:
        path.write_bytes(packed(nifti()) if path.suffix == ".gz" else nifti())
    volumes = reading.read_case(Case(tuple(paths), PurePosixPath("a")), Options())
    assert [volume.sha256 for volume in volumes] == [(sha256(path),) for path in paths]
    assert reading.case_sha256(Case(tuple(paths), PurePosixPath("a"))) == [sha256(path) for path in paths]
    assert reading.case_sha256(Case((tmp_path / "gone.nii",), PurePosixPath("a"))) == []


def test_labels_are_refused_unless_they_are_asked_for(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(values=(np.indices((20, 16, 12)).sum(0) > 20) + 0.0, shape=(20, 16, 12)))
    case = Case((path,), PurePosixPath("a"))
    with pytest.raises(ImageError, match=r"2 different values, all whole \(0, 1\): labels, not a scan"):
        reading.read_case(case, Options())
    (volume,) = reading.read_case(case, Options(), include_labels=True)
    assert set(np.unique(volume.voxels)) == {0, 1}


def test_a_series_that_is_written_to_meanwhile_is_refused(tmp_path, monkeypatch):
    (series,) = find_series(write_series(tmp_path / "ct"))
    case = Case((tmp_path / "ct",), PurePosixPath("ct"), dicom=True, series=series)
    (volume,) = reading.read_case(case, Options())
    assert volume.sha256 == tuple(map(sha256, series.files))
    real = reading.read_series

    def exchange(*args):
        os.utime(series.files[1], ns=(0, 0))  # as a copy that is still under way does
        return real(*args)

    monkeypatch.setattr(reading, "read_series", exchange)
    with pytest.raises(ImageError, match="ct: its files changed while they were read"):
        reading.read_case(case, Options())
