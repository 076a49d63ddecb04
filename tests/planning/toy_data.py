"""Small labelled data sets that a network can learn in minutes, written in every layout from the same arrays."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

CLASSES = {0: "background", 1: "lesion", 2: "left_organ", 3: "right_organ"}
CHANNELS = ("CT", "PET")
MR_CLASSES = {0: "background", 1: "core"}
MR_CHANNELS = ("T2w",)
ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "SLP", "RPI")


@dataclass(frozen=True)
class ToyCase:
    """One scan: channels (C, H, W, D) and labels (H, W, D) along R, A and S, and how its files are stored."""

    name: str
    channels: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    axcodes: str
    is_test: bool

    def image(self, values: np.ndarray) -> nib.Nifti1Image:
        """Store values of the grid, maybe with a fourth axis, along the case's own axes."""
        image = nib.Nifti1Image(values, self.affine)
        turn = ornt_transform(io_orientation(self.affine), axcodes2ornt(self.axcodes))
        return image.as_reoriented(turn)

    def save_channel(self, index: int, path: Path) -> str:
        """Write one channel: whole numbers of 16 bits where they are (CT), else float32."""
        values = self.channels[index]
        is_whole = bool((values == values.round()).all())
        return self._save(values.astype(np.int16 if is_whole else np.float32), path)

    def save_all_channels(self, path: Path) -> str:
        """Write all channels as one file: 4D, or 3D of a single one."""
        values = np.moveaxis(self.channels, 0, 3) if len(self.channels) > 1 else self.channels[0]
        return self._save(values.astype(np.float32), path)

    def save_labels(self, path: Path) -> str:
        """Write the label map."""
        return self._save(self.labels.astype(np.uint8), path)

    def _save(self, values: np.ndarray, path: Path) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(self.image(values), path)
        return str(path)


def toy_cases(
    cases: int = 12, testing: int = 2, seed: int = 0, shape: tuple[int, int, int] = (40, 36, 28)
) -> list[ToyCase]:
    """Make CT-like and PET-like scans of 1.5 x 1.5 x 3 mm with lesions and a pair of organs.

    The organs look alike in both channels, so that only their place tells left from right; lesions, 2 to 4 in each
    case, are seen in the PET alone.
    """
    return [_toy_case(index, index >= cases, np.random.default_rng([seed, index]), shape)
            for index in range(cases + testing)]  # fmt: skip


def _toy_case(index: int, is_test: bool, rng: np.random.Generator, shape: tuple[int, int, int]) -> ToyCase:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    centre = rng.uniform(-0.06, 0.06, 3)
    body = _ellipsoid(grid, centre, (0.88, 0.86, 0.9))
    labels = np.zeros(shape, np.uint8)
    for value, side in ((2, -1), (3, 1)):  # x grows to the right
        place = centre + [0.45 * side, 0.1, 0.0] + rng.uniform(-0.05, 0.05, 3)
        labels[_ellipsoid(grid, place, rng.uniform(0.27, 0.35, 3))] = value
    for place in _lesion_places(rng, centre):
        labels[_ellipsoid(grid, place, np.array([4.2, 4.2, 5.5]) / (np.array(shape) * [0.75, 0.75, 1.5]))] = 1
    hounsfield = np.where(body, 30.0, -1000.0) + 90 * (labels >= 2) + rng.normal(0, 12, shape)
    uptake = body * np.clip(1.0 + 0.5 * (labels >= 2) + 6 * (labels == 1) + rng.normal(0, 0.2, shape), 0.05, None)
    affine = np.diag([1.5, 1.5, 3.0, 1.0])
    affine[:3, 3] = rng.uniform(-40, 40, 3)
    channels = np.stack([hounsfield.round().astype(np.float32), uptake.astype(np.float32)])
    return ToyCase(f"sub-{index:02d}", channels, labels, affine, ORIENTATIONS[index % len(ORIENTATIONS)], is_test)


def _lesion_places(rng: np.random.Generator, centre: np.ndarray) -> list[np.ndarray]:
    """Draw 2 to 4 places in the body that touch neither the organs nor each other."""
    slots = [(0.0, 0.0, -0.5), (0.0, 0.0, 0.45), (0.0, -0.55, 0.0), (0.0, 0.6, 0.1), (-0.4, -0.5, -0.1)]
    chosen = rng.choice(len(slots), rng.integers(2, 5), replace=False)
    return [centre + slots[i] + rng.uniform(-0.05, 0.05, 3) for i in chosen]


def toy_mr_cases(
    cases: int = 8, testing: int = 1, seed: int = 1, shape: tuple[int, int, int] = (64, 56, 12)
) -> list[ToyCase]:
    """Make MR-like scans of 0.5 x 0.5 x 5 mm: one bright structure, each scan on a scale of its own, air exactly 0."""
    return [_toy_mr_case(index, index >= cases, np.random.default_rng([seed, index]), shape)
            for index in range(cases + testing)]  # fmt: skip


def _toy_mr_case(index: int, is_test: bool, rng: np.random.Generator, shape: tuple[int, int, int]) -> ToyCase:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    head = _ellipsoid(grid, rng.uniform(-0.05, 0.05, 3), (0.85, 0.9, 0.95))
    labels = _ellipsoid(grid, rng.uniform(-0.3, 0.3, 3), rng.uniform(0.25, 0.4, 3)).astype(np.uint8)
    values = rng.uniform(300, 900) * (1 + 0.6 * labels + rng.normal(0, 0.08, shape))
    affine = np.diag([0.5, 0.5, 5.0, 1.0])
    channels = (head * values).astype(np.float32)[None]
    return ToyCase(f"sub-{index:02d}", channels, labels, affine, ORIENTATIONS[index % len(ORIENTATIONS)], is_test)


def _ellipsoid(grid: np.ndarray, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    offset = grid - np.reshape(centre, (3, 1, 1, 1))
    return ((offset / np.reshape(radii, (3, 1, 1, 1))) ** 2).sum(0) < 1


def write_toy(root: Path, layout: str, cases: int = 12, testing: int = 2, seed: int = 0,
              shape: tuple[int, int, int] = (40, 36, 28)) -> Path:  # fmt: skip
    """Write the CT and PET scans in a layout of ``TOY_LAYOUTS``; what to give to ``read_dataset``."""
    return TOY_LAYOUTS[layout](Path(root), toy_cases(cases, testing, seed, shape), CHANNELS, CLASSES)


def write_toy_mr(root: Path, layout: str = "decathlon", cases: int = 8, testing: int = 1, seed: int = 1,
                 shape: tuple[int, int, int] = (64, 56, 12)) -> Path:  # fmt: skip
    """Write the MR scans in a layout of ``TOY_LAYOUTS``; what to give to ``read_dataset``."""
    return TOY_LAYOUTS[layout](Path(root), toy_mr_cases(cases, testing, seed, shape), MR_CHANNELS, MR_CLASSES)


def _write_nnunet(root: Path, cases: list[ToyCase], channels: Sequence[str]) -> None:
    for case in cases:
        folder = root / ("imagesTs" if case.is_test else "imagesTr")
        for index in range(len(channels)):
            case.save_channel(index, folder / f"{case.name}_{index:04d}.nii.gz")
        if not case.is_test:
            case.save_labels(root / "labelsTr" / f"{case.name}.nii.gz")


def _write_nnunet_v1(root: Path, cases: list[ToyCase], channels: Sequence[str], classes: dict[int, str]) -> Path:
    _write_nnunet(root, cases, channels)
    training = [
        {"image": f"./imagesTr/{case.name}.nii.gz", "label": f"./labelsTr/{case.name}.nii.gz"}
        for case in cases
        if not case.is_test
    ]
    return _write_dataset_json(root, {
        "modality": {str(i): name for i, name in enumerate(channels)},
        "labels": {str(value): name for value, name in classes.items()},
        "numTraining": len(training),
        "training": training,
        "test": [f"./imagesTs/{case.name}.nii.gz" for case in cases if case.is_test],
    })  # fmt: skip


def _write_nnunet_v2(root: Path, cases: list[ToyCase], channels: Sequence[str], classes: dict[int, str]) -> Path:
    _write_nnunet(root, cases, channels)
    return _write_dataset_json(root, {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": {name: value for value, name in classes.items()},
        "numTraining": sum(not case.is_test for case in cases),
        "file_ending": ".nii.gz",
    })  # fmt: skip


def _write_decathlon(root: Path, cases: list[ToyCase], channels: Sequence[str], classes: dict[int, str]) -> Path:
    lists: dict[str, list] = {"training": [], "test": []}
    for case in cases:
        folder = "imagesTs" if case.is_test else "imagesTr"
        case.save_all_channels(root / folder / f"{case.name}.nii.gz")
        image, label = f"./{folder}/{case.name}.nii.gz", f"./labelsTr/{case.name}.nii.gz"
        if case.is_test:
            lists["test"].append(image)
        else:
            case.save_labels(root / label)
            lists["training"].append({"image": image, "label": label})
    return _write_dataset_json(root, {
        "name": "toy", "tensorImageSize": "4D",
        "modality": {str(i): name for i, name in enumerate(channels)},
        "labels": {str(value): name for value, name in classes.items()},
        **lists,
    })  # fmt: skip


def _write_dataset_json(root: Path, content: dict) -> Path:
    (root / "dataset.json").write_text(json.dumps(content, indent=1))
    return root


def _write_monai_list(root: Path, cases: list[ToyCase], channels: Sequence[str], classes: dict[int, str]) -> Path:
    lists: dict[str, list] = {"training": [], "testing": []}
    for case in cases:
        images = [f"scans/{case.name}/{name}.nii.gz" for name in channels]
        for index, image in enumerate(images):
            case.save_channel(index, root / image)
        item: dict = {"image": images if len(images) > 1 else images[0]}
        if not case.is_test:
            item["label"] = f"scans/{case.name}/seg.nii.gz"
            case.save_labels(root / item["label"])
        lists["testing" if case.is_test else "training"].append(item)
    labels = {str(value): name for value, name in classes.items()}
    (root / "datalist.json").write_text(json.dumps({"modality": list(channels), "labels": labels, **lists}))
    return root


def _write_bids(root: Path, cases: list[ToyCase], channels: Sequence[str], classes: dict[int, str]) -> Path:
    derived = root / "derivatives" / "manual"
    for case in cases:
        subject = case.name
        for index, name in enumerate(channels):
            folder = "pet" if name == "PET" else "anat"
            suffix = "pet" if name == "PET" else name
            case.save_channel(index, root / subject / folder / f"{subject}_{suffix}.nii.gz")
        if not case.is_test:
            case.save_labels(derived / subject / "anat" / f"{subject}_{channels[0]}_dseg.nii.gz")
    for folder, kind in ((root, "raw"), (derived, "derivative")):
        description = {"Name": "toy", "BIDSVersion": "1.9.0", "DatasetType": kind}
        (folder / "dataset_description.json").write_text(json.dumps(description))
    _write_tsv(derived / "dseg.tsv", classes)
    return root


def _write_tsv(path: Path, classes: dict[int, str]) -> None:
    path.write_text("index\tname\n" + "".join(f"{value}\t{name}\n" for value, name in classes.items()))


def _write_csv(root: Path, cases: list[ToyCase], channels: Sequence[str], classes: dict[int, str]) -> Path:
    columns = ["name", *[f"image_{name}" for name in channels], "label", "section"]
    with open(_made(root) / "cases.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for case in cases:
            images = [f"{case.name}_{name}.nii.gz" for name in channels]
            for index, image in enumerate(images):
                case.save_channel(index, root / image)
            label = "" if case.is_test else f"{case.name}_seg.nii.gz"
            if label:
                case.save_labels(root / label)
            table.writerow([case.name, *images, label, "testing" if case.is_test else "training"])
    _write_tsv(root / "dseg.tsv", classes)
    return root / "cases.csv"


def _write_folders(root: Path, cases: list[ToyCase], channels: Sequence[str], classes: dict[int, str]) -> Path:
    for case in cases:
        folder = root / ("images_test" if case.is_test else "images")
        for index, name in enumerate(channels):
            case.save_channel(index, folder / f"{case.name}_{name}.nii.gz")
        if not case.is_test:
            case.save_labels(root / "labels" / f"{case.name}.nii.gz")
    _write_tsv(root / "dseg.tsv", classes)
    return root


def _case_folder_writer(separator: str) -> Callable[[Path, list[ToyCase], Sequence[str], dict[int, str]], Path]:
    def write(root: Path, cases: list[ToyCase], channels: Sequence[str], classes: dict[int, str]) -> Path:
        for case in cases:
            stem = root / case.name / f"{case.name}{separator}"
            for index, name in enumerate(channels):
                case.save_channel(index, Path(f"{stem}{name.lower()}.nii.gz"))
            if not case.is_test:
                case.save_labels(Path(f"{stem}seg.nii.gz"))
        _write_tsv(root / "dseg.tsv", classes)
        return root

    return write


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


TOY_LAYOUTS: dict[str, Callable[[Path, list[ToyCase], Sequence[str], dict[int, str]], Path]] = {
    "nnunet_v1": _write_nnunet_v1,
    "nnunet_v2": _write_nnunet_v2,
    "decathlon": _write_decathlon,
    "monai_list": _write_monai_list,
    "bids": _write_bids,
    "csv": _write_csv,
    "folders": _write_folders,
    "case_folders": _case_folder_writer("_"),
    "case_folders_2023": _case_folder_writer("-"),
}
