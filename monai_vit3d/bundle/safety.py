"""Safe mode: allow only a small, harmless part of MONAI's config language, checked before anything runs.

MONAI evaluates every ``$`` expression with Python's ``eval`` and calls whatever ``_target_`` names, so a config is a
program. :func:`check_config` reads it as MONAI would, with MONAI's own parser of ids and references, and refuses
whatever the tables of :mod:`monai_vit3d.bundle.allowlist` do not list.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from monai_vit3d.data.errors import BundleError

from . import allowlist as words
from .safe_expression import expression_violation, import_violation, is_lone_import

MAX_SAFE_DEPTH, MAX_SAFE_ITEMS, MAX_SHOWN = 40, 20_000, 5
_ADVICE = "Read the bundle; if you trust it, run without safe=True."
_BAD_IN_KEYS = frozenset(":#@%$")  # with them a key could stand for another item's id
_PERCENTILE = re.compile(r"\d{1,2}(\.\d+)?%", re.ASCII)  # a key of what a bundle was trained on; no macro ends so
_RENAMED_BY_MONAI = "optional_packages_version"  # MONAI moves its content to another key, at the top of a config


class SafetyFinding(NamedTuple):
    """A part of a config that is not allowed: its id, its content, and the reason."""

    id: str
    content: Any
    reason: str


def check_config(config: Mapping[str, Any], roots: Sequence[str]) -> None:
    """Refuse a bundle's config unless all that MONAI would run for ``roots`` is known to be harmless.

    Check the very dictionary that is handed to ``ConfigParser`` afterwards, with all overrides in it: a file that is
    read again may have changed. Time and memory are not limited.

    Args:
        config: as ``ConfigParser.load_config_file`` gives it; it is not changed.
        roots: ids that will be resolved. Import statements run wherever they stand, and are checked everywhere. An
            id that is not in the config is passed over: nothing can run for it.

    Raises:
        BundleError: something is not allowed; the message names its id, its content and what is allowed.
    """
    _refuse(list(_shape_findings(config)))
    parser = _parsed(config)
    items = parser.ref_resolver.items
    findings = list(_import_findings(items))
    loaders: list[str] = []
    for root in sorted(dict.fromkeys([*roots, "imports"]), key=lambda name: name != "preprocessing"):
        root = parser.ref_resolver.normalize_id(root)
        if root in items:
            findings += _root_findings(parser, root, loaders)
    _refuse(findings)


def drop_imports(config: Any) -> None:
    """Remove import statements of modules that are not allowed from a config, so that they are not executed.

    No expression that :func:`check_config` allows can name such a module, so nothing that is resolved needs it.

    Args:
        config: as for :func:`check_config`; it is changed in place; such an import becomes None.
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
    lines = list(dict.fromkeys(_line(finding) for finding in findings))
    rest = [f"  and {len(lines) - MAX_SHOWN} more"] if len(lines) > MAX_SHOWN else []
    raise BundleError("not allowed in a bundle with safe=True:", *lines[:MAX_SHOWN], *rest, _ADVICE)


def _line(finding: SafetyFinding) -> str:
    name = finding.id if finding.id.isprintable() else repr(finding.id)
    return f"  {name or 'the config'}: {_shortened(finding.content)}: {finding.reason}."


def _shortened(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _shape_findings(config: Any) -> Iterator[SafetyFinding]:
    """Find what MONAI's parser could read in another way than this module, or could not finish reading."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("", config, 0)]
    while waiting:
        where, value, depth = waiting.pop()
        if isinstance(value, str) and value.startswith("%"):
            yield SafetyFinding(where, value, "macros are not allowed, they read other files; write their content")
        if not isinstance(value, dict | list):
            if value is not None and not isinstance(value, words.plain_types()):
                yield SafetyFinding(
                    where, value, f"a {type(value).__name__}; expected text, numbers, lists and dictionaries"
                )
            continue
        if id(value) in seen or depth > MAX_SAFE_DEPTH or len(seen) > MAX_SAFE_ITEMS:
            yield SafetyFinding(
                where, type(value).__name__, f"used twice (a YAML alias), deeper than {MAX_SAFE_DEPTH}, or too much"
            )
            return
        seen.add(id(value))
        if isinstance(value, dict):
            yield from _key_findings(where, value)
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        waiting += [(f"{where}::{k}" if where else str(k), v, depth + 1) for k, v in pairs]


def _key_findings(where: str, value: dict[Any, Any]) -> Iterator[SafetyFinding]:
    for key in value:
        text = str(key)
        plain = (
            text.isprintable() and text == text.strip() and not text.startswith("+") and not set(text) & _BAD_IN_KEYS
        ) or _PERCENTILE.fullmatch(text)
        if not text or not plain or type(key) not in (str, int) or (text == _RENAMED_BY_MONAI and not where):
            yield SafetyFinding(
                where, key, "a key like this can stand for another id; expected plain names without : # @ % $"
            )
    if len({str(key) for key in value}) < len(value):
        yield SafetyFinding(where, list(value), "two keys that MONAI takes for one; expected keys that differ")


def _parsed(config: Mapping[str, Any]) -> Any:
    """Return MONAI's parser with every item listed by its id, and none evaluated."""
    from monai.bundle import ConfigParser

    from .components import DeferredLocator

    try:
        parser = ConfigParser(copy.deepcopy(dict(config)))
        parser.locator = DeferredLocator()
        parser.parse()
    except Exception as error:  # relative ids that leave the config, and whatever else MONAI cannot read
        raise BundleError(f"MONAI cannot read the config ({error}). Correct it.") from error
    return parser


def _import_findings(items: Mapping[str, Any]) -> Iterator[SafetyFinding]:
    """Find import statements that are not allowed; MONAI runs those of all items, whatever is resolved."""
    for where, item in items.items():
        text = item.get_config()
        if isinstance(text, str) and text.startswith("$") and "import" in text:
            violation = import_violation(text[1:])
            if violation:
                yield SafetyFinding(where, text, violation)


def _root_findings(parser: Any, root: str, loaders: list[str]) -> list[SafetyFinding]:
    """Find all that must not be resolved for one root.

    Args:
        parser: of the config.
        root: the entry.
        loaders: ids of the LoadImage in the preprocessing's Compose, which is searched first; they are added.
    """
    resolver, items = parser.ref_resolver, parser.ref_resolver.items
    findings: list[SafetyFinding] = []
    # an item, and the component other than Compose that gets it as an argument, and so could call it
    waiting, seen = [(root, "")], {(root, "")}
    while waiting:
        where, holder = waiting.pop()
        if where not in items:
            findings.append(SafetyFinding(where, "@" + where, "no such id"))
            continue
        value = items[where].get_config()
        if isinstance(value, dict) and "_target_" in value:
            target = str(value["_target_"])
            findings += [SafetyFinding(where, *violation) for violation in _component_violations(parser, value)]
            misplaced = _placement_violation(target, where, root, holder, loaders)
            findings += [SafetyFinding(where, target, misplaced)] if misplaced else []
            holder = _holder_of_arguments(holder, target.rpartition(".")[2])
        elif isinstance(value, str) and value.startswith("$"):
            violation = expression_violation(value)
            findings += [SafetyFinding(where, value, violation)] if violation else []
            holder = "lambda" if "lambda" in value else holder
        needed = [(id_, holder) for id_ in _next_ids(resolver, value, where) if (id_, holder) not in seen]
        seen.update(needed)
        waiting += needed[::-1]
    return findings


def _placement_violation(target: str, where: str, root: str, holder: str, loaders: list[str]) -> str:
    """Say why a LoadImage or SaveImage may not stand where it stands, or "" if it may.

    The pipeline feeds the LoadImage of the preprocessing's Compose (Invertd may hold it, too, and has nothing to
    invert of it), and removes the SaveImage of the postprocessing's.
    """
    if "LoadImage" in target:
        if root == "preprocessing" and not holder:
            loaders.append(where)
            if len(loaders) > 1:
                return f"a second one beside {loaders[0]}; one is allowed"
        elif holder != "Invertd" or where not in loaders:
            return "allowed in the Compose of preprocessing only"
    if "SaveImage" in target and (holder or root != "postprocessing"):
        return "allowed in the Compose of postprocessing only"
    return ""


def _next_ids(resolver: Any, value: Any, where: str) -> list[str]:
    """List the ids of an item's own parts, or of what its text refers to (MONAI's search adds parts of parts)."""
    if isinstance(value, dict | list):
        return [part for _, part, _ in resolver.iter_subconfigs(where, value)]
    return list(resolver.match_refs_pattern(value)) if isinstance(value, str) else []


def _holder_of_arguments(holder: str, name: str) -> str:
    """Name what could call the arguments of a component: the component, or for a Compose its own holder."""
    if name == "Compose":
        return holder
    return "Invertd" if not holder and name in ("Invertd", "InvertD", "InvertDict") else name


def _component_violations(parser: Any, component: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    target, violation = _located(parser, component["_target_"])
    if violation:
        yield component["_target_"], violation
        return
    name = getattr(target, "__name__", "")
    mode = component.get("_mode_", "default")
    if mode != "default" and not (mode == "callable" and words.may_be_uncalled(target)):
        yield f"_mode_: {mode}", "expected 'default'; 'callable' is for torch.nn and monai_vit3d.layers only"
    saves, loads = name.startswith("SaveImage"), name.startswith("LoadImage")
    for key, raw in component.items():
        value = _followed(parser, raw)
        if key in words.SPECIAL_KEYS:
            continue
        if str(key).startswith("_"):
            yield f"{key}: {raw}", f"of such keys only {', '.join(sorted(words.SPECIAL_KEYS))} are allowed"
        elif saves and not words.is_harmless_save_argument(key, raw, value):
            yield f"{key}: {raw}", "SaveImage may only write NIfTI files into @output_dir, named by their inputs"
        elif loads and key not in words.LOAD_ARGUMENTS:
            yield f"{key}: {raw}", f"LoadImage may have {', '.join(sorted(words.LOAD_ARGUMENTS))}"
        elif ("pretrain" in str(key).lower() or "url" in str(key).lower()) and value:
            yield f"{key}: {raw}", "nothing is fetched; weights come from the bundle's own file"
        elif key == "reader" and not _is_reader(parser, value):
            yield f"{key}: {raw}", f"expected one of {', '.join(sorted(words.ALLOWED_READERS))}"


def _located(parser: Any, target: Any) -> tuple[Any, str]:
    """Return what MONAI would call for a target, and why it may not be called ("" if it may)."""
    from pydoc import locate  # MONAI's own way from a dotted name to an object

    if not isinstance(target, str) or not words.DOTTED.fullmatch(target) or "__" in target:
        return None, "expected the plain name of a class"
    modules = parser.locator.get_component_module_name(target)
    first = modules[0] if isinstance(modules, list) else modules
    path = f"{first}.{target}" if first else target
    if path in words.TARGET_FUNCTIONS:
        return locate(path), ""
    if not path.startswith(words.ALLOWED_MODULE_PREFIXES):
        return None, f"not in a module that is allowed: {', '.join(words.ALLOWED_MODULE_PREFIXES)}"
    try:
        located = locate(path)
    except Exception as error:  # whatever a module's import raises
        return None, f"it cannot be imported ({error})"
    return located, words.class_violation(located)


def _followed(parser: Any, value: Any) -> Any:
    """Follow a chain of plain references to its end."""
    items = parser.ref_resolver.items
    for _ in range(MAX_SAFE_DEPTH):
        if not isinstance(value, str) or not value.startswith("@"):
            break
        key = parser.ref_resolver.normalize_id(value[1:])
        if key not in items:
            break
        value = items[key].get_config()
    return value


def _is_reader(parser: Any, value: Any) -> bool:
    if isinstance(value, dict):
        reader, _ = _located(parser, value.get("_target_"))
        return getattr(reader, "__name__", "") in words.READER_CLASSES
    return value is None or (isinstance(value, str | os.PathLike) and str(value) in words.ALLOWED_READERS)
