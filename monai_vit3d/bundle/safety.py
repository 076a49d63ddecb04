"""What a stranger's bundle may say: a small, harmless part of MONAI's config language, checked before anything runs.

MONAI evaluates every ``$`` expression with Python's ``eval`` and calls whatever ``_target_`` names, so a config is a
program. :func:`check_config` reads it as MONAI would, with MONAI's own parser of ids and references, and refuses
whatever the tables of :mod:`monai_vit3d.bundle.allowlist` do not allow.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..data.errors import BundleError
from . import allowlist as words
from .safe_expression import expression_violation, import_violation, is_lone_import

MAX_DEPTH, MAX_ITEMS, SHOWN = 40, 20_000, 5
_ADVICE = "Read the bundle; if you trust it, run without safe=True."
_BAD_IN_KEYS = ":#@%$"  # with them a key could stand for another item's id
_RENAMED_BY_MONAI = "optional_packages_version"  # MONAI moves its content to another key

SafetyFinding = tuple[str, Any, str]


def check_config(config: Mapping[str, Any], roots: Sequence[str]) -> None:
    """Refuse a bundle's config unless all that MONAI would run for ``roots`` is known to be harmless.

    Check the very dictionary that is handed to ``ConfigParser`` afterwards, with all overrides in it: a file that is
    read again may have changed. Time and memory are not limited.

    Args:
        config: as ``ConfigParser.load_config_file`` gives it; it is not changed.
        roots: ids that will be resolved. Import statements run wherever they stand, and are checked everywhere. An
            id that is not in the config is passed over: nothing can run for it.

    Raises:
        BundleError: something is not allowed; the message names its id, what stood there and what is allowed.
    """
    _refuse(list(_shape_findings(config)))
    parser = _parsed(config)
    items = parser.ref_resolver.items
    findings = list(_import_findings(items))
    fed: list[str] = []
    for root in sorted(dict.fromkeys([*roots, "imports"]), key=lambda name: name != "preprocessing"):
        root = parser.ref_resolver.normalize_id(root)
        if root in items:
            findings += _root_findings(parser, root, fed)
    _refuse(findings)


def drop_imports(config: Any) -> None:
    """Take import statements of modules that are not allowed out of a config, so that they are not executed.

    No expression that :func:`check_config` allows can name such a module, so nothing that is resolved misses it.

    Args:
        config: as for :func:`check_config`; it is changed in place. An import becomes None where it stands.
    """
    waiting, seen = [config], set()
    while waiting:
        holder = waiting.pop()
        if not isinstance(holder, dict | list) or id(holder) in seen:
            continue
        seen.add(id(holder))
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            text = value[1:] if isinstance(value, str) and value.startswith("$") else ""
            if "import" in text and is_lone_import(text) and import_violation(text):
                holder[key] = None
            waiting.append(value)


def _refuse(findings: list[SafetyFinding]) -> None:
    if not findings:
        return
    # several roots lead to the same items
    named = [(w if w.isprintable() else repr(w), what, why) for w, what, why in findings]
    lines = list(dict.fromkeys(f"  {where or 'the config'}: {_short(what)}: {why}." for where, what, why in named))
    more = [f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    raise BundleError("not allowed in a bundle with safe=True:", *lines[:SHOWN], *more, _ADVICE)


def _short(what: Any) -> str:
    text = repr(what)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _shape_findings(config: Any) -> Iterator[SafetyFinding]:
    """What MONAI's parser could read in another way than this module, or not come to an end with."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("", config, 0)]
    while waiting:
        where, value, depth = waiting.pop()
        if isinstance(value, str) and value.startswith("%"):
            yield where, value, "macros are not allowed, they read other files; write the content itself"
        if not isinstance(value, dict | list):
            if value is not None and not isinstance(value, words.plain_types()):
                yield where, value, f"a {type(value).__name__}; text, numbers, lists and dictionaries are needed"
            continue
        if id(value) in seen or depth > MAX_DEPTH or len(seen) > MAX_ITEMS:
            yield where, type(value).__name__, f"used twice (a YAML alias), deeper than {MAX_DEPTH}, or too much"
            return
        seen.add(id(value))
        if isinstance(value, dict):
            yield from _key_findings(where, value)
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [(f"{where}::{k}" if where else str(k), v, depth + 1) for k, v in pairs]


def _key_findings(where: str, value: dict[Any, Any]) -> Iterator[SafetyFinding]:
    for key in value:
        text = str(key)
        odd = not text.isprintable() or text != text.strip() or text.startswith("+") or set(text) & set(_BAD_IN_KEYS)
        if not text or odd or type(key) not in (str, int) or text == _RENAMED_BY_MONAI:
            yield where, key, f"a key like this can stand for another id; plain names without {_BAD_IN_KEYS} are needed"
    if len({str(key) for key in value}) < len(value):
        yield where, list(value), "two keys that MONAI takes for one; keys that differ are needed"


def _parsed(config: Mapping[str, Any]) -> Any:
    """MONAI's parser, which has listed every item by its id and evaluated none."""
    from monai.bundle import ConfigParser

    try:
        parser = ConfigParser(copy.deepcopy(dict(config)))
        parser.parse()
    except Exception as error:  # relative ids that leave the config, and whatever else MONAI cannot read
        raise BundleError(f"MONAI cannot read the config ({error}). Correct it.") from error
    return parser


def _import_findings(items: Mapping[str, Any]) -> Iterator[SafetyFinding]:
    """MONAI runs the import statements of all items, whatever is resolved."""
    for where, item in items.items():
        text = item.get_config()
        if isinstance(text, str) and text.startswith("$") and "import" in text:
            fault = import_violation(text[1:])
            if fault:
                yield where, text, fault


def _root_findings(parser: Any, root: str, fed: list[str]) -> list[SafetyFinding]:
    """All that stands in the way of resolving one root.

    SaveImage is passed over where the pipeline takes it out again: it writes where metadata say. So is the LoadImage
    that the pipeline feeds; Invertd may hold it, too, and undoes nothing of it.

    Args:
        parser: of the config.
        root: the entry.
        fed: ids of loaders in the preprocessing's Compose, which is looked through first; they are added.
    """
    resolver, items = parser.ref_resolver, parser.ref_resolver.items
    findings: list[SafetyFinding] = []
    # an item, and the kind of component other than Compose that has it: that one could call it
    waiting, seen = [(root, "")], {(root, "")}
    while waiting:
        where, held = waiting.pop()
        if where not in items:
            findings.append((where, "@" + where, "no such id"))
            continue
        value = items[where].get_config()
        if isinstance(value, dict) and "_target_" in value:
            findings += [(where, what, why) for what, why in _component_violations(parser, value)]
            if "LoadImage" in str(value["_target_"]):
                if root == "preprocessing" and not held:
                    fed.append(where)
                    if len(fed) > 1:
                        findings.append((where, value["_target_"], f"a second one beside {fed[0]}; one is allowed"))
                elif held != "Invertd" or where not in fed:
                    findings.append((where, value["_target_"], "allowed in the Compose of preprocessing only"))
            if "SaveImage" in str(value["_target_"]) and (held or root != "postprocessing"):
                findings.append((where, value["_target_"], "allowed in the Compose of postprocessing only"))
            held = _holder(held, str(value["_target_"]).rpartition(".")[2])
        elif isinstance(value, str) and value.startswith("$"):
            fault = expression_violation(value)
            findings += [(where, value, fault)] if fault else []
            held = "lambda" if "lambda" in value else held
        needed = [(r, held) for r in _next_ids(resolver, value, where) if (r, held) not in seen]
        seen.update(needed)
        waiting += needed[::-1]
    return findings


def _next_ids(resolver: Any, value: Any, where: str) -> list[str]:
    """Ids of an item's own parts, or of what its text refers to; MONAI's own search goes into parts' parts, too."""
    if isinstance(value, dict | list):
        return [inner for _, inner, _ in resolver.iter_subconfigs(where, value)]
    return list(resolver.match_refs_pattern(value)) if isinstance(value, str) else []


def _holder(held: str, name: str) -> str:
    """What holds the parts of a component of this name, which itself is held by another one."""
    if name == "Compose":
        return held
    return "Invertd" if not held and name in ("Invertd", "InvertD", "InvertDict") else name


def _component_violations(parser: Any, component: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    found, fault = _located(parser, component["_target_"])
    if fault:
        yield component["_target_"], fault
        return
    name = getattr(found, "__name__", "")
    mode = component.get("_mode_", "default")
    if mode != "default" and not (mode == "callable" and words.may_be_handed_on(found)):
        yield f"_mode_: {mode}", "'default' is needed; 'callable' is for torch.nn and monai_vit3d.layers only"
    saves, loads = name.startswith("SaveImage"), name.startswith("LoadImage")
    for key, raw in component.items():
        value = _followed(parser, raw)
        if key in words.SPECIAL_KEYS:
            continue
        if str(key).startswith("_"):
            yield f"{key}: {raw}", f"of such keys only {', '.join(sorted(words.SPECIAL_KEYS))} are allowed"
        elif saves and not words.harmless_saving(key, raw, value):
            yield f"{key}: {raw}", "SaveImage may only write NIfTI files into @output_dir, named by their inputs"
        elif loads and key not in words.LOAD_ARGUMENTS:
            yield f"{key}: {raw}", f"LoadImage may have {', '.join(sorted(words.LOAD_ARGUMENTS))}"
        elif ("pretrain" in str(key).lower() or "url" in str(key).lower()) and value:
            yield f"{key}: {raw}", "nothing is fetched; weights come from the bundle's own file"
        elif key == "reader" and not _is_reader(parser, value):
            yield f"{key}: {raw}", f"one of {', '.join(sorted(words.ALLOWED_READERS))} is needed"


def _located(parser: Any, target: Any) -> tuple[Any, str]:
    """What MONAI would call for a target, and why it may not be."""
    from pydoc import locate  # MONAI's own way from a dotted name to an object

    if not isinstance(target, str) or not words.DOTTED.fullmatch(target) or "__" in target:
        return None, "the plain name of a class is needed"
    modules = parser.locator.get_component_module_name(target)
    first = modules[0] if isinstance(modules, list) else modules
    path = f"{first}.{target}" if first else target
    if path in words.TARGET_FUNCTIONS:
        return locate(path), ""
    if not path.startswith(words.FILE_FUNCTIONS):
        return None, f"not in a room that is allowed: {', '.join(words.FILE_FUNCTIONS)}"
    try:
        found = locate(path)
    except Exception as error:  # whatever a module's import raises
        return None, f"it cannot be imported ({error})"
    return found, words.class_violation(found)


def _followed(parser: Any, value: Any) -> Any:
    """What a chain of plain references ends in."""
    items = parser.ref_resolver.items
    for _ in range(MAX_DEPTH):
        if not isinstance(value, str) or not value.startswith("@"):
            break
        key = parser.ref_resolver.normalize_id(value[1:])
        if key not in items:
            break
        value = items[key].get_config()
    return value


def _is_reader(parser: Any, value: Any) -> bool:
    if isinstance(value, dict):
        found, _ = _located(parser, value.get("_target_"))
        return getattr(found, "__name__", "") in words.READER_CLASSES
    return value is None or (isinstance(value, str | os.PathLike) and str(value) in words.ALLOWED_READERS)
