"""Attach handlers that stand elsewhere in a bundle's config."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ignite.engine import Engine


class Handler(Protocol):
    """What MONAI's engines attach."""

    def attach(self, engine: Engine) -> None:
        """Attach to an engine."""


class AttachHandlers:
    """Attach other handlers, in their order.

    MONAI's ``ConfigWorkflow.check_properties`` wants a dictionary for each handler of a config; a handler that has an
    id of its own, as others refer to it, is named here.

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
