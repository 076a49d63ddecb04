"""Rotary positions in float64: against complex numbers by loops, against timm in 2D, and what only distances decide."""

import cmath
import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import AttentionRope, apply_rot_embed_cat, build_rotary_pos_embed
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import nn

from monai_vit3d.layers import RotaryPositions3D, keep_rows, set_spacing, split_pairs
from tests.helpers import randn

GRID, PATCH = (2, 3, 4), (4, 4, 2)
PLAIN = torch.zeros(2, dtype=torch.float64)  # an image of two samples, as far as the table cares

widths = st.integers(3, 20).map(lambda n: 2 * n)
grids = st.tuples(*[st.integers(1, 5)] * 3)
spacings = st.tuples(*[st.floats(0.1, 9)] * 3)


def rows(rope, grid=GRID, patch=PATCH):
    table = rope(PLAIN, grid, patch)
    assert table.shape[1:] == (1, grid[0] * grid[1] * grid[2], 2 * rope.head_dim)
    assert table.dtype == torch.float64
    return table[:, 0]


def scores(q, k, table, half=False):
    """Products of all rotated queries with all rotated keys."""
    return apply_rot_embed_cat(q, table, half) @ apply_rot_embed_cat(k, table, half).transpose(-2, -1)


def by_complex_numbers(x, grid, first, steps, pairs, temperature, half):
    """Every pair of channels as one complex number, turned by hand."""
    out, width = x.clone(), x.shape[-1]
    axis_of = [axis for axis in range(3) for _ in range(pairs[axis])]
    for n, place in enumerate(itertools.product(*map(range, grid))):
        for i, axis in enumerate(axis_of):
            k = i - sum(pairs[:axis])
            angle = (first[axis] + place[axis]) * steps[axis] * temperature ** (-k / max(pairs))
            a, b = (i, i + width // 2) if half else (2 * i, 2 * i + 1)
            turned = complex(x[n, a], x[n, b]) * cmath.exp(1j * angle)
            out[n, a], out[n, b] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("pairs", [None, (2, 3, 0), (0, 1, 4), (1, 1, 1)])
@pytest.mark.parametrize(
    ("unit", "steps"),
    [
        ("patch", (1, 1, 1)),
        ("mm", (0.7 * 4 / 16, 0.8 * 4 / 16, 5.0 * 2 / 16)),
        ("box", tuple(torch.pi * 4 / n for n in GRID)),
    ],
)
def test_equals_complex_numbers(unit, steps, pairs, half):
    rope = RotaryPositions3D(16, unit, pairs=pairs, rotate_half=half, temperature=50, spacing_mm=(0.7, 0.8, 5.0))
    x = randn(24, 16)
    first = (0, 0, 0) if unit == "patch" else (-0.5, -1, -1.5)  # the middle of the grid is 0
    want = by_complex_numbers(x, GRID, first, steps, pairs or (3, 3, 2), 50, half)
    torch.testing.assert_close(apply_rot_embed_cat(x, rows(rope)[0], half), want, rtol=0, atol=1e-12)


@given(width=widths, grid=grids, spacing=spacings, unit=st.sampled_from(["patch", "mm", "box"]), half=st.booleans())
def test_norms_stay(width, grid, spacing, unit, half):
    rope = RotaryPositions3D(width, unit, rotate_half=half, spacing_mm=spacing)
    x = randn(grid[0] * grid[1] * grid[2], width)
    turned = apply_rot_embed_cat(x, rows(rope, grid)[0], half)
    torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1), rtol=0, atol=1e-12)


@given(grid=grids, shift=st.tuples(*[st.integers(0, 4)] * 3), spacing=spacings, unit=st.sampled_from(["patch", "mm"]))
def test_shifting_the_grid_leaves_the_scores(grid, shift, spacing, unit):
    rope = RotaryPositions3D(12, unit, spacing_mm=spacing)
    q, k = randn(2, grid[0] * grid[1] * grid[2], 12)
    large = tuple(g + s for g, s in zip(grid, shift))
    corner = rows(rope, large)[0].view(*large, 24)[shift[0] :, shift[1] :, shift[2] :].reshape(-1, 24)
    torch.testing.assert_close(scores(q, k, corner), scores(q, k, rows(rope, grid)[0]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("unit", ["patch", "mm", "box"])
def test_every_axis_counts_by_itself(unit, axis):
    rope = RotaryPositions3D(12, unit, spacing_mm=(1.0, 1.0, 5.0))
    table = rows(rope)[0].view(*GRID, 2, 6, 2)  # sines and cosines, pairs, twice the same
    others = [a for a in range(3) if a != axis]
    mine = table.movedim(axis, 0)[..., 2 * axis : 2 * axis + 2, :]
    assert (mine[1:] - mine[:-1]).abs().amin(0).max() > 1e-3
    for other in others:  # the pairs of one axis do not turn along another
        theirs = table.movedim(axis, 0)[..., 2 * other : 2 * other + 2, :]
        assert torch.equal(theirs[1:], theirs[:-1])


@given(spacing=spacings, grid=grids)
def test_millimetres_decide_and_not_voxels(spacing, grid):
    table = rows(RotaryPositions3D(12, "mm", spacing_mm=spacing), grid)
    finer = RotaryPositions3D(12, "mm", spacing_mm=[s / 2 for s in spacing])
    assert torch.equal(rows(finer, grid, tuple(2 * p for p in PATCH)), table)
    far = RotaryPositions3D(12, "mm", spacing_mm=[2 * s for s in spacing], unit_mm=32.0)
    assert torch.equal(rows(far, grid), table)
    # every second patch of the finer grid lies where a patch of the coarser one does, but for half a finer step
    fine = rows(finer, tuple(2 * g for g in grid))[0].view(*(2 * g for g in grid), 24)[::2, ::2, ::2].reshape(-1, 24)
    q, k = randn(2, fine.shape[0], 12)
    torch.testing.assert_close(scores(q, k, fine), scores(q, k, table[0]), rtol=0, atol=1e-10)


def test_sixteen_voxels_of_one_millimetre_are_a_patch():
    mm = RotaryPositions3D(64, "mm", spacing_mm=(1, 1, 1))
    q, k = randn(2, 24, 64)
    ours, want = rows(mm, GRID, (16, 16, 16))[0], rows(RotaryPositions3D(64))[0]
    torch.testing.assert_close(scores(q, k, ours), scores(q, k, want), rtol=0, atol=1e-11)


def test_each_sample_has_its_spacing():
    rope = RotaryPositions3D(12, "mm", spacing_mm=torch.tensor([[1, 1, 1], [0.7, 0.7, 5]], dtype=torch.float64))
    for table, spacing in zip(rows(rope), [(1, 1, 1), (0.7, 0.7, 5)]):
        assert torch.equal(table, rows(RotaryPositions3D(12, "mm", spacing_mm=spacing))[0])
    with pytest.raises(ValueError, match="set for 2 samples, but the batch has 3"):
        rope(torch.zeros(3), GRID, PATCH)


def timm_table(grid, width, temperature):
    bands = temperature ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    sin_cos = build_rotary_pos_embed(grid, bands, in_pixels=False, dtype=torch.float64)
    return torch.cat(sin_cos, -1)


@pytest.mark.parametrize("axis", range(3))
def test_equals_timm_in_2d(axis):
    grid, pairs = [3, 5], [4, 4]
    grid.insert(axis, 1)
    pairs.insert(axis, 0)
    ours = rows(RotaryPositions3D(16, pairs=tuple(pairs), temperature=10000), tuple(grid))[0]
    torch.testing.assert_close(ours, timm_table([3, 5], 16, 10000), rtol=0, atol=1e-12)
    torch.manual_seed(0)
    attention = AttentionRope(32, 2, num_prefix_tokens=2).double()
    x, theirs = randn(2, 17, 32), timm_table([3, 5], 16, 10000)
    torch.testing.assert_close(attention(x, ours), attention(x, theirs), rtol=0, atol=1e-12)
    assert (attention(x, ours) - attention(x)).abs().max() > 1e-3


def test_default_split_on_one_slice_is_timm_on_the_channels_of_that_plane():
    ours = rows(RotaryPositions3D(12), (3, 5, 1))[0]
    q, k = randn(2, 15, 12)
    plane = scores(q[:, :8], k[:, :8], timm_table([3, 5], 8, 100))
    torch.testing.assert_close(scores(q, k, ours), plane + q[:, 8:] @ k[:, 8:].T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 3])
def test_equals_dinov3(depth):
    rope = RotaryPositions3D(16, "box", pairs=(4, 4, 0), rotate_half=True)
    theirs = RotaryEmbeddingDinoV3(16, rotate_half=True).get_embed([3, 5]).double()  # timm's angles are float32
    for one_slice in rows(rope, (3, 5, depth))[0].view(15, depth, 32).unbind(1):
        torch.testing.assert_close(one_slice, theirs, rtol=0, atol=2e-6)


def test_kept_rows_by_loops():
    rope = RotaryPositions3D(12, "mm", spacing_mm=(1, 2, 3))
    keep = torch.tensor([[5, 0, 23], [7, 7, 1]])
    kept = keep_rows(rope(PLAIN, GRID, PATCH), keep)
    assert kept.shape == (2, 1, 3, 24)
    for sample, numbers in enumerate(keep.tolist()):
        for i, number in enumerate(numbers):
            assert torch.equal(kept[sample, 0, i], rows(rope)[0, number])
    rope.spacing_mm = torch.tensor([[1, 1, 1], [0.7, 0.7, 5]], dtype=torch.float64)
    kept = keep_rows(rope(PLAIN, GRID, PATCH), keep)
    assert torch.equal(kept[1, 0, 2], rows(rope)[1, 1])


def test_split_of_every_width():
    assert split_pairs(64) == (11, 11, 10)
    for width in range(6, 130, 2):
        pairs = split_pairs(width)
        assert sum(pairs) == width // 2
        assert pairs[0] >= pairs[1] >= pairs[2] >= max(1, pairs[0] - 1)


def test_pairs_that_no_axis_takes_stay():
    x = randn(24, 16)
    turned = apply_rot_embed_cat(x, rows(RotaryPositions3D(16, pairs=(2, 2, 2)))[0])
    assert torch.equal(turned[:, 12:], x[:, 12:])
    assert (turned[:, :12] - x[:, :12]).abs().amax(0).min() > 1e-3


def test_float32_and_below_give_float32():
    fine = rows(RotaryPositions3D(64), (4, 4, 40))
    for dtype in (torch.float32, torch.bfloat16):
        table = RotaryPositions3D(64)(torch.zeros(1, dtype=dtype), (4, 4, 40), PATCH)
        assert table.dtype == torch.float32
        torch.testing.assert_close(table[:, 0].double(), fine, rtol=0, atol=1e-7)


def test_set_spacing_reaches_all_and_a_cast_does_not_touch_it():
    student = nn.Sequential(RotaryPositions3D(12, "mm"), RotaryPositions3D(12))
    both = nn.ModuleList([student, copy.deepcopy(student)])
    spacing = torch.tensor([0.7, 0.7, 5.0], dtype=torch.float64)
    set_spacing(both, spacing)
    spacing.fill_(9)  # the caller's tensor is not ours
    both.half()
    for net in both:
        assert net[0].spacing_mm.tolist() == [[0.7, 0.7, 5.0]]
        assert net[1].spacing_mm is None
    assert not both.state_dict()
    assert not list(both.buffers())


@pytest.mark.parametrize(
    ("spacing", "match"),
    [
        ((1, 1), "three positive numbers"),
        ((1, 1, 0), "three positive numbers"),
        ((1, -1, 1), "three positive numbers"),
        ((1, 1, float("nan")), "three positive numbers"),
        ((1, 1, float("inf")), "finite"),
        (1.0, "three positive numbers"),
        ("mm", "three positive numbers"),
        ([], "three positive numbers"),
        ([[1, 1], [1, 1]], "three positive numbers"),
        ([[[1, 1, 1]]], "three positive numbers"),
    ],
)
def test_spacings_that_are_none(spacing, match):
    rope = RotaryPositions3D(12, "mm", spacing_mm=(1, 2, 3))
    with pytest.raises(ValueError, match=match):
        set_spacing(rope, spacing)
    assert rope.spacing_mm.tolist() == [[1, 2, 3]]


def test_a_ladder_of_its_own_is_what_a_temperature_stands_for():
    ladder = [50.0 ** (-k / 3) for k in range(3)]
    for options in ({"unit": "box", "rotate_half": True}, {"reference": (4, 4, 4), "offset": 1}):
        own, powers = (RotaryPositions3D(16, pairs=(3, 2, 2), **options, **more) for more in
                       ({"ladder": ladder}, {"temperature": 50.0}))  # fmt: skip
        torch.testing.assert_close(rows(own), rows(powers), rtol=0, atol=1e-12)
    fast = rows(RotaryPositions3D(16, pairs=(3, 2, 2), ladder=[2 * speed for speed in ladder]), (1, 1, 2))
    slow = rows(RotaryPositions3D(16, pairs=(3, 2, 2), ladder=ladder), (1, 1, 3))
    assert torch.equal(fast[:, 1], slow[:, 2])


def test_repeated_ladders_by_loops():
    table = rows(RotaryPositions3D(20, pairs=(3, 3, 3), temperature=10.0, repeated=True))[0]
    for n, place in enumerate(itertools.product(*map(range, GRID))):
        for channel in range(20):
            axis, inner = divmod(channel, 6)
            angle = place[axis] * 10.0 ** (-(inner % 3) / 3) if axis < 3 else 0.0
            expected = cmath.exp(1j * angle)
            assert abs(complex(table[n, 20 + channel], table[n, channel]) - expected) < 1e-12


def test_axes_that_are_counted_in_another_order():
    plain, counted = RotaryPositions3D(12), RotaryPositions3D(12, axis_order=(2, 0, 1))
    assert torch.equal(rows(counted), rows(plain, (GRID[2], GRID[0], GRID[1])))
    assert not torch.equal(rows(counted), rows(plain))


def test_errors():
    for width in (4, 7, 13):
        with pytest.raises(ValueError, match=f"heads of {width} channels"):
            RotaryPositions3D(width)
    with pytest.raises(ValueError, match="heads of 13 channels"):
        RotaryPositions3D(13, pairs=(2, 2, 2))
    for pairs in [(3, 3, 3), (0, 0, 0), (-1, 2, 2)]:
        with pytest.raises(ValueError, match="at most 8 in all"):
            RotaryPositions3D(16, pairs=pairs)
    with pytest.raises(ValueError, match="'patch', 'mm', 'box'"):
        RotaryPositions3D(12, "voxel")
    for option in ({"temperature": 1.0}, {"unit_mm": 0.0}, {"unit_mm": float("nan")}):
        with pytest.raises(ValueError, match="more than 1 and more than 0"):
            RotaryPositions3D(12, "mm", **option)
    for option, match in (
        ({"ladder": (1.0, 0.5)}, "ladder of 2 speeds; expected 3"),
        ({"repeated": True, "rotate_half": True}, "repeated=True pairs neighbours"),
        ({"axis_order": (0, 1, 1)}, "expected 0, 1 and 2 in some order"),
    ):
        with pytest.raises(ValueError, match=match):
            RotaryPositions3D(12, pairs=(3, 2, 1), **option)
    with pytest.raises(ValueError, match="none was set: call"):
        RotaryPositions3D(12, "mm")(PLAIN, GRID, PATCH)
    for net in (RotaryPositions3D(12), nn.Linear(1, 1)):
        with pytest.raises(ValueError, match="no rotary positions in mm"):
            set_spacing(net, (1, 1, 1))
