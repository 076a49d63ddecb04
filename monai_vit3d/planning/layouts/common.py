"""Functions that all layouts share: files by name, names of cases, channels and classes, checks of the result."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from monai_vit3d.data.errors import DatasetError, ImageError
from monai_vit3d.data.files import read_text_file
from monai_vit3d.data.nifti.read import count_nifti_volumes, read_nifti
from monai_vit3d.data.printable import excerpt
from monai_vit3d.planning.dataset import LabelledCase, LabelledDataset

logger = logging.getLogger(__name__)

NIFTI = (".nii.gz", ".nii")
MAX_SEEN_VALUES = 256  # of a label map; more are no classes
_MODALITIES = {name.lower(): name for name in ("CT", "PET", "MRI", "T1w", "T2w", "T1", "T2", "FLAIR", "ADC", "DWI")}


def is_nifti_name(name: str) -> bool:
    """Return whether a file is NIfTI by its name, and not hidden."""
    return name.lower().endswith(NIFTI) and not name.startswith(".")


def stem(path: str | Path) -> str:
    """Return the name of a file without ``.nii`` or ``.nii.gz``."""
    return re.sub(r"\.nii(\.gz)?\Z", "", os.path.basename(path), flags=re.IGNORECASE)


def nifti_in(folder: Path) -> dict[str, Path]:
    """List the NIfTI files that lie directly in a folder, by stem; none if there is no such folder.

    Raises:
        DatasetError: a file is there compressed and uncompressed.
    """
    if not folder.is_dir():
        return {}
    paths = sorted(entry for entry in folder.iterdir() if is_nifti_name(entry.name) and entry.is_file())
    by_stem = {stem(path): path for path in paths}
    if len(by_stem) < len(paths):
        twice = next(path for path in paths if by_stem[stem(path)] != path)
        raise DatasetError(
            f"{twice}: beside {by_stem[stem(twice)].name}; one of the two is expected. Remove the other."
        )
    return by_stem


def numbered_names(value: Any, where: str) -> tuple[str, ...]:
    """Read names of channels: ``{"0": "CT", "1": "PET"}``, a list, or one text; empty if there are none.

    Raises:
        DatasetError: anything else.
    """
    if isinstance(value, Mapping) and all(str(i) in value for i in range(len(value))):
        value = [value[str(i)] for i in range(len(value))]
    if isinstance(value, str):
        value = [value]
    if value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        return tuple(value or ())
    raise DatasetError(f'{where}: {value!r}; names of the channels by number, {{"0": "CT", "1": "PET"}}, are expected.')


def class_names_from(value: Any, where: str) -> dict[int, str]:
    """Read names of classes: ``{"0": "background", "1": "liver"}``, or nnU-Net's ``{"background": 0, "liver": 1}``.

    Raises:
        DatasetError: anything else; regions of several values and an ignore label are named as such.
    """
    if not isinstance(value, Mapping) or not value:
        raise DatasetError(f'{where}: {value!r}; {{"0": "background", "1": name, ...}} is expected.')
    names: dict[int, str] = {}
    for key, held in value.items():
        if isinstance(held, list):
            raise DatasetError(
                f"{where}: {key!r} is a region of the values {held}; one value a class is expected. Give each value a "
                "name of its own."
            )
        if str(key).lower() == "ignore":
            raise DatasetError(f"{where}: an ignore label ({held}) is not supported. Leave those cases out.")
        number, name = (held, key) if isinstance(held, int) else (key, held)
        if not re.fullmatch(r"\d+", str(number)) or int(number) in names:
            raise DatasetError(f"{where}: {key!r}: {held!r}; a name and a value from 0, each once, is expected.")
        names[int(number)] = str(name)
    names.setdefault(0, "background")
    return dict(sorted(names.items()))


def class_names_beside(folder: Path) -> dict[int, str]:
    """Read names of classes from ``dseg.tsv`` as BIDS has it, with columns index and name; empty without one.

    Raises:
        DatasetError: the table has other columns or no numbers.
    """
    path = next((path for path in sorted(folder.glob("*dseg.tsv")) if path.is_file()), None)
    if path is None:
        return {}
    try:
        lines = [line.split("\t") for line in read_text_file(path).splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 ({error.reason}). Save it as UTF-8.") from error
    header = [cell.strip() for cell in lines[0]] if lines else []
    if not {"index", "name"} <= set(header):
        raise DatasetError(f"{path}: columns {excerpt(header, 80)}; index and name are expected, with tabs between.")
    columns = header.index("index"), header.index("name")
    if any(len(line) <= max(columns) for line in lines):
        raise DatasetError(f"{path}: a line has too few cells; an index and a name are expected in each.")
    cells = [[line[column].strip() for column in columns] for line in lines[1:]]
    return class_names_from(dict(cells), str(path))


def class_names_seen(labels: Iterable[Path]) -> dict[int, str]:
    """Name classes by the values of label maps, "class 1" and so on; maps that cannot be read are passed over."""
    with ThreadPoolExecutor() as pool:
        values = sorted(set().union(*pool.map(_values, labels), {0}))
    return {value: f"class {value}" if value else "background" for value in values}


def _values(path: Path) -> set[int]:
    """Collect whole values of a label map; none of one that the verification will refuse."""
    try:
        voxels = read_nifti(path, exact=True).voxels
    except ImageError:
        return set()
    values = np.unique(voxels)
    if len(values) > MAX_SEEN_VALUES or (values < 0).any() or (values != values.round()).any():
        return set()
    return {int(value) for value in values}


def channel_names_seen(images: Sequence[Sequence[Path]]) -> tuple[str, ...]:
    """Name channels by the last word of their files' names, such as T1w or CT, where all cases have the same.

    Args:
        images: of each case, a file a channel; or one file of several volumes, whose channels get numbers.
    """
    count = len(images[0])
    words = [{re.split(r"[_\-. ]", stem(case[i]))[-1] for case in images if len(case) == count} for i in range(count)]
    names = [next(iter(word)) for word in words if len(word) == 1 and not next(iter(word)).isdigit()]
    volumes = _volumes(images[0][0]) if count == 1 else 1
    if len(images) < 2 or len({*names}) < count or volumes > 1:
        return tuple(f"channel {i}" for i in range(max(count, volumes)))
    return tuple(map(modality_name, names))


def _volumes(path: Path) -> int:
    """Count the volumes of a file; 1 of one that the verification will refuse."""
    try:
        return count_nifti_volumes(path)
    except ImageError:
        return 1


def most_have(images: Mapping[Any, Mapping[str, Path]], what: str) -> list[str]:
    """List the channels of half of the labelled cases or more, sorted; a line is logged of the rarer ones.

    Args:
        images: of each labelled case, by channel.
        what: the cases are called, "sessions" or "cases".
    """
    counts = Counter(channel for held in images.values() for channel in held)
    channels = sorted(channel for channel, count in counts.items() if 2 * count >= len(images))
    if rare := sorted(counts.keys() - channels):
        logger.warning("%s: images of few %s, which are not used", ", ".join(rare), what)
    return channels


def modality_name(name: str) -> str:
    """Write a known modality as it is usually written: pet is PET, t1w is T1w; all else stays."""
    return _MODALITIES.get(name.lower(), name)


def names_by_file(paths: Sequence[Path], root: Path) -> list[str]:
    """Name cases after their files: the stem, or else those parts of the path in which cases differ."""
    stems = [stem(path) for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    parts = [Path(os.path.relpath(path, root)).with_name(stem(path)).parts for path in paths]
    if len({len(part) for part in parts}) == 1:
        differing = [i for i in range(len(parts[0])) if len({part[i] for part in parts}) > 1]
        parts = [tuple(part[i] for i in differing) for part in parts]
    return ["_".join(part) or name for part, name in zip(parts, stems)]


def build_dataset(
    root: Path,
    layout: str,
    task: str,
    cases: Sequence[LabelledCase],
    channel_names: Sequence[str],
    class_names: Mapping[int, str],
) -> LabelledDataset:
    """Put a data set together, its cases in the order of their names.

    Label maps keep their values: a value between those of classes is a class of its own that no voxel has, such as 3
    in BraTS' 1, 2 and 4. Where more values are unused than used, the gaps are left for the verification to refuse.

    Raises:
        DatasetError: no case to train with, or two of one name.
    """
    if not any(case.section == "training" for case in cases):
        raise DatasetError(f"{root}: no case to train with. Give images with labels.")
    twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    if twice:
        raise DatasetError(f"{root}: two cases are called {twice[0]!r}; each needs a name of its own. Rename one.")
    ordered = tuple(sorted(cases, key=lambda case: (case.section != "training", case.name)))
    if task == "segmentation" and max(class_names) < 2 * len(class_names):
        class_names = {value: class_names.get(value, f"unused {value}") for value in range(max(class_names) + 1)}
    return LabelledDataset(root, layout, task, ordered, tuple(channel_names), dict(class_names))


def group_by_case(
    stems: Iterable[str], names: Iterable[str], channels: Iterable[str] = ()
) -> dict[str, dict[str, str]]:
    """Sort image stems, NAME or NAME_CHANNEL, under the names of their cases.

    Args:
        stems: of image files.
        names: of cases that have a label.
        channels: that are known beside those of these cases; they tell name from channel where no case is known.

    Returns:
        name to channel to stem; the channel is "" where the stem is the name.
    """
    known, channels = set(names), set(channels)
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    nameless = []
    for text in stems:
        cuts = [len(text), *[match.start() for match in re.finditer(r"[_\-.]", text)][::-1]]
        cut = next((cut for cut in cuts if text[:cut] in known), None)
        if cut is None:
            nameless.append(text)
        else:
            groups[text[:cut]][text[cut + 1 :]] = text
            channels.add(text[cut + 1 :])
    for text in nameless:
        ends = [channel for channel in channels if channel and re.search(rf"[_\-.]{re.escape(channel)}\Z", text)]
        channel = max(ends, key=len, default="")
        groups[text[: -len(channel) - 1] if channel else text][channel] = text
    return dict(groups)
