"""What timm's own tools and tests ask of a model, asked of our presets and of the networks built around them."""

import copy
import importlib
import inspect
import pkgutil
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch
from monai.bundle.config_item import ComponentLocator
from monai.utils import ensure_tuple
from timm.data import resolve_model_data_config
from timm.layers import set_fused_attn, use_fused_attn
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.utils import AttentionExtract
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import monai_vit3d
from monai_vit3d.decoders import DECODERS
from monai_vit3d.discovery import TIMM_NAMES
from monai_vit3d.networks import PRESETS, TokenClassifier, TokenSegmenter, VisionTransformer3D
from tests.helpers import HANG, randn
from tests.networks.nets import TINY, noisy

SMALL = {"img_size": (16, 8, 8), "patch_size": 4, "depth": 4}


def backbone(**options):
    torch.manual_seed(0)
    return VisionTransformer3D((16, 16, 8), 4, embed_dim=24, depth=4, num_heads=2, **options)


def volume(chans=1, size=(16, 8, 8)):
    return torch.randn(2, chans, *size, generator=torch.Generator().manual_seed(3))


# ---- timm.create_model


def test_names_in_timm_are_the_presets():
    assert set(TIMM_NAMES) == set(PRESETS) == set(timm.list_models("vit3d_*"))


@torch.no_grad()
@pytest.mark.parametrize("out_indices", [None, (0, 2), 1])
@pytest.mark.parametrize("feature_cls", ["getter", "hook", "fx", "list", "dict"])
def test_features_of_every_class(feature_cls, out_indices):
    how = {} if out_indices is None else {"out_indices": out_indices}
    torch.manual_seed(0)
    net = timm.create_model("vit3d_tiny", features_only=True, feature_cls=feature_cls, **how, **SMALL).eval()
    torch.manual_seed(0)
    whole = timm.create_model("vit3d_tiny", **SMALL).eval()
    blocks = {None: [1, 2, 3], (0, 2): [0, 2], 1: [3]}[out_indices]  # by default the last three, as timm's ViTs
    fmt = "NLC" if feature_cls in ("hook", "fx") else "NCHWD"  # as timm's own: whole outputs of the blocks
    want = whole.forward_intermediates(volume(), blocks, output_fmt=fmt, intermediates_only=True)
    features = net(volume())
    if feature_cls == "dict":
        assert list(features) == list(map(str, blocks))
        features = list(features.values())
    torch.testing.assert_close(list(features), want, atol=1e-6, rtol=1e-6)
    assert [i % 4 for i in net.feature_info.out_indices] == blocks
    assert net.feature_info.channels() == [192] * len(blocks)
    assert net.default_cfg["input_size"] == (1, 16, 8, 8)


def test_data_config_is_that_of_the_volume():
    net = timm.create_model("vit3d_tiny", in_chans=2, num_classes=3, **SMALL)
    config = resolve_model_data_config(net)
    assert (config["input_size"], config["mean"], config["std"]) == ((2, 16, 8, 8), (0.0, 0.0), (1.0, 1.0))
    cfg = net.default_cfg
    assert net.pretrained_cfg is cfg
    assert (cfg["architecture"], cfg["num_classes"]) == ("vit3d_tiny", 3)
    assert {f"{cfg[key]}.weight" for key in ("first_conv", "classifier")} <= net.state_dict().keys()
    net.set_input_size((8, 8, 24))
    net.reset_classifier(5)
    assert (net.default_cfg["input_size"], net.default_cfg["num_classes"]) == ((2, 8, 8, 24), 5)
    assert backbone().default_cfg["input_size"] == (1, 16, 16, 8)  # of one without a name in timm, too


@torch.no_grad()
def test_saved_by_timm_and_built_again_from_the_folder(tmp_path):
    net = timm.create_model("vit3d_tiny", in_chans=2, num_classes=3, **SMALL).eval()
    net.set_input_size((8, 8, 16))
    save_for_hf(net, tmp_path, safe_serialization=True)
    x, name = volume(2, (8, 8, 16)), f"local-dir:{tmp_path}"
    same = timm.create_model(name, pretrained=True).eval()
    torch.testing.assert_close(same(x), net(x), atol=0, rtol=0)
    assert same.default_cfg["input_size"] == (2, 8, 8, 16)
    other = timm.create_model(name, pretrained=True, num_classes=7).eval()
    torch.testing.assert_close(other.forward_features(x), net.forward_features(x), atol=0, rtol=0)
    wide = timm.create_model(name, pretrained=True, img_size=(16, 8, 16)).eval()
    net.set_input_size((16, 8, 16))  # the same positions, resampled
    torch.testing.assert_close(wide(volume(2, (16, 8, 16))), net(volume(2, (16, 8, 16))), atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"pos_embed": "sincos", "dynamic_img_size": True}, {"rope": "patch"}])
def test_attention_is_the_same_by_graph_and_by_hook(options):
    before = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(False)
    try:
        net = backbone(**options)
    finally:
        set_fused_attn(*before)
    x = volume(size=(16, 16, 8))
    by_hook = AttentionExtract(net, method="hook")(x)
    by_graph = AttentionExtract(net, method="fx")(x)
    assert len(by_graph) == len(by_hook) == 4
    torch.testing.assert_close(list(by_graph.values()), list(by_hook.values()), atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("options", [{}, {"dynamic_img_size": True}, {"dynamic_img_pad": True}, {"rope": "box"}])
def test_graph_of_the_backbone_can_be_scripted(options):
    net = backbone(num_classes=3, **options).eval()
    x = volume(size=(16, 16, 8))
    scripted = torch.jit.script(torch.fx.symbolic_trace(net))
    torch.testing.assert_close(scripted(x), net(x), atol=1e-6, rtol=1e-6)
    if net.dynamic_img_size:
        torch.testing.assert_close(scripted(x[:, :, :8]), net(x[:, :, :8]), atol=1e-6, rtol=1e-6)


# ---- a walk through the network, as code for timm's ViTs does it


@torch.no_grad()
@pytest.mark.parametrize("pos_embed", ["learned", "sincos", "none"])
@pytest.mark.parametrize("sizes", [{}, {"dynamic_img_size": True}, {"dynamic_img_pad": True}])
@pytest.mark.parametrize("prefix", [{}, {"reg_tokens": 2, "no_embed_class": True}])
def test_steps_under_timms_names(pos_embed, sizes, prefix):
    net = noisy(pos_embed=pos_embed, pre_norm=True, **sizes, **prefix)
    for size in [TINY["img_size"], *([(16, 4, 6)] if net.dynamic_img_size else [])]:
        x = randn(2, 1, *size)
        tokens = net.patch_drop(net._pos_embed(net.patch_embed(x)))
        torch.testing.assert_close(net.norm(net.blocks(net.norm_pre(tokens))), net.forward_features(x))


class OwnEmbedding(nn.Module):
    """A patch embedding with the seed's six keywords, and nothing besides."""

    def __init__(self, img_size, patch_size, in_chans=1, embed_dim=768, bias=True, strict_img_size=True):
        super().__init__()
        self.kernel = nn.Conv3d(in_chans, embed_dim, patch_size, patch_size, bias=bias)

    def forward(self, x):
        return self.kernel(x).flatten(2).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"dynamic_img_size": True}, {"dynamic_img_pad": True}, {"rope": "patch"}])
def test_embedding_of_ones_own(options):
    ours = noisy(**options)
    theirs = noisy(embed_layer=OwnEmbedding, **options)
    state = {key.replace("patch_embed.proj", "patch_embed.kernel"): value for key, value in ours.state_dict().items()}
    theirs.load_state_dict(state)
    for size in {"dynamic_img_size": [(8, 12, 8), (16, 8, 4)], "dynamic_img_pad": [(8, 12, 8), (7, 9, 8)]}.get(
        next(iter(options), ""), [(8, 12, 8)]
    ):
        torch.testing.assert_close(theirs(randn(2, 1, *size)), ours(randn(2, 1, *size)))
    with pytest.raises(ValueError, match="channels"):
        theirs(randn(2, 3, 8, 12, 8))
    with pytest.raises(ValueError, match=r"OwnEmbedding has no method set_input_size"):
        theirs.set_input_size((8, 8, 8))
    if not options:
        with pytest.raises(ValueError, match="img_size"):  # as many tokens, elsewhere
            theirs(randn(2, 1, 12, 8, 8))


class Gridded(OwnEmbedding):
    """A grid as a convolution gives it."""

    def forward(self, x):
        return self.kernel(x)


class Sparse(OwnEmbedding):
    """A token for every other patch."""

    def forward(self, x):
        return super().forward(x)[:, ::2]


class Wide(OwnEmbedding):
    """Tokens of another width."""

    def forward(self, x):
        return super().forward(x).repeat(1, 1, 2)


@pytest.mark.parametrize("options", [{}, {"dynamic_img_size": True}, {"dynamic_img_pad": True}])
@pytest.mark.parametrize("layer", [Gridded, Sparse, Wide])
def test_embedding_of_ones_own_that_breaks_the_contract(layer, options):
    with pytest.raises(ValueError, match=rf"embed_layer={layer.__name__} made .* expected a token for each patch"):
        noisy(embed_layer=layer, **options)(randn(2, 1, *TINY["img_size"]))


def test_constructors_that_need_what_they_do_not_get():
    def windowed(img_size, patch_size, embed_dim, window):
        return OwnEmbedding(img_size, patch_size, embed_dim=embed_dim)

    with pytest.raises(ValueError, match=r"windowed needs window; expected .* in_chans.* functools\.partial"):
        noisy(embed_layer=windowed)
    assert isinstance(noisy(embed_layer=partial(windowed, window=3)).patch_embed, OwnEmbedding)


@torch.no_grad()
@pytest.mark.parametrize("pos_embed", ["learned", "sincos"])
def test_ensemble_by_vmap_leaves_the_network_usable(pos_embed):
    nets = [noisy(dynamic_img_size=True, pos_embed=pos_embed) for _ in range(2)]
    for i, p in enumerate(nets[1].parameters()):
        p.add_(randn(*p.shape, seed=i))
    base, x = copy.deepcopy(nets[0]), randn(2, 1, 16, 8, 4)
    stacked = stack_module_state(nets)
    both = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(*stacked)
    torch.testing.assert_close(both[1], nets[1](x))
    torch.testing.assert_close(base(x), nets[0](x))


# ---- segmenter and classifier


def test_layer_decay_by_timms_factory_parameter_by_parameter():
    ours = TokenSegmenter(backbone(), "unetr", 3, feature_size=2)
    theirs = VisionTransformer(16, 4, embed_dim=24, depth=4, num_heads=2, num_classes=3)
    how = {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05, "layer_decay": 0.7}

    def settings(net):
        groups = create_optimizer_v2(net, **how).param_groups
        found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
        return {name.removeprefix("backbone."): found[id(p)] for name, p in net.named_parameters()}

    one, other = settings(ours), settings(theirs)
    shared = {name: value for name, value in other.items() if not name.startswith("head.")}
    assert {name: one[name] for name in shared} == shared
    decoder = {scale for name, (scale, _) in one.items() if name.startswith("decoder.")}
    assert decoder == {1.0} == {scale for name, (scale, _) in other.items() if name.startswith("head.")}
    assert ours.no_weight_decay() == {"backbone.pos_embed", "backbone.cls_token"}


@pytest.mark.parametrize("decoder", DECODERS)
def test_checkpointing_keeps_less_and_changes_no_gradient(decoder):
    net, image = TokenSegmenter(backbone(), decoder, 3, feature_size=2), volume(size=(16, 16, 8))
    gradients, kept = [], []

    def keep(tensor):
        kept[-1] += tensor.numel()
        return tensor

    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        net.zero_grad()
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = net(image)
        out.square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
    assert kept[1] < kept[0] / 4
    net.set_grad_checkpointing(False)
    assert not net.decoder.grad_checkpointing
    assert not net.backbone.grad_checkpointing


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"image_channels": 2}, {"deep_supervision": True}], ids=str)
@pytest.mark.parametrize("decoder", DECODERS)
def test_segmenter_for_other_classes(decoder, options):
    takes = {"image_channels": "light", "deep_supervision": "unetr"}
    if options and takes[next(iter(options))] != decoder:
        pytest.skip("an option of another decoder")
    net = TokenSegmenter(backbone(), decoder, 3, feature_size=2, **options)
    before = {name: p.clone() for name, p in net.named_parameters()}
    net.reset_classifier(5)
    assert net.get_classifier().out_channels == 5
    maps = net(volume(size=(16, 16, 8)))  # a list of them with deep supervision
    assert {map.shape[1:] for map in (maps if isinstance(maps, list) else [maps])} == {(5, 16, 16, 8)}
    last = {name for name, p in net.named_parameters() if p.shape != before[name].shape}
    assert last
    assert all(name.startswith("decoder.") for name in last)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters() if name.startswith("backbone."))
    with pytest.raises(ValueError, match="num_classes=0"):
        net.reset_classifier(0)


@torch.no_grad()
@pytest.mark.parametrize("head", ["linear", "attentive", "mlp"])
@pytest.mark.parametrize("task", ["multi-class", "ordinal"])
def test_classifier_for_other_classes(head, task):
    net = TokenClassifier(backbone(), head, 3, task)
    net.reset_classifier(6)
    assert net(volume(size=(16, 16, 8))).shape == (2, 6 - (task == "ordinal"))
    assert net.get_classifier() is net.head.output
    net.set_grad_checkpointing()
    assert net.backbone.grad_checkpointing
    built = TokenClassifier(backbone(), copy.deepcopy(net.head))
    with pytest.raises(ValueError, match="was built elsewhere"):
        built.reset_classifier(4)


def test_unfreezing_puts_dropout_back():
    net = TokenClassifier(backbone(proj_drop_rate=0.5, pos_drop_rate=0.5), "linear", 3, freeze="backbone").train()
    dropouts = [m for m in net.backbone.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    assert dropouts
    assert not any(m.training for m in dropouts)
    net.backbone.blocks[3].requires_grad_(True)
    net.train()
    assert {m.training for m in net.backbone.blocks[3].modules()} == {True}
    assert not any(m.training for m in net.backbone.blocks[2].modules())
    net.backbone.requires_grad_(True)
    net.train()
    assert all(m.training for m in net.modules())


# ---- names


@pytest.mark.slow
def test_bare_import_is_enough_for_timm_and_monai_and_loads_neither():
    script = """
import importlib.util, sys
import monai_vit3d
assert not {"torch", "timm", "monai"} & sys.modules.keys()
assert importlib.util.find_spec("timm")  # as libraries do that look whether it is installed
import timm
from monai.bundle import ConfigParser
assert "monai_vit3d.networks" not in sys.modules
config = {"_target_": "VisionTransformer3D", "img_size": 8, "patch_size": 4, "embed_dim": 12, "num_heads": 2}
net = ConfigParser({"net": config}).get_parsed_content("net")
assert type(net) is monai_vit3d.VisionTransformer3D is sys.modules["monai_vit3d.networks.vit3d"].VisionTransformer3D
assert type(timm.create_model("vit3d_tiny", img_size=8, patch_size=4, depth=1)) is monai_vit3d.VisionTransformer3D
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=HANG)


def test_no_name_is_one_that_monai_has():
    for module in pkgutil.walk_packages(monai_vit3d.__path__, "monai_vit3d."):
        importlib.import_module(module.name)
    locator, taken = ComponentLocator(), []
    for module in [m for name, m in sys.modules.items() if name.startswith("monai_vit3d.")]:
        for name, value in inspect.getmembers(module, lambda v: inspect.isclass(v) or inspect.isfunction(v)):
            homes = ensure_tuple(locator.get_component_module_name(name) or ())
            if value.__module__ == module.__name__ and not name.startswith("_"):
                taken += [(module.__name__, name) for home in homes if home.startswith("monai.")]
    assert taken == []
