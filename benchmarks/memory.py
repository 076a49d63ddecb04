"""Peak memory from a file to its labels, above what the process holds before: ours against MONAI's own chain.

    python benchmarks/memory.py --below 4     # GiB

MONAI is not run where its logits and probabilities alone, classes x volume each, are above ``--below``; the table has
them with a >. Every point is a process of its own, one thread, warmed up on a tiny image; the peak is the kernel's
(VmHWM), so Linux is needed. It varies by some per cent from run to run, with what malloc keeps.

The bundle is the hippocampus's, brought to 1 mm, with a 1x1x1 convolution to K classes as its network and windows of
96^3 one at a time, so that no activations of a network are in the numbers. Ours is what `vit3d predict` runs for a
case: `read_volume`, then `prepare`, `infer` and `finish` of a `Predictor`. Both run the order of the zoo's bundles,
such as spleen_ct_segmentation: sliding windows, softmax, Invertd, argmax. "first" is ours in the order of our own
bundles: argmax, then Invertd of the labels. Voxels are noise, so that labels meet everywhere, the worst case.
The limit is the image in float32 on the network's grid and the labels as uint8 on the file's. "expected" is what
`vit3d predict` expects before it starts, the read voxels included; neither may be below what was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from in_turn import kernel_bytes, new_peak

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "hippocampus_segmentation"
POINTS = [  # shape, spacing in mm, degrees that the grid of 1 mm is turned by, classes
    ((160, 160, 160), (1.0, 1.0, 1.0), 0, 3),
    ((256, 256, 160), (1.0, 1.0, 1.0), 0, 3),
    ((512, 512, 100), (0.7, 0.7, 2.5), 0, 3),
    ((512, 512, 100), (0.5, 0.5, 1.0), 0, 3),
    ((256, 256, 40), (1.0, 1.0, 4.0), 0, 3),
    ((256, 256, 40), (1.0, 1.0, 4.0), 10, 3),
    ((256, 256, 40), (1.0, 1.0, 4.0), 0, 14),
    ((256, 256, 40), (1.0, 1.0, 4.0), 10, 14),
    ((160, 160, 160), (1.0, 1.0, 1.0), 0, 105),
    ((256, 256, 40), (1.0, 1.0, 4.0), 0, 105),
    ((256, 256, 160), (1.0, 1.0, 1.0), 0, 105),
]
MIB = 2**20


def bundle_with(classes: int, turned: bool):
    """The bundle with a network that holds nothing, and without its connected components."""
    import torch
    from monai.inferers import SlidingWindowInferer

    from monai_vit3d.bundle.load import load_bundle
    from monai_vit3d.bundle.postprocessing import Postprocessing

    torch.manual_seed(0)
    bundle = load_bundle(BUNDLE, "cpu")
    next(s for s in bundle.preprocessing.steps if hasattr(s, "spacing_transform")).spacing_transform.diagonal = turned
    content = json.loads(json.dumps(dict(bundle.metadata.content)))
    content["network_data_format"]["outputs"]["pred"]["channel_def"] = {str(i): f"label {i}" for i in range(classes)}
    return replace(
        bundle,
        metadata=replace(bundle.metadata, content=content),
        network=torch.nn.Conv3d(1, classes, 1).eval(),
        inferer=SlidingWindowInferer((96, 96, 96), sw_batch_size=1, overlap=0.25, mode="gaussian"),
        postprocessing=Postprocessing.of(bundle.postprocessing.steps[:1]),
    )


def zoo_order(bundle) -> list:
    """The postprocessing of the zoo's bundles."""
    from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd

    invert = Invertd(
        "pred", Compose(bundle.preprocessing.steps), orig_keys="image", nearest_interp=False, to_tensor=True
    )
    return [Activationsd("pred", softmax=True), invert, AsDiscreted("pred", argmax=True)]


def ours(path: Path, bundle) -> int:
    """One file; returns the bytes that are expected for it."""
    from monai_vit3d.bundle.postprocessing import Postprocessing

    return labels_first(path, replace(bundle, postprocessing=Postprocessing.of(zoo_order(bundle))))


def labels_first(path: Path, bundle) -> int:
    """The same in the order of our own bundles."""
    from monai_vit3d.data.nifti import read_nifti
    from monai_vit3d.pipeline.memory import needed_bytes
    from monai_vit3d.pipeline.predictor import Predictor

    volume = read_nifti(path)
    predictor = Predictor(bundle)
    predictor.finish(predictor.infer(predictor.prepare([volume])))
    return needed_bytes(volume.grid, 1, bundle, predictor.options)


def by_monai(path: Path, bundle) -> int:
    """The same file in the order of the zoo's bundles."""
    import torch
    from monai.transforms import Compose

    postprocessing = zoo_order(bundle)
    with torch.no_grad():
        data = postprocessing[1].transform({"image": str(path)})
        data["pred"] = bundle.inferer(data["image"][None], bundle.network)[0]
        Compose(postprocessing)(data)
    return 0


TOOLS = {"ours": ours, "first": labels_first, "MONAI": by_monai}


def measure(tool: str, path: Path, tiny: Path, turned: bool, classes: int) -> None:
    """In a process of its own: bytes above the start, and those expected."""
    import torch

    torch.set_num_threads(1)
    bundle, run = bundle_with(classes, turned), TOOLS[tool]
    run(tiny, bundle)
    start = new_peak()
    expected = run(path, bundle)
    print(json.dumps([kernel_bytes("VmHWM") - start, expected]))


def in_own_process(*point: object) -> list[int]:
    """What :func:`measure` prints."""
    command = [sys.executable, "-W", "ignore", __file__, "--point", *map(str, point)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def write(path: Path, shape: tuple[int, ...], spacing_mm: tuple[float, ...], degrees: int = 0) -> None:
    """Noise, int16."""
    import nibabel as nib
    import numpy as np

    values = np.random.default_rng(0).integers(0, 1000, shape, dtype=np.int16)
    turn = nib.eulerangles.euler2mat(z=math.radians(degrees))
    nib.save(nib.Nifti1Image(values, nib.affines.from_matvec(turn @ np.diag(spacing_mm))), path)


def compare(folder: Path, below_gib: float) -> None:
    """The table."""
    import nibabel as nib
    import numpy as np

    print(
        f"{'file':>12s} {'mm':>12s} {'1 mm grid':>12s} {'deg':>3s} {'K':>4s} {'ours':>6s} {'MONAI':>7s} {'ratio':>7s}",
        end="",
    )
    print(f" {'limit':>6s} {'ours/limit':>10s} {'expected':>9s} {'/ours':>6s} {'first':>6s} {'expected':>9s}   MiB")
    for shape, spacing_mm, degrees, classes in POINTS:
        path, tiny = folder / "image.nii", folder / "tiny.nii"
        write(tiny, (40, 40, 40), (1.5, 1.0, 1.0), degrees)
        write(path, shape, spacing_mm, degrees)
        point = (path, tiny, degrees, classes)
        turn = np.abs(nib.eulerangles.euler2mat(z=math.radians(degrees)))
        grid = np.ceil(turn @ np.multiply(shape, spacing_mm)).astype(int).tolist()
        least = 2 * 4 * classes * math.prod(grid)
        mine, expected = in_own_process("ours", *point)
        first, less = in_own_process("first", *point)
        known = least < below_gib * 2**30
        peer = in_own_process("MONAI", *point)[0] if known else least
        limit = 4 * math.prod(grid) + math.prod(shape)
        sign = " " if known else ">"
        sizes = [shape, spacing_mm, grid]
        print(" ".join(f"{'x'.join(map(str, size)):>12s}" for size in sizes), end="")
        print(f" {degrees:3d} {classes:4d} {mine / MIB:6.0f} {sign}{peer / MIB:6.0f} {sign}{peer / mine:6.2f}", end="")
        print(f" {limit / MIB:6.0f} {mine / limit:10.1f} {expected / MIB:9.0f} {expected / mine:6.2f}", end="")
        print(f" {first / MIB:6.0f} {less / MIB:9.0f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--below", type=float, default=4.0, help="GiB")
    parser.add_argument("--point", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        tool, path, tiny, degrees, classes = args.point
        measure(tool, Path(path), Path(tiny), int(degrees) != 0, int(classes))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args.below)


if __name__ == "__main__":
    main()
