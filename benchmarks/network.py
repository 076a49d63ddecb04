"""The network alone: a UNETR, a ViT at 4,096 tokens, the encoder against its bare blocks, and attention in bfloat16.

    python benchmarks/network.py --rounds 5
    python benchmarks/network.py --quick      # 2 blocks of the ViT instead of 12, three rounds

All in turn, forward, in float32 unless said, with the same weights. UNETR (14 classes, 96^3): ours by
`BackendNetwork` (OpenVINO where it is installed), the peer is MONAI's in evaluation and inference mode, in either
memory format, of which the faster one counts. ViT (width 768, a volume of 256^3): ours by PyTorch and by OpenVINO, the
peer MONAI's; memory is what a second forward adds to a process of its own (Linux; OpenVINO keeps what it has had).
Encoder: ours by each backend against timm's Blocks with the same weights, bare, over the same convolution. Attention:
PyTorch's fused one against the plain product, 12 heads of 64, and (half) within 4 blocks of width 384 in bfloat16. The
limit is the time of the same products at the rate of a square matrix product of 2,048 here, in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from in_turn import added_bytes, command_line, head, show, timed, with_each_allocator
from made_up_bundle import segmenter
from monai.networks.nets import ViT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from monai_vit3d.inferers import BackendNetwork
from monai_vit3d.networks import VisionTransformer3D
from monai_vit3d.weights.convert import from_monai_vit, to_monai_unetr

SIDE = 256  # of the ViT's volume: 16^3 tokens


class Blocks(nn.Module):
    """A backbone's own blocks between a plain convolution and its norm."""

    def __init__(self, backbone: VisionTransformer3D) -> None:
        super().__init__()
        embed = backbone.patch_embed
        self.conv = nn.Conv3d(embed.in_chans, backbone.embed_dim, embed.patch_size, embed.patch_size)
        self.conv.load_state_dict(embed.proj.state_dict())
        self.positions, self.blocks, self.norm = backbone.pos_embed, nn.Sequential(*backbone.blocks), backbone.norm

    def forward(self, x: Tensor) -> Tensor:
        """Normed tokens."""
        return self.norm(self.blocks(self.conv(x).flatten(2).transpose(1, 2) + self.positions))


def matmul_rate() -> float:
    """Floating-point operations a second."""
    a, n = torch.randn(2048, 2048), 2048
    return 2 * n**3 / min(timed({"it": lambda: a @ a}, 5)["it"])


def compare(title: str, calls: dict[str, Callable[[], Tensor]], rounds: int, rate: float) -> None:
    """A line for ours against "MONAI"; every other name is one of ours or another way of the peer."""
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            expected = calls["MONAI"]()
        times = timed(calls, rounds)
        off = {name: float((call() - expected).abs().max()) for name, call in calls.items()}
    times["limit"] = [counter.get_total_flops() / rate] * rounds
    peers = [name for name in calls if name.startswith("MONAI")]
    best = min(peers, key=lambda name: sorted(times[name])[rounds // 2])
    for name in calls:
        if name not in peers:
            show(f"{title}, {name}", times, name, best, "limit")
            print(f"{'greatest difference':>44s} {off[name]:8.1g}   peer: {best}")


def unetr(rounds: int, rate: float) -> None:
    """Row 9."""
    net, x = segmenter(), torch.randn((1, 1, 96, 96, 96), generator=torch.Generator().manual_seed(0))
    peer = to_monai_unetr(net).eval()
    other = to_monai_unetr(net).eval().to(memory_format=torch.channels_last_3d)
    last = x.to(memory_format=torch.channels_last_3d)
    calls = {"MONAI": partial(peer, x), "MONAI, channels last": partial(other, last)}
    compare("UNETR 96^3", {"auto": partial(BackendNetwork(net), x), **calls}, rounds, rate)
    fast = BackendNetwork(net)

    def half() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return fast(x)

    compare("UNETR 96^3", {"auto, bfloat16": half, "MONAI": partial(peer, x)}, rounds, rate)


def vits(depth: int) -> tuple[nn.Module, VisionTransformer3D]:
    """MONAI's and ours, of the same weights."""
    torch.manual_seed(0)
    theirs = ViT(1, (SIDE,) * 3, (16,) * 3, num_layers=depth, proj_type="conv", qkv_bias=True).eval()
    return theirs, from_monai_vit(theirs, (SIDE,) * 3)


def tokens_of(name: str, depth: int) -> Callable[[Tensor], Tensor]:
    """A volume to normed tokens."""
    theirs, ours = vits(depth)
    if name == "openvino":
        return BackendNetwork(Tokens(ours).eval())
    return (lambda x: theirs(x)[0]) if name == "MONAI" else ours.forward_features


class Tokens(nn.Module):
    """A backbone as a network of one tensor."""

    def __init__(self, backbone: VisionTransformer3D) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """Normed tokens."""
        return self.backbone.forward_features(x)


def vit(depth: int, rounds: int, rate: float) -> None:
    """Row 10."""
    x = torch.randn((1, 1, SIDE, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    calls = {name: partial(tokens_of(name, depth), x) for name in ("PyTorch", "openvino", "MONAI")}
    compare(f"ViT, 4096 tokens, {depth} blocks", calls, rounds, rate)
    mine, theirs = (in_own_process(name, depth) for name in ("PyTorch", "MONAI"))
    print(f"{'memory a forward adds, PyTorch, MiB':>44s} {mine:8.0f} {theirs:8.0f} {theirs / mine:7.1f}")


def in_own_process(name: str, depth: int) -> float:
    """What :func:`memory` prints."""
    command = [sys.executable, "-W", "ignore", __file__, "--memory", name, str(depth)]
    command += ["--threads", str(torch.get_num_threads())]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return float(json.loads(out.stdout.splitlines()[-1]))


def memory(name: str, depth: int) -> None:
    """MiB by which a second forward raises this process' memory at its peak."""
    call, x = tokens_of(name, depth), torch.zeros((1, 1, SIDE, SIDE, SIDE))
    with torch.inference_mode():
        call(x)
        print(added_bytes(partial(call, x)) / 2**20)


def encoder(rounds: int, rate: float) -> None:
    """Row 12: here the peer's column is timm's."""
    for side, patch, width in ((96, 16, 768), (96, 8, 384)):
        torch.manual_seed(0)
        ours = VisionTransformer3D(
            (side,) * 3, patch, embed_dim=width, num_heads=width // 64, depth=4, class_token=False, global_pool=""
        ).eval()
        x = torch.randn(1, 1, side, side, side)
        networks = {kind: BackendNetwork(Tokens(ours).eval(), kind) for kind in ("compile", "openvino")}
        calls = {"PyTorch": partial(ours.forward_features, x), **{k: partial(net, x) for k, net in networks.items()}}
        calls["MONAI"] = partial(Blocks(ours).eval(), x)
        compare(f"4 blocks, {(side // patch) ** 3} tokens (peer: timm)", calls, max(rounds, 5), rate)


def attention(rounds: int, rate: float) -> None:
    """Fused against plain, in bfloat16 and float32; the peer's column is the plain product."""
    for tokens in (216, 1728, 4096):
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (torch.randn(1, 12, tokens, 64, dtype=dtype) for _ in range(3))
            fused = partial(F.scaled_dot_product_attention, q, k, v)
            calls = {"fused": fused, "MONAI": partial(plain, q, k, v)}
            compare(f"{tokens} tokens, {str(dtype)[6:]} (peer: plain)", calls, rounds, rate)


def half(rounds: int, rate: float) -> None:
    """Blocks in bfloat16 with either attention; the peer's column is the plain product."""

    def in_bfloat16(network: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(x)

    for side in (96, 128):
        torch.manual_seed(0)
        options = {"embed_dim": 384, "num_heads": 6, "depth": 4, "class_token": False, "global_pool": ""}
        fused = Tokens(VisionTransformer3D((side,) * 3, 8, **options)).eval()
        unfused = copy.deepcopy(fused)
        for block in unfused.backbone.blocks:
            block.attn.fused_attn = False
        networks = {"fused": fused, "openvino": BackendNetwork(fused, "openvino"), "MONAI": unfused}
        x = torch.randn(1, 1, side, side, side)
        calls = {name: partial(in_bfloat16, net, x) for name, net in networks.items()}
        compare(f"4 blocks, {(side // 8) ** 3} tokens, bf16 (peer: plain)", calls, rounds, rate)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As timm has it without the fused one."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.set_defaults(threads=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="2 blocks of the ViT, three rounds")
    parser.add_argument("--only", nargs="+", choices=["unetr", "vit", "encoder", "attention", "half"])
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        memory(args.memory[0], int(args.memory[1]))
        return
    if not args.child:
        print(f"torch {torch.__version__}, {args.threads} threads")
        with_each_allocator()
        return
    rounds = 3 if args.quick else args.rounds
    rate = matmul_rate()
    print(f"{rate / 1e9:.0f} GFLOP/s")
    head("forward, ms", "matrix products")
    parts = {"unetr": unetr, "vit": partial(vit, 2 if args.quick else 12), "encoder": encoder}
    parts |= {"attention": attention, "half": half}
    for name, part in parts.items():
        if not args.only or name in args.only:
            part(rounds, rate)


if __name__ == "__main__":
    main()
