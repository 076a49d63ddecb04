"""Peak memory and seconds from a file of a ViT-L's weights to the network that has them, above what imports take.

    python benchmarks/loading.py

Three files, in a temporary folder: timm's vit_large_patch14_dinov2 as safetensors and as .pt, whose kernels become 3D
ones (and whose positions, of a 37 x 37 grid, are resampled), and vit3d_large. Ours is ``create_model(name,
pretrained=path)``; of the last also ``VisionTransformer3D.from_pretrained(path)`` and ``backbone_from(path)``. The
peer does what loading is taken for: it builds the network, reads the file with ``torch.load`` or
``safetensors.torch.load_file``, converts what ours converts, and calls ``load_state_dict``. The limit is the file,
once.

Every run is a process of its own, one thread, the file in the kernel's cache; the peak is the kernel's (VmHWM), so
Linux is needed; it has the file's pages in it while they are mapped. Seconds are medians of paired runs, and the ratio
the median of the pairs'. The last column's limit is the time of reading the file into memory that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from in_turn import kernel_bytes, new_peak

MIB = 2**20
SIZE, PATCH = (112, 112, 56), (14, 14, 7)
DINO = "vit_large_patch14_dinov2"
OURS = "vit3d_large"
# weights, file, the function of ours that loads them
CASES = [(DINO, "safetensors", "create_model"), (DINO, "pt", "create_model"), (OURS, "safetensors", "create_model")]
CASES += [(OURS, "safetensors", "from_pretrained"), (OURS, "safetensors", "backbone_from")]


def ours(function: str, name: str, path: Path):
    """The network."""
    from monai_vit3d import VisionTransformer3D, backbone_from, create_model

    if function == "create_model":
        return create_model(name, SIZE, PATCH, in_chans=1, pretrained=path)
    return VisionTransformer3D.from_pretrained(path) if function == "from_pretrained" else backbone_from(path).network


def plain(name: str, path: Path):
    """The network, built first and then loaded."""
    import timm
    import torch
    from safetensors.torch import load_file

    from monai_vit3d.networks import PRESETS, VisionTransformer3D, create_preset
    from monai_vit3d.weights import checkpoint_filter_fn
    from monai_vit3d.weights.convert.timm2d_options import timm_options

    if name in PRESETS:
        network = create_preset(name, SIZE, PATCH)
    else:
        options = timm_options(timm.create_model(name, pretrained=False, device="meta"))
        network = VisionTransformer3D(SIZE, PATCH, **{**options, "in_chans": 1})
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    network.load_state_dict(state if name in PRESETS else checkpoint_filter_fn(state, network))
    return network


def read(name: str, path: Path) -> None:
    """The file's bytes, into memory that the process has had before."""
    import numpy as np

    memory = np.ones(path.stat().st_size, np.uint8)
    start = time.perf_counter()
    with path.open("rb") as file:
        file.readinto(memory)
    print(json.dumps([0, time.perf_counter() - start]))


def measure(tool: str, name: str, path: Path) -> None:
    """In a process of its own: bytes above the imports, and seconds."""
    if tool == "read":
        return read(name, path)
    import torch

    from monai_vit3d import backbone_from, create_model  # noqa: F401

    torch.set_num_threads(1)
    create_model("vit_tiny_patch16_224", 16, 16, depth=1)  # what the libraries take once
    held, start = new_peak(), time.perf_counter()
    network = plain(name, path) if tool == "plain" else ours(tool, name, path)
    seconds = time.perf_counter() - start
    peak = kernel_bytes("VmHWM") - held
    network.eval()
    with torch.no_grad():  # all of it is there
        if not network(torch.zeros(1, 1, *SIZE)).isfinite().all():
            raise SystemExit(f"{tool}: {name} gives no finite numbers")
    print(json.dumps([peak, seconds]))
    return None


def in_own_process(tool: str, name: str, path: Path) -> tuple[float, float]:
    """What :func:`measure` prints."""
    command = [sys.executable, "-W", "ignore", __file__, "--point", tool, name, str(path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    peak, seconds = json.loads(out.stdout.splitlines()[-1])
    return peak, seconds


def write(name: str, path: Path) -> None:
    """Random weights of the name, in a process of its own."""
    import timm
    import torch
    from safetensors.torch import save_file

    from monai_vit3d import create_model
    from monai_vit3d.weights import save_backbone

    if name == DINO:
        state = timm.create_model(name, pretrained=False).state_dict()
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    else:
        save_backbone(create_model(name, SIZE, PATCH), path)


def compare(folder: Path, pairs: int) -> None:
    """The table."""
    print(
        f"{'weights':>26s} {'file':>12s} {'ours':>16s} {'MiB':>6s} | {'ours':>6s} {'plain':>6s} {'plain/ours':>10s} ",
        end="",
    )
    print(f"{'ours/file':>9s} | {'ours':>6s} {'plain':>6s} {'plain/ours':>10s} {'read':>5s}   MiB | s")
    for name, suffix, function in CASES:
        path = folder / f"weights.{suffix}"
        subprocess.run([sys.executable, "-W", "ignore", __file__, "--point", "write", name, str(path)], check=True)
        size = path.stat().st_size
        in_own_process(function, name, path)  # the file comes into the cache
        runs = [[in_own_process(tool, name, path) for tool in (function, "plain")] for _ in range(pairs)]
        peaks, seconds = ([[pair[i][k] for pair in runs] for i in (0, 1)] for k in (0, 1))
        mine, peer = median(peaks[0]), median(peaks[1])
        faster = median(b / a for a, b in zip(*seconds))
        print(
            f"{name:>26s} {suffix:>12s} {function:>16s} {size / MIB:6.0f} | {mine / MIB:6.0f} {peer / MIB:6.0f} ",
            end="",
        )
        print(f"{peer / mine:10.2f} {mine / size:9.2f} | {median(seconds[0]):6.2f} {median(seconds[1]):6.2f} ", end="")
        print(f"{faster:10.2f} {in_own_process('read', name, path)[1]:5.2f}", flush=True)
        path.unlink()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made; 1.2 GB")
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        tool, name, path = args.point
        if tool == "write":
            write(name, Path(path))
        else:
            measure(tool, name, Path(path))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        compare(Path(folder), args.pairs)


if __name__ == "__main__":
    main()
