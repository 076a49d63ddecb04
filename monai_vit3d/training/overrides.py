"""Check the values that a user sets in a training config before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.nearest import did_you_mean

_SET_BY_ARGUMENT = {"bundle_root": "bundle=", "device": "device=", "fold": "fold=", "strict": "strict="}
_SEPARATOR = "::"


def checked_overrides(parser: ConfigParser, overrides: Mapping[str, Any], config: Path) -> dict[str, Any]:
    """Return the values to set, by id; MONAI would add an entry of a mistyped name, which nothing reads.

    Args:
        parser: of the config as it is.
        overrides: values by id, as ``train::dataloader::num_workers``.
        config: the file, for messages.

    Raises:
        UsageError: an id that the config does not have, one that an argument sets, or a value that is no number where
            a number stands. A new entry is allowed below the top, where it is an argument that is not given.
    """
    return {name: _checked(parser, name.replace("#", _SEPARATOR), value, config) for name, value in overrides.items()}


def _checked(parser: ConfigParser, name: str, value: Any, config: Path) -> Any:
    if name in _SET_BY_ARGUMENT:
        raise UsageError(f"overrides={name}: set by {_SET_BY_ARGUMENT[name]}. Leave it out.")
    if name not in parser:
        holder = name.rpartition(_SEPARATOR)[0]
        inside = parser.get(holder) if holder and holder in parser else None
        if not isinstance(inside, dict):
            raise UsageError(f"overrides={name}: {config} has no such entry.{_hint(parser, name)}")
        return value
    return _as_number(name, value, config) if _is_number(parser[name]) else value


def _hint(parser: ConfigParser, name: str) -> str:
    keys = [key for key, entry in parser.get().items() if not key.startswith("_")]
    plain = [key for key in keys if not isinstance(parser[key], dict | list)]
    return did_you_mean(name, keys) or f" Expected one of {', '.join(plain)}, or an id below these."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_number(name: str, value: Any, config: Path) -> Any:
    """Return the value if it can stand for a number; YAML reads 1e-4, without a point, as a text."""
    if value is None or _is_number(value) or (isinstance(value, str) and value[:1] in "$@%"):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"overrides={name}: {value!r}; {config} has a number there. Give a number.") from None
