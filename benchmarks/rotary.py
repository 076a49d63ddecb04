"""What 3D rotary positions cost: a forward of vit3d_small with them, against one with learned positions, in turn.

    python benchmarks/rotary.py --rounds 3 --depth 3

- learned: added once to the tokens.
- patch, mm: ours, turning queries and keys in every block. The table of angles is made anew in each forward.
- limit: timm's own blocks with rotary attention (EvaBlock, AttentionRope), with the weights of patch and its table made
  beforehand. Their output must be that of patch: the two do the same work.

Batch 1, patches of 8, a class token. A ratio is seconds by those of learned, or of the limit, the median over rounds;
"table" is the time for the angles alone, once a forward. --depth 3 is a quarter of the work and tells the same of the
blocks.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from in_turn import timed
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from monai_vit3d import create_model
from monai_vit3d.layers import set_spacing
from monai_vit3d.networks import VisionTransformer3D

SIDES, PATCH = (64, 128), 8  # 512 and 4,096 tokens
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Call = Callable[[Tensor], Tensor]


def network(side: int, depth: int, rope: str | None) -> VisionTransformer3D:
    """vit3d_small with random weights, the same for each ``rope``."""
    torch.manual_seed(0)
    positions = "learned" if rope is None else "none"
    net = create_model("vit3d_small", (side,) * 3, PATCH, depth=depth, rope=rope, pos_embed=positions, global_pool="")
    if rope == "mm":
        set_spacing(net, (0.7, 0.7, 5.0))
    return net.to(DEVICE).eval()


class Timms(nn.Module):
    """The same network of timm's blocks, its table made beforehand.

    Args:
        ours: the network with ``rope="patch"``.
        x: a volume of the size to come.
    """

    def __init__(self, ours: VisionTransformer3D, x: Tensor) -> None:
        super().__init__()
        block = {"attn_type": "rope", "norm_layer": nn.LayerNorm, "num_prefix_tokens": ours.num_prefix_tokens}
        blocks = [EvaBlock(ours.embed_dim, ours.num_heads, mlp_ratio=4.0, **block) for _ in ours.blocks]
        self.blocks = nn.ModuleList(blocks).to(x.device)
        self.blocks.load_state_dict(ours.blocks.state_dict())
        self.tokens, self.norm = ours._tokens, ours.norm

    def forward(self, x: Tensor) -> Tensor:
        """Normed tokens."""
        x, table = self.tokens(x)
        for block in self.blocks:
            x = block(x, rope=table)
        return self.norm(x)


def contenders(side: int, depth: int) -> tuple[dict[str, Call], dict[str, Call], Tensor]:
    """Forwards by name, the making of tables by name, and the volume."""
    x = torch.randn(1, 1, side, side, side, device=DEVICE)
    nets = {name: network(side, depth, rope) for name, rope in (("learned", None), ("patch", "patch"), ("mm", "mm"))}
    limit = Timms(nets["patch"], x).eval()
    with torch.autocast(DEVICE, enabled=False):
        torch.testing.assert_close(limit(x), nets["patch"].forward_features(x), rtol=1e-4, atol=1e-4)
    calls = {name: net.forward_features for name, net in nets.items()} | {"limit": limit}
    return calls, {name: nets[name]._rotary for name in ("patch", "mm")}, x


def measure(side: int, depth: int, rounds: int) -> None:
    """Print the lines of one size."""
    calls, tables, x = contenders(side, depth)
    times = timed({name: partial(call, x) for name, call in calls.items()}, rounds)
    alone = timed({name: partial(table, x) for name, table in tables.items()}, rounds)
    for name, spent in times.items():
        over = [statistics.median(a / b for a, b in zip(spent, times[base])) for base in ("learned", "limit")]
        line = (
            f"{(side // PATCH) ** 3:6d} {name:8s} {statistics.median(spent) * 1000:9.2f} {over[0]:8.3f} {over[1]:6.3f}"
        )
        if name in alone:
            line += f" {statistics.median(alone[name]) * 1000:8.2f}"
        print(line, flush=True)


def main() -> None:
    """Print four lines a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, {DEVICE}, {args.threads} thread(s), {args.dtype}, median of {args.rounds} rounds"
    )
    print(f"tokens {'':8s} {'ms':>9s} /learned /limit table ms")
    with torch.no_grad():
        for side in SIDES:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=args.dtype == "bfloat16"):
                measure(side, args.depth, args.rounds)


if __name__ == "__main__":
    main()
