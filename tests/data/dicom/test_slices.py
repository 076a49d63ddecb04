"""DICOM series in their place in the world, each fault refused, and a SEG that comes back where it belongs."""

import builtins
import re
import shutil

import numpy as np
import pytest
from scipy.spatial import cKDTree

hd = pytest.importorskip("highdicom")

import pydicom  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import JPEGLosslessSV1, RLELossless, generate_uid  # noqa: E402

from monai_vit3d.data.dicom import find_series, read_series, write_dicom_seg  # noqa: E402
from monai_vit3d.data.errors import DatasetError, ImageError, UsageError  # noqa: E402
from tests.dicom import (  # noqa: E402
    AXIAL,
    COLUMNS,
    CORONAL,
    CT,
    ENHANCED_MR,
    MR,
    PET,
    ROWS,
    SAGITTAL,
    SEG,
    SLICES,
    SPACING,
    STEP,
    base,
    fill,
    oblique,
    phantom,
    save,
    series,
    world,
)

NAMES = {1: "Leber", 4: "Rücken"}


def read(folder, **options):
    (found,) = find_series(folder)
    return read_series(found, **options)


def points(volume):
    """RAS+ mm of each voxel of a volume, (H, W, D, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.voxels.shape), indexing="ij"), -1)
    return index @ volume.grid.affine_mm[:3, :3].T + volume.grid.affine_mm[:3, 3]


# reading


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("sop_class", [CT, MR])
@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, oblique()], ids=["axial", "sag", "cor", "oblique"])
def test_values_lie_where_the_phantom_has_them(tmp_path, orientation, sop_class, backwards):
    folder = series(tmp_path / "s", orientation, sop_class, backwards=backwards)
    volume = read(folder)
    assert (volume.path, volume.warnings, volume.voxels.dtype) == (folder, (), np.float32)
    assert volume.voxels.shape == volume.grid.shape == (COLUMNS, ROWS, SLICES)
    assert (volume.grid.trailing, volume.grid.fields, volume.grid.version) == (0, None, 1)
    assert volume.grid.spacing_mm == pytest.approx((0.8, 1.25, 2.5), abs=1e-5)
    where = np.array([world(pydicom.dcmread(p)) for p in folder.iterdir()]).reshape(-1, 3)
    distance, pixel = cKDTree(where).query(points(volume).reshape(-1, 3))
    assert distance.max() < 1e-4
    assert len(np.unique(pixel)) == volume.voxels.size
    assert np.array_equal(volume.voxels.ravel(), phantom(where)[pixel])
    assert (volume.voxels > 300).any()  # the ball


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, oblique()], ids=["axial", "sag", "oblique"])
def test_simpleitk_has_the_same_values_at_the_same_points(tmp_path, orientation):
    sitk = pytest.importorskip("SimpleITK")
    volume = read(series(tmp_path / "s", orientation, backwards=True))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "s")))
    image = reader.Execute()
    corners = np.argwhere(np.ones((2, 2, 2))) * (np.array(volume.voxels.shape) - 1)
    for index in [*corners, (3, 7, 2)]:
        ras = points(volume)[tuple(index)]
        theirs = image.TransformPhysicalPointToContinuousIndex((ras * [-1, -1, 1]).tolist())
        assert np.abs(np.array(theirs) - np.round(theirs)).max() < 1e-3
        assert image[tuple(round(i) for i in theirs)] == volume.voxels[tuple(index)]
    assert np.sort(sitk.GetArrayFromImage(image).ravel()) == pytest.approx(np.sort(volume.voxels.ravel()))


def test_each_slice_has_its_own_slope(tmp_path):
    def edit(ds, k):
        fill(ds, intercept=0.0, slope=0.25 * 2 ** (k % 4))

    volume = read(series(tmp_path / "s", sop_class=PET, edit=edit))
    assert np.abs(volume.voxels - phantom(points(volume))).max() <= 1  # half of the largest slope, 2


@pytest.mark.parametrize("missing", [("RescaleSlope",), ("RescaleIntercept",), ("RescaleSlope", "RescaleIntercept")])
@pytest.mark.parametrize("blank", [True, False])
def test_half_of_a_rescale_is_simpleitks(tmp_path, missing, blank):
    sitk = pytest.importorskip("SimpleITK")

    def edit(ds, k):
        fill(ds, slope=2.0)
        for name in missing:
            setattr(ds, name, None) if blank else delattr(ds, name)

    folder = series(tmp_path / "s", edit=edit)
    itk = sitk.ImageSeriesReader()
    itk.SetFileNames(itk.GetGDCMSeriesFileNames(str(folder)))
    expected = sitk.GetArrayFromImage(itk.Execute()).T
    assert len(np.unique(expected)) > 50
    np.testing.assert_array_equal(read(folder).voxels, expected)


@pytest.mark.parametrize(
    ("slope", "word"), [("0", "RescaleSlope is 0"), ("4,5", "not a finite"), ("NaN", "not a finite")]
)
def test_a_slope_that_is_none(tmp_path, slope, word):
    folder = series(tmp_path / "s")
    path = next(folder.iterdir())
    content = path.read_bytes()
    held = b"(\x00S\x10DS\x04\x001.0 "
    assert content.count(held) == 1
    path.write_bytes(content.replace(held, held[:8] + slope.ljust(4).encode()))
    with pytest.raises(ImageError, match=word):
        read(folder)


def test_without_rescale_values_are_as_stored(tmp_path):
    def edit(ds, k):
        fill(ds, intercept=0.0)
        del ds.RescaleSlope, ds.RescaleIntercept

    volume = read(series(tmp_path / "s", sop_class=MR, edit=edit))
    assert np.array_equal(volume.voxels, phantom(points(volume)))


def test_a_tilted_gantry_keeps_every_voxel_in_its_place(tmp_path):
    degrees = 12.0
    volume = read(series(tmp_path / "s", shift=(0, STEP * np.tan(np.radians(degrees)), 0)))
    assert np.abs(volume.voxels - phantom(points(volume))).max() == 0
    assert volume.warnings == ("slices lean by 12.0 degrees (gantry tilt); the affine has a shear",)
    across, along = volume.grid.affine_mm[:3, 1], volume.grid.affine_mm[:3, 2]
    assert np.degrees(np.arccos(across @ along / np.linalg.norm(across) / np.linalg.norm(along))) == pytest.approx(78)


def test_small_unevenness_is_taken_and_small_tilt_is_not_lost(tmp_path):
    def edit(ds, k):
        ds.ImagePositionPatient[2] += 0.02 * (k % 2)  # under 1 % of 2.5 mm

    lean = STEP * np.tan(np.radians(1))  # 0.35 mm to the side from first to last
    volume = read(series(tmp_path / "s", shift=(lean, 0, 0), edit=edit))
    first, last = (volume.grid.affine_mm @ [0, 0, k, 1] for k in (0, SLICES - 1))
    assert (last - first)[:3] == pytest.approx([-lean * 8, 0, STEP * 8], abs=1e-5)
    assert volume.warnings[0].startswith("slices lean by 1.0 degrees")


def enhanced(folder, orientation, order, sop_class=ENHANCED_MR, copies=1):
    """One file whose frames come in the given order, each with a slope of its own."""
    folder.mkdir()
    parts = series(folder / "parts", orientation, MR)
    by_place = sorted((pydicom.dcmread(p) for p in parts.iterdir()), key=lambda d: d.InstanceNumber)
    shutil.rmtree(parts)
    ds, frames = base(sop_class, orientation), []
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    del ds.ImageOrientationPatient, ds.PixelSpacing
    ds.NumberOfFrames, ds.PerFrameFunctionalGroupsSequence = len(order) * copies, []
    for n, k in enumerate([*order] * copies):
        fill(by_place[k], intercept=-3.0, slope=1.0 + n % 2)
        group, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = by_place[k].ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept = by_place[k].RescaleSlope, by_place[k].RescaleIntercept
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [place], [values]
        ds.PerFrameFunctionalGroupsSequence.append(group)
        frames.append(by_place[k].PixelData)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = list(SPACING), list(orientation)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    ds.SharedFunctionalGroupsSequence, ds.PixelData = [shared], b"".join(frames)
    save(ds, folder / "multi")
    return folder


@pytest.mark.parametrize("orientation", [AXIAL, oblique()], ids=["axial", "oblique"])
def test_enhanced_multi_frame(tmp_path, orientation):
    volume = read(enhanced(tmp_path / "s", orientation, [4, 0, 8, 2, 6, 1, 7, 3, 5]))
    assert np.abs(volume.voxels - phantom(points(volume))).max() <= 2  # half a slope, and positions of six digits


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1], ids=["rle", "jpeg"])
def test_compressed(tmp_path, syntax):
    folder = series(tmp_path / "s")
    expected = read(folder)
    for path in folder.iterdir():
        _compress(path, syntax)
    assert {pydicom.dcmread(p).file_meta.TransferSyntaxUID for p in folder.iterdir()} == {syntax}
    volume = read(folder)
    assert np.array_equal(volume.voxels, expected.voxels)
    assert np.array_equal(volume.grid.affine_mm, expected.grid.affine_mm)


def _compress(path, syntax):
    if syntax == RLELossless:
        ds = pydicom.dcmread(path)
        ds.compress(RLELossless, generate_instance_uid=False)
        return ds.save_as(path)
    gdcm = pytest.importorskip("gdcm")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


# finding


def test_series_are_told_apart_and_sorted(tmp_path):
    ten, two, other = (series(tmp_path / name, count=3) for name in ("ten", "two", "other"))
    for folder, number in ((ten, 10), (two, 2), (other, 2)):
        for path in folder.iterdir():
            ds = pydicom.dcmread(path)
            ds.SeriesNumber, ds.SeriesDescription = number, "Eva Muster pelvis"
            ds.save_as(tmp_path / f"{folder.name}-{path.name}")
        shutil.rmtree(folder)
    for name in (".IM0.dcm", "notes.txt"):
        (tmp_path / name).write_bytes(b"no DICOM")
    for sop_class, name in (
        (SEG, "seg"),
        ("1.2.840.10008.5.1.4.1.1.7", "screen"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "rt"),
    ):
        ds = base(sop_class, number=1)
        ds.SeriesInstanceUID = generate_uid()
        for element in {"rt": ["Rows"], "DICOMDIR": ["Rows", "SeriesInstanceUID"]}.get(name, []):
            del ds[element]
        save(ds, tmp_path / name)
    found = find_series(tmp_path)
    assert [(s.number, len(s.files)) for s in found] == [(2, 3), (2, 3), (10, 3)]
    assert found[0].uid < found[1].uid
    assert found[2].name == "series-010"
    assert len({s.name for s in found}) == 3
    assert all(re.fullmatch(r"series-002-[0-9a-f]{8}", s.name) for s in found[:2])
    assert found[2].files == tuple(tmp_path / f"ten-IM{k:03d}" for k in range(3))


def test_a_series_without_number_has_a_name(tmp_path):
    (found,) = find_series(series(tmp_path / "s", edit=lambda ds, k: ds.pop("SeriesNumber") and None))
    assert found.number is None
    assert re.fullmatch(r"series-[0-9a-f]{8}", found.name)


def test_folders_without_images(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        find_series(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ImageError, match=r"no DICOM image .* CT, MR or PET"):
        find_series(tmp_path)
    (tmp_path / "IM.dcm").write_bytes(b"")
    with pytest.raises(ImageError, match=r"no DICOM image .*\(IM\.dcm: 0 bytes, too short"):
        find_series(tmp_path)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    folder, real = series(tmp_path / "s", count=2), builtins.__import__
    (found,) = find_series(folder)

    def no(package):
        def load(name, *args, **kwargs):
            if name.split(".")[0] == package:
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", load)

    no("highdicom")
    with pytest.raises(ImageError, match="its 'dicom' extra"):
        write_dicom_seg(np.zeros((COLUMNS, ROWS, 2), np.uint8), found, NAMES, tmp_path / "seg.dcm")
    no("pydicom")
    for call in (lambda: find_series(folder), lambda: read_series(found)):
        with pytest.raises(ImageError, match="its 'dicom' extra"):
            call()


# refusing


def _set(only=None, **values):
    def edit(ds, k):
        for name, value in values.items():
            if only is None or k == only:
                setattr(ds, name, value)

    return edit


def _without(name):
    return lambda ds, k: delattr(ds, name)


def _bigger(ds, k):
    if k == 4:
        ds.Rows += 1
        ds.PixelData += bytes(2 * COLUMNS)


def _at_the_same_place(ds, k):
    ds.ImagePositionPatient[2] -= STEP * (k % 2)
    ds.EchoTime = k % 2


def _uneven(ds, k):
    ds.ImagePositionPatient[2] += 0.3 * (k % 3)


def _wobbling(ds, k):
    ds.ImagePositionPatient[0] += 0.3 * (k % 2)


def _drifting(ds, k):  # no step differs from another by more than 1 %, but the middle is off by a fifth of one
    ds.ImagePositionPatient[2] += 0.1 * min(k, SLICES - 1 - k)


def _colour(ds, k):
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0


def _cut(ds, k):
    ds.PixelData = ds.PixelData[:100]


def _no_decoder(ds, k):
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"  # HTJ2K, and no such stream in it
    ds.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    ds["PixelData"].VR = "OB"


FAULTS = {
    "one slice": (lambda ds, k: k == 0, r"1 slice; a volume needs two"),
    "missing": (lambda ds, k: k != 4, r"1 slice\(s\) missing.* between IM\d+ and IM\d+: 5\.000 mm.* others 2\.500"),
    "missing many": (lambda ds, k: k not in (2, 3, 5), r"3 slice\(s\) missing.*7\.500 mm"),
    "missing of four": (lambda ds, k: k in (0, 1, 3), r"1 slice\(s\) missing"),
    "two echoes": (_at_the_same_place, r"2 volumes in one series \(5, 4 slices\).* differ in EchoTime;.*volume=N"),
    "uneven": (_uneven, r"uneven slices, 1\.900 to 2\.800 mm"),
    "to the side": (_wobbling, r"uneven slices, 2\.500 to 2\.500 mm apart and up to 0\.3"),
    "drift": (_drifting, r"uneven slices"),
    "orientation": (
        _set(3, ImageOrientationPatient=list(SAGITTAL)),
        r"differ in orientation \(\[.*\] in IM\d+, \[.*\] in IM\d+\)",
    ),
    "spacing": (_set(3, PixelSpacing=[1.25, 0.9]), r"differ in PixelSpacing \(\[1\.25, 0\.[89]\] in IM"),
    "size": (_bigger, r"differ in size \(rows, columns\) \(\[.*\] in IM"),
    "frame of reference": (
        _set(3, FrameOfReferenceUID="1.2.3"),
        r"differ in FrameOfReferenceUID \(of IM\d+ and IM\d+: positions cannot be compared",
    ),
    "skewed plane": (_set(ImageOrientationPatient=[1, 0, 0, 0.5, 0.5, 0]), "two unit vectors at right angles"),
    "colour": (_colour, "a colour image; expected grey values"),
    "palette": (_set(PhotometricInterpretation="PALETTE COLOR"), "a colour image"),
    "no position": (_without("ImagePositionPatient"), r"IM\d+: its place .*ImagePositionPatient is missing"),
    "empty orientation": (_set(ImageOrientationPatient=None), "ImageOrientationPatient is missing"),
    "no spacing": (_without("PixelSpacing"), "PixelSpacing is missing"),
    "zero spacing": (_set(PixelSpacing=[0, 1]), r"PixelSpacing \[0\.0, 1\.0\]"),
    "frames": (_set(NumberOfFrames=4), "4 frames without positions"),
    "cut pixels": (
        lambda ds, k: setattr(ds, "PixelData", ds.PixelData[:100]),
        r"IM\d+: its pixels cannot be decoded .*cut off",
    ),
    "no pixels": (_without("PixelData"), r"its pixels cannot be decoded"),
    "no decoder": (_no_decoder, r"its pixels cannot be decoded .*no decoder is installed.*'dicom' extra.*gdcmconv"),
    "overflow": (_set(RescaleSlope="1e38"), "not finite"),
    "slope": (_set(RescaleSlope="nan"), "its pixels cannot be decoded"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_refused(tmp_path, name):
    edit, message = FAULTS[name]
    folder = series(tmp_path / "s", edit=edit)
    with pytest.raises(ImageError, match=message) as caught:
        read(folder)
    assert not re.search("Muster|4711", str(caught.value))


def test_a_file_that_lies_there_twice(tmp_path):
    folder = series(tmp_path / "s")
    shutil.copy(folder / "IM003", folder / "copy of IM003")
    with pytest.raises(ImageError, match=r"(IM003 and copy of IM003|copy of IM003 and IM003) are the same image"):
        read(folder)


def test_time_points_in_one_file(tmp_path):
    folder = enhanced(tmp_path / "s", AXIAL, range(SLICES), copies=2)
    with pytest.raises(ImageError, match=r"2 volumes .*\(9, 9 slices\).*volume=N.* 0 to 1\."):
        read(folder)
    with pytest.raises(ImageError, match="volume 2 of 2; 0 to 1 can be picked"):
        read(folder, volume=2)
    first, second = (read(folder, volume=n) for n in (0, 1))
    assert np.array_equal(first.grid.affine_mm, second.grid.affine_mm)
    assert np.abs(first.voxels - phantom(points(first))).max() <= 1


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("share", [0, 0.2, 0.3, 0.4, 0.6, 0.97])
def test_a_file_that_is_cut_off_even_if_the_last_slice(tmp_path, compressed, share):
    folder = series(tmp_path / "s")
    (last,) = (p for p in folder.iterdir() if pydicom.dcmread(p).InstanceNumber == SLICES)
    if compressed:
        _compress(last, RLELossless)
    content = last.read_bytes()
    last.write_bytes(content[: int(share * len(content))] if share else content[:170])  # 170: within the SOP class
    with pytest.raises(ImageError, match=f"^{last.name}: .*[Cc]opy it again"):
        read(folder)


def test_too_many_voxels_are_refused_before_pixels_are_read(tmp_path):
    (found,) = find_series(series(tmp_path / "s", edit=_set(PixelData=b"")))
    with pytest.raises(ImageError, match=r"\(14, 20, 9\) voxels; at most 2519"):
        read_series(found, max_voxels=14 * 20 * 9 - 1)


# SEG


def _labels(volume):
    """A ball and half of one, and no label along an edge of the volume."""
    distance = np.linalg.norm(points(volume) - [3, -2, 4], axis=-1)
    return np.where(distance > 6.03, 0, np.where(points(volume)[..., 0] > 3.1, 4, 1)).astype(np.uint8)


def _masks(path):
    """Of each segment, frames as a dictionary: position in LPS mm to mask (rows, columns) and the image referred to."""
    seg = pydicom.dcmread(path)
    frames = {item.SegmentNumber: {} for item in seg.SegmentSequence}
    for group, mask in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array):
        position = tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        frames[number][position] = mask, source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")
    return seg, frames


@pytest.mark.slow
@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, oblique()], ids=["axial", "sag", "oblique"])
def test_a_seg_lies_on_the_images_it_was_made_from(tmp_path, orientation):
    (found,) = find_series(series(tmp_path / "s", orientation, backwards=True))
    labels = _labels(read_series(found))
    write_dicom_seg(labels, found, {0: "background", **NAMES}, tmp_path / "out" / "seg.dcm")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["seg.dcm"]
    images = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, found.files)}
    seg, frames = _masks(tmp_path / "out" / "seg.dcm")
    assert min(map(len, frames.values())) > 1
    for number, value in ((1, 1), (2, 4)):
        assert sum(mask.sum() for mask, *_ in frames[number].values()) == (labels == value).sum()
        for position, (mask, uid, _) in frames[number].items():
            assert position == pytest.approx(tuple(map(float, images[uid].ImagePositionPatient)))
            ras = world(images[uid])
            inside = np.linalg.norm(ras - [3, -2, 4], axis=-1) <= 6.03
            assert np.array_equal(mask.astype(bool), inside & ((ras[..., 0] > 3.1) == (value == 4)))
    assert seg.pixel_array.sum() > 100


def test_what_a_seg_says(tmp_path):
    (found,) = find_series(series(tmp_path / "s"))
    write_dicom_seg(_labels(read_series(found)), found, NAMES, tmp_path / "seg.dcm")
    seg, image = hd.seg.segread(tmp_path / "seg.dcm"), pydicom.dcmread(found.files[0])
    assert (seg.SegmentationType, seg.Modality, seg.SeriesNumber) == ("BINARY", "SEG", 1003)
    assert [d.segment_label for d in map(seg.get_segment_description, seg.segment_numbers)] == ["Leber", "Rücken"]
    for description in map(seg.get_segment_description, seg.segment_numbers):
        assert description.SegmentAlgorithmType == "AUTOMATIC"
        assert description.algorithm_identification.name == "monai_vit3d"
        assert description.segmented_property_type.value == "85756007"
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[name].value == image[name].value
    assert seg.SeriesInstanceUID != image.SeriesInstanceUID
    volume = seg.get_volume(combine_segments=True)
    ours = read_series(found).grid.affine_mm
    index = np.argwhere(volume.array == 2)
    ras = (index @ volume.affine[:3, :3].T + volume.affine[:3, 3]) * [-1, -1, 1]
    voxels = np.round((ras - ours[:3, 3]) @ np.linalg.inv(ours[:3, :3]).T).astype(int)
    assert sorted(map(tuple, voxels)) == sorted(map(tuple, np.argwhere(_labels(read_series(found)) == 4)))


def test_a_seg_of_a_tilted_gantry_keeps_the_slices_places(tmp_path):
    (found,) = find_series(series(tmp_path / "s", shift=(0, 0.6, 0)))
    write_dicom_seg(_labels(read_series(found)), found, NAMES, tmp_path / "seg.dcm")
    images = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, found.files)}
    for position, (_, uid, _) in _masks(tmp_path / "seg.dcm")[1][1].items():
        assert position == pytest.approx(tuple(map(float, images[uid].ImagePositionPatient)))


def test_a_seg_of_a_multi_frame_image(tmp_path):
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    (found,) = find_series(enhanced(tmp_path / "s", oblique(), order))
    labels, grid = _labels(read_series(found)), read_series(found).grid
    write_dicom_seg(labels, found, NAMES, tmp_path / "seg.dcm")
    image = pydicom.dcmread(found.files[0])
    _, frames = _masks(tmp_path / "seg.dcm")
    for number, value in ((1, 1), (2, 4)):
        assert len(frames[number]) > 1
        for position, (mask, uid, frame) in frames[number].items():
            assert uid == image.SOPInstanceUID
            place = image.PerFrameFunctionalGroupsSequence[frame - 1].PlanePositionSequence[0].ImagePositionPatient
            assert position == pytest.approx(tuple(map(float, place)))
            k = np.linalg.inv(grid.affine_mm) @ [*np.array(position) * [-1, -1, 1], 1]
            assert np.array_equal(mask, (labels[:, :, round(k[2])] == value).T)


def test_nothing_found_is_a_seg_too(tmp_path):
    (found,) = find_series(series(tmp_path / "s"))
    write_dicom_seg(np.zeros((COLUMNS, ROWS, SLICES), np.int64), found, NAMES, tmp_path / "seg.dcm")
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert [d.segment_label for d in map(seg.get_segment_description, seg.segment_numbers)] == ["Leber", "Rücken"]
    assert seg.pixel_array.sum() == 0


def test_a_seg_of_anonymised_images_with_umlauts_elsewhere(tmp_path):
    def edit(ds, k):
        del ds.PatientID
        ds.SpecificCharacterSet, ds.PatientName = "ISO_IR 100", "Müller^Jörg"

    (found,) = find_series(series(tmp_path / "s", edit=edit))
    write_dicom_seg(_labels(read_series(found)), found, {1: "Ελλάς", 4: "x"}, tmp_path / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (str(seg.PatientName), seg.PatientID, seg.SegmentSequence[0].SegmentLabel) == ("Müller^Jörg", "", "Ελλάς")


@pytest.mark.parametrize(
    ("change", "names", "error", "message"),
    [
        (lambda a: a[:-1], NAMES, ImageError, r"uint8 \(13, 20, 9\); expected integers \(14, 20, 9\)"),
        (lambda a: a.transpose(1, 0, 2), NAMES, ImageError, r"\(20, 14, 9\)"),
        (lambda a: a.astype(np.float32), NAMES, ImageError, "float32"),
        (lambda a: 0 * a, {0: "background"}, UsageError, "no label is there and none has a name"),
    ],
)
def test_labels_that_are_refused(tmp_path, change, names, error, message):
    (found,) = find_series(series(tmp_path / "s"))
    labels = _labels(read_series(found))
    (tmp_path / "seg.dcm").write_text("older")
    with pytest.raises(error, match=message):
        write_dicom_seg(change(labels), found, names, tmp_path / "seg.dcm")
    assert (tmp_path / "seg.dcm").read_text() == "older"


def test_values_without_a_name_that_a_seg_can_hold_are_numbered(tmp_path):
    (found,) = find_series(series(tmp_path / "s"))
    labels = _labels(read_series(found)) + 0
    labels[0, 0, :3] = 7, 8, 9
    names = {1: "a", 4: "b" * 65, 7: "b\\c", 8: " ", 12: "nowhere"}
    write_dicom_seg(labels, found, names, tmp_path / "seg.dcm")
    segments = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert [one.SegmentLabel for one in segments] == ["a", "label 4", "label 7", "label 8", "label 9", "nowhere"]


def test_masks_that_overlap_are_a_seg_too(tmp_path):
    (found,) = find_series(series(tmp_path / "s", oblique()))
    labels = _labels(read_series(found))
    masks = np.stack([labels > 0, labels == 4, np.zeros_like(labels, bool)])
    write_dicom_seg(masks.astype(np.uint8), found, {1: "whole", 2: "part"}, tmp_path / "seg.dcm")
    seg, frames = _masks(tmp_path / "seg.dcm")
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["whole", "part", "label 3"]
    images = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, found.files)}
    for number, mask in ((1, masks[0]), (2, masks[1])):
        assert sum(plane.sum() for plane, *_ in frames[number].values()) == mask.sum() > 0
        for plane, uid, _ in frames[number].values():
            ras = world(images[uid])
            inside = np.linalg.norm(ras - [3, -2, 4], axis=-1) <= 6.03
            assert np.array_equal(plane.astype(bool), inside & ((ras[..., 0] > 3.1) | (number == 1)))


def test_a_seg_of_one_time_point_of_several_in_a_file(tmp_path):
    (found,) = find_series(enhanced(tmp_path / "s", AXIAL, range(SLICES), copies=2))
    labels = _labels(read_series(found, volume=1))
    write_dicom_seg(labels, found, NAMES, tmp_path / "seg.dcm", volume=1)
    _, frames = _masks(tmp_path / "seg.dcm")
    for number, value in ((1, 1), (2, 4)):
        assert {frame for *_, frame in frames[number].values()} <= set(range(SLICES + 1, 2 * SLICES + 1))
        assert sum(mask.sum() for mask, *_ in frames[number].values()) == (labels == value).sum()


def test_time_points_in_multi_frame_files_of_their_own(tmp_path):
    folder = enhanced(tmp_path / "s", AXIAL, range(SLICES))
    ds = pydicom.dcmread(folder / "multi")
    for number, name in ((2, "multi"), (1, "a")):
        ds.InstanceNumber, ds.SOPInstanceUID = number, generate_uid()
        for group in ds.PerFrameFunctionalGroupsSequence:
            group.PixelValueTransformationSequence[0].RescaleIntercept = number
        ds.save_as(folder / name)
    with pytest.raises(ImageError, match=r"2 volumes in one series \(9, 9 slices\), which differ in InstanceNumber"):
        read(folder)
    first, second = (read(folder, volume=n) for n in (0, 1))
    assert np.array_equal(first.voxels + 1, second.voxels)


def test_a_seg_of_frames_with_groups_of_their_own_alone(tmp_path):
    """Philips: pixel measures and orientation in each frame, none shared."""
    folder = enhanced(tmp_path / "s", AXIAL, range(SLICES))
    ds = pydicom.dcmread(folder / "multi")
    for group in ds.PerFrameFunctionalGroupsSequence:
        for macro in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            setattr(group, macro, ds.SharedFunctionalGroupsSequence[0][macro].value)
    del ds.SharedFunctionalGroupsSequence
    ds.save_as(folder / "multi")
    (found,) = find_series(folder)
    labels = _labels(read_series(found))
    write_dicom_seg(labels, found, NAMES, tmp_path / "seg.dcm")
    assert pydicom.dcmread(tmp_path / "seg.dcm").pixel_array.sum() == (labels > 0).sum()


def test_a_seg_without_a_frame_of_reference_gets_one_of_its_own(tmp_path):
    (found,) = find_series(series(tmp_path / "s", edit=_without("FrameOfReferenceUID")))
    labels = _labels(read_series(found))
    for name in ("a", "b"):
        write_dicom_seg(labels, found, NAMES, tmp_path / name)
    first, second = (pydicom.dcmread(tmp_path / name).FrameOfReferenceUID for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("tag", ["SeriesInstanceUID", "SOPInstanceUID"])
def test_images_that_a_seg_cannot_name(tmp_path, tag):
    folder = series(tmp_path / "s")
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        setattr(ds, tag, "1.2.3" if tag == "SOPInstanceUID" else "")
        ds.save_as(path)
    (found,) = find_series(folder)
    with pytest.raises(ImageError, match=rf"no DICOM SEG can refer to these images \({tag} is missing"):
        write_dicom_seg(_labels(read_series(found)), found, NAMES, tmp_path / "seg.dcm")


def test_a_seg_warns_of_nothing_that_names_the_patient(tmp_path, recwarn):
    (found,) = find_series(series(tmp_path / "s", edit=_set(PatientName="Eva")))
    write_dicom_seg(_labels(read_series(found)), found, NAMES, tmp_path / "seg.dcm")
    assert [w for w in recwarn if "Eva" in str(w.message)] == []


def test_images_a_seg_cannot_refer_to(tmp_path):
    (found,) = find_series(series(tmp_path / "s", edit=_without("StudyInstanceUID")))
    with pytest.raises(ImageError, match=r"no DICOM SEG can refer .*StudyInstanceUID"):
        write_dicom_seg(_labels(read_series(found)), found, NAMES, tmp_path / "seg.dcm")
