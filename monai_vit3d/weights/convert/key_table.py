"""Another project's names of a Vision Transformer's tensors under ours, and back, by one table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from monai_vit3d.data.errors import WeightsError

Renames = Sequence[tuple[str, str]]
OUR_BLOCK = re.compile(r"blocks\.(\d+)\.")


class Joined(NamedTuple):
    """One tensor of a block of ours, which another project keeps in parts.

    Attributes:
        ours: its name in a block.
        parts: the other project's names, in the order of the rows; None for rows that it does not have, which are 0.
        shares: of the rows, for each part.
    """

    ours: str
    parts: tuple[str | None, ...]
    shares: tuple[int, ...]


def apart(bias_of_keys: bool = True) -> tuple[Joined, ...]:
    """Queries, keys and values as ``attn.q_proj``, ``attn.k_proj``, ``attn.v_proj``.

    Args:
        bias_of_keys: whether keys have a bias if queries have one.
    """
    weights, biases = ([f"attn.{part}_proj.{kind}" for part in "qkv"] for kind in ("weight", "bias"))
    return (
        Joined("attn.qkv.weight", tuple(weights), (1, 1, 1)),
        Joined("attn.qkv.bias", (biases[0], biases[1] if bias_of_keys else None, biases[2]), (1, 1, 1)),
    )


@dataclass(frozen=True)
class KeyTable:
    """Names of two projects, other than those that are the same.

    Attributes:
        outside: beginnings of names outside the blocks: theirs, ours. On the way back the first that fits is taken.
        block: what stands before a block's number in their names.
        inside: beginnings of names in a block: theirs, ours.
        joined: tensors of ours that are several of theirs; the parts' names are those that ``inside`` gives.
        other_blocks: a pattern of other names for the blocks, its only group the number.
    """

    outside: Renames = ()
    block: str = "blocks."
    inside: Renames = ()
    joined: tuple[Joined, ...] = ()
    other_blocks: str = r"(?!)()"

    def to_ours(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return tensors under our names, and from which of theirs those were made that had another name.

        Names that the table does not have stay as they are, so that whoever loads them refuses them.

        Raises:
            WeightsError: two tensors would have one name.
        """
        pattern = re.compile(rf"{re.escape(self.block)}(\d+)\.|{self.other_blocks}")
        named: dict[str, Tensor] = {}
        origins: dict[str, str] = {}
        for key, value in state.items():
            match = pattern.match(key)
            if match is None:
                name = _renamed(key, self.outside)
            else:
                name = f"blocks.{match[1] or match[2]}.{_renamed(key[match.end() :], self.inside)}"
            if name in named:
                raise WeightsError(f"{key} and {origins[name]} would both be {name}.")
            named[name], origins[name] = value, key
        for at in sorted({match[0] for key in named if (match := OUR_BLOCK.match(key))}):
            for row in self.joined:
                _join(named, origins, at, row)
        return named, {name: f"from {origin}" for name, origin in origins.items() if origin != name}

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of ours under their names.

        Raises:
            WeightsError: a tensor has values for which they have no place, as a bias of keys.
        """
        theirs: dict[str, Tensor] = {}
        for key, value in state.items():
            match = OUR_BLOCK.match(key)
            if match is None:
                theirs[_renamed(key, [pair[::-1] for pair in self.outside])] = value
                continue
            inner = key[match.end() :]
            row = next((row for row in self.joined if row.ours == inner), None)
            pieces = {inner: value} if row is None else _split(value, row, key)
            for name, piece in pieces.items():
                own = _renamed(name, [pair[::-1] for pair in self.inside])
                theirs[f"{self.block}{match[1]}.{own}"] = piece
        return theirs


def _renamed(key: str, renames: Renames) -> str:
    return next((new + key[len(old) :] for old, new in renames if key.startswith(old)), key)


def _join(named: dict[str, Tensor], origins: dict[str, str], at: str, row: Joined) -> None:
    """Put a block's parts into one tensor, where all of them are there."""
    parts = [None if part is None else f"{at}{part}" for part in row.parts]
    present = [part for part in parts if part is not None]
    if not all(part in named for part in present):
        return
    if f"{at}{row.ours}" in named:
        raise WeightsError(f"{at}{row.ours} is there, and so are {' and '.join(present)}, which would be it.")
    first = named[present[0]]
    one = len(first) // row.shares[parts.index(present[0])]
    tensors = [
        first.new_zeros(one * share, *first.shape[1:]) if part is None else named.pop(part)
        for part, share in zip(parts, row.shares)
    ]
    named[f"{at}{row.ours}"] = torch.cat(tensors)
    origins[f"{at}{row.ours}"] = " and ".join("zeros" if part is None else origins.pop(part) for part in parts)


def _split(value: Tensor, row: Joined, key: str) -> dict[str, Tensor]:
    one = len(value) // sum(row.shares)
    pieces = dict(zip(row.parts, value.split([one * share for share in row.shares])))
    rest = pieces.pop(None, None)
    if rest is not None and bool(rest.any()):
        raise WeightsError(f"{key}: it has values where that layout has no place (a bias of the keys).")
    return {name: piece.clone() for name, piece in pieces.items() if name is not None}
