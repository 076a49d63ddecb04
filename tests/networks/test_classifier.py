"""TokenClassifier: what it computes, what it leaves out, what it freezes, and how its layers learn."""

import copy
import math
import pickle
import re
from functools import partial

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet
from timm.models import group_parameters
from torch import nn
from torch.nn import functional as F

from monai_vit3d.layers import ConvStem3D
from monai_vit3d.networks import (
    HEADS,
    TokenClassifier,
    VisionTransformer3D,
    encode_target,
    layer_decay_groups,
    probabilities,
    task_loss,
)
from tests.helpers import pairwise
from tests.networks.test_vit3d_timm_parity import pair, randn, randomise

SIZE, PATCH, CLASSES = (16, 24, 8), (8, 8, 4), 3
TASKS = ["multi-class", "multi-label", "ordinal", "regression"]
close = partial(torch.testing.assert_close, rtol=0, atol=1e-9)
all_heads = pytest.mark.parametrize("head", HEADS)


def backbone(size=SIZE, patch=PATCH, **options):
    torch.manual_seed(0)
    return VisionTransformer3D(size, patch, **{"embed_dim": 24, "depth": 4, "num_heads": 2, **options})


def classifier(head="linear", task="multi-class", out_indices=None, freeze=None, head_options=None, **options):
    """A classifier in float64 and evaluation mode, noise on every parameter."""
    net = TokenClassifier(backbone(**options), head, CLASSES, task, out_indices, freeze, **head_options or {})
    return randomise(net)


def volume(batch=2, size=SIZE, seed=1):
    return randn(batch, 1, *size, seed=seed)


# what it computes


@pytest.mark.parametrize("task", TASKS)
@all_heads
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reg_tokens": 3, "no_embed_class": True, "pre_norm": True},
        {"class_token": False, "global_pool": "", "pos_embed": "sincos"},
        {"global_pool": "avg", "num_classes": 5},
        {"global_pool": "map", "num_classes": 5},
    ],
)
def test_equals_backbone_and_head_by_hand(options, head, task):
    vit = randomise(backbone(**options))
    whole = copy.deepcopy(vit)
    net = TokenClassifier(vit, head, CLASSES, task, out_indices=(0, 2)).double().eval()
    if whole.global_pool == "avg":  # its norm stands behind the pooling and moves to where it is needed
        whole.norm = whole.fc_norm
    x = volume()
    tapped = whole.get_intermediate_layers(x, (0, 2), norm=True, return_prefix_tokens=True)
    levels = [torch.cat([prefix, patches], 1) for patches, prefix in tapped]
    out = net(x)
    assert out.shape == (2, CLASSES - (task == "ordinal"))
    close(out, net.head(levels))
    assert (out[0] - out[1]).abs().max() > 1e-4  # the input comes through


@all_heads
def test_taps_are_the_normed_outputs_of_those_blocks(head):
    net, seen, read, x = classifier(head, out_indices=(0, 2, 3), reg_tokens=1), [], [], volume()
    for block in net.backbone.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out))
    net.head.register_forward_pre_hook(lambda _, args: read.extend(args[0]))
    net(x)
    norm = net.backbone.norm
    want = [F.layer_norm(seen[i], (24,), norm.weight, norm.bias, 1e-5) for i in (0, 2, 3)]
    close(read, want)


def dinov2_features(levels, avgpool):
    """``create_linear_input`` of DINOv2's evaluation: class tokens of all levels, mean patch of the last one."""
    parts = [class_token for _, class_token in levels] + ([levels[-1][0].mean(1)] if avgpool else [])
    return torch.cat(parts, -1)


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("avgpool", [False, True])
def test_linear_head_holds_dinov2s_probe(blocks, avgpool):
    vit, x = randomise(backbone(depth=5)), volume()
    levels = vit.get_intermediate_layers(x, blocks, norm=True, return_prefix_tokens=True)
    features = dinov2_features([(patches, prefix[:, 0]) for patches, prefix in levels], avgpool)
    probe = nn.Linear(features.shape[1], CLASSES).double()
    pool = "cls_token+avg" if avgpool else "cls_token"
    net = TokenClassifier(vit, "linear", CLASSES, out_indices=range(5 - blocks, 5), pool=pool).double().eval()
    with torch.no_grad():
        # ours sees the mean patch of each level: DINOv2's probe is ours with zeros there, but for the last
        columns = probe.weight.split(24, 1)
        gap = [torch.zeros(CLASSES, 24).double()] if avgpool else []
        spread = [part for column in columns[:blocks] for part in [column, *gap]]
        weight = torch.cat([*spread[:-1], columns[-1]] if avgpool else spread, 1)
        net.head.output.load_state_dict({"weight": weight, "bias": probe.bias})
    close(net(x), probe(features))


ONE_TAP = [
    ("cls_token", {"global_pool": "cls_token"}),
    ("cls_token", {"global_pool": "cls_token", "reg_tokens": 2}),
    ("avg", {"global_pool": "avg", "fc_norm": False}),
    ("avg", {"global_pool": "avg", "fc_norm": False, "reg_tokens": 2}),
    ("avg", {"global_pool": "avg", "fc_norm": False, "class_token": False}),
]


def with_own_head(vit, pool):
    """The classifier of a backbone that has one already, on the same weights."""
    head = vit.head.state_dict()
    net = TokenClassifier(copy.deepcopy(vit), "linear", len(head["bias"]), out_indices=(-1,), pool=pool).double().eval()
    net.head.output.load_state_dict(head)
    return net


@pytest.mark.parametrize(("pool", "options"), ONE_TAP)
def test_one_tap_is_the_backbones_own_classifier(pool, options):
    vit, x = randomise(backbone(num_classes=5, **options)), volume()
    close(with_own_head(vit, pool)(x), vit(x))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("pool", "options"), ONE_TAP)
def test_one_tap_is_timms_classifier(pool, options, axis):
    flat, ours = pair(axis, **options)
    image = randn(2, 1, *flat.patch_embed.img_size)
    want = flat(image)
    assert (want[0] - want[1]).abs().max() > 1e-2
    close(with_own_head(ours, pool)(image.unsqueeze(axis + 2)), want)


@all_heads
@pytest.mark.parametrize("size", [(16, 16, 8), (8, 8, 16), (32, 24, 4)])
def test_any_size_that_the_patch_divides(head, size):
    net, x = classifier(head, dynamic_img_size=True), volume(size=size)
    out = net(x)
    net.backbone.set_input_size(size)  # the same positions, resampled once
    net.backbone.dynamic_img_size = False
    close(net(x), out)


@all_heads
def test_any_size_at_all(head):
    net, x = classifier(head, dynamic_img_size=True, dynamic_img_pad=True), volume(size=(13, 17, 5))
    close(net(F.pad(x, (0, 3, 0, 7, 0, 3))), net(x))


def test_fixed_size_refuses_another():
    with pytest.raises(ValueError, match=r"\[16, 16, 8\].*img_size=\[16, 24, 8\]"):
        classifier()(volume(size=(16, 16, 8)))


@all_heads
def test_metatensor_gives_plain_logits(head):
    net, x = classifier(head), volume()
    out = net(MetaTensor(x, affine=2 * torch.eye(4)))
    assert type(out) is torch.Tensor
    assert torch.equal(out, net(x))


# taps


@pytest.mark.parametrize(
    ("depth", "out_indices"),
    [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (6, [0, 2, 3, 5]), (4, [0, 1, 2, 3]), (3, [0, 1, 2]), (1, [0])],
)
def test_default_taps(depth, out_indices):
    assert TokenClassifier(backbone(16, 16, depth=depth), "linear", 2).out_indices == out_indices


@all_heads
def test_taps_in_block_order(head):
    want, got = classifier(head, out_indices=(1, 3)), classifier(head, out_indices=[-1, 1])
    assert got.out_indices == [1, 3]
    assert torch.equal(got(volume()), want(volume()))


@pytest.mark.parametrize("pool", ["cls_token", "avg", "map"])
def test_what_nobody_reads_is_gone(pool):
    net = TokenClassifier(backbone(global_pool=pool, num_classes=5), "linear", CLASSES, out_indices=(0, 2))
    stem = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"]
    names = {name for name, _ in net.named_parameters() if not re.match(r"backbone\.blocks\.[012]\.", name)}
    assert names == {"head.output.weight", "head.output.bias", *(f"backbone.{name}" for name in stem)}
    assert len(net.backbone.blocks) == 3
    assert net.backbone.num_classes == 0


# freezing

FROZEN = {
    None: [],
    "backbone": ["backbone"],
    0: ["embedding"],
    2: ["embedding", r"backbone\.blocks\.[01]\."],
    4: ["embedding", r"backbone\.blocks\."],
}
EMBEDDING = r"backbone\.(cls_token|reg_token|pos_embed|patch_embed\.|norm_pre\.)"
all_freezes = pytest.mark.parametrize("freeze", FROZEN)


def frozen(freeze, name):
    return any(re.match(EMBEDDING if part == "embedding" else part, name) for part in FROZEN[freeze])


def in_training(net):
    return {name for name, part in net.named_modules() if part.training}


RATES = {"drop_path_rate": 0.5, **{f"{k}_rate": 0.3 for k in ("pos_drop", "proj_drop", "attn_drop", "patch_drop")}}


@all_freezes
def test_which_parameters_are_frozen(freeze):
    net = classifier(freeze=freeze, reg_tokens=1, pre_norm=True)
    got = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert got == {name for name, _ in net.named_parameters() if frozen(freeze, name)}
    assert (len(got) > 0) is (freeze is not None)


@all_freezes
@pytest.mark.parametrize("how", ["as built", "train", "eval and train"])
def test_frozen_parts_stay_in_evaluation_mode(freeze, how):
    net = TokenClassifier(backbone(pre_norm=True, **RATES), "attentive", CLASSES, freeze=freeze, drop_rate=0.1)
    every = {name for name, _ in net.named_modules()}
    net = {"as built": lambda n: n, "train": lambda n: n.train(), "eval and train": lambda n: n.eval().train()}[how](
        net
    )
    still = {
        None: "nothing",
        "backbone": r"backbone",
        0: r"backbone\.(patch_|pos_|norm_pre|fc_norm|head)",
        2: r"backbone\.(patch_|pos_|norm_pre|fc_norm|head|blocks\.[01](\.|$))",
        4: r"backbone\.(patch_|pos_|norm_pre|fc_norm|head|blocks\.)",
    }[freeze]
    assert in_training(net) == {name for name in every if not re.match(still, name)}
    assert in_training(net.eval()) == set()


def outputs(net, count=4):
    return [net(volume()) for _ in range(count)]


def same(results):
    return all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize(("freeze", "out_indices"), [("backbone", None), (2, (0, 1))])
@all_heads
def test_frozen_parts_drop_nothing_in_training(head, freeze, out_indices):
    net = classifier(head, out_indices=out_indices, freeze=freeze, drop_rate=0.3, **RATES)
    want = net(volume())
    assert same([want, *outputs(net.train())])
    free = classifier(head, out_indices=out_indices, drop_rate=0.3, **RATES)
    assert not same(outputs(free.train()))  # the drops were live


def test_free_parts_drop_in_training():
    only_head = classifier(freeze="backbone", head_options={"drop_rate": 0.5})
    assert not same(outputs(only_head.train()))
    assert not same(outputs(classifier(freeze=3, drop_path_rate=0.5, proj_drop_rate=0.3).train()))
    assert same(outputs(classifier(freeze=0, pos_drop_rate=0.5, patch_drop_rate=0.5).train()))


@all_heads
@all_freezes
@pytest.mark.parametrize("task", ["multi-class", "ordinal"])
def test_a_training_step_moves_what_is_free(freeze, head, task):
    net = classifier(head, task, freeze=freeze, reg_tokens=1, pre_norm=True).train()
    before = copy.deepcopy(net.state_dict())
    target = torch.stack([encode_target(label, task, CLASSES) for label in (2, 0)]).double()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    task_loss(task)(net(volume()), target).backward()
    optimizer.step()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if not frozen(freeze, name)}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deep", "pickle"])
def test_copies_keep_their_freeze(copied):
    net = classifier("attentive", freeze=2, **RATES).train()
    clone = copied(net)
    assert in_training(clone) == in_training(net)
    assert {n for n, p in clone.named_parameters() if p.requires_grad} == {
        n for n, p in net.named_parameters() if p.requires_grad
    }
    assert in_training(clone.eval()) == set()
    assert in_training(clone.train()) == in_training(net)  # its own parts, not the first one's
    assert torch.equal(clone.eval()(volume()), net.eval()(volume()))


@pytest.mark.slow
@all_heads
@pytest.mark.parametrize("freeze", ["backbone", 1])
def test_frozen_network_in_torchscript(head, freeze):
    net, x = classifier(head, freeze=freeze, out_indices=(0, -1)).float(), volume().float()
    torch.testing.assert_close(torch.jit.script(net)(x), net(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("freeze", [None, 2])
def test_grad_checkpointing_gives_the_same_gradients(freeze):
    grads, calls = [], []
    for enable in (False, True):
        net = classifier("attentive", freeze=freeze).train()
        net.backbone.set_grad_checkpointing(enable)
        net.backbone.blocks[3].register_forward_pre_hook(lambda *_: calls.append(1))
        net(volume()).square().sum().backward()
        grads.append({name: p.grad for name, p in net.named_parameters() if p.requires_grad})
    assert len(calls) == 1 + 2  # computed again in the backward pass
    close(*grads)


# temperature


@all_heads
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("factor", [0.37, 4.0])
def test_scaled_logits(head, task, factor):
    net, x = classifier(head, task, freeze="backbone"), volume()
    before, free = net(x), {n for n, p in net.named_parameters() if p.requires_grad}
    net.scale_logits(factor)
    torch.testing.assert_close(net(x), factor * before, rtol=1e-12, atol=1e-12)
    assert {n for n, p in net.named_parameters() if p.requires_grad} == free
    if task == "ordinal":
        assert net(x).diff().le(0).all()
        torch.testing.assert_close(probabilities(net(x), task).sum(1), torch.ones(2).double())


@pytest.mark.parametrize("factor", [0, -1.5, math.nan, math.inf])
def test_factor_that_is_not_positive(factor):
    net, x = classifier(), volume()
    before = net(x)
    with pytest.raises(
        ValueError, match=rf"^factor={factor}; expected a positive number, and a head with a last layer 'output'"
    ):
        net.scale_logits(factor)
    assert torch.equal(net(x), before)


# other parts


class Mean(nn.Module):
    """A head that somebody else wrote: the mean of all tokens of all levels."""

    def forward(self, levels):
        return torch.cat(levels, 1).mean(1)


def test_built_head_is_called_with_the_levels():
    vit = randomise(backbone())
    levels = vit.get_intermediate_layers(volume(), (1, 3), norm=True, return_prefix_tokens=True)
    net = TokenClassifier(vit, Mean(), out_indices=(1, 3))
    close(net(volume()), torch.cat([t for level in levels for t in level], 1).mean(1))
    with pytest.raises(ValueError, match=r"^factor=2; expected .*a head with a last layer 'output'"):
        net.scale_logits(2)
    assert "head" not in " ".join(net.no_weight_decay())


class ConvBackbone(nn.Module):
    """Another network that keeps the contract: convolutions over the grid, one class token that does nothing."""

    embed_dim, num_heads, num_prefix_tokens, has_class_token = 6, 2, 1, True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patch_embed = nn.Conv3d(1, 6, 4, stride=4)
        self.blocks = nn.ModuleList(nn.Conv3d(6, 6, 3, padding=1) for _ in range(4))
        self.norm, self.head, self.pruned = nn.LayerNorm(6), nn.Linear(6, 5), None

    def reset_classifier(self, num_classes, global_pool=None):
        self.head = nn.Identity()

    def prune_intermediate_layers(self, indices):
        self.pruned = indices

    def forward_intermediates(self, x, indices, norm=False, intermediates_only=False):
        assert norm
        assert intermediates_only
        x, taken = self.patch_embed(x), []
        for i, block in enumerate(self.blocks):
            x = x + block(x)
            if i in indices:
                tokens = self.norm(x.flatten(2).transpose(1, 2))
                taken.append(torch.cat([torch.full_like(tokens[:, :1], 1e6), tokens], 1))
        return taken


def test_another_backbone():
    net = TokenClassifier(ConvBackbone(), "attentive", CLASSES, out_indices=(-1, 0), freeze=1).train()
    x = volume().float()
    assert net.backbone.pruned == [0, 3]
    out = net(x)
    assert torch.equal(out, net.head(net.backbone.forward_intermediates(x, [0, 3], True, True)))
    assert out.abs().max() < 1e3  # the class token stayed out
    assert not net.backbone.blocks[0].training
    assert net.backbone.blocks[1].training
    trainable = {name.rsplit(".", 1)[0] for name, p in net.backbone.named_parameters() if p.requires_grad}
    assert trainable == {"blocks.1", "blocks.2", "blocks.3", "norm"}


# learning rates


def layer(name, depth):
    """How many layers lie between a parameter and the head: 1 for the last block and the norm behind it."""
    block = re.match(r"backbone\.blocks\.(\d+)\.", name)
    if block:
        return depth - int(block[1])
    if name.startswith("head."):
        return 0
    return 1 if name.startswith("backbone.norm.") else depth + 1


NEVER_DECAY = r"(.*\.bias$|.*norm.*|backbone\.(cls_token|reg_token|pos_embed)$|head\.(level_embed|pool\.latent)$)"
STEM = {"embed_layer": ConvStem3D, "patch_size": 4, "class_token": False, "global_pool": ""}


@pytest.mark.parametrize(
    ("head", "freeze", "task", "options"),
    pairwise(HEADS, FROZEN, ["multi-class", "ordinal"], [{"reg_tokens": 1, "pre_norm": True, "qk_norm": True}, STEM]),
    ids=str,
)
def test_learning_rates_fall_from_head_to_stem(head, freeze, task, options):
    options = dict(options)
    patch = options.pop("patch_size", PATCH)
    net = TokenClassifier(backbone(16, patch, **options), head, CLASSES, task, freeze=freeze)
    groups = layer_decay_groups(net, 0.01, 0.05, 0.5)
    assert all(group.keys() == {"params", "lr", "weight_decay"} for group in groups)
    names = {id(p): name for name, p in net.named_parameters()}
    listed = [(names[id(p)], group["lr"], group["weight_decay"]) for group in groups for p in group["params"]]
    want = {name for name, p in net.named_parameters() if p.requires_grad}
    assert sorted(name for name, _, _ in listed) == sorted(want)  # each once, the frozen ones never
    for name, rate, decay in listed:
        assert rate == pytest.approx(0.01 * 0.5 ** layer(name, 4)), name
        p = net.get_parameter(name)
        assert decay == (0 if re.match(NEVER_DECAY, name) or p.ndim == 1 else 0.05), name


def test_without_layer_decay_all_rates_are_the_same():
    groups = layer_decay_groups(classifier("attentive"), 0.01)
    assert {group["lr"] for group in groups} == {0.01}
    assert sorted(group["weight_decay"] for group in groups)[-1] == 0.05
    assert {0, 0.05} == {group["weight_decay"] for group in groups}


def test_any_network_is_trained_without_layer_decay():
    net = UNet(3, 1, 3, (4, 8), (2,), norm="batch")
    groups = layer_decay_groups(net, 0.01, 0.05)
    listed = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert listed == {id(p): (0.01, 0.05 if p.ndim > 1 else 0) for p in net.parameters()}
    with pytest.raises(ValueError, match="UNet has no group_matcher: expected 1"):
        layer_decay_groups(net, 0.01, 0.05, 0.5)


def test_rates_count_pruned_blocks_no_more():
    net = classifier(out_indices=(0, 1))
    rates = {group["lr"] for group in layer_decay_groups(net, 1.0, layer_decay=0.5)}
    assert rates == {1.0, 0.5, 0.25, 0.125}  # head, block 1, block 0, stem


def test_backbone_alone_has_rates_too():
    groups = layer_decay_groups(backbone(num_classes=2, depth=2), 1.0, layer_decay=0.1)
    assert sorted({group["lr"] for group in groups}) == pytest.approx([0.001, 0.01, 0.1, 1.0])


@all_heads
def test_torchs_optimizer_and_schedule_use_the_rates(head):
    net = classifier(head, freeze=1)
    optimizer = torch.optim.AdamW(layer_decay_groups(net, 0.01, 0.0, 0.5), eps=1e-30)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [0.5, 1, 0.25][step])
    for factor in (0.5, 1, 0.25):
        for group in optimizer.param_groups:
            assert group["lr"] == factor * group["initial_lr"]
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        optimizer.zero_grad()
        optimizer.state.clear()
        net(volume()).square().sum().backward()
        optimizer.step()
        for name, p in net.named_parameters():
            # the first step of Adam is as long as the learning rate
            want = factor * 0.01 * 0.5 ** layer(name, 4) if p.requires_grad else 0
            assert (p - before[name]).abs().max().item() == pytest.approx(want, rel=1e-6), name
        if factor != 0.25:
            schedule.step()


@pytest.mark.parametrize("layer_decay", [0, -0.5, 1.01, math.nan])
def test_layer_decay_out_of_range(layer_decay):
    with pytest.raises(ValueError, match=rf"^layer_decay={layer_decay}; expected a number above 0 and up to 1"):
        layer_decay_groups(classifier(), 0.01, layer_decay=layer_decay)


@all_heads
@pytest.mark.parametrize("coarse", [False, True])
def test_groups_are_stem_blocks_and_head(head, coarse):
    net = classifier(head, reg_tokens=1, pre_norm=True)
    groups = group_parameters(net, net.group_matcher(coarse=coarse))
    names = [name for name, _ in net.named_parameters()]
    stem, head = [n for n in names if re.match(EMBEDDING, n)], [n for n in names if n.startswith("head.")]
    last = len(net.backbone.blocks) + 1
    assert sorted(groups) == list(range(last + 1))
    assert [sorted(groups[0]), sorted(groups[last])] == [sorted(stem), sorted(head)]
    for i in range(1, last):
        norm = ["backbone.norm"] if i == last - 1 else []
        assert {name.rsplit(".", 1)[0] for name in groups[i] if "norm" in name} >= {
            f"backbone.blocks.{i - 1}.norm1",
            *norm,
        }


# refusals


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("linear",), {}, r"^head='linear' is a name; expected num_classes with it\.$"),
        (("dense", 3), {}, "^head='dense' is unknown; expected one of 'linear', 'attentive', 'mlp'"),
        (("linear", 1), {}, "^num_classes=1: task 'multi-class' needs 2 or more"),
        (("linear", 3, "segmentation"), {}, "^task='segmentation'; expected one of"),
        ((Mean(), 3), {}, "^the head is built already: give its options and num_classes to its own constructor"),
        ((Mean(),), {"pool": "avg"}, "^the head is built already"),
        (("linear", 3), {"pool": "max"}, "^pool='max'; expected one of"),
        (("attentive", 3), {"num_heads": 5}, "num_heads=5"),
        (("linear", 3), {"out_indices": ()}, r"^out_indices=\(\); expected one block or more, or None for"),
        (("linear", 3), {"out_indices": (1, 4)}, "^block index 4 is out of range: the network has 4 blocks"),
        (("linear", 3), {"out_indices": (-5,)}, "^block index -5 is out of range"),
        (("linear", 3), {"out_indices": (3, -1)}, r"^indices=\(3, -1\) name a block twice"),
        (
            ("linear", 3),
            {"freeze": "head"},
            "^freeze='head'; expected 'backbone', a number of blocks from 0 to 4",
        ),
        (("linear", 3), {"freeze": -1}, "^freeze=-1; expected 'backbone'"),
        (("linear", 3), {"freeze": 5}, "^freeze=5; expected 'backbone'"),
        (("linear", 3), {"freeze": True}, "^freeze=True; expected 'backbone'"),
        (("linear", 3), {"freeze": 1.0}, "^freeze=1.0; expected 'backbone'"),
    ],
)
def test_refusals_leave_the_backbone_as_it_was(arguments, options, message):
    vit = backbone(num_classes=5)
    before = copy.deepcopy(vit)
    with pytest.raises(ValueError, match=message):
        TokenClassifier(vit, *arguments, **options)
    assert [(n, p.requires_grad) for n, p in vit.named_parameters()] == [
        (n, True) for n, _ in before.named_parameters()
    ]
    assert torch.equal(vit(volume().float()), before(volume().float()))


def test_norm_behind_the_pooling_refused():
    with pytest.raises(
        ValueError, match=r"^fc_norm=True puts the final norm behind a pooling that a classifier has not"
    ):
        TokenClassifier(backbone(global_pool="avg", fc_norm=True), "linear", 2)
