"""What readers make of the files that clinics have, and what checking them costs.

    python benchmarks/broken_files.py --rounds 15
    python benchmarks/broken_files.py --folder clinical     # keep the files

The files are those of tests/clinical.py, which are made without any code of this package and tell how each must end
in front of a network that takes one 3D volume: refused, or read with the right voxels at the right place. Four
dimensions are no fault of a file, and nibabel is no such reader; the table says what comes in if it is used as one.
Every tool gets the files in turn: ours (`read_volume`), MONAI's stock `LoadImage`, nibabel's `get_fdata` and, where
it is installed, SimpleITK as nnU-Net reads with it. Whatever reaches stderr counts as a warning; an error names the
file if the file's name is in it.

The second table reads one sound file in turn, on one thread. The limit is the inflation of its bytes by Python's
zlib, or for a plain file the reading of its bytes; from the page cache both. SimpleITK brings a faster zlib.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import os
import statistics
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import torch
from in_turn import timed
from monai.transforms import LoadImage

from monai_vit3d.data.nifti import read_nifti

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.clinical import Specimen, nifti, sampled, write_clinical_folder

try:
    import SimpleITK
except ImportError:
    SimpleITK = None

SHAPE, AFFINE = (256, 256, 180), np.diag([1.0, 1.0, 1.0, 1.0])
FLIP = np.diag([-1.0, -1, 1, 1])  # ITK's world is LPS
Read = Callable[[Path], tuple[np.ndarray, np.ndarray]]


@dataclass
class Outcome:
    """How a tool ended with a file: ``kind``, whether it said a word, and what the table shows."""

    kind: str  # refused, right or wrong
    told: bool
    text: str


def ours(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine; warnings go to stderr, as everybody's."""
    volume = read_nifti(path)
    for warning in volume.warnings:
        print(warning, file=sys.stderr, flush=True)
    return volume.voxels, volume.grid.affine_mm


def by_monai(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The stock transform, which takes NibabelReader for these names."""
    image = LOAD(path)
    return image.numpy(), image.affine.numpy()


def by_nibabel(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """As its documentation has it."""
    image = nib.load(path)
    return image.get_fdata(), image.affine


def by_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """``ReadImage``, ``GetArrayFromImage`` and float32, as nnU-Net's SimpleITKIO; turned to (H, W, D) and RAS+."""
    image = SimpleITK.ReadImage(str(path))
    affine, size = np.eye(4), image.GetDimension()
    if size == 3:
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).astype(np.float32).T, FLIP @ affine


warnings.filterwarnings("ignore", message=".*nvImageCodec")  # MONAI's word on a GPU decoder
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
LOAD = LoadImage()
TOOLS: dict[str, Read] = {"ours": ours, "MONAI": by_monai, "nibabel": by_nibabel}
TOOLS |= {"SimpleITK": by_itk} if SimpleITK else {}


@contextmanager
def stderr_into(file) -> Iterator[None]:
    """Everything that is written to stderr, by C++ too, into a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def outcome(read: Read, specimen: Specimen) -> Outcome:
    """How a tool ends with a file."""
    with tempfile.TemporaryFile() as said, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)
        with stderr_into(said):
            try:
                voxels, affine = read(specimen.path)
            except Exception as error:
                named = specimen.path.name in str(error)
                return Outcome("refused", named, "refused, named" if named else "refused")
        said.seek(0)
        told = bool(said.read().strip())
    if specimen.verdict == "refused":
        return Outcome("wrong", told, "ACCEPTED" + (", warned" if told else ""))
    fault = fault_of(specimen, np.asarray(voxels, float), affine)
    text = f"WRONG {fault}" if fault else "right"
    return Outcome("wrong" if fault else "right", told, text + (", warned" if told else ""))


def fault_of(specimen: Specimen, voxels: np.ndarray, affine: np.ndarray) -> str:
    """What is wrong with what was read; empty if nothing is."""
    if [n for n in voxels.shape if n > 1] != [n for n in specimen.shape if n > 1]:
        return f"shape {voxels.shape}"
    known = "sform or qform" not in specimen.word  # without either, no place is wrong
    if known and not np.allclose(affine, specimen.affine_mm, atol=1e-3):
        return "place"
    if not np.isfinite(voxels).all():
        return "NaN/Inf"
    found, expected = voxels.reshape(specimen.shape), sampled(specimen.shape, specimen.affine_mm)
    if specimen.values == "linear" and np.ptp(found):
        found = found / np.abs(found).max()
        slope, inter = np.polyfit(found.ravel(), expected.ravel(), 1)
        found = slope * found + inter
    off = 0 if specimen.values == "other" else np.abs(found - expected).max()
    return "voxels" if off > specimen.atol else ""


def survey(folder: Path) -> None:
    """The first table, and one line a tool."""
    specimens = write_clinical_folder(folder)
    found = {s.name: [outcome(read, s) for read in TOOLS.values()] for s in specimens}
    refused = [s for s in specimens if s.verdict == "refused"]
    print_outcomes(f"{len(refused)} files that must be refused", refused, found)
    others = [s for s in specimens if s.verdict != "refused"]
    print_outcomes(f"{len(others)} files that must be read, * with a warning", others, found)
    print()
    for i, tool in enumerate(TOOLS):
        print(f"{tool + ':':>10s} {summary(specimens, {s.name: found[s.name][i] for s in specimens})}")


def print_outcomes(title: str, specimens: list[Specimen], found: dict[str, list[Outcome]]) -> None:
    """A line for each file that the tools do not agree on."""
    print(f"\n{title:>43s}" + "".join(f"{tool:>23s}" for tool in TOOLS))
    alike: Counter[str] = Counter()
    for s in specimens:
        texts = [o.text for o in found[s.name]]
        if len(set(texts)) == 1:
            alike[texts[0]] += 1
        else:
            print(f"{'* ' * (s.verdict == 'warned') + s.name:>43s}" + "".join(f"{text:>23s}" for text in texts))
    for text, count in alike.items():
        print(f"{f'{count} further ones':>43s}{f'{text} by all':>23s}")


def summary(specimens: list[Specimen], found: dict[str, Outcome]) -> str:
    """One line for a tool."""
    bad = [found[s.name] for s in specimens if s.verdict == "refused"]
    good = [found[s.name] for s in specimens if s.verdict != "refused"]
    odd = [found[s.name] for s in specimens if s.verdict == "warned"]
    errors = [o for o in found.values() if o.kind == "refused"]
    wrong = [o for o in good if o.kind == "wrong"]
    return (
        f"accepts {sum(o.kind != 'refused' for o in bad)} of {len(bad)} that must be refused; names the file in "
        f"{sum(o.told for o in errors)} of its {len(errors)} errors; of {len(good)} to be read it refuses "
        f"{sum(o.kind == 'refused' for o in good)} and spoils {sum(not o.told for o in wrong)} silently and "
        f"{sum(o.told for o in wrong)} with a warning; warns of {sum(o.told and o.kind != 'refused' for o in odd)} of "
        f"{len(odd)} odd ones"
    )


def cost(folder: Path, rounds: int) -> None:
    """The second table."""
    print(f"\nreading {'x'.join(map(str, SHAPE))} int16, one thread, median of {rounds} rounds, ms")
    print(f"{'file':>12s} {'MB':>5s}" + "".join(f"{name:>10s}" for name in [*TOOLS, "limit"]), end="")
    print("  ours : MONAI, nibabel, limit")
    raw = brain_like()
    for path, content in ((folder / "large.nii.gz", gzip.compress(raw, 6)), (folder / "large.nii", raw)):
        path.write_bytes(content)
        measure(path, len(raw), rounds)


def measure(path: Path, size: int, rounds: int) -> None:
    """One line of the second table."""
    calls: dict[str, Callable] = {**TOOLS, "nibabel": lambda p: nib.load(p).get_fdata(dtype=np.float32)}
    calls["limit"] = Path.read_bytes
    if path.suffix == ".gz":
        calls["limit"] = lambda p: zlib.decompress(p.read_bytes(), 31, size)
    times = timed({name: partial(call, path) for name, call in calls.items()}, rounds, warm=2)
    medians = "".join(f"{statistics.median(times[name]) * 1000:10.1f}" for name in [*TOOLS, "limit"])
    ratios = [statistics.median(o / p for o, p in zip(times["ours"], times[n])) for n in ("MONAI", "nibabel", "limit")]
    told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"{path.name:>12s} {path.stat().st_size / 1e6:5.1f}{medians}  {told}")


def brain_like() -> bytes:
    """A smooth head with noise in it and zeros around, as a whole file."""
    rng = np.random.default_rng(0)
    away = [np.linspace(-1.2, 1.2, n, dtype=np.float32) for n in SHAPE]
    inside = 1 - (away[0][:, None, None] ** 2 + away[1][:, None] ** 2 + away[2] ** 2)
    values = np.where(inside > 0, 400 + 600 * inside + 20 * rng.standard_normal(SHAPE, np.float32), 0)
    return nifti(AFFINE, SHAPE, values=values)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where the files are written and kept; else they are removed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if SimpleITK:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    versions = f"monai {monai.__version__}, nibabel {nib.__version__}, numpy {np.__version__}"
    print(versions + (f", SimpleITK {SimpleITK.__version__}" if SimpleITK else ""))
    with tempfile.TemporaryDirectory() as temporary:
        survey(args.folder or Path(temporary) / "clinical")
        cost(Path(temporary), args.rounds)


if __name__ == "__main__":
    main()
