"""Keep run.json: the state of every case, written while the run goes on; a later run checks it before using it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from monai_vit3d.data.errors import UsageError
from monai_vit3d.data.files import read_regular, write_text_atomic
from monai_vit3d.data.json_shape import ANY_KEY, shape_violation
from monai_vit3d.data.printable import excerpt

from .volume_outliers import note_volume_outliers

STATES = ("pending", "done", "skipped", "failed")
_FIGURES = ("voxels", "volume_ml", "mean", "std", "min", "max")
_TEXT, _NUMBER = (str, type(None)), (float, type(None))
_FILE = {
    "name": str, "status": str, "error": _TEXT, "output": _TEXT, "picture": _TEXT, "warnings": [str],
    "outliers": [str], "seconds": float, "stages": {ANY_KEY: float}, "outputs": {ANY_KEY: str}, "input_sha256": [str],
    "mask_ml": _NUMBER, "made_with": {}, "cells": {ANY_KEY: str}, "prediction": {ANY_KEY: _NUMBER},
    "stats": [{"label": int, "name": str, **dict.fromkeys(_FIGURES, _NUMBER)}],
}  # fmt: skip
_RUN = {"started": str, "seconds": float, "versions": {ANY_KEY: str}, "warnings": [str], "files": [_FILE]}
_PART = re.compile(r"\.run-(\d+)-of-(\d+)\.json")


class RunRecord:
    """The records of a run's files and of the run itself, written whole or not at all.

    A run that is one shard of several writes a file of its own, which :func:`merge_records` adds to run.json. One
    process writes a record at a time, so two runs into one folder refuse each other.

    Args:
        output: OUT.
        about: what holds for the whole run: bundle, versions, device, options.
        shard: this run's part of the cases, (i, n), from 1.

    Raises:
        UsageError: another run is at work on the same part of the same folder.
    """

    def __init__(self, output: Path, about: Mapping[str, Any], shard: tuple[int, int] = (1, 1)) -> None:
        self.output, self.about = output, dict(about)
        whole = shard[1] == 1
        self.path = output / ("run.json" if whole else f".run-{shard[0]}-of-{shard[1]}.json")
        output.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(output / (".run.lock" if whole else f".run-{shard[0]}-of-{shard[1]}.lock"))
        try:
            self._lock.acquire(timeout=0)
            for other in _other_locks(output, shard):
                with other:
                    pass
        except Timeout as error:
            self._lock.release()
            raise UsageError(
                f"{output}: another run is writing here. Wait for it, or choose another OUT; many machines share one "
                "OUT with shard=I/N."
            ) from error
        self.files: dict[str, dict[str, Any]] = {}
        self.begun = False
        self._whole = whole
        self._started, self._next = time.monotonic(), 0.0

    def begin(self, files: Mapping[str, dict[str, Any]], earlier: Mapping[str, dict[str, Any]]) -> None:
        """Write the cases of this run, before any work; a run that is no shard keeps the records of other cases, too.

        Args:
            files: this run's cases, by name.
            earlier: the result of :func:`load_records`.
        """
        kept = {
            n: r for n, r in earlier.items() if any((self.output / path).is_file() for path in r.get("outputs", {}))
        }
        self.files = {**(kept if self._whole else {}), **files}
        self.write()
        self.begun = True
        if self._whole:
            for path in _parts(self.output):
                path.unlink()

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a case's record; the file on disk follows, at most a tenth of the time being spent on that."""
        self.files[record["name"]] = dict(record)
        if time.monotonic() >= self._next:
            before = time.monotonic()
            self.write()
            after = time.monotonic()
            self._next = after + 9 * (after - before)

    def write(self) -> None:
        """Write the records so far."""
        self.about["seconds"] = round(time.monotonic() - self._started, 3)
        write_json(_whole(self.about, self.files.values()), self.path)

    def close(self) -> None:
        """Write a last time, unless nothing was begun, and release the folder."""
        try:
            if self.begun:
                self.about["ended"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
                self.write()
        finally:
            self._lock.release()


def load_records(output: Path) -> dict[str, dict[str, Any]]:
    """Load the records of earlier runs into the folder, by name; a shard's replace run.json's.

    Raises:
        UsageError: a record is no JSON of ours.
    """
    return _records(output, _parts(output))


def load_about(output: Path) -> dict[str, Any]:
    """Load what holds for the newest run into the folder as a whole.

    Raises:
        UsageError: a record is no JSON of ours, or there is none.
    """
    return ([*_parts(output).values()] or [_read(output / "run.json")])[-1]


def _records(output: Path, parts: Mapping[Path, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    whole = output / "run.json"
    contents = [*([_read(whole)] if whole.is_file() else []), *parts.values()]
    return {record["name"]: record for content in contents for record in content["files"]}


def merge_records(output: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Merge the records of all shards into run.json, with volumes that are outliers; the caller holds :func:`merging`.

    Returns:
        What holds for the run, and the records of its files, sorted by name.
    """
    parts = _parts(output)
    abouts = [*parts.values()] or [_read(output / "run.json")]
    records = _records(output, parts)
    about = {k: v for k, v in abouts[-1].items() if k not in ("files", "counts", "stages")}
    if parts:
        about["seconds"] = max(a.get("seconds", 0) for a in abouts)
        about["shards"] = [path.name for path in parts]
    ordered = [records[name] for name in sorted(records)]
    note_volume_outliers(ordered)
    write_json(_whole(about, ordered), output / "run.json")
    if _complete([*parts], abouts) and all(r["status"] != "pending" for r in ordered):
        for path in parts:
            path.unlink()
    return about, ordered


def _complete(parts: list[Path], abouts: list[dict[str, Any]]) -> bool:
    """Return whether all shards of the newest run have ended; one that has not would write its record again."""
    count = parts[-1].stem.rpartition("-")[2] if parts else ""
    newest = [about for path, about in zip(parts, abouts) if path.name.endswith(f"-of-{count}.json")]
    return bool(parts) and len(newest) == int(count) and all("ended" in about for about in newest)


def _other_locks(output: Path, shard: tuple[int, int]) -> list[FileLock]:
    """Return locks of runs with another number of shards, which could write the same files at the same time."""
    fellows = re.compile(rf"\.run-\d+-of-{shard[1]}\.lock" if shard[1] > 1 else r"\.run\.lock")
    paths = [path for path in output.glob(".run*.lock") if not fellows.fullmatch(path.name)]
    return [FileLock(path, timeout=0) for path in paths]


def merging(output: Path) -> FileLock:
    """Make the lock under which one process at a time reads all records and writes what follows from them."""
    return FileLock(output / ".merge.lock")


def write_json(content: Any, path: Path) -> None:
    """Write JSON, all of it or nothing; a file name that is no Unicode keeps its bytes as escapes."""
    write_text_atomic(json.dumps(content, indent=1, ensure_ascii=True) + "\n", path)


def _whole(about: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    files = list(records)
    counts: dict[str, int] = {}
    stages: dict[str, float] = {}
    for record in files:
        counts[record["status"]] = counts.get(record["status"], 0) + 1
        for stage, seconds in record.get("stages", {}).items():
            stages[stage] = round(stages.get(stage, 0.0) + seconds, 3)
    return {**about, "counts": counts, "stages": stages, "files": files}


def _parts(output: Path) -> dict[Path, dict[str, Any]]:
    """List shards' records by the start time in them (copying changes the files' times), the last at the end."""
    names = [name for name in os.listdir(output) if _PART.fullmatch(name)] if output.is_dir() else []
    read = {output / name: _read(output / name) for name in sorted(names)}
    return dict(sorted(read.items(), key=lambda part: str(part[1].get("started", ""))))


def _unnamed(record: Mapping[str, Any]) -> str:
    if "name" not in record or record.get("status") not in STATES:
        return f"a file without a name, or with the status {excerpt(repr(record.get('status')), 40)}"
    return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(path).decode("utf-8"))
        fault = shape_violation(content, _RUN) or next(filter(None, map(_unnamed, content["files"])), "")
        if fault:
            raise ValueError(fault)
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise UsageError(f"{path}: not a record of a run ({error}). Move it away, or choose another OUT.") from error
    return dict(content)
