"""A bundle's config file as MONAI reads it, after a check that reading and walking it come to an end."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..data.errors import BundleError
from ..data.files import read_regular

MAX_CONFIG_BYTES = 8 * 2**20
MAX_DEPTH, MAX_ITEMS = 60, 200_000  # with every YAML alias written out

logger = logging.getLogger(__name__)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML config.

    Args:
        path: the file.

    Raises:
        BundleError: no regular file, too large, too deep, with aliases that grow beyond measure or hold themselves, or
            no config.
    """
    try:
        raw = read_regular(path, MAX_CONFIG_BYTES)
        with warnings.catch_warnings(record=True) as odd:
            warnings.simplefilter("always")
            content = _parse(raw.decode("utf-8-sig"), is_json=path.suffix.lower() == ".json")
        fault = _nesting_violation(content)
        if fault or not isinstance(content, dict):
            raise ValueError(fault or f"{type(content).__name__} at the top, where names with values are expected")
    except Exception as error:  # of YAML's and JSON's readers, and of its own constructors
        reason = " ".join(str(error).split())
        raise BundleError(f"{path}: not a readable config ({reason}). Fetch the bundle again.") from error
    for warning in odd:
        logger.warning("%s: %s; the last one counts", path, warning.message)
    return content


def _parse(text: str, is_json: bool) -> Any:
    from monai.bundle.config_parser import CheckKeyDuplicatesYamlLoader, check_key_duplicates

    if is_json:
        return json.loads(text, object_pairs_hook=check_key_duplicates)
    import yaml

    fault = _alias_violation(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    if fault:
        raise ValueError(fault)
    return yaml.load(text, CheckKeyDuplicatesYamlLoader)


def _alias_violation(events: Iterator[Any]) -> str:
    """Why a YAML text may not be built, by its events alone: a few lines of aliases can stand for 10^9 items."""
    from yaml import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []  # anchor and size of each collection that has not ended
    size = 0
    for event in events:
        if isinstance(event, CollectionStartEvent):
            opened.append((event.anchor, size))
            size = 1
        elif isinstance(event, CollectionEndEvent):
            anchor, outer = opened.pop()
            if anchor:
                sizes[anchor] = size
            size += outer
        elif isinstance(event, AliasEvent):
            if event.anchor in {anchor for anchor, _ in opened}:
                line = event.start_mark.line + 1 if event.start_mark else "?"
                return f"line {line}: the alias *{event.anchor} stands inside itself"
            size += sizes.get(event.anchor or "", 1)
        elif isinstance(event, ScalarEvent):
            size += 1
            if event.anchor:
                sizes[event.anchor] = 1
        if size > MAX_ITEMS or len(opened) > MAX_DEPTH:
            return f"more than {MAX_ITEMS} items with all aliases written out, or nested deeper than {MAX_DEPTH}"
    return ""


def _nesting_violation(content: Any) -> str:
    """Why a config may not be walked through: MONAI does so by recursion."""
    waiting, count = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > MAX_ITEMS or depth > MAX_DEPTH:
            return f"more than {MAX_ITEMS} items, or nested deeper than {MAX_DEPTH}"
        if isinstance(value, dict | list):
            waiting += [(one, depth + 1) for one in (value.values() if isinstance(value, dict) else value)]
    return ""
