"""Labels to a compressed NIfTI: ours (`write_labels`) against MONAI's `SaveImaged`, in turn.

    python benchmarks/saving.py --rounds 5

The labels are 14 classes of blobs, 512x512x100. MONAI's `SaveImaged` writes float32 by default; with
`output_dtype=uint8` it is told what ours finds out by itself. Labels come as the uint8 that `vit3d predict` has, or as
the float32 of MONAI's `AsDiscreted`. The limit is the codec alone, over the bytes as they lie in the file: ISA-L where
it is installed, else zlib. Last, what each codec makes of these bytes, and of int16 noise, which nobody compresses.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import numpy as np
import torch
from in_turn import arguments, head, show, timed, with_each_allocator
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from monai_vit3d.data import Grid, write_labels

try:
    from isal import igzip
except ImportError:
    igzip = None

SHAPE, CLASSES = (512, 512, 100), 14
AFFINE = np.diag([0.8, 0.8, 2.5, 1.0])


def blobs() -> np.ndarray:
    """(H, W, D) uint8."""
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn((1, CLASSES, 33, 33, 13), generator=rng)
    scores[:, 0] += 1.2
    best, labels = torch.full(SHAPE, -np.inf), torch.zeros(SHAPE, dtype=torch.uint8)
    for index in range(CLASSES):  # one class at a time: all of them would take 1.5 GB
        score = torch.nn.functional.interpolate(scores[:, index : index + 1], SHAPE, mode="trilinear")[0, 0]
        labels[score > best] = index
        best = torch.maximum(best, score)
    return labels.numpy()


def compare(labels: np.ndarray, folder: Path, rounds: int) -> None:
    """A line for each pair of types that come in and go out."""
    grid, path, raw = Grid(SHAPE, AFFINE), folder / "ours.nii.gz", labels.tobytes("F")
    header = {"filename_or_obj": str(folder / "image.nii.gz")}
    head("labels, ms", "codec")
    for kind in (np.uint8, np.float32):
        given = labels.astype(kind)
        image = MetaTensor(torch.from_numpy(given)[None], affine=torch.as_tensor(AFFINE), meta=header)
        for title, options in (("default", {}), ("uint8", {"output_dtype": np.uint8, "resample": False})):
            save = SaveImaged("pred", output_dir=folder, separate_folder=False, print_log=False, **options)
            calls = {
                "ours": lambda given=given: write_labels(given, grid, path),
                "MONAI": lambda save=save, image=image: save({"pred": image}),
                "limit": lambda: packed(raw),
            }
            show(f"{np.dtype(kind)} in, MONAI's {title}", timed(calls, rounds), "ours", "MONAI", "limit")
            print(f"{'MB':>44s} {size_mb(path):8.2f} {size_mb(folder / 'image_trans.nii.gz'):8.2f}")


def packed(raw: bytes) -> bytes:
    """By the codec that ours has."""
    return igzip.compress(raw, 1) if igzip else gzip.compress(raw, 1)


def size_mb(path: Path) -> float:
    """Of a file."""
    return path.stat().st_size / 1e6


def codecs(labels: np.ndarray, rounds: int) -> None:
    """A line for each codec and level."""
    noise = np.random.default_rng(0).normal(0, 12, SHAPE[0] * SHAPE[1] * 10).astype(np.int16)
    print(f"{'codec':>44s} {'labels':>14s} {'noise':>14s}   (MB, ms)")
    for name, module, level in [("zlib", gzip, 1), ("zlib", gzip, 6), *(("ISA-L", igzip, n) for n in (0, 1, 2))]:
        line = f"{f'{name}, level {level}':>44s}"
        for raw in (labels.tobytes("F"), noise.tobytes()) if module else ():
            times = timed({"it": lambda m=module, n=level, r=raw: m.compress(r, n)}, max(1, rounds // 3))["it"]
            line += f" {len(module.compress(raw, level)) / 1e6:7.2f} {min(times) * 1000:6.0f}"
        print(line)


def main() -> None:
    """Measure and print."""
    args = arguments(__doc__)
    torch.set_num_threads(args.threads)
    if not args.child:
        print(
            f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds, {'ISA-L' if igzip else 'zlib'}"
        )
        with_each_allocator()
        return
    labels = blobs()
    with tempfile.TemporaryDirectory() as folder:
        compare(labels, Path(folder), args.rounds)
    codecs(labels, args.rounds)


if __name__ == "__main__":
    main()
