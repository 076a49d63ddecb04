"""Show a training: a bar with the time that is left on a terminal, a line for each epoch elsewhere."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .progress import print_error, raw_terminal
from .verbosity import is_showing_progress

if TYPE_CHECKING:
    from monai_vit3d.training import EpochReport, StartReport

_OF_LOADING = "monai_vit3d.bundle"  # warns that a bundle is code, which its training has run already
_SHOWN = "monai_vit3d.evaluation.finish"  # what was chosen at the end


class TrainProgress:
    """Show the reports of a training.

    Args:
        silent: show nothing, as of all processes but the first.
    """

    def __init__(self, silent: bool = False) -> None:
        self.silent, self.steps = silent, 1
        self.bar: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> TrainProgress:
        notes = logging.getLogger("monai_vit3d")
        if not self.silent and is_showing_progress():
            from tqdm.contrib.logging import logging_redirect_tqdm

            self._stack.enter_context(logging_redirect_tqdm([notes]))
        for handler in (one for one in notes.handlers if not isinstance(one, logging.FileHandler)):
            handler.addFilter(self._is_shown)
            self._stack.callback(handler.removeFilter, self._is_shown)
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        self._stack.close()

    def _is_shown(self, record: logging.LogRecord) -> bool:
        """Return whether a note is for the screen; the others are in train.log."""
        warning = record.levelno >= logging.WARNING and not record.name.startswith(_OF_LOADING)
        return not self.silent and (warning or record.name.startswith(_SHOWN))

    def start(self, report: StartReport) -> None:
        """Begin a fold."""
        if self.silent:
            return
        from tqdm import tqdm

        self._close()
        self.steps = report.steps
        done = f", goes on after epoch {report.epoch}" if report.epoch else ""
        print_error(f"{_fold(report)}: {report.epochs} epochs of {report.steps} steps{done}", logging.INFO)
        if is_showing_progress():
            self.bar = tqdm(
                total=report.epochs * report.steps, initial=report.epoch * report.steps, unit="step",
                desc=_fold(report), smoothing=0, dynamic_ncols=True, file=raw_terminal(),
            )  # fmt: skip

    def step(self) -> None:
        """Count a step."""
        if self.bar is not None:
            self.bar.update()
            state = self.bar.format_dict
            pace = state["elapsed"] / (self.bar.n - state["initial"])
            left = pace * (-self.bar.n % self.steps)
            self.bar.set_postfix_str(f"epoch {-(-self.bar.n // self.steps)}: {_duration(left)} left", refresh=False)

    def validate(self, done: int, cases: int) -> None:
        """Show how far a validation is."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"validates {done}/{cases}")

    def epoch(self, report: EpochReport) -> None:
        """Show an epoch: its loss, the time that is left, and the scores where it was validated."""
        if self.silent:
            return
        head = f"{_fold(report)}, epoch {report.epoch}/{report.epochs}: loss {report.loss:.3f}"
        if self.bar is not None:
            with self.bar.external_write_mode(raw_terminal()):
                print_error(head + _scores(report), logging.INFO)
        else:
            print_error(f"{head}{_scores(report)}, {_duration(report.seconds_left)} left", logging.INFO)

    def finish(self) -> None:
        """Say that the training is over, and what is done at the end."""
        self._close()
        if not self.silent:
            text = "predicting validation cases for the postprocessing, measuring the data for later checks ..."
            print_error(text, logging.INFO)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _fold(report: Any) -> str:
    return "training" if report.fold is None else f"fold {report.fold}"


def _scores(report: EpochReport) -> str:
    if report.scores is None:
        return ""
    classes = [f"{name} {score:.3f}" for name, score in report.scores.classes.items() if score is not None]
    by_class = f" ({', '.join(classes)})" if len(classes) > 1 else ""
    return f", validation score {report.scores.mean:.3f}{by_class}{', best so far' * report.best}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
