"""Print a run's progress, notes and errors to standard error, and its plan."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from monai_vit3d.data.printable import printable

from .streams import EscapedStream
from .verbosity import command_log, is_showing_progress

if TYPE_CHECKING:
    from monai_vit3d.evaluation.scoring import ScoredCase
    from monai_vit3d.pipeline.plan import Plan


class Progress:
    """Show a bar of the files on a terminal, and one of a file's windows, or a line for each file elsewhere."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.windows: Any = None
        self.seen, self.total = 0, 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        self._close_windows()
        if self.bar is not None:
            self.bar.close()

    def window(self, done: int, total: int) -> None:
        """Show how many windows of a file are done, and when all will be."""
        from tqdm import tqdm

        if self.bar is None:
            return
        if self.windows is None:
            options: dict[str, Any] = {"leave": False, "dynamic_ncols": True, "file": raw_terminal()}
            self.windows = tqdm(total=total, unit="window", desc="  this file", **options)
        self.windows.update(done - self.windows.n)
        if done == total:
            self._close_windows()

    def _close_windows(self) -> None:
        if self.windows is not None:
            self.windows.close()
            self.windows = None

    def begin(self, plan: Plan) -> None:
        """Print the plan's notes, and start to count its cases, anew if others were counted before."""
        from tqdm import tqdm

        print_notes(plan)
        self._close()
        self.seen, self.total = 0, len(plan.cases)
        if is_showing_progress():
            self.bar = tqdm(total=self.total, unit="file", dynamic_ncols=True, file=raw_terminal())

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Print the result of a case, and each warning about it on its own line."""
        self.seen += 1
        print_line: Callable[[str, int], Any] = print_error if self.bar is None else self._print_above
        if self.bar is None:
            line = f"{self.seen}/{self.total} {record['status']} {record['name']} ({record['seconds']:.1f} s)"
            print_line(line, logging.INFO)
        else:
            self.bar.set_postfix_str(printable(record["name"])[-40:], refresh=False)
            self.bar.update()
        if record["status"] == "failed":
            print_line(f"  failed: {record['error']}", logging.ERROR)
        for warning in record["warnings"] if record["status"] == "done" else []:
            print_line(f"  warning: {record['name']}: {warning}", logging.WARNING)
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in (record.get("stages") or {}).items())
        if stages:
            print_line(f"  {record['name']}: {stages}", logging.DEBUG)

    def _print_above(self, text: str, level: int) -> None:
        with self.bar.external_write_mode(raw_terminal()):
            print_error(text, level)


class ScoringProgress:
    """Count scored cases on a terminal, and print those that fail."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __enter__(self) -> ScoringProgress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, case: ScoredCase) -> None:
        """Count a case."""
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(desc="scored", unit="case", dynamic_ncols=True, disable=not is_showing_progress())
        self.bar.update()
        if case.error:
            print_error(f"vit3d: {case.case.name} failed: {case.error}")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows of cells as lines whose columns begin below each other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def print_notes(plan: Plan) -> None:
    """Print what was passed over, once for all shards."""
    for i, line in enumerate(plan.notes() if plan.shard[0] == 1 else []):
        print_error(f"  {line}" if i else f"vit3d: {line}", logging.INFO)


def print_plan(plan: Plan) -> None:
    """Print what a run would write, a line a case, for ``--dry-run``; the notes go to standard error."""
    print_notes(plan)
    print(plan.table())


def print_error(text: str, level: int = logging.ERROR) -> None:
    """Write a line to standard error, if the verbosity asks for its level, and to the log file.

    What cannot be printed, line breaks of a file's name too, is shown as escapes, and arguments as flags.

    Args:
        text: the line.
        level: of logging.
    """
    command_log.log(level, "%s", printable(text))


def raw_terminal() -> Any:
    """Return standard error without escaping, for a bar that moves the cursor."""
    return sys.stderr.raw if isinstance(sys.stderr, EscapedStream) else sys.stderr
