"""The clinical folder through the strict reader: read alike, warned of or refused, in little memory; labels back."""

import sys

import nibabel as nib
import numpy as np
import pytest

from monai_vit3d.data import ImageError
from monai_vit3d.data.nifti import read_nifti, read_nifti_grid, write_labels
from tests.clinical import sampled, write_clinical_folder
from tests.helpers import run_python

COUNT = 165
MEMORY = 3 * 2**29  # bytes of address space, most of it for the libraries

READ_ALL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
from pathlib import Path
from monai_vit3d.data.errors import ImageError
from monai_vit3d.data.nifti import read_nifti
counts = dict(same=0, warned=0, refused=0)
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        counts["warned" if read_nifti(path).warnings else "same"] += 1
    except ImageError:
        counts["refused"] += 1
print(*counts.values(), "torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def specimens(tmp_path_factory):
    """All specimens by name, their files written."""
    return {s.name: s for s in write_clinical_folder(tmp_path_factory.mktemp("clinical"))}


def test_the_folder_is_what_it_promises(specimens):
    files = [path for path in specimens["reference"].path.parent.iterdir() if path.is_file()]
    assert len(specimens) == len({s.path for s in specimens.values()}) == COUNT
    assert len({s.name for s in specimens.values() if s.name.startswith("axes ")}) == 48
    assert sum(path.stat().st_size for path in files) < 5e6
    plain = sampled((20, 16, 12), specimens["reference"].affine_mm)
    assert np.abs(plain - plain[::-1]).max() > 50  # left is not right


def test_nibabel_agrees_where_it_reads(specimens):
    """The specimens' own answers, against nibabel on the files that it takes as they are."""
    odd = {"metre", "micron", "offset 0", "not compressed", "compressed", "upper case"}
    odd |= {"bad quaternion", "nan quaternion", "quaternion alone bad"}
    for s in (s for s in specimens.values() if s.verdict != "refused" and s.name not in odd):
        image = nib.load(s.path)
        assert image.shape == s.shape + (1,) * s.trailing, s.name
        np.testing.assert_allclose(image.affine, s.affine_mm, atol=1e-4, err_msg=s.name)
        if s.values == "phantom":
            found = image.get_fdata().reshape(s.shape)
            good = np.isfinite(found)
            np.testing.assert_allclose(found[good], sampled(s.shape, s.affine_mm)[good], atol=s.atol, err_msg=s.name)


def failure(specimen):
    """What of the specimen's promise is not kept; empty if all is."""
    try:
        volume = read_nifti(specimen.path)
    except ImageError as error:
        text = str(error)
        told = text.startswith(f"{specimen.path}: ") and specimen.word in text.removeprefix(f"{specimen.path}: ")
        return "" if specimen.verdict == "refused" and told else f"refused: {error}"
    told = "; ".join(volume.warnings)
    if specimen.verdict != ("warned" if told else "same") or specimen.word not in told:
        return f"read, with the warnings: {told!r}"
    grid = volume.grid
    if (grid.shape, grid.trailing) != (specimen.shape, specimen.trailing):
        return f"shape {grid.shape} and {grid.trailing} axes of 1"
    if not np.allclose(grid.affine_mm, specimen.affine_mm, atol=1e-4):
        return f"affine {grid.affine_mm.tolist()}"
    return failure_of_voxels(specimen, volume)


def failure_of_voxels(specimen, volume):
    found, expected = volume.voxels.astype(float), sampled(volume.grid.shape, volume.grid.affine_mm)
    if volume.voxels.dtype != np.float32 or not np.isfinite(found).all():
        return f"{volume.voxels.dtype} voxels, {(~np.isfinite(found)).sum()} not finite"
    if specimen.values == "linear":
        slope, inter = np.polyfit(found.ravel(), expected.ravel(), 1)
        found = slope * found + inter
    off = 0 if specimen.values == "other" else np.abs(found - expected).max()
    return "" if off <= specimen.atol else f"voxels are {off} off the phantom at the same points of the world"


def test_every_file_is_read_warned_of_or_refused_as_it_should(specimens):
    failures = {name: failure(s) for name, s in specimens.items()}
    assert not {name: text for name, text in failures.items() if text}


def test_the_header_alone_says_the_same_grid(specimens):
    for s in (s for s in specimens.values() if s.verdict != "refused"):
        grid = read_nifti_grid(s.path)
        np.testing.assert_array_equal(grid.affine_mm, read_nifti(s.path).grid.affine_mm)
        assert (grid.shape, grid.trailing) == (s.shape, s.trailing), s.name


@pytest.mark.slow
def test_labels_come_back_at_the_same_place(specimens, tmp_path):
    for s in (s for s in specimens.values() if s.verdict != "refused"):
        volume = read_nifti(s.path)
        labels = sampled(s.shape, s.affine_mm) > 30
        write_labels(labels, volume.grid, tmp_path / s.path.name.lower())
        back = read_nifti(tmp_path / s.path.name.lower())
        np.testing.assert_array_equal(back.grid.affine_mm, volume.grid.affine_mm)
        np.testing.assert_array_equal(back.voxels, labels)
        assert (back.grid.shape, back.grid.trailing, back.grid.version) == (s.shape, s.trailing, volume.grid.version)
        for name, value in volume.grid.fields.items():
            written, given = (np.atleast_1d(v)[:4] for v in (back.grid.fields[name], value))
            assert written.tobytes() == given.tobytes(), (s.name, name)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is kept by Linux only")
def test_all_are_read_in_little_memory(specimens):
    """One process with a small address space, in which neither the bomb nor 32767 cubed may be unpacked."""
    pytest.importorskip("resource")
    folder = specimens["reference"].path.parent
    code, out, err = run_python("-c", READ_ALL.format(memory=MEMORY), folder)
    assert code == 0, err
    verdicts = [s.verdict for s in specimens.values()]
    counts = [verdicts.count(v) for v in ("same", "warned", "refused")]
    assert out.split() == [*map(str, counts), "False"]  # and without torch
