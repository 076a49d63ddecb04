"""A bundle's metadata.json, read without torch or MONAI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from monai_vit3d.data.errors import BundleError
from monai_vit3d.data.files import read_regular
from monai_vit3d.data.json_shape import ANY_KEY, shape_violation

from .trained_on import TrainedOn, read_trained_on

METADATA_FILE = Path("configs", "metadata.json")
MAX_METADATA_BYTES = 8 * 2**20
MAX_CHANNELS = 1000
_INPUT = {"num_channels": int, "channel_def": {ANY_KEY: str}}
_OUTPUT = {"format": str, "type": str, "channel_def": {ANY_KEY: str}}
# what is read here; the rest of the file may hold anything
_SHAPE = {
    "name": str,
    "version": (str, int, float),
    "network_data_format": {"inputs": {ANY_KEY: _INPUT}, "outputs": {ANY_KEY: _OUTPUT}},
}


@dataclass(frozen=True)
class Metadata:
    """The content of a bundle's configs/metadata.json; the file may be missing.

    Args:
        name: of the bundle, or of its folder.
        version: of the bundle, or ``"unknown"``.
        content: the whole file.
    """

    name: str
    version: str
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def channels(self) -> int:
        """Number of images (channels) that make one input."""
        formats = self.content.get("network_data_format", {}).get("inputs", {})
        return int(formats.get("image", next(iter(formats.values()), {})).get("num_channels", 1))

    @property
    def input_names(self) -> dict[int, str]:
        """Input channel to name."""
        formats = self.content.get("network_data_format", {}).get("inputs", {})
        channels = formats.get("image", next(iter(formats.values()), {})).get("channel_def", {})
        return {int(k): str(v) for k, v in channels.items() if k.isascii() and k.isdigit()}

    @property
    def takes_masks(self) -> bool:
        """Whether its images are masks or labels, which otherwise are taken for a mistake."""
        formats = self.content.get("network_data_format", {}).get("inputs", {})
        return formats.get("image", next(iter(formats.values()), {})).get("format") == "segmentation"

    @property
    def classifies(self) -> bool:
        """Whether the network classifies whole volumes instead of giving a map."""
        pred = self._pred
        return pred.get("format") in ("classes", "probability_vector") or pred.get("type") == "probabilities"

    @property
    def channel_names(self) -> dict[int, str]:
        """Output channel, or label value, to name."""
        return {int(k): str(v) for k, v in self._pred.get("channel_def", {}).items() if k.isascii() and k.isdigit()}

    @property
    def output_channels(self) -> int | None:
        """Channels of the network's output; None where the bundle does not say."""
        count = self._pred.get("num_channels")
        return count if isinstance(count, int) and 0 < count <= MAX_CHANNELS else None

    @cached_property
    def trained_on(self) -> TrainedOn:
        """Ranges over the training cases, with which new cases are compared."""
        return read_trained_on(self.content.get("trained_on"))

    @property
    def _pred(self) -> Mapping[str, Any]:
        outputs = self.content.get("network_data_format", {}).get("outputs", {})
        return outputs.get("pred", next(iter(outputs.values()), {}))


def read_metadata(root: Path) -> Metadata:
    """Read a bundle's configs/metadata.json; without the file, the folder's name is the bundle's.

    Raises:
        BundleError: the file is not JSON, or not of the shape that MONAI's metadata have.
    """
    path = root / METADATA_FILE
    folder = root.resolve().name
    if not path.is_file():
        return Metadata(folder, "unknown")
    try:
        content = json.loads(read_regular(path, MAX_METADATA_BYTES).decode("utf-8-sig"))
        violation = shape_violation(content, _SHAPE, "it") or _number_violation(content)
        if violation:
            raise ValueError(violation)
        metadata = Metadata(content.get("name") or folder, str(content.get("version", "unknown")), content)
        _ = metadata.trained_on  # raises if it is malformed
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError, OSError) as error:
        raise BundleError(
            f"{path}: not what MONAI's metadata.json holds ({error}). Correct that entry, or fetch it again."
        ) from error
    return metadata


def _number_violation(content: Mapping[str, Any]) -> str:
    """Say what is wrong with the numbers of channels and labels, or ""."""
    formats = content.get("network_data_format", {})
    for place, one in formats.get("inputs", {}).items():
        # 0 is a generator's latent code
        if not 0 <= one.get("num_channels", 1) <= MAX_CHANNELS:
            return f"inputs.{place}.num_channels is {one['num_channels']}; 0 to {MAX_CHANNELS} is expected"
    for kind in ("inputs", "outputs"):
        for place, one in formats.get(kind, {}).items():
            for key in one.get("channel_def", {}):
                if len(key) > 9 and key.isdigit():
                    return f"{kind}.{place}.channel_def has a number of {len(key)} digits"
    return ""
