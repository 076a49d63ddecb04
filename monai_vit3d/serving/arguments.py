"""Describe arguments of functions as JSON schemas, by their signatures and docstrings; check values by them."""

from __future__ import annotations

import collections.abc
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.nearest import did_you_mean

_SCALARS = {str: "string", Path: "string", bool: "boolean", int: "integer", float: "number"}


def arguments_schema(
    functions: Sequence[Callable[..., Any]], without: Sequence[str] = (), there: Callable[..., Any] | None = None
) -> dict[str, Any]:
    """Describe the arguments of functions together as a JSON schema of one object.

    Args:
        functions: with type annotations and docstrings in Google's style; of classes, their constructors'.
        without: names of arguments to leave out, with the sentences on them.
        there: the function whose docstring is meant by "see there" and "as for".
    """
    properties: dict[str, Any] = {}
    required: list[str] = []
    elsewhere = {} if there is None else _argument_texts(there)
    for function in functions:
        texts = _argument_texts(function)
        of = function.__init__ if inspect.isclass(function) else function  # type: ignore[misc]
        for name, argument in inspect.signature(function).parameters.items():
            if name in without:
                continue
            annotation = eval(argument.annotation, of.__globals__)  # a text: annotations are not evaluated there
            text = elsewhere.get(name, texts[name]) if texts[name].startswith(("see there", "as for")) else texts[name]
            said = [one for one in text.split(". ") if not any(f"`{other}`" in one for other in without)]
            properties[name] = {"description": ". ".join(said), **(_type_schema(annotation) or {})}
            if argument.default is argument.empty:
                required.append(name)
            elif _is_json(argument.default) and argument.default is not None:
                properties[name]["default"] = argument.default
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def checked_arguments(schema: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that were given, null as if left out.

    Args:
        schema: of :func:`arguments_schema`.
        given: by name, as JSON has them.

    Raises:
        UsageError: an unknown name, one that is missing, or a value of another type.
    """
    import jsonschema

    known = list(schema["properties"])
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"{name}=: no such argument; expected some of {', '.join(known)}.{hint}")
    arguments = {name: value for name, value in given.items() if value is not None}
    error = next(jsonschema.Draft202012Validator(schema).iter_errors(arguments), None)
    if error is not None:
        where = f"{error.absolute_path[0]}=: " if error.absolute_path else ""
        raise UsageError(f"{where}{error.message}. Correct the argument.")
    return arguments


def _type_schema(annotation: Any) -> dict[str, Any] | None:
    """Describe a type; None if JSON has no value for it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return {}
    if annotation in _SCALARS:
        return {"type": _SCALARS[annotation]}
    if origin in (typing.Union, types.UnionType):
        described = [schema for one in inner if (schema := _type_schema(one)) is not None]
        distinct = [schema for i, schema in enumerate(described) if schema not in described[:i]]
        return distinct[0] if len(distinct) == 1 else {"anyOf": distinct} if distinct else None
    if origin in (tuple, list, collections.abc.Sequence):
        return {"type": "array", "items": _type_schema(inner[0]) or {}}
    return {"type": "object"} if origin is collections.abc.Mapping else None


def _argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """Read what a docstring says of each argument, without the markup of roles and code."""
    section = re.search(r"\nArgs:\n((?:(?: .*)?\n)+)", f"{inspect.getdoc(function)}\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section[1] if section else "", re.MULTILINE)
    return {name: _plain(" ".join(text.split())) for name, text in entries}


def _plain(text: str) -> str:
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "`")


def _is_json(value: Any) -> bool:
    try:
        return bool(json.dumps(value))
    except TypeError:
        return False
