"""`vit3d weights`: list and fetch published models; describe weights, and convert those of other projects."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from monai_vit3d.data.printable import printable

from .flags import with_flags
from .options import add_example, parsed

_FAMILY = "what the weights are, if that is known better than their keys show: nidl, monai_vit, ..."
_TAKE = "which of several networks in a checkpoint: teacher (the averaged one), student, or a word of its keys"


def add_verb(verbs: Any) -> None:
    """Add the verb and its ways to the command's parser."""
    weights = verbs.add_parser("weights", help="published models; say what weights are, or make them ours")
    add_example(weights, "vit3d weights list", "vit3d weights info model.pt")
    ways = weights.add_subparsers(required=True, metavar="WAY")
    info = _add_info(ways)
    # what info misses is said in the flags that give it to convert
    info.set_defaults(parser=_add_convert(ways))
    _add_published(ways)


def _add_info(ways: Any) -> argparse.ArgumentParser:
    info = ways.add_parser("info", help="say of which family weights are, and what would be loaded")
    info.add_argument("path", type=Path, metavar="FILE", help="the weights, or a folder of save_pretrained")
    info.add_argument("--take", default="teacher", metavar="WORD", help=_TAKE)
    info.add_argument("--family", metavar="NAME", help=_FAMILY)
    info.add_argument("--json", action="store_true", help="as JSON")
    add_example(info, "vit3d weights info model.pt")
    info.set_defaults(run=_run_info)
    return info


def _add_convert(ways: Any) -> argparse.ArgumentParser:
    convert = ways.add_parser("convert", help="write weights of other projects, or of another size, as ours")
    add = convert.add_argument
    add("path", type=Path, metavar="IN", help="the weights, or a folder of save_pretrained")
    add("out", type=Path, metavar="OUT", help="NAME.safetensors for the backbone alone, or a folder")
    add("--timm", dest="timm_name", metavar="NAME", help="timm's name of the model, for 2D weights")
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
    add_example(convert, "vit3d weights convert checkpoint.pt backbone.safetensors --img-size 96,96,96")
    convert.set_defaults(run=_run_convert, parser=convert)
    return convert


def _add_published(ways: Any) -> None:
    table = ways.add_parser("list", help="published models by name, with their licences")
    table.add_argument("--json", action="store_true", help="as JSON")
    add_example(table, "vit3d weights list")
    table.set_defaults(run=_run_list, parser=table)
    get = ways.add_parser("get", help="fetch a published model from the hub")
    get.add_argument("name", metavar="NAME", help="of the list")
    get.add_argument("-o", "--out", type=Path, metavar="OUT", help="write its backbone as NAME.safetensors, too")
    accept = "its licence was read and is kept; needed unless the weights may be used commercially"
    get.add_argument("--accept-licence", action="store_true", help=accept)
    get.add_argument("--overwrite", action="store_true", help="write OUT anew if it is there already")
    add_example(get, "vit3d weights get colipri --accept-licence -o colipri.safetensors")
    get.set_defaults(run=_run_get, parser=get)
    pin = ways.add_parser("pin", help="print the revision and the SHA-256 of each of a published model's files")
    pin.add_argument("name", metavar="NAME", help="of the list")
    add_example(pin, "vit3d weights pin colipri")
    pin.set_defaults(run=_run_pin, parser=pin)


def _run_list(args: argparse.Namespace) -> int:
    from monai_vit3d.weights.fetch import list_published

    rows = list_published()
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    texts = {None: "unknown", True: "yes", False: "no"}
    cells = [("NAME", "LICENCE OF THE WEIGHTS", "COMMERCIAL", "GATED", "LOADS", "NOT STATED", "TITLE")]
    for row in rows:
        licence = row["licence"] or "unknown"
        flags = (texts[row[key]] for key in ("commercial", "gated", "loads"))
        cells.append((row["name"], licence, *flags, ", ".join(row["unstated"]) or "-", row["title"]))
    widths = [max(map(len, column)) for column in zip(*cells)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    return 0


def _run_get(args: argparse.Namespace) -> int:
    from monai_vit3d.weights.fetch import get_weights

    print(printable(get_weights(**parsed(args))))
    return 0


def _run_pin(args: argparse.Namespace) -> int:
    from monai_vit3d.data.published_models import published_model
    from monai_vit3d.weights.fetch import pin_weights

    entry = published_model(args.name)
    pin = pin_weights(entry)
    print(f"revision: {pin.revision}\nsha256: {pin.sha256}")
    if entry.combiner is not None:
        pin = pin_weights(entry.combiner)
        print(f"combiner:\n  revision: {pin.revision}\n  sha256: {pin.sha256}")
    return 0


def _run_info(args: argparse.Namespace) -> int:
    from monai_vit3d.weights.info import describe_weights

    description = describe_weights(**parsed(args, "json"))
    if args.json:
        print(json.dumps(description, indent=1))
        return 0
    for key, value in description.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name}={json.dumps(one)}" for name, one in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        value = with_flags(value) if key == "needed" else value
        print(f"{key:12s}  {'none' if value == '' else printable(value)}")
    return 0


def _run_convert(args: argparse.Namespace) -> int:
    from monai_vit3d.weights.info import convert_weights

    options = {key: value for key, value in parsed(args).items() if value is not None}
    print(printable(convert_weights(**options)))
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        return ()


def _size(text: str) -> tuple[int, ...]:
    numbers = _numbers(text)
    if len(numbers) not in (1, 3) or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected one whole number above 0, or three as H,W,D")
    return numbers * 3 if len(numbers) == 1 else numbers


def _grid(text: str) -> tuple[int, ...]:
    numbers = _numbers(text)
    if len(numbers) not in (2, 3) or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected two or three whole numbers above 0, as H,W or H,W,D")
    return numbers
