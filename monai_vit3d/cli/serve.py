"""`vit3d serve`: predict, check, info, embed and bundles as tools of agents and scripts."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_example

_DESCRIPTION = """Serve predict, check, info, embed and bundles as tools of the Model Context Protocol, with the
arguments and refusals of the Python functions behind the verbs. Bundles run as by --safe. The
program that uses the tools starts the server itself; of most, the entry in its settings is

    {"mcpServers": {"vit3d": {"command": "vit3d", "args": ["serve", "--stdio"]}}}

Paths in calls are of this machine, relative ones to the folder in which the server was started."""


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    serve = verbs.add_parser(
        "serve",
        help="serve the verbs as tools of agents and scripts (MCP)",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stdio = "over standard input and output, the one way there is: nothing listens on a network"
    serve.add_argument("--stdio", action="store_true", required=True, help=stdio)
    trust = "run bundles whose config is more than settings, too; else they are refused"
    serve.add_argument("--trust-bundles", action="store_true", help=trust)
    add_example(serve, "vit3d serve --stdio")
    serve.set_defaults(run=_run, parser=serve, go_on="start it again")


def _run(args: argparse.Namespace) -> int:
    from monai_vit3d.serving import serve_stdio

    serve_stdio(args.trust_bundles)
    return 0
