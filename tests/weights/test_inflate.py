"""Inflated kernels and positions give what the 2D ones give, on each slice axis; none is divided by the depth."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv

from monai_vit3d.data.errors import UsageError, WeightsError
from monai_vit3d.layers import resample_patch_kernel
from monai_vit3d.weights.inflate import (
    INFLATE_KERNELS,
    INFLATE_POSITIONS,
    adapt_channels,
    fit_kernel,
    inflate_kernel,
    inflate_positions,
)
from tests.helpers import randn

AXES = (0, 1, 2)


@given(st.integers(1, 7), st.sampled_from(INFLATE_KERNELS), st.sampled_from(AXES))
def test_a_kernel_sums_to_the_2d_one_and_is_symmetric(depth, mode, axis):
    weight = randn(4, 3, 2, 5)
    kernel = inflate_kernel(weight, depth, mode, axis)
    assert kernel.shape[2 + axis] == depth
    assert kernel.dtype == torch.float64
    torch.testing.assert_close(kernel.sum(2 + axis), weight, rtol=0, atol=1e-14)
    if mode != "center":
        torch.testing.assert_close(kernel, kernel.flip(2 + axis), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("mode", "shares"), [
    ("mean", [[1], [1 / 2, 1 / 2], [1 / 3, 1 / 3, 1 / 3], [1 / 4] * 4]),
    ("center", [[1], [0, 1], [0, 1, 0], [0, 0, 1, 0]]),
    ("trilinear", [[1], [1 / 2, 1 / 2], [1 / 4, 1 / 2, 1 / 4], [1 / 6, 1 / 3, 1 / 3, 1 / 6]]),
])  # fmt: skip
def test_what_each_plane_gets(mode, shares):
    weight = randn(2, 1, 3, 4)
    for share in shares:
        want = weight.numpy()[..., None] * np.array(share)
        np.testing.assert_allclose(inflate_kernel(weight, len(share), mode).numpy(), want, atol=1e-15)


@given(st.integers(1, 4), st.sampled_from(INFLATE_KERNELS), st.sampled_from(AXES), st.integers(1, 3))
def test_a_constant_volume_gives_the_tokens_of_its_slice(depth, mode, axis, slices):
    image, weight = randn(1, 2, 4, 9, seed=1), randn(4, 2, 2, 3)
    volume = image.unsqueeze(2 + axis).repeat_interleave(depth * slices, 2 + axis)
    kernel = inflate_kernel(weight, depth, mode, axis)
    tokens = F.conv3d(volume, kernel, stride=kernel.shape[2:])
    want = F.conv2d(image, weight, stride=(2, 3)).unsqueeze(2 + axis)
    torch.testing.assert_close(tokens, want.expand_as(tokens), rtol=0, atol=1e-12)


@given(st.integers(1, 5), st.sampled_from(AXES))
def test_center_gives_the_tokens_of_one_slice_of_any_volume(depth, axis):
    size = [4, 6]
    size.insert(axis, 2 * depth)
    volume, weight = randn(1, 1, *size, seed=1), randn(4, 1, 2, 3)
    kernel = inflate_kernel(weight, depth, "center", axis)
    tokens = F.conv3d(volume, kernel, stride=kernel.shape[2:])
    for i in (0, 1):
        want = F.conv2d(volume.select(2 + axis, i * depth + depth // 2), weight, stride=(2, 3))
        torch.testing.assert_close(tokens.select(2 + axis, i), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 6, 7])
def test_channels_are_adapted_as_timm_does(in_chans):
    weight = randn(4, 3, 2, 5)
    torch.testing.assert_close(adapt_channels(weight, in_chans), adapt_input_conv(in_chans, weight), rtol=0, atol=1e-6)
    assert adapt_channels(weight.half(), in_chans).dtype == torch.float16


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("plane", [(4, 6), (7, 5), (8, 12)])
def test_another_patch_size_in_the_plane_is_timms_pseudo_inverse(axis, plane):
    weight = randn(3, 2, 4, 6)
    patch = list(plane)
    patch.insert(axis, 5)
    kernel = fit_kernel(weight, patch, 2, "trilinear", axis)
    flexi = resample_patch_embed(weight, list(plane), interpolation="bilinear", antialias=False)
    assert list(kernel.shape[2:]) == patch
    torch.testing.assert_close(kernel.sum(2 + axis), flexi, rtol=0, atol=1e-5)  # timm works in float32


def test_a_3d_kernel_is_resized_and_not_inflated_again():
    weight = randn(3, 1, 4, 4, 2)
    want = resample_patch_kernel(weight, (6, 4, 4))
    assert torch.equal(fit_kernel(weight, (6, 4, 4), 1, "mean", 0), want)


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    st.integers(0, 3), st.sampled_from(AXES), st.sampled_from(INFLATE_POSITIONS),
)  # fmt: skip
def test_every_slice_has_the_2d_positions_undivided(grid, prefix, axis, mode):
    plane = [n for i, n in enumerate(grid) if i != axis]
    pos = randn(1, prefix + plane[0] * plane[1], 5)
    found = inflate_positions(pos, plane, grid, prefix, mode, axis)
    assert torch.equal(found[:, :prefix], pos[:, :prefix])
    table = found[0, prefix:].numpy().reshape(*grid, 5)  # D fastest
    image = pos[0, prefix:].numpy().reshape(*plane, 5)
    np.testing.assert_allclose(table.mean(axis), image, atol=1e-14)
    if mode == "repeat" or grid[axis] == 1:
        for i in range(grid[axis]):
            np.testing.assert_array_equal(table.take(i, axis), image)


@pytest.mark.parametrize("axis", AXES)
def test_factored_positions_differ_from_slice_to_slice_by_one_term(axis):
    grid = [3, 4]
    pos = randn(1, 1 + 12, 6)
    volume = list(grid)
    volume.insert(axis, 4)
    table = inflate_positions(pos, grid, volume, 1, "factored", axis)[0, 1:].reshape(*volume, 6).movedim(axis, 0)
    terms = table - table.mean(0)
    torch.testing.assert_close(terms, terms[:, :1, :1].expand_as(terms), rtol=0, atol=1e-14)
    image = pos[0, 1:].reshape(3, 4, 6)
    columns = image.mean(0)  # 4 of them: no resampling
    places = (np.arange(4) + 0.5) * 3 / 4 - 0.5  # of 4 slices among 3 rows, clamped at the ends
    rows = np.stack([np.interp(places, np.arange(3), image.mean(1)[:, e].numpy()) for e in range(6)], 1)
    want = (rows + columns.numpy()) / 2
    np.testing.assert_allclose(terms[:, 0, 0].numpy(), want - want.mean(0), atol=1e-14)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_another_grid_in_the_plane_is_bicubic_antialiased_float32(axis, dtype):
    pos = randn(1, 2 + 12, 5).to(dtype)
    volume = [2, 5]
    volume.insert(axis, 3)
    found = inflate_positions(pos, (4, 3), volume, 2, "repeat", axis)
    image = pos[0, 2:].float().reshape(4, 3, 5).permute(2, 0, 1)[None]
    want = F.interpolate(image, size=(2, 5), mode="bicubic", antialias=True)[0].permute(1, 2, 0)
    table = found[0, 2:].reshape(*volume, 5)
    assert found.dtype == dtype
    assert torch.equal(found[:, :2], pos[:, :2])
    for i in range(3):
        torch.testing.assert_close(table.select(axis, i), want.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(("call", "error", "match"), [
    (lambda: inflate_kernel(randn(2, 1, 3, 3), 2, "median"), UsageError, "kernel='median'"),
    (lambda: inflate_kernel(randn(2, 1, 3, 3), 2, "mean", 3), UsageError, "axis=3"),
    (lambda: inflate_kernel(randn(2, 1, 3, 3), 0), UsageError, "depth=0"),
    (lambda: inflate_kernel(randn(2, 1, 3), 2), WeightsError, r"\(2, 1, 3\)"),
    (lambda: fit_kernel(randn(2, 1, 3), 3, 1), WeightsError, r"\(2, 1, 3\)"),
    (lambda: fit_kernel(randn(2, 1, 3, 3), 3, 1, "mean", -1), UsageError, "axis=-1"),
    (lambda: adapt_channels(randn(2, 1, 3, 3), 0), UsageError, "in_chans=0"),
    (lambda: inflate_positions(randn(1, 4, 2), (2, 2), (2, 2, 2), 0, "divide"), UsageError, "positions='divide'"),
    (lambda: inflate_positions(randn(1, 4, 2), (2, 2), (2, 2, 2), 0, "repeat", 5), UsageError, "axis=5"),
    (lambda: inflate_positions(randn(1, 5, 2), (2, 2), (2, 2, 2), 0), WeightsError, "need 4 positions"),
])  # fmt: skip
def test_what_cannot_be_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()
