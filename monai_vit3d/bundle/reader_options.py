"""Options that a bundle's LoadImaged gives to its reader: each is obeyed, irrelevant or refused, never ignored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader, NibabelReader, NumpyReader, NvImgCodecPydicomReader, PILReader, PydicomReader
from monai.data.image_reader import ITKReader, NrrdReader
from monai.transforms import LoadImaged

from monai_vit3d.data import NiftiReader
from monai_vit3d.data.errors import BundleError


class ITKOptions(ImageReader):
    """The options of MONAI's ITKReader without the itk package: files are read by the pipeline itself."""

    def __init__(
        self,
        channel_dim: str | int | None = None,
        series_name: str = "",
        reverse_indexing: bool = False,
        series_meta: bool = False,
        affine_lps_to_ras: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.channel_dim, self.series_name, self.reverse_indexing = channel_dim, series_name, reverse_indexing
        self.series_meta, self.affine_lps_to_ras, self.kwargs = series_meta, affine_lps_to_ras, kwargs

    def verify_suffix(self, filename: Any) -> bool:
        """Accept nothing: it reads no file."""
        return False

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Refuse: it reads no file."""
        raise NotImplementedError(f"{type(self).__name__} holds options only.")

    def get_data(self, img: Any) -> Any:
        """Refuse: it reads no file."""
        raise NotImplementedError(f"{type(self).__name__} holds options only.")


@dataclass(frozen=True)
class ReaderOption:
    """An option of a reader.

    Args:
        served: whether a value gives the network here what it would get from MONAI.
        refusal: why another value is not served, and what to do.
    """

    served: Callable[[Any], bool]
    refusal: str = ""


def _any(value: Any) -> bool:
    return True


def _no_axis(value: Any) -> bool:
    return value in (None, "no_channel") or (isinstance(value, float) and math.isnan(value))


def _unset(value: Any) -> bool:
    return value in (None, "", ())


_ONE_FILE_A_CHANNEL = "channels within one file are not read; name a file for each channel in a CSV or JSON list"
_SERIES = "every series of a folder is a case of its own; give the folder of the one that is meant"
READER_OPTIONS: dict[str, ReaderOption] = {
    # irrelevant: the same voxels on the same grid whatever the value
    "squeeze_non_spatial_dims": ReaderOption(_any),  # axes of 1 behind the third are dropped while reading
    "series_meta": ReaderOption(_any),
    "prune_metadata": ReaderOption(_any),
    "to_gpu": ReaderOption(_any),
    "mmap": ReaderOption(_any),
    "keep_file_open": ReaderOption(_any),
    # obeyed
    "as_closest_canonical": ReaderOption(_any),
    "max_voxels": ReaderOption(_any),
    "channels": ReaderOption(_any),  # a case's images are compared with metadata.json
    # refused unless it is the default
    "channel_dim": ReaderOption(_no_axis, _ONE_FILE_A_CHANNEL),
    "reverse_indexing": ReaderOption(
        lambda value: not value,
        "the array's axes come in reverse order, and the affine does not follow; leave it out and add a Transposed",
    ),
    "series_name": ReaderOption(_unset, _SERIES),
    "fname_regex": ReaderOption(_unset, _SERIES),
    "label_dict": ReaderOption(_unset, "images are read, not DICOM segmentations; leave it out"),
    "affine_lps_to_ras": ReaderOption(
        bool, "affines are in RAS here; leave it out and turn the image by an Orientationd"
    ),
    "swap_ij": ReaderOption(bool, "slices come transposed, and the affine does not follow; leave it out"),
    "index_order": ReaderOption(lambda value: value == "F", "the array's axes come in reverse order; leave it out"),
    "labels": ReaderOption(lambda value: not value, "images are read, not label maps; leave it out"),
    "volume": ReaderOption(_unset, "which volume of a 4D file is the user's choice: volume=N"),
}

# readers of images that the pipeline reads itself, by exact class: a subclass may do anything
MONAI_READERS: tuple[type, ...] = (
    NibabelReader, ITKReader, ITKOptions, PydicomReader, NvImgCodecPydicomReader, NrrdReader, NiftiReader,
)  # fmt: skip
# readers of files that no case has; MONAI falls back on the others
_PASSED_OVER: tuple[type, ...] = (NumpyReader, PILReader)


def without_itk(config: Any) -> Any:
    """Replace ITKReader in a config by its options, so that the itk package is not needed.

    Args:
        config: the whole config, as MONAI's parser holds it; lists and dictionaries are changed in place.
    """
    stand_in = f"{__name__}.{ITKOptions.__name__}"
    for key, value, holder in _entries(config):
        if key in ("reader", "_target_") and _is_itk(value, lower=key == "reader"):
            holder[key] = stand_in
        elif key == "reader" and isinstance(value, list):
            holder[key] = [stand_in if _is_itk(name, lower=True) else name for name in value]
        elif key == "reader" and isinstance(value, str) and value.startswith("@"):
            name = value[1:]
            if isinstance(config, dict) and _is_itk(config.get(name), lower=True):
                config[name] = stand_in
    return config


def _is_itk(value: Any, lower: bool) -> bool:
    name = value.rpartition(".")[2] if isinstance(value, str) and value[:1] not in "$@%" else ""
    return (name.lower() if lower else name) in (("itkreader",) if lower else ("ITKReader",))


def _entries(config: Any) -> Iterator[tuple[Any, Any, Any]]:
    waiting = [config]
    while waiting:
        holder = waiting.pop()
        pairs = list(holder.items() if isinstance(holder, dict) else enumerate(holder))
        for key, value in pairs:
            yield key, value, holder
            if isinstance(value, dict | list):
                waiting.append(value)


def reader_options(step: LoadImaged) -> dict[str, Any]:
    """Read the options of the reader that MONAI would use.

    Args:
        step: of a bundle's preprocessing.

    Raises:
        BundleError: a reader that is not known, or an option that is not served.
    """
    loader = step._loader
    if loader.dtype is None or not _is_number(loader.dtype):
        raise BundleError(f"LoadImaged(dtype={loader.dtype}): not served; images are float32. Leave it out.")
    readers: list[ImageReader] = loader.readers
    reader = next(r for r in readers if type(r) is NibabelReader) if loader.auto_select else readers[-1]
    if type(reader) in _PASSED_OVER:
        return {}
    if type(reader) not in MONAI_READERS:
        raise BundleError(
            f"LoadImaged(reader={type(reader).__name__}): a reader of the bundle's own cannot be obeyed, files are "
            "read by vit3d itself. Use NibabelReader or ITKReader, or run the bundle by monai.bundle run."
        )
    options = {name: getattr(reader, name) for name in READER_OPTIONS if hasattr(reader, name)}
    options |= getattr(reader, "kwargs", {})
    for name, value in options.items():
        option = READER_OPTIONS.get(name)
        if option is None:
            raise BundleError(f"LoadImaged({name}={value!r}): not known to vit3d, so not served. Leave it out.")
        if not option.served(value):
            raise BundleError(f"LoadImaged({name}={value!r}): not served: {option.refusal}.")
    return options


def _is_number(dtype: Any) -> bool:
    if isinstance(dtype, torch.dtype):
        return not dtype.is_complex and dtype is not torch.bool
    return np.dtype(dtype).kind in "iuf"
