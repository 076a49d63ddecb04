"""`vit3d check`: say whether files can be used, by any bundle or by one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from monai_vit3d.data.printable import printable

from .flags import with_flags
from .options import add_anyway, add_config, add_example, add_inputs, add_safe, parsed


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    check = verbs.add_parser("check", help="say whether files can be used, and what is odd about them")
    add_inputs(check)
    check.add_argument("--json", action="store_true", help="as JSON")
    of = "compare them with what this bundle was trained on, too, given as for predict; its weights are not needed"
    check.add_argument("--bundle", type=Path, metavar="DIR", help=of)
    add_config(check)
    add_safe(check)
    add_anyway(check)
    add_example(check, "vit3d check scans", "vit3d check scans --bundle head_hippocampus --json")
    check.set_defaults(run=_run, parser=check)


def _run(args: argparse.Namespace) -> int:
    from monai_vit3d.pipeline.check import check_files

    verdicts = check_files(**parsed(args, "json"))
    if args.json:
        print(json.dumps(verdicts, indent=1))
    else:
        for verdict in verdicts:
            print(f"{verdict['verdict']:7s}  {printable(with_flags(verdict['text']))}")
    return 1 if any(verdict["verdict"] == "refused" for verdict in verdicts) else 0
