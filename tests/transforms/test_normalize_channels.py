"""NormalizeChannelsd against numpy in float64 and MONAI's own transforms."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import NormalizeIntensity, ScaleIntensityRange

from monai_vit3d.data import UsageError
from monai_vit3d.transforms import NormalizeChannelsd

CLIP = {"scheme": "clip_z", "low": -160.0, "high": 240.0, "mean": 42.0, "std": 61.5}


@pytest.fixture
def image():
    """CT, MR with a background of 0, PET with std 0.002."""
    rng = np.random.default_rng(0)
    ct, mr, pet = rng.normal(40, 300, (9, 8, 7)), rng.normal(500, 80, (9, 8, 7)), rng.normal(0.004, 0.002, (9, 8, 7))
    mr[:4] = 0
    return torch.tensor(np.stack([ct, mr, pet]), dtype=torch.float32)


def test_each_channel_has_its_own_scheme(image):
    steps = NormalizeChannelsd("image", [CLIP, {"scheme": "z_nonzero"}, {"scheme": "z"}])
    ct, mr, pet = steps({"image": image})["image"].numpy()
    values = image.numpy().astype(np.float64)
    np.testing.assert_allclose(ct, (values[0].clip(-160, 240) - 42) / 61.5, atol=1e-5)
    foreground = values[1] != 0
    expected = np.where(foreground, (values[1] - values[1][foreground].mean()) / values[1][foreground].std(), 0)
    np.testing.assert_allclose(mr, expected, atol=1e-4)
    np.testing.assert_allclose(pet, (values[2] - values[2].mean()) / values[2].std(), atol=1e-4)


def test_schemes_are_monais(image):
    steps = NormalizeChannelsd("image", [CLIP, {"scheme": "z_nonzero"}, {"scheme": "z"}])
    ct, mr, pet = steps({"image": image})["image"]
    scale = ScaleIntensityRange(-160, 240, (-160 - 42) / 61.5, (240 - 42) / 61.5, clip=True)
    torch.testing.assert_close(ct, torch.as_tensor(scale(image[0])), atol=1e-5, rtol=0)
    torch.testing.assert_close(mr, torch.as_tensor(NormalizeIntensity(nonzero=True)(image[1])), atol=1e-4, rtol=0)
    torch.testing.assert_close(pet, torch.as_tensor(NormalizeIntensity()(image[2])), atol=1e-4, rtol=0)


def test_large_volumes_at_cts_scale_stay_exact():
    values = torch.full((1, 160, 160, 160), 30000.0)
    values[0, ::2] = 30001.0
    result = NormalizeChannelsd("image", [{"scheme": "z"}])({"image": values})["image"]
    np.testing.assert_allclose(np.unique(result.numpy()), [-1, 1], atol=5e-3)


def test_metadata_and_the_input_stay(image):
    source = MetaTensor(image.clone(), affine=torch.diag(torch.tensor([2.0, 2, 3, 1])))
    item = {"image": source, "label": 1}
    result = NormalizeChannelsd("image", [{"scheme": "z"}] * 3)(item)
    assert torch.equal(torch.as_tensor(source), image)
    assert isinstance(result["image"], MetaTensor)
    assert torch.equal(result["image"].affine, source.affine)
    assert result["label"] == 1
    assert item["image"] is source


@pytest.mark.parametrize("value", [0.0, 7.0])
@pytest.mark.parametrize("scheme", ["z", "z_nonzero"])
def test_a_constant_image_becomes_zero(scheme, value):
    result = NormalizeChannelsd("image", [{"scheme": scheme}])({"image": torch.full((1, 4, 4, 4), value)})["image"]
    assert torch.equal(result, torch.zeros(1, 4, 4, 4))


def test_whole_numbers_are_normalised_as_float():
    image = torch.arange(64, dtype=torch.int16).reshape(1, 4, 4, 4)
    result = NormalizeChannelsd("image", [{"scheme": "z"}])({"image": image})["image"]
    assert result.dtype == torch.float32
    assert float(result.std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ({"scheme": "minmax"}, "scheme 'minmax'; expected one of clip_z, z, z_nonzero"),
        ({"scheme": "z", "low": 1}, "scheme 'z' has .'scheme'., no more and no less"),
        ({"scheme": "clip_z", "low": 0}, "no more and no less"),
        ({**CLIP, "std": 0}, "std above 0"),
        ({**CLIP, "high": -160.0}, "low below high"),
    ],
)
def test_a_scheme_that_cannot_be_is_refused(channel, message):
    with pytest.raises(UsageError, match=message):
        NormalizeChannelsd("image", [{"scheme": "z"}, channel])


def test_another_number_of_channels_is_refused():
    with pytest.raises(UsageError, match="channels has 2 schemes, the image has 1 channels"):
        NormalizeChannelsd("image", [{"scheme": "z"}] * 2)({"image": torch.zeros(1, 2, 2, 2)})
