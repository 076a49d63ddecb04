"""From a compressed NIfTI to the network's input: ours against MONAI's own transforms, in turn.

    python benchmarks/reading.py --rounds 5

The file is a CT-like volume of 512x512x100 voxels, int16, 0.8x0.8x2.5 mm, made on the fly: a body with organs and noise
in it, air with noise around, compressed to about 45 %. Both read it, turn it to RAS, resample it to 1.5x1.5x2 mm and
scale it: `LoadImaged, Orientationd, Spacingd` and `NormalizeIntensityd` or `ScaleIntensityRanged`. Ours are MONAI's
too, but for the reader (`NiftiReader`, which also verifies the file's checksum) and `SeparableSpacingd`. The
difference is the largest, divided by the largest value. The limit is the inflation of the file, by ISA-L where it is
installed. Then each step by itself, its limit a copy of its result.
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from in_turn import command_line, head, show, timed, with_each_allocator
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, NormalizeIntensityd, Orientationd, ScaleIntensityRanged, Spacingd

from monai_vit3d.data import NiftiReader
from monai_vit3d.transforms import SeparableSpacingd

try:
    from isal import isal_zlib as inflating
except ImportError:
    inflating = zlib

SHAPE, SPACING_MM = (512, 512, 100), (0.8, 0.8, 2.5)
GOAL = {"pixdim": (1.5, 1.5, 2.0), "mode": "bilinear"}
SCALING = {
    "NormalizeIntensityd": NormalizeIntensityd("image"),
    "ScaleIntensityRanged": ScaleIntensityRanged("image", -57, 164, 0.0, 1.0, clip=True),
}


def write_ct(path: Path) -> None:
    """The file."""
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.linspace(-1, 1, n) for n in SHAPE[:2])
    organs = torch.randn((1, 1, 33, 33, 14), generator=rng)
    values = 40 + 60 * torch.nn.functional.interpolate(organs, SHAPE, mode="trilinear")[0, 0]
    values[(x[:, None] / 0.8) ** 2 + (y / 0.6) ** 2 > 1] = -1000
    values += 12 * torch.randn(SHAPE, generator=rng)
    values[x[:, None] ** 2 + y**2 > 1] = -1024
    affine = nib.affines.from_matvec(np.diag([-1.0, -1, 1]) @ np.diag(SPACING_MM), (200, 180, -300))
    content = nib.Nifti1Image(values.clamp(-1024, 3071).round().short().numpy(), affine).to_bytes()
    path.write_bytes(gzip.compress(content, 1, mtime=0))


def chains(scaling: str) -> dict[str, Compose]:
    """Both tools' transforms."""
    turn = Orientationd("image", axcodes="RAS", labels=None)
    load = {name: LoadImaged("image", reader=r, ensure_channel_first=True) for name, r in readers().items()}
    spacing = {"ours": SeparableSpacingd("image", **GOAL), "MONAI": Spacingd("image", **GOAL)}
    return {name: Compose([load[name], turn, spacing[name], SCALING[scaling]]) for name in load}


def readers() -> dict[str, object]:
    """Both tools' readers."""
    return {"ours": NiftiReader(), "MONAI": "NibabelReader"}


def whole(path: Path, rounds: int) -> None:
    """The first table."""
    packed, size = path.read_bytes(), 2 * int(np.prod(SHAPE)) + 352
    head("from the file to the network's input, ms", "inflation")
    for scaling in SCALING:
        both = chains(scaling)
        found, expected = (both[name]({"image": str(path)})["image"] for name in ("ours", "MONAI"))
        off = float((found - expected).abs().max() / expected.abs().max())
        calls = {name: lambda chain=chain: chain({"image": str(path)}) for name, chain in both.items()}
        times = timed({**calls, "limit": lambda: inflating.decompress(packed, 31, size)}, rounds)
        show(scaling, times, "ours", "MONAI", "limit")
        print(f"{'difference':>44s} {off:8.1g}")


def steps(path: Path, rounds: int) -> None:
    """The second table."""
    head("step, ms", "a copy of its result")
    both = chains("NormalizeIntensityd")
    data: dict[str, dict] = {name: {"image": str(path)} for name in both}
    for place, title in enumerate(("load", "orient", "resample", "scale")):
        now = {name: chain.transforms[place] for name, chain in both.items()}
        calls = {name: partial(lambda step, given: step(dict(given)), step, data[name]) for name, step in now.items()}
        after = {name: call() for name, call in calls.items()}
        copied: MetaTensor = after["MONAI"]["image"].as_tensor()
        times = timed({**calls, "limit": copied.clone}, rounds)
        show(title, times, "ours", "MONAI", "limit")
        data = after


def main() -> None:
    """Measure and print."""
    args = command_line(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    if not args.child:
        print(f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds, {inflating.__name__}")
        with_each_allocator()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ct.nii.gz"
        write_ct(path)
        whole(path, args.rounds)
        steps(path, args.rounds)


if __name__ == "__main__":
    main()
