"""TokenSegmenter: which tokens it taps, any backbone and size, and its life inside MONAI's engines and inferers."""

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, from_engine
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.transforms import AsDiscreted
from torch import nn

from monai_vit3d.decoders import DECODERS, UNETRDecoder, decoders_for
from monai_vit3d.inferers import AutocastInferer
from monai_vit3d.layers import to_3tuple
from monai_vit3d.networks import TokenSegmenter, VisionTransformer3D
from monai_vit3d.pretraining import IJEPA, IJEPAOutput, JEPAMasks
from tests.helpers import randn

TINY = {"embed_dim": 24, "depth": 4, "num_heads": 2}


def backbone(size=(16, 24, 8), patch=(8, 8, 4), **options):
    torch.manual_seed(0)
    return VisionTransformer3D(size, patch, **{**TINY, **options})


def segmenter(size=(16, 24, 8), patch=(8, 8, 4), decoder="unetr", **options):
    return TokenSegmenter(backbone(size, patch, **options), decoder, 2, feature_size=4).eval()


def volume(*shape, seed=1):
    return randn(*shape, seed=seed, dtype=torch.float32)


class ConvBackbone(nn.Module):
    """Another network that keeps the contract: convolutions over the grid, two prefix tokens that do nothing."""

    in_chans, embed_dim, num_prefix_tokens = 1, 6, 2

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv3d(1, 6, (8, 8, 4), stride=(8, 8, 4))
        self.patch_embed.patch_size = (8, 8, 4)
        self.patch_embed.dynamic_feat_size = lambda size: (size[0] // 8, size[1] // 8, size[2] // 4)
        self.blocks = nn.ModuleList(nn.Conv3d(6, 6, 3, padding=1) for _ in range(6))
        self.norm, self.fc_norm = nn.LayerNorm(6), nn.Identity()
        self.head = nn.Linear(6, 5)

    def reset_classifier(self, num_classes, global_pool=None):
        self.head = nn.Linear(6, num_classes) if num_classes else nn.Identity()

    def forward_intermediates(self, x, indices, output_fmt):
        assert output_fmt == "NCHWD"
        x, maps = self.patch_embed(x), []
        for i, block in enumerate(self.blocks):
            x = x + block(x)
            if i in indices:
                maps.append(x)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        return torch.cat([torch.full_like(tokens[:, :2], 1e6), tokens], dim=1), maps


# taps


@pytest.mark.parametrize(
    ("depth", "patch", "out_indices"),
    [
        (12, 16, [2, 5, 8]),  # quarters
        (24, 16, [5, 11, 17]),
        (12, 8, [3, 7]),  # thirds
        (12, (16, 16, 4), [2, 5, 8]),
        (12, (1, 4, 4), [5]),
        (12, 2, []),
        (4, 16, [0, 1, 2]),
    ],
)
def test_default_taps(depth, patch, out_indices):
    assert TokenSegmenter(backbone(16, patch, depth=depth), "unetr", 2, feature_size=2).out_indices == out_indices


def test_taps_in_block_order():
    net = TokenSegmenter(backbone(depth=6), "unetr", 2, out_indices=(-2, 1))
    assert net.out_indices == [1, 4]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("unetr", 2), {"out_indices": (1,)}, r"out_indices=\(1,\).*reads 2 blocks"),
        (("unetr", 2), {"out_indices": (0, 1, 2)}, "reads 2 blocks"),
        (("unetr", 2), {"out_indices": (1, 4)}, "4 is out of range: the network has 4 blocks"),
        (("unetr", 2), {"out_indices": (1, -3)}, "twice"),
        (("unetr",), {}, "expected num_classes"),
        (("nothing", 2), {}, "'nothing' is unknown"),
        ((UNETRDecoder(1, 24, (8, 8, 4), 2),), {"feature_size": 4}, "built already"),
        ((UNETRDecoder(1, 24, (8, 8, 4), 2), 2), {}, "built already"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        TokenSegmenter(backbone(), *arguments, **options)


@pytest.mark.parametrize("patch", [16, (8, 8, 4), 2])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_decoder_that_reads_too_much_is_refused_with_those_that_do_not(depth, patch):
    usable = decoders_for(depth, to_3tuple(patch, "patch_size"))
    assert usable
    for name in DECODERS:
        if name in usable:
            TokenSegmenter(backbone(16, patch, depth=depth), name, 2)
        else:
            with pytest.raises(ValueError, match=rf"decoder that reads fewer \({', '.join(usable)}\)\.$"):
                TokenSegmenter(backbone(16, patch, depth=depth), name, 2)


def test_norm_behind_the_pooling_refused():
    with pytest.raises(ValueError, match="fc_norm=True"):
        TokenSegmenter(backbone(fc_norm=True), "unetr", 2)


@pytest.mark.parametrize("pool", ["avg", "map", "cls_token"])
def test_classifier_becomes_a_segmenter_with_its_own_norm(pool):
    vit = backbone(global_pool=pool, num_classes=3)
    norm = vit.fc_norm if pool == "avg" else vit.norm
    net = TokenSegmenter(vit, "unetr", 2)
    assert net.backbone.norm is norm
    assert isinstance(net.backbone.head, nn.Identity)
    assert net.backbone.attn_pool is None


# what it computes


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "options", [{}, {"reg_tokens": 3}, {"class_token": False, "global_pool": "", "pos_embed": "sincos"}]
)
def test_equals_the_explicit_computation(name, options):
    net = segmenter(decoder=name, **options)
    seen, x = [], volume(2, 1, 16, 24, 8)
    for block in net.backbone.blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        out = net(x)
        tokens = [seen[i] for i in net.out_indices] + [net.backbone.norm(seen[3])]
        prefix = seen[0].shape[1] - 2 * 3 * 2
        maps = [t[:, prefix:].reshape(2, 2, 3, 2, 24).permute(0, 4, 1, 2, 3) for t in tokens]
        torch.testing.assert_close(out, net.decoder(x, maps))
        final, tapped = net.backbone.forward_intermediates(x, net.out_indices, output_fmt="NCHWD")
        assert len(tapped) == len(net.out_indices)  # none where the decoder reads the final tokens alone
        assert all(map(torch.equal, tapped, maps[:-1]))
        assert torch.equal(final, tokens[-1])


@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_another_backbone(kind):
    torch.manual_seed(0)
    net = TokenSegmenter(ConvBackbone(), "unetr", 2, feature_size=4).eval()
    assert net.out_indices == [1, 3]
    x = kind(volume(2, 1, 16, 24, 8))
    with torch.no_grad():
        out = net(x)
        final, maps = net.backbone.forward_intermediates(x, [1, 3], "NCHWD")
        grid = final[:, 2:].transpose(1, 2).reshape(2, 6, 2, 3, 2)
        assert torch.equal(out, net.decoder(x, [*maps, grid]))
    assert out.shape == (2, 2, 16, 24, 8)
    assert type(out) is kind
    assert out.abs().max() < 1e3  # the prefix tokens stayed out


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("size", [(16, 24, 8), (8, 8, 16), (32, 16, 4)])
def test_any_size_that_the_patch_divides(name, size):
    net = segmenter(decoder=name, dynamic_img_size=True)
    with torch.no_grad():
        out = net(volume(1, 1, *size))
        assert out.shape == (1, 2, *size)
        assert out.isfinite().all()
        net.backbone.set_input_size(size)  # the same positions, resampled once
        net.backbone.dynamic_img_size = False
        torch.testing.assert_close(net(volume(1, 1, *size)), out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("size", [(13, 17, 5), (16, 24, 7), (9, 24, 8)])
def test_any_size_at_all(name, size):
    net = segmenter(decoder=name, dynamic_img_size=True, dynamic_img_pad=True)
    x = volume(1, 1, *size)
    pad = [p for s, q in zip(reversed(size), (4, 8, 8)) for p in (0, -s % q)]
    with torch.no_grad():
        out, padded = net(x), net(F.pad(x, pad))
    assert out.shape == (1, 2, *size)
    # a voxel is classified where it is: as in the volume that the user padded himself
    torch.testing.assert_close(out, padded[..., : size[0], : size[1], : size[2]], atol=1e-5, rtol=1e-5)


def test_fixed_size_refuses_another():
    with pytest.raises(ValueError, match=r"\[16, 16, 8\].*img_size=\[16, 24, 8\]"):
        segmenter()(volume(1, 1, 16, 16, 8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "patch", "options"),
    [
        ((16, 24, 8), 4, {"reg_tokens": 1}),
        ((16, 24, 8), 2, {}),  # no out_indices
        ((12, 18, 10), (6, 6, 5), {}),
        ((13, 17, 5), (8, 8, 4), {"dynamic_img_size": True, "dynamic_img_pad": True}),
    ],
)
def test_torchscript(size, patch, options):
    built = size if not options.get("dynamic_img_size") else (16, 24, 8)
    net, x = segmenter(built, patch, **options), volume(2, 1, *size)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(net)(x), net(x), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_torchscript_trains_with_deep_supervision():
    net = TokenSegmenter(backbone(), "unetr", 2, feature_size=4, deep_supervision=True).train()
    scripted, x = torch.jit.script(net), volume(2, 1, 16, 24, 8)
    out = scripted(x)
    assert out.shape == (2, 3, 2, 16, 24, 8)
    torch.testing.assert_close(out, torch.stack(net(x), 1), atol=1e-5, rtol=1e-5)
    out.square().mean().backward()
    assert all(p.grad is not None for p in scripted.parameters())


def test_patch_dropout_refused_in_training():
    net = segmenter(patch_drop_rate=0.5)
    assert net(volume(1, 1, 16, 24, 8)).shape == (1, 2, 16, 24, 8)
    with pytest.raises(ValueError, match="patch_drop_rate"):
        net.train()(volume(1, 1, 16, 24, 8))


# MONAI


def affine(shift):
    return torch.tensor([[0.0, -2, 0, shift], [1.5, 0, 0, 2], [0, 0, 3, -7], [0, 0, 0, 1]], dtype=torch.double)


@pytest.mark.parametrize("options", [{}, {"dynamic_img_size": True, "dynamic_img_pad": True}])
def test_metatensor_keeps_its_place(options):
    net = segmenter(**options)
    size = (13, 17, 5) if options else (16, 24, 8)
    x = volume(1, 1, *size)
    meta = {"filename_or_obj": "a.nii.gz", "spatial_shape": list(size)}
    with torch.no_grad():
        out = net(MetaTensor(x, affine=affine(5), meta=meta))
        assert torch.equal(out.as_tensor(), net(x))
    assert isinstance(out, MetaTensor)
    assert torch.equal(out.affine, affine(5))
    assert {key: out.meta[key] for key in meta} == meta


def test_metatensors_of_a_batch_keep_their_places():
    items = [{"image": MetaTensor(volume(1, 16, 24, 8, seed=i), affine=affine(i), meta={"n": i})} for i in range(2)]
    with torch.no_grad():
        out = decollate_batch(segmenter()(list_data_collate(items)["image"]))
    assert [o.shape for o in out] == [(2, 16, 24, 8)] * 2
    for i, item in enumerate(out):
        assert torch.equal(item.affine, affine(i))
        assert item.meta["n"] == i


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_sliding_window_over_a_metatensor(mode):
    net, x = segmenter(), volume(1, 1, 20, 30, 11)
    inferer = SlidingWindowInferer((16, 24, 8), sw_batch_size=2, overlap=0.5, mode=mode)
    with torch.no_grad():
        out, plain = inferer(MetaTensor(x, affine=affine(5)), net), inferer(x, net)
    assert plain.shape == (1, 2, 20, 30, 11)
    assert torch.equal(out.as_tensor(), plain)
    assert torch.equal(out.affine, affine(5))


def test_sliding_window_of_one_window_is_the_network():
    net, x = segmenter(), volume(1, 1, 16, 24, 8)
    with torch.no_grad():
        torch.testing.assert_close(SlidingWindowInferer((16, 24, 8))(x, net), net(x), atol=1e-5, rtol=1e-5)


def blobs(seeds):
    """Noisy volumes with one bright ball each, and where it is."""
    items, axes = [], torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij")
    for i in seeds:
        center = 4 + 8 * torch.rand(3, generator=torch.Generator().manual_seed(i))
        ball = (sum((a - c) ** 2 for a, c in zip(axes, center)) < 16)[None].float()
        items.append({"image": MetaTensor(2 * ball + volume(1, 16, 16, 16, seed=i)), "label": MetaTensor(ball)})
    return Dataset(items)


@pytest.mark.slow
@pytest.mark.parametrize("inferer", [SimpleInferer(), AutocastInferer()], ids=["float32", "bfloat16"])
def test_engines_train_and_evaluate(inferer):
    torch.manual_seed(0)
    net, device = segmenter(16, 8).train(), torch.device("cpu")
    loader = DataLoader(blobs(range(6)), batch_size=2)
    dice = MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
    evaluator = SupervisedEvaluator(
        device,
        DataLoader(blobs(range(6, 9)), batch_size=2),
        net,
        inferer=inferer,
        postprocessing=AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=2),
        key_val_metric={"dice": dice},
    )
    evaluator.run()
    before, losses = evaluator.state.metrics["dice"], []
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    trainer = SupervisedTrainer(device, 20, loader, net, optimizer, loss, inferer=inferer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output[0]["loss"]))
    trainer.run()
    evaluator.run()
    assert len(losses) == 60
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
    assert before < 0.5 < 0.9 < evaluator.state.metrics["dice"]


@pytest.mark.parametrize("inner", ["monai_vit3d.networks.VisionTransformer3D", "monai_vit3d.networks.create_preset"])
def test_target_of_a_bundle(inner):
    vit = {"_target_": inner, "img_size": [16, 24, 8], "patch_size": [8, 8, 4], **TINY}
    if inner.endswith("create_preset"):
        vit["name"] = "vit3d_tiny"
    config = {
        "network": {
            "_target_": "monai_vit3d.networks.TokenSegmenter",
            "backbone": vit,
            "decoder": "unetr",
            "num_classes": 2,
            "feature_size": 4,
        },
        "inferer": {"_target_": "monai_vit3d.inferers.AutocastInferer", "dtype": "float16"},
    }
    parser = ConfigParser(config)
    net = parser.get_parsed_content("network")
    assert type(net) is TokenSegmenter
    assert net(volume(1, 1, 16, 24, 8)).shape == (1, 2, 16, 24, 8)
    assert parser.get_parsed_content("inferer").dtype is torch.float16


# AutocastInferer


class Probe(nn.Module):
    """A convolution that remembers the types it was asked in and computed in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.seen = nn.Conv3d(1, 2, 1), []

    def forward(self, x):
        out = self.conv(x)
        self.seen.append((x.dtype, out.dtype, tuple(x.shape)))
        return out


@pytest.mark.parametrize(
    ("dtype", "inside"),
    [(torch.bfloat16, torch.bfloat16), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_autocast_computes_reduced_and_returns_float32(dtype, inside):
    probe, x = Probe(), volume(1, 1, 4, 4, 4)
    out = AutocastInferer(dtype=dtype)(x, probe)
    assert probe.seen == [(torch.float32, inside, (1, 1, 4, 4, 4))]
    assert out.dtype is torch.float32
    error = (out - probe(x)).abs().max()
    assert 0 < error < 0.05
    assert probe.seen[-1][1] is torch.float32  # autocast ended
    out.sum().backward()
    assert probe.conv.weight.grad.dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_disabled_leaves_everything_as_it_is(dtype):
    probe = Probe().to(dtype)
    x = volume(1, 1, 4, 4, 4).to(dtype)
    out = AutocastInferer(enabled=False)(x, probe)
    assert probe.seen == [(dtype, dtype, (1, 1, 4, 4, 4))]
    assert out.dtype is dtype
    assert torch.equal(out, probe(x))


def test_autocast_around_a_sliding_window():
    probe, x = Probe(), MetaTensor(volume(1, 1, 8, 8, 8), affine=affine(5))
    window = SlidingWindowInferer((4, 4, 4), sw_batch_size=3, overlap=0)
    out = AutocastInferer(window)(x, probe)
    assert [seen[1] for seen in probe.seen] == [torch.bfloat16] * 3
    assert sum(seen[2][0] for seen in probe.seen) == 8
    assert out.dtype is torch.float32
    assert torch.equal(out.affine, affine(5))
    torch.testing.assert_close(out.as_tensor(), probe(x.as_tensor()), atol=0.05, rtol=0)


def test_autocast_hands_out_what_is_no_tensor_as_it_is():
    torch.manual_seed(0)
    backbone = VisionTransformer3D((8, 8, 8), 4, embed_dim=12, depth=1, num_heads=2)
    model, places = IJEPA(backbone, 6, 1, 1), JEPAMasks(torch.tensor([[0, 1, 2]]), torch.tensor([[[4, 5]]]))
    x = volume(1, 1, 8, 8, 8)
    out = AutocastInferer()(x, model, places)
    assert type(out) is IJEPAOutput
    assert out.loss.dtype is torch.float32
    assert out.predictions.dtype is torch.bfloat16  # it computed reduced
    torch.testing.assert_close(out.loss, model(x, places).loss, atol=0.02, rtol=0)
    out.loss.backward()


@pytest.mark.parametrize("dtype", ["int8", "half_float", "load", torch.int32, 16, None])
def test_autocast_refuses_what_is_no_float(dtype):
    with pytest.raises(ValueError, match="floating-point type"):
        AutocastInferer(dtype=dtype)
