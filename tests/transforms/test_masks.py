"""Masks are told from scans, and a box around a structure's centre of mass is cut and put back, against scipy."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import center_of_mass

from monai_vit3d.data import ImageError
from monai_vit3d.transforms import BinaryMaskd, CropAroundMass, CropAroundMassd


def mask_at(start, sides=(5, 7, 4), shape=(40, 50, 30)):
    """A skew wedge in a scan, so that its centre of mass is not the middle of its box."""
    scan = np.zeros((1, *shape), np.float32)
    wedge = np.indices(sides).sum(0) < 9
    place = tuple(slice(a, a + n) for a, n in zip(start, sides))
    scan[0][place] = wedge
    return torch.from_numpy(scan)


@pytest.mark.parametrize("value", [1, 255, 0.25])
def test_a_mask_of_any_value_becomes_0_and_1(value):
    mask = mask_at((3, 4, 5))
    found = BinaryMaskd("image")({"image": MetaTensor(mask * value), "other": 1})
    assert torch.equal(torch.as_tensor(found["image"]), mask)
    assert found["image"].dtype == torch.float32
    assert isinstance(found["image"], MetaTensor)
    assert found["other"] == 1


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (torch.rand(1, 4, 4, 4) + 0.5, "values from 0.5"),
        (torch.tensor([[0.0, 1.0, 2.0]]), "values from 1 to 2"),
        (torch.tensor([[0.0, -1.0, -1.0]]), "values from -1 to -1"),
        (torch.tensor([[0.0, float("nan"), 1.0]]), "values from nan"),
        (torch.zeros(1, 4, 4, 4), "0 alone"),
    ],
)
def test_what_is_no_mask_is_refused(image, found):
    with pytest.raises(ImageError, match=f"an image with {found}.*expected a binary mask of one structure"):
        BinaryMaskd("image")({"image": image})


@pytest.mark.parametrize("start", [(10, 20, 12), (0, 0, 0), (35, 43, 26)])
@pytest.mark.parametrize("roi_size", [16, (9, 12, 10)])
def test_the_box_holds_the_centre_of_mass_in_its_middle(start, roi_size):
    mask = mask_at(start)
    box = CropAroundMass(roi_size)(mask)
    sides = np.broadcast_to(roi_size, 3)
    assert box.shape == (1, *sides)
    assert box.sum() == mask.sum()
    middle = np.array(center_of_mass(box[0].numpy())) - sides // 2
    assert ((middle >= 0) & (middle < 1)).all()


def test_the_grid_and_the_way_back():
    affine = torch.tensor([[0.0, -2, 0, 30], [1.5, 0, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]], dtype=torch.float64)
    scan = MetaTensor(mask_at((34, 1, 12)), affine=affine)
    cut = CropAroundMassd("image", 16)
    item = cut({"image": scan})
    box = item["image"]
    first = np.argwhere(box[0].numpy())[0]
    source = np.argwhere(scan[0].numpy())[0]
    np.testing.assert_allclose(box.affine.numpy()[:3] @ [*first, 1], affine.numpy()[:3] @ [*source, 1])
    back = cut.inverse(item)["image"]
    assert torch.equal(torch.as_tensor(back), torch.as_tensor(scan))
    assert torch.equal(back.affine, affine)


def test_an_image_without_mass_is_refused():
    with pytest.raises(ImageError, match="no voxel above 0; expected a mask"):
        CropAroundMass(8)(torch.zeros(1, 9, 9, 9))
