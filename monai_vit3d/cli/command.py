"""Run the command: parse its verb, turn errors into lines and exit codes, and set up its process."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import sys
from contextlib import nullcontext
from typing import NoReturn

from monai_vit3d import __version__
from monai_vit3d.bundle.search_path import without_folders
from monai_vit3d.bundle.shipped import find_bundle
from monai_vit3d.data.errors import BundleError, UsageError, Vit3dError, WeightsError, explain_missing_module
from monai_vit3d.deferred_imports import defer_imports

from . import bundles, check, compare, demo, embed, evaluate, info, init, measure, predict, probe, serve, train, weights
from .flags import use_flags_of
from .lab_defaults import use_lab_defaults
from .options import add_example
from .parser import OneLineParser
from .progress import print_error
from .streams import EscapedStream, Terminated, guard_streams, raise_on_signals
from .verbosity import LineFormatter, add_verbosity, command_log, heeding_verbosity

VERBS = (init, train, evaluate, predict, compare, embed, probe, check, info, measure, bundles, weights, serve, demo)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all verbs."""
    parser = OneLineParser(prog="vit3d", description="3D Vision Transformers for NIfTI volumes.")
    add_example(parser, "vit3d demo", "vit3d predict heads -o out --bundle head_hippocampus")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS:
        verb.add_verb(verbs)
    for added in verbs.choices.values():
        add_verbosity(added)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 failed with a message, 2 wrong usage or bundle.

    Args:
        argv: the arguments, without the command's name; None takes the process' own.
    """
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what the word before the cursor may become
        import argcomplete

        argcomplete.autocomplete(parser)
    try:
        lab = use_lab_defaults(parser, sys.argv[1:] if argv is None else argv)
    except UsageError as error:
        print_error(f"vit3d: {error}")
        return 2
    args = parser.parse_args(argv)
    lab.settle(args)
    use_flags_of(args.parser)
    try:
        with heeding_verbosity(args):
            if lab.path is not None:
                print_error(f"vit3d: flags that are not given are as {lab.path} says", logging.INFO)
            return _run_verb(args)
    except OSError as error:
        print_error(f"vit3d: log_file=: {error}. Choose another file.")
        return 2


def _run_verb(args: argparse.Namespace) -> int:
    """Run a verb, and say what ended it."""
    go_on = getattr(args, "go_on", "rerun with --resume to do what is left")
    # PyTorch's memory in pages of 2 MiB where Linux has them: on virtual machines the faults of small ones cost half of
    # a UNETR's time. PyTorch reads it once, at its first tensor
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        folders = [find_bundle(args.bundle)] if getattr(args, "bundle", None) else []
        with without_folders(*folders) if getattr(args, "safe", False) else nullcontext():
            code = int(args.run(args))
        sys.stdout.flush()
        return code
    except (Vit3dError, RuntimeError) as error:
        first, *more = getattr(error, "lines", None) or [str(error)]
        for line in (f"vit3d: {first}", *more):
            print_error(line)
        command_log.debug("The error's traceback:", exc_info=True)
        return 2 if isinstance(error, UsageError | BundleError | WeightsError) else 1
    except ModuleNotFoundError as error:
        if (text := explain_missing_module(error)) is None:
            raise
        print_error(f"vit3d: {text}")
        return 2
    except KeyboardInterrupt:
        print_error(f"vit3d: interrupted; {go_on}")
        return 130
    except Terminated as signal:
        print_error(f"vit3d: ended by signal {signal.number}; {go_on}")
        return 128 + signal.number
    except OSError as error:
        print_error(f"vit3d: {error}. Fix this; {go_on}.")
        return 1


def run_process() -> NoReturn:
    """Run :func:`main` as the process' own command, this package's log on standard error, and exit.

    The interpreter would take 1.4 s to free a million objects of PyTorch's and MONAI's modules one by one, which the
    kernel takes back at once.
    """
    if sys.argv[1:2] == ["predict"]:
        defer_imports()
    guard_streams()
    raise_on_signals()
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("vit3d: %(message)s"))
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
