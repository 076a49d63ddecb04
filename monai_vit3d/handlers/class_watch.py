"""Watch each class' validation score: a fine-tuning may lose one while the mean still looks well."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events

from monai_vit3d.data.errors import TrainingCollapsed

from .validation_scores import validation_scores

logger = logging.getLogger(__name__)

CLASS_FALL_ADVICE = "Lower learning_rate or layer_decay, or train with more frozen_epochs, and start anew."


class ClassWatch:
    """Say which class' validation score fell at which epoch; with ``strict`` the training stops there.

    A class has fallen when its score is below ``share`` of the best that it had in this run. It is said once, and
    again if the class recovers and falls again. Classes that never had a score of ``least`` are not watched.

    It is an object to restore for :class:`AtomicCheckpoint`; attach it after the handler that runs the validator and
    before the checkpoint, so that the state of a training that is stopped here is not saved over the one before.

    Args:
        validator: the engine that validates, whose key metric keeps its details.
        class_names: class number to name.
        strict: whether to stop.
        share: of the best score.
        least: score from which on a class counts as learnt.
        rank: of this process; only rank 0 logs.

    Raises:
        TrainingCollapsed: with ``strict``, at the end of the epoch in which a class has fallen.
    """

    def __init__(
        self,
        validator: Engine,
        class_names: Mapping[str | int, str],
        strict: bool = False,
        share: float = 0.5,
        least: float = 0.2,
        rank: int = 0,
    ) -> None:
        self.validator, self.class_names, self.strict = validator, class_names, strict
        self.share, self.least, self.rank = share, least, rank
        self.best: dict[str, list[float]] = {}  # score and its epoch
        self.fallen: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare the scores of a validation with the best ones before."""
        epoch = engine.state.epoch
        scores = validation_scores(self.validator, epoch, self.class_names)
        falls = [] if scores is None else [self._fall(*pair, epoch) for pair in scores.classes.items()]
        messages = [text for text in falls if text]
        if messages and self.strict:
            raise TrainingCollapsed(f"epoch {epoch}: {'; '.join(messages)}. {CLASS_FALL_ADVICE}")
        if messages and self.rank == 0:
            logger.warning("epoch %d: %s", epoch, "; ".join(messages))

    def _fall(self, name: str, score: float | None, epoch: int) -> str:
        """Update the best score of a class, and say how far it has fallen, if it has just now."""
        if score is None:
            return ""
        best, best_epoch = self.best.get(name, (0.0, 0))
        if score >= best:
            self.best[name] = [score, epoch]
        low = best >= self.least and score < self.share * best
        newly = low and name not in self.fallen
        (self.fallen.add if low else self.fallen.discard)(name)
        return f"the validation score of {name} fell from {best:.3f} (epoch {best_epoch}) to {score:.3f}" * newly

    def state_dict(self) -> dict[str, Any]:
        """Return the best scores, and the classes that have fallen."""
        return {"best": dict(self.best), "fallen": sorted(self.fallen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the run that is resumed."""
        self.best, self.fallen = dict(state["best"]), set(state["fallen"])
