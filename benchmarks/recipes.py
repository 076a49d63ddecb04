"""Compare recipes of published models with their authors' own preparation, where that is installed.

    pip install colipri spectre-fm    # neither is a dependency of this package
    python benchmarks/recipes.py

Prints, for a smooth phantom of 1.5 x 1.5 x 3 mm stored as LAS, the shapes and the largest difference inside the scan,
as a part of the range. COLIPRI's own transform is TorchIO's, SPECTRE's is spectre.windowing.
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from monai_vit3d import input_transform


def phantom() -> nib.Nifti1Image:
    shape, spacing_mm = (180, 200, 90), np.array([1.5, 1.5, 3.0])
    axes = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    values = -1000 + 1400 * np.exp(-2 * (x**2 + y**2 + z**2)) + 150 * np.sin(3 * x) * np.cos(2 * y)
    affine = np.diag([-spacing_mm[0], *spacing_mm[1:], 1.0])
    affine[:3, 3] = [130, -140, -120]
    return nib.Nifti1Image(values.astype(np.int16), affine)


def colipri(path: Path) -> torch.Tensor:
    import torchio
    import yaml
    from colipri.defaults import get_configs_dir

    defaults = yaml.safe_load((Path(get_configs_dir()) / "config.yaml").read_text())
    size = defaults["input_size"]
    steps = [
        torchio.ToOrientation(defaults["orientation"]),
        torchio.Resample(defaults["spacing"], image_interpolation="linear"),
        torchio.Clamp(-1000, 1000),
        torchio.RescaleIntensity((-1, 1), in_min_max=(-1000, 1000)),
        torchio.CropOrPad(size, padding_mode=defaults["padding_mode"]),
    ]
    return torchio.Compose(steps)(torchio.ScalarImage(path)).data


def spectre_large(path: Path) -> torch.Tensor:
    from spectre.windowing import window_scan

    image = nib.as_closest_canonical(nib.load(path))
    crops, (rows, columns, slices) = window_scan(torch.from_numpy(image.get_fdata(dtype=np.float32))[None])
    grid = crops.reshape(rows, columns, slices, *crops.shape[1:]).permute(3, 0, 4, 1, 5, 2, 6)
    return grid.reshape(1, rows * crops.shape[2], columns * crops.shape[3], slices * crops.shape[4])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phantom.nii.gz"
        phantom().to_filename(path)
        for name, package, own in (("colipri", "torchio", colipri), ("spectre_large", "spectre", spectre_large)):
            if find_spec(package) is None or (name == "colipri" and find_spec("colipri") is None):
                print(f"{name}: skipped, its authors' package is not installed")
                continue
            theirs, ours = own(path), input_transform(name)(path).as_tensor()
            if theirs.shape != ours.shape:
                print(f"{name}: shapes {tuple(theirs.shape)} and {tuple(ours.shape)}")
                continue
            difference = (theirs - ours).abs() / (ours.max() - ours.min())
            inside = ours > ours.min()
            print(
                f"{name}: {tuple(ours.shape)}, largest difference {float(difference[inside].max()):.2e}, "
                f"mean {float(difference[inside].mean()):.2e} of the range"
            )


if __name__ == "__main__":
    main()
