"""Attach handlers that are defined elsewhere in a bundle's config."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ignite.engine import Engine


class Handler(Protocol):
    """A handler as MONAI's engines attach it."""

    def attach(self, engine: Engine) -> None:
        """Attach to an engine."""


class AttachHandlers:
    """Attach other handlers, in their order.

    MONAI's ``ConfigWorkflow.check_properties`` requires a dictionary for each handler of a config. A handler that has
    an id of its own, because others refer to it, is listed here by reference.

    Args:
        handlers: to attach.

    Example:
        .. code-block:: yaml

            handlers:
              - _target_: monai_vit3d.handlers.AttachHandlers
                handlers: ['@schedule']
    """

    def __init__(self, handlers: Iterable[Handler]) -> None:
        self.handlers = list(handlers)

    def attach(self, engine: Engine) -> None:
        """Attach all."""
        for handler in self.handlers:
            handler.attach(engine)
