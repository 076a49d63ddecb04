"""Separable resampling against MONAI's Spacing: values, grids, traces and inverses; anything else goes MONAI's way."""

import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor, set_track_meta
from monai.transforms import Compose, Invertd, Orientation, Orientationd, Spacing, Spacingd

from monai_vit3d.bundle.safety import check_config
from monai_vit3d.data import BundleError
from monai_vit3d.transforms import SeparableSpacing, SeparableSpacingd, spacing

SPACINGS_MM = st.sampled_from([0.5, 0.7, 0.9375, 1.0, 1.2, 1.5, 2.0, 2.5, 3.3, 5.0])
_MAKER = ("class", "id")
LINEAR = {"pixdim": (1.5, 1.0, 2.0), "mode": "bilinear"}


def image_of(shape, affine, channels=1, dtype=torch.float32, seed=0):
    values = torch.randn((channels, *shape), generator=torch.Generator().manual_seed(seed)) * 300
    return MetaTensor(values.to(dtype), affine=torch.as_tensor(affine, dtype=torch.float64))


def placed(spacing_mm, codes="RAS", turn=(0, 0, 0), shear=0.0):
    affine = np.diag([*spacing_mm, 1.0])
    affine[0, 1] = shear
    matrix = nib.eulerangles.euler2mat(*turn) @ affine[:3, :3]
    matrix = matrix @ nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (9, 9, 9))[:3, :3]
    return nib.affines.from_matvec(matrix, (12.5, -31.25, 7.0))


def pair(**options):
    return Spacingd("image", **options), SeparableSpacingd("image", **options)


def trace_of(image):
    """The last trace, without who made it."""
    found = dict(image.applied_operations[-1])
    return {key: repr(value).replace("Separable", "Spatial") for key, value in found.items() if key not in _MAKER}


def assert_alike(found, expected, exactly=False):
    limit = 0.0 if exactly else 1e-6 * float(expected.abs().max())
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=limit)
    assert (found.dtype, type(found), found.stride()) == (torch.float32, MetaTensor, expected.stride())
    assert torch.equal(found.affine, expected.affine)
    assert trace_of(found) == trace_of(expected)
    assert {k: repr(v) for k, v in found.meta.items()} == {k: repr(v) for k, v in expected.meta.items()}


@pytest.fixture
def separable(monkeypatch):
    """How many times the fast way was gone."""
    calls, resample = [], spacing._resample

    def count(*args):
        calls.append(args)
        return resample(*args)

    monkeypatch.setattr(spacing, "_resample", count)
    return calls


@pytest.mark.slow
@given(
    shape=st.tuples(*[st.sampled_from([1, 2, 3, 5, 8, 13])] * 3),
    spacing_mm=st.tuples(*[SPACINGS_MM] * 3),
    pixdim=st.tuples(*[SPACINGS_MM] * 3),
    codes=st.sampled_from(["RAS", "LPS", "PIR", "SAL", "ASR"]),
    mode=st.sampled_from(["bilinear", "nearest"]),
    corners=st.booleans(),
    padding=st.sampled_from(["border", "zeros", "reflection"]),
    dtype=st.sampled_from([np.float64, np.float32, None]),
    channels=st.sampled_from([1, 2]),
    diagonal=st.booleans(),
)
def test_values_grids_traces_and_inverses_are_monais(
    shape, spacing_mm, pixdim, codes, mode, corners, padding, dtype, channels, diagonal
):
    image = image_of(shape, placed(spacing_mm, codes), channels)
    options = {"pixdim": pixdim, "mode": mode, "padding_mode": padding, "align_corners": corners, "dtype": dtype}
    chains = [
        Compose([Orientationd("image", axcodes="RAS", labels=None), resample])
        for resample in pair(diagonal=diagonal, **options)
    ]
    expected, found = (chain({"image": image.clone()})["image"] for chain in chains)
    assert_alike(found, expected, exactly=mode == "nearest")
    labels = (found.as_tensor() / 100).round()
    for nearest in (True, False):
        back = []
        for chain, made in zip(chains, (expected, found)):
            invert = Invertd("pred", chain, orig_keys="image", nearest_interp=nearest)
            back.append(invert({"pred": MetaTensor(labels.clone()), "image": made})["pred"])
        limit = 0.0 if nearest else 1e-6 * float(back[0].abs().max())
        np.testing.assert_allclose(back[1].numpy(), back[0].numpy(), rtol=0, atol=limit)
        assert torch.equal(back[1].affine, back[0].affine)
        assert not back[1].applied_operations


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("codes", ["RAS", "PIR", "SAL"])
def test_an_oblique_volume_without_shear_is_separable_too(separable, mode, codes):
    affine = placed((0.9, 1.1, 3.0), codes, turn=(0.1, -0.2, 0.3))
    steps = pair(pixdim=(1.37, 1.03, 2.17), mode=mode)  # no voxel lies in the middle of two
    expected, found = (step({"image": image_of((11, 12, 7), affine)})["image"] for step in steps)
    assert_alike(found, expected, exactly=mode == "nearest")
    assert len(separable) == 1


def test_the_fast_way_is_gone_there_and_back(separable):
    step = SeparableSpacingd("image", **LINEAR)
    image = step({"image": image_of((12, 10, 8), placed((1, 1, 3)))})["image"]
    assert len(separable) == 1
    back = step.inverse({"image": image})["image"]
    assert len(separable) == 2
    assert back.shape == (1, 12, 10, 8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float16, torch.float64, torch.bool])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_types(separable, dtype, mode):
    image = image_of((9, 8, 7), placed((1, 1, 3)), dtype=dtype)
    expected, found = (step({"image": image.clone()})["image"] for step in pair(**LINEAR | {"mode": mode}))
    assert_alike(found, expected, exactly=mode == "nearest")
    assert len(separable) == 1


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, 3.3e38, -3.3e38, 1e38])
@pytest.mark.parametrize("pixdim", [(1.5, 1.0, 2.0), (1.0, 1.0, 1.5), (0.5, 1.0, 3.0)])
def test_odd_values_are_monais(separable, odd, pixdim):
    image = image_of((9, 8, 7), placed((1, 1, 3)))
    image[0, 4, 4, 3], image[0, 5, 4, 3] = odd, -odd / 2  # their difference may leave float32
    expected, found = (step({"image": image.clone()})["image"] for step in pair(**LINEAR | {"pixdim": pixdim}))
    if abs(odd) == 1e38:
        assert_alike(found, expected)
    else:
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
    assert len(separable) == (abs(odd) == 1e38)


@pytest.mark.parametrize("odd", [np.inf, np.nan, 3.3e38])
def test_odd_values_are_copied_by_nearest(separable, odd):
    image = image_of((9, 8, 7), placed((1, 1, 3)))
    image[0, 4, 4, 3] = odd
    expected, found = (step({"image": image.clone()})["image"] for step in pair(**LINEAR | {"mode": "nearest"}))
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    assert len(separable) == 1


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 2, 1), (0, 2, 3, 1), (3, 0, 1, 2)])
def test_any_layout_in_memory(separable, order):
    image = image_of((9, 8, 7), placed((1, 1, 3)), channels=2)
    strided = image.permute(order).contiguous().permute(np.argsort(order).tolist())
    expected, found = (step({"image": strided})["image"] for step in pair(**LINEAR))
    assert_alike(found, expected)
    assert len(separable) == 1


def test_several_keys_with_modes_of_their_own():
    data = {"image": image_of((9, 8, 7), placed((1, 1, 3))), "label": image_of((9, 8, 7), placed((1, 1, 3)), seed=1)}
    options = {"pixdim": (1.5, 1.0, 2.0), "mode": ("bilinear", "nearest")}
    expected, found = (kind(["image", "label"], **options)(data) for kind in (Spacingd, SeparableSpacingd))
    assert_alike(found["image"], expected["image"])
    assert_alike(found["label"], expected["label"], exactly=True)


@pytest.mark.parametrize("options", [{}, {"recompute_affine": True}, {"scale_extent": True, "align_corners": True}])
def test_the_array_transform(separable, options):
    image = image_of((9, 8, 7), placed((1, 1, 3)))
    made = [kind(pixdim=(1.5, 1.0, 2.0), **options) for kind in (Spacing, SeparableSpacing)]
    expected, found = (transform(image) for transform in made)
    assert_alike(found, expected)
    assert len(separable) == 1
    back = [transform.inverse(value) for transform, value in zip(made, (expected, found))]
    np.testing.assert_allclose(back[1].numpy(), back[0].numpy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_one_voxel_off_the_middle_is_not_rounded_elsewhere(mode):
    for size in (2.0, 0.5, 1 / 3, 0.25, 4.0):  # neighbours that are equally near
        image = image_of((17, 16, 15), placed((1, 1, 1)))
        expected, found = (step({"image": image})["image"] for step in pair(pixdim=[size] * 3, mode=mode))
        assert_alike(found, expected, exactly=mode == "nearest")


# MONAI's way


def refused_shear():
    return image_of((9, 8, 7), placed((1, 1, 3), shear=0.01)), {}


def slight_shear():
    return image_of((9, 8, 7), placed((1, 1, 3), shear=3e-7)), {}


def turned_onto_the_world():
    return image_of((9, 8, 7), placed((1, 1, 3), turn=(0.1, 0, 0))), {"diagonal": True}


def swapped_onto_the_world():
    return image_of((9, 8, 7), placed((1, 1, 3), "SAR")), {"diagonal": True}


def nearest_of_a_turned_tie():
    affine = placed((1, 1, 1), turn=(0.1, 0.2, 0.3))
    return image_of((9, 8, 7), affine), {"pixdim": (2.0, 0.5, 0.5), "mode": "nearest"}


def cubic():
    return image_of((9, 8, 7), placed((1, 1, 3))), {"mode": 3, "padding_mode": "nearest"}


def bicubic_by_order_1():
    return image_of((9, 8, 7), placed((1, 1, 3))), {"mode": 1, "padding_mode": "nearest"}


def zeros_outside():
    return image_of((9, 8, 8), placed((1, 1, 3))), {"padding_mode": "zeros", "pixdim": (1.5, 1.5, 1.5)}


def unchanged():
    return image_of((9, 8, 7), placed((1.5, 1.0, 2.0))), {}


def nearly_unchanged():
    return image_of((9, 8, 7), placed((1.5003, 1.0, 2.0))), {}


def flat():
    return MetaTensor(torch.randn(1, 9, 8), affine=torch.eye(3, dtype=torch.float64)), {"pixdim": (0.5, 0.5)}


def half_precision():
    return image_of((9, 8, 7), placed((1, 1, 3)), dtype=torch.float16), {"dtype": np.float16}


def with_a_pending_turn():
    return Orientation("RAS", labels=None, lazy=True)(image_of((9, 8, 7), placed((1, 1, 3), "LPS"))), {}


def no_channels():
    return image_of((9, 8, 7), placed((1, 1, 3)), channels=0), {}


@pytest.mark.parametrize(
    "make",
    [
        refused_shear, slight_shear, turned_onto_the_world, swapped_onto_the_world, nearest_of_a_turned_tie, cubic,
        bicubic_by_order_1, zeros_outside, unchanged, nearly_unchanged, flat, no_channels,
        half_precision, with_a_pending_turn,
    ],
)  # fmt: skip
def test_what_is_not_separable_is_monais_to_the_bit(separable, make):
    image, options = make()
    results = []
    for step in pair(**LINEAR | options):
        try:
            results.append(step({"image": image.clone()})["image"])
        except Exception as error:  # of MONAI, in its words
            results.append(repr(error))
    expected, found = results
    assert not separable
    if isinstance(expected, str):
        assert found == expected
        return
    assert_alike(found, expected, exactly=True)


def test_a_part_of_a_gradient_is_monais(separable):
    image = image_of((9, 8, 7), placed((1, 1, 3))).requires_grad_()
    SeparableSpacingd("image", **LINEAR)({"image": image})["image"].sum().backward()
    assert not separable
    assert image.grad is not None


def test_without_metadata_it_is_monais(separable):
    image = torch.randn(1, 9, 8, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns that the affine is not known
        expected, found = (step({"image": image.clone()})["image"] for step in pair(**LINEAR))
        set_track_meta(False)
        try:
            plain = SeparableSpacingd("image", **LINEAR)({"image": image_of((9, 8, 7), placed((1, 1, 3)))})["image"]
        finally:
            set_track_meta(True)
    assert torch.equal(found, expected)
    assert type(plain) is torch.Tensor
    assert not separable


def test_lazy_is_monais(separable):
    image = image_of((9, 8, 7), placed((1, 1, 3), "LPS"))
    chains = [Compose([Orientationd("image", axcodes="RAS", labels=None), step], lazy=True) for step in pair(**LINEAR)]
    expected, found = (chain({"image": image.clone()})["image"] for chain in chains)
    assert torch.equal(found, expected)
    assert not separable


@pytest.mark.parametrize("kind", [Spacingd, SeparableSpacingd])
def test_a_singular_affine_has_monais_error(kind):
    image = image_of((9, 8, 7), np.diag([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises((ValueError, np.linalg.LinAlgError, RuntimeError)):
        kind("image", **LINEAR)({"image": image})


@pytest.mark.parametrize(
    "name", ["transforms.SeparableSpacingd", "transforms.spacing.SeparableSpacing", "data.SeparableResample"]
)
def test_safe_mode_lets_it_pass(name):
    check_config({"preprocessing": {"_target_": f"monai_vit3d.{name}", "pixdim": 1.0}}, ["preprocessing"])


def test_safe_mode_lets_nothing_else_pass():
    with pytest.raises(BundleError, match=r"monai_vit3d.transforms.axis_resampling.AxisInterp"):
        check_config(
            {"preprocessing": {"_target_": "monai_vit3d.transforms.axis_resampling.AxisInterp"}}, ["preprocessing"]
        )
