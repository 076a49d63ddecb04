"""Read a bundle's config file as MONAI does, after a check that its size and depth are bounded."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai_vit3d.data.errors import BundleError
from monai_vit3d.data.files import read_regular

MAX_CONFIG_BYTES = 8 * 2**20
MAX_CONFIG_DEPTH, MAX_CONFIG_ITEMS = 60, 200_000  # with every YAML alias written out

logger = logging.getLogger(__name__)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML config.

    Args:
        path: the file.

    Raises:
        BundleError: not a regular file, too large or too deep (also by YAML aliases, or aliases inside themselves), or
            not a config.
    """
    try:
        raw = read_regular(path, MAX_CONFIG_BYTES)
        with warnings.catch_warnings(record=True) as duplicates:
            warnings.simplefilter("always")
            content = _parse(raw.decode("utf-8-sig"), is_json=path.suffix.lower() == ".json")
        violation = _nesting_violation(content)
        if violation or not isinstance(content, dict):
            raise ValueError(violation or f"{type(content).__name__} at the top, where names with values are expected")
    except Exception as error:  # of YAML's and JSON's readers, and of its own constructors
        reason = " ".join(str(error).split())
        raise BundleError(f"{path}: not a readable config ({reason}). Fetch the bundle again.") from error
    for warning in duplicates:
        logger.warning("%s: %s; the last one counts", path, warning.message)
    return content


def _parse(text: str, is_json: bool) -> Any:
    from monai.bundle.config_parser import CheckKeyDuplicatesYamlLoader, check_key_duplicates

    if is_json:
        return json.loads(text, object_pairs_hook=check_key_duplicates)
    import yaml

    violation = _alias_violation(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    if violation:
        raise ValueError(violation)
    return yaml.load(text, CheckKeyDuplicatesYamlLoader)


def _alias_violation(events: Iterator[Any]) -> str:
    """Say why a YAML text must not be built, or "": a few lines of aliases can stand for 10^9 items."""
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
        if size > MAX_CONFIG_ITEMS or len(opened) > MAX_CONFIG_DEPTH:
            limits = f"more than {MAX_CONFIG_ITEMS} items with all aliases written out"
            return f"{limits}, or nested deeper than {MAX_CONFIG_DEPTH}"
    return ""


def _nesting_violation(content: Any) -> str:
    """Say why a config is too large or too deep for MONAI, which walks it recursively, or ""."""
    waiting, count = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > MAX_CONFIG_ITEMS or depth > MAX_CONFIG_DEPTH:
            return f"more than {MAX_CONFIG_ITEMS} items, or nested deeper than {MAX_CONFIG_DEPTH}"
        if isinstance(value, dict | list):
            waiting += [(part, depth + 1) for part in (value.values() if isinstance(value, dict) else value)]
    return ""
