"""Labels and a map to a compressed NIfTI: ours (`write_labels`, `write_map`) against MONAI's `SaveImaged`, in turn.

    python benchmarks/saving.py --rounds 5

The labels are 14 classes of blobs, 512x512x100. MONAI's `SaveImaged` writes float32 by default. In the rows "uint8,
not resampled" it is told what ours finds out by itself (`output_dtype=uint8`), and to look for no resampling
(`resample=False`), so that it is at its fastest. Labels come as the uint8 that `vit3d predict` has, or as the float32
of MONAI's `AsDiscreted`. The map is the float32 probability of one class, a sigmoid of the distance to a ball's
surface; there MONAI does not resample either. The limit is the codec alone, over the bytes as they lie in the file:
ISA-L where it is installed, else zlib. Last, what each codec makes of the labels, of the map, of a float32 ramp, and of
int16 noise, which nobody compresses.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from in_turn import command_line, head, show, timed, with_each_allocator
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from monai_vit3d.data import Grid, write_labels, write_map

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


def ball() -> np.ndarray:
    """(H, W, D) float32 probabilities."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij", sparse=True)
    return 1 / (1 + np.exp(20 * (np.sqrt(x * x + y * y + z * z) - np.float32(0.6))))


def compare(labels: np.ndarray, chances: np.ndarray, folder: Path, rounds: int) -> None:
    """A line for each pair of types that come in and go out, and one for the map."""
    plain, fastest = {"resample": False}, {"output_dtype": np.uint8, "resample": False}
    head("ms", "codec")
    for kind in (np.uint8, np.float32):
        for title, options in (("default", {}), ("uint8, not resampled", fastest)):
            title = f"labels {np.dtype(kind)}, MONAI's {title}"
            compare_one(title, write_labels, labels.astype(kind), labels, options, folder, rounds)
    compare_one("map float32, MONAI's not resampled", write_map, chances, chances, plain, folder, rounds)


def compare_one(
    title: str,
    write: Callable[[np.ndarray, Grid, Path], None],
    given: np.ndarray,
    stored: np.ndarray,
    options: dict,
    folder: Path,
    rounds: int,
) -> None:
    """One line, and the sizes of the files; the limit packs ``stored``."""
    grid, path, raw = Grid(SHAPE, AFFINE), folder / "ours.nii.gz", stored.tobytes("F")
    header = {"filename_or_obj": str(folder / "image.nii.gz")}
    image = MetaTensor(torch.from_numpy(given)[None], affine=torch.as_tensor(AFFINE), meta=header)
    save = SaveImaged("pred", output_dir=folder, separate_folder=False, print_log=False, **options)
    calls = {
        "ours": lambda: write(given, grid, path),
        "MONAI": lambda: save({"pred": image}),
        "limit": lambda: packed(raw),
    }
    show(title, timed(calls, rounds), "ours", "MONAI", "limit")
    print(f"{'MB':>44s} {size_mb(path):8.2f} {size_mb(folder / 'image_trans.nii.gz'):8.2f}")


def packed(raw: bytes) -> bytes:
    """By the codec that ours has."""
    return igzip.compress(raw, 1) if igzip else gzip.compress(raw, 1)


def size_mb(path: Path) -> float:
    """Of a file."""
    return path.stat().st_size / 1e6


def codecs(labels: np.ndarray, chances: np.ndarray, rounds: int) -> None:
    """A line for each codec and level."""
    parts = {
        "labels": labels.tobytes("F"),
        "map": chances.tobytes("F"),
        "ramp": np.linspace(0, 1, labels.size // 4, dtype=np.float32).tobytes(),
        "noise": np.random.default_rng(0).normal(0, 12, labels.size // 10).astype(np.int16).tobytes(),
    }
    print(f"{'codec':>16s}" + "".join(f" {name:>14s}" for name in parts) + "   (MB, ms)")
    for name, module, level in [("zlib", gzip, 1), ("zlib", gzip, 6), *(("ISA-L", igzip, n) for n in (0, 1, 2))]:
        line = f"{f'{name}, level {level}':>16s}"
        for raw in parts.values() if module else ():
            times = timed({"it": lambda m=module, n=level, r=raw: m.compress(r, n)}, max(1, rounds // 3))["it"]
            line += f" {len(module.compress(raw, level)) / 1e6:7.2f} {min(times) * 1000:6.0f}"
        print(line, flush=True)


def main() -> None:
    """Measure and print."""
    args = command_line(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    if not args.child:
        print(
            f"torch {torch.__version__}, {args.threads} threads, {args.rounds} rounds, {'ISA-L' if igzip else 'zlib'}"
        )
        with_each_allocator()
        return
    labels, chances = blobs(), ball()
    with tempfile.TemporaryDirectory() as folder:
        compare(labels, chances, Path(folder), args.rounds)
    codecs(labels, chances, args.rounds)


if __name__ == "__main__":
    main()
