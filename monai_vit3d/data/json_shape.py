"""Check that the content of a JSON or YAML file has the expected types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

ANY_KEY = "*"
# a type, or several; a list with the shape of its items; a dictionary with the shapes of its keys, or of all by ANY_KEY
Shape = Any


def shape_violation(value: Any, shape: Shape, where: str = "it") -> str:
    """Say where a value is of another type than expected; "" if it is not.

    Keys that a shape has not are passed over, and keys that it has may be missing. Numbers are finite, and True and
    False are no numbers.

    Args:
        value: what the file holds.
        shape: types by place, such as ``{"files": [{"name": str, "seconds": float}]}``; float takes whole numbers.
        where: how to call the value.
    """
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is {_named(value)}; a list is expected"
        return next(filter(None, (shape_violation(v, shape[0], f"{where}[{i}]") for i, v in enumerate(value))), "")
    if isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            return f"{where} is {_named(value)}; an object with names is expected"
        if ANY_KEY in shape:
            inner = ((f"{where}.{key}", item, shape[ANY_KEY]) for key, item in value.items())
        else:
            inner = ((f"{where}.{key}", value[key], inner_shape) for key, inner_shape in shape.items() if key in value)
        return next(filter(None, (shape_violation(item, expected, name) for name, item, expected in inner)), "")
    types = shape if isinstance(shape, tuple) else (shape,)
    if type(value) in types or (type(value) is int and float in types):
        finite = not isinstance(value, float) or math.isfinite(value)
        return "" if finite else f"{where} is {value}; a finite number is expected"
    return f"{where} is {_named(value)}; {' or '.join(_NAMES[one] for one in types)} is expected"


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}


def _named(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
