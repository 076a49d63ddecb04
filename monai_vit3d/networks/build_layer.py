"""Call the constructor of a layer with those of the network's keywords that it knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn


def build(constructor: Callable[..., nn.Module], **kwargs: Any) -> nn.Module:
    """Call ``constructor`` with those keywords that its signature knows.

    Raises:
        ValueError: it needs others.
    """
    parameters = inspect.signature(constructor).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return constructor(**kwargs)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [name for name, p in parameters.items() if p.kind in named and p.default is inspect.Parameter.empty]
    others = [name for name in needed if name not in kwargs]
    if others:
        name = getattr(constructor, "__name__", repr(constructor))
        raise ValueError(
            f"{name} needs {', '.join(others)}; expected no arguments but those that it gets: {', '.join(kwargs)}. "
            "Bind the others by functools.partial."
        )
    return constructor(**{k: v for k, v in kwargs.items() if k in parameters})
