"""Labels on the file's grid from the numbers of each class on the network's: ours against MONAI's own, in turn.

    python benchmarks/inverting.py --rounds 5             # an eighth of the volume
    python benchmarks/inverting.py --rounds 5 --whole     # 512x512x100 voxels; MONAI takes a minute for each

The numbers are of 14 classes, smooth, on the grid of 1.5x1.5x2 mm of a file of 0.8x0.8x2.5 mm: aligned with it, or
turned by 10 degrees against it (`Spacingd(diagonal=True)`). Ours is `LabelInverter`; MONAI's is
`Invertd(nearest_interp=False)` and `AsDiscreted(argmax=True)`. The limit is one pass over the numbers, their largest.
Labels that are unequal are counted. Peak memory, above that of the numbers, is of a process of its own each: the
kernel's (VmHWM), on Linux.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys

import numpy as np
import torch
from in_turn import added_bytes, command_line, head, show, timed, with_each_allocator
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, Invertd, Spacingd
from torch.nn.functional import interpolate

from monai_vit3d.transforms import LabelInverter, trace_inverse

SPACING_MM, CLASSES = (0.8, 0.8, 2.5), 14
WHOLE, EIGHTH = (512, 512, 100), (256, 256, 50)
GRIDS = {"aligned": 0, "turned by 10 degrees": 10}


def case(degrees: int, shape: tuple[int, ...]) -> tuple[Compose, MetaTensor, torch.Tensor]:
    """The transforms, what they make of the image, and the numbers."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(SPACING_MM)
    transform = Compose([Spacingd("image", pixdim=(1.5, 1.5, 2.0), mode="bilinear", diagonal=bool(degrees))])
    image = transform({"image": MetaTensor(torch.zeros(1, *shape), affine=torch.as_tensor(affine))})["image"]
    size = tuple(image.shape[1:])
    coarse = torch.randn(1, CLASSES, *[max(2, n // 20) for n in size], generator=torch.Generator().manual_seed(0))
    return transform, image, 5 * interpolate(coarse, size, mode="trilinear")[0]


def ours(transform: Compose, image: MetaTensor, values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Ours."""
    inverter = LabelInverter(trace_inverse(image, transform, shape))
    for planes in values.split(16, dim=1):
        inverter.feed(planes)
    return inverter.labels()


def by_monai(transform: Compose, image: MetaTensor, values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """MONAI's."""
    invert = Invertd("pred", transform, orig_keys="image", nearest_interp=False)
    data = {"pred": MetaTensor(values), "image": image}
    return AsDiscreted("pred", argmax=True)(invert(data))["pred"].as_tensor()


TOOLS = {"ours": ours, "MONAI": by_monai}


def peak_mib(tool: str, grid: str, whole: bool) -> float:
    """What a process of its own prints."""
    command = [sys.executable, "-W", "ignore", __file__, "--peak", tool, grid] + ["--whole"] * whole
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def measure(tool: str, grid: str, shape: tuple[int, ...]) -> None:
    """Print by how much the process grows."""
    given = case(GRIDS[grid], shape)
    TOOLS[tool](*case(GRIDS[grid], (24, 24, 10)), (24, 24, 10))
    print(added_bytes(lambda: TOOLS[tool](*given, shape)) / 2**20)


def compare(rounds: int, whole: bool) -> None:
    """The table."""
    shape = WHOLE if whole else EIGHTH
    head(f"{CLASSES} classes, {shape}, ms", "largest of each voxel")
    for grid, degrees in GRIDS.items():
        given = case(degrees, shape)
        calls = {name: lambda tool=tool, given=given: tool(*given, shape) for name, tool in TOOLS.items()}
        times = timed({**calls, "limit": lambda values=given[2]: values.amax(0)}, rounds)
        show(grid, times, "ours", "MONAI", "limit")
        found, expected = (tool(*given, shape) for tool in TOOLS.values())
        print(f"{'unequal labels':>44s} {int((found != expected).sum()):8d} of {found.numel()}")
        mine, theirs = (peak_mib(name, grid, whole) for name in TOOLS)
        print(f"{'peak memory, MiB':>44s} {mine:8.0f} {theirs:8.0f} {theirs / mine:7.1f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--whole", action="store_true", help="the whole volume")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        measure(*args.peak, WHOLE if args.whole else EIGHTH)
        return
    if not args.child:
        print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds")
        with_each_allocator()
        return
    compare(args.rounds, args.whole)


if __name__ == "__main__":
    main()
