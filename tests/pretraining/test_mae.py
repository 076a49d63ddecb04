"""MAE: patches as einops cuts them, the loss by hand, hidden voxels hidden from the encoder, tokens in their place."""

from functools import partial
from math import prod

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.layers import ConvStem3D, PatchEmbed3D, RotaryPositions3D, set_spacing, sincos_pos_embed
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.pretraining import (
    MAE,
    MAEMasks,
    patchify,
    sample_block_masks,
    sample_random_masks,
    unpatchify,
)

IMAGE, PATCH, GRID = (8, 12, 4), (4, 3, 2), (2, 4, 2)
VALUES = 2 * prod(PATCH)
SMALL = {"in_chans": 2, "embed_dim": 24, "depth": 2, "num_heads": 2}
BACKBONES = {
    "plain": {},
    "register tokens": {"reg_tokens": 3},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "registers only": {"class_token": False, "reg_tokens": 2, "global_pool": ""},
    "sincos": {"pos_embed": "sincos"},
    "positions of patches only": {"no_embed_class": True, "reg_tokens": 1},
    "attentive pooling": {"global_pool": "map", "num_classes": 5},
    "dynamic": {"dynamic_img_size": True},
    "rotary": {"pos_embed": "none", "rope": "patch"},
    "rotary in mm": {"rope": partial(RotaryPositions3D, unit="mm", unit_mm=4.0, spacing_mm=(0.7, 0.7, 5.0))},
    "layer scale, pre-norm": {"init_values": 0.1, "pre_norm": True},
}
grids = st.tuples(*[st.integers(1, 4)] * 3)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(seed=0, normalize_targets=True, **options):
    torch.manual_seed(seed)
    backbone = VisionTransformer3D(IMAGE, PATCH, **{**SMALL, **options})
    return MAE(backbone, 12, 2, 2, normalize_targets)


def volumes(batch=3, seed=0, image=IMAGE):
    return 3 + 2 * torch.randn(batch, 2, *image, generator=rng(seed))


def random_masks(batch=3, grid=GRID, ratio=0.75, seed=0):
    return sample_random_masks(batch, grid, ratio, generator=rng(seed))


def boxes(token, grid=GRID, patch=PATCH):
    """The voxels of a token, found by numpy."""
    places = np.unravel_index(int(token), grid)
    return (slice(None), *(slice(i * p, (i + 1) * p) for i, p in zip(places, patch)))


def with_noise_in(x, tokens):
    """``x`` with other voxels in each sample's ``tokens``."""
    x, noise = x.clone(), volumes(len(x), seed=99)
    for sample, row in enumerate(tokens):
        for token in row:
            x[sample][boxes(token)] = 7 * noise[sample][boxes(token)]
    return x


def predict_constant(mae, value=0.0):
    nn.init.zeros_(mae.decoder.head.weight)
    nn.init.constant_(mae.decoder.head.bias, value)
    return mae


def entering(module, run):
    """What the module is called with, in the course of ``run``."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    run()
    handle.remove()
    assert len(seen) == 1
    return seen[0]


# patches


@given(grid=grids, patch=grids, batch=st.integers(1, 2), channels=st.integers(1, 3))
def test_patchify_is_einops_and_has_an_inverse(grid, patch, batch, channels):
    x = torch.randn(batch, channels, *(g * p for g, p in zip(grid, patch)))
    patches = patchify(x, patch)
    sides = dict(zip("hwd", patch))
    torch.testing.assert_close(
        patches, rearrange(x, "b c (H h) (W w) (D d) -> b (H W D) (c h w d)", **sides), rtol=0, atol=0
    )
    assert torch.equal(unpatchify(patches, patch, grid), x)
    assert torch.equal(patchify(unpatchify(patches, patch, grid), patch), patches)


def test_patches_have_the_order_of_the_tokens():
    embed = PatchEmbed3D(IMAGE, PATCH, 2, 24, dtype=torch.float64)
    x = volumes().double()
    tokens = patchify(x, PATCH) @ embed.proj.weight.flatten(1).T + embed.proj.bias
    torch.testing.assert_close(tokens, embed(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 8, 12, 4), (1, 2, 8, 12, 5), (1, 2, 9, 12, 4)])
def test_patchify_refuses(shape):
    with pytest.raises(UsageError, match=r"patch \(4, 3, 2\); expected volumes .* whole patches\. Crop or pad"):
        patchify(torch.zeros(shape), PATCH)


@pytest.mark.parametrize("shape", [(16, VALUES), (1, 15, VALUES), (1, 16, VALUES + 1)])
def test_unpatchify_refuses(shape):
    with pytest.raises(UsageError, match=r"expected \(B, N, C \* 24\) with N=16"):
        unpatchify(torch.zeros(shape), PATCH, GRID)


# the loss


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_by_hand(normalize):
    mae, x, masks = tiny(normalize_targets=normalize).double(), volumes().double(), random_masks()
    loss, prediction = mae(x, masks)
    assert prediction.shape == (3, 12, VALUES)
    errors = []
    for sample in range(3):
        for place, token in enumerate(masks.masked[sample]):
            target = x[sample][boxes(token)].numpy().ravel()
            if normalize:
                target = (target - target.mean()) / np.sqrt(target.std() ** 2 + 1e-6)
            errors.append((prediction[sample, place].detach().numpy() - target) ** 2)
    assert loss.item() == pytest.approx(np.mean(errors), rel=1e-12)


def test_normalised_targets_have_mean_0_and_variance_1():
    mae, masks = predict_constant(tiny()), random_masks()
    x = 100 + 40 * volumes()
    assert mae(x, masks).loss.item() == pytest.approx(1, abs=1e-5)  # the population's variance, whatever the units
    assert predict_constant(mae, 1.5)(x, masks).loss.item() == pytest.approx(1 + 1.5**2, abs=1e-4)


def test_flat_patches_and_patches_of_one_voxel_have_target_0():
    mae, masks = predict_constant(tiny(), 0.5), random_masks()
    assert mae(torch.full((3, 2, *IMAGE), 7.0), masks).loss.item() == pytest.approx(0.25, abs=1e-6)
    backbone = VisionTransformer3D(4, 1, embed_dim=12, depth=1, num_heads=2)
    one = predict_constant(MAE(backbone, 12, 1, 2), 0.5)
    loss = one(torch.randn(1, 1, 4, 4, 4), random_masks(1, (4, 4, 4))).loss
    assert loss.item() == pytest.approx(0.25, abs=1e-6)


def test_visible_patches_do_not_enter_the_target():
    mae, x, masks = predict_constant(tiny(normalize_targets=False), 0.3), volumes(), random_masks()
    other = with_noise_in(x, masks.visible)
    assert not torch.equal(other, x)
    assert mae(other, masks).loss == mae(x, masks).loss


@pytest.mark.parametrize("options", BACKBONES.values(), ids=BACKBONES)
def test_hidden_voxels_reach_the_target_only(options):
    mae, x, masks = tiny(**options), volumes(), random_masks()
    other = with_noise_in(x, masks.masked)
    codes = [entering(mae.decoder.embed, lambda v=v: mae(v, masks)) for v in (x, other)]
    assert codes[0].shape == (3, mae.backbone.num_prefix_tokens + 4, 24)  # the encoder has the visible tokens only
    assert torch.equal(*codes)
    a, b = mae(x, masks), mae(other, masks)
    assert torch.equal(a.prediction, b.prediction)
    assert a.loss != b.loss
    seen = with_noise_in(x, masks.visible)
    assert not torch.equal(mae(seen, masks).prediction, a.prediction)


def test_gradients_do_not_leave_the_visible_voxels():
    mae, masks = tiny(), random_masks()
    x = volumes().requires_grad_()
    mae(x, masks).prediction.square().sum().backward()
    reached = patchify(x.grad, PATCH).abs().sum(-1) > 0
    expected = torch.zeros(3, 16, dtype=torch.bool).scatter(1, masks.visible, True)
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("options", BACKBONES.values(), ids=BACKBONES)
def test_every_parameter_learns(options):
    mae = tiny(**options)
    mae(volumes(), random_masks()).loss.backward()
    idle = [name for name, p in mae.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert mae.no_weight_decay() <= {name for name, _ in mae.named_parameters()}


def test_rotary_positions_in_mm_train_and_each_sample_has_its_own():
    mae, x, masks = tiny(rope="mm", pos_embed="none").double(), volumes(2).double(), random_masks(2)
    set_spacing(mae, [(1, 1, 1), (0.7, 0.7, 5)])
    mae.set_grad_checkpointing()
    optimizer = torch.optim.SGD(mae.parameters(), 0.02)
    losses = []
    for _ in range(4):
        loss = mae(x, masks).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    before = mae(x, masks).prediction.view(2, -1)
    set_spacing(mae, [(1, 1, 1), (0.7, 0.7, 4)])
    after = mae(x, masks).prediction.view(2, -1)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-12)
    assert (after[1] - before[1]).abs().max() > 1e-7


def blobs(batch, seed):
    """Smooth balls on a background; a hidden patch can be told from its neighbours."""
    places = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (16, 16, 8)], indexing="ij"))
    middle = torch.rand(batch, 3, 1, 1, 1, generator=rng(seed)) - 0.5
    return torch.exp(-4 * (places - middle).square().sum(1, keepdim=True))


@pytest.mark.slow
def test_loss_goes_down():
    torch.manual_seed(0)
    mae = MAE(VisionTransformer3D((16, 16, 8), (4, 4, 2), embed_dim=48, depth=2, num_heads=4), 48, 1, 4)
    optimizer = torch.optim.AdamW(mae.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        masks = sample_block_masks(8, (4, 4, 4), 0.6, generator=rng(step))
        loss = mae(blobs(8, step), masks).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    assert np.mean(losses[-5:]) < 0.9  # better than each patch's mean, which is 1


# the decoder


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_tokens_are_put_back_in_their_place(options):
    mae, x, masks = tiny(**options), volumes(), random_masks()
    code = entering(mae.decoder.embed, lambda: mae(x, masks))
    entered = entering(mae.decoder.blocks[0], lambda: mae(x, masks)).numpy()
    code = mae.decoder.embed(code).detach().numpy()
    prefix = mae.backbone.num_prefix_tokens
    np.testing.assert_array_equal(entered[:, :prefix], code[:, :prefix])
    table = sincos_pos_embed(GRID, 12)[0].numpy()
    for sample in range(3):
        rank = {int(token): i for i, token in enumerate(masks.visible[sample])}
        for token in range(16):
            content = code[sample, prefix + rank[token]] if token in rank else mae.decoder.mask_token[0, 0].detach()
            np.testing.assert_array_equal(entered[sample, prefix + token], np.asarray(content) + table[token])


@pytest.mark.parametrize("options", [{"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_blocks_that_do_nothing_leave_places_as_they_are(options):
    mae, x, masks = tiny(**options), volumes(), random_masks()
    mae.backbone.blocks, mae.decoder.blocks = nn.Sequential(nn.Identity()), nn.ModuleList([nn.Identity()])
    code = entering(mae.decoder.embed, lambda: mae(x, masks))[:, mae.backbone.num_prefix_tokens :]
    tokens = mae.backbone.forward_features(x)[:, mae.backbone.num_prefix_tokens :].detach()
    places = mae.decoder.head(mae.decoder.norm(mae.decoder.mask_token + sincos_pos_embed(GRID, 12)))[0].detach()
    prediction = mae(x, masks).prediction.detach()
    for sample in range(3):
        torch.testing.assert_close(code[sample], tokens[sample][masks.visible[sample]], rtol=0, atol=1e-6)
        torch.testing.assert_close(prediction[sample], places[masks.masked[sample]], rtol=0, atol=1e-6)


def test_order_of_the_masks_does_not_matter():
    mae, x, masks = tiny().double(), volumes().double(), random_masks()
    loss, prediction = mae(x, masks)
    other = mae(x, MAEMasks(masks.visible.flip(1), masks.masked.roll(3, 1)))
    torch.testing.assert_close(other.prediction, prediction.roll(3, 1), rtol=0, atol=1e-10)
    torch.testing.assert_close(other.loss, loss, rtol=0, atol=1e-10)


def test_another_grid_has_its_own_positions():
    mae = tiny(dynamic_img_size=True)
    x, masks = volumes(2, image=(12, 9, 8)), random_masks(2, (3, 3, 4))
    entered = entering(mae.decoder.blocks[0], lambda: mae(x, masks))
    hidden = int(masks.masked[0, 0])
    content = entered[0, 1 + hidden] - sincos_pos_embed((3, 3, 4), 12)[0, hidden]
    torch.testing.assert_close(content, mae.decoder.mask_token[0, 0].detach(), rtol=0, atol=1e-6)
    assert mae.reconstruct(x, masks).shape == x.shape


def test_one_seed_one_loss():
    def train():
        mae = tiny(drop_path_rate=0.2)
        optimizer = torch.optim.SGD(mae.parameters(), lr=0.1)
        for step in range(3):
            loss = mae(volumes(seed=step), random_masks(seed=step)).loss
            loss.backward()
            optimizer.step()
        return loss.item()

    assert train() == train()


def test_bf16_autocast():
    mae, x, masks = tiny(), volumes(), random_masks()
    loss = mae(x, masks).loss
    with torch.autocast("cpu", torch.bfloat16):
        reduced, prediction = mae(x, masks)
        rebuilt = mae.reconstruct(x, masks)
    assert reduced.dtype == prediction.dtype == rebuilt.dtype == torch.float32
    assert reduced.item() == pytest.approx(loss.item(), rel=0.02)
    reduced.backward()
    assert all(p.grad.isfinite().all() for p in mae.parameters())


def test_bf16_weights_have_a_float32_loss():
    mae, x, masks = tiny().bfloat16(), volumes().bfloat16(), random_masks()
    loss, prediction = mae(x, masks)
    assert loss.dtype == prediction.dtype == torch.float32
    assert mae.reconstruct(x, masks).dtype == torch.bfloat16


def test_checkpointed_blocks_give_the_same_gradients():
    results = []
    for enable in (False, True):
        mae = tiny()
        mae.set_grad_checkpointing(enable)
        mae(volumes(), random_masks()).loss.backward()
        results.append([p.grad for p in mae.parameters()])
        assert mae.backbone.grad_checkpointing is enable
    for plain, again in zip(*results):
        torch.testing.assert_close(again, plain, rtol=0, atol=1e-7)


# pictures


class Oracle(nn.Module):
    """A decoder that knows the masked patches of ``x``, normalised in float64, plus ``error``."""

    def __init__(self, x, error=0.0):
        super().__init__()
        patches = patchify(x, PATCH).double()
        mean, deviation = patches.mean(-1, keepdim=True), patches.std(-1, correction=0, keepdim=True)
        self.targets = (patches - mean) / deviation + error

    def forward(self, tokens, masks, grid):
        return torch.stack([rows[index] for rows, index in zip(self.targets, masks.masked)]).float()


def test_reconstruct_is_in_the_units_of_the_input():
    mae, masks = tiny(), random_masks()
    x = 1000 + 200 * volumes()
    mae.decoder = Oracle(x)
    assert mae(x, masks).loss.item() < 1e-6
    torch.testing.assert_close(mae.reconstruct(x, masks), x, rtol=1e-5, atol=0)
    mae.decoder = Oracle(x, error=0.5)
    off = (mae.reconstruct(x, masks) - x).numpy()
    for token in masks.masked[1]:
        deviation = x[1][boxes(token)].numpy().std()
        np.testing.assert_allclose(off[1][boxes(token)], 0.5 * deviation, rtol=1e-3)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reconstruct_keeps_visible_patches_to_the_bit(normalize, dtype):
    mae, x, masks = tiny(normalize_targets=normalize).to(dtype), volumes().to(dtype), random_masks()
    result = mae.reconstruct(x, masks)
    assert result.dtype == dtype
    assert not result.requires_grad
    same = patchify(result == x, PATCH).all(-1)
    assert torch.equal(same, torch.zeros(3, 16, dtype=torch.bool).scatter(1, masks.visible, True))
    if not normalize:
        at = boxes(masks.masked[2, 5])
        np.testing.assert_array_equal(result[2][at].ravel(), mae(x, masks).prediction[2, 5].detach())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_input_masked_and_reconstruction(axis):
    mae, x, masks = tiny(), volumes(), random_masks()
    slices = mae.reconstruction_slices(x, masks, channel=1, axis=axis)
    assert isinstance(slices, np.ndarray)
    assert slices.dtype == np.float32
    middle = x.shape[2 + axis] // 2
    hollow = x[:, 1].numpy().copy()
    for sample in range(3):
        for token in masks.masked[sample]:
            hollow[sample][boxes(token)[1:]] = x[sample, 1].min()
    expected = [x[:, 1].numpy(), hollow, mae.reconstruct(x, masks)[:, 1].numpy()]
    expected = np.stack([v.take(middle, axis + 1) for v in expected], 1)
    np.testing.assert_array_equal(slices, expected)


def test_metatensors_are_taken_and_not_returned():
    mae, x, masks = tiny(), volumes(), random_masks()
    meta = MetaTensor(x)
    assert mae(meta, masks).loss == mae(x, masks).loss
    result = mae.reconstruct(meta, masks)
    assert type(result) is type(mae(meta, masks).loss) is torch.Tensor
    assert torch.equal(result, mae.reconstruct(x, masks))
    assert isinstance(mae.reconstruction_slices(meta, masks), np.ndarray)


# what is refused


@pytest.mark.parametrize(
    ("batch", "grid"), [(2, GRID), (1, GRID), (3, (2, 4, 3)), (3, (2, 2, 2))], ids=["batch", "one", "more", "fewer"]
)
def test_masks_of_another_batch_or_grid(batch, grid):
    mae, masks = tiny(), random_masks(batch, grid)
    for run in (mae, mae.reconstruct, mae.reconstruction_slices):
        with pytest.raises(UsageError, match=r"masks of shapes .* Sample them with batch=3 and grid=\(2, 4, 2\)"):
            run(volumes(), masks)


def test_masks_of_one_sample_without_its_axis():
    with pytest.raises(UsageError, match="masks of shapes"):
        tiny()(volumes(), MAEMasks(torch.arange(4), torch.arange(4, 16)))


@pytest.mark.parametrize("numbers", [(4, 1, 2), (12, 0, 2), (12, 1, 0), (12, 1, 5)])
def test_decoder_that_cannot_be_built(numbers):
    backbone = VisionTransformer3D(IMAGE, PATCH, **SMALL)
    with pytest.raises(UsageError, match=r"decoder_dim=\d+, decoder_depth=\d, decoder_heads=\d; expected a width"):
        MAE(backbone, *numbers)


def test_norm_behind_a_pooling():
    with pytest.raises(ValueError, match="fc_norm=True"):
        tiny(fc_norm=True)


def test_size_that_the_patch_does_not_divide():
    with pytest.raises(UsageError, match="Crop or pad"):
        tiny(dynamic_img_pad=True)(torch.zeros(3, 2, 7, 12, 4), random_masks())


# embeddings that mix patches


class Neighbours(PatchEmbed3D):
    """Patches that overlap along D, or share a norm's statistics."""

    def __init__(self, *args, kind, **options):
        super().__init__(*args, **options)
        E = self.proj.out_channels
        layers = {
            "after": nn.ConstantPad3d((0, 1, 0, 0, 0, 0), 0.0),
            "before": nn.ConstantPad3d((1, 0, 0, 0, 0, 0), 0.0),
            "instance norm": nn.InstanceNorm3d(E),
        }
        self.extra, self.overlaps = layers[kind], kind in ("after", "before")
        if self.overlaps:
            h, w, d = self.patch_size
            self.proj = nn.Conv3d(self.in_chans, E, (h, w, d + 1), stride=(h, w, d))

    def _project(self, x):
        x = self.proj(self.extra(x)) if self.overlaps else self.extra(self.proj(x))
        return x.permute(0, 2, 3, 4, 1)


def kind_of(name):
    return lambda *args, **options: Neighbours(*args, kind=name, **options)


@torch.no_grad()
@pytest.mark.parametrize("embed", [ConvStem3D, *map(kind_of, ("after", "before", "instance norm"))])
def test_hidden_voxels_stay_hidden_where_patches_mix(embed):
    patch = (4, 4, 2)
    torch.manual_seed(0)
    mae = MAE(VisionTransformer3D((8, 16, 4), patch, embed_layer=embed, **SMALL), 12, 2, 2)
    x, masks = volumes(2, image=(8, 16, 4)), random_masks(2, (2, 4, 2), 0.5)
    expected, changed, touched = mae(x, masks).prediction, x.clone(), x.clone()
    for sample in range(2):
        for token in masks.masked[sample]:
            changed[sample][boxes(token, (2, 4, 2), patch)] = torch.nan
        touched[sample][boxes(masks.visible[sample, 0], (2, 4, 2), patch)] += 1
    assert torch.equal(mae(changed, masks).prediction, expected)
    assert (mae(touched, masks).prediction - expected).abs().amax((1, 2)).min() > 1e-4
