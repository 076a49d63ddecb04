"""The stem's convolution: nn.Conv3d's results, and a module to whatever works on modules."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from monai.visualize import GradCAM
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from monai_vit3d.layers import PatchConv3d
from monai_vit3d.networks import TokenClassifier, TokenSegmenter, VisionTransformer3D, create_preset
from tests.helpers import pairwise, run_processes

# patches that fill the input, leave a rest, overlap, leave gaps, are dilated, padded, in groups
GEOMETRIES = {
    "patches": {"kernel_size": (4, 2, 3), "stride": (4, 2, 3)},
    "one voxel": {"kernel_size": 1},
    "overlap": {"kernel_size": 3, "stride": 2},
    "gaps": {"kernel_size": 2, "stride": 3},
    "dilated": {"kernel_size": 2, "stride": 2, "dilation": 2},
    "padded": {"kernel_size": 2, "stride": 2, "padding": 1},
    "same": {"kernel_size": 1, "padding": "same"},
    "reflected": {"kernel_size": 2, "stride": 2, "padding": 1, "padding_mode": "reflect"},
    "groups": {"kernel_size": 2, "stride": 2, "groups": 2},
}


def backbone(**options):
    torch.manual_seed(0)
    return VisionTransformer3D((16, 16, 8), 4, embed_dim=24, depth=2, num_heads=2, **options)


def volume(batch=2):
    return torch.randn(batch, 1, 16, 16, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("geometry", "dtype", "bias"),
    pairwise(GEOMETRIES, [torch.float32, torch.float64, torch.bfloat16], [True, False]),
    ids=str,
)
def test_equals_conv3d_with_its_gradients(geometry, bias, dtype):
    torch.manual_seed(0)
    theirs = nn.Conv3d(2, 6, bias=bias, **GEOMETRIES[geometry], dtype=dtype)
    ours = PatchConv3d(2, 6, bias=bias, **GEOMETRIES[geometry], dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 2, 9, 8, 7, dtype=dtype).requires_grad_()
    outputs = [conv(x) for conv in (ours, theirs)]
    assert outputs[0].shape == outputs[1].shape
    error = {torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(*outputs, atol=error, rtol=error)
    grads = [torch.autograd.grad(out.square().sum(), [x, conv.weight]) for out, conv in zip(outputs, (ours, theirs))]
    torch.testing.assert_close(*grads, atol=50 * error, rtol=10 * error)


def test_autocast_reduces_precision_as_it_does_conv3d():
    ours = PatchConv3d(1, 6, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(volume()).dtype is torch.bfloat16
    assert ours(volume()).dtype is torch.float32


def test_hooks_and_grad_cam():
    net, calls = TokenClassifier(backbone(), "linear", num_classes=3).eval(), []
    net.backbone.patch_embed.proj.register_forward_hook(lambda *given: calls.append(given[2].shape))
    heat = GradCAM(net, target_layers="backbone.patch_embed.proj")(volume(1))
    assert calls == [(1, 24, 4, 4, 2)]
    assert heat.shape == (1, 1, 16, 16, 8)


REWEIGHTED = {
    "prune": partial(prune.l1_unstructured, name="weight", amount=0.5),
    "weight_norm by hook": weight_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm by hook": spectral_norm,
    "spectral_norm": parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", REWEIGHTED)
def test_kernel_made_anew_at_each_call(how):
    nets = [backbone(), backbone()]
    for net in nets:
        REWEIGHTED[how](net.patch_embed.proj)
    first, second = nets
    for _ in range(2):  # a stale kernel would refuse the second backward
        first(volume()).square().mean().backward()
        with torch.no_grad():
            for p in first.patch_embed.proj.parameters():
                p.add_(0.1 * torch.randn_like(p))
    second.load_state_dict(first.state_dict())
    first.eval()
    second.eval()
    tokens = second.patch_embed(volume())
    torch.testing.assert_close(tokens, first.patch_embed(volume()), atol=0, rtol=0)
    proj = second.patch_embed.proj
    want = F.conv3d(volume(), proj.weight, proj.bias, stride=4).flatten(2).mT
    torch.testing.assert_close(tokens, want, atol=1e-5, rtol=1e-5)
    if how == "prune":
        assert (proj.weight == 0).float().mean() == 0.5


def test_pefts_own_lora_trains_it():
    peft = pytest.importorskip("peft")
    net = peft.get_peft_model(backbone(), peft.LoraConfig(r=2, target_modules=["qkv", "proj"]))
    net(volume()).square().sum().backward()
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert any("patch_embed.proj.lora_A" in name for name in trained)
    assert all(p.grad is not None for p in trained.values())


def test_weights_offloaded_between_calls():
    accelerate = pytest.importorskip("accelerate")
    net = backbone(num_classes=3).eval()
    with torch.no_grad():
        want = net(volume())
        offloaded = accelerate.cpu_offload(copy.deepcopy(net), execution_device="cpu")
        assert offloaded.patch_embed.proj.weight.is_meta
        torch.testing.assert_close(offloaded(volume()), want, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["TokenSegmenter", "TokenClassifier"])
def test_offloaded_weights_of_a_network_that_reads_blocks(kind):
    # accelerate brings a module's own weights back before its forward, and these call another method of the backbone
    accelerate = pytest.importorskip("accelerate")
    part = "light" if kind == "TokenSegmenter" else "attentive"
    net = {"TokenSegmenter": TokenSegmenter, "TokenClassifier": TokenClassifier}[kind](backbone(), part, num_classes=3)
    with torch.no_grad():
        want = net.eval()(volume())
        whole = [type(net).__name__]
        offloaded = accelerate.cpu_offload(copy.deepcopy(net), execution_device="cpu", preload_module_classes=whole)
        assert offloaded.backbone.cls_token.is_meta
        torch.testing.assert_close(offloaded(volume()), want, atol=0, rtol=0)


SHARDED = {
    "backbone": lambda: backbone(num_classes=3, dynamic_img_size=True),
    "segmenter": lambda: TokenSegmenter(backbone(), "light", num_classes=3),
    "classifier": lambda: TokenClassifier(backbone(rope="patch"), "attentive", num_classes=3),
}


def shard(rank, folder):
    """Shard the stem, the blocks and the whole by FSDP2; compare values, gradients and saved names with the plain."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name, build in SHARDED.items():
        plain = build().eval()
        sharded, x = copy.deepcopy(plain), volume()
        inner = sharded if name == "backbone" else sharded.backbone
        for part in (inner.patch_embed.proj, *inner.blocks, sharded):
            fully_shard(part, mesh=mesh)
        for _ in range(2):  # the second time all of it is in pieces again
            wanted, found = plain(x), sharded(x)
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        for out in (wanted, found):
            out.square().mean().backward()
        gradients = {key: p.grad.full_tensor() for key, p in sharded.named_parameters()}
        torch.testing.assert_close(gradients, {key: p.grad for key, p in plain.named_parameters()})
        state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            torch.testing.assert_close(dict(state), dict(plain.state_dict()), atol=0, rtol=0)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_sharded_by_fsdp2(tmp_path):
    run_processes(shard, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"dynamic_img_size": True}, {"rope": "patch", "pos_embed": "sincos"}, {"tokens": "foreground"}],
    ids=str,
)
def test_forward_on_the_meta_device(options):
    with torch.device("meta"):
        net = create_preset("vit3d_huge", (96, 96, 48), (16, 16, 8), num_classes=3, **options)
        assert net(torch.zeros(2, 1, 96, 96, 48)).shape == (2, 3)
