"""Train the folds of a bundle, one after another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from monai_vit3d.data.datalist import folds_of
from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.training_lock import lock_training, unlock_training
from monai_vit3d.distributed import TorchrunProcess
from monai_vit3d.evaluation import finish_training
from monai_vit3d.handlers import one_process_group

from .failures import failing_in_one_line
from .folds import chosen_folds, last_finished, model_file
from .reports import EpochReport, StartReport, TrainingReporter
from .run_log import log_to_file, without_own_streams
from .workflow import CLASS_NAMES, CURVE, PLAN, TRAINER, VALIDATOR, TrainingConfig, parsed_entry


@dataclass(frozen=True)
class TrainedFold:
    """What became of a fold.

    Args:
        fold: which one; None for a bundle without folds.
        model: the file of its weights.
        status: whether it was trained now, or was finished before.
        best_score: best validation score of the run; None without a validation, or where nothing was trained now.
    """

    fold: int | None
    model: Path
    status: Literal["trained", "was trained"]
    best_score: float | None = None


def train_bundle(
    bundle: str | Path,
    fold: int | Sequence[int] | str = 0,
    *,
    config: str | Sequence[str] | None = None,
    shard: tuple[int, int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    strict: bool = False,
    device: str | None = None,
    on_start: Callable[[StartReport], Any] | None = None,
    on_step: Callable[[], Any] | None = None,
    on_validation: Callable[[int, int], Any] | None = None,
    on_epoch: Callable[[EpochReport], Any] | None = None,
    finish: bool = True,
    on_finish: Callable[[], Any] | None = None,
) -> list[TrainedFold]:
    """Run a bundle's training config as ``python -m monai.bundle run --config_file configs/train.yaml`` does.

    A training that was interrupted goes on from its last epoch. A fold whose weights are in ``models`` is finished
    and passed over, unless ``overrides`` has another number of ``epochs``. In processes that torchrun started,
    ``configs/multi_gpu_train.yaml`` is merged in. The log of a fold is ``train.log`` in its output folder.

    Args:
        bundle: the bundle's folder.
        fold: a number from 0, several, or ``"all"``; for a bundle whose split has folds.
        config: config files of the bundle, merged in order; None is ``train``.
        shard: ``(2, 5)`` trains the second of five parts of the folds.
        overrides: values of the config by id.
        strict: stop when the validation score of a class falls, see :class:`~monai_vit3d.handlers.ClassWatch`.
        device: as ``"cuda:1"``; None is the config's.
        on_start: called when a fold's first step is about to run.
        on_step: called after each step.
        on_validation: called after each validation case with the number of them and of all.
        on_epoch: called after each epoch.
        finish: whether to run :func:`~monai_vit3d.evaluation.finish_training` at the end, if a fold of a segmenter of
            ``vit3d init`` was trained; of several shards the one whose fold is the last of all to end does it.
        on_finish: called before that.

    Returns:
        A record for each fold.

    Raises:
        BundleError: no such bundle, or a config that is not one of a training.
        UsageError: a fold or an entry that is not there, or another training is writing to the same folder.
        Vit3dError: what the training itself raises, as :class:`TrainingDiverged`.
        TrainingFailed: any other error of it; the traceback is in the log.
    """
    training = TrainingConfig(Path(bundle).resolve(), _names(config), dict(overrides or {}), strict, device)
    reporter = partial(
        TrainingReporter, on_start=on_start, on_step=on_step, on_validation=on_validation, on_epoch=on_epoch
    )
    parser = training.open().parser
    if "fold" not in parser:
        if fold not in (0, "all") or shard is not None:
            raise UsageError(f"fold={fold}: {training.file} has no entry fold. Leave it out.")
        return [_train(training, None, reporter)]
    there = folds_of(parser.get_parsed_content("split_file"))
    folds = chosen_folds(there, fold, shard)
    with one_process_group():
        records = [_train(training, one, reporter) for one in folds]
    trained = [record.fold for record in records if record.status == "trained"]
    if shard is not None:
        trained = [one for one in trained if one == last_finished(training.root, chosen_folds(there, fold))]
    is_segmenter = PLAN in parser and f"{PLAN}::task" not in parser  # classifiers and regressors have a task
    if finish and trained and is_segmenter and TorchrunProcess.from_environment().first:
        if on_finish is not None:
            on_finish()
        finish_training(training.root, device=device)
    return records


def _names(config: str | Sequence[str] | None) -> list[str]:
    names = ["train"] if config is None else [config] if isinstance(config, str) else [*config]
    several = TorchrunProcess.from_environment().size > 1
    return [*names, "multi_gpu_train"] if several else names


def _train(training: TrainingConfig, fold: int | None, reporter: Callable[..., TrainingReporter]) -> TrainedFold:
    model = None if fold is None else model_file(training.root, fold)
    if model is not None and model.is_file() and "epochs" not in training.overrides:
        return TrainedFold(fold, model, "was trained")
    workflow, process = training.open(fold), TorchrunProcess.from_environment()
    folder, weights = (Path(workflow.parser.get_parsed_content(key)) for key in ("output_dir", "ckpt_path"))
    log = folder / ("train.log" if process.first else f"train_{process.rank}.log")
    with log_to_file(log), failing_in_one_line(training.file, log), _locked(folder / "last.pt", process), _own_hooks():
        workflow.initialize()
        reports = reporter(fold, *(parsed_entry(workflow, entry) for entry in (VALIDATOR, CLASS_NAMES, CURVE)))
        trainer = parsed_entry(workflow, TRAINER)
        if not trainer.state.max_epochs:
            raise UsageError(f"{training.file}: epochs is {trainer.state.max_epochs}; expected 1 or more.")
        reports.attach(trainer)
        with without_own_streams():
            workflow.run()
            workflow.finalize()
    return TrainedFold(fold, model or weights, "trained", reports.best_score)


@contextmanager
def _locked(path: Path, process: TorchrunProcess) -> Iterator[None]:
    """Hold the lock of :class:`~monai_vit3d.handlers.AtomicCheckpoint` before data are read, and after an error."""
    if process.first:
        lock_training(path)
    try:
        yield
    finally:
        if process.first:
            unlock_training(path)


@contextmanager
def _own_hooks() -> Iterator[None]:
    """Keep the caller's search path and hook for errors, which a bundle sets for a process of its own."""
    hook, path = sys.excepthook, list(sys.path)
    try:
        yield
    finally:
        sys.excepthook, sys.path[:] = hook, path
