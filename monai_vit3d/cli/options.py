"""Arguments that several verbs share, each stored under its name in the Python functions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai_vit3d.data.errors import UsageError

from .verbosity import VERBOSITY


def add_example(parser: argparse.ArgumentParser, *commands: str) -> None:
    """Add command lines to the end of a verb's help, as an example each."""
    title = "Example:" if len(commands) == 1 else "Examples:"
    parser.epilog = "\n".join([title, *(f"  {command}" for command in commands)])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the inputs, and which of the files and volumes in them are taken."""
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="files, folders or lists")
    parser.add_argument("--volume", type=int, metavar="N", help="which volume of 4D files and series, from 0")
    grid = "resample channels of a case onto the grid of its first, with a warning; else such cases are refused"
    parser.add_argument("--resample-channels", action="store_true", help=grid)
    units = "of DICOM PET: as stored, mostly Bq/ml, or SUV by body weight"
    parser.add_argument("--units", choices=["stored", "suv"], default="stored", help=units)
    images = "take label files and outputs of earlier runs as images, too, which are passed over"
    parser.add_argument("--include-labels", action="store_true", help=images)
    suffix = "take files of folders whose names end so, such as T1w of sub-01_T1w.nii.gz; may be given several times"
    add = parser.add_argument
    add("--suffix", dest="suffixes", action="append", default=[], metavar="SUFFIX", help=suffix)
    add("--max-voxels", type=int, default=2**30, metavar="N", help="the largest volume taken (2^30)")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add which config files of the bundle are read, and which values are set in them."""
    add = parser.add_argument
    add("--config", nargs="+", metavar="NAME", help="config files of the bundle, merged in order (inference)")
    add_overrides(parser, "inferer::overlap=0.25")


def add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Add values that are set in a config or plan."""
    of = f"a value of the config, such as {example}; may be given several times"
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="ID=VALUE", help=of)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add where the network runs."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; a GPU where there is one by default")


def add_tokens(parser: argparse.ArgumentParser) -> None:
    """Add which patches get a token."""
    tokens = "which patches get a token: all; foreground, those that are not constant; or those with a voxel above a "
    tokens += "number, in the units of the network's input (as trained)"
    parser.add_argument("--tokens", type=_tokens, metavar="all|foreground|NUMBER", help=tokens)


def _tokens(text: str) -> str | float:
    try:
        return text if text in ("all", "foreground") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected all, foreground or a number") from None


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add how many threads read and write beside the network."""
    threads = "threads that read ahead, and threads that write (as many as the network waits for)"
    parser.add_argument("--jobs", type=int, metavar="N", help=threads)


def add_existing(parser: argparse.ArgumentParser) -> None:
    """Add what is done about outputs that are there already; without a flag they are refused."""
    existing = parser.add_mutually_exclusive_group()
    skip, anew = "skip what is verified to be done", "write outputs anew that are there already"
    existing.add_argument("--resume", dest="existing", action="store_const", const="resume", help=skip)
    existing.add_argument("--overwrite", dest="existing", action="store_const", const="overwrite", help=anew)
    parser.set_defaults(existing="refuse")


def add_shard(parser: argparse.ArgumentParser) -> None:
    """Add which part of the cases is done."""
    parser.add_argument("--shard", metavar="I/N", help="do the I-th of N parts; all parts share OUT")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add whether a run ends with its plan."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")


def add_safe(parser: argparse.ArgumentParser) -> None:
    """Add whether a bundle may hold code."""
    parser.add_argument("--safe", action="store_true", help="refuse a bundle whose config is more than settings")


def add_anyway(parser: argparse.ArgumentParser) -> None:
    """Add whether images far from the bundle's training are taken."""
    anyway = "take images far from what the bundle was trained on, too; the report warns of them"
    parser.add_argument("--anyway", action="store_true", help=anyway)


def parsed(args: argparse.Namespace, *without: str) -> dict[str, Any]:
    """Return a verb's arguments as keywords of its Python function.

    Args:
        args: the parsed arguments.
        without: names of arguments that the function does not have.
    """
    own = ("run", "parser", "go_on", "lab_defaults", *VERBOSITY)
    keywords = {key: value for key, value in vars(args).items() if key not in (*own, *without)}
    if "overrides" in keywords:
        keywords["overrides"] = dict(map(parse_override, args.overrides))
    return keywords


def noted(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the command adds to run.json: the file that flags which were not given are taken from."""
    return {"lab_defaults": None if args.lab_defaults is None else str(args.lab_defaults)}


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``id=value``; the value is read as YAML, so ``0.5``, ``[96, 96, 96]``, ``true`` are no texts.

    Raises:
        UsageError: no id, no ``=``, or a value that is not YAML.
    """
    import yaml

    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise UsageError(f"--set {text}: expected ID=VALUE, such as inferer::overlap=0.25.")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--set {text}: the value is not YAML ({reason}). Put texts in quotes.") from error
