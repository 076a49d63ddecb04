"""`vit3d`, the command: every verb calls a function that Python users can call too."""

from __future__ import annotations

import argparse
import atexit
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .cli_measure import add_measure
from .cli_streams import EscapedStream, Terminated, guard_streams, raise_on_signals
from .cli_weights import add_weights
from .data.printable import printable
from .search_path import without_folders

if TYPE_CHECKING:
    from .pipeline.plan import Plan

_PREDICT = """INPUT is a NIfTI file (or .mgz, .nrrd, .mha, .img with .hdr), a folder of them or of DICOM
series, a BIDS data set, or a CSV or JSON list of cases (column "image", or several that begin
so for the channels of one case; optional "name"). Hidden files, outputs of earlier runs and
label files in a folder are passed over, and named. OUT gets NAME_seg.nii.gz on each file's own
grid, run.json, stats.csv or predictions.csv, and report.html to look at.

Several GPUs: torchrun --nproc_per_node=2 -m monai_vit3d.cli predict IN -o OUT --bundle DIR
SLURM array:  vit3d predict IN -o OUT --bundle DIR --shard $SLURM_ARRAY_TASK_ID/8   (--array=1-8)

Images far from what the bundle was trained on are refused, as a whole head for crops around
one organ; what is only unlike it, and labels that cannot be true, are warned of, and stand
before the others in report.html (run.json: "suspicious"). With --strict they fail, too.

Exit code: 0 all done, 1 some files failed (run.json says why), 2 wrong usage or bundle."""


def _demo(args: argparse.Namespace) -> int:
    from .pipeline.demo import run_demo

    demo = run_demo(args.bundle, args.output)
    for side, volumes in demo.volumes_ml.items():
        print(f"{side:5s}  " + "  ".join(f"{name} {ml:.2f} ml" for name, ml in volumes.items()))
    for path in [*demo.images.values(), *demo.labels.values(), demo.report, demo.picture]:
        print(path)
    return 0


def _predict(args: argparse.Namespace) -> int:
    from .pipeline.distributed import TorchrunProcess
    from .pipeline.folder import plan_folder, predict_folder
    from .pipeline.plan import parse_shard

    ranks = TorchrunProcess.from_environment()
    what = {
        "tta": args.tta_axes or args.tta,
        "uncertainty": args.uncertainty,
        "probabilities": args.probabilities,
        "shard": parse_shard(args.shard) if args.shard else ranks.shard,
        "existing": "resume" if args.resume else "overwrite" if args.overwrite else "refuse",
        "include_labels": args.include_labels,
        "suffixes": args.suffix,
        "seg": not args.no_seg,
    }
    chosen = _chosen(args)
    if args.dry_run:
        plan = plan_folder(args.inputs, args.output, args.bundle, **what)
        _print_notes(plan)
        print(plan.table())
        return 0
    with _Progress() as progress:
        summary = predict_folder(
            args.inputs,
            args.output,
            args.bundle,
            **what,
            **chosen,
            volume=args.volume,
            max_voxels=args.max_voxels,
            units=args.units,
            device=args.device or ranks.device,
            backend=args.backend,
            bf16=args.bf16,
            jobs=args.jobs,
            safe=args.safe,
            anyway=args.anyway,
            strict=args.strict,
            on_plan=progress.begin,
            on_case=progress,
        )
    failed = ranks.all_reduce_sum(summary.failed)
    doubtful = f" ({summary.suspicious} to look at: labels may be wrong)" if summary.suspicious else ""
    counts = f"{summary.done} done{doubtful}, {summary.skipped} skipped, {summary.failed} failed"
    print(f"{counts}: {args.output / 'report.html'}")
    return 1 if failed else 0


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Which config files of the bundle, and which values in them."""
    from .pipeline.config import parse_override

    return {"config": args.config, "overrides": dict(parse_override(text) for text in args.set or [])}


def _axes(text: str) -> tuple[int, ...]:
    return tuple(int(axis) for axis in text.split(","))


def _check(args: argparse.Namespace) -> int:
    from .pipeline.check import check_files

    found = check_files(
        args.inputs,
        args.volume,
        args.max_voxels,
        args.include_labels,
        args.suffix,
        args.units,
        bundle=args.bundle,
        safe=args.safe,
        anyway=args.anyway,
        **_chosen(args),
    )
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        for one in found:
            print(f"{one['verdict']:7s}  {printable(one['text'])}")
    return 1 if any(one["verdict"] == "refused" for one in found) else 0


def _info(args: argparse.Namespace) -> int:
    from .pipeline.info import describe_bundle

    for key, value in describe_bundle(args.bundle, **_chosen(args)).items():
        print(f"{key:12s}  {printable(value)}")
    return 0


class _Progress:
    """A bar on a terminal; a line for each file elsewhere."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.seen, self.total = 0, 0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def begin(self, plan: Plan) -> None:
        """Take in how many cases there are."""
        from tqdm import tqdm

        _print_notes(plan)
        self.total = len(plan.cases)
        if sys.stderr.isatty():
            self.bar = tqdm(total=self.total, unit="file", dynamic_ncols=True, file=_terminal())

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Tell of a case that has ended; of what is odd about it, one line each."""
        self.seen += 1
        say: Callable[[str], Any] = print_error if self.bar is None else self._above
        if self.bar is None:
            say(f"{self.seen}/{self.total} {record['status']} {record['name']} ({record['seconds']:.1f} s)")
        else:
            self.bar.set_postfix_str(printable(record["name"])[-40:], refresh=False)
            self.bar.update()
        if record["status"] == "failed":
            say(f"  failed: {record['error']}")
        for warning in record["warnings"] if record["status"] == "done" else []:
            say(f"  warning: {record['name']}: {warning}")

    def _above(self, text: str) -> None:
        with self.bar.external_write_mode(_terminal()):
            print_error(text)


def _print_notes(plan: Plan) -> None:
    """Say what was passed over, once for all shards."""
    for i, line in enumerate(plan.notes() if plan.shard[0] == 1 else []):
        print_error(f"  {line}" if i else f"vit3d: {line}")


def _terminal() -> Any:
    """Standard error as it is, for a bar that moves the cursor."""
    return sys.stderr.raw if isinstance(sys.stderr, EscapedStream) else sys.stderr


def print_error(text: str) -> None:
    """Write a line to standard error; what cannot be printed, line breaks of a file's name too, is shown as escapes."""
    print(printable(text), file=sys.stderr, flush=True)


def _add_predict(verbs: Any) -> None:
    predict = verbs.add_parser(
        "predict",
        help="run a bundle over files or folders",
        description=_PREDICT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = predict.add_argument
    _add_inputs(predict)
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="the folder to write to")
    add("--bundle", type=Path, required=True, metavar="DIR", help="the MONAI bundle: a folder or a zip")
    _add_choice(predict)
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU where there is one by default")
    backends = ["torch", "auto", "compile", "openvino"]
    add("--backend", choices=backends, default="torch", help="what runs the network; auto: OpenVINO, if installed")
    add("--bf16", action="store_true", help="run the network in bfloat16: faster, labels may differ in a few voxels")
    add("--jobs", type=int, default=1, metavar="N", help="threads that read ahead, and threads that write (1)")
    add("--tta", action="store_true", help="average over flips along the axes that the bundle was trained with")
    add("--tta-axes", type=_axes, metavar="0,1,2", help="average over flips along these axes of the network's input")
    add("--uncertainty", choices=["entropy", "variance"], help="a map of it, too; variance needs --tta")
    add("--probabilities", action="store_true", help="a map for each class, too")
    add("--no-seg", action="store_true", help="write the labels of DICOM series as NIfTI alone, not as DICOM SEG, too")
    there = predict.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="skip what is verified to be done")
    there.add_argument("--overwrite", action="store_true", help="write outputs anew that are there already")
    add("--dry-run", action="store_true", help="say what would be written, and write nothing")
    add("--safe", action="store_true", help="refuse a bundle whose config is more than settings")
    _add_anyway(predict)
    strict = "what is unlike the bundle's training, or labels that cannot be true, fails; nothing of it is written"
    add("--strict", action="store_true", help=strict)
    add("--shard", metavar="I/N", help="do the I-th of N parts; all parts share OUT")
    predict.set_defaults(run=_predict)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", nargs="+", metavar="NAME", help="config files of the bundle, merged in order (inference)")
    add("--set", action="append", metavar="ID=VALUE", help="a value of the config, such as inferer::overlap=0.25")


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="files, folders or lists")
    parser.add_argument("--volume", type=int, metavar="N", help="which volume of 4D files and series, from 0")
    units = "of DICOM PET: as stored, mostly Bq/ml, or SUV by body weight"
    parser.add_argument("--units", choices=["stored", "suv"], default="stored", help=units)
    images = "take label files and outputs of earlier runs as images, too, which are passed over"
    parser.add_argument("--include-labels", action="store_true", help=images)
    suffix = "take files of folders whose names end so, such as T1w of sub-01_T1w.nii.gz; may be given several times"
    parser.add_argument("--suffix", action="append", default=[], metavar="SUFFIX", help=suffix)
    parser.add_argument("--max-voxels", type=int, default=2**30, metavar="N", help="the largest volume taken (2^30)")


def _add_anyway(parser: argparse.ArgumentParser) -> None:
    anyway = "take images far from what the bundle was trained on, too; the report warns of them"
    parser.add_argument("--anyway", action="store_true", help=anyway)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vit3d", description="3D Vision Transformers for NIfTI volumes.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_predict(verbs)
    check = verbs.add_parser("check", help="say whether files can be used, and what is odd about them")
    _add_inputs(check)
    check.add_argument("--json", action="store_true", help="as JSON")
    of = "compare them with what this bundle was trained on, too: a folder or a zip"
    check.add_argument("--bundle", type=Path, metavar="DIR", help=of)
    check.add_argument("--safe", action="store_true", help="refuse a bundle whose config is more than settings")
    _add_choice(check)
    _add_anyway(check)
    check.set_defaults(run=_check)
    info = verbs.add_parser("info", help="say what a bundle is for and what it needs")
    info.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle: a folder or a zip")
    _add_choice(info)
    info.set_defaults(run=_info)
    add_measure(verbs)
    add_weights(verbs)
    demo = verbs.add_parser("demo", help="segment both hippocampi of nilearn's MNI152 template")
    demo.add_argument(
        "--bundle", type=Path, default=Path("bundles/hippocampus_segmentation"), help="the bundle's folder"
    )
    demo.add_argument("-o", "--output", type=Path, default=Path("demo_output"), help="the folder to write to")
    demo.set_defaults(run=_demo)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 failed with a message, 2 wrong usage or bundle.

    Args:
        argv: the arguments, without the command's name; None takes the process' own.
    """
    args = _parser().parse_args(argv)
    # PyTorch's memory in pages of 2 MiB where Linux has them: on virtual machines the faults of small ones cost half of
    # a UNETR's time. PyTorch reads it once, at its first tensor
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from .data.errors import BundleError, UsageError, Vit3dError, WeightsError

    try:
        strangers = [args.bundle] if getattr(args, "bundle", None) else []
        with without_folders(*strangers) if getattr(args, "safe", False) else nullcontext():
            code = int(args.run(args))
        sys.stdout.flush()
        return code
    except (Vit3dError, RuntimeError) as error:
        first, *more = getattr(error, "lines", None) or [str(error)]
        for line in (f"vit3d: {first}", *more):
            print_error(line)
        return 2 if isinstance(error, UsageError | BundleError | WeightsError) else 1
    except KeyboardInterrupt:
        print_error("vit3d: interrupted; --resume goes on with what is left")
        return 130
    except Terminated as signal:
        print_error(f"vit3d: ended by signal {signal.number}; --resume goes on with what is left")
        return 128 + signal.number
    except OSError as error:
        print_error(f"vit3d: {error}. Mend that; predict --resume goes on with what is left")
        return 1


def run_process() -> NoReturn:
    """The process' own command: :func:`main` with this package's log on standard error, and out.

    The interpreter would take 1.4 s to free a million objects of PyTorch's and MONAI's modules one by one, which the
    kernel takes back at once.
    """
    guard_streams()
    raise_on_signals()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("vit3d: %(message)s"))
    logging.getLogger("monai_vit3d").addHandler(handler)
    logging.getLogger("monai_vit3d").setLevel(logging.INFO)
    code = main()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    if isinstance(sys.stdout, EscapedStream) and sys.stdout.lost:
        print_error(f"vit3d: standard output is not whole: {sys.stdout.lost}")
        code = code or 1
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run_process()
