"""Put the weights of a finished training where inference finds them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, Protocol

from ignite.engine import Engine, Events

from monai_vit3d.data.files import replacing

from .checkpoint import save_atomic

logger = logging.getLogger(__name__)


class HasState(Protocol):
    """A network, or an object that gives its weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return the weights."""


class PublishModel:
    """Copy the best weights of a training to a file of the bundle's models when all its epochs are done.

    So a file there stands for a finished training: one that was interrupted leaves none. Attach it after
    :class:`AtomicCheckpoint`.

    Args:
        source: the best weights of the run.
        path: where they go, atomically.
        network: whose weights are taken where no validation had a score, so that there are no best ones.
        rank: of this process; only rank 0 writes.
    """

    def __init__(self, source: str | Path, path: str | Path, network: HasState, rank: int = 0) -> None:
        self.source, self.path, self.network, self.rank = Path(source), Path(path), network, rank

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if self.rank == 0:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Publish, unless the training was ended before its last epoch."""
        if engine.state.epoch < (engine.state.max_epochs or 0):
            return
        if self.source.is_file():
            with open(self.source, "rb") as best, replacing(self.path, "wb") as file:
                shutil.copyfileobj(best, file)
        else:
            logger.warning("%s: no validation had a score; the weights at the end are taken", self.path)
            save_atomic(self.network.state_dict(), self.path)
        logger.info("finished: %s", self.path)
