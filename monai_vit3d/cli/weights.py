"""`vit3d weights`: say what weights are, and make those of other projects ours."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.printable import printable

# what the functions of weights call by a keyword, and the command by a flag
_WEIGHTS_OPTIONS = (
    *("img_size", "patch_size", "in_chans", "num_heads", "num_classes", "pos_embed", "axis", "kernel", "positions"),
    *("grid", "take", "family"),
)
_FAMILY = "what the weights are, if that is known better than their keys show: nidl, monai_vit, ..."
_TAKE = "which of several networks in a checkpoint: teacher (the averaged one), student, or a word of its keys"


def _weights_info(args: argparse.Namespace) -> int:
    from ..weights.info import describe_weights

    with _in_flags():
        found = describe_weights(args.file, take=args.take, family=args.family)
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name}={json.dumps(one)}" for name, one in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        value = _flags(value) if key == "needed" else value
        print(f"{key:12s}  {'none' if value == '' else printable(value)}")
    return 0


def _weights_convert(args: argparse.Namespace) -> int:
    from ..weights.info import convert_weights

    options = {key: getattr(args, key) for key in _WEIGHTS_OPTIONS if getattr(args, key) is not None}
    options |= {"timm_name": args.timm, "overwrite": args.overwrite}
    with _in_flags():
        print(printable(convert_weights(args.file, args.output, **options)))
    return 0


def _flags(text: str) -> str:
    """A message with the command's flags in place of the functions' keywords."""
    for key in _WEIGHTS_OPTIONS:
        flag = f"--{key.replace('_', '-')}"
        text = re.sub(rf"\b{key}=(?=[\s.,;)]|$)", flag, text)
        text = re.sub(rf"\b{key}=", f"{flag} ", text)
    return text


@contextmanager
def _in_flags() -> Iterator[None]:
    from ..data.errors import UsageError, WeightsError

    try:
        yield
    except (UsageError, WeightsError) as error:
        raise type(error)(_flags(str(error))) from error


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        return ()


def _size(text: str) -> tuple[int, ...]:
    numbers = _numbers(text)
    if len(numbers) not in (1, 3) or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; one whole number above 0 is needed, or three as H,W,D")
    return numbers * 3 if len(numbers) == 1 else numbers


def _grid(text: str) -> tuple[int, ...]:
    numbers = _numbers(text)
    if len(numbers) not in (2, 3) or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; two or three whole numbers above 0 are needed, as H,W or H,W,D")
    return numbers


def add_weights(verbs: Any) -> None:
    """Add the verb and its ways.

    Args:
        verbs: argparse's subparsers.
    """
    about = verbs.add_parser("weights", help="say what weights are, or make those of other projects ours")
    ways = about.add_subparsers(required=True, metavar="WAY")
    info = ways.add_parser("info", help="say of which family weights are, and what would be loaded")
    info.add_argument("file", type=Path, metavar="FILE", help="the weights, or a folder of save_pretrained")
    info.add_argument("--take", default="teacher", metavar="WORD", help=_TAKE)
    info.add_argument("--family", metavar="NAME", help=_FAMILY)
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(run=_weights_info)
    convert = ways.add_parser("convert", help="write weights of other projects, or of another size, as ours")
    add = convert.add_argument
    add("file", type=Path, metavar="IN", help="the weights, or a folder of save_pretrained")
    add("output", type=Path, metavar="OUT", help="NAME.safetensors for the backbone alone, or a folder")
    add("--timm", metavar="NAME", help="timm's name of the model, for 2D weights")
    add("--img-size", type=_size, metavar="H,W,D", help="input size in voxels")
    add("--patch-size", type=_size, metavar="H,W,D", help="patch size in voxels")
    add("--in-chans", type=int, metavar="N", help="input channels")
    add("--num-heads", type=int, metavar="N", help="attention heads, which no tensor shows")
    add("--num-classes", type=int, metavar="N", help="outputs of a new head")
    add("--axis", type=int, choices=[0, 1, 2], help="the slice axis of 2D weights (2)")
    add("--kernel", choices=["mean", "center", "trilinear"], help="how 2D kernels gain an axis (mean)")
    add("--positions", choices=["repeat", "factored"], help="how 2D positions gain an axis (repeat)")
    add("--pos-embed", choices=["learned", "sincos", "none"], help="positions, where no tensor shows them")
    add("--grid", type=_grid, metavar="H,W[,D]", help="patches that the positions were learned on")
    add("--take", default="teacher", metavar="WORD", help=_TAKE)
    add("--family", metavar="NAME", help=_FAMILY)
    add("--overwrite", action="store_true", help="write OUT anew if it is there already")
    convert.set_defaults(run=_weights_convert)
