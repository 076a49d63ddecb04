"""Peak memory of a training step with low-rank adapters against one of all weights: a process each, in turn.

    python benchmarks/lora.py --rounds 3

The network is ViT-Base on two volumes of 64 cubed in patches of 8, 512 tokens each, in float32 on one CPU thread. A
step is forward, backward and AdamW's, which makes its state in it. The figure is the peak of the first step (VmHWM, so
Linux is needed), above what the process holds before it: the network and its volumes. malloc gives blocks back as they
are freed: else the step uses again what the building of the network has left. The limit is what the same forward pass
has kept for the backward when it ends. Medians over the rounds; the ratio is that to the step of all weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

import torch
from in_turn import kernel_bytes, new_peak

from monai_vit3d import create_model
from monai_vit3d.networks import apply_lora

MIB = 2**20
KINDS = {"all weights": 0, "rank 8": 8}


def step(preset: str, rank: int) -> tuple[int, int, int]:
    """Bytes of the parameters that the first step trains, those above what is held before it, those kept by forward."""
    net = create_model(preset, (64, 64, 64), 8, num_classes=2)
    if rank:
        apply_lora(net, rank)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer, x = torch.optim.AdamW(trained), torch.randn(2, 1, 64, 64, 64)
    start = new_peak()
    loss = net(x).logsumexp(1).sum()
    kept = kernel_bytes("VmRSS") - start
    loss.backward()
    optimizer.step()
    return sum(4 * parameter.numel() for parameter in trained), kernel_bytes("VmHWM") - start, kept


def in_own_process(rank: int) -> list[float]:
    """What :func:`step` returns there, in MiB."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", str(rank)]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    return [int(number) / MIB for number in out.split()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child is not None:
        step("vit3d_tiny", args.child)  # what the libraries take once
        print(*step("vit3d_base", args.child))
        return
    rounds = [{kind: in_own_process(rank) for kind, rank in KINDS.items()} for _ in range(args.rounds)]
    print(f"torch {torch.__version__}, {args.rounds} rounds")
    print(f"{'trained':>12s} {'MiB of them':>11s} {'step, MiB':>9s} {'ratio':>6s} {'limit':>6s}")
    medians = {kind: [statistics.median(found) for found in zip(*(each[kind] for each in rounds))] for kind in KINDS}
    for kind, (trained, peak, kept) in medians.items():
        print(f"{kind:>12s} {trained:11.1f} {peak:9.0f} {medians['all weights'][1] / peak:6.2f} {kept:6.0f}")


if __name__ == "__main__":
    main()
