"""What a bundle says of itself, read without torch or MONAI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.errors import BundleError
from .trained_on import TrainedOn, read_trained_on


@dataclass(frozen=True)
class Metadata:
    """What a bundle says of itself in configs/metadata.json; the file may be missing.

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
        """Images that make one input."""
        formats = self.content.get("network_data_format", {}).get("inputs", {})
        return int(formats.get("image", next(iter(formats.values()), {})).get("num_channels", 1))

    @property
    def input_names(self) -> dict[int, str]:
        """Input channel to name."""
        formats = self.content.get("network_data_format", {}).get("inputs", {})
        channels = formats.get("image", next(iter(formats.values()), {})).get("channel_def", {})
        return {int(k): str(v) for k, v in channels.items() if str(k).isdigit()}

    @property
    def classifies(self) -> bool:
        """Whether the answer is a row of numbers for a volume instead of a map."""
        pred = self._pred
        return pred.get("format") in ("classes", "probability_vector") or pred.get("type") == "probabilities"

    @property
    def channel_names(self) -> dict[int, str]:
        """Output channel, or label value, to name."""
        return {int(k): str(v) for k, v in self._pred.get("channel_def", {}).items() if str(k).isdigit()}

    @cached_property
    def trained_on(self) -> TrainedOn:
        """What new cases are compared with."""
        return read_trained_on(self.content.get("trained_on"))

    @property
    def _pred(self) -> Mapping[str, Any]:
        outputs = self.content.get("network_data_format", {}).get("outputs", {})
        return outputs.get("pred", next(iter(outputs.values()), {}))


def read_metadata(root: Path) -> Metadata:
    """What a bundle says of itself.

    Raises:
        BundleError: configs/metadata.json is not JSON.
    """
    path = root / "configs" / "metadata.json"
    if not path.is_file():
        return Metadata(root.resolve().name, "unknown")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Metadata(str(content.get("name", root.resolve().name)), str(content.get("version", "unknown")), content)
        # of the shape that they are read in
        _ = found.channels, found.classifies, found.channel_names, found.input_names, found.trained_on
        return found
    except (ValueError, AttributeError, TypeError) as error:
        raise BundleError(
            f"{path}: not what MONAI's metadata.json holds ({error}). Correct that entry, or fetch it again."
        ) from error
