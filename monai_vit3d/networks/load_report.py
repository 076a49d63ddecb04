"""LoadReport: which tensors of a checkpoint were loaded, converted, missing or unexpected."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .vit3d import VisionTransformer3D


@dataclass(frozen=True)
class LoadReport:
    """Keys of the tensors that were loaded, converted, missing or unexpected, in ``load_state_dict``'s words.

    Attributes:
        loaded: the network's keys whose tensors were copied unchanged.
        converted: the network's keys whose tensors were changed, and how.
        missing: the network's keys without a tensor in the weights; they keep their random initialisation.
        unexpected: keys of the weights that the network does not have.
        assumed: options that no tensor shows, and the values assumed for them.
    """

    loaded: tuple[str, ...] = ()
    converted: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @property
    def initialised(self) -> tuple[str, ...]:
        """Deprecated name of ``missing``."""
        warnings.warn("LoadReport.initialised is now called missing", DeprecationWarning, stacklevel=2)
        return self.missing

    @property
    def unused(self) -> tuple[str, ...]:
        """Deprecated name of ``unexpected``."""
        warnings.warn("LoadReport.unused is now called unexpected", DeprecationWarning, stacklevel=2)
        return self.unexpected

    def __str__(self) -> str:
        """Format the report as one line."""
        changed = "; ".join(f"{key}: {change}" for key, change in self.converted.items())
        return (
            f"{len(self.loaded)} loaded, {len(self.converted)} converted ({changed}), missing: "
            f"{', '.join(self.missing) or 'none'}, unexpected: {', '.join(self.unexpected) or 'none'}"
            + (f", assumed: {', '.join(self.assumed)}" if self.assumed else "")
        )

    @property
    def summary(self) -> str:
        """Count the tensors of each kind, in a few words."""
        counts = (("loaded", self.loaded), ("converted", self.converted), ("missing", self.missing))
        text = ", ".join(f"{len(keys)} {name}" for name, keys in (*counts, ("unexpected", self.unexpected)))
        return text + (f", assumed: {', '.join(self.assumed)}" if self.assumed else "")

    def with_origins(self, origins: Mapping[str, str], dropped: tuple[str, ...]) -> LoadReport:
        """Add what was done to the weights before their keys had the network's names.

        Args:
            origins: the network's keys, and what their tensors were made from.
            dropped: keys of the weights that were left out before.
        """
        changes = {key: [origins[key]] for key in (*self.loaded, *self.converted) if key in origins}
        for key, change in self.converted.items():
            changes.setdefault(key, []).append(change)
        return LoadReport(
            loaded=tuple(key for key in self.loaded if key not in changes),
            converted={key: ", ".join(parts) for key, parts in changes.items()},
            missing=self.missing,
            unexpected=(*(origins.get(key, key).removeprefix("from ") for key in self.unexpected), *dropped),
            assumed=self.assumed,
        )


class Inflated(NamedTuple):
    """A 3D network, and the report on its weights."""

    network: VisionTransformer3D
    report: LoadReport
