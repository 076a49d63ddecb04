"""Defaults of a lab for the command's flags, from the file vit3d.toml of the working folder or of one above it.

A key is a flag without its dashes. In a table, named after a verb, it holds for that verb; above all tables, for each
verb that has the flag. A file that lies in a folder of data came with them, perhaps: nothing in it may run code.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.files import read_text_file
from monai_vit3d.data.nearest import did_you_mean
from monai_vit3d.data.printable import printable

from .parser import with_meaning

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME, FILE_VARIABLE = "vit3d.toml", "VIT3D_CONFIG"
_TYPED_ALONE = ("help", "set", "stdio", "trust-bundles")  # flags that only the command line has


@dataclass(frozen=True)
class LabDefaults:
    """What a lab's file says of a verb's flags.

    Args:
        path: the file; None if there is none, or nothing in it is of the verb.
        values: by the names of the verb's arguments.
    """

    path: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def settle(self, args: argparse.Namespace) -> None:
        """Note the file in parsed arguments, and let a bundle that the file chose run as by ``--safe`` alone."""
        args.lab_defaults = self.path
        if "bundle" in self.values and args.bundle is self.values["bundle"] and hasattr(args, "safe"):
            args.safe = True


class _Replaced(list[Any]):
    """A list that the first flag of the command line replaces: argparse appends to a copy."""

    def __copy__(self) -> list[Any]:
        return []


class _TableParser(argparse.ArgumentParser):
    """Parses the values of a table as the flags that its keys name."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as an error of the file."""
        raise UsageError(f"{self.prog}: {with_meaning(message, self)} Correct the file.")


def find_lab_defaults() -> Path | None:
    """Find the file: what the variable VIT3D_CONFIG names (no file, if it is empty), else the nearest vit3d.toml.

    Raises:
        UsageError: the variable names no file.
    """
    given = os.environ.get(FILE_VARIABLE)
    if given is None:
        folder = Path.cwd()
        return next((path for one in (folder, *folder.parents) if (path := one / FILE_NAME).is_file()), None)
    if given and not Path(given).is_file():
        raise UsageError(f"{FILE_VARIABLE}={printable(given)}: no such file; expected a {FILE_NAME}. Correct it.")
    return Path(given).absolute() if given else None


def use_lab_defaults(parser: argparse.ArgumentParser, words: Sequence[str]) -> LabDefaults:
    """Let flags that the command line leaves out be as the lab's file says.

    Args:
        parser: of the command.
        words: the command line, from the verb on.

    Raises:
        UsageError: no TOML, an unknown table or key, or a value that the flag does not take.
    """
    path = None if {"-h", "--help", "--version"} & {*words} else find_lab_defaults()
    if path is None:
        return LabDefaults()
    verbs = _verbs(parser)
    every = {key: action for verb in verbs.values() for key, action in _flags(verb).items()}
    tables = _tables(_read(path))
    for name, table in tables.items():
        if name and name not in verbs:
            raise UsageError(f"{printable(path)}: no verb {printable(name)}{_near(name, verbs)}")
        _check_keys(_where(path, name), table, _flags(verbs[name]) if name else every)
    verb = next((name for name in verbs if [*words[: len(name.split())]] == name.split()), None)
    if verb is None:
        return LabDefaults()
    flags = _flags(verbs[verb])
    values: dict[str, Any] = {}
    for name in ("", verb):
        mine = {key: value for key, value in tables.get(name, {}).items() if key in flags}
        values |= _parsed_values(_where(path, name), mine, flags, path.parent)
    verbs[verb].set_defaults(**values)
    for action in flags.values():
        action.required = action.required and action.dest not in values
    return LabDefaults(path, values) if values else LabDefaults()


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text_file(path))
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{printable(path)}: cannot be read as TOML: {error}. Correct the file.") from error


def _tables(content: Mapping[str, Any], name: str = "") -> dict[str, dict[str, Any]]:
    """Split into tables by name, ``weights get`` of a verb's way; what stands above all tables is ``""``."""
    own = {key.replace("_", "-"): value for key, value in content.items() if not isinstance(value, dict)}
    tables = {name: own} if own else {}
    for key, value in content.items():
        if isinstance(value, dict):
            tables |= _tables(value, f"{name} {key}".strip())
    return tables


def _verbs(parser: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    """Map verbs to their parsers; of a verb with ways, ``weights get``."""
    ways = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not ways:
        return {name: parser}
    named = ((f"{name} {way}".strip(), sub) for way, sub in ways[0].choices.items())
    return {key: one for way, sub in named for key, one in _verbs(sub, way).items()}


def _flags(verb: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    named = {action.option_strings[-1].lstrip("-"): action for action in verb._actions if action.option_strings}
    # a bundle that the file chooses runs as by --safe, or not at all
    typed_alone = _TYPED_ALONE if "safe" in named else (*_TYPED_ALONE, "bundle")
    return {key: action for key, action in named.items() if key not in typed_alone}


def _where(path: Path, name: str) -> str:
    return f"{printable(path)}: [{name.replace(' ', '.')}]" if name else printable(path)


def _check_keys(where: str, table: Mapping[str, Any], flags: Mapping[str, argparse.Action]) -> None:
    dests: dict[str, str] = {}
    for key in table:
        if key in _TYPED_ALONE:
            raise UsageError(f"{where}: --{key} is taken from the command line alone. Remove it.")
        if key not in flags:
            raise UsageError(f"{where}: no flag --{printable(key)}{_near(key, flags)}")
        if other := dests.get(flags[key].dest):
            raise UsageError(f"{where}: {other} and {key}; expected one of the two.")
        dests[flags[key].dest] = key


def _near(word: str, known: Collection[str]) -> str:
    return f"; expected one of {', '.join(known)}.{did_you_mean(word, known)}"


def _parsed_values(
    where: str, table: Mapping[str, Any], flags: Mapping[str, argparse.Action], folder: Path
) -> dict[str, Any]:
    """Parse a table's values as if they were typed; paths that are there are of the file's folder."""
    parser = _TableParser(prog=where, add_help=False, allow_abbrev=False)
    words: list[str] = []
    for key, value in table.items():
        action = copy.copy(flags[key])
        action.required, action.default = False, argparse.SUPPRESS
        parser._add_action(action)
        words += _as_typed(where, key, action, value)
    values = vars(parser.parse_args(words))
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = _Replaced(value)
        elif isinstance(value, Path) and (folder / value).exists():
            values[name] = folder / value
    return values


def _as_typed(where: str, key: str, action: argparse.Action, value: Any) -> list[str]:
    """Write a key and its value as words of a command line."""
    flag = action.option_strings[-1]
    if action.nargs == 0:
        count = isinstance(action, argparse._CountAction) and type(value) is int
        if not count and not isinstance(value, bool):
            raise UsageError(f"{where}: {key} = {value!r}; expected true or false.")
        return [flag] * int(value)
    if action.nargs == "?" and isinstance(value, bool):
        return [flag] * value
    if isinstance(value, bool) or not isinstance(value, str | int | float | list):
        raise UsageError(f"{where}: {key} = {value!r}; expected a text, a number or a list of them.")
    texts = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    if action.nargs == "+":
        return [flag, *texts]
    if isinstance(action, argparse._AppendAction):
        return [f"{flag}={text}" for text in texts]
    return [f"{flag}={','.join(texts)}"]
