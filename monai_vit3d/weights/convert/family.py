"""Family: a kind of checkpoint, how it is recognised, the options that its tensors show, and its key mapping."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .key_table import KeyTable

State = Mapping[str, Tensor]
Patch = tuple[int, int, int]
BackboneOptions = tuple[dict[str, Any], tuple[str, ...]]
Renamed = tuple[dict[str, Tensor], dict[str, str]]


def _same_names(state: State, patch: Patch) -> Renamed:
    return dict(state), {}


def all_of_it(state: State) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return all tensors as the encoder's, and nothing left out."""
    return dict(state), ()


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint.

    Attributes:
        name: for ``family=`` and reports.
        matches: whether a state dict is of this family, by its keys and shapes.
        encoder: the tensors of the encoder and its head, and the keys of everything else.
        options: the keywords of :class:`VisionTransformer3D` that these tensors show (given the patch, where no
            tensor shows it), and which of them are assumed.
        to_our_keys: these tensors under the keys of :class:`VisionTransformer3D`, and where renamed ones come from.
        rope: the rotary positions, by the encoder's tensors, all keywords, and the grid that the weights were trained
            on; None where there are none or :attr:`options` has them.
        fixed_positions: the table of positions that the files do not hold, by the grid and the width; None where they
            hold theirs.
        back: tensors under our keys, and the periods of an axis' rotary pairs, under theirs; None where there is no
            way back.
    """

    name: str
    matches: Callable[[State], bool]
    encoder: Callable[[State], tuple[dict[str, Tensor], tuple[str, ...]]] = all_of_it
    options: Callable[[State, Patch | None], BackboneOptions] = lambda state, patch: ({}, ())
    to_our_keys: Callable[[State, Patch], Renamed] = _same_names
    rope: Callable[[State, Mapping[str, Any], Patch], Any] | None = None
    fixed_positions: Callable[[Patch, int], Tensor] | None = None
    back: Callable[[State, Tensor | None], dict[str, Tensor]] | None = None


@dataclass(frozen=True)
class KeyLayout:
    """A published layout of which a :class:`Family` is made: a table of names, and what it does not say.

    Attributes:
        name: of the family.
        matches: as of the family.
        table: the names.
        options: the keywords, by the tensors under our names, those under theirs, and the patch where it is known.
        left_out: names of what is no part of the encoder's computation.
        adjust: changes tensors and origins under our names in place, after the table; for what no renaming does.
        rope: as of the family.
        fixed_positions: as of the family.
        unadjust: the way back of ``adjust``, on a dict of its own; None where there is no way back.
        check: refuses tensors that contradict each other.
        read: names of tensors that are read for ``options`` and ``rope``, and are none of the network's.
        periods: where the rotary positions' periods are written on the way back; "" for nowhere.
    """

    name: str
    matches: Callable[[State], bool]
    table: KeyTable
    options: Callable[[State, State, Patch | None], BackboneOptions]
    left_out: str = r"mask_token$"
    adjust: Callable[[dict[str, Tensor], dict[str, str]], None] = lambda state, origins: None
    rope: Callable[[State, Mapping[str, Any], Patch], Any] | None = None
    fixed_positions: Callable[[Patch, int], Tensor] | None = None
    unadjust: Callable[[dict[str, Tensor]], None] | None = None
    check: Callable[[State], None] = lambda state: None
    read: str = r"(?!)"
    periods: str = ""

    def family(self) -> Family:
        """Return the row of the table of families."""
        return Family(
            self.name,
            self.matches,
            self._encoder,
            lambda state, patch: self.options(self._named(state)[0], state, patch),
            lambda state, patch: self._named(state),
            self.rope,
            self.fixed_positions,
            None if self.unadjust is None else self._back,
        )

    def _encoder(self, state: State) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        self.check(state)
        read = tuple(key for key in state if re.match(self.read, key))
        left_out = tuple(key for key in state if re.match(self.left_out, key))
        return {key: value for key, value in state.items() if key not in left_out}, (*left_out, *read)

    def _named(self, state: State) -> Renamed:
        own = {key: value for key, value in state.items() if not re.match(self.read, key)}
        named, origins = self.table.to_ours(own)
        self.adjust(named, origins)
        return named, origins

    def _back(self, state: State, periods: Tensor | None) -> dict[str, Tensor]:
        own = dict(state)
        if self.unadjust is not None:
            self.unadjust(own)
        more = {self.periods: periods} if self.periods and periods is not None else {}
        return {**self.table.to_theirs(own), **more}


def has_timms_layout(state: State, axes: int) -> bool:
    """Return whether a state dict has timm's names and a patch kernel of so many axes."""
    kernel = state.get("patch_embed.proj.weight")
    return kernel is not None and kernel.dim() == 2 + axes and "blocks.0.norm1.weight" in state
