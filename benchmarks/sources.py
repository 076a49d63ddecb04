"""Which weights of others are read, and how far from the network that they are of ours computes.

    python benchmarks/sources.py

First timm's names: each is built at its full size on the meta device, and is read if `timm_options` finds keywords for
all of it and `refuse_other_layers` nothing that differs in the network built with them; else its name is printed with
the reason. Then the errors: the largest difference of the outputs of two networks, divided by the largest output of
the one that the weights are of; of all networks of a family, the largest. Weights and inputs are random, no parameter
is at its start.

Of timm each name that is read is built anew with width 24 and 2 blocks, on 2x3 patches, and ours gets a volume whose
slices are all the image, one token deep. timm's rotary angles are float32 in any network: beside float64 they are
replaced by the same formulas in float64. MONAI's networks are compared with ours and ours with what goes back;
encoders, and UNETR's also from the checkpoint alone, by their tokens. transformers' models are compared by their last
hidden state, and so are, where they are installed, nidl 0.0.2, SPECTRE (`spectre-fm`, `loralib`) and Primus
(`dynamic-network-architectures`; its rotary positions are those of an older timm, so they are given by formula). Of our
own files the network that was written is compared with the one that is read.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import timm
import torch
from monai.networks.nets import UNETR, MaskedAutoEncoderViT, ViT, ViTAutoEnc
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from monai_vit3d.data.errors import WeightsError
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.weights import (
    backbone_from,
    from_monai_unetr,
    from_monai_vit,
    from_timm2d,
    load_backbone,
    save_backbone,
    to_monai_unetr,
    to_monai_vit,
)
from monai_vit3d.weights.convert.timm2d_options import refuse_other_layers, timm_options

Call = Callable[[Tensor], Tensor]
Pairs = Iterator[tuple[Call, Call, Tensor]]  # the network that has the weights, the one they are of, the input

TIMM = {"VisionTransformer": ("vision_transformer", "deit"), "Eva": ("eva",)}
NARROW = {"num_classes": 5, "embed_dim": 24, "depth": 2, "num_heads": 2}
OTHER_POOL = {"global_pool": "avg"}
SIZE, PATCH = (8, 12, 8), (4, 4, 2)
SMALL = {"hidden_size": 24, "mlp_dim": 40, "num_layers": 2, "num_heads": 2}
UNETR_SIZE, UNETR_SMALL = (32, 48, 32), {"feature_size": 4, "hidden_size": 24, "mlp_dim": 40, "num_heads": 2}


def why_not(model: nn.Module, **options: str) -> str:
    """Why a timm model is not read; nothing if it is."""
    patch = model.patch_embed.patch_size
    size = [n * p for n, p in zip(model.patch_embed.grid_size, patch)]
    try:
        wanted = {**timm_options(model), **options}
        refuse_other_layers(model, VisionTransformer3D((*size, 2), (*patch, 2), device="meta", **wanted))
    except WeightsError as error:
        return str(error)
    return ""


def count(kind: str) -> dict[str, tuple[int, dict[str, str]]]:
    """Print how many names of a class of timm's are read, and which are not; returns the others, how they are built."""
    read: dict[str, tuple[int, dict[str, str]]] = {}
    refused: dict[str, list[str]] = defaultdict(list)
    names = sorted({name for module in TIMM[kind] for name in timm.list_models(module=module)})
    for name in names:
        model = timm.create_model(name, pretrained=False, device="meta")
        why = why_not(model)
        if not why or not why_not(model, **OTHER_POOL):
            read[name] = model.patch_embed.patch_size[0], OTHER_POOL if why else {}
            why = why and "read with another global_pool"
        if why:
            refused[why].append(name)
    print(f"timm {timm.__version__} {kind}: {len(read)} of {len(names)} names are read")
    for why, those in refused.items():
        print(f"  {len(those)}: {', '.join(those)}\n     {why}", flush=True)
    return read


def noisy(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """In eval mode, with no parameter at its start but positions that are fixed."""
    net = net.to(dtype).eval()
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def in_float64(rope: nn.Module, grid: tuple[int, int]) -> Tensor:
    """The sines and cosines that timm's rotary positions have, by their formulas."""
    pairs, rows = rope.dim // 4, []
    for place in product(*map(range, grid)):
        if isinstance(rope, RotaryEmbeddingDinoV3):
            at = [2 * math.pi * (2 * (p + 0.5) / n - 1) for p, n in zip(place, grid)]
        else:
            at = [(p + rope.grid_offset) / n * r for p, n, r in zip(place, grid, rope.ref_feat_shape or grid)]
        at = at[::-1] if rope.grid_indexing == "xy" else at
        rows.append([p / rope.temperature ** (k / pairs) for p in at for k in range(pairs)])
    angles = torch.tensor(rows, dtype=torch.float64)
    angles = torch.cat([angles, angles], 1) if rope.rotate_half else angles.repeat_interleave(2, 1)
    return torch.cat([angles.sin(), angles.cos()], 1)


def timms(read: dict[str, tuple[int, dict[str, str]]], dtype: torch.dtype) -> Pairs:
    """Each name's network, narrow."""
    for name, (patch, options) in read.items():
        size = (2 * patch, 3 * patch)
        options = {**options, **({"num_kv_heads": 2} if "sapiens2" in name else {})}  # heads by block, as many in each
        model = noisy(timm.create_model(name, pretrained=False, img_size=size, **NARROW, **options), dtype)
        net = from_timm2d(model, (*size, 2), (patch, patch, 2)).network
        rope = getattr(model, "rope", None)
        if rope is not None and dtype == torch.float64:
            table = in_float64(rope, (2, 3))
            rope.get_embed = lambda *_, table=table, **__: table
        image = torch.randn(2, 3, *size, dtype=dtype)
        yield lambda x, net=net: net(x[..., None].expand(-1, -1, -1, -1, 2)), model, image


def monai_vits(dtype: torch.dtype) -> Pairs:
    """MONAI's ViT with either patch embedding, any positions, with and without a head."""
    x = torch.randn(2, 2, *SIZE, dtype=dtype)
    ways = product(("conv", "perceptron"), ("learnable", "sincos", "none"), (False, True), (False, True))
    for proj, pos, bias, head in ways:
        options = {"proj_type": proj, "pos_embed_type": pos, "qkv_bias": bias, "classification": head}
        vit = noisy(ViT(2, SIZE, PATCH, **SMALL, **options), dtype)
        net = from_monai_vit(vit, SIZE)
        back = to_monai_vit(net, proj)
        yield net, lambda x, vit=vit: vit(x)[0], x
        yield lambda x, back=back: back(x)[0], net, x


def unetrs(dtype: torch.dtype) -> Pairs:
    """MONAI's UNETR with either patch embedding and norm, with and without residual blocks; its encoder alone."""
    x = torch.randn(2, 2, *UNETR_SIZE, dtype=dtype)
    for proj, norm, res, bias in product(("conv", "perceptron"), ("instance", "batch"), (True, False), (True, False)):
        options = {"norm_name": norm, "res_block": res, "qkv_bias": bias, "proj_type": proj}
        unetr = noisy(UNETR(2, 3, UNETR_SIZE, **UNETR_SMALL, **options), dtype)
        net = from_monai_unetr(unetr)
        yield net, unetr, x
        yield to_monai_unetr(net, proj), net, x
        said = {"img_size": UNETR_SIZE, "patch_size": 16, "in_chans": 2, "num_heads": 2}
        yield backbone_from(unetr.state_dict(), **said).network, lambda x, vit=unetr.vit: vit(x)[0], x


def autoencoders(dtype: torch.dtype) -> Pairs:
    """The encoders of MONAI's ViTAutoEnc and MaskedAutoEncoderViT, the latter without its mask."""
    cube = (8, 12, 16)
    decoder = {"decoder_hidden_size": 12, "decoder_mlp_dim": 8, "decoder_num_layers": 1, "decoder_num_heads": 2}
    for proj in ("conv", "perceptron"):
        options = {**SMALL, "proj_type": proj}
        net = noisy(ViTAutoEnc(2, cube, 4, deconv_chns=3, **options), dtype)
        layers = nn.Sequential(net.patch_embedding, *net.blocks, net.norm)
        yield from_monai_vit(net).forward_features, layers, torch.randn(2, 2, *cube, dtype=dtype)
        masked = noisy(MaskedAutoEncoderViT(2, SIZE, PATCH, **decoder, **options), dtype)
        layers = nn.Sequential(masked.patch_embedding, WithToken(masked.cls_token), masked.blocks)
        yield from_monai_vit(masked).forward_features, layers, torch.randn(2, 2, *SIZE, dtype=dtype)


class WithToken(nn.Module):
    """A class token before the others."""

    def __init__(self, token: Tensor) -> None:
        super().__init__()
        self.token = token

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, E)`` to ``(B, 1 + N, E)``."""
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1)


def nidls(dtype: torch.dtype) -> Pairs:
    """Nidl's VisionTransformer3D with any positions, prefix tokens and poolings."""
    from nidl.volume.backbones.vit3d import VisionTransformer3D as Theirs

    x = torch.randn(2, 2, *SIZE, dtype=dtype)
    sizes = {"in_chans": 2, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}
    tokens = ({}, {"class_token": False}, {"reg_tokens": 2}, {"reg_tokens": 3, "no_embed_class": True})
    layers = ({}, {"qk_norm": True}, {"pre_norm": True, "qkv_bias": False, "proj_bias": False})
    for prefix, more, pos in product(tokens, layers, ("learned", "sincos", "none")):
        said = {"pos_embed": pos, "global_pool": "cls_token" if prefix.get("class_token", True) else "avg"}
        net = noisy(Theirs(SIZE, PATCH, **sizes, **prefix, **more, **said), dtype)
        yield backbone_from(net.state_dict(), img_size=SIZE, num_heads=2, **said).network, net, x


def medical_towers(dtype: torch.dtype) -> Pairs:
    """MONAI's ViT as M3D-CLIP and SegVol hold it, by its tokens, with a class token and without."""
    x = torch.randn(2, 1, *SIZE, dtype=dtype)
    for start, has_class_token in (("vision_encoder.", True), ("image_encoder.", False)):
        vit = noisy(ViT(1, SIZE, PATCH, **SMALL, proj_type="perceptron", classification=has_class_token), dtype)
        if has_class_token:
            del vit.classification_head  # M3D-CLIP has none, and its ViT returns the tokens
        options = {"img_size": SIZE, "patch_size": PATCH, "num_heads": 2}
        yield ours_of(vit, start, **options), lambda x, vit=vit: vit(x)[0], x


def transformers_images(dtype: torch.dtype) -> Pairs:
    """The ViT and Dinov2 of transformers, with registers and a gated MLP, on volumes whose slices are all the image."""
    import transformers

    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    small |= {"image_size": 16, "patch_size": 8}
    for kind, more in (("ViT", {}), ("Dinov2", {}), ("Dinov2", {"use_swiglu_ffn": True}), ("Dinov2WithRegisters", {})):
        config = getattr(transformers, f"{kind}Config")(**small, **more)
        model = noisy(getattr(transformers, f"{kind}Model")(config), dtype)
        net = ours_of(model, img_size=(16, 16, 2), patch_size=(8, 8, 2), num_heads=2)
        image = torch.randn(2, 3, 16, 16, dtype=dtype)
        volume = image[..., None].expand(-1, -1, -1, -1, 2)
        yield lambda _, net=net, volume=volume: net(volume), lambda x, model=model: model(x)[0], image


def transformers_videos(dtype: torch.dtype) -> Pairs:
    """The VideoMAE and V-JEPA 2 of transformers, whose videos have time before channels."""
    import transformers as t

    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    mae = t.VideoMAEConfig(
        **small,
        hidden_size=24,
        intermediate_size=40,
        image_size=16,
        num_frames=4,
        tubelet_size=2,
        use_mean_pooling=False,
    )
    predictor = {"pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
    jepa = t.VJEPA2Config(**small, **predictor, hidden_size=96, crop_size=16, frames_per_clip=4)
    for model, more in ((t.VideoMAEModel(mae), {}), (t.VJEPA2Model(jepa), {"skip_predictor": True})):
        theirs = noisy(model, dtype)
        net = ours_of(theirs, img_size=(4, 16, 16), num_heads=2)
        x = torch.randn(2, 3, 4, 16, 16, dtype=dtype)
        yield net, lambda x, theirs=theirs, more=more: theirs(x.transpose(1, 2), **more)[0], x


class PrimusRotary(nn.Module):
    """Angles of Primus' rotary positions: a third of a head for each axis, in patches of the reference grid."""

    def __init__(self, dim: int, feat_shape: tuple[int, ...], ref_feat_shape: tuple[int, ...], **_: object) -> None:
        super().__init__()
        speeds = [1e4 ** (-k / (dim // 4)) for k in range(dim // 4)]
        steps = [r / n for r, n in zip(ref_feat_shape, feat_shape)]
        places = product(*map(range, feat_shape))
        rows = [[p * step * speed for p, step in zip(place, steps) for speed in speeds] for place in places]
        angles = torch.tensor(rows, dtype=torch.float64).repeat_interleave(2, 1)
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], 1), persistent=False)

    def get_embed(self, *_: object) -> Tensor:
        """Sines, then cosines, of every patch."""
        return self.table


def primuses(dtype: torch.dtype) -> Pairs:
    """Primus V1 to V3, with and without registers, by the tokens before its decoder."""
    from dynamic_network_architectures.architectures import primus

    size, options = (16, 24, 32), {"init_values": 0.1, "scale_attn_inner": True, "rope_impl": PrimusRotary}
    for kind, registers in product(("Primus", "PrimusV2", "PrimusV3"), (0, 3)):
        build = getattr(primus, kind)
        model = build(2, 24, (8, 8, 8), 3, 2, 2, size, num_register_tokens=registers, **options)
        theirs = TokensOf(noisy(model, dtype), model.eva.norm)
        net = ours_of(model, img_size=size, num_heads=2)
        yield net, theirs, torch.randn(1, 2, *size, dtype=dtype)


class TokensOf:
    """What a layer of a network gives when that is called."""

    def __init__(self, net: nn.Module, layer: nn.Module) -> None:
        self.net = net
        layer.register_forward_hook(lambda _, __, output: setattr(self, "tokens", output))

    def __call__(self, x: Tensor) -> Tensor:
        """Call the network."""
        self.net(x)
        return self.tokens


def spectres(dtype: torch.dtype) -> Pairs:
    """SPECTRE's backbone of a crop."""
    from spectre.models import VisionTransformer as Theirs

    size, options = (
        (32, 48, 16),
        {"pos_embed": "rope", "rope_kwargs": {"base": 1000.0, "dtype": dtype}, "init_values": 0.1},
    )
    for patch, chans in product(((16, 16, 8), (8, 8, 8)), (1, 2)):
        theirs = Theirs(size, patch, chans, 0, embed_dim=24, depth=2, num_heads=2, **options)
        theirs = noisy(theirs, dtype)
        yield ours_of(theirs, img_size=size), theirs.forward_features, torch.randn(1, chans, *size, dtype=dtype)


def combiners(dtype: torch.dtype) -> Pairs:
    """SPECTRE's network over the vectors of a scan's crops."""
    from spectre.models import FeatureVisionTransformer as Theirs

    options = {"pos_embed": "rope", "rope_kwargs": {"base": 100.0, "dtype": dtype}, "init_values": 0.1}
    for grid in ((2, 1, 3), (1, 1, 1)):
        theirs = noisy(Theirs(None, 48, 0, embed_dim=24, depth=2, num_heads=2, **options), dtype)
        rows = partial(of_rows, theirs, grid)
        yield ours_of(theirs, img_size=grid), rows, torch.randn(1, 48, *grid, dtype=dtype)


def of_rows(theirs: nn.Module, grid: tuple[int, int, int], x: Tensor) -> Tensor:
    """Their tokens of a grid of vectors, which they take as rows."""
    return theirs.forward_features(x.flatten(2).transpose(1, 2), grid)


def ours_of(theirs: nn.Module, start: str = "", **options: object) -> Call:
    """Our tokens with a network's weights, whose keys get a start."""
    state = {f"{start}{key}": value for key, value in theirs.state_dict().items()}
    net = backbone_from(state, **options).network
    return net.to(next(theirs.parameters()).dtype).forward_features


def own_files(dtype: torch.dtype) -> Pairs:
    """Written and read, by both ways."""
    x, sizes = torch.randn(2, 2, *SIZE, dtype=dtype), {"in_chans": 2, "embed_dim": 24, "depth": 2, "num_heads": 2}
    net = noisy(VisionTransformer3D(SIZE, PATCH, **sizes), dtype)
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        yield VisionTransformer3D.from_pretrained(folder), net, x
        save_backbone(net, Path(folder) / "backbone.safetensors")
        blank = VisionTransformer3D(SIZE, PATCH, **sizes).to(dtype).eval()
        yield load_backbone(blank, Path(folder) / "backbone.safetensors"), net, x


OF_OTHER_PACKAGES = {
    "nidl VisionTransformer3D": nidls,
    "transformers ViT, Dinov2": transformers_images,
    "transformers VideoMAE, V-JEPA 2": transformers_videos,
    "Primus V1, V2, V3": primuses,
    "SPECTRE": spectres,
    "SPECTRE's combiner": combiners,
}


def show(title: str, family: Callable[[torch.dtype], Pairs]) -> None:
    """A line of the table."""
    worst: list[float] = []
    compared = 0
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        errors = []
        for ours, theirs, x in family(dtype):
            want = theirs(x)
            errors.append(float((ours(x) - want).abs().max() / want.abs().max()))
        worst.append(max(errors))
        compared = len(errors)
    print(f"{title:>40s} {compared:11d} {worst[0]:9.1e} {worst[1]:9.1e}", flush=True)


@torch.no_grad()
def main() -> None:
    """Count, compare and print."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # what no tensor of nidl's shows, told for each of its networks
    read = {kind: count(kind) for kind in TIMM}
    print(f"\n{'largest error':>40s} {'comparisons':>11s} {'float64':>9s} {'float32':>9s}")
    for kind, names in read.items():
        show(f"timm {kind}", lambda dtype, names=names: timms(names, dtype))
    show("MONAI ViT", monai_vits)
    show("MONAI UNETR", unetrs)
    show("MONAI ViTAutoEnc, MaskedAutoEncoderViT", autoencoders)
    show("M3D-CLIP, SegVol by MONAI's ViT", medical_towers)
    for title, family in OF_OTHER_PACKAGES.items():
        try:
            show(title, family)
        except ImportError as error:
            print(f"{title:>40s} left out: {error}")
    show("save_pretrained, save_backbone", own_files)


if __name__ == "__main__":
    main()
