"""`vit3d predict`: run a bundle over files or folders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import (
    add_anyway,
    add_config,
    add_device,
    add_dry_run,
    add_example,
    add_existing,
    add_inputs,
    add_jobs,
    add_safe,
    add_shard,
    add_tokens,
    noted,
    parsed,
)
from .progress import Progress, print_plan

_DESCRIPTION = """INPUT is a NIfTI file (or .mgz, .nrrd, .mha, .img with .hdr), a folder of them or of DICOM
series, a BIDS data set, or a CSV or JSON list of cases (column "image", or several that begin
so for the channels of one case; optional "name"). Where the bundle has several channels, files
NAME_0000, NAME_0001, ... are one case, and so is a 4D file of as many volumes. Hidden files,
outputs of earlier runs and label files in a folder are passed over, and named. OUT gets
NAME_seg.nii.gz on each file's own grid, run.json, stats.csv and volumes.csv or predictions.csv, and report.html
to look at.

Several GPUs: torchrun --nproc_per_node=2 -m monai_vit3d.cli predict IN -o OUT --bundle DIR
SLURM array:  vit3d predict IN -o OUT --bundle DIR --shard $SLURM_ARRAY_TASK_ID/8   (--array=1-8)

Images far from what the bundle was trained on are refused, as a whole head for crops around
one organ; what is only unlike it, and labels that cannot be true, are warned of, and stand
before the others in report.html (run.json: "suspicious"). With --strict they fail, too.

Exit code: 0 all done, 1 some files failed (run.json says why), 2 wrong usage or bundle."""
# what a plan, which reads no image and loads no bundle, is made of
_OF_PLAN = ("inputs", "output", "bundle", "tta", "uncertainty", "probabilities", "shard", "existing", "include_labels",
            "suffixes", "seg", "only", "split", "mesh", "config", "overrides", "safe")  # fmt: skip


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    predict = verbs.add_parser(
        "predict",
        help="run a bundle over files or folders",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = predict.add_argument
    add_inputs(predict)
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="the folder to write to")
    of = "the MONAI bundle: a folder, a zip, a name of vit3d bundles, or hf:OWNER/NAME@COMMIT of the hub"
    add("--bundle", type=Path, required=True, metavar="BUNDLE", help=of)
    add_config(predict)
    add_device(predict)
    backends = "what runs the network: auto, OpenVINO on a CPU if it is installed and gives PyTorch's answer; else "
    backends += "torch, whose labels are byte for byte those of monai.bundle run; compile; openvino (auto)"
    add("--backend", choices=["torch", "auto", "compile", "openvino"], default="auto", help=backends)
    add("--bf16", action="store_true", help="run the network in bfloat16: faster, labels may differ in a few voxels")
    add_tokens(predict)
    add_jobs(predict)
    views = "average over flips along the axes that the bundle was trained with, or these axes of the network's input; "
    views += "full: over the bundle's rotations and scales, too"
    tta = {"dest": "tta", "type": _views, "default": False, "metavar": "flips|full|0,1,2"}
    add("--tta", nargs="?", const="flips", help=views, **tta)
    add("--tta-axes", help=argparse.SUPPRESS, **tta)  # the name that --tta had for axes
    _add_outputs(predict)
    add_existing(predict)
    folds = "which trained folds of the bundle run, as 0,2; their probabilities are averaged (all)"
    add("--folds", type=_numbers, metavar="0,2", help=folds)
    add_dry_run(predict)
    add_safe(predict)
    add_anyway(predict)
    strict = "what is unlike the bundle's training, or labels that cannot be true, fails; nothing of it is written"
    add("--strict", action="store_true", help=strict)
    add_shard(predict)
    add_example(
        predict,
        "vit3d predict heads -o out --bundle head_hippocampus",
        "vit3d predict a.nii.gz b.nii.gz -o out --bundle mybundle --only left --mesh stl --resume",
    )
    predict.set_defaults(run=_run, parser=predict)


def _add_outputs(predict: argparse.ArgumentParser) -> None:
    """Add what is written for each case beside or in place of all labels."""
    add = predict.add_argument
    add("--uncertainty", choices=["entropy", "variance"], help="a map of it, too; variance needs --tta")
    add("--probabilities", action="store_true", help="a map for each class, too")
    nifti = "write the labels of DICOM series as NIfTI alone, not as DICOM SEG, too"
    add("--no-seg", dest="seg", action="store_false", help=nifti)
    only = (
        "labels to write, by name or value, as left_hippocampus,3, or left, right; the others become background (all)"
    )
    add("--only", type=_texts, default=(), metavar="NAMES", help=only)
    add("--split", action="store_true", help="each label as a file of 0 and 1, too: NAME_seg-LABEL.nii.gz")
    mesh = "a surface of each label in mm, too: NAME_seg-LABEL.stl or .ply"
    add("--mesh", choices=["stl", "ply"], help=mesh)


def _views(text: str) -> str | tuple[int, ...]:
    if text in ("flips", "full"):
        return text
    try:
        return _numbers(text)
    except ValueError as error:
        expected = "expected flips, full or axes as 0,1; nothing is flips, written after INPUT"
        raise argparse.ArgumentTypeError(f"{text}; {expected}") from error


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _texts(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _run(args: argparse.Namespace) -> int:
    from monai_vit3d.distributed import TorchrunProcess
    from monai_vit3d.pipeline.folder import plan_folder, predict_folder
    from monai_vit3d.pipeline.plan import parse_shard

    process = TorchrunProcess.from_environment()
    options = parsed(args, "dry_run")
    options["shard"] = parse_shard(args.shard) if args.shard else process.shard
    options["device"] = args.device or process.device
    if args.dry_run:
        print_plan(plan_folder(**{name: options[name] for name in _OF_PLAN}))
        return 0
    with Progress() as progress:
        options |= {"noted": noted(args), "on_plan": progress.begin, "on_case": progress, "on_window": progress.window}
        summary = predict_folder(**options)
    failed = process.all_reduce_sum(summary.failed)
    doubtful = f" ({summary.suspicious} to look at: labels may be wrong)" if summary.suspicious else ""
    counts = f"{summary.done} done{doubtful}, {summary.skipped} skipped, {summary.failed} failed"
    print(f"{counts}: {args.output / 'report.html'}")
    return 1 if failed else 0
