"""Rotations and scales at test time against SciPy's resampling in float64."""

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation
from torch import nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.inferers import AffineEnsemble, FlipEnsemble


def network():
    torch.manual_seed(0)
    layers = nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 2, 3, padding=1)
    return nn.Sequential(*layers).double().requires_grad_(False)


def volume(*shape):
    return torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def seen(array, matrix, mode):
    """The array at ``matrix`` times each voxel's place from the centre, in each of its channels."""
    middle = (np.array(array.shape[2:]) - 1) / 2
    channels = [
        affine_transform(channel, matrix, middle - matrix @ middle, order=1, mode=mode)
        for channel in array.reshape(-1, *array.shape[2:])
    ]
    return np.stack(channels).reshape(array.shape)


def views(degrees, scales):
    for axis, angle in enumerate(degrees):
        for sign in (1, -1) if angle else ():
            yield Rotation.from_rotvec(np.radians(sign * angle) * np.eye(3)[axis]).as_matrix()
    for factor in scales:
        yield np.eye(3) / factor


@pytest.mark.parametrize(
    ("degrees", "scales"), [((8, 0, 0), ()), ((0, 20, 5), ()), ((0, 0, 0), (0.8, 1.25)), ((8, 8, 8), (0.92, 1.08))]
)
def test_the_mean_of_views_that_are_resampled_back(degrees, scales):
    net, x = network(), volume(9, 12, 7)
    total, count = net(x).numpy(), np.ones((2, 1, 9, 12, 7))
    for matrix in views(degrees, scales):
        output = net(torch.from_numpy(seen(x.numpy(), matrix, "nearest"))).numpy()
        total = total + seen(output, np.linalg.inv(matrix), "grid-constant")
        count = count + seen(np.ones((2, 1, 9, 12, 7)), np.linalg.inv(matrix), "grid-constant")
    np.testing.assert_allclose(AffineEnsemble(net, degrees, scales)(x).numpy(), total / count, rtol=0, atol=1e-9)
    assert np.abs(total / count - net(x).numpy()).max() > 0.01


def test_a_linear_ramp_stays_where_all_views_show_it():
    x = torch.arange(21.0)[None, None, :, None, None].expand(1, 1, 21, 21, 21)
    out = AffineEnsemble(nn.Identity(), (8, 8, 8), (0.9, 1.1))(x)
    torch.testing.assert_close(out[..., 6:15, 6:15, 6:15], x[..., 6:15, 6:15, 6:15])


def test_without_views_it_is_the_network():
    net, x = network(), volume(6, 5, 4)
    assert torch.equal(AffineEnsemble(net)(x), net(x))


def test_vectors_are_averaged():
    net, x = (lambda x: x.amax((2, 3, 4))), volume(6, 5, 8)
    outputs = [x.amax((2, 3, 4)).numpy()]
    outputs += [seen(x.numpy(), matrix, "nearest").max((2, 3, 4)) for matrix in views((0, 8, 0), (1.1,))]
    np.testing.assert_allclose(AffineEnsemble(net, (0, 8, 0), (1.1,))(x).numpy(), np.mean(outputs, 0), atol=1e-12)


def test_each_flip_has_all_views():
    net, x = network(), volume(6, 5, 8)
    views = AffineEnsemble(net, (8, 0, 0))
    expected = (views(x) + views(x.flip(2)).flip(2)) / 2
    torch.testing.assert_close(FlipEnsemble(views, (0,))(x), expected)


@pytest.mark.parametrize(
    ("degrees", "scales", "text"),
    [
        ((8, 8), (), r"degrees=\[8, 8\]; expected three angles of less than 90"),
        ((8, 8, 90), (), r"degrees=\[8, 8, 90\]; expected three angles"),
        ((8, 8, float("nan")), (), r"degrees=.*; expected three angles"),
        ((8, 8, 8), (0.0,), r"scales=\[0.0\]; expected factors above 0"),
    ],
)
def test_views_that_cannot_be(degrees, scales, text):
    with pytest.raises(UsageError, match=text):
        AffineEnsemble(nn.Identity(), degrees, scales)


def test_other_inputs_and_outputs():
    with pytest.raises(UsageError, match=r"input \(1, 1, 4, 4\); expected \(B, C, H, W, D\)"):
        AffineEnsemble(nn.Identity(), (8, 8, 8))(torch.zeros(1, 1, 4, 4))
    with pytest.raises(UsageError, match=r"network: \(1, 1, 2, 2, 2\); expected one tensor, a map of the input's size"):
        AffineEnsemble(nn.AvgPool3d(2), (8, 8, 8))(torch.zeros(1, 1, 4, 4, 4))
