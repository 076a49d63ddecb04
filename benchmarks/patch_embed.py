"""Patch embedding as a matrix product against the same Conv3d, forward, in turn.

    python benchmarks/patch_embed.py --rounds 9

The limit is the bare product on patches that were cut out beforehand.
"""

from __future__ import annotations

import statistics

import torch
from in_turn import command_line, timed, with_each_allocator
from torch import nn

from monai_vit3d.layers import PatchConv3d

CASES = [  # size, patch, channels, width
    ((48, 48, 48), (8, 8, 8), 1, 192),
    ((96, 96, 96), (16, 16, 16), 1, 768),
    ((96, 96, 48), (16, 16, 4), 1, 768),
    ((128, 128, 128), (16, 16, 16), 1, 768),
]


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.set_defaults(rounds=9, threads=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not args.child:
        print(f"torch {torch.__version__}, {device}, {args.threads} threads, median of {args.rounds} rounds, ms")
        with_each_allocator()
        return
    print(f"{'volume':>15s} {'patch':>10s} {'dtype':>9s} {'ours':>8s} {'Conv3d':>8s} {'ratio':>6s} {'limit':>8s}")
    with torch.no_grad():
        for case in CASES:
            for dtype in (torch.float32, torch.bfloat16):
                measure(case, dtype, device, args.rounds)


def measure(case: tuple, dtype: torch.dtype, device: str, rounds: int) -> None:
    """One line of the table."""
    size, patch, channels, width = case
    conv = nn.Conv3d(channels, width, patch, stride=patch, device=device, dtype=dtype)
    ours = PatchConv3d(channels, width, patch, stride=patch, device=device, dtype=dtype)
    ours.load_state_dict(conv.state_dict())
    x = torch.randn(1, channels, *size, device=device, dtype=dtype)
    tokens = x.unfold(2, patch[0], patch[0]).unfold(3, patch[1], patch[1]).unfold(4, patch[2], patch[2])
    tokens = tokens.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3).contiguous()
    weight = conv.weight.flatten(1)
    calls = {
        "ours": lambda: ours(x),
        "peer": lambda: conv(x),
        "limit": lambda: nn.functional.linear(tokens, weight, conv.bias),
    }
    times = timed(calls, rounds, warm=2)
    own, peer, limit = (statistics.median(t) * 1000 for t in times.values())
    ratio = statistics.median(p / o for p, o in zip(times["peer"], times["ours"]))
    print(
        f"{'x'.join(map(str, size)):>15s} {'x'.join(map(str, patch)):>10s} {str(dtype)[6:]:>9s} "
        f"{own:8.2f} {peer:8.2f} {ratio:6.1f} {limit:8.2f}"
    )


if __name__ == "__main__":
    main()
