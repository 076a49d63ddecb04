"""Attention maps against products computed by hand from the weights, and that nothing stays behind."""

import copy

import pytest
import torch
from monai.data import MetaTensor
from timm.layers import Attention, set_fused_attn, use_fused_attn
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D
from monai_vit3d.visualize import attention_maps, grad_cam
from tests.visualize.nets import (
    GRID,
    PATCH,
    SIZE,
    Raises,
    assert_same_condition,
    classifier,
    condition,
    interpolated,
    looking_at_bright_patches,
    patch_values,
    vit,
    volume,
)

KINDS = [
    {},
    {"qk_norm": True},
    {"reg_tokens": 2},
    {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.5, "scale_attn_norm": True},
    {"class_token": False, "global_pool": "avg"},
    {"class_token": False, "global_pool": "avg", "reg_tokens": 2, "pos_embed": "sincos"},
    {"global_pool": "map", "reg_tokens": 1},
    {"num_classes": 0, "global_pool": ""},
]


@pytest.fixture(params=[True, False], ids=["fused", "unfused"])
def fused(request):
    was = bool(use_fused_attn())
    set_fused_attn(request.param)
    yield request.param
    set_fused_attn(was)


def by_hand(net, x):
    """Tokens behind each block, and each block's attention, ``(B, T, T)``, from the weights in float64."""
    net, levels, attentions = copy.deepcopy(net).double().eval(), [], []
    tokens = net.patch_embed(x.double())
    prefix = [p.expand(len(x), -1, -1) for p in (net.cls_token, net.reg_token) if p is not None]
    if net.no_embed_class or net.pos_embed_type == "sincos":
        tokens = torch.cat([*prefix, tokens + net.pos_embed], 1)
    else:
        tokens = torch.cat([*prefix, tokens], 1) + net.pos_embed
    for block in net.blocks:
        a, h = block.attn, block.norm1(tokens)
        q, k, v = (h @ a.qkv.weight.T + a.qkv.bias).view(*h.shape[:2], 3, a.num_heads, -1).unbind(2)
        scores = torch.einsum("bihc,bjhc->bhij", a.q_norm(q), a.k_norm(k)) / q.shape[-1] ** 0.5
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        answer = a.proj(a.norm(torch.einsum("bhij,bjhc->bihc", weights, v).flatten(2)))
        tokens = tokens + block.ls1(answer)
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        levels.append(tokens)
        attentions.append(weights.mean(1))
    return levels, attentions


def shares(net, attention):
    """The class token's row, or the mean of the patches' rows, over the patches."""
    p = net.num_prefix_tokens
    row = attention[:, 0, p:] if net.has_class_token else attention[:, p:, p:].mean(1)
    return (row / row.sum(1, keepdim=True)).float()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_rollout_and_last_block_by_hand(options, fused):
    net, x = vit(**options), volume(2, 1, *SIZE)
    assert net.blocks[0].attn.fused_attn is fused
    maps = attention_maps(net, x)
    _, attentions = by_hand(net, x)
    product = torch.eye(attentions[0].shape[1], dtype=torch.float64)
    for attention in attentions:
        product = (0.5 * attention + 0.5 * torch.eye(attention.shape[1])) @ product
    for ours, theirs in ((maps.rollout, shares(net, product)), (maps.last_block, shares(net, attentions[-1]))):
        torch.testing.assert_close(patch_values(ours), theirs, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(patch_values(ours).sum(1), torch.ones(2))
        torch.testing.assert_close(ours, interpolated(theirs.view(2, 1, *GRID), PATCH, SIZE), atol=1e-6, rtol=1e-4)
        assert patch_values(ours).std() > 0.003  # not uniform
        assert (ours.dtype, ours.shape, ours.requires_grad) == (torch.float32, (2, 1, *SIZE), False)
    assert (maps.head is None) == (options.get("global_pool") != "map")


def pool_by_hand(pool, tokens):
    pool = copy.deepcopy(pool).double()
    width = tokens.shape[2]
    q = (pool.latent[0] @ pool.q.weight.T + pool.q.bias).view(-1, pool.num_heads, width // pool.num_heads)
    k = (tokens @ pool.kv.weight[:width].T + pool.kv.bias[:width]).view(*tokens.shape[:2], *q.shape[1:])
    return torch.softmax(torch.einsum("qhc,bjhc->bhqj", q, k) / q.shape[2] ** 0.5, -1).mean((1, 2))


@pytest.mark.parametrize(
    "backbone", [{}, {"reg_tokens": 2, "class_token": False, "global_pool": "avg"}, {"depth": 4}], ids=str
)
def test_attentive_head_by_hand(backbone, fused):
    net, x = classifier(out_indices=[0, 2], backbone=backbone, num_queries=2), volume(2, 1, *SIZE)
    maps = attention_maps(net, x)
    levels, attentions = by_hand(net.backbone, x)
    norm, p = copy.deepcopy(net.backbone.norm).double(), net.backbone.num_prefix_tokens
    embed = net.head.level_embed.detach().double()
    seen = [norm(levels[i])[:, p:] + embed[n] for n, i in enumerate(net.out_indices)]
    weights = pool_by_hand(net.head.pool, torch.cat(seen, 1))
    first, second = weights.chunk(2, 1)
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close(patch_values(maps.head), (first + second).float(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(patch_values(maps.head).sum(1), torch.ones(2))
    # the last block is that of the last tap
    theirs = shares(net.backbone, attentions[2])
    torch.testing.assert_close(patch_values(maps.last_block), theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("prefix", [False, True])
def test_map_pooling_is_an_attentive_head(prefix):
    net, x = vit(global_pool="map", reg_tokens=1, pool_include_prefix=prefix), volume(2, 1, *SIZE)
    tokens = copy.deepcopy(net.norm).double()(by_hand(net, x)[0][-1])
    weights = pool_by_hand(net.attn_pool, tokens if prefix else tokens[:, 2:])[:, -18:]
    theirs = (weights / weights.sum(1, keepdim=True)).float()
    torch.testing.assert_close(patch_values(attention_maps(net, x).head), theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_other_heads_have_no_map(head):
    assert attention_maps(classifier(head), volume(1, 1, *SIZE)).head is None


@pytest.mark.parametrize("where", [(0, 0, 0), (1, 2, 1), (1, 0, 2)])
@pytest.mark.parametrize("class_token", [True, False])
def test_planted_attention_peaks_where_it_was_planted(where, class_token):
    net = looking_at_bright_patches(
        SIZE, PATCH, class_token=class_token, global_pool="cls_token" if class_token else "avg"
    )
    x = 0.1 * volume(1, 1, *SIZE)
    box = [slice(w * p, (w + 1) * p) for w, p in zip(where, PATCH)]
    x[0, 0, box[0], box[1], box[2]] += 5
    for found in attention_maps(net, x)[:2]:
        peak = torch.tensor(torch.unravel_index(patch_values(found)[0].argmax(), GRID))
        assert tuple(peak.tolist()) == where
        assert patch_values(found).max() > 0.5


# any volume


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("size", [(5, 7, 3), (6, 9, 2), (1, 1, 1), (4, 9, 1)])
def test_padded_volumes_keep_their_size(size, dynamic):
    net = classifier(backbone={"dynamic_img_pad": True, "dynamic_img_size": dynamic})
    x = volume(1, 1, *size)
    pad = [n for s, p in zip(size[::-1], PATCH[::-1]) for n in (0, -s % p)]
    padded = torch.nn.functional.pad(x, pad)
    for ours, whole in zip(attention_maps(net, x), attention_maps(net, padded)):
        assert ours.shape == (1, 1, *size)
        torch.testing.assert_close(ours, whole[..., : size[0], : size[1], : size[2]])
        torch.testing.assert_close(patch_values(whole).sum(), torch.tensor(1.0))


def test_one_volume_has_one_channel():
    net, x = vit(in_chans=2), volume(2, *SIZE)
    assert torch.equal(attention_maps(net, x).rollout, attention_maps(net, x[None]).rollout[0])


def test_metadata_stays():
    affine = torch.tensor([[0.0, -2, 0, 5], [1, 0, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]])
    x = MetaTensor(volume(1, *SIZE), affine=affine, meta={"filename_or_obj": "a.nii"}, applied_operations=[{"id": 1}])
    net = classifier()
    for found in attention_maps(net, x):
        assert isinstance(found, MetaTensor)
        assert torch.equal(found.affine, x.affine)
        assert found.meta["filename_or_obj"] == "a.nii"
        assert found.applied_operations == x.applied_operations
    assert type(attention_maps(net, x.as_tensor()).rollout) is torch.Tensor
    batch = MetaTensor(x[None], meta=x.meta)
    batch.is_batch = True
    assert attention_maps(net, batch).head.is_batch


# the network stays as it was


def restless(**options):
    """A network in training, with every kind of dropout, one part of it in evaluation mode, and with gradients."""
    drops = {"attn_drop_rate": 0.5, "proj_drop_rate": 0.5, "drop_path_rate": 0.5, "pos_drop_rate": 0.5}
    net = classifier(backbone={**drops, "patch_drop_rate": 0.5, **options}, drop_rate=0.5, freeze=1)
    net.train()
    net.backbone.blocks[1].mlp.eval()
    net.head.output.weight.grad = torch.ones_like(net.head.output.weight)
    return net


def test_nothing_changes():
    net, x = restless(), volume(1, 1, *SIZE)
    net.backbone.blocks[1].attn.fused_attn = False  # another than the others'
    before = condition(net)
    maps = attention_maps(net, x)
    assert_same_condition(before, net)
    for ours, again in zip(maps, attention_maps(net.eval(), x)):  # without dropout all along
        assert torch.equal(ours, again)


@pytest.mark.parametrize("part", ["backbone.blocks.1.mlp", "head.output"])
def test_nothing_changes_when_the_network_fails(part):
    net = restless()
    parent, name = part.rsplit(".", 1)
    setattr(net.get_submodule(parent), name, Raises())
    before = condition(net)
    with pytest.raises(RuntimeError, match="broken"):
        attention_maps(net, volume(1, 1, *SIZE))
    assert_same_condition(before, net)


def test_gradient_checkpointing_and_autocast():
    net, x = classifier(), volume(1, 1, *SIZE)
    maps = attention_maps(net, x)
    net.backbone.set_grad_checkpointing()
    for ours, again in zip(maps, attention_maps(net, x)):
        assert torch.equal(ours, again)
    with torch.autocast("cpu", torch.bfloat16):
        half = attention_maps(net, x)
    for ours, again in zip(maps, half):
        torch.testing.assert_close(ours, again, atol=0.02, rtol=0.2)
        torch.testing.assert_close(patch_values(again).sum(), torch.tensor(1.0))


# refusals


class OwnAttention(Attention):
    def forward(self, x, attn_mask=None, is_causal=False):
        return x


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"attn_layer": "diff", "num_heads": 2}, "DiffAttention"),
        ({"block_fn": ParallelScalingBlock}, "ParallelScaling"),
        ({"attn_layer": OwnAttention}, "OwnAttention"),
    ],
)
def test_attention_without_plain_weights(options, name):
    net = vit(**options)
    before = condition(net)
    with pytest.raises(ValueError, match=f"attend by {name}.*attn_layer='attn'"):
        attention_maps(net, volume(1, 1, *SIZE))
    assert_same_condition(before, net)


def test_other_models():
    backbone = VisionTransformer3D((8, 8, 8), 4, embed_dim=24, depth=3, num_heads=3)
    for model in (nn.Linear(2, 2), TokenSegmenter(backbone, "unetr", 2, feature_size=2)):
        with pytest.raises(TypeError, match=f"{type(model).__name__}; expected a TokenClassifier or a Vision"):
            attention_maps(model, volume(1, 1, 8, 8, 8))


def test_other_ranks():
    with pytest.raises(ValueError, match=r"\[6, 9, 3\]; expected \(B, C, H, W, D\) or \(C, H, W, D\)"):
        attention_maps(vit(), volume(*SIZE))


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}])
def test_patches_without_a_token_have_no_share(options):
    """Against the network as it runs, on foreground's tokens alone, its shares put on the grid by hand."""
    net, x = vit(tokens="foreground", **options), volume(1, 1, *SIZE)
    is_foreground = torch.tensor([True, False, True, True, False, True, True, True, False] * 2)
    blocks = x.view(1, 1, 2, 3, 3, 3, 3)
    x = torch.where(is_foreground.view(1, 1, 2, 1, 3, 1, 3), blocks, 0.5).reshape(x.shape)
    weights, handles = [], []
    for block in net.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(lambda _, __, out: weights.append(out[0].mean(0))))
    with torch.no_grad():
        expected_logits = net(x)
    for handle in handles:
        handle.remove()
    count = int(is_foreground.sum())
    prefix = net.num_prefix_tokens
    assert weights[0].shape == (prefix + count,) * 2
    start = torch.zeros(prefix + count, dtype=torch.float64)
    start[0 if prefix else slice(None)] = 1 if prefix else 1 / count
    rolled = start
    for matrix in reversed(weights):
        rolled = rolled @ (matrix.double() + torch.eye(prefix + count, dtype=torch.float64)) / 2
    maps = attention_maps(net, x)
    for found, tokens in ((maps.rollout, rolled), (maps.last_block, start @ weights[-1].double())):
        expected = torch.zeros(18, dtype=torch.float64)
        expected[is_foreground] = tokens[prefix:] / tokens[prefix:].sum()
        torch.testing.assert_close(patch_values(found)[0].double(), expected, atol=1e-6, rtol=0)
    with torch.no_grad():
        assert torch.equal(net(x), expected_logits)


def test_background_has_no_share_of_a_heads_queries_and_supports_no_class():
    net = classifier(backbone={"tokens": "foreground"})
    x = volume(1, 1, *SIZE)
    x[:, :, 3:] = 0.5
    maps = attention_maps(net, x)
    values = patch_values(maps.head)[0]
    assert torch.equal(values[9:], torch.zeros(9))
    assert values.sum() == pytest.approx(1, abs=1e-6)
    assert (values[:9] > 0).all()
    cam = patch_values(grad_cam(net, x, class_idx=0))[0]
    assert torch.equal(cam[9:], torch.zeros(9))
