"""Score a classifier and write its predictions, in MONAI's evaluators."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine
from torch import Tensor

from monai_vit3d.data.csv_files import write_csv
from monai_vit3d.data.errors import ScoreError
from monai_vit3d.metrics import ClassificationScore, PredictionTable, decode

logger = logging.getLogger(__name__)


class ClassificationMetric(IgniteMetricHandler):
    """Attach :class:`ClassificationScore` as ``key_val_metric`` or ``additional_metrics`` of a MONAI evaluator.

    Args:
        score: ``"auc"``, ``"accuracy"``, ``"ece"``, ``"nll"``; for regression ``"mae"``, ``"r2"``.
        task: ``"multi-class"``, ``"multi-label"``, ``"ordinal"``, ``"regression"``, or MedMNIST's name for one.
        output_transform: from the engine's output to probabilities and target vectors; None uses ``pred`` and
            ``label``.

    Raises:
        ValueError: an unknown score or task, or a score that is not for the task.
    """

    def __init__(
        self, score: str, task: str = "multi-class", output_transform: Callable[[Any], Any] | None = None
    ) -> None:
        transform = from_engine(["pred", "label"]) if output_transform is None else output_transform
        # the details would be the rows of all cases, which MetricsSaver cannot write
        super().__init__(ClassificationScore(score, task), output_transform=transform, save_details=False)


class PredictionsCSV:
    """Write every case's probabilities and prediction to a CSV file at the end of an evaluator's epoch.

    The columns are ``filename``, ``probability_NAME`` of each class and ``prediction``: the name of the most probable
    class; multi-label: the names of all above 0.5, joined by ``|``. Regression has ``prediction`` alone or, of several
    values, ``prediction_NAME``. Rows are in the order of processing; those of several processes take turns, which is
    the data set's order again if a DistributedSampler dealt the cases out.

    Args:
        path: the file, written whole or not at all.
        class_names: of the classes, labels or values, in the network's order.
        task: ``"multi-class"``, ``"multi-label"``, ``"ordinal"``, ``"regression"``, or MedMNIST's name for one.
        with_label: whether to add the same columns for the true label.
        data_root_dir: file names below this folder are written relative to it; None writes them as they are.

    Raises:
        ValueError: an unknown task, or class names that cannot be told apart.
    """

    def __init__(
        self,
        path: str | Path,
        class_names: Sequence[str],
        task: str = "multi-class",
        with_label: bool = False,
        data_root_dir: str | Path | None = None,
    ) -> None:
        self.path, self.table = Path(path), PredictionTable(class_names, task)
        self.with_label = with_label
        self.root = None if data_root_dir is None else Path(os.path.abspath(data_root_dir))
        self.rows: list[list[str]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        # not COMPLETED, which also fires when a run was terminated half-way
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def reset(self, engine: Engine) -> None:
        """Forget the cases of an earlier run."""
        self.rows = []

    def __call__(self, engine: Engine) -> None:
        """Add the cases of the iteration that ended.

        Raises:
            ScoreError: a case without a name, with NaN or infinite probabilities, or not one for each class.
        """
        output, batch = engine.state.output, engine.state.batch
        if not isinstance(output, list):
            raise ScoreError("PredictionsCSV reads one item a case: give the evaluator decollate=True.")
        for i, item in enumerate(output):
            name = self._filename(item, batch[i] if isinstance(batch, list) else {})
            self.rows.append([name, *self._cells(name, item)])

    def write(self, engine: Engine) -> None:
        """Gather the rows of all processes; the first process writes them."""
        rows_by_rank: list[list[list[str]]] = idist.all_gather(self.rows)  # type: ignore[assignment]  # of any object
        if idist.get_rank() != 0:
            return
        turns = itertools.zip_longest(*rows_by_rank)
        rows = [row for turn in turns for row in turn if row is not None]
        write_csv([self.header(), *rows], self.path)
        logger.info("%d predictions in %s", len(rows), self.path)

    def header(self) -> list[str]:
        """List the names of the columns."""
        return ["filename", *self.table.header("prediction", *(["label"] if self.with_label else []))]

    def _cells(self, name: str, item: dict[str, Any]) -> list[str]:
        """Format the cells after the file name."""
        try:
            cells = self.table.cells(item["pred"])
        except ScoreError as error:
            raise ScoreError(f"{name}: {error}") from error
        return cells + (self._label(name, item) if self.with_label else [])

    def _label(self, name: str, item: dict[str, Any]) -> list[str]:
        label = item.get("label")
        length = len(self.table.class_names) - (self.table.task == "ordinal")
        if not isinstance(label, Tensor) or label.numel() != length:
            shape = f"a label of shape {tuple(label.shape)}" if isinstance(label, Tensor) else "no label"
            raise ScoreError(f"{name}: {shape}; expected a target vector of {length}, or with_label=False.")
        return self.table.answer(decode(label.detach().flatten().cpu(), self.table.task))

    def _filename(self, item: dict[str, Any], batch: dict[str, Any]) -> str:
        image = item.get("image")
        meta = image.meta if isinstance(image, MetaTensor) else {}
        name = meta.get("filename_or_obj") or item.get("name") or batch.get("name")
        if not name:
            raise ScoreError(f"case {len(self.rows)} has no file name: load it with metadata, or give it a 'name'.")
        absolute = Path(os.path.abspath(str(name)))
        if self.root is not None and absolute.is_relative_to(self.root):
            return absolute.relative_to(self.root).as_posix()
        return str(name)
