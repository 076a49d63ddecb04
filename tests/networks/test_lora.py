"""Adapters: no change at first, the paper's formula, only they and named parts learn, merged exactly; refusals."""

import copy
import re
import sys

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from monai_vit3d.data.errors import UsageError
from monai_vit3d.networks import TokenClassifier, TokenSegmenter, VisionTransformer3D, layer_decay_groups
from monai_vit3d.networks.lora import LoraSettings, MergedState, apply_lora, freeze, merge_lora
from tests.helpers import randn
from tests.networks.nets import TINY, noisy


def _noise(net):
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.add_(0.1 * randn(*parameter.shape, seed=i))
    return net


def segmenter(**options):
    torch.manual_seed(0)
    backbone = VisionTransformer3D(8, 4, **{"embed_dim": 24, "depth": 3, "num_heads": 2, **options})
    # norms with running statistics: they learn with the decoder
    return _noise(TokenSegmenter(backbone, "unetr", 2, feature_size=2, norm_name="batch").double().eval())


def classifier(head="attentive", **options):
    torch.manual_seed(0)
    return _noise(TokenClassifier(VisionTransformer3D(**TINY), head, 3, **options).double().eval())


MAKE = {
    "plain": lambda: noisy(num_classes=3),
    "rotary": lambda: noisy(num_classes=3, rope="patch", pos_embed="none"),
    "layer scale, registers, no bias": lambda: noisy(init_values=0.1, reg_tokens=2, qkv_bias=False, proj_bias=False),
    "swiglu, qk norm": lambda: noisy(mlp_layer="swiglu", qk_norm=True, num_classes=3),
    "segmenter": segmenter,
    "classifier": classifier,
}
every = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def image(net):
    return randn(2, 1, *((8, 8, 8) if isinstance(net, TokenSegmenter) else TINY["img_size"]), seed=9)


def learned(net, size=0.3):
    """Adapters as if trained: none of them zero."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(net.named_parameters()):
            if ".lora_" in name:
                parameter.copy_(size * randn(*parameter.shape, seed=100 + i))
    return net


def adapters(net):
    """A and B of each layer, by the layer's own name."""
    found = {}
    for name, parameter in net.named_parameters():
        layer, _, rest = name.partition(".lora_")
        if rest:
            found.setdefault(layer, {})[rest[0]] = parameter.detach()
    return found


# what it computes


@every
@pytest.mark.parametrize("targets", [("qkv", "proj"), "proj", ("qkv",)], ids=str)
def test_nothing_changes_at_first(make, targets):
    net = make()
    before, x = {key: value.clone() for key, value in net.state_dict().items()}, image(net)
    wanted = net(x)
    assert apply_lora(net, 4, targets, alpha=3.0) is net
    assert torch.equal(net(x), wanted)
    assert net.lora == LoraSettings(4, 3.0, (targets,) if isinstance(targets, str) else targets, 0.0, net.lora.trained)
    state = net.state_dict()
    assert all(any(torch.equal(value, other) for other in state.values()) for value in before.values())


@every
def test_what_was_merged_computes_the_same_under_the_old_names(make):
    net = make()
    plain, x = net(image(net)), image(net)
    keys, types = list(net.state_dict()), {name: type(module) for name, module in net.named_modules()}
    learned(apply_lora(net, 3, ("qkv", "proj"), alpha=6))
    wanted = net(x)
    assert (wanted - plain).abs().max() > 1e-3
    assert merge_lora(net) is net
    torch.testing.assert_close(net(x), wanted, rtol=0, atol=1e-12)
    assert list(net.state_dict()) == keys
    assert {name: type(module) for name, module in net.named_modules()} == types
    assert not hasattr(net, "lora")
    apply_lora(net, 2)  # a plain network again
    assert torch.equal(learned(net, 0.0)(x), merge_lora(net)(x))


@every
@pytest.mark.parametrize(("rank", "alpha"), [(1, None), (4, 8.0), (5, 2)])
def test_merged_weights_follow_the_paper(make, rank, alpha):
    net = make()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    learned(apply_lora(net, rank, ("qkv", "proj"), alpha=alpha))
    pairs = adapters(net)
    blocks = (net.backbone if hasattr(net, "backbone") else net).blocks
    assert len(pairs) == 2 * len(blocks)
    after = merge_lora(net).state_dict()
    factor = (rank if alpha is None else alpha) / rank
    for key, value in before.items():
        pair = pairs.pop(key.removesuffix(".weight"), None)
        wanted = value if pair is None else value + factor * pair["B"] @ pair["A"]
        torch.testing.assert_close(after[key], wanted, rtol=0, atol=0 if pair is None else 1e-14)
    assert not pairs


def test_one_layer_by_hand():
    net = learned(apply_lora(noisy(), 2, "fc1", alpha=5))
    layer, x = net.blocks[1].mlp.fc1, randn(3, 24, seed=4)
    pair = adapters(net)["blocks.1.mlp.fc1"]
    frozen = noisy().blocks[1].mlp.fc1
    wanted = x @ frozen.weight.T + frozen.bias + 5 / 2 * (x @ pair["A"].T) @ pair["B"].T
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-13)


# what learns


@every
@pytest.mark.parametrize("targets", [("qkv", "proj"), ("proj", "qkv")])
def test_only_adapters_and_the_head_learn(make, targets):
    net = apply_lora(make(), 2, targets).train()
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):  # A has no gradient while B is zero
        optimizer.zero_grad()
        net(image(net)).square().sum().backward()
        optimizer.step()
    changed = {name for name, parameter in net.named_parameters() if not torch.equal(parameter, before[name])}
    wanted = {name for name in before if ".lora_" in name or name.startswith(("head.", "decoder."))}
    assert {name for name, parameter in net.named_parameters() if parameter.requires_grad} == wanted
    assert changed >= {name for name in wanted if ".lora_" in name}
    assert changed <= wanted
    assert not wanted or any(name.startswith(("head.", "decoder.")) for name in changed) == bool(net.lora.trained)


def test_named_parts_learn():
    net = apply_lora(segmenter(), 2, trained=("backbone.norm", "backbone.pos_embed"))
    assert {name for name, parameter in net.named_parameters() if parameter.requires_grad and ".lora_" not in name} == {
        "backbone.norm.weight",
        "backbone.norm.bias",
        "backbone.pos_embed",
    }
    none = apply_lora(segmenter(), 2, trained=())
    assert all(".lora_" in name for name, parameter in none.named_parameters() if parameter.requires_grad)
    assert none.lora.trained == ()
    assert apply_lora(segmenter(), 2).lora.trained == ("decoder",)


def test_trained_parts_have_no_adapters():
    net = apply_lora(noisy(), 2, trained="blocks.2")
    assert {name.split(".")[1] for name in adapters(net)} == {"0", "1"}
    assert net.blocks[2].attn.qkv.weight.requires_grad
    net = apply_lora(noisy(depth=12), 2, trained="blocks.1")  # and not blocks.10
    assert {name.split(".")[1] for name in adapters(net)} == {"0", *map(str, range(2, 12))}


@pytest.mark.parametrize(
    ("targets", "sizes"),
    [
        (("qkv", "proj"), [(24, 72), (24, 24)]),
        (("qkv", "proj", "fc1", "fc2"), [(24, 72), (24, 24), (24, 96), (96, 24)]),
    ],
)
def test_number_of_trainable_parameters(targets, sizes):
    net = apply_lora(noisy(depth=7), 5, targets, trained=())
    trainable = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    assert trainable == 7 * sum(5 * (inside + outside) for inside, outside in sizes)
    assert {name.rpartition(".")[2] for name in adapters(net)} == set(targets)
    assert all(".blocks." in f".{name}" for name in adapters(net))  # patch_embed.proj is no target


def test_vit_base_has_the_papers_count():
    with torch.device("meta"):
        net = VisionTransformer3D(32, 16)
    apply_lora(net, 8, ("qkv", "proj"), trained=())
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 12 * 8 * (768 + 2304 + 768 + 768) == 442368


def test_layer_decay_groups_take_the_adapters():
    net = apply_lora(classifier(), 2)
    groups = layer_decay_groups(net, 1.0, layer_decay=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    names = {name: rate[id(p)] for name, p in net.named_parameters() if p.requires_grad}
    assert len(rate) == len(names)
    rates = [{v for k, v in names.items() if f".blocks.{i}." in k} for i in range(3)]
    assert rates == [{rates[0].copy().pop()}, {2 * next(iter(rates[0]))}, {4 * next(iter(rates[0]))}]


@pytest.mark.parametrize("parts", ["backbone", ("backbone.blocks.0", "backbone.pos_embed", "head.pool.latent")])
def test_freeze(parts):
    net = classifier()
    assert freeze(net, parts) is net
    names = (parts,) if isinstance(parts, str) else parts
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad != any(f"{name}.".startswith(f"{part}.") for part in names), name


def test_freeze_knows_a_block_from_its_tenfold():
    net = freeze(noisy(depth=11), "blocks.1")
    assert net.blocks[10].attn.qkv.weight.requires_grad
    assert not net.blocks[1].attn.qkv.weight.requires_grad


# what else must go on working


@every
def test_gradients_are_the_same_with_checkpointing(make):
    net = learned(apply_lora(make(), 2)).train()
    again = copy.deepcopy(net)
    (again.backbone if hasattr(again, "backbone") else again).set_grad_checkpointing(True)
    for each in (net, again):
        each(image(net)).square().sum().backward()
    for (name, one), two in zip(net.named_parameters(), again.parameters()):
        assert (one.grad is None) == (two.grad is None) == (not one.requires_grad), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-12)


def test_dropout_is_of_the_adapters_alone():
    net, x = apply_lora(noisy(), 2, dropout=0.5).train(), image(noisy())
    assert torch.equal(net(x), noisy()(x))  # B is zero
    learned(net)
    torch.manual_seed(0)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))
    torch.testing.assert_close(merge_lora(copy.deepcopy(net)).train()(x), net(x), rtol=0, atol=1e-12)


@pytest.mark.slow
@every
def test_merged_networks_are_scripted_and_exported(make):
    net = merge_lora(learned(apply_lora(make().float(), 2)))
    x = image(net).float()
    torch.testing.assert_close(torch.jit.script(net)(x), net(x))
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x))


@pytest.mark.slow
def test_unmerged_networks_are_exported_and_compiled():
    net = learned(apply_lora(noisy(num_classes=3), 2))
    x = image(net)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x))
    torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(x), net(x))


@every
def test_moving_average_and_merged_state(make):
    net = learned(apply_lora(make(), 2))
    average = AveragedModel(net)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    merged = MergedState(average.module)
    fresh = make()
    fresh.load_state_dict(merged.state_dict())  # a plain network's names
    torch.testing.assert_close(fresh(image(net)), net(image(net)), rtol=0, atol=1e-12)
    for key, value in average.module.state_dict().items():
        assert torch.equal(value, state[key]), key  # it keeps its adapters
    learned(average.module, 0.0)  # it follows
    plain = make().state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in merged.state_dict().items())


def test_the_merged_state_of_a_plain_network_is_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setitem(sys.modules, "peft.tuners.lora", None)
    net = noisy()
    state = MergedState(net).state_dict()
    assert all(state[key].data_ptr() == value.data_ptr() for key, value in net.state_dict().items())


def test_bfloat16():
    net = noisy(num_classes=3).bfloat16()
    x = image(net).bfloat16()
    wanted = net(x)
    assert torch.equal(apply_lora(net, 2)(x), wanted)
    learned(net)
    found = net(x)
    merged = merge_lora(net)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(merged(x), found, rtol=0.1, atol=0.1)


@pytest.fixture
def alone(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed(alone):
    net = apply_lora(noisy(num_classes=3), 2)
    wrapped = DistributedDataParallel(net)
    wrapped(image(net)).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())
    with pytest.raises(UsageError, match=r"DistributedDataParallel.*first, then wrap it"):
        apply_lora(DistributedDataParallel(noisy()), 2)
    assert list(MergedState(wrapped).state_dict()) == list(noisy(num_classes=3).state_dict())
    assert merge_lora(wrapped) is net


# refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0; expected a whole number from 1"),
        ({"rank": -1}, "rank=-1"),
        ({"rank": 2.0}, "rank=2.0"),
        ({"rank": True}, "rank=True"),
        ({"alpha": 0}, "alpha=0, dropout"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"alpha": float("inf")}, "alpha=inf"),
        ({"alpha": "8"}, "alpha='8'"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"targets": ("qkv", "query")}, "it has 'fc1', 'fc2', 'proj', 'qkv' besides head."),
        ({"targets": "head"}, "targets=('head',)"),
        ({"targets": ()}, "targets=()"),
        ({"targets": "attn"}, "targets=('attn',)"),
        ({"trained": "hed"}, "trained='hed': VisionTransformer3D has no parameters of that name. Its parts are"),
        ({"trained": "blocks.1.att"}, "trained='blocks.1.att'"),
        ({"trained": ""}, "trained=''"),
        ({"trained": "blocks"}, "it has none besides blocks"),
    ],
    ids=str,
)
def test_refusals_change_nothing(options, message):
    net = noisy(num_classes=3)
    with pytest.raises(UsageError, match=re.escape(message)):
        apply_lora(net, **{"rank": 4, **options})
    assert list(net.state_dict()) == list(noisy(num_classes=3).state_dict())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_names_of_the_head_and_decoder_are_asked_of_the_network():
    with pytest.raises(UsageError, match="Its parts are backbone, head;"):
        apply_lora(classifier(), 2, trained=("head", "decoder"))
    with pytest.raises(UsageError, match=r"parts='decoder'.*Its parts are backbone, head;"):
        freeze(classifier(), ("backbone", "decoder"))


def test_a_refused_freeze_freezes_nothing():
    net = classifier()
    with pytest.raises(UsageError):
        freeze(net, ("backbone", "decoder"))
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_adapters_once():
    net = apply_lora(noisy(), 2)
    with pytest.raises(UsageError, match="VisionTransformer3D has adapters already: call merge_lora first"):
        apply_lora(net, 2, "fc1")
    merge_lora(net)
    with pytest.raises(UsageError, match="VisionTransformer3D has no adapters to merge: call apply_lora first"):
        merge_lora(net)


def test_a_network_without_blocks():
    with pytest.raises(UsageError, match="the blocks of Sequential; it has none"):
        apply_lora(nn.Sequential(nn.Linear(3, 3)), 2)


def test_peft_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    net = noisy()
    with pytest.raises(UsageError, match="its 'peft' extra"):
        apply_lora(net, 2)
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not hasattr(net, "lora")


def test_adapters_of_a_part_are_the_networks():
    net = classifier()
    apply_lora(net.backbone, 2)
    with pytest.raises(UsageError, match="TokenClassifier has adapters already: call merge_lora first"):
        apply_lora(net, 2, ("fc1",))
    assert merge_lora(net) is net
    assert not hasattr(net.backbone, "peft_config")
    assert not hasattr(net.backbone, "lora")
    with pytest.raises(UsageError, match="has no adapters to merge"):
        merge_lora(net.backbone)


@pytest.mark.parametrize("again", [merge_lora, lambda net: apply_lora(net, 2, "fc1")], ids=["merge", "apply"])
def test_a_part_that_was_merged_alone_leaves_nothing_behind(again):
    net = learned(apply_lora(classifier(), 2))
    wanted, x = net(image(net)), image(net)
    merge_lora(net.backbone)
    assert again(net) is net
    torch.testing.assert_close(net(x), wanted, rtol=0, atol=1e-12)
    assert len(adapters(net)) == (0 if again is merge_lora else 3)
    assert list((net if again is merge_lora else merge_lora(net)).state_dict()) == list(classifier().state_dict())
