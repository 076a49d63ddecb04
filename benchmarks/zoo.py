"""What `vit3d predict` makes of a folder of bundles, such as a copy of MONAI's model zoo, as a table.

Each bundle is described by `vit3d info`, and run, if it is of a kind that is served, over one made-up volume by
`vit3d predict` and by `python -m monai.bundle run`, whose labels are compared voxel by voxel:

    python benchmarks/zoo.py FOLDER

Bundles without weights get a line, too. Where a bundle names ITKReader and itk is not installed, MONAI runs with
NibabelReader. A bundle's config is code that runs here: give it only what you trust.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np

from monai_vit3d.bundle.config import AS_SHIPPED, read_parser
from monai_vit3d.bundle.info import describe_bundle
from monai_vit3d.bundle.kinds import kind_of
from monai_vit3d.bundle.load import load_bundle
from monai_vit3d.bundle.metadata import read_metadata
from monai_vit3d.data.errors import Vit3dError
from monai_vit3d.pipeline.folder import predict_folder

COLUMNS = ("bundle", "kind", "served", "--safe", "labels of monai.bundle run")
RUN_IDS = ("run", "evaluating", "inference", "inferring")  # older bundles name what they run otherwise
AFFINE = np.array([[-1.6, 0, 0, 40], [0, 1.6, 0, -40], [0, 0, 2.0, 5], [0, 0, 0, 1]])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of bundles")
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 64, 48), help="of the made-up volume")
    args = parser.parse_args(argv)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for root in sorted(path.parent for path in args.folder.glob("*/configs")):
        with contextlib.redirect_stdout(sys.stderr):  # a bundle's own code may print
            cells = row(root, tuple(args.shape))
        print(f"| {' | '.join(cells)} |", flush=True)


def row(root: Path, shape: tuple[int, ...]) -> list[str]:
    """A bundle's cells."""
    try:
        kind = kind_of(read_parser(root, AS_SHIPPED, "cpu").get(), read_metadata(root))
        safe = describe_bundle(root).get("--safe", "").partition(":")[0]
    except Vit3dError as error:
        return [root.name, str(error), "no", "", ""]
    if not kind.served:
        return [root.name, kind.name, "no", "", ""]
    with tempfile.TemporaryDirectory() as folder:
        return [root.name, kind.name, "yes", safe or "refused", compared(root, Path(folder), shape)]


def compared(root: Path, folder: Path, shape: tuple[int, ...]) -> str:
    """How labels of both commands agree."""
    try:
        bundle = load_bundle(root, "cpu")
        keys = bundle.preprocessing.load_keys
        count = max(bundle.metadata.channels, len(keys))
        images = [make_image(folder / f"case_{i}.nii.gz", i, shape) for i in range(count)]
        columns = [f"image_{key}" for key in keys] if len(keys) > 1 else [f"image{i}" for i in range(count)]
        table = folder / "list.csv"
        table.write_text("\n".join([",".join([*columns, "name"]), ",".join([*map(str, images), "case"])]))
        summary = predict_folder([table], folder / "ours", root, device="cpu")
    except Vit3dError as error:
        return f"vit3d: {error}"
    if summary.failed:
        return "vit3d: failed"
    names = [str(path) for path in images]
    case = dict(zip(keys, names)) if len(keys) > 1 else {keys[0]: names if count > 1 else names[0]}
    theirs = by_monai(root, folder / "monai", case)
    if isinstance(theirs, str):
        return theirs
    ours = np.asarray(nib.load(folder / "ours" / "case_seg.nii.gz").dataobj).squeeze()
    if ours.shape != theirs.shape:
        return f"another grid: {theirs.shape}"
    whole = theirs == np.rint(theirs)
    other = int((ours != theirs)[whole].sum())
    agreement = "equal" if other == 0 else f"{other} of {int(whole.sum())} voxels differ"
    return agreement if whole.all() else f"MONAI writes fractions of labels; elsewhere {agreement}"


def make_image(path: Path, seed: int, shape: tuple[int, ...]) -> Path:
    """Write blobs in noise."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"), axis=-1)
    values = rng.normal(-80, 20, shape)
    for _ in range(6):
        centre, width = rng.uniform(-0.6, 0.6, 3), rng.uniform(0.2, 0.6)
        values += rng.uniform(60, 220) * np.exp(-(((grid - centre) / width) ** 2).sum(-1))
    nib.Nifti1Image(values.astype(np.float32), AFFINE).to_filename(path)
    return path


def by_monai(root: Path, folder: Path, case: dict[str, object]) -> np.ndarray | str:
    """What `monai.bundle run` saves, or its last line."""
    config = next(path for s in ("json", "yaml", "yml") if (path := root / "configs" / f"inference.{s}").exists())
    text = config.read_text()
    if "ITKReader" in text and find_spec("itk") is None:
        folder.mkdir(parents=True)
        config = folder / config.name
        config.write_text(text.replace("ITKReader", "NibabelReader"))
    entries = read_parser(root, AS_SHIPPED, "cpu").get()
    entry = next((name for name in RUN_IDS if name in entries), "run")
    options = {
        "config_file": config, "bundle_root": root.resolve(), "output_dir": folder, "dataset#data": [case],
        "device": "$torch.device('cpu')", "dataloader#num_workers": 0,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", entry, *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    saved = sorted(folder.rglob("*.nii.gz"))
    if done.returncode or not saved:
        return f"monai.bundle run: {(done.stderr.strip().splitlines() or ['nothing was saved'])[-1][:120]}"
    return np.asarray(nib.load(saved[-1]).dataobj).squeeze()


if __name__ == "__main__":
    main()
