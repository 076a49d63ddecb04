"""Band-wise stitching against MONAI's sliding windows, bit for bit, and how high its bands are."""

from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from torch import nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.inferers import AutocastInferer, CannotStitch, SpacingInferer, can_stitch, stitch_windows

MODES = ["constant", "gaussian"]


class Net(nn.Module):
    """A convolution over each window's standardised voxels, so that window, batch and stride all leave a trace."""

    def __init__(self, channels=1, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.seen = nn.Conv3d(channels, classes, 3, padding=1), []

    def forward(self, x):
        assert type(x) is torch.Tensor
        self.seen.append(tuple(x.shape))
        return self.conv((x - x.mean()) / x.std())


def volume(*size, channels=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(1, channels, *size, generator=generator, dtype=dtype)


def same(x):
    return x


def labels(x):
    return x.argmax(1, keepdim=True).to(torch.uint8)


def check(image, inferer, net=None, reduce=same):
    """Stitch with both; the results are equal, and the network saw the same batches. Returns ours."""
    net = net or Net(image.shape[1])
    with torch.no_grad():
        expected = reduce(inferer(image, net))
    batches, net.seen[:] = list(net.seen), []
    result = stitch_windows(image, net, inferer, reduce)
    assert net.seen == batches
    assert type(result) is torch.Tensor
    assert result.dtype is expected.dtype
    assert torch.equal(result, torch.as_tensor(expected))
    return result


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75, (0.5, 0, 0.25), (0, 0.75, 0.9)])
def test_every_bit_is_monais(overlap, batch, mode):
    inferer = SlidingWindowInferer((8, 6, 7), batch, overlap, mode)
    result = check(volume(19, 13, 11), inferer)
    assert result.isfinite().all()
    assert result.std() > 0.1
    assert len(check(volume(19, 13, 11), inferer, reduce=labels).unique()) == 3


class Counted(nn.Module):
    """A convolution, and how often it ran."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.runs = nn.Conv3d(2, 3, 3, padding=1), 0

    def forward(self, x):
        self.runs += 1
        return self.conv(x)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_air_is_answered_once(batch):
    image = volume(12, 12, 24, channels=2)
    image[:, 0, :, :, :12], image[:, 1, :, :, :12] = -1000.0, 3.0
    image[:, :, :4, :4, :12] = 0.0  # air of another value
    image[:, :, :4, 8:, :12] = float("nan")  # a value that equals nothing
    inferer, net = SlidingWindowInferer((4, 4, 4), batch, overlap=0), Counted().eval()
    with torch.no_grad():
        expected = inferer(image, net)
    plainly, net.runs = net.runs, 0
    found = stitch_windows(image, net, inferer, same)
    np.testing.assert_array_equal(found, expected)
    assert net.runs < 0.85 * plainly
    assert plainly == -(-54 // batch)


@pytest.mark.parametrize("training", ["the network", "a part of it", "nothing is known"])
def test_air_is_run_each_time_where_answers_may_differ(training):
    net, inferer = Counted().eval(), SlidingWindowInferer((4, 4, 4), 1, overlap=0)
    if training == "the network":
        net.train()
    if training == "a part of it":
        net.conv.train()
    stitch_windows(
        torch.zeros(1, 2, 8, 8, 8), (lambda x: net(x)) if training == "nothing is known" else net, inferer, same
    )
    assert net.runs == 8


@given(
    size=st.tuples(*[st.integers(1, 14)] * 3),
    roi=st.tuples(*[st.integers(2, 8)] * 3),
    batch=st.integers(1, 5),
    overlap=st.tuples(*[st.floats(0, 0.99)] * 3),
    mode=st.sampled_from(MODES),
)
def test_every_bit_is_monais_for_any_size(size, roi, batch, overlap, mode):
    check(volume(*size), SlidingWindowInferer(roi, batch, overlap, mode))


@pytest.mark.parametrize("size", [(5, 13, 11), (19, 3, 11), (19, 13, 4), (6, 4, 5), (8, 6, 7)])
@pytest.mark.parametrize(("padding", "cval"), [("constant", -2.5), ("reflect", 0), ("replicate", 0), ("circular", 0)])
def test_a_volume_smaller_than_the_window_is_padded_and_cropped(size, padding, cval):
    inferer = SlidingWindowInferer((8, 6, 7), 3, 0.5, "gaussian", padding_mode=padding, cval=cval)
    assert check(volume(*size), inferer).shape == (1, 3, *size)


@pytest.mark.parametrize("roi", [(-1, 6, 7), (8, None, 7), (8, 0, -1), (-1, -1, -1), 6, [8, 6, 7]])
def test_window_sizes_that_follow_the_image(roi):
    check(volume(19, 13, 11), SlidingWindowInferer(roi, 2, 0.5, "gaussian"))


def test_sigma_and_a_cached_weight_map():
    image = volume(19, 13, 11)
    wide = check(image, SlidingWindowInferer((8, 6, 7), 2, 0.5, "gaussian", sigma_scale=(0.5, 0.25, 0.3)))
    narrow = check(image, SlidingWindowInferer((8, 6, 7), 2, 0.5, "gaussian"))
    assert not torch.equal(wide, narrow)
    inferer = SlidingWindowInferer((8, 6, 7), 2, 0.5, "gaussian", cache_roi_weight_map=True)
    assert torch.equal(check(image, inferer), narrow)
    inferer.roi_weight_map = torch.rand(8, 6, 7) + 0.1
    assert not torch.equal(check(image, inferer), narrow)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_reduced_precision_is_rounded_where_monai_rounds(dtype, mode):
    image = volume(19, 13, 11)
    inferer = SlidingWindowInferer((8, 6, 7), 3, 0.5, mode)
    reduced = check(image, AutocastInferer(inferer, dtype))
    assert reduced.dtype is torch.float32
    assert 0 < (reduced - check(image, AutocastInferer(inferer, dtype, enabled=False))).abs().max() < 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_sums_have_the_images_type(dtype):
    inferer = SlidingWindowInferer((8, 6, 7), 3, 0.5, "gaussian")
    assert check(volume(19, 13, 11, dtype=dtype), inferer, Net().to(dtype)).dtype is dtype


def test_autocast_hands_out_float32_from_sums_in_bfloat16():
    image = volume(19, 13, 11, dtype=torch.bfloat16)
    inferer = AutocastInferer(SlidingWindowInferer((8, 6, 7), 1, 0.5, "gaussian"))
    result = check(image, inferer)
    assert result.dtype is torch.float32
    assert torch.equal(result, result.bfloat16().float())


def test_several_channels_metadata_and_strides():
    inferer = SlidingWindowInfererAdapt((8, 6, 7), 1, 0.25, "gaussian")
    image = MetaTensor(volume(13, 19, 11, channels=4).transpose(2, 3), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    assert check(image, inferer, Net(4, 5)).shape == (1, 5, 19, 13, 11)
    assert check(image, inferer, Net(4, 5), labels).shape == (1, 1, 19, 13, 11)


def test_the_image_is_left_as_it_was():
    image = volume(19, 13, 11)
    before = image.clone()
    result = stitch_windows(image, nn.Identity(), SlidingWindowInferer((8, 6, 7), 1, 0.5, "gaussian"), same)
    assert torch.equal(image, before)
    torch.testing.assert_close(result, image)


@given(
    height=st.integers(1, 40),
    roi=st.integers(2, 9),
    overlap=st.floats(0, 0.9),
    batch=st.integers(1, 7),
)
def test_planes_are_handed_out_once_in_order_and_few_at_a_time(height, roi, overlap, batch):
    """What is summed up at a time is a window high, however high the volume is."""
    image, parts = volume(height, 5, 5), []

    def spy(planes):
        # a view of the band, whose storage is all that is summed up: 3 classes and the weights
        assert planes.untyped_storage().nbytes() == 4 * (3 + 1) * roi * 5 * 5
        parts.append(planes.clone())
        return planes

    result = stitch_windows(image, Net(), SlidingWindowInferer((roi, 4, 4), batch, (overlap, 0.5, 0)), spy)
    assert torch.equal(torch.cat(parts, 2), result)
    assert result.shape[2] == height
    assert all(part.shape[2] <= roi for part in parts)
    step = max(int(roi * (1 - overlap)), 1)
    assert len(parts) == 1 + max(0, ceil((height - roi) / step))


def test_planes_leave_before_the_next_windows_run():
    order = []

    def net(x):
        order.append("network")
        return x + 1

    def spy(planes):
        order.append(planes.shape[2])
        return planes

    stitch_windows(volume(16, 4, 4), net, SlidingWindowInferer((4, 4, 4), 1, 0), spy)
    assert order == ["network", "network", 4, "network", 4, "network", 4, 4]


class Other(SlidingWindowInferer):
    pass


WINDOW = {"roi_size": (4, 4, 4)}


@pytest.mark.parametrize(
    ("inferer", "answer"),
    [
        (SlidingWindowInferer(**WINDOW), True),
        (SlidingWindowInfererAdapt(**WINDOW), True),
        (AutocastInferer(SlidingWindowInferer(**WINDOW)), True),
        (AutocastInferer(SlidingWindowInferer(**WINDOW), enabled=False), True),
        (SlidingWindowInferer(**WINDOW, buffer_steps=0), True),
        (SlidingWindowInferer(**WINDOW, buffer_steps=2), False),
        (SlidingWindowInferer(**WINDOW, with_coord=True), False),
        (AutocastInferer(SlidingWindowInferer(**WINDOW, with_coord=True)), False),
        (AutocastInferer(AutocastInferer(SlidingWindowInferer(**WINDOW))), True),
        (SpacingInferer(AutocastInferer(SlidingWindowInferer(**WINDOW))), True),
        (AutocastInferer(SpacingInferer(SlidingWindowInferer(**WINDOW))), True),
        (type("Mine", (SpacingInferer,), {})(SlidingWindowInferer(**WINDOW)), False),
        (AutocastInferer(), False),
        (SimpleInferer(), False),
        (Other(**WINDOW), False),
        (type("Mine", (AutocastInferer,), {})(SlidingWindowInferer(**WINDOW)), False),
    ],
)
def test_what_can_be_stitched(inferer, answer):
    assert isinstance(inferer, Inferer)
    assert can_stitch(inferer) is answer
    if not answer:
        with pytest.raises(UsageError, match="can_stitch"):
            stitch_windows(volume(6, 6, 6), Net(), inferer, same)
    else:
        check(volume(6, 6, 6), inferer)


@pytest.mark.parametrize(
    ("net", "found"),
    [
        (lambda x: (x, x), "a tuple for 2 windows"),
        (lambda x: [x], "a list for 2 windows"),
        (lambda x: {"out": x}, "a dict for 2 windows"),
        (lambda x: x[..., ::2], r"float32 \(2, 1, 4, 4, 2\) for 2 windows \(4, 4, 4\)"),
        (lambda x: x.flatten(1), r"\(2, 64\)"),
        (lambda x: x[:1], r"\(1, 1, 4, 4, 4\)"),
        (lambda x: x > 0, "bool"),
    ],
)
def test_outputs_that_are_no_window(net, found):
    with pytest.raises(CannotStitch, match=rf"network: .*{found}.* one floating-point tensor \(2, K, 4, 4, 4\)"):
        stitch_windows(volume(6, 6, 6), net, SlidingWindowInferer((4, 4, 4), 2), same)


def test_the_windows_whose_output_is_none_are_named():
    def net(x):
        return x.squeeze(0)  # nothing for 3 windows, too much for the last one

    assert issubclass(CannotStitch, UsageError)
    with pytest.raises(CannotStitch, match=r"\(1, 4, 4, 4\) for 1 windows \(4, 4, 4\) after 3 of 4; "):
        stitch_windows(volume(16, 4, 4), net, SlidingWindowInferer((4, 4, 4), 3, 0), same)


@pytest.mark.parametrize("overlap", [1, -0.25, (0, 0.5, 1.5)])
def test_overlaps_out_of_range(overlap):
    with pytest.raises(UsageError, match="overlap=") as caught:
        stitch_windows(volume(6, 6, 6), Net(), SlidingWindowInferer((4, 4, 4), overlap=overlap), same)
    assert not isinstance(caught.value, CannotStitch)


@pytest.mark.parametrize("reduce", [lambda x: x.argmax(1), lambda x: x[:, :, :1], lambda x: x.sum()])
def test_a_reduction_that_loses_an_axis(reduce):
    with pytest.raises(UsageError, match=r"reduce: .*only channels may change") as caught:
        stitch_windows(volume(6, 6, 6), Net(), SlidingWindowInferer((4, 4, 4)), reduce)
    assert not isinstance(caught.value, CannotStitch)


def test_a_batch_of_images():
    with pytest.raises(ValueError, match="2 in a batch"):
        stitch_windows(torch.zeros(2, 1, 6, 6, 6), Net(), SlidingWindowInferer((4, 4, 4)), same)
