"""Masks of I-JEPA and MAE: no target token in the context, its floor, every token's turn, cubes in mm, one seed."""

from math import ceil, prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_vit3d.data.errors import UsageError
from monai_vit3d.layers import PatchEmbed3D
from monai_vit3d.pretraining import sample_block_masks, sample_jepa_masks, sample_random_masks

GRIDS = [(4, 4, 4), (8, 8, 8), (6, 8, 3), (16, 16, 4)]
PAPER = {"target_scale": (0.15, 0.2)}
MAE = [sample_random_masks, sample_block_masks]
sizes = st.tuples(*[st.integers(1, 9)] * 3).filter(lambda grid: prod(grid) >= 12)
seeds = st.integers(0, 2**31)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(grid, batch=16, seed=0, **options):
    return sample_jepa_masks(batch, grid, generator=rng(seed), **options)


def draws(grid, times, **options):
    generator = rng()
    return [sample_jepa_masks(32, grid, generator=generator, **options) for _ in range(times)]


def check_disjoint(context, targets):
    for seen, hidden in zip(context.tolist(), targets.flatten(1).tolist()):
        assert not set(seen) & set(hidden), "the context sees what it has to predict"


def boxes(tokens, grid):
    """First corner and sides ``(..., 3)`` of the tokens' bounding boxes, by numpy."""
    places = np.stack(np.unravel_index(tokens.numpy(), grid), -1)
    return places.min(-2), np.ptp(places, axis=-2) + 1


def counts(tokens, grid):
    return torch.bincount(torch.cat([t.flatten() for t in tokens]), minlength=prod(grid)).view(grid)


# I-JEPA


@pytest.mark.slow
@given(
    grid=st.one_of(st.sampled_from(GRIDS), sizes),
    batch=st.integers(1, 5),
    targets=st.integers(1, 8),
    low=st.floats(0.02, 0.25),
    floor=st.floats(0, 0.55),
    patch_mm=st.none() | st.tuples(*[st.floats(0.5, 50)] * 3),
    seed=seeds,
)
def test_masks_of_any_grid(grid, batch, targets, low, floor, patch_mm, seed):
    options = {"targets": targets, "target_scale": (low, low + 0.05), "patch_mm": patch_mm}
    context, blocks = draw(grid, batch, seed, min_context=floor, **options)
    check_disjoint(context, blocks)
    assert context.dtype == blocks.dtype == torch.long
    assert len(context) == batch
    assert context.shape[1] >= floor * prod(grid) - 1e-6
    assert context.shape[1] >= 1
    assert blocks.shape[:2] == (batch, targets)
    for tokens in (context, blocks):
        assert (tokens.diff(dim=-1) > 0).all()  # ascending, none twice
        assert tokens.min() >= 0
        assert tokens.max() < prod(grid)
    _, sides = boxes(blocks, grid)
    assert (sides.reshape(-1, 3) == sides[0, 0]).all()
    assert prod(sides[0, 0]) == blocks.shape[2]  # whole blocks


@pytest.mark.parametrize("grid", GRIDS)
def test_leaks_are_found(grid):
    _, targets = draw(grid)
    mask = torch.zeros(16, prod(grid), dtype=torch.bool).scatter_(1, targets.flatten(1), True)
    keep = ~mask.bool().int()  # -1 and -2: never 0
    leaky = torch.stack([row.nonzero()[:, 0] for row in keep])
    with pytest.raises(AssertionError, match="has to predict"):
        check_disjoint(leaky, targets)
    check_disjoint(torch.where(mask, -1, torch.arange(prod(grid))), targets)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, PAPER], ids=["default", "paper"])
@pytest.mark.parametrize("grid", [*GRIDS, (5, 5, 5), (1, 9, 7)])
def test_every_token_has_its_turn(grid, options):
    masks = draws(grid, 150, **options)
    assert (counts([m.targets for m in masks], grid) > 0).all()
    assert (counts([m.context for m in masks], grid) > 0).all()


@pytest.mark.parametrize("grid", [(16, 16, 16), (9, 9, 9)])
def test_no_token_is_in_every_place_of_a_target(grid):
    for seed in range(40):
        _, sides = boxes(draw(grid, 1, seed, **PAPER).targets, grid)
        assert (2 * sides[0, 0] <= grid).any()


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
def test_the_middle_is_seen_about_as_often_as_in_2d(grid):
    def seen(size, **options):
        masks = draws(size, 60, **options)
        middle = tuple(slice((n - 1) // 2, n // 2 + 1) for n in size)
        return counts([m.context for m in masks], size)[middle].float().mean() / (60 * 32)

    assert seen(grid) > 0.9 * seen((14, 14, 1), min_context=0.0, **PAPER)


def test_no_end_of_the_grid_is_preferred():
    masks = draws((8, 8, 8), 100, context_scale=(1.0, 1.0))
    for tokens in ([m.context for m in masks], [m.targets for m in masks]):
        share = counts(tokens, (8, 8, 8)).double()
        for axis in range(3):
            first, last = share.sum(tuple({0, 1, 2} - {axis}))[[0, -1]].tolist()
            assert first == pytest.approx(last, rel=0.06)


@pytest.mark.parametrize("grid", GRIDS)
def test_context_is_the_complement_of_all_targets(grid):
    context, targets = draw(grid, 1, context_scale=(1.0, 1.0))
    expected = np.setdiff1d(np.arange(prod(grid)), targets.numpy())
    np.testing.assert_array_equal(context[0].numpy(), expected)


def test_context_is_reduced_to_the_common_count():
    context, targets = draw((8, 8, 8), 16, context_scale=(1.0, 1.0))
    assert context.shape[1] == min(512 - len(set(t)) for t in targets.flatten(1).tolist())


def test_context_lies_in_a_large_block():
    contexts = [draw((12, 12, 12), 1, seed, context_scale=(0.85, 0.85)).context for seed in range(20)]
    sides = np.array([boxes(context, (12, 12, 12))[1][0] for context in contexts])
    assert sides.prod(1) == pytest.approx(0.85 * 12**3, rel=0.04)
    assert (np.ptp(sides, axis=0) > 0).all()  # any axis may be the longer one


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("floor", [0.3, 0.5, 0.6])
def test_floor_holds_where_it_binds(grid, floor):
    masks = draws(grid, 20, targets=8, min_context=floor, **PAPER)
    least = min(m.context.shape[1] for m in masks)
    assert ceil(floor * prod(grid)) <= least <= floor * prod(grid) + 0.1 * prod(grid)
    for m in masks:
        check_disjoint(*m)


@given(grid=st.tuples(*[st.integers(1, 4)] * 3).filter(lambda grid: prod(grid) > 1), seed=seeds)
def test_small_grids_are_not_refused(grid, seed):
    context, targets = draw(grid, 4, seed)
    check_disjoint(context, targets)
    assert context.shape[1] >= 0.4 * prod(grid)


def test_scale_is_kept():
    shares = [draw((16, 16, 16), 1, seed).targets.shape[2] / 16**3 for seed in range(60)]
    assert 0.07 < min(shares) < 0.09
    assert 0.11 < max(shares) < 0.13
    assert np.mean(shares) == pytest.approx(0.1, abs=0.006)


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.75, 1.5)])
def test_aspect_of_any_two_axes(low, high):
    sides = np.array(
        [boxes(draw((32, 32, 32), 1, s, aspect=(low, high)).targets, (32, 32, 32))[1][0, 0] for s in range(60)]
    )
    widest = (high / low) ** 0.5
    for a, b in ((0, 1), (1, 2), (0, 2)):
        ratio = sides[:, a] / sides[:, b]
        assert ratio.max() <= widest * 1.16  # a patch more of 14, a patch less
        assert ratio.max() >= 1 + 0.7 * (widest - 1)
        assert np.log(ratio).mean() == pytest.approx(0, abs=0.08)


def test_cubes_in_mm():
    patch_mm = np.array([8.0, 8.0, 40.0])
    options = {"aspect": (1.0, 1.0), "target_scale": (0.1, 0.1)}
    edge = (0.1 * prod((16, 16, 4) * patch_mm)) ** (1 / 3)
    _, in_mm = boxes(draw((16, 16, 4), 1, patch_mm=patch_mm, **options).targets, (16, 16, 4))
    assert (abs(in_mm[0, 0] * patch_mm - edge) <= patch_mm).all()
    assert prod(in_mm[0, 0] * patch_mm) == pytest.approx(edge**3, rel=0.05)
    _, in_tokens = boxes(draw((16, 16, 4), 1, **options).targets, (16, 16, 4))
    assert np.ptp(in_tokens[0, 0][:2]) <= 1
    assert in_tokens[0, 0][2] == 4


@pytest.mark.slow
def test_lengths_in_mm_are_alike_on_average():
    generator, sides = rng(), []
    for _ in range(100):
        masks = sample_jepa_masks(1, (32, 32, 8), patch_mm=(8, 8, 40), generator=generator)
        sides.append(boxes(masks.targets, (32, 32, 8))[1][0, 0] * (8, 8, 40))
    h, w, d = np.mean(sides, 0)
    assert h == pytest.approx(w, rel=0.1)
    assert d == pytest.approx(h, rel=0.2)


def test_thin_grids_keep_the_volume():
    _, sides = boxes(draw((16, 16, 2), 1, target_scale=(0.1, 0.1)).targets, (16, 16, 2))
    assert sides[0, 0][2] == 2
    assert prod(sides[0, 0]) == pytest.approx(0.1 * 512, rel=0.15)


@pytest.mark.slow
def test_targets_go_where_the_foreground_is():
    foreground = torch.zeros(16, 8, 8, 8)
    foreground[:8, :4, :4, :4] = foreground[8:, 4:, 4:, 4:] = 1

    def share(weights):
        masks = draws_with(weights)
        hit = [foreground.flatten(1).gather(1, m.targets.flatten(1)).mean() for m in masks]
        return float(np.mean(hit))

    def draws_with(weights):
        return [draw((8, 8, 8), 16, seed, foreground=weights) for seed in range(20)]

    assert share(foreground) > 2 * share(None)
    for masks in draws_with(foreground):
        check_disjoint(*masks)


def test_without_foreground_places_are_uniform():
    for a, b in zip(draw((6, 8, 3)), draw((6, 8, 3), foreground=torch.zeros(16, 6, 8, 3))):
        assert torch.equal(a, b)


def test_tokens_are_numbered_as_the_networks_do():
    grid = (4, 6, 5)
    embed = PatchEmbed3D(grid, 1, embed_dim=1, bias=False)
    torch.nn.init.ones_(embed.proj.weight)
    _, targets = draw(grid, 1)
    volume = torch.zeros(1, 1, *grid)
    (h, w, d), (sh, sw, sd) = (x[0, 0] for x in boxes(targets, grid))
    volume[0, 0, h : h + sh, w : w + sw, d : d + sd] = 1
    with torch.no_grad():
        tokens = embed(volume)[0, :, 0]
    assert torch.equal(tokens.nonzero()[:, 0], targets[0, 0])


# one seed, one mask


@pytest.mark.parametrize("sample", [sample_jepa_masks, *MAE])
def test_only_the_generator_counts(sample):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sample(3, (6, 8, 3), generator=rng(7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    generator = rng(7)
    again, next_one = (sample(3, (6, 8, 3), generator=generator, device="cpu") for _ in range(2))
    for a, b, c in zip(first, again, next_one):
        assert torch.equal(a, b)
        assert a.shape != c.shape or not torch.equal(a, c)
        assert not torch.equal(a[0], a[1])  # samples differ too


# MAE


@pytest.mark.slow
@pytest.mark.parametrize("sample", MAE)
@given(grid=st.one_of(st.sampled_from(GRIDS), sizes), batch=st.integers(1, 4), ratio=st.floats(0.1, 0.9), seed=seeds)
def test_masked_and_visible_share_the_grid(sample, grid, batch, ratio, seed):
    visible, masked = sample(batch, grid, ratio, generator=rng(seed))
    assert masked.shape == (batch, round(ratio * prod(grid)))
    assert visible.dtype == masked.dtype == torch.long
    for tokens in (visible, masked):
        assert (tokens.diff(dim=1) > 0).all()
    both = torch.cat([visible, masked], 1).sort(1).values
    assert torch.equal(both, torch.arange(prod(grid)).expand(batch, -1))


@pytest.mark.slow
@pytest.mark.parametrize("sample", MAE)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_token_is_masked_and_seen(sample, grid):
    generator = rng()
    masks = [sample(64, grid, generator=generator) for _ in range(10)]
    assert (counts([m.visible for m in masks], grid) > 0).all()
    assert (counts([m.masked for m in masks], grid) > 0).all()


def test_random_tokens_are_equally_often_visible():
    visible = sample_random_masks(4000, (4, 4, 4), generator=rng()).visible
    share = counts([visible], (4, 4, 4)) / 4000
    assert abs(share - 0.25).max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_blocks_have_fewer_borders_than_random_tokens(ratio):
    def borders(sample):
        masked = sample(16, (8, 8, 8), ratio, generator=rng()).masked
        mask = torch.zeros(16, 512).scatter_(1, masked, 1).view(16, 8, 8, 8)
        return sum(mask.diff(dim=axis).abs().sum() for axis in (1, 2, 3))

    assert borders(sample_block_masks) < 0.6 * borders(sample_random_masks)


def test_last_block_is_masked_from_its_middle():
    for seed in range(10):
        masked = sample_block_masks(8, (12, 12, 12), 0.02, scale=(0.2, 0.2), generator=rng(seed)).masked
        _, sides = boxes(masked, (12, 12, 12))
        assert (sides.prod(-1) <= 2 * masked.shape[1]).all()  # a smaller box, but for its last layer


@pytest.mark.slow
@pytest.mark.parametrize("grid", [*GRIDS, (16, 16, 16)])
def test_blocks_leave_the_middle_visible(grid):
    generator, seen = rng(), []
    for _ in range(10):
        seen.append(sample_block_masks(32, grid, generator=generator).visible)
    share = counts(seen, grid) / 320
    middle = tuple(slice((n - 1) // 2, n // 2 + 1) for n in grid)
    assert 0.1 < share[middle].mean() < 0.4


def test_blocks_in_mm():
    masked = sample_block_masks(
        64, (16, 16, 4), 0.012, scale=(0.1, 0.1), aspect=(1, 1), patch_mm=(8, 8, 40), generator=rng()
    ).masked
    _, sides = boxes(masked, (16, 16, 4))
    assert (sides[:, 2] <= 2).all()
    h, w, d = sides.mean(0)
    assert h == pytest.approx(w, rel=0.2)
    assert h > 1.5 * d


# what cannot be done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch=0"),
        ({"grid": (8, 8)}, r"grid=\(8, 8\)"),
        ({"grid": (8, 0, 8)}, "grid"),
        ({"grid": (1, 1, 1)}, "two patches"),
        ({"grid": (2.5, 2, 2)}, "grid"),
        ({"targets": 0}, "targets=0"),
        ({"target_scale": (0.2, 0.1)}, "target_scale"),
        ({"target_scale": (0.0, 0.1)}, "target_scale"),
        ({"context_scale": (0.9, 1.2)}, "context_scale"),
        ({"aspect": (0, 1)}, "aspect"),
        ({"aspect": (float("nan"), 1)}, "aspect"),
        ({"min_context": 0.9}, "Lower target_scale or min_context"),
        ({"min_context": -0.1}, "min_context=-0.1"),
        ({"min_context": float("nan")}, "min_context=nan"),
        ({"target_scale": (0.5, 0.6)}, "Lower target_scale"),
        ({"patch_mm": (1, 1)}, "patch_mm"),
        ({"patch_mm": (1, 1, 0)}, "patch_mm"),
        ({"patch_mm": (1, 1, float("inf"))}, "patch_mm"),
        ({"foreground": torch.zeros(2, 4, 4, 5)}, r"\(2, 4, 4, 4\)"),
        ({"foreground": torch.full((2, 4, 4, 4), 2.0)}, "0 to 1"),
        ({"foreground": torch.full((2, 4, 4, 4), float("nan"))}, "0 to 1"),
    ],
)
def test_refused(options, message):
    with pytest.raises(UsageError, match=message):
        sample_jepa_masks(**{"batch": 2, "grid": (4, 4, 4), "generator": rng(), **options})


@pytest.mark.parametrize("sample", MAE)
@pytest.mark.parametrize("ratio", [0, 1, -0.5, 0.001, 0.999, float("nan")])
def test_ratio_refused(sample, ratio):
    with pytest.raises(UsageError, match="ratio="):
        sample(2, (4, 4, 4), ratio, generator=rng())


@pytest.mark.parametrize("sample", [sample_jepa_masks, *MAE])
def test_two_patches_are_enough(sample):
    options = {} if sample is sample_jepa_masks else {"ratio": 0.5}
    first, second = sample(4, (1, 1, 2), generator=rng(), **options)
    assert (first.flatten(1)[:, 0] + second.flatten(1)[:, 0] == 1).all()
