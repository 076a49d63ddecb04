"""`vit3d train`: train the folds of a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import add_device, add_example, add_overrides, parsed
from .train_progress import TrainProgress

_DESCRIPTION = """Train a bundle, as python -m monai.bundle run --config_file configs/train.yaml does in
its folder, with progress and errors of one line. Run it again to go on after an
interruption. The run folder (runs/fold_0) gets curve.png, curve.csv, overlays of some
validation cases, TensorBoard's events, train.log and the checkpoints; a fold that is
finished is models/fold_0.pt.

Several GPUs: torchrun --nproc_per_node=2 -m monai_vit3d.cli train DIR
SLURM array:  vit3d train DIR --fold all --shard $SLURM_ARRAY_TASK_ID/5     (--array=1-5)

Exit code: 0 all done, 1 a training failed, 2 wrong usage, bundle or weights."""


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    train = verbs.add_parser(
        "train",
        help="train a bundle",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = train.add_argument
    add("bundle", type=Path, metavar="DIR", help="the bundle's folder")
    add("--fold", type=_fold, default=0, metavar="K|all", help="which fold, from 0 (0); all: those not finished")
    add("--shard", metavar="I/N", help="train the I-th of N parts of the folds")
    add("--config", nargs="+", metavar="NAME", help="config files of the bundle, merged in order (train)")
    add_overrides(train, "learning_rate=0.0005")
    add_device(train)
    add("--strict", action="store_true", help="stop when the validation score of a class falls to half of its best")
    add_example(train, "vit3d train mybundle", "vit3d train mybundle --fold all --set epochs=200")
    train.set_defaults(run=_run, parser=train, go_on="run the same command again to go on")


def _fold(text: str) -> int | str:
    return text if text == "all" else int(text)


def _run(args: argparse.Namespace) -> int:
    from monai_vit3d.distributed import TorchrunProcess
    from monai_vit3d.pipeline.plan import parse_shard
    from monai_vit3d.training import train_bundle

    options = parsed(args)
    options["shard"] = parse_shard(args.shard) if args.shard else None
    speaks = TorchrunProcess.from_environment().first
    with TrainProgress(silent=not speaks) as progress:
        trained = train_bundle(
            **options,
            on_start=progress.start,
            on_step=progress.step,
            on_validation=progress.validate,
            on_epoch=progress.epoch,
            on_finish=progress.finish,
        )
    for record in trained if speaks else []:
        print(f"{record.status}: {record.model}")
    return 0
