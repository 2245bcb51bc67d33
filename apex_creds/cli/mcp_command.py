"""``mcp``: in front of any MCP server, so that neither it nor its client holds a secret."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

import typer

from apex_creds.cli.command import Settings, command, span, with_vault
from apex_creds.cli.program import argument, option
from apex_creds.cli.run_command import (
    LIFE,
    SIGNALLED,
    Folder,
    Internal,
    Read,
    Write,
    manifest_of,
    wall_around,
)
from apex_creds.errors import InvalidInputError

if TYPE_CHECKING:
    from apex_creds.vault import Vault


@command()
def mcp(
    chosen: Settings,
    plugin: Annotated[str, option("ID", "The plugin that the server is.", "--plugin")],
    program: Annotated[
        list[str] | None, argument("[COMMAND...]", "The server's program, after --.")
    ] = None,
    url: Annotated[
        str | None, option("URL", "Where the server is, in place of a program.")
    ] = None,
    folder: Folder = None,
    read: Read = None,
    write: Write = None,
    internal: Internal = None,
    life: Annotated[
        float | None,
        option("SPAN", "How long a call may take; a day by default.", "--for", parser=span),
    ] = None,
) -> None:
    """Stand in front of an MCP server, on standard input and output.

    The server's program runs behind a wall with placeholders for keys, or is reached by HTTP.
    Each tool call is checked and audited as an invocation of the tool's name, and sends with
    the credentials that the plugin was granted; answers are cleaned. Put it where a client's
    configuration has the server's own command.
    """
    if (url is None) is not bool(program):
        raise InvalidInputError("Give either a COMMAND after --, or --url.")

    async def work(vault: Vault) -> int:
        from apex_creds.integrations.mcp_proxy import CommandProxy, HttpProxy
        from apex_creds.isolation.dialing import Dialer
        from apex_creds.middleware import CredentialMiddleware

        manifest = await manifest_of(vault, plugin, folder)
        async with CredentialMiddleware(vault, ttl=life or LIFE) as middleware:
            proxy: CommandProxy | HttpProxy
            if url is not None:
                proxy = HttpProxy(middleware, manifest, url)
            else:
                wall = wall_around(program or (), folder, read, write)
                dialer = Dialer(internal=internal or ())
                proxy = CommandProxy(middleware, manifest, wall, dialer=dialer)
            return await proxy.run(_lines(), _write)

    status = with_vault(chosen, work)
    raise typer.Exit(status if status >= 0 else SIGNALLED - status)


async def _lines() -> AsyncIterator[bytes]:
    from apex_creds.integrations.mcp_proxy import LONGEST, lines

    reader = asyncio.StreamReader(limit=LONGEST)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async for line in lines(reader):
        yield line


async def _write(line: bytes) -> None:
    """In a thread: a client that reads slowly holds nothing else up."""
    await asyncio.to_thread(_write_all, line)


def _write_all(line: bytes) -> None:
    while line:
        line = line[os.write(sys.stdout.fileno(), line) :]
