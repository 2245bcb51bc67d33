"""``run``: any program as a plugin, behind the wall; ``mcp``: in front of any MCP server.

Guarantee: neither the program, nor the server, nor its client ever holds a secret.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from apex_creds.cli.command import Settings, command, span, with_vault
from apex_creds.cli.grant_commands import manifest_in
from apex_creds.cli.program import argument, option
from apex_creds.errors import AccessDeniedError, InvalidInputError, NotFoundError
from apex_creds.fs.private_files import write_all
from apex_creds.policy.grants import GrantDecision
from apex_creds.policy.manifest import Access, Manifest, Need
from apex_creds.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apex_creds.isolation.sandbox import Wall, Walled
    from apex_creds.vault import Vault


_NOBODY: Final = (
    "See apex-creds audit tail. There is no terminal to ask for consent or a second factor on: "
    "run it on one, or grant first."
)
SIGNALLED: Final = 128
LIFE: Final = 24 * 3600.0


# What is seen behind the wall: options of `run` and `mcp`.
Folder = Annotated[
    Path | None, option("DIR", "Where its metadata is; it sees that folder.", "--plugin-dir")
]
Read = Annotated[list[Path] | None, option("DIR", "It may read this folder; repeat.", "--read")]
Write = Annotated[
    list[Path] | None, option("DIR", "It may change this folder; repeat.", "--write")
]
Internal = Annotated[
    list[str] | None,
    option("HOST", "This host may have an address that is not public; repeat."),
]


@command()
def run(
    chosen: Settings,
    program: Annotated[list[str], argument("COMMAND...", "What to run, after --.")],
    plugin: Annotated[str, option("ID", "The plugin that it is.", "--plugin")],
    folder: Folder = None,
    read: Read = None,
    write: Write = None,
    internal: Internal = None,
    life: Annotated[
        float | None,
        option(
            "SPAN",
            "How long it has credentials at most; a day by default.",
            "--for",
            parser=span,
        ),
    ] = None,
) -> None:
    """Run a program behind a wall: placeholders for keys, a gateway for network.

    It sees the system's programs and the folders that are named, and connects to nothing but
    the gateway, which sends its requests with the credentials that the plugin was granted:
    each is checked and audited as any other use. Where a person has to consent, or to show a
    second factor, that is asked first, on the terminal. Its exit code is the program's.
    """
    wall = wall_around(program, folder, read, write, terminal=sys.stdin.isatty())

    async def work(vault: Vault) -> int:
        from apex_creds.auth.terminal import TerminalConsent
        from apex_creds.isolation.dialing import Dialer
        from apex_creds.isolation.programs import run_program
        from apex_creds.middleware import CredentialMiddleware

        # All that a person is needed for is asked before the program has the terminal.
        person = TerminalConsent() if TerminalConsent.is_there() else None
        manifest = await manifest_of(vault, plugin, folder)
        loop = asyncio.get_running_loop()

        def began(walled: Walled) -> None:
            loop.add_signal_handler(signal.SIGTERM, walled.process.terminate)
            if wall.terminal:  # the terminal sends Ctrl-C to the program as well
                loop.add_signal_handler(signal.SIGINT, lambda: None)

        try:
            async with CredentialMiddleware(
                vault, ttl=life or LIFE, consent=person, second_factor=person
            ) as middleware:
                dialer = Dialer(internal=internal or ())
                return await run_program(middleware, manifest, wall, dialer=dialer, began=began)
        except AccessDeniedError as error:
            if person is None:
                raise AccessDeniedError(error.message, hint=_NOBODY) from None
            raise
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)

    status = with_vault(chosen, work)
    raise typer.Exit(status if status >= 0 else SIGNALLED - status)


async def manifest_of(vault: Vault, plugin: str, folder: Path | None) -> Manifest:
    """What the plugin's metadata declares; without that, all that it was granted.

    Raises:
        NotFoundError: It was granted nothing.
    """
    if folder is not None:
        return manifest_in(folder, plugin)
    needs = tuple(
        Need(
            name=each.credential,
            scopes=each.scopes,
            access=Access.SIGN if each.sign else Access.INJECT,
            required=False,
        )
        for each in await vault.grants()
        if each.plugin == plugin and each.decision is not GrantDecision.DENY
    )
    if not needs:
        raise NotFoundError(
            "That plugin was granted nothing.", hint="Grant it: apex-creds grant PLUGIN NAME"
        )
    return Manifest(plugin=plugin, needs=needs)


def wall_around(
    program: Sequence[str],
    folder: Path | None,
    read: Sequence[Path] | None,
    write: Sequence[Path] | None,
    *,
    terminal: bool = False,
) -> Wall:
    """A program, and the folders that it sees."""
    from apex_creds.isolation.sandbox import HOME, Limits, MiB, Wall

    readable, writable = [*(read or ()), *([folder] if folder else ())], write or ()
    here = Path.cwd()
    seen = any(here.is_relative_to(each.resolve()) for each in (*readable, *writable))
    return Wall(
        command=program,
        folders=[path.absolute() for path in readable],
        writable=[path.absolute() for path in writable],
        directory=str(here) if seen else HOME,  # here, if the program sees that
        limits=Limits(memory=None, data=4096 * MiB, processes=1024, files=4096),
        terminal=terminal,
    )


# -- mcp ---------------------------------------------------------------------------------


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
        from apex_creds.integrations.mcp_http_proxy import HttpProxy
        from apex_creds.integrations.mcp_proxy import CommandProxy
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
            out = sys.stdout.fileno()
            # In a thread: a client that reads slowly holds nothing else up.
            return await proxy.run(
                _lines(), lambda line: asyncio.to_thread(write_all, out, line)
            )

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
