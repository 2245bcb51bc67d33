"""``dashboard``: a page that shows what the vault does, live.

Guarantee: what serves it is imported here only, when the command runs, so that everything
else works without it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import anyio
import typer

from apex_creds.cli import automatic, options, output, session
from apex_creds.cli.options import HomeOption, MasterOption
from apex_creds.cli.rotation import rotating_provider
from apex_creds.errors import InvalidInputError, NotInstalledError
from apex_creds.vault import Vault

_EXTRA: Final = ("starlette", "uvicorn")


def dashboard(
    ctx: typer.Context,
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="0: any that is free.")
    ] = 8765,
    allow_decisions: Annotated[
        bool,
        typer.Option(
            "--allow-decisions",
            help="Requests can be approved and denied on the page; else it only shows.",
        ),
    ] = False,
    names: Annotated[
        bool, typer.Option("--names", help="Names, though the log has pseudonyms.")
    ] = False,
    expose: Annotated[
        str | None,
        typer.Option(
            "--expose-to-network",
            metavar="ADDRESS",
            help="Listen there, where other machines can reach it; needs a certificate.",
            show_default=False,
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--tls-certificate",
            metavar="FILE",
            help="PEM, with its chain.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--tls-key", metavar="FILE", help="Of it, PEM.", show_default=False),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host-name",
            metavar="NAME[:PORT]",
            help="The page is opened by this name, too; repeat.",
            show_default=False,
        ),
    ] = None,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Show keys, leases, permissions, requests and the log live, in a browser.

    On this machine alone, to whoever opens the link that is printed; it works once.
    """
    if (certificate is None) is not (key is None):
        raise InvalidInputError("Give both, --tls-certificate and --tls-key, or neither.")
    try:
        from apex_creds.dashboard.serve import LOOPBACK, Settings, serve
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    chosen = Settings(
        port=port,
        decisions=allow_decisions,
        named=names,
        address=expose or LOOPBACK,
        certificate=None if certificate is None or key is None else (certificate, key),
        hosts=tuple(host or ()),
    )
    settings = options.settings(ctx, home, master)
    uri = session.master_uri(settings, session.read_header(settings))

    async def run() -> None:
        # One that can ask again: the master key may be rotated while this runs.
        provider = rotating_provider(uri)
        async with await Vault.unseal(settings.home, master=provider) as vault:
            await automatic.look(vault)
            vault.heed_lockdown()
            await serve(vault, chosen, say=_say)

    anyio.run(run)


def _say(text: str) -> None:
    output.say(text)
    sys.stdout.flush()  # whoever reads a pipe waits for the link


def _missing(error: ModuleNotFoundError) -> Exception:
    if (error.name or "").partition(".")[0] not in _EXTRA:
        return error
    return NotInstalledError(
        "What serves the dashboard is not installed.",
        hint="Install it: pip install 'apex-creds[dashboard]'",
    )
