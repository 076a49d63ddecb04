"""`vit3d predict` over the clinical folder: one process, little memory, and the same answer wherever a voxel lies."""

import gzip
import io
import json
import math
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import maximum_filter, minimum_filter

from tests.clinical import SHAPE, sampled, write_clinical_folder
from tests.helpers import run_python
from tests.pipeline.tiny import FIRST, METADATA, SECOND, arguments, leftovers, write_bundle

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is kept by Linux only")]
MEMORY = 6 * 2**30  # bytes of address space, 4 GiB of it for the libraries
GEOMETRY = ["qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
GEOMETRY += ["srow_x", "srow_y", "srow_z", "xyzt_units"]


# the bundle labels all tissue of a phantom without noise: that is no sign of a wrong answer here
TRAINED_ON = {
    "cases": 1,
    "share_of_foreground": [0.0, 1.0],
    "labels": {value: {"share_of_one_value": [0.0, 1.0]} for value in ("1", "2")},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Specimens, exit code, what was said, and OUT of one run over the whole folder, an empty folder in it."""
    folder, out = tmp_path_factory.mktemp("clinical"), tmp_path_factory.mktemp("run") / "out"
    tiny_bundle = write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
    metadata = tiny_bundle / "configs" / "metadata.json"
    metadata.write_text(json.dumps({**METADATA, "trained_on": TRAINED_ON}))
    specimens = write_clinical_folder(folder)
    resource = pytest.importorskip("resource")
    command = ["-m", "monai_vit3d.cli", *arguments(folder, to=out, bundle=tiny_bundle)]
    limit = (MEMORY, MEMORY)
    code, _, said = run_python(*command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit))
    return {s.name: s for s in specimens if s.name != "folder"}, code, said, out


@pytest.fixture(scope="module")
def found(run):
    """The record of each specimen."""
    specimens, _, _, out = run
    by_input = {one["input"]: one for one in json.loads((out / "run.json").read_text())["files"]}
    assert set(by_input) == {str(s.path) for s in specimens.values()}
    return {name: by_input[str(s.path)] for name, s in specimens.items()}


@pytest.fixture(scope="module")
def labels(found):
    """Every label file as (header, array); nib.load would refuse those with their input's bad quaternion."""
    return {name: read(Path(one["output"])) for name, one in found.items() if one["status"] == "done"}


def read(path):
    """The header as it stands in the file, nothing corrected, and the voxels as stored."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    second = 540 in (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big"))
    header = (nib.Nifti2Header if second else nib.Nifti1Header).from_fileobj(io.BytesIO(raw), check=False)
    shape = tuple(header["dim"][1 : 1 + header["dim"][0]].tolist())
    start, dtype = int(header["vox_offset"]) or 352, header.get_data_dtype()
    return header, np.ndarray(shape, dtype, raw, start, order="F")


def bits(value):
    """A field's bytes, whatever the byte order of its file."""
    value = np.asarray(value)
    return value.astype(value.dtype.newbyteorder("<")).tobytes()


def test_the_run_ends_and_says_that_some_failed(run):
    specimens, code, said, out = run
    verdicts = [s.verdict for s in specimens.values()]
    assert code == 1, said[-2000:]
    assert sum(line.startswith("  failed: ") for line in said.splitlines()) == verdicts.count("refused")
    assert "Traceback" not in said
    assert leftovers(out) == []


def test_each_file_is_done_warned_of_or_failed_as_it_should(run, found):
    wrong = {}
    for name, s in run[0].items():
        one = found[name]
        told = "; ".join(one["warnings"])
        if s.verdict == "refused":
            good = one["status"] == "failed" and s.word in one["error"].replace(str(s.path), "", 1) and not told
        else:
            good = one["status"] == "done" and one["error"] is None and bool(told) == (s.verdict == "warned")
            good = good and s.word in told
        if not good:
            wrong[name] = (one["status"], one["error"], told)
    assert not wrong


def test_what_failed_left_nothing(run, found):
    out = run[3]
    outputs = {str(path) for path in out.rglob("*.nii.gz")}
    assert outputs == {one["output"] for one in found.values() if one["status"] == "done"}
    pictures = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
    assert pictures == {one["picture"] for one in found.values() if one["status"] == "done"}


def test_labels_lie_on_the_grid_of_the_input_to_the_last_bit(run, labels):
    for name, (written, values) in labels.items():
        s = run[0][name]
        given, _ = read(s.path)
        assert values.dtype == np.uint8, name
        assert values.shape == s.shape + (1,) * s.trailing, name
        assert type(written) is type(given), name
        assert bits(written["pixdim"][:4]) == bits(given["pixdim"][:4]), name
        for field in GEOMETRY:
            assert bits(written[field]) == bits(given[field]), (name, field)
        assert set(np.unique(values)) <= {0, 1, 2}, name


def interior(labels, affine):
    """Where all voxels in 2 mm around, the network's voxel, and all neighbours have the same label."""
    size = [2 * math.ceil(2 / mm) + 1 for mm in nib.affines.voxel_sizes(affine).round(3)]
    return maximum_filter(labels, size) == minimum_filter(labels, size)


def expected(affine, shape):
    """What the bundle's two thresholds say of the phantom itself, on any grid."""
    plain = sampled(shape, affine) / 120
    return (plain > FIRST).astype(np.uint8) + (plain > SECOND)


def test_the_answer_is_the_same_in_world_space(run, labels):
    reference = labels["reference"][1]
    back = np.linalg.inv(run[0]["reference"].affine_mm)
    alike = {n: s for n, s in run[0].items() if s.verdict != "refused" and s.alike and s.values == "phantom"}
    assert len(alike) > 80
    for name, s in alike.items():
        values = labels[name][1].reshape(s.shape)
        index = np.stack(np.meshgrid(*map(np.arange, s.shape), indexing="ij"), axis=-1)
        to_reference = back @ s.affine_mm
        place = np.rint(index @ to_reference[:3, :3].T + to_reference[:3, 3]).astype(int)
        assert ((place >= 0) & (place < SHAPE)).all(), name
        same = reference[tuple(np.moveaxis(place, -1, 0))]
        if name.startswith("axes "):  # another storage of the very same numbers: no voxel may differ
            np.testing.assert_array_equal(values, same, err_msg=name)
        inside = interior(same, s.affine_mm)
        assert {0, 1, 2} == set(same[inside]), name
        np.testing.assert_array_equal(values[inside], same[inside], err_msg=name)


@pytest.mark.parametrize("name", ["reference", "oblique", "oblique left-handed", "sheared", "thick slices"])
def test_the_answer_is_the_phantom_s(run, labels, name):
    s = run[0][name]
    truth = expected(s.affine_mm, s.shape)
    inside = interior(truth, s.affine_mm)
    values = labels[name][1]
    assert {0, 1, 2} == set(truth[inside])
    np.testing.assert_array_equal(values[inside], truth[inside])
    assert (values != truth).mean() < 0.1  # borders are blurred on the way to the network's grid and back
