"""Load MedMNIST's six 3D sets (Yang et al. 2023, Scientific Data 10:41, 10.1038/s41597-022-01721-8) and your own."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import Dataset

from .confinement import check_confined
from .errors import DatasetError, install_extra
from .json_files import read_json_file
from .task_names import resolve_task

OFFICIAL_3D = (
    "organmnist3d", "nodulemnist3d", "adrenalmnist3d", "fracturemnist3d", "vesselmnist3d", "synapsemnist3d",
)  # fmt: skip
OFFICIAL_2D = (
    "pathmnist", "chestmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist", "breastmnist", "bloodmnist",
    "tissuemnist", "organamnist", "organcmnist", "organsmnist",
)  # fmt: skip
SIZES = (28, 64)
SECTION_NAMES = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}


def medmnist3d_info(dataset_name: str, info_file: str | Path | None = None) -> dict[str, Any]:
    """Describe a data set by an entry with the keys of ``medmnist.INFO``.

    Args:
        dataset_name: one of MedMNIST's 3D sets, such as ``"organmnist3d"``, or a name of ``info_file``.
        info_file: JSON ``{name: entry}`` of your own sets. An entry has ``task`` and ``label`` (``{"0": name, ...}``)
            and may have ``n_channels``, ``n_samples`` (``{"train": n, ...}``), ``MD5`` and ``url`` (of size 28),
            ``MD5_64`` and ``url_64`` (of size 64, and so on) and keys of its own. An entry of an official name stands
            in place of the package medmnist's.

    Raises:
        DatasetError: an unknown name, a 2D set, an entry that lacks something, or no package medmnist.
    """
    if dataset_name in OFFICIAL_2D:
        raise DatasetError(f"{dataset_name!r} holds 2D images; expected a 3D set: {', '.join(OFFICIAL_3D)}.")
    is_official = dataset_name in OFFICIAL_3D
    own = {} if info_file is None or (is_official and not Path(info_file).is_file()) else _own_entries(Path(info_file))
    if dataset_name in own:
        return _checked_entry(own[dataset_name], f"{info_file}: {dataset_name!r}")
    if is_official:
        return _official_info(dataset_name)
    listed = f"{info_file} has {', '.join(own) or 'none'}" if info_file else "info_file names a JSON file with your own"
    raise DatasetError(f"{dataset_name!r}: no such data set. MedMNIST has {', '.join(OFFICIAL_3D)}; {listed}.")


def class_names(info: dict[str, Any]) -> list[str]:
    """List the names of a data set's classes, labels or values, in the order of their numbers.

    Args:
        info: as :func:`medmnist3d_info` gives it.

    Raises:
        DatasetError: the numbers are not 0, 1, 2, ...
    """
    label = info["label"]
    numbers = [str(i) for i in range(len(label))]
    if set(numbers) != set(label):
        raise DatasetError(f"label has the numbers {', '.join(label)}; expected 0 to {len(label) - 1}.")
    return [label[number] for number in numbers]


class MedMNIST3DDataset(Dataset):
    """One section of a MedMNIST3D set, or of one's own in the same npz format, for dictionary transforms.

    The file is ``root_dir/{name}.npz`` for size 28 and ``root_dir/{name}_{size}.npz`` for others. It holds
    ``train_images`` ``(N, s, s, s)``, with a last axis of channels where ``n_channels`` is above 1, ``train_labels``
    ``(N, L)``, and the same of ``val`` and ``test``.

    Args:
        dataset_name: one of MedMNIST's 3D sets, or a name of ``info_file``.
        section: ``"train"``, ``"val"`` or ``"test"``; MONAI's ``"training"`` and ``"validation"`` too.
        root_dir: the folder of the npz file.
        size: voxels along a side; MedMNIST has 28 and 64.
        transform: what is applied to an item, dictionary transforms as in all of MONAI.
        info_file: JSON with the entries of one's own sets, see :func:`medmnist3d_info`.
        download: fetch an official file that is not there.

    Attributes:
        data: ``[{"image": (C, s, s, s), "label": ..., "name": "organmnist3d_train_0000"}, ...]``. Images are views of
            the file's array, in its dtype. Labels are an ``int`` for classes, ordered or not, and a float32 vector
            ``(L,)`` for multi-label and regression tasks.
        info: the entry of :func:`medmnist3d_info`.
        task: ``"multi-class"``, ``"multi-label"``, ``"ordinal"`` or ``"regression"``.
        class_names: names in the order of the labels.

    Raises:
        DatasetError: an unknown set or section; a file that is absent, damaged, or not what the entry says.

    Example::

        train = MedMNIST3DDataset("organmnist3d", "training", "data", transform=EnsureTyped("image"))
        cached = CacheDataset(MedMNIST3DDataset("organmnist3d", "training", "data").data, transform)
    """

    def __init__(
        self,
        dataset_name: str,
        section: str,
        root_dir: str | Path,
        size: int = 28,
        transform: Sequence[Callable] | Callable | None = None,
        info_file: str | Path | None = None,
        download: bool = True,
    ) -> None:
        if section not in SECTION_NAMES:
            raise DatasetError(f"no section {section!r}; it has {', '.join(SECTION_NAMES)}.")
        section = SECTION_NAMES[section]
        self.info = medmnist3d_info(dataset_name, info_file)
        self.task = resolve_task(self.info["task"])
        self.class_names = class_names(self.info)
        npz = _npz_file(dataset_name, root_dir, size, self.info)
        npz.make_sure(download and dataset_name in OFFICIAL_3D)
        images, labels = npz.read(section)
        fault = _image_violation(images, self.info, section, size) or _label_violation(
            labels, self.task, self.class_names
        )
        if not fault and len(images) != len(labels):
            fault = f"{len(images)} images and {len(labels)} labels; expected as many"
        if fault:
            raise DatasetError(f"{npz.path}: {section}: {fault}. {npz.advice}")
        super().__init__(_items(images, labels, self.task, f"{dataset_name}_{section}"), transform)


@dataclass(frozen=True)
class _NpzFile:
    """Path, source and checksum of a data set's file."""

    path: Path
    url: str | None
    md5: str | None

    @property
    def advice(self) -> str:
        source = f"Download {self.url}" if self.url else "Get the right file"
        return f"{source}{f' (MD5 {self.md5})' if self.md5 else ''} and put it at {self.path}."

    def make_sure(self, download: bool) -> None:
        """Make sure that the file exists and has the entry's MD5; download it if allowed."""
        if not self.path.is_file():
            if not download:
                raise DatasetError(f"{self.path}: no such file. {self.advice}")
            self._download()
        md5 = _md5(self.path)
        if self.md5 and md5 != self.md5:
            raise DatasetError(
                f"{self.path}: damaged or another version; its MD5 is {md5}; expected {self.md5}. Fetch it "
                f"again. {self.advice}"
            )

    def _download(self) -> None:
        from torchvision.datasets.utils import download_url

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # its own folder: two processes that fetch at once do not meet, and the name holds a whole file or none
            with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.") as part:
                download_url(self.url, part, self.path.name, self.md5)
                (Path(part) / self.path.name).replace(self.path)
        except Exception as error:  # sockets, HTTP, MD5 and disks fail in unrelated types
            raise DatasetError(f"{self.path}: the download failed ({error}). {self.advice}") from error

    def read(self, section: str) -> tuple[np.ndarray, np.ndarray]:
        """Read images and labels of one section; the others stay on disk."""
        keys = (f"{section}_images", f"{section}_labels")
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                return arrays[keys[0]], arrays[keys[1]]
        except Exception as error:  # zip, deflate, checksum and header faults come in a dozen unrelated types
            raise DatasetError(
                f"{self.path}: damaged or another format ({type(error).__name__}: {error}); expected an npz file with "
                f"plain arrays {keys[0]} and {keys[1]}. Fetch or write it again. {self.advice}"
            ) from error


def _npz_file(dataset_name: str, root_dir: str | Path, size: int, info: dict[str, Any]) -> _NpzFile:
    if dataset_name in OFFICIAL_3D and size not in SIZES:
        raise DatasetError(f"{dataset_name} has no size {size}; it has {', '.join(map(str, SIZES))}.")
    flag = "" if size == 28 else f"_{size}"
    return _NpzFile(Path(root_dir) / f"{dataset_name}{flag}.npz", info.get(f"url{flag}"), info.get(f"MD5{flag}"))


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _official_info(dataset_name: str) -> dict[str, Any]:
    try:
        from medmnist import INFO
    except ImportError as error:
        raise DatasetError(
            f"{dataset_name} is described by the package medmnist, which cannot be imported ({error}): "
            f"{install_extra('medmnist')}."
        ) from error
    return copy.deepcopy(INFO[dataset_name])


def _own_entries(info_file: Path) -> dict[str, Any]:
    check_confined(info_file)
    if not info_file.is_file():
        raise DatasetError(f"{info_file}: no such file. Give a JSON file {{name: entry}} that describes your sets.")
    entries = read_json_file(info_file, DatasetError, "{name: entry}")
    if not isinstance(entries, dict):
        raise DatasetError(f"{info_file}: JSON of a {type(entries).__name__}; expected {{name: entry}}.")
    return entries


def _checked_entry(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or "task" not in entry or not isinstance(entry.get("label"), dict):
        raise DatasetError(f'{where}: expected an entry with "task" and "label": {{"0": name, ...}}.')
    try:
        task, names = resolve_task(entry["task"]), class_names(entry)
    except (DatasetError, TypeError, ValueError) as error:
        raise DatasetError(f"{where}: {error}") from error
    least = {"multi-class": 2, "ordinal": 2, "multi-label": 1, "regression": 0}[task]
    if len(names) < least:
        raise DatasetError(f"{where}: {len(names)} names in label; task {task!r} needs {least} or more.")
    if not isinstance(entry.get("n_samples", {}), dict) or not isinstance(entry.get("n_channels", 1), int):
        raise DatasetError(f'{where}: expected "n_samples": {{"train": n, ...}} and "n_channels": n, or neither.')
    return entry


def _image_violation(images: np.ndarray, info: dict[str, Any], section: str, size: int) -> str | None:
    channels = info.get("n_channels", 1)
    sample = (size, size, size) if channels == 1 else (size, size, size, channels)
    if images.dtype.kind not in "buif" or images.shape[1:] != sample:
        return f"images {images.dtype} {images.shape}; expected real numbers (N, {', '.join(map(str, sample))})"
    if not len(images):
        return "no sample; expected one or more"
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        bad = [i for i, image in enumerate(images) if not np.isfinite(image).all()]
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        return f"{len(bad)} images with voxels that are NaN or infinite (numbers {shown}); expected finite ones"
    count = info.get("n_samples", {}).get(section, len(images))
    return None if len(images) == count else f"{len(images)} samples; expected {count}"


def _label_violation(labels: np.ndarray, task: str, names: list[str]) -> str | None:
    by_class = task in ("multi-class", "ordinal")
    columns = 1 if by_class else len(names)
    if labels.dtype.kind not in "buif" or labels.ndim != 2 or columns not in (0, labels.shape[1]):
        return f"labels {labels.dtype} {labels.shape}; expected numbers (N, {columns or 'L'}) for task {task!r}"
    if task == "regression":
        fault = ~np.isfinite(labels)
        allowed = "finite values"
    else:
        highest = len(names) - 1 if by_class else 1
        fault = ~np.isin(labels, np.arange(highest + 1))
        allowed = f"0 to {highest}"
    return f"label {labels[fault][0]}; expected {allowed} for task {task!r}" if fault.any() else None


def _items(images: np.ndarray, labels: np.ndarray, task: str, prefix: str) -> list[dict[str, Any]]:
    """Make dictionaries whose images are views, channels first."""
    images = images[:, None] if images.ndim == 4 else np.moveaxis(images, -1, 1)
    by_class = task in ("multi-class", "ordinal")
    targets = labels[:, 0].astype(int).tolist() if by_class else labels.astype(np.float32)
    return [
        {"image": image, "label": target, "name": f"{prefix}_{i:04d}"}
        for i, (image, target) in enumerate(zip(images, targets))
    ]
