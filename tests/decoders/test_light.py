"""The light decoder: equal to products written out, token by token; the image only where it is asked for."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor, decollate_batch, list_data_collate
from torch import nn

from monai_vit3d.decoders import DECODERS, create_decoder
from monai_vit3d.decoders.stages import level_strides, up_strides
from tests.decoders.decoder_parts import fresh, idle, maps_for, noise, noisy


def layer_norm(x, norm):
    """Of the last axis, in numpy."""
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    return scaled * norm.weight.detach().double().numpy() + norm.bias.detach().double().numpy()


def up(x, conv, factor):
    """``(H, W, D, C)`` by the transposed convolution as a product and a rearrangement, in numpy."""
    weight = conv.weight.detach().double().numpy()  # (in, out, fx, fy, fz)
    y = np.einsum("hwdi,ioabc->hawbdco", x, weight) + conv.bias.detach().double().numpy()
    return y.reshape(*(n * f for n, f in zip(x.shape, factor)), weight.shape[1])


@pytest.mark.parametrize("patch", [(2, 2, 2), (8, 8, 2), (1, 4, 8), (16, 8, 4)])
@torch.no_grad()
def test_equals_the_products_written_out(patch):
    net, maps = noisy("light", patch), maps_for("light", patch)
    size = [g * p for g, p in zip((2, 3, 2), patch)]
    out = net(torch.zeros(2, 1, *size), maps)
    for item in range(2):
        tokens = [m[item].permute(1, 2, 3, 0).double().numpy() for m in maps]
        x = np.concatenate([layer_norm(t, norm) for t, norm in zip(tokens, net.norms)], axis=-1)
        for stage, factor in zip(net.stages, up_strides(patch)):
            x = layer_norm(up(x, stage[0], factor), stage[1])
            x = F.gelu(torch.from_numpy(x)).numpy()
        expected = up(x, net.last, up_strides(patch)[-1])
        np.testing.assert_allclose(out[item].permute(1, 2, 3, 0), expected, atol=2e-5)


@torch.no_grad()
def test_one_stage_is_torchs_transposed_convolution():
    net, (tokens,) = noisy("light", (2, 2, 2)), maps_for("light", (2, 2, 2))
    normed = F.layer_norm(tokens.movedim(1, -1), (12,), net.norms[0].weight, net.norms[0].bias).movedim(-1, 1)
    expected = F.conv_transpose3d(normed, net.last.weight, net.last.bias, stride=2)
    torch.testing.assert_close(net(torch.zeros(2, 1, 4, 6, 4), [tokens]), expected)


@pytest.mark.parametrize("patch", [(8, 8, 2), (16, 8, 4)])
@torch.no_grad()
def test_a_token_acts_on_its_patch_and_nowhere_else(patch):
    net, maps = noisy("light", patch), maps_for("light", patch, (3, 3, 3), batch=1)
    image = torch.zeros(1, 1, *(3 * p for p in patch))
    for i in range(len(maps)):
        moved = [m.clone() for m in maps]
        moved[i][:, :, 1, 2, 0] = noise(12, seed=9)
        change = (net(image, moved) - net(image, maps)).abs().amax((0, 1))
        inside = change[patch[0] : 2 * patch[0], 2 * patch[1] :, : patch[2]]
        assert (inside > 0).all()
        assert inside.count_nonzero() == change.count_nonzero()


@torch.no_grad()
def test_tokens_that_change_places_take_their_voxels_along():
    patch = (8, 4, 4)
    net, maps = noisy("light", patch), maps_for("light", patch)
    image = torch.zeros(2, 1, 16, 12, 8)
    rolled = net(image, [m.roll((1, 2, 1), (2, 3, 4)) for m in maps])
    torch.testing.assert_close(rolled, net(image, maps).roll((8, 8, 4), (2, 3, 4)))


@torch.no_grad()
def test_a_patch_that_is_no_power_of_two_is_interpolated():
    net, maps = noisy("light", (6, 6, 5)), maps_for("light", (6, 6, 5))
    work = noisy("light", (8, 8, 4))
    work.load_state_dict(net.state_dict())
    expected = F.interpolate(work(torch.zeros(2, 1, 16, 24, 8), maps), (12, 18, 10), mode="trilinear")
    torch.testing.assert_close(net(torch.zeros(2, 1, 12, 18, 10), maps), expected)


@torch.no_grad()
def test_the_image_is_left_out_or_added():
    patch, image = (4, 4, 2), noise(2, 2, 8, 12, 4, seed=7)
    maps = maps_for("light", patch)
    plain, seeing = noisy("light", patch, in_chans=2), noisy("light", patch, in_chans=2, image_channels=5)
    assert torch.equal(plain(image, maps), plain(image.flip(2), maps))
    kernel = seeing.image_branch.weight
    x = F.conv3d(F.pad(image, (1,) * 6), kernel)
    seeing.image_branch = None  # the tokens alone, at full resolution
    x = x + seeing(image, maps)
    first, second = seeing.head[1], seeing.head[3]
    x = F.conv3d(F.gelu(x), first.weight, first.bias, padding=1)
    expected = torch.einsum("bihwd,oi->bohwd", F.gelu(x), second.weight[..., 0, 0, 0])
    expected = expected + second.bias[:, None, None, None]
    torch.testing.assert_close(noisy("light", patch, in_chans=2, image_channels=5)(image, maps), expected)
    assert expected.shape == (2, 3, 8, 12, 4)


@pytest.mark.parametrize("patch", [(8, 8, 2), (1, 4, 8), (16, 8, 4)], ids=str)
@torch.no_grad()
def test_the_voxels_of_a_patch_start_with_one_value(patch):
    size = [g * p for g, p in zip((2, 3, 2), patch)]
    out = fresh("light", patch)(torch.zeros(2, 1, *size), maps_for("light", patch))
    firsts = out[:, :, :: patch[0], :: patch[1], :: patch[2]]
    torch.testing.assert_close(out, F.interpolate(firsts, size, mode="nearest"))
    assert firsts.std((2, 3, 4)).min() > 0.01  # tokens do differ


@pytest.mark.parametrize("image_channels", [0, 5])
def test_the_first_step_pulls_tokens_one_way_and_parts_the_places(image_channels):
    patch, image = (8, 8, 8), noise(2, 1, 16, 24, 16)
    net = fresh("light", patch, image_channels=image_channels)
    drawn = copy.deepcopy(net)
    pulls = []
    for decoder in (net, drawn):
        for module in decoder.modules():
            if isinstance(module, nn.ConvTranspose3d) and decoder is drawn:
                module.reset_parameters()  # every place by itself, as torch does
        maps = [m.requires_grad_() for m in maps_for("light", patch)]
        F.cross_entropy(decoder(image, maps), torch.ones(2, 16, 24, 16, dtype=torch.long)).backward()
        pulls.append(float(torch.stack([m.grad.norm() for m in maps]).norm()))
    assert pulls[0] > 4 * pulls[1]
    net.zero_grad()
    (net(image, maps_for("light", patch)) * noise(2, 3, 16, 24, 16, seed=2)).sum().backward()
    for conv in [*(stage[0] for stage in net.stages), net.last]:
        places = conv.weight.grad.flatten(2)
        assert (places - places.mean(2, keepdim=True)).norm() > 0.1 * places.norm()


@pytest.mark.parametrize("image_channels", [0, 5])
@pytest.mark.parametrize("patch", [(8, 8, 2), (6, 6, 6), (2, 2, 2), (1, 8, 8)], ids=str)
def test_every_parameter_and_every_tap_learns(patch, image_channels):
    net = noisy("light", patch, image_channels=image_channels)
    maps = [m.requires_grad_() for m in maps_for("light", patch)]
    size = [g * p for g, p in zip((2, 3, 2), patch)]
    out = net(noise(2, 1, *size), maps)
    (out * noise(*out.shape, seed=2)).sum().backward()
    assert all(m.grad.abs().max() > 0 for m in maps)
    assert idle(net) == set()


@pytest.mark.parametrize("patch", [(8, 8, 8), (6, 6, 5), (2, 2, 1)], ids=str)
def test_seeing_decoder_scripts_and_needs_no_second_patch(patch):
    net, maps = noisy("light", patch, image_channels=4), maps_for("light", patch, (1, 1, 1))
    image = noise(2, 1, *patch)
    out = net(image, maps)
    assert out.shape == (2, 3, *patch)
    torch.testing.assert_close(torch.jit.script(net)(image, maps), out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch", [(8, 8, 2), (6, 5, 3)], ids=str)
@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_mirrored_kernels_mirror_the_map(name, axis, patch):
    # nothing between a token and its voxels leans to one side: a shift of half a voxel would show
    net = noisy(name, patch).double()
    mirror = copy.deepcopy(net)
    for module in mirror.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            module.weight.copy_(module.weight.flip(axis))
    size = [g * p for g, p in zip((2, 3, 2), patch)]
    image, maps = noise(1, 1, *size).double(), [m.double() for m in maps_for(name, patch, batch=1)]
    out = mirror(image.flip(axis), [m.flip(axis) for m in maps])
    torch.testing.assert_close(out, net(image, maps).flip(axis), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_metatensors_keep_their_places(name):
    # also where the decoder computes nothing from the image
    affine = torch.diag(torch.tensor([2.0, 3, 4, 1], dtype=torch.double))
    image = MetaTensor(noise(2, 1, 16, 24, 4), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    net, maps = fresh(name, (8, 8, 2)), maps_for(name, (8, 8, 2))
    out = net(image, maps)
    assert isinstance(out, MetaTensor)
    assert torch.equal(out.affine, affine)
    assert out.meta["filename_or_obj"] == "a.nii.gz"
    assert torch.equal(out.as_tensor(), net(image.as_tensor(), maps))
    out.meta["filename_or_obj"] = "b.nii.gz"
    assert image.meta["filename_or_obj"] == "a.nii.gz"


@torch.no_grad()
def test_metatensors_of_a_batch_keep_their_places():
    def affine(mm):
        return torch.diag(torch.tensor([mm, mm, mm, 1.0], dtype=torch.double))

    items = [{"image": MetaTensor(noise(1, 4, 4, 4, seed=i), affine=affine(i + 1.0))} for i in range(2)]
    net = create_decoder("light", 1, 12, (2, 2, 2), 3)
    out = decollate_batch(net(list_data_collate(items)["image"], [noise(2, 12, 2, 2, 2)]))
    assert [o.shape for o in out] == [(3, 4, 4, 4)] * 2
    assert all(torch.equal(o.affine, affine(i + 1.0)) for i, o in enumerate(out))


@pytest.mark.parametrize(
    ("patch", "levels"),
    [
        ((16, 16, 4), [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 4)]),
        ((1, 4, 8), [(1, 1, 1), (1, 2, 2), (1, 4, 4)]),
        ((2, 2, 2), [(1, 1, 1)]),
    ],
)
def test_level_strides(patch, levels):
    assert level_strides(up_strides(patch)) == levels


@pytest.mark.parametrize("name", ["light", "pyramid", "dpt"])
@pytest.mark.parametrize(
    ("patch", "message"), [(1, r"patch_size=\(1, 1, 1\).*2 voxels"), ((8, 8), "three"), ((8, 8, 0), "positive")]
)
def test_bad_patch_is_refused(name, patch, message):
    with pytest.raises(ValueError, match=message):
        create_decoder(name, 1, 12, patch, 2)
