"""Write the course of a training as a table and a picture, where the run can be looked at while it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch.optim import Optimizer

from monai_vit3d.data.csv_files import write_csv
from monai_vit3d.visualize.chart import Curve, draw_chart
from monai_vit3d.visualize.overlay import write_png
from monai_vit3d.visualize.stack import stack_pictures

from .validation_scores import validation_scores

_FIRST = ("epoch", "learning_rate", "loss", "mean")


class LearningCurve:
    """Write ``curve.csv`` after each epoch and ``curve.png`` after each validation: loss, scores, scores by class.

    It is an object to restore for :class:`AtomicCheckpoint`, so that a resumed run has the whole curve; attach it
    after the handler that runs the validator and before the checkpoint. In a run of several processes the loss is that
    of the first one.

    Args:
        folder: where the files go.
        optimizer: its largest learning rate is noted.
        validator: the engine that validates; None draws the loss alone.
        class_names: class number to name, for scores by class.
        rank: of this process; only rank 0 writes.
    """

    def __init__(
        self,
        folder: str | Path,
        optimizer: Optimizer,
        validator: Engine | None = None,
        class_names: Mapping[str | int, str] | None = None,
        rank: int = 0,
    ) -> None:
        self.folder, self.optimizer, self.validator = Path(folder), optimizer, validator
        self.class_names, self.rank = class_names, rank
        self.rows: list[dict[str, Any]] = []
        self._losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._losses.clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def add_loss(self, engine: Engine) -> None:
        """Add the loss of an iteration."""
        output: Any = engine.state.output
        self._losses.append(float((output[0] if isinstance(output, list) else output)["loss"]))

    def __call__(self, engine: Engine) -> None:
        """Add a row for the epoch that ended, and write the curve."""
        epoch = engine.state.epoch
        scores = None if self.validator is None else validation_scores(self.validator, epoch, self.class_names)
        rate = max(float(group["lr"]) for group in self.optimizer.param_groups)
        row = {"epoch": epoch, "learning_rate": rate, "loss": sum(self._losses) / max(1, len(self._losses))}
        self.rows.append(row if scores is None else row | {"mean": scores.mean, "classes": scores.classes})
        if self.rank != 0:
            return
        write_csv(self._table(), self.folder / "curve.csv")
        if scores is not None or epoch == engine.state.max_epochs:
            write_png(stack_pictures(self._charts()), self.folder / "curve.png")

    def best_mean(self) -> float | None:
        """Return the best validation score so far, of the run that is resumed, too."""
        return max((row["mean"] for row in self.rows if not math.isnan(row.get("mean", math.nan))), default=None)

    def state_dict(self) -> dict[str, Any]:
        """Return all rows."""
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the rows of the run that is resumed."""
        self.rows = list(state["rows"])

    def _classes(self) -> list[str]:
        return list({name: None for row in self.rows for name in row.get("classes", ())})

    def _table(self) -> list[list[str]]:
        classes = self._classes()
        lines = [[_cell(row.get(c)) for c in _FIRST] for row in self.rows]
        scores = [[_cell(row.get("classes", {}).get(name)) for name in classes] for row in self.rows]
        return [[*_FIRST, *classes], *(line + by_class for line, by_class in zip(lines, scores))]

    def _charts(self) -> list[Any]:
        loss = Curve("loss", [(row["epoch"], row["loss"]) for row in self.rows])
        validated = [row for row in self.rows if "mean" in row]
        by_class = [Curve(name, [(r["epoch"], r["classes"].get(name)) for r in validated]) for name in self._classes()]
        charts = [draw_chart([loss], "Training loss by epoch")]
        if validated:
            mean = Curve("mean", [(row["epoch"], row["mean"]) for row in validated], bold=True)
            charts.append(draw_chart([*by_class, mean], "Validation score by epoch", bounds=(0, 1)))
        return charts


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}"
