"""Sliding windows to labels: ours against MONAI's SlidingWindowInferer and argmax, in turn.

    python benchmarks/stitching.py --rounds 5

Windows of 96^3 with a Gaussian, an overlap of 0.25 and 0.5, for 14 and 117 classes. The network is one product into
memory that is there already, so that stitching is what is timed. Ours is `stitch_windows` with `argmax_classes`. The
limit is the network alone, and one pass over the windows that it gave. Peak memory is of a process of its own each: the
kernel's (VmHWM), on Linux.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial

import torch
from in_turn import added_bytes, command_line, head, show, timed, with_each_allocator
from monai.inferers import SlidingWindowInferer

from monai_vit3d.inferers import stitch_windows
from monai_vit3d.transforms import argmax_classes

WINDOW = (96, 96, 96)
POINTS = {14: (240, 192, 160), 117: (240, 144, 96)}  # classes: volume


class Network:
    """Numbers of each class: the window times a number of the class."""

    def __init__(self, classes: int) -> None:
        rng = torch.Generator().manual_seed(0)
        self.factor = torch.randn(1, classes, 1, 1, 1, generator=rng)
        self.memory = torch.zeros(1, classes, *WINDOW)

    def __call__(self, window: torch.Tensor) -> torch.Tensor:
        return torch.mul(window, self.factor, out=self.memory)


def ours(image: torch.Tensor, network: Network, inferer: SlidingWindowInferer) -> torch.Tensor:
    """Ours."""
    return stitch_windows(image, network, inferer, lambda planes: argmax_classes(planes[0])[None, None])


def by_monai(image: torch.Tensor, network: Network, inferer: SlidingWindowInferer) -> torch.Tensor:
    """MONAI's."""
    return inferer(image, network).argmax(1, keepdim=True)


def least(image: torch.Tensor, network: Network, inferer: SlidingWindowInferer) -> None:
    """What cannot be less."""

    def run(window: torch.Tensor) -> torch.Tensor:
        network(window).amax(1)
        return window

    stitch_windows(image, run, inferer, lambda planes: planes[:, :1])


TOOLS = {"ours": ours, "MONAI": by_monai}


def case(classes: int, overlap: float) -> tuple[torch.Tensor, Network, SlidingWindowInferer]:
    """Volume, network, inferer."""
    image = torch.randn(1, 1, *POINTS[classes], generator=torch.Generator().manual_seed(1))
    return image, Network(classes), SlidingWindowInferer(WINDOW, 1, overlap, mode="gaussian")


def measure(tool: str, classes: int) -> None:
    """Print by how much the process grows."""
    given = case(classes, 0.25)
    print(added_bytes(partial(TOOLS[tool], *given)) / 2**20)


def peak_mib(tool: str, classes: int) -> float:
    """What a process of its own prints."""
    command = [sys.executable, "-W", "ignore", __file__, "--peak", tool, str(classes)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def compare(rounds: int) -> None:
    """The table."""
    head("classes, overlap, ms", "network and a pass over its windows")
    for classes in POINTS:
        for overlap in (0.25, 0.5):
            given = case(classes, overlap)
            calls = {name: partial(tool, *given) for name, tool in {**TOOLS, "limit": least}.items()}
            show(f"{classes}, {overlap}", timed(calls, rounds), "ours", "MONAI", "limit")
        print(f"{'labels are equal':>44s} {torch.equal(ours(*given).long(), by_monai(*given))!s:>8s}")
        mine, theirs = (peak_mib(name, classes) for name in TOOLS)
        print(f"{'peak memory, MiB':>44s} {mine:8.0f} {theirs:8.0f} {theirs / mine:7.1f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        measure(args.peak[0], int(args.peak[1]))
        return
    if not args.child:
        print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds")
        with_each_allocator()
        return
    compare(args.rounds)


if __name__ == "__main__":
    main()
