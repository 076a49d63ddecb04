"""What became of each tensor of weights that were made for another network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..networks import VisionTransformer3D


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor, by key.

    Attributes:
        loaded: the network's keys whose tensors came as they are.
        converted: the network's keys whose tensors were changed, and how.
        initialised: the network's keys for which nothing came; they keep their random start.
        unused: keys that came and that the network has no place for.
        assumed: what no tensor shows, and what was taken in its place.
    """

    loaded: tuple[str, ...] = ()
    converted: dict[str, str] = field(default_factory=dict)
    initialised: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    def __str__(self) -> str:
        changed = "; ".join(f"{key}: {how}" for key, how in self.converted.items())
        return (
            f"{len(self.loaded)} loaded, {len(self.converted)} converted ({changed}), initialised: "
            f"{', '.join(self.initialised) or 'none'}, unused: {', '.join(self.unused) or 'none'}"
            + (f", assumed: {', '.join(self.assumed)}" if self.assumed else "")
        )

    def with_origins(self, origins: Mapping[str, str], dropped: tuple[str, ...]) -> LoadReport:
        """The report with what was done before keys had the names that it knows.

        Args:
            origins: the network's keys, and what they were made from.
            dropped: keys that came and that went no further.
        """
        said = {key: [origins[key]] for key in (*self.loaded, *self.converted) if key in origins}
        for key, how in self.converted.items():
            said.setdefault(key, []).append(how)
        return LoadReport(
            loaded=tuple(key for key in self.loaded if key not in said),
            converted={key: ", ".join(parts) for key, parts in said.items()},
            initialised=self.initialised,
            unused=(*(origins.get(key, key).removeprefix("from ") for key in self.unused), *dropped),
            assumed=self.assumed,
        )


class Inflated(NamedTuple):
    """A 3D network, and what became of each tensor."""

    network: VisionTransformer3D
    report: LoadReport
