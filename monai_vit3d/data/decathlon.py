"""Medical Segmentation Decathlon tasks (Antonelli et al. 2022, Nature Communications 13:4128), by a fixed split."""

from __future__ import annotations

import json
from pathlib import Path

from .errors import DatasetError


def decathlon_split(dataset_dir: str | Path, split_file: str | Path, section: str) -> list[dict[str, str]]:
    """Image and label files of one section of a split, in the split's order.

    Args:
        dataset_dir: a task's folder, with ``imagesTr`` and ``labelsTr``, as MONAI's ``DecathlonDataset`` unpacks it.
        split_file: JSON with a list of case names for each section.
        section: ``"training"``, ``"validation"`` or ``"test"``, as the split file names them.

    Returns:
        ``[{"image": path, "label": path}, ...]``.

    Raises:
        DatasetError: the folder, the section or some cases are missing; the message says how to fetch them.
    """
    root = Path(dataset_dir)
    fetch = (
        "Fetch it with monai.apps.DecathlonDataset(root_dir=..., task=..., section='training', download=True) and set "
        "MONAI_DATA_DIRECTORY to the folder that holds it, or override dataset_dir."
    )
    if not (root / "imagesTr").is_dir():
        raise DatasetError(f"{root}: no Decathlon task here (no folder imagesTr). {fetch}")
    split = json.loads(Path(split_file).read_text())
    if section not in split:
        raise DatasetError(f"{split_file}: no section {section!r}; it has {', '.join(split)}.")
    files = [
        {"image": str(root / "imagesTr" / f"{case}.nii.gz"), "label": str(root / "labelsTr" / f"{case}.nii.gz")}
        for case in split[section]
    ]
    missing = [path for pair in files for path in pair.values() if not Path(path).is_file()]
    if missing:
        raise DatasetError(f"{len(missing)} files of {section!r} are missing, the first is {missing[0]}. {fetch}")
    return files
