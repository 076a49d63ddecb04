"""Open the training config of a bundle as MONAI's workflow, with what the user sets in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_vit3d.bundle.config import config_files
from monai_vit3d.bundle.config_file import read_config
from monai_vit3d.data.errors import BundleError, UsageError

from .overrides import checked_overrides

TRAINER, VALIDATOR, CURVE = "train::trainer", "validate::evaluator", "curve"
CLASS_NAMES, PLAN = "_meta_::network_data_format::outputs::pred::channel_def", "_meta_::plan"


@dataclass(frozen=True)
class TrainingConfig:
    """The config files of a bundle's training and what is set in them.

    Args:
        root: the bundle's folder.
        names: of the config files, merged in order.
        overrides: values by id.
        strict: value of the entry ``strict``.
        device: the device by name; None leaves the config's.
    """

    root: Path
    names: Sequence[str]
    overrides: Mapping[str, Any]
    strict: bool = False
    device: str | None = None

    @property
    def file(self) -> Path:
        """The first of the config files."""
        return config_files(self.root, self.names)[0]

    def open(self, fold: int | None = None) -> ConfigWorkflow:
        """Read the files and set values; nothing is built yet.

        Args:
            fold: to train; None for a bundle without folds.

        Raises:
            BundleError: a file that cannot be read, or a config without a trainer.
            UsageError: a value that cannot be set.
        """
        if not (self.root / "configs").is_dir():
            raise BundleError(f"{self.root}: no folder configs here. Give the folder of a MONAI bundle.")
        files = config_files(self.root, self.names)
        for file in files:
            read_config(file)  # names the line of a mistake, and has bounds
        meta = self.root / "configs" / "metadata.json"
        with _without_notes():
            names = [str(file) for file in files]
            workflow = ConfigWorkflow(names, str(meta), logging_file=False, workflow_type="train")
        parser = workflow.parser
        if TRAINER not in parser:
            raise BundleError(f"{files[0]}: no entry {TRAINER}. Name the config of a training (config=).")
        values = checked_overrides(parser, self.overrides, files[0]) | self._own_values(parser, fold)
        parser.update(values)
        return workflow

    def _own_values(self, parser: ConfigParser, fold: int | None) -> dict[str, Any]:
        """Return the ids and values that a training's arguments set."""
        if self.strict and "strict" not in parser:
            raise UsageError(f"strict=True: {self.file} has no entry strict. Leave it out.")
        values: dict[str, Any] = {"bundle_root": str(self.root)}
        values |= {"strict": True} if self.strict else {}
        values |= {} if fold is None else {"fold": fold}
        return values | ({} if self.device is None else {"device": f"$torch.device({_usable(self.device)!r})"})


def _usable(device: str) -> str:
    """Return the name of a device that is there.

    Raises:
        UsageError: it is not.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"device={device}: cannot be used ({reason}). Give cpu, cuda, cuda:1, ...") from error
    return device


@contextmanager
def _without_notes() -> Iterator[None]:
    """Keep MONAI from warning that the bundle's logging.conf is not used: a training has a log of its own."""
    workflows = logging.getLogger(ConfigWorkflow.__module__)
    before, workflows.disabled = workflows.disabled, True
    try:
        yield
    finally:
        workflows.disabled = before


def parsed_entry(workflow: ConfigWorkflow, entry: str) -> Any:
    """Return an entry of a workflow, built; None where the config has none."""
    return workflow.parser.get_parsed_content(entry) if entry in workflow.parser else None
