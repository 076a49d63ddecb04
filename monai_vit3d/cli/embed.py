"""`vit3d embed`: vectors of files and folders, from published models or weights of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import (
    add_device,
    add_dry_run,
    add_example,
    add_existing,
    add_inputs,
    add_jobs,
    add_shard,
    add_tokens,
    noted,
    parse_override,
    parsed,
)
from .progress import Progress, print_plan

_DESCRIPTION = """INPUT is as for `vit3d predict`: files, folders, DICOM series, BIDS data sets, lists. MODEL is a
name of `vit3d weights list`, whose recipe prepares each scan, or a file of weights with --recipe.
OUT gets NAME_embedding.npy for each scan, run.json, of all scans features.csv (name, subject,
windows, then the vector) and features.npz, and report.html to look at.

What the authors of a model do not state about its input must be given, as --state orientation=RAS.

Exit code: 0 all done, 1 some files failed (run.json says why), 2 wrong usage or weights."""
# what a plan, which reads no image and fetches no weights, is made of
_OF_PLAN = ("inputs", "output", "maps", "similar", "shard", "existing", "include_labels", "suffixes")
_OF_MODEL = (
    "model",
    "weights",
    "recipe",
    "feature",
    "combiner",
    "overlap",
    "whole",
    "tokens",
    "device",
    "accept_licence",
)


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    embed = verbs.add_parser(
        "embed",
        help="vectors of scans, from published models or weights of your own",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = embed.add_argument
    add_inputs(embed)
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="the folder to write to")
    add("--model", required=True, metavar="NAME|FILE", help="a published model, or a file of weights")
    add("--weights", type=Path, metavar="FILE", help="the published model's file, where it lies already")
    add("--recipe", metavar="NAME|YAML", help="how scans are prepared, unless as the model's authors do")
    stated = "a value that the recipe lacks, such as orientation=RAS; may be given several times"
    add("--state", dest="stated", action="append", default=[], metavar="ID=VALUE", help=stated)
    add("--num-heads", type=int, metavar="N", help="attention heads, which no tensor of a file shows")
    features = ["class_token", "mean", "first_patch", "class_token+mean", "attention_pool", "combiner"]
    add("--feature", choices=features, help="what of the tokens is the vector (as the authors; else mean)")
    add("--combiner", type=Path, metavar="FILE", help="the file of SPECTRE's second network, where it lies already")
    add("--overlap", type=float, metavar="X", help="part of a window that the next one covers (the recipe's, or 0.25)")
    add("--whole", action="store_true", help="run each scan as a whole; rotary positions alone")
    add_tokens(embed)
    add("--maps", action="store_true", help="write the tokens and their principal components as NIfTI, too")
    point = "write each token's likeness to that at a point in mm as NIfTI, too; with = before a minus sign"
    add("--similar", type=_point, metavar="X,Y,Z", help=point)
    accept = "the model's licence was read and is kept; needed unless it may be used commercially"
    add("--accept-licence", action="store_true", help=accept)
    add_device(embed)
    add_jobs(embed)
    add_existing(embed)
    add_dry_run(embed)
    add_shard(embed)
    add_example(
        embed,
        "vit3d embed scans -o vectors --model colipri --accept-licence",
        "vit3d embed scans -o vectors --model backbone.safetensors --recipe recipe.yaml --maps",
    )
    embed.set_defaults(run=_run, parser=embed)


def _run(args: argparse.Namespace) -> int:
    from monai_vit3d.distributed import TorchrunProcess
    from monai_vit3d.pipeline.embed_folder import embed_folder, plan_embedding
    from monai_vit3d.pipeline.embedder import Embedder, input_channels
    from monai_vit3d.pipeline.plan import parse_shard

    process = TorchrunProcess.from_environment()
    options = parsed(args, "num_heads", "stated", "dry_run")
    options["shard"] = parse_shard(args.shard) if args.shard else process.shard
    options["device"] = args.device or process.device
    of_model = {key: options.pop(key) for key in _OF_MODEL}
    heads = {} if args.num_heads is None else {"num_heads": args.num_heads}
    if args.dry_run:
        channels = input_channels(args.model, heads)
        print_plan(plan_embedding(channels=channels, **{name: options[name] for name in _OF_PLAN}))
        return 0
    embedder = Embedder(**of_model, stated=dict(map(parse_override, args.stated)), options=heads)
    with Progress() as progress:
        options |= {"noted": noted(args), "on_plan": progress.begin, "on_case": progress, "on_window": progress.window}
        summary = embed_folder(embedder=embedder, **options)
    failed = process.all_reduce_sum(summary.failed)
    counts = f"{summary.done} done, {summary.skipped} skipped, {summary.failed} failed"
    print(f"{counts}: {args.output / 'features.csv'}, {args.output / 'report.html'}")
    return 1 if failed else 0


def _point(text: str) -> tuple[float, ...]:
    try:
        point = tuple(float(number) for number in text.split(","))
    except ValueError:
        point = ()
    if len(point) != 3:
        raise argparse.ArgumentTypeError(f"{text!r}; expected three numbers, as -26,-22,-14")
    return point
