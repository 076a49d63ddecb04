"""The reader in MONAI's transforms: as NibabelReader on clean files, and no way around a refusal."""

import gzip
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, NibabelReader, decollate_batch
from monai.transforms import Compose, Invertd, LoadImage, LoadImaged, Orientationd, Spacingd

from monai_vit3d.data import ImageError, UsageError
from monai_vit3d.data.nifti import NiftiReader, read_nifti

from .conftest import nifti_bytes


def oblique(flip=-1.0, offset=(-50, 20, 7)):
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(0.1, -0.2, 1.7) @ np.diag([flip * 1.2, 1.0, 2.5])
    affine[:3, 3] = offset
    return affine


def transforms(reader):
    return Compose(
        [
            LoadImaged("image", reader=reader, ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.0, 1.5, 2.0), mode="bilinear"),
        ]
    )


@pytest.mark.parametrize("name", ["t1.nii", "t1.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
@pytest.mark.parametrize("channels", [1, 2])
def test_as_nibabel_reader_through_transforms_and_back(save, name, dtype, channels):
    rng = np.random.default_rng(0)
    paths = [
        str(save(f"{c}{name}", data=rng.integers(0, 200, (8, 9, 10)).astype(dtype), affine=oblique()))
        for c in range(channels)
    ]
    found, expected = [], []
    for reader, kept in ((NiftiReader(), found), (NibabelReader(), expected)):
        forward = transforms(reader)
        item = forward({"image": paths if channels > 1 else paths[0]})
        item["pred"] = item["image"] > 100
        back = Invertd("pred", forward, orig_keys="image", nearest_interp=True, to_tensor=True)(dict(item))
        kept += [item["image"], back["pred"]]
    for ours, theirs in zip(found, expected):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor(), rtol=0, atol=0)
        torch.testing.assert_close(ours.affine, theirs.affine, rtol=0, atol=0)
        for key in ("original_affine", "space", "filename_or_obj"):
            assert np.array_equal(ours.meta[key], theirs.meta[key]), key
        assert list(ours.meta["spatial_shape"]) == list(theirs.meta["spatial_shape"])
    assert found[1].shape[1:] == (8, 9, 10)


@pytest.mark.parametrize("ensure", [True, False])
def test_meta(save, ensure):
    path = save(affine=oblique(), data=np.ones((8, 9, 1, 1), np.uint8))
    image = LoadImage(reader=NiftiReader(), ensure_channel_first=ensure)(path)
    assert image.shape == ((1, 8, 9, 1) if ensure else (8, 9, 1))
    assert image.dtype == torch.float32
    assert image.meta["warnings"] == "all voxels have one value, 1"
    assert list(image.meta["spatial_shape"]) == [8, 9, 1]
    assert image.affine.dtype == torch.float64


def test_metres_reach_monai_in_mm(save):
    path = save(affine=np.diag([2e-3, 3e-3, 4e-3, 1]), xyzt_units=1)
    image = LoadImage(reader=NiftiReader())(path)
    torch.testing.assert_close(image.pixdim, torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64))


def damaged():
    packed = bytearray(gzip.compress(nifti_bytes(), compresslevel=0))
    packed[-30] ^= 1  # nibabel, and so MONAI's own reader, does not see it
    return bytes(packed)


def test_a_refusal_comes_out_of_load_image(raw, save):
    path = raw("t1.nii.gz", damaged())
    assert LoadImage(reader=NibabelReader())(path).shape == (8, 9, 10)
    for reader in (NiftiReader(), NiftiReader, "monai_vit3d.data.nifti.NiftiReader"):
        with pytest.raises(ImageError, match=r"t1.nii.gz: .*CRC"):
            LoadImage(reader=reader)(path)
    with pytest.raises(RuntimeError, match="LoadImaged") as caught:  # Compose tells which transform it was
        transforms(NiftiReader())({"image": str(path)})
    assert isinstance(caught.value.__cause__, ImageError)
    with pytest.raises(ImageError, match="4D image"):
        LoadImaged("image", reader=NiftiReader())({"image": save(data=np.zeros((4, 5, 6, 2), np.uint8))})
    with pytest.raises(ImageError, match="no such file"):
        LoadImage(reader=NiftiReader())("none.nii.gz")


def test_options(save):
    data = np.arange(240, dtype=np.int16).reshape(4, 5, 6, 2)
    path = save(data=data)
    image = LoadImage(reader=NiftiReader(volume=1))(path)
    np.testing.assert_array_equal(image, data[..., 1])
    with pytest.raises(ImageError, match="max_voxels=119"):
        LoadImage(reader=NiftiReader(volume=1, max_voxels=119))(path)
    config = {"reader": {"_target_": "monai_vit3d.data.nifti.NiftiReader", "volume": 0}}
    reader = ConfigParser(config).get_parsed_content("reader")
    np.testing.assert_array_equal(LoadImage(reader=reader)(path), data[..., 0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": np.zeros((8, 9, 11), np.int16)}, r"shape \(8, 9, 11\), but .*a.nii has \(8, 9, 10\)"),
        ({"affine": oblique(offset=(-51, 20, 7))}, r"voxels \(.* mm\) away from .*a.nii; channels need one grid"),
        ({"affine": oblique(flip=1.0)}, r"voxels \(.* mm\) away from .*a.nii; channels need one grid"),
    ],
)
def test_channels_need_one_grid(save, options, words):
    first = save("a.nii", affine=oblique())
    other = save("b.nii", **{"affine": oblique(), **options})
    with pytest.raises(ImageError, match=f"b.nii: .*{words}.*Resample"):
        LoadImage(reader=NiftiReader())([first, other])


def logged(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "monai_vit3d.data.nifti.reader"]


def test_channels_in_their_order_with_warnings_by_file(save, caplog):
    a = save("a.nii", affine=oblique(), tail=b"x")
    b = save("b.nii", data=np.ones((8, 9, 10), np.uint8), affine=oblique(offset=(-50.001, 20, 7)))
    image = LoadImage(reader=NiftiReader(), ensure_channel_first=True)([b, a])
    np.testing.assert_array_equal(image[1], read_nifti(a).voxels)
    np.testing.assert_array_equal(image[0], 1)
    lines = [f"{b}: all voxels have one value, 1", f"{a}: 1 bytes after the voxels were passed over"]
    assert image.meta["warnings"].splitlines() == lines
    assert logged(caplog) == lines


def test_a_warning_is_logged_once(save, caplog):
    path = save(tail=b"x")
    load = LoadImage(reader=NiftiReader())
    for _ in range(3):
        assert load(path).meta["warnings"]
    assert logged(caplog) == [f"{path}: 1 bytes after the voxels were passed over"]


def test_batches_of_files_with_more_and_fewer_warnings(save):
    paths = [save("a.nii"), save("b.nii", tail=b"x", bitpix=3)]
    load = LoadImaged("image", reader=NiftiReader(), ensure_channel_first=True)
    (batch,) = DataLoader(Dataset([{"image": p} for p in paths], load), batch_size=2)
    assert [len(item["image"].meta["warnings"].splitlines()) for item in decollate_batch(batch)] == [0, 2]


def test_suffixes():
    reader = NiftiReader()
    assert reader.verify_suffix("t1.nii.gz")
    assert reader.verify_suffix(["a.nii", "b.nii.gz"])
    assert not reader.verify_suffix(["a.nii", "b.mgz"])


@pytest.mark.slow
def test_the_reader_needs_no_monai():
    code = "import sys, monai_vit3d.data.nifti as n; n.read_nifti; print({'monai', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_channels_of_files_or_of_one_file(save):
    data = np.arange(720, dtype=np.int16).reshape(4, 5, 6, 6)[..., :3]
    whole = save("whole.nii.gz", data=data)
    parts = [save(f"{i}.nii", data=data[..., i]) for i in range(3)]
    load = LoadImage(reader=NiftiReader(channels=3), ensure_channel_first=True)
    for given in (whole, [whole], parts):
        image = load(given)
        np.testing.assert_array_equal(image, np.moveaxis(data, 3, 0))
        torch.testing.assert_close(image.affine, load(parts).affine)
    one = LoadImage(reader=NiftiReader(channels=1), ensure_channel_first=True)(parts[1])
    np.testing.assert_array_equal(one, data[None, ..., 1])


@pytest.mark.parametrize(
    ("given", "channels", "words"),
    [
        (["whole.nii"], 2, r"whole.nii: 3 channel\(s\); 2 files of one volume each, or one 4D file of 2 volumes"),
        (["whole.nii", "whole.nii"], 3, r"2 files of 3 volume\(s\)"),
        (["part.nii"], 3, r"part.nii: 1 channel\(s\)"),
        (["part.nii", "whole.nii"], 2, r"2 files of 1, 3 volume\(s\)"),
        (["whole.nii"], 1, r"3 channel\(s\); one 3D volume is expected"),
    ],
)
def test_another_number_of_channels(save, given, channels, words):
    data = np.zeros((4, 5, 6, 3), np.int16)
    paths = {"whole.nii": save("whole.nii", data=data), "part.nii": save("part.nii", data=data[..., 0])}
    with pytest.raises(ImageError, match=words):
        LoadImage(reader=NiftiReader(channels=channels))([paths[name] for name in given])


@pytest.mark.parametrize(
    "options", [{"channels": 0}, {"channels": "2"}, {"channels": True}, {"channels": 2, "volume": 0}]
)
def test_channels_that_are_no_number(options):
    with pytest.raises(UsageError, match="channels="):
        NiftiReader(**options)
