"""Real-life DICOM: several volumes in a series, mosaics, counts that do not fit, files without preamble, PET in SUV."""

import gzip
import logging
import re
import warnings
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pydicom = pytest.importorskip("pydicom")

from nibabel.nicom.dicomwrappers import wrapper_from_file  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, generate_uid  # noqa: E402

from monai_vit3d.data.dicom import find_series, read_series, scan_folder  # noqa: E402
from monai_vit3d.data.errors import ImageError  # noqa: E402
from tests.dicom import AXIAL, CT, MR, PET, SAGITTAL, SCREEN, SLICES, STEP, fill, phantom, save, series  # noqa: E402

SECRET = "Muster"


def read(folder, **options):
    (found,) = find_series(folder)
    return read_series(found, **options)


def at_world(volume):
    """The phantom at the voxels of a volume."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.voxels.shape), indexing="ij"), -1)
    return phantom(index @ volume.grid.affine_mm[:3, :3].T + volume.grid.affine_mm[:3, 3])


def edit_all(folder, edit):
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        edit(ds)
        ds.save_as(path)


# even grid


@pytest.mark.parametrize("step", [0.4, 0.625, 2.5, 3.3])
def test_positions_rounded_to_a_tenth_of_a_millimetre_are_taken(tmp_path, step):
    def edit(ds, k):
        ds.ImagePositionPatient[2] = round(-7.03 + step * k, 1)

    volume = read(series(tmp_path / "s", edit=edit))
    assert volume.warnings == ()
    assert volume.grid.spacing_mm[2] == pytest.approx(step, abs=0.1 / (SLICES - 1) + 1e-9)


@pytest.mark.parametrize("step", [0.05, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("lost", [(4,), (1, 5), (2, 3)])
def test_a_missing_slice_is_never_within_the_tolerance(tmp_path, step, lost):
    def edit(ds, k):
        ds.ImagePositionPatient[2] = -7 + step * k
        return k not in lost

    with pytest.raises(ImageError, match=r"slice\(s\) missing"):
        read(series(tmp_path / "s", edit=edit))


def test_slices_off_the_grid_by_more_are_warned_of_then_refused(tmp_path):
    def shifted(mm):
        return lambda ds, k: ds.ImagePositionPatient.__setitem__(0, ds.ImagePositionPatient[0] + mm * (k == 4))

    (warning,) = read(series(tmp_path / "a", edit=shifted(0.2))).warnings
    assert warning == "slices up to 0.200 mm off an even grid (8% of the 2.500 mm between)"
    with pytest.raises(ImageError, match=r"up to 0\.300 mm off an even grid; 10% of the spacing is taken"):
        read(series(tmp_path / "b", edit=shifted(0.3)))


# what the headers count


@pytest.mark.parametrize(
    ("edit", "warning"),
    [
        (lambda ds, k: k > 2, "InstanceNumber goes from 4 to 9 in 6 files; some may be missing"),
        (lambda ds, k: k % 2 == 0, "InstanceNumber goes from 1 to 9 in 5 files; some may be missing"),
        (lambda ds, k: setattr(ds, "InstanceNumber", max(1, k)), "InstanceNumber 1 is there 2 times"),
        (lambda ds, k: setattr(ds, "InstanceNumber", k), None),
        (lambda ds, k: delattr(ds, "InstanceNumber"), None),
        (lambda ds, k: setattr(ds, "ImagesInAcquisition", 9), None),
        (lambda ds, k: setattr(ds, "ImagesInAcquisition", 12), "9 files of an acquisition that has 12"),
    ],
)
def test_counts(tmp_path, edit, warning):
    found = read(series(tmp_path / "s", edit=edit)).warnings
    assert [text.split(" (")[0] for text in found] == ([warning] if warning else [])


# several volumes


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["TemporalPositionIdentifier", "EchoTime", "AcquisitionNumber", "DiffusionBValue"])
def test_a_volume_is_picked_by_what_tells_volumes_apart(tmp_path, tag):
    def edit(ds, k):
        setattr(ds, tag, 10 * copy)
        fill(ds, intercept=-1024.0 + 0, slope=1.0)
        ds.RescaleIntercept = -1024 + copy
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.4"
        ds.InstanceNumber = 3 * k + copy + 1

    for copy in range(3):
        for path in series(tmp_path / f"{copy}", edit=edit).iterdir():
            (tmp_path / "s").mkdir(exist_ok=True)
            path.rename(tmp_path / "s" / f"{2 - copy}{path.name}")
    with pytest.raises(ImageError, match=rf"3 volumes in one series \(9, 9, 9 slices\), which differ in {tag};"):
        read(tmp_path / "s")
    for n in range(3):
        volume = read(tmp_path / "s", volume=n)
        assert np.array_equal(volume.voxels, at_world(volume) + n)


def test_times_that_differ_from_slice_to_slice(tmp_path):
    """As GE's and many anonymised time series: no attribute has one value for each volume."""

    def edit(ds, k):
        ds.TriggerTime = 1000 * (1 - copy) + 50 * k
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.4"
        ds.RescaleIntercept = -1024 + copy
        del ds.InstanceNumber

    for copy in range(2):
        for path in series(tmp_path / f"{copy}", edit=edit).iterdir():
            (tmp_path / "s").mkdir(exist_ok=True)
            path.rename(tmp_path / "s" / f"{copy}{path.name}")
    earlier = read(tmp_path / "s", volume=0)
    assert np.array_equal(earlier.voxels, at_world(earlier) + 1)


def test_a_time_point_that_is_not_whole_leaves_the_others(tmp_path):
    def edit(ds, k):
        ds.TemporalPositionIdentifier, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = copy, "1.2.3", "1.2.4"
        ds.InstanceNumber = 9 * copy + k + 1
        return (copy, k) != (1, 4)

    for copy in range(2):
        for path in series(tmp_path / f"{copy}", edit=edit).iterdir():
            (tmp_path / "s").mkdir(exist_ok=True)
            path.rename(tmp_path / "s" / f"{copy}{path.name}")
    assert read(tmp_path / "s", volume=0).warnings == (
        "InstanceNumber goes from 1 to 18 in 17 files; some may be missing",
    )
    with pytest.raises(ImageError, match=r"1 slice\(s\) missing"):
        read(tmp_path / "s", volume=1)


def test_slices_at_one_place_that_nothing_sorts(tmp_path):
    def edit(ds, k):
        ds.ImagePositionPatient[2] -= STEP * (k == 3)
        del ds.InstanceNumber

    with pytest.raises(ImageError, match=r"several slices at one place, as in IM.* folder of their own"):
        read(series(tmp_path / "s", edit=edit))


def test_stacks_of_several_orientations_in_one_series(tmp_path):
    def edit(ds, k):
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.4"

    steep = (1, 0, 0, 0, float(np.cos(0.3)), float(-np.sin(0.3)))
    for name, orientation in (("a", AXIAL), ("b", tuple(round(x, 6) for x in steep))):
        for path in series(tmp_path / name, orientation, sop_class=MR, count=5, edit=edit).iterdir():
            (tmp_path / "s").mkdir(exist_ok=True)
            path.rename(tmp_path / "s" / f"{name}{path.name}")
    with pytest.raises(ImageError, match=r"2 volumes .*\(5, 5 slices\), which differ in orientation"):
        read(tmp_path / "s")
    for n in range(2):
        volume = read(tmp_path / "s", volume=n)
        assert np.abs(volume.voxels - at_world(volume)).max() <= 1


# mosaics: nibabel's own test files, read by nibabel's own wrapper


@pytest.mark.parametrize("name", ["siemens_dwi_0", "siemens_dwi_1000"])
def test_siemens_mosaic_as_nibabel_reads_it(tmp_path, name):
    packed = files("nibabel.nicom").joinpath(f"tests/data/{name}.dcm.gz").read_bytes()
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "IM").write_bytes(gzip.decompress(packed))
    volume, theirs = read(tmp_path / "s"), wrapper_from_file(tmp_path / "s" / "IM")
    assert volume.warnings == ()
    flip = np.diag([-1, -1, 1, 1])  # nibabel keeps DICOM's LPS, and rows come first
    ours = nib.Nifti1Image(volume.voxels, volume.grid.affine_mm)
    expected = nib.Nifti1Image(np.asarray(theirs.get_data(), np.float32), flip @ theirs.affine)
    ours, expected = nib.as_closest_canonical(ours), nib.as_closest_canonical(expected)
    np.testing.assert_allclose(ours.affine, expected.affine, atol=1e-4)
    assert np.array_equal(ours.get_fdata(), expected.get_fdata())


def test_mosaic_without_siemens_private_header_is_refused_by_name(tmp_path):
    def edit(ds, k):
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]

    with pytest.raises(ImageError, match=r"Siemens mosaic whose private CSA header is missing.*dcm2niix"):
        read(series(tmp_path / "s", sop_class=MR, count=1, edit=edit))


# finding


def strip_preamble(path, syntax):
    """The data set alone, without preamble and file meta elements, as some exporters write it."""
    ds = pydicom.dcmread(path)
    ds.remove_private_tags()
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    if not little:
        ds.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
    del ds.file_meta
    ds.preamble = None
    pydicom.dcmwrite(path, ds, implicit_vr=implicit, little_endian=little)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, "1.2.840.10008.1.2.1", ExplicitVRBigEndian])
def test_files_without_preamble(tmp_path, syntax):
    folder = series(tmp_path / "s")
    expected = read(folder)
    for path in folder.iterdir():
        strip_preamble(path, syntax)
        assert path.read_bytes()[128:132] != b"DICM"
    volume = read(folder)
    assert np.array_equal(volume.voxels, expected.voxels)
    assert np.array_equal(volume.grid.affine_mm, expected.grid.affine_mm)


def test_what_is_no_volume_is_passed_over_with_its_reason(tmp_path):
    folder = series(tmp_path / "s")

    def extra(name, sop_class, *without, **values):
        (path,) = series(tmp_path / name, sop_class=CT, count=1).iterdir()
        ds = pydicom.dcmread(path)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
        for tag in without:
            delattr(ds, tag)
        for tag, value in values.items():
            setattr(ds, tag, value)
        save(ds, folder / name)

    pixels = ("PixelData", "Rows", "Columns")
    extra("dose", "1.2.840.10008.5.1.4.1.1.88.67", *pixels)
    extra("pdf", "1.2.840.10008.5.1.4.1.1.104.1", *pixels)
    extra("key", "1.2.840.10008.5.1.4.1.1.88.59", *pixels)
    extra("state", "1.2.840.10008.5.1.4.1.1.11.1", *pixels)
    extra("screen", SCREEN)
    extra("echo", "1.2.840.10008.5.1.4.1.1.6.1", "ImagePositionPatient")
    extra("scout", CT, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID=generate_uid())
    extra("one", CT, SeriesInstanceUID=generate_uid())
    (folder / "half.dcm").write_bytes(b"x" * 60)
    (folder / "IM999").write_bytes(b"")
    (folder / "notes.txt").write_text("no slice")
    scan = scan_folder(folder)
    assert {file.path.name: file.reason for file in scan.passed_over} == {
        "dose": "X-Ray Radiation Dose SR Storage: no image",
        "pdf": "Encapsulated PDF Storage: no image",
        "key": "Key Object Selection Document Storage: no image",
        "state": "Grayscale Softcopy Presentation State Storage: no image",
        "screen": "Secondary Capture Image Storage: not a scan",
        "echo": "Ultrasound Image Storage: no volume with a place in space; CT, MR and PET volumes are read",
        "scout": "a scout (localizer)",
        "one": "1 slice; a volume needs two or more",
        "half.dcm": "60 bytes, too short for DICOM",
        "IM999": "0 bytes, too short for DICOM",
    }
    (found,) = scan.series
    assert len(found.files) == SLICES
    (warning,) = read_series(found).warnings
    assert "half.dcm (60 bytes" in warning
    assert "IM999 (0 bytes" in warning


def test_a_scout_of_three_planes_is_passed_over_and_an_odd_slice_is_not(tmp_path):
    def plane(ds, k):
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.4"

    for name, orientation in (("a", AXIAL), ("b", SAGITTAL), ("c", (1, 0, 0, 0, 0, -1))):
        for path in series(tmp_path / name, orientation, sop_class=MR, count=3, edit=plane).iterdir():
            (tmp_path / "s").mkdir(exist_ok=True)
            path.rename(tmp_path / "s" / f"{name}{path.name}")
    scan = scan_folder(tmp_path / "s")
    assert scan.series == ()
    assert {file.reason for file in scan.passed_over} == {"a scout or radial planes: a few slices of each orientation"}
    with pytest.raises(ImageError, match=r"no DICOM image volume in it \(aIM.* and 8 more: a scout"):
        find_series(tmp_path / "s")


def test_files_without_a_uid_are_one_series_for_each_number(tmp_path):
    folder = series(tmp_path / "s", edit=lambda ds, k: setattr(ds, "SeriesInstanceUID", ""))
    assert read(folder).voxels.shape[2] == SLICES
    for path in series(tmp_path / "more", edit=lambda ds, k: ds.pop("SeriesInstanceUID") and None).iterdir():
        ds = pydicom.dcmread(path)
        ds.SeriesNumber = 8
        ds.save_as(folder / f"x{path.name}")
    assert [(one.number, len(one.files)) for one in find_series(folder)] == [(3, SLICES), (8, SLICES)]


def test_studies_without_series_uids_are_told_apart(tmp_path):
    folder = series(tmp_path / "s", edit=lambda ds, k: setattr(ds, "SeriesInstanceUID", ""))
    for path in series(tmp_path / "more", edit=lambda ds, k: setattr(ds, "SeriesInstanceUID", "")).iterdir():
        path.rename(folder / f"x{path.name}")
    assert [len(one.files) for one in find_series(folder)] == [SLICES, SLICES]


def test_without_a_frame_of_reference(tmp_path):
    def edit(ds, k):
        if k % 2:
            del ds.FrameOfReferenceUID

    assert read(series(tmp_path / "s", edit=edit)).warnings == ()


def test_a_damaged_file_fails_its_own_series_alone(tmp_path):
    folder = series(tmp_path / "s")
    for path in series(tmp_path / "more", edit=lambda ds, k: setattr(ds, "SeriesNumber", 8)).iterdir():
        path.rename(folder / f"x{path.name}")
    content = (folder / "xIM004").read_bytes()
    (folder / "xIM004").write_bytes(content[: content.index(b"\x28\x00\x10\x00")])  # up to Rows
    good, bad = find_series(folder)
    assert read_series(good).warnings == ()
    with pytest.raises(ImageError, match=r"^xIM004: .*cut off.*Copy it again"):
        read_series(bad)


# nothing of the patient is told


def test_neither_warnings_nor_log_nor_errors_quote_headers(tmp_path, caplog, capfd):
    folder = series(tmp_path / "s", edit=lambda ds, k: setattr(ds, "SeriesInstanceUID", "1.2.33"))
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.33", SECRET.encode()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        str(pydicom.dcmread(min(folder.iterdir())).SeriesInstanceUID)
    assert SECRET in str(caught[0].message)  # pydicom itself quotes it
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        read(folder)
    assert [str(one.message) for one in caught if SECRET in str(one.message)] == []
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("old", "new", "attribute"),
    [
        (b"1.25\\0.8", b"Muster 8", "PixelSpacing"),
        (b"1.0\\0.0\\0.0\\0.0\\1.0", b"1.0\\0.0\\0.0\\Must 19", "ImageOrientationPatient"),
        (b"MONOCHROME2", b"Muster 1970", "pixels"),
    ],
)
def test_damaged_fields_are_named_and_not_quoted(tmp_path, old, new, attribute):
    folder = series(tmp_path / "s")
    path = min(folder.iterdir())
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    with pytest.raises(ImageError, match=f"^{path.name}: .*{attribute}") as caught:
        read(folder)
    assert "Must" not in str(caught.value)


@pytest.fixture(scope="module")
def pet_files(tmp_path_factory):
    """A folder with a PET of three slices, one file of it, and that file's bytes."""
    folder = series(tmp_path_factory.mktemp("fuzz") / "s", sop_class=PET, count=3, edit=pet())
    path = min(folder.iterdir())
    return folder, path, path.read_bytes()


@pytest.mark.slow
@settings(suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=9), st.data())
def test_spoilt_bytes_of_a_header_give_a_volume_or_an_error_without_its_text(pet_files, changes, data):
    folder, path, content = pet_files
    end = content.index(b"\xe0\x7f\x10\x00")  # PixelData
    spoilt = bytearray(content)
    for share, byte in changes:
        spoilt[128 + int(share * (end - 128))] = byte
    path.write_bytes(spoilt[: data.draw(st.sampled_from([None, len(spoilt) // 3, end, end + 99]))])
    message = ""
    try:
        for one in scan_folder(folder).series:
            assert np.isfinite(read_series(one, units=data.draw(st.sampled_from(["stored", "suv"]))).voxels).all()
    except ImageError as error:
        message = str(error)
    assert not re.search("Muster|Eva|4711", message)


# PET


WEIGHT, DOSE, HALF_LIFE = 80.0, 4e8, 6000.0  # kg, Bq, s


def pet(**values):
    """Edits of a PET, 2 half-lives after injection; values override."""

    def edit(ds, k):
        fill(ds, intercept=0.0, slope=0.5)
        drug = Dataset()
        drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = DOSE, HALF_LIFE
        drug.RadiopharmaceuticalStartTime = "080000"
        ds.RadiopharmaceuticalInformationSequence = [drug]
        ds.Units, ds.DecayCorrection, ds.PatientWeight = "BQML", "START", WEIGHT
        ds.CorrectedImage = ["DECY", "ATTN", "SCAT"]
        ds.SeriesDate = ds.AcquisitionDate = "20200229"
        ds.SeriesTime, ds.AcquisitionTime = "112000.00", f"1120{k:02d}"
        for name, value in values.items():
            setattr(drug if name.startswith("Radio") else ds, name, value)

    return edit


@pytest.mark.parametrize(
    ("values", "factor"),
    [
        ({}, 80e3 / 1e8),  # 200 minutes: a quarter of the dose is left
        ({"DecayCorrection": "ADMIN"}, 80e3 / 4e8),
        ({"SeriesTime": "153000"}, 80e3 / 1e8),  # a series made later: its first image's time counts
        ({"RadiopharmaceuticalStartDateTime": "20200229080000.000000+0100"}, 80e3 / 1e8),
        ({"RadiopharmaceuticalStartDateTime": "20200229094000"}, 80e3 / 2e8),
        (
            {"RadiopharmaceuticalStartTime": "235959.9", "SeriesTime": "013959.9", "AcquisitionTime": "020000"},
            80e3 / 2e8,
        ),
        ({"Units": "GML"}, 1.0),
        ({"Units": "GML", "SUVType": "BW"}, 1.0),
    ],
)
def test_suv_by_body_weight(tmp_path, values, factor):
    folder = series(tmp_path / "s", sop_class=PET, edit=pet(**values))
    stored, suv = read(folder), read(folder, units="suv")
    assert suv.warnings == ()
    np.testing.assert_allclose(suv.voxels, np.float64(stored.voxels) * factor, rtol=1e-6)


@pytest.mark.parametrize(("to_suv", "to_bqml", "factor"), [(0.25, 3.0, 0.25), (0.0, 3.0, 3 * 80e3 / 1e8)])
def test_suv_of_philips_counts(tmp_path, to_suv, to_bqml, factor):
    def edit(ds, k):
        pet(Units="CNTS")(ds, k)
        block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
        block.add_new(0x00, "DS", str(to_suv))
        block.add_new(0x09, "DS", str(to_bqml))

    folder = series(tmp_path / "s", sop_class=PET, edit=edit)
    np.testing.assert_allclose(read(folder, units="suv").voxels, np.float64(read(folder).voxels) * factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"PatientWeight": None}, "PatientWeight is missing"),
        ({"PatientWeight": 0}, "PatientWeight is not above 0"),
        ({"RadionuclideTotalDose": None}, "RadionuclideTotalDose is missing"),
        ({"RadionuclideHalfLife": None}, "RadionuclideHalfLife is missing"),
        ({"RadiopharmaceuticalStartTime": None}, "RadiopharmaceuticalStartTime are missing"),
        ({"RadiopharmaceuticalStartDateTime": "20190101080000"}, "before the scan"),
        ({"RadiopharmaceuticalInformationSequence": []}, "RadiopharmaceuticalInformationSequence is missing"),
        ({"DecayCorrection": "NONE"}, "DecayCorrection is not START or ADMIN"),
        ({"CorrectedImage": ["ATTN"]}, "CorrectedImage has no DECY"),
        ({"Units": "CNTS"}, "Philips"),
        ({"Units": "PROPCPS"}, "Units is not one of BQML, CNTS and GML"),
        ({"Units": "GML", "SUVType": "LBM"}, "SUVType is not BW"),
    ],
)
def test_headers_that_suv_cannot_be_had_from(tmp_path, values, named):
    def edit(ds, k):
        pet(**{name: value for name, value in values.items() if name != "RadiopharmaceuticalInformationSequence"})(
            ds, k
        )
        if "RadiopharmaceuticalInformationSequence" in values:
            ds.RadiopharmaceuticalInformationSequence = []

    folder = series(tmp_path / "s", sop_class=PET, edit=edit)
    with pytest.raises(ImageError, match=rf"SUV cannot be computed from its headers .*{named}"):
        read(folder, units="suv")


def test_a_pet_says_what_its_voxels_are(tmp_path):
    bqml = read(series(tmp_path / "b", sop_class=PET, edit=pet()))
    assert bqml.warnings == ("PET voxels are in Bq/ml (Units BQML); units=suv gives SUV by body weight",)
    assert read(series(tmp_path / "g", sop_class=PET, edit=pet(Units="GML"))).warnings == ()
    odd = read(series(tmp_path / "m", sop_class=PET, edit=pet(RadionuclideTotalDose=400)), units="suv").warnings
    assert odd == ("RadionuclideTotalDose is 400 Bq; if that is MBq, SUV are a million times too high",)
    assert read(series(tmp_path / "c"), units="suv").warnings == ("no PET; units=suv changes nothing",)


# what scanners and toolkits wrote: files that come with pydicom


def test_a_ct_of_pydicoms_as_simpleitk_reads_it():
    sitk = pytest.importorskip("SimpleITK")
    folder = files("pydicom").joinpath("data/test_files/dicomdirtests/98892001/CT5N")
    volume, reader = read(folder), sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    assert np.array_equal(volume.voxels, sitk.GetArrayFromImage(image).T)
    lps = np.diag([-1, -1, 1, 1]) @ volume.grid.affine_mm
    np.testing.assert_allclose(lps[:3, 3], image.GetOrigin(), atol=1e-4)
    directions = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    np.testing.assert_allclose(lps[:3, :3], directions, atol=1e-4)


def test_the_files_of_a_dicomdir_that_are_no_volumes_have_reasons():
    folder = files("pydicom").joinpath("data/test_files/dicomdirtests")
    reasons = {
        file.path.parent.name: file.reason for sub in folder.rglob("*/") for file in scan_folder(sub).passed_over
    }
    assert reasons["CR1"].startswith("Computed Radiography Image Storage: no volume with a place in space")
    assert reasons["CT2N"] == "a scout (localizer)"
    assert reasons["MR700"].startswith("a scout or radial planes")
    assert scan_folder(folder).passed_over[0].reason == "a DICOMDIR, an index of other files"
