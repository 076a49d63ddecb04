"""A network with rotary positions: timm's DINOv3 in one slice, every way through it, every form that users run."""

from functools import partial

import pytest
import torch
from timm.layers import Attention, LayerNorm
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, ResPostBlock
from torch import nn

from monai_vit3d.layers import RotaryBlock, RotaryPositions3D, set_spacing
from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D
from tests.helpers import randn
from tests.networks.nets import TINY, noisy

MM = partial(RotaryPositions3D, unit="mm", unit_mm=4.0, spacing_mm=(0.7, 0.7, 5.0))
ROPES = ["patch", MM, "box"]


def volume(seed=7):
    return randn(2, 1, *TINY["img_size"], seed=seed)


class Shifted(nn.Module):
    """The angles of a grid that begins some patches later."""

    def __init__(self, rope, shift):
        super().__init__()
        self.rope, self.shift = rope, shift

    def forward(self, x, grid, patch_size):
        large = tuple(g + s for g, s in zip(grid, self.shift))
        table = self.rope(x, large, patch_size).unflatten(2, large)
        return table[:, :, self.shift[0] :, self.shift[1] :, self.shift[2] :].flatten(2, 4)


@torch.no_grad()
@pytest.mark.parametrize("rope", ["patch", MM])
def test_only_distances_count(rope):
    net = noisy(rope=rope, pos_embed="none", class_token=False, global_pool="avg", fc_norm=False)
    want, net.rope = net.forward_features(volume()), Shifted(net.rope, (3, 0, 5))
    torch.testing.assert_close(net.forward_features(volume()), want, rtol=0, atol=1e-11)
    # a prefix token, which is not rotated, sees places
    net = noisy(rope=rope, pos_embed="none")
    want, net.rope = net.forward_features(volume()), Shifted(net.rope, (3, 0, 5))
    assert (net.forward_features(volume()) - want).abs().max() > 1e-4


@torch.no_grad()
def test_places_count_with_it_and_do_not_without():
    moved = volume().roll(2, 4)  # the patches change places along D, whole
    without = noisy(pos_embed="none")
    torch.testing.assert_close(without(moved), without(volume()), rtol=0, atol=1e-12)
    for rope in ROPES:
        net = noisy(rope=rope, pos_embed="none")
        assert (net(moved) - net(volume())).abs().max() > 1e-4
    net = noisy(rope=MM, pos_embed="none")
    thick = net(volume())
    set_spacing(net, (0.7, 0.7, 1.0))
    assert (net(volume()) - thick).abs().max() > 1e-4


def test_parameters_are_those_of_the_plain_network():
    options = {**TINY, "reg_tokens": 1, "init_values": 0.1, "qk_norm": True, "scale_attn_norm": True}
    torch.manual_seed(0)
    plain = VisionTransformer3D(**options)
    torch.manual_seed(0)
    rotary = VisionTransformer3D(**options, rope="patch")
    assert list(rotary.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(rotary.state_dict().values(), plain.state_dict().values()))
    assert [n for n, _ in rotary.named_buffers()] == [n for n, _ in plain.named_buffers()]
    assert all(type(block) is Block and type(block.attn) is Attention for block in plain.blocks)
    assert all(isinstance(block, Block) for block in rotary.blocks)


@torch.no_grad()
def test_without_rope_the_blocks_run_as_they_are():
    net = noisy(reg_tokens=1)
    assert net.rope is None
    assert torch.equal(net.forward_features(volume()), net.norm(net.blocks(net._tokens(volume())[0])))


@torch.no_grad()
@pytest.mark.parametrize("prefix", [{"class_token": False, "global_pool": "avg", "fc_norm": False}, {"reg_tokens": 2}])
@pytest.mark.parametrize("rope", ROPES)
def test_blocks_by_hand(rope, prefix):
    """Block for block with plain products: prefix tokens unrotated, the others turned as complex numbers."""
    net = noisy(rope=rope, **prefix)
    table, p = net.rope(volume(), (2, 3, 4), (4, 4, 2))[0, 0], net.num_prefix_tokens
    turn = torch.polar(torch.ones(24, 6).double(), torch.atan2(table[:, 0:12:2], table[:, 12::2]))
    turn = torch.cat([torch.ones(p, 6), turn])
    x = net._tokens(volume())[0]
    for block in net.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
        q, k = (torch.view_as_complex(t.unflatten(3, (6, 2)).contiguous()) * turn for t in (q, k))
        weights = ((q @ k.mH).real * 12**-0.5).softmax(-1)
        x = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(net.forward_features(volume()), net.norm(x), rtol=0, atol=1e-11)


def _from_eva(state):
    """Timm's DINOv3 in our names, its kernel one voxel deep."""
    state = {k.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): v for k, v in state.items()}
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][..., None]
    return state


@torch.no_grad()
def test_equals_dinov3_of_timm():
    norm = partial(LayerNorm, eps=1e-5)
    shared = {"embed_dim": 32, "depth": 2, "num_heads": 2, "qkv_bias": False, "init_values": 0.5, "norm_layer": norm}
    torch.manual_seed(0)
    theirs = Eva(
        (12, 20), 4, 1, 0, "avg", **shared, rope_type="dinov3", rope_temperature=100, rope_rotate_half=True,
        use_rot_pos_emb=True, use_abs_pos_emb=False, num_reg_tokens=4, use_fc_norm=False, dynamic_img_size=True,
    )  # fmt: skip
    theirs = theirs.double().eval()
    for i, parameter in enumerate(theirs.parameters()):
        parameter.add_(0.2 * randn(*parameter.shape, seed=i))
    rope = partial(RotaryPositions3D, unit="box", pairs=(4, 4, 0), rotate_half=True)
    ours = VisionTransformer3D((12, 20, 1), (4, 4, 1), **shared, reg_tokens=4, pos_embed="none", rope=rope)
    ours = ours.double().eval()
    ours.load_state_dict(_from_eva(theirs.state_dict()))
    x = randn(2, 1, 12, 20)
    features = theirs.forward_features(x)
    torch.testing.assert_close(ours.forward_features(x[..., None]), features, rtol=0, atol=1e-5)  # float32 angles
    ours.rope.temperature = 200.0
    assert (ours.forward_features(x[..., None]) - features).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("prefix", [{}, {"class_token": False, "global_pool": "avg", "fc_norm": False}])
@pytest.mark.parametrize("rope", ROPES)
def test_visible_patches_keep_their_angles(rope, prefix):
    net, p = noisy(rope=rope, **prefix), int(not prefix)
    everything = torch.arange(24).expand(2, -1)
    features = net.forward_features(volume())
    torch.testing.assert_close(net.forward_masked(volume(), everything), features, rtol=0, atol=1e-12)
    order = randn(2, 24, seed=3).argsort(1)
    mixed = net.forward_masked(volume(), order)[:, p:]
    back = torch.zeros_like(mixed).scatter(1, order[..., None].expand(-1, -1, 24), mixed)
    torch.testing.assert_close(back, features[:, p:], rtol=0, atol=1e-12)
    # fewer patches: as if attention were forbidden to the others
    keep = order[:, :9]
    mask = torch.zeros(2, 1, 1, p + 24, dtype=torch.bool)
    mask[..., :p] = True
    mask.scatter_(3, (keep + p)[:, None, None], True)
    masked = net.forward_features(volume(), mask)[:, p:].gather(1, keep[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(net.forward_masked(volume(), keep)[:, p:], masked, rtol=0, atol=1e-12)


@torch.no_grad()
def test_each_sample_with_its_spacing_is_as_alone():
    net, keep = noisy(rope=MM), randn(2, 24, seed=3).argsort(1)[:, :9]
    spacings = [(0.7, 0.7, 5.0), (1.0, 1.2, 1.0)]
    set_spacing(net, spacings)
    both, seen = net.forward_features(volume()), net.forward_masked(volume(), keep)
    for i, spacing in enumerate(spacings):
        set_spacing(net, spacing)
        one, patches = volume()[i : i + 1], keep[i : i + 1]
        torch.testing.assert_close(net.forward_features(one), both[i : i + 1], rtol=0, atol=1e-12)
        torch.testing.assert_close(net.forward_masked(one, patches), seen[i : i + 1], rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rope", ROPES)
def test_patch_dropout_leaves_the_angles_of_the_patches_that_stay(rope, recompute, monkeypatch):
    """As if attention were forbidden to the patches that go; each sample loses others."""
    net, p = noisy(rope=rope, patch_drop_rate=0.6, reg_tokens=1), 2
    if rope is MM:
        set_spacing(net, [(0.7, 0.7, 5.0), (1, 1.2, 1)])
    x, order = volume(), randn(2, 24, seed=4)
    monkeypatch.setattr(torch, "randn", lambda *size, device: order)  # what timm sorts
    keep = order.argsort(1)[:, : int(24 * (1 - 0.6))]
    mask = torch.zeros(2, 1, 1, p + 24, dtype=torch.bool)
    mask[..., :p] = True
    mask.scatter_(3, (keep + p)[:, None, None], True)
    whole = net.forward_features(x, mask)
    assert whole.shape == (2, 26, 24)  # in eval mode all stay
    want = torch.cat([whole[:, :p], whole[:, p:].gather(1, keep[..., None].expand(-1, -1, 24))], 1)
    net.train().set_grad_checkpointing(recompute)
    torch.testing.assert_close(net.forward_features(x), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(net.forward_intermediates(x, [2], norm=True)[1][0], want, rtol=0, atol=1e-12)
    torch.testing.assert_close(net.token_levels(x, [2])[0], want, rtol=0, atol=1e-12)


def test_patch_dropout_trains_and_can_be_taken_out():
    net = noisy(rope="patch", patch_drop_rate=0.5).train()
    torch.manual_seed(1)
    first = net(volume())
    first.square().sum().backward()
    assert all(p.grad is not None for n, p in net.named_parameters() if not n.startswith("head"))
    assert (net(volume()) - first).abs().max() > 1e-4
    net.patch_drop = nn.Identity()
    assert torch.equal(net(volume()), noisy(rope="patch").train()(volume()))


@pytest.mark.slow
@torch.no_grad()
def test_scripted_patch_dropout_does_not_train_silently():
    net = noisy(rope="patch", patch_drop_rate=0.5)
    scripted = torch.jit.script(net)
    torch.testing.assert_close(scripted(volume()), net(volume()), rtol=0, atol=1e-12)
    with pytest.raises(RuntimeError):
        scripted.train()(volume())


@torch.no_grad()
@pytest.mark.parametrize("corner", [(0, 0, 0), (1, 2, 1)])
@pytest.mark.parametrize("rope", ["patch", MM])
def test_any_size_and_place_is_as_alone(rope, corner):
    """A part of a larger volume that attends to itself only gives what it gives by itself."""
    options = {"pos_embed": "none", "class_token": False, "global_pool": "avg", "fc_norm": False}
    net = noisy(rope=rope, dynamic_img_size=True, **options)
    large, patch = randn(1, 1, 16, 20, 12, seed=5), (4, 4, 2)  # a (4, 5, 6) grid; built for (2, 3, 4)
    box = tuple(slice(c * p, (c + 2) * p) for c, p in zip(corner, patch))
    inside = torch.zeros(4, 5, 6, dtype=torch.bool)
    inside[tuple(slice(c, c + 2) for c in corner)] = True
    inside = inside.flatten()
    tokens = net.forward_features(large, inside[None, None, None])
    alone = net.forward_features(large[(..., *box)])
    torch.testing.assert_close(tokens[:, inside], alone, rtol=0, atol=1e-11)
    assert (net.forward_features(large)[:, inside] - alone).abs().max() > 1e-4
    fixed = noisy(rope=rope, img_size=(16, 20, 12), **options)
    torch.testing.assert_close(net.forward_features(large), fixed.forward_features(large), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("rope", ROPES)
def test_taps_and_other_sizes(rope):
    net = noisy(rope=rope, dynamic_img_size=True, dynamic_img_pad=True, pos_embed="none")
    x = randn(1, 1, 15, 8, 7)
    final, taps = net.forward_intermediates(x, [0, 2], norm=True)
    assert torch.equal(final, net.forward_features(x))
    assert torch.equal(taps[1], final)
    grid, maps = net.token_maps(x, [1])
    assert grid.shape == maps[0].shape == (1, 24, 4, 2, 4)
    fixed = noisy(rope=rope, img_size=(16, 8, 8), pos_embed="none")
    padded = torch.nn.functional.pad(x, (0, 1, 0, 0, 0, 1))
    torch.testing.assert_close(final, fixed.forward_features(padded), rtol=0, atol=1e-12)
    net.set_input_size((16, 8, 8))
    assert torch.equal(net.forward_features(padded), final)


def test_gradient_checkpoints_recompute_with_their_own_angles():
    """The spacing changes between two forward passes and their common backward pass; drop path is drawn anew."""
    grads = []
    for recompute in (False, True):
        net = noisy(rope=MM, drop_path_rate=0.3).train()
        net.set_grad_checkpointing(recompute)
        torch.manual_seed(1)
        set_spacing(net, (1, 1, 1))
        loss = net(volume()).square().sum()
        set_spacing(net, (0.5, 0.5, 8))
        loss = loss + net.forward_masked(volume(), torch.tensor([[1, 5], [3, 0]])).square().sum()
        set_spacing(net, (3, 3, 3))
        loss.backward()
        grads.append([p.grad for p in net.parameters() if p.grad is not None])
    assert len(grads[0]) > 30
    for plain, again in zip(*grads):
        torch.testing.assert_close(again, plain, rtol=0, atol=1e-12)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize(
    "form",
    [
        pytest.param("compile", marks=pytest.mark.slow),
        pytest.param("export", marks=pytest.mark.slow),
        "script",
        "trace",
        "fx",
    ],
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_forms(form, rope):
    net = noisy(rope=rope, reg_tokens=1, num_classes=3, patch_drop_rate=0.5)
    forms = {
        "compile": lambda: torch.compile(net, backend="eager", fullgraph=True),
        "export": lambda: torch.export.export(
            net, (volume(),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        ).module(),
        "script": lambda: torch.jit.script(net),
        "trace": lambda: torch.jit.trace(net, volume()),
        "fx": lambda: torch.fx.symbolic_trace(net),
    }
    x = randn(2 if form == "trace" else 3, 1, *TINY["img_size"], seed=9)
    torch.testing.assert_close(forms[form]()(x), net(x), rtol=0, atol=1e-12)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_network_follows_the_spacing():
    torch._dynamo.reset()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    net = noisy(rope=MM)
    compiled = torch.compile(net, backend=counting, fullgraph=True)
    for depth in (1.0, 2.0, 3.0, 4.0):
        set_spacing(net, (1, 1, depth))
        torch.testing.assert_close(compiled(volume()), net(volume()), rtol=0, atol=1e-12)
    assert len(graphs) == 1


@pytest.mark.slow
@torch.no_grad()
def test_a_segmenter_scripted_and_told_the_spacing():
    backbone = noisy(rope="mm", patch_size=4, depth=4)
    net = TokenSegmenter(backbone, "unetr", num_classes=2, feature_size=4, out_indices=(0,))
    net = net.double().eval()
    with pytest.raises(ValueError, match="none was set"):
        net(volume())
    set_spacing(net, (1, 1, 5))
    out = net(volume())
    torch.testing.assert_close(torch.jit.script(net)(volume()), out, rtol=0, atol=1e-12)
    set_spacing(net, (1, 1, 1))
    assert (net(volume()) - out).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rope": "voxel"}, "'patch', 'mm', 'box'"),
        ({"rope": "patch", "num_heads": 6}, "heads of 4 channels"),
        ({"rope": "patch", "block_fn": ResPostBlock}, "block_fn=ResPostBlock"),
        ({"rope": "patch", "block_fn": partial(ResPostBlock, init_values=0.1)}, "block_fn=ResPostBlock"),
        ({"rope": "patch", "block_fn": lambda **options: Block(**options)}, "block_fn=<lambda>"),
        ({"rope": "patch", "attn_layer": "diff"}, "attn_layer=DiffAttention"),
        ({"rope": "patch", "attn_layer": partial(Attention)}, r"attn_layer=functools.partial"),
    ],
)
def test_errors(options, match):
    with pytest.raises(ValueError, match=match):
        VisionTransformer3D(**{**TINY, **options})


@torch.no_grad()
def test_partial_blocks_and_blocks_without_angles():
    net = noisy(rope="patch", block_fn=partial(Block, init_values=0.5))
    assert type(net.blocks[0]) is RotaryBlock
    assert net.blocks[0].ls1.gamma.shape == (24,)
    with pytest.raises(ValueError, match="needs the patches' angles"):
        net.blocks(net._tokens(volume())[0])
