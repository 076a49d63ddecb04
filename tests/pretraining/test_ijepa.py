"""I-JEPA: nothing hidden reaches the predictor, targets and loss by hand, the moving average, every backbone."""

import copy
from functools import partial

import pytest
import torch
from monai.data import MetaTensor
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monai_vit3d.data.errors import UsageError
from monai_vit3d.layers import ConvStem3D, RotaryPositions3D, set_spacing, sincos_pos_embed
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.pretraining import IJEPA, JEPAMasks, sample_jepa_masks

# three different sides, an anisotropic patch, and a (3, 4, 5) grid
TINY = {"img_size": (12, 16, 10), "patch_size": (4, 4, 2), "embed_dim": 24, "depth": 2, "num_heads": 2}
GRID, PATCHES = (3, 4, 5), 60
PREFIXES = [
    {"class_token": False, "global_pool": "avg"},  # its norm stands behind the pooling, and moves
    {"num_classes": 4},
    {"reg_tokens": 2, "no_embed_class": True, "global_pool": "map"},
]
close = torch.testing.assert_close


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(seed=0, depth=2, options=None, **backbone):
    torch.manual_seed(seed)
    net = VisionTransformer3D(**{**TINY, **backbone})
    return IJEPA(net, predictor_dim=12, predictor_depth=depth, predictor_heads=2, **(options or {}))


def exact(**backbone):
    """In float64, with noise on every parameter, so that none is 0 or 1; its encoders differ."""
    model = tiny(**backbone).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.2 * torch.randn(p.shape, generator=rng(i), dtype=p.dtype))
    return model


def volume(batch=2, seed=7, size=TINY["img_size"], dtype=torch.float64):
    return torch.randn(batch, 1, *size, generator=rng(seed), dtype=dtype)


def masks(batch=2, seed=1, grid=GRID, **options):
    return sample_jepa_masks(batch, grid, generator=rng(seed), **options)


def voxels_of(patches, grid=GRID, patch=TINY["patch_size"]):
    """Bool ``(B, 1, H, W, D)``: where the patches lie."""
    on = torch.zeros(len(patches), grid[0] * grid[1] * grid[2]).scatter(1, patches, 1.0)
    on = on.view(len(patches), 1, *grid)
    for axis, side in enumerate(patch, start=2):
        on = on.repeat_interleave(side, axis)
    return on.bool()


# ---- no leak


@torch.no_grad()
@pytest.mark.parametrize("prefix", PREFIXES)
def test_hidden_voxels_reach_targets_only(prefix):
    model, hide = exact(**prefix), masks()
    changed = torch.where(voxels_of(hide.targets.flatten(1)), 50 * volume(seed=8), volume())
    context = model.context_encoder.forward_masked
    assert torch.equal(context(changed, hide.context), context(volume(), hide.context))
    before, after = model(volume(), hide), model(changed, hide)
    assert torch.equal(after.predictions, before.predictions)
    assert (after.targets - before.targets).abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_nothing_outside_the_context_matters():
    model, hide = exact(), masks(context_scale=(0.85, 0.85))
    changed = torch.where(voxels_of(hide.context), volume(), volume(seed=8))
    assert torch.equal(model(changed, hide).predictions, model(volume(), hide).predictions)


@torch.no_grad()
def test_a_planted_leak_shows():
    """One target token in the context, and the test above would fail."""
    model, hide = exact(), masks()
    leaky = JEPAMasks(torch.cat([hide.context[:, 1:], hide.targets[:, 0, :1]], 1), hide.targets)
    changed = torch.where(voxels_of(hide.targets.flatten(1)), volume(seed=8), volume())
    moved = model(changed, leaky).predictions - model(volume(), leaky).predictions
    assert moved.abs().amax((1, 2, 3)).min() > 1e-3


@torch.no_grad()
def test_predictions_depend_on_context_and_place():
    model, hide = exact(), masks()
    here = model(volume(), hide).predictions
    touched = torch.where(voxels_of(hide.context), 1.2 * volume(), volume())
    assert (model(touched, hide).predictions - here).abs().amax(-1).min() > 1e-4
    pairs = torch.cdist(here[0, 0], here[0, 0]) + torch.eye(here.shape[2])
    assert pairs.min() > 1e-4  # mask tokens of one block differ by their places alone


@torch.no_grad()
def test_an_embedding_that_mixes_patches_does_not_leak():
    model, hide = exact(embed_layer=ConvStem3D), masks()
    changed = torch.where(voxels_of(hide.context), volume(), torch.nan)
    assert torch.equal(
        model.context_encoder.forward_masked(changed, hide.context),
        model.context_encoder.forward_masked(volume(), hide.context),
    )


MM = partial(RotaryPositions3D, unit="mm", unit_mm=4.0)
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0)]


def rotary(rope, **options):
    """Rotary positions alone; each sample has a spacing of its own where they are in mm."""
    model = exact(rope=rope, pos_embed="none", **options)
    if rope is MM:
        set_spacing(model, SPACINGS)
    return model


@torch.no_grad()
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("rope", ["patch", MM])
def test_rotary_positions_do_not_leak(rope, prefix):
    model, hide = rotary(rope, **prefix), masks()
    changed = torch.where(voxels_of(hide.context), volume(), 50 * volume(seed=8))
    before, after = model(volume(), hide), model(changed, hide)
    assert torch.equal(after.predictions, before.predictions)
    assert (after.targets - before.targets).abs().amax(-1).min() > 1e-3
    # a context token knows the others' places, but not those of what is hidden: fewer of them, and nothing moves
    encoder, keep = model.context_encoder, hide.context
    alone = encoder.forward_features(volume(), _only(keep, encoder.num_prefix_tokens))
    seen = encoder.forward_masked(volume(), keep)[:, encoder.num_prefix_tokens :]
    index = keep[..., None].expand(-1, -1, 24)
    close(seen, alone[:, encoder.num_prefix_tokens :].gather(1, index), rtol=0, atol=1e-11)


def _only(keep, prefix):
    """An attention mask: these patches and the prefix tokens."""
    mask = torch.zeros(len(keep), 1, 1, prefix + PATCHES, dtype=torch.bool)
    mask[..., :prefix] = True
    return mask.scatter(3, (keep + prefix)[:, None, None], True)


def test_rotary_positions_train():
    model, hide = rotary(MM).train(), masks()
    model.set_grad_checkpointing()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    losses = []
    for _ in range(4):
        loss = model(volume(), hide).loss
        optimizer.zero_grad()
        loss.backward()
        for name, p in model.named_parameters():
            assert name.startswith("target_encoder") or p.grad.abs().max() > 0, name
        optimizer.step()
        model.update_target(0.99)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # one sample has another spacing: its tokens move, the other's do not
    out = model.eval()(volume(), hide)
    set_spacing(model, [SPACINGS[0], (0.7, 0.7, 4.0)])
    other = model(volume(), hide)
    for first, second in [(out.predictions, other.predictions), (out.targets, other.targets)]:
        close(second[0], first[0], rtol=0, atol=1e-12)
        assert (second[1] - first[1]).abs().max() > 1e-5


# ---- loss and targets


def by_hand(model, x, hide):
    """Predictions and targets of one sample and one block at a time, float64."""
    p, q = model.context_encoder.num_prefix_tokens, model.predictor
    table = sincos_pos_embed(GRID, 12)[0].double()
    all_predictions, all_targets = [], []
    for b in range(len(x)):
        tokens = model.context_encoder._tokens(x[b : b + 1])[0]
        seen = torch.cat([tokens[:, :p], tokens[:, p:][:, hide.context[b]]], 1)
        seen = model.context_encoder.norm(model.context_encoder.blocks(seen))[:, p:]
        full = model.target_encoder.forward_features(x[b : b + 1])[0, p:]
        full = (full - full.mean(1, keepdim=True)) / (full.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        for block in hide.targets[b]:
            asked = q.mask_token + table[block]
            out = torch.cat([q.embed(seen) + table[hide.context[b]], asked[None]], 1)
            for layer in q.blocks:
                out = layer(out)
            all_predictions.append(q.project(q.norm(out))[0, -len(block) :])
            all_targets.append(full[block])
    shape = (*hide.targets.shape, -1)
    return torch.stack(all_predictions).view(shape), torch.stack(all_targets).view(shape)


@torch.no_grad()
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("pos_embed", ["learned", "sincos", "none"])
def test_loss_by_hand(pos_embed, prefix):
    model, hide = exact(pos_embed=pos_embed, **prefix), masks(batch=3)
    out = model(volume(3), hide)
    predictions, targets = by_hand(model, volume(3), hide)
    assert out.predictions.shape == out.targets.shape == (*hide.targets.shape, 24)
    close(out.predictions, predictions, rtol=0, atol=1e-10)
    close(out.targets, targets, rtol=0, atol=1e-10)
    far = (predictions - targets).abs()
    assert (far < 1).any()
    assert (far > 1).any()
    close(out.loss, torch.where(far < 1, far**2 / 2, far - 0.5).mean(), rtol=0, atol=1e-10)


@torch.no_grad()
def test_batch_order_and_neighbours_do_not_matter():
    model, hide, order = exact(), masks(4), torch.tensor([2, 0, 3, 1])
    out = model(volume(4), hide)
    turned = model(volume(4)[order], JEPAMasks(*(part[order] for part in hide)))
    close(turned.predictions, out.predictions[order], rtol=0, atol=1e-11)
    close(turned.targets, out.targets[order], rtol=0, atol=1e-11)
    close(turned.loss, out.loss, rtol=0, atol=1e-11)
    blocks = model(volume(4), JEPAMasks(hide.context, hide.targets.flip(1)))
    close(blocks.predictions.flip(1), out.predictions, rtol=0, atol=1e-11)


@torch.no_grad()
def test_other_grids():
    model, hide = exact(dynamic_img_size=True), masks(grid=(2, 4, 6))
    x = volume(size=(8, 16, 12))
    out = model(MetaTensor(x), hide)
    assert type(out.loss) is torch.Tensor
    close(out.loss, model(x, hide).loss, rtol=0, atol=0)
    # the same as a model built for this size: its positions are those of the new grid
    model.predictor.pos_embed, model.predictor.grid = sincos_pos_embed((2, 4, 6), 12).double(), (2, 4, 6)
    close(model(x, hide).predictions, out.predictions, rtol=0, atol=1e-12)


@torch.no_grad()
def test_targets_know_no_dropout():
    drops = {"drop_path_rate": 0.5, "proj_drop_rate": 0.5, "pos_drop_rate": 0.5}
    model, hide = exact(**drops), masks()
    assert not any(m.training for m in model.train().target_encoder.modules())
    first, second = model(volume(), hide), model(volume(), hide)
    assert torch.equal(first.targets, second.targets)
    assert not torch.equal(first.predictions, second.predictions)
    assert not model.eval().context_encoder.training


# ---- gradients and the moving average


@pytest.mark.parametrize("prefix", PREFIXES)
def test_gradients_reach_all_but_the_target(prefix):
    model = exact(depth=1, **prefix)
    model(volume(), masks()).loss.backward()
    for name, p in model.named_parameters():
        if name.startswith("target_encoder"):
            assert p.grad is None, name
            assert not p.requires_grad, name
        else:  # one without a gradient stops DistributedDataParallel
            assert p.grad is not None, name
            assert p.grad.abs().max() > 0, name


def test_gradient_comes_from_context_voxels_only():
    model, hide, x = exact(), masks(), volume().requires_grad_()
    out = model(x, hide)
    assert not out.targets.requires_grad
    out.loss.backward()
    assert torch.equal(x.grad != 0, voxels_of(hide.context))


def test_gradient_checkpoints_change_nothing():
    grads = []
    for enable in (False, True):
        model = exact()
        model.set_grad_checkpointing(enable)
        assert model.predictor.grad_checkpointing is model.context_encoder.grad_checkpointing is enable
        model(volume(), masks()).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, again in zip(*grads):
        assert torch.equal(plain, again)


def test_target_is_the_moving_average():
    model = tiny()
    average = {k: v.double() for k, v in model.target_encoder.state_dict().items()}
    for name, value in model.context_encoder.state_dict().items():
        assert torch.equal(value.double(), average[name])  # both start alike
    for step, momentum in enumerate((0.9, 0.996, 0.5, 0.99)):
        with torch.no_grad():
            for i, p in enumerate(model.context_encoder.parameters()):
                p.add_(torch.randn(p.shape, generator=rng(100 * step + i)))
        model.update_target(momentum)
        new = model.context_encoder.state_dict()
        average = {k: momentum * v + (1 - momentum) * new[k].double() for k, v in average.items()}
    for name, value in model.target_encoder.state_dict().items():
        close(value.double(), average[name], rtol=1e-6, atol=1e-6)
    kept = copy.deepcopy(model.target_encoder.state_dict())
    model.update_target(1.0)
    assert all(torch.equal(v, kept[k]) for k, v in model.target_encoder.state_dict().items())
    model.update_target(0.0)
    assert all(torch.equal(v, new[k]) for k, v in model.target_encoder.state_dict().items())


class ScaledEmbed(nn.Module):
    """A patch embedding with a statistic, as a batch norm keeps it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.register_buffer("scale", torch.ones(()))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x):
        return self.inner(x) * self.scale


def test_buffers_are_copied():
    model = tiny()
    for encoder in (model.context_encoder, model.target_encoder):
        encoder.patch_embed = ScaledEmbed(encoder.patch_embed)
    model.context_encoder.patch_embed.scale.fill_(3)
    model.update_target(0.9)
    assert model.target_encoder.patch_embed.scale == 3


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_out_of_range(momentum):
    with pytest.raises(UsageError, match="a share from 0 to 1"):
        tiny().update_target(momentum)


def test_averages_of_16_bits_are_refused():
    with pytest.raises(UsageError, match="use autocast"):
        tiny().bfloat16().update_target(0.99)


# ---- training


def blobs(batch, generator):
    """Volumes of one bright ball each, at a random place."""
    axes = [torch.linspace(-1, 1, n) for n in TINY["img_size"]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    middle = torch.rand(batch, 3, 1, 1, 1, generator=generator) - 0.5
    return torch.exp(-4 * (grid - middle).square().sum(1, keepdim=True))


def train(steps, **backbone):
    model, generator = tiny(drop_path_rate=0.1, **backbone), rng(5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(steps):
        x = blobs(8, generator)
        loss = model(x, sample_jepa_masks(8, GRID, generator=generator)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_target(0.99)
        losses.append(loss.item())
    return losses, model


@pytest.mark.slow
def test_loss_goes_down():
    losses, _ = train(30)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.slow
def test_same_seed_same_run():
    (first, one), (second, other) = train(3), train(3)
    assert first == second
    for a, b in zip(one.state_dict().values(), other.state_dict().values()):
        assert torch.equal(a, b)


def test_bfloat16_autocast():
    model, x, hide = tiny(), volume(dtype=torch.float32), masks()
    whole = model(x, hide).loss
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, hide)
    assert out.predictions.dtype is torch.bfloat16
    assert out.loss.dtype is out.targets.dtype is torch.float32
    assert 0 < abs(out.loss.item() - whole.item()) < 0.02 * whole.item()
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model, x, hide = tiny(), volume(dtype=torch.float32), masks()
        alone = copy.deepcopy(model)
        wrapped = DistributedDataParallel(model)
        for _ in range(2):  # a parameter left without a gradient is reported by the second forward
            wrapped(x, hide).loss.backward()
            alone(x, hide).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    for a, b in zip(model.parameters(), alone.parameters()):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


def test_state_dict_holds_all_of_it():
    model, other = exact(), tiny(seed=1).double()
    other.load_state_dict(model.state_dict())
    close(other(volume(), masks()).loss, model(volume(), masks()).loss, rtol=0, atol=0)
    assert {key.split(".")[0] for key in model.state_dict()} == {"context_encoder", "target_encoder", "predictor"}


@torch.no_grad()
def test_encoder_is_the_target_and_loads_elsewhere():
    model = exact(num_classes=4)
    assert model.encoder is model.target_encoder
    net = VisionTransformer3D(**TINY).double().eval()
    net.load_state_dict(model.encoder.state_dict())
    assert torch.equal(net.forward_features(volume()), model.encoder.forward_features(volume()))


# ---- arguments


def test_defaults_follow_the_backbone():
    model = IJEPA(VisionTransformer3D(**TINY))
    assert model.predictor.embed.out_features == 12
    assert [block.attn.num_heads for block in model.predictor.blocks] == [2] * 6
    assert model.no_weight_decay() == {"context_encoder.pos_embed", "context_encoder.cls_token", "predictor.mask_token"}
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("backbone", "predictor", "match"),
    [
        ({}, {"predictor_dim": 5}, "predictor_dim=5"),
        ({}, {"predictor_depth": 0}, "predictor_depth=0"),
        ({}, {"predictor_heads": 5}, "predictor_heads=5.*heads that divide"),
        ({"patch_drop_rate": 0.1}, {}, "patch_drop_rate > 0"),
        ({"fc_norm": True}, {}, "fc_norm=True"),
    ],
)
def test_models_that_cannot_be(backbone, predictor, match):
    with pytest.raises(ValueError, match=match):
        IJEPA(VisionTransformer3D(**TINY, **backbone), **predictor)


@pytest.mark.parametrize(
    ("context", "targets", "match"),
    [
        (torch.zeros(2, 3).long(), torch.zeros(2, 4).long(), r"masks.targets of shape \(2, 4\)"),
        (torch.zeros(2, 3).long(), torch.zeros(3, 2, 4).long(), r"shape \(2, M, Nt\)"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 0, 4).long(), "sample_jepa_masks"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 1, 4).int(), "torch.int32"),
        (torch.zeros(2, 3).long(), torch.full((2, 1, 4), PATCHES), "numbers from 60 to 60; the volumes have 60"),
        (torch.zeros(2, 3).long(), torch.full((2, 1, 4), -1), "numbers from -1"),
        (torch.full((2, 3), PATCHES), torch.zeros(2, 1, 4).long(), "keep has numbers from 60"),
    ],
)
def test_masks_of_something_else(context, targets, match):
    with pytest.raises(ValueError, match=match):
        tiny()(volume(dtype=torch.float32), JEPAMasks(context, targets))
