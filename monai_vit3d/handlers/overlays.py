"""Draw some validation cases at each validation: reference and prediction over the same planes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_vit3d.data.volume import Array, Grid
from monai_vit3d.visualize.overlay import draw_overlay, label_centre, write_png
from monai_vit3d.visualize.stack import stack_pictures

from .finite import case_names


class ValidationOverlays:
    """Write a picture of the first validation cases at each validation, ``epoch_010/NAME.png``.

    The planes go through the reference's largest slices, so that pictures of two epochs can be compared.

    Args:
        folder: for the pictures.
        spacing_mm: of the volumes, whose axes are RAS, as after ``Orientationd``.
        cases: how many.
        name_key: of the names in a batch.
        rank: of this process; only rank 0 draws, of its own cases.
    """

    def __init__(
        self,
        folder: str | Path,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        cases: int = 3,
        name_key: str = "name",
        rank: int = 0,
    ) -> None:
        self.folder, self.spacing_mm, self.cases = Path(folder), tuple(spacing_mm), cases
        self.name_key, self.rank = name_key, rank
        self._drawn = 0

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator whose output has ``image``, ``label`` and ``pred``: class numbers or one-hot."""
        if self.rank == 0:
            engine.add_event_handler(Events.EPOCH_STARTED, self._restart)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _restart(self) -> None:
        self._drawn = 0

    def __call__(self, engine: Engine) -> None:
        """Draw the cases of a batch that are still to be drawn."""
        output: Any = engine.state.output
        items = output if isinstance(output, list) else []
        names = case_names(engine.state.batch, self.name_key)
        for i, item in enumerate(items[: self.cases - self._drawn]):
            name = names[i] if i < len(names) else f"case_{self._drawn}"
            self._draw(item, self.folder / f"epoch_{engine.state.epoch:03d}" / f"{_file_stem(name)}.png")
            self._drawn += 1

    def _draw(self, item: dict[str, torch.Tensor], path: Path) -> None:
        voxels = item["image"][0].detach().cpu().float().numpy()
        reference, prediction = (_class_numbers(item[key]) for key in ("label", "pred"))
        grid = Grid(voxels.shape, np.diag([*self.spacing_mm, 1.0]))
        centre = label_centre(reference)
        pictures = [draw_overlay(voxels, labels, grid, centre=centre) for labels in (reference, prediction)]
        write_png(stack_pictures(pictures, ["reference", "prediction"]), path)


def _class_numbers(labels: torch.Tensor) -> Array:
    """(H, W, D) integers of (1, H, W, D) class numbers or (C, H, W, D) one-hot."""
    labels = labels.detach().cpu()
    numbers: Array = (labels.argmax(0) if labels.shape[0] > 1 else labels[0]).to(torch.int64).numpy()
    return numbers


def _file_stem(name: str) -> str:
    """Make a file name of a case's name or path."""
    return re.sub(r"[^\w.-]", "_", PurePath(name).name.removesuffix(".gz").removesuffix(".nii"))
