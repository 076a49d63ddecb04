"""Small DICOM series of an analytic phantom, in any orientation, with any fault."""

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import generate_uid

CT, MR, PET = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "4", "128"))
SCREEN, RT_STRUCTURES = "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.481.3"
DIRECTORY = "1.2.840.10008.1.3.10"
ENHANCED_MR, SEG = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.66.4"
AXIAL, SAGITTAL, CORONAL = (1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)
ROWS, COLUMNS, SLICES = 20, 14, 9
SPACING, STEP = (1.25, 0.8), 2.5  # between rows, between columns; between slices


def oblique():
    """Row and column direction of a plane turned about two axes, as a scanner writes them: six digits."""
    a, b = np.radians([23, -14])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return tuple(np.round(turn[:, :2].T.ravel(), 6))


def phantom(ras):
    """HU at points of world space (..., 3): a ramp that no flip or transposition leaves as it is, and a ball."""
    ball = ((ras - [3, -2, 4]) ** 2).sum(-1) < 36
    return np.round(2.0 * ras[..., 0] + 5.0 * ras[..., 1] - 11.0 * ras[..., 2] + 400 * ball)


def world(dataset, orientation=None):
    """RAS+ mm of each pixel (rows, columns, 3), after the standard's equation C.7.6.2.1-1, in float64."""
    x, y = np.reshape(orientation or dataset.ImageOrientationPatient, (2, 3)).astype(float)
    between_rows, between_columns = map(float, dataset.PixelSpacing)
    r, c = np.mgrid[: dataset.Rows, : dataset.Columns][..., None]
    lps = np.array(dataset.ImagePositionPatient, float) + x * between_columns * c + y * between_rows * r
    return lps * [-1, -1, 1]


def base(sop_class, orientation=AXIAL, number=3):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.Modality = {CT: "CT", MR: "MR", PET: "PT"}.get(sop_class, "MR")
    ds.SeriesNumber, ds.PatientName, ds.PatientID = number, "Muster^Eva", "4711"
    ds.ImageOrientationPatient, ds.PixelSpacing = list(orientation), list(SPACING)
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    return ds


def fill(ds, intercept=-1024.0, slope=1.0):
    """Store the phantom's values, rescaled."""
    ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
    ds.PixelData = np.round((phantom(world(ds)) - intercept) / slope).astype("<i2").tobytes()


def save(ds, path):
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID") or generate_uid()
    ds.save_as(path, enforce_file_format=True)


def series(folder, orientation=AXIAL, sop_class=CT, count=SLICES, shift=(0, 0, 0), backwards=False, edit=None):
    """Files under shuffled names; ``edit(dataset, slice number)`` may change each before it is saved."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y = np.reshape(orientation, (2, 3))
    normal = np.cross(x, y) / np.linalg.norm(np.cross(x, y))
    uids = generate_uid(), generate_uid(), generate_uid()
    start = np.array([3, -2, 4]) * [-1, -1, 1] - x * 5 - y * 12 - normal * 10
    names = np.random.default_rng(0).permutation(count)
    for k in range(count):
        ds = base(sop_class, orientation)
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uids
        ds.InstanceNumber = count - k if backwards else k + 1
        position = start + (normal * STEP + np.array(shift)) * k
        ds.ImagePositionPatient = [round(float(p), 6) for p in position]
        fill(ds)
        if edit is None or edit(ds, k) is not False:
            save(ds, folder / f"IM{names[k]:03d}")
    return folder
