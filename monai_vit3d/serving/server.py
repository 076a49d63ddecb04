"""A server of the Model Context Protocol (https://modelcontextprotocol.io) on standard input and output."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from monai_vit3d import __version__
from monai_vit3d.bundle.search_path import without_folders
from monai_vit3d.bundle.shipped import find_bundle
from monai_vit3d.data.errors import UsageError, Vit3dError, install_extra

from .arguments import checked_arguments
from .tools import SERVED_TOOLS, OnCaseDone

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

logger = logging.getLogger(__name__)
_INSTRUCTIONS = "3D Vision Transformers for medical images. Paths are of the machine that this server runs on."


def serve_stdio(trust_bundles: bool = False) -> None:
    """Serve the tools of :data:`~.tools.SERVED_TOOLS` on standard input and output, until the input ends.

    Args:
        trust_bundles: whether bundles may hold code; by default they are run as by ``safe=True``.

    Raises:
        UsageError: the package mcp is not installed.
    """
    server = build_server(trust_bundles)
    import anyio
    from mcp.server.stdio import stdio_server

    async def serve() -> None:
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    anyio.run(serve)


def build_server(trust_bundles: bool = False) -> Server[Any]:
    """Build the server; of several calls at once, one after the other is done.

    Args:
        trust_bundles: as for :func:`serve_stdio`.

    Raises:
        UsageError: the package mcp is not installed.
    """
    try:
        import anyio
        import mcp_types as protocol
        from mcp.server.lowlevel import Server
    except ImportError as error:
        raise UsageError(f"serving needs the package mcp, which is not installed: {install_extra('serve')}.") from error
    one_at_a_time = anyio.Lock()

    async def list_tools(context: Any, request: Any) -> protocol.ListToolsResult:
        return protocol.ListToolsResult(
            tools=[
                protocol.Tool(
                    name=name,
                    description=tool.description,
                    input_schema=tool.schema,
                    annotations=protocol.ToolAnnotations(read_only_hint=not tool.writes),
                )
                for name, tool in SERVED_TOOLS.items()
            ]
        )

    async def call_tool(context: Any, request: Any) -> protocol.CallToolResult:
        def on_case(done: int, total: int, text: str) -> None:
            anyio.from_thread.run(context.session.report_progress, done, total, text)

        async with one_at_a_time:
            call = partial(call_served, request.name, request.arguments or {}, trust_bundles, on_case)
            answer, failed = await anyio.to_thread.run_sync(call)
        text = answer.get("error") or json.dumps(answer, indent=1)
        content: list[Any] = [protocol.TextContent(type="text", text=text)]
        return protocol.CallToolResult(content=content, structured_content=answer, is_error=failed)

    about: dict[str, Any] = {"version": __version__, "instructions": _INSTRUCTIONS}
    return Server("vit3d", **about, on_list_tools=list_tools, on_call_tool=call_tool)


def call_served(
    name: str,
    given: Mapping[str, Any],
    trust_bundles: bool = False,
    on_case: OnCaseDone = lambda done, total, text: None,
) -> tuple[dict[str, Any], bool]:
    """Call a tool: its answer, and whether it, or a case of it, failed; what the verb refuses has the key ``error``.

    Args:
        name: of :data:`~.tools.SERVED_TOOLS`.
        given: the arguments, as JSON has them.
        trust_bundles: as for :func:`serve_stdio`.
        on_case: is told of each case.
    """
    try:
        if name not in SERVED_TOOLS:
            raise UsageError(f"{name}: no such tool; expected one of {', '.join(SERVED_TOOLS)}.")
        tool = SERVED_TOOLS[name]
        arguments = checked_arguments(tool.schema, given)
        safe = tool.opens_bundles and not trust_bundles
        folders = [find_bundle(arguments["bundle"])] if arguments.get("bundle") else []
        with nullcontext() if trust_bundles else without_folders(*folders):
            answer = tool.run(arguments | ({"safe": True} if safe else {}), on_case)
        return answer, bool(answer.get("failed"))
    except (Vit3dError, RuntimeError, OSError) as error:
        logger.debug("%s failed", name, exc_info=True)
        return {"error": "\n".join(getattr(error, "lines", None) or [str(error)])}, True
