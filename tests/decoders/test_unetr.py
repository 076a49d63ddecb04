"""UNETR's decoder: stages for any patch, maps that lie where their voxels are, a gradient for every parameter."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from monai_vit3d.decoders import DECODERS, UNETRDecoder, create_decoder, decoder_class
from monai_vit3d.decoders.stages import up_strides
from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D
from tests.helpers import pairwise

PATCHES = [8, (8, 8, 2), (12, 12, 12), (6, 6, 6), (5, 7, 3), (1, 8, 8), 2]


def sizes(patch, grid=(2, 3, 2)):
    patch = (patch,) * 3 if isinstance(patch, int) else patch
    return patch, tuple(g * p for g, p in zip(grid, patch))


def inputs(num_maps, size, grid=(2, 3, 2), in_chans=2, embed_dim=12, batch=2):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, in_chans, *size, generator=generator)
    return image, [torch.randn(batch, embed_dim, *grid, generator=generator) for _ in range(num_maps)]


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        ((16, 16, 16), [(2, 2, 2)] * 4),
        ((8, 8, 8), [(2, 2, 2)] * 3),
        ((16, 16, 4), [(2, 2, 2)] * 2 + [(2, 2, 1)] * 2),
        ((14, 14, 7), [(2, 2, 2)] * 3 + [(2, 2, 1)]),
        ((1, 16, 16), [(1, 2, 2)] * 4),
        ((2, 2, 2), [(2, 2, 2)]),
    ],
)
def test_up_strides(patch, strides):
    assert up_strides(patch) == strides
    assert UNETRDecoder.num_maps(patch) == len(strides)


@pytest.mark.parametrize("name", ["dpt", "light", "unetr"])
@pytest.mark.parametrize("patch", [1, (1, 1, 1)])
def test_no_maps_are_named_for_a_decoder_that_cannot_be_built(name, patch):
    assert up_strides((1, 1, 1)) == []
    for call in (DECODERS[name].num_maps, lambda p: create_decoder(name, 1, 12, p, 3)):
        with pytest.raises(ValueError, match=r"patch_size=\(1, 1, 1\).*2 voxels"):
            call(patch)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("option", ["in_chans", "embed_dim", "num_classes", "feature_size"])
@pytest.mark.parametrize("count", [0, -1])
def test_channels_are_1_or_more(name, option, count):
    options = {"in_chans": 1, "embed_dim": 12, "patch_size": 8, "num_classes": 2, option: count}
    with pytest.raises(ValueError, match=f"^{option}={count}; expected 1 or more"):
        create_decoder(name, **options)
    assert create_decoder(name, **options | {option: 1})


def test_image_channels_are_0_or_more():
    with pytest.raises(ValueError, match=r"^image_channels=-1; expected 0 or more"):
        create_decoder("light", 1, 12, 8, 2, image_channels=-1)


@pytest.mark.parametrize("patch", range(1, 33))
def test_work_grid_is_the_nearest_power_of_two(patch):
    scale = math.prod(s[1] for s in up_strides((1, patch, 1)))
    assert 2**-0.5 <= scale / patch <= 2**0.5


@pytest.mark.parametrize(
    ("patch", "message"), [(1, r"patch_size=\(1, 1, 1\).*2 voxels"), ((8, 8), "three"), ((8, 8, 0), "positive")]
)
def test_bad_patch_refused(patch, message):
    with pytest.raises(ValueError, match=message):
        UNETRDecoder(1, 12, patch, 2)


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_contract(name):
    names = list(inspect.signature(DECODERS[name]).parameters)
    assert names[:4] == ["in_chans", "embed_dim", "patch_size", "num_classes"]
    assert isinstance(inspect.getattr_static(DECODERS[name], "num_maps"), staticmethod)
    assert decoder_class(name) is DECODERS[name]


@pytest.mark.parametrize("patch", PATCHES, ids=str)
@pytest.mark.parametrize("name", DECODERS)
def test_dense_map_of_every_decoder(name, patch):
    patch, size = sizes(patch)
    decoder = create_decoder(name, 2, 12, patch, 3, feature_size=4).eval()
    image, maps = inputs(DECODERS[name].num_maps(patch), size)
    with torch.no_grad():
        out = decoder(image, maps)
        assert out.shape == (2, 3, *size)
        assert out.isfinite().all()
        # volumes of a batch know nothing of each other
        torch.testing.assert_close(out[1:], decoder(image[1:], [m[1:] for m in maps]), atol=1e-5, rtol=1e-5)
        for i in range(len(maps)):  # every map is read
            other = [m.flip(0) if i == j else m for j, m in enumerate(maps)]
            assert (decoder(image, other) - out).abs().max() > 1e-3, i


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("extra", [-1, 1])
def test_wrong_number_of_maps(name, extra):
    patch, size = sizes((8, 8, 2))
    needed = DECODERS[name].num_maps(patch)
    image, maps = inputs(needed + extra, size)
    with pytest.raises(ValueError, match=f"^{needed + extra} .*{needed}"):
        create_decoder(name, 2, 12, patch, 3, feature_size=4)(image, maps)


def test_unknown_decoder():
    with pytest.raises(ValueError, match=r"'unter' is unknown; expected one of .*unetr"):
        create_decoder("unter", 1, 12, 8, 2)


@pytest.mark.parametrize(
    ("patch", "size"),
    [
        ((8, 8, 8), (24, 24, 24)),
        ((16, 8, 4), (48, 24, 12)),
        ((6, 6, 6), (18, 18, 18)),  # no power of two: interpolated
    ],
)
def test_token_acts_where_its_voxels_are(patch, size):
    torch.manual_seed(0)
    # a batch norm at its start is the identity in eval: what a token does stays near it
    decoder = UNETRDecoder(1, 12, patch, 2, feature_size=4, norm_name="batch").eval()
    image, maps = inputs(decoder.num_maps(patch), size, (3, 3, 3), 1, batch=1)
    moved = [m.clone() for m in maps]
    for m in moved:
        m[:, :, 1, 1, 1] += torch.randn(12)
    with torch.no_grad():
        change = (decoder(image, moved) - decoder(image, maps)).square().sum((0, 1))
    for axis, p in enumerate(patch):
        profile = change.sum([a for a in range(3) if a != axis])
        centroid = (profile * torch.arange(size[axis])).sum() / profile.sum()
        assert abs(centroid - (1.5 * p - 0.5)) < 0.15 * p, (axis, centroid)


@pytest.mark.parametrize("patch", [8, (8, 8, 2), (6, 6, 6), 2], ids=str)
def test_deep_supervision(patch):
    patch, size = sizes(patch)
    torch.manual_seed(0)
    plain = UNETRDecoder(2, 12, patch, 3, feature_size=4)
    deep = UNETRDecoder(2, 12, patch, 3, feature_size=4, deep_supervision=True)
    missing, unexpected = deep.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert {key.split(".")[0] for key in missing} <= {"coarse_heads"}
    stages = plain.num_maps(patch)
    image, maps = inputs(stages, size)
    seen = []
    for block in deep.up_blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        out, expected = deep(image, maps), plain(image, maps)
        assert torch.equal(deep.eval()(image, maps), expected)
        if stages == 1:  # nothing coarser to supervise
            assert torch.equal(out, expected)
            return
        assert [part.shape for part in out] == [(2, 3, *size)] * stages
        assert torch.equal(out[0], expected)
        for i, head in enumerate(deep.coarse_heads, start=1):
            coarse = F.interpolate(head(seen[stages - 1 - i]), size, mode="trilinear", align_corners=False)
            torch.testing.assert_close(out[i], coarse)


BACKBONES = [
    {"reg_tokens": 2},
    {"class_token": False, "global_pool": "avg", "num_classes": 3},
    {"global_pool": "map", "num_classes": 3, "reg_tokens": 1, "no_embed_class": True},
]
NORMS = ["instance", "batch", ("instance", {"affine": True})]


@pytest.mark.parametrize(
    ("backbone", "norm", "res_block", "conv_block", "deep"),
    pairwise(BACKBONES, NORMS, [True, False], [True, False], [True, False]),
    ids=str,
)
def test_every_parameter_has_a_gradient(backbone, norm, res_block, conv_block, deep):
    # DistributedDataParallel stops at a parameter without one
    torch.manual_seed(0)
    options = {"norm_name": norm, "res_block": res_block, "conv_block": conv_block, "deep_supervision": deep}
    vit = VisionTransformer3D((16, 16, 4), (8, 8, 2), embed_dim=24, depth=3, num_heads=2, **backbone)
    net = TokenSegmenter(vit, "unetr", 2, feature_size=4, **options).double().train()
    out = net(torch.randn(2, 1, 16, 16, 4, dtype=torch.double))
    sum((part * torch.randn_like(part)).sum() for part in (out if isinstance(out, list) else [out])).backward()
    # double: rounding alone stays below 1e-12 where the true gradient is zero
    idle = {n for n, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-10}
    assert idle == set()
