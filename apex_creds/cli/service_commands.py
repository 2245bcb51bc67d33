"""``worker`` and ``dashboard``: what runs until it is stopped.

Guarantee: what serves the dashboard is imported here only, when the command runs, so that
everything else works without it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Final

from apex_creds.cli import console
from apex_creds.cli.command import Settings, command, with_vault
from apex_creds.cli.program import flag, option
from apex_creds.concurrency import stop_signals
from apex_creds.errors import InvalidInputError, NotInstalledError
from apex_creds.vault import Vault

_EXTRA: Final = ("starlette", "uvicorn")


@command(asks_again=True)
async def worker(
    vault: Vault,
    every: Annotated[
        float, option("SECONDS", "How often to look.", min=0.05, max=86_400)
    ] = 60.0,
    rate: Annotated[
        float | None,
        option("N", "At most so many credentials a second.", min=1),
    ] = None,
    health: Annotated[
        Path | None,
        option("FILE", "Write how it is, as JSON."),
    ] = None,
    help_others: Annotated[
        bool, flag("Re-encrypt while another one rotates.", "--help-others")
    ] = False,
) -> None:
    """Rotate keys when they are due, until it is stopped (SIGTERM, SIGINT)."""
    from apex_creds.scheduler.reencryption import Pace
    from apex_creds.scheduler.worker import Rhythm, RotationWorker, notify_systemd

    made = RotationWorker(
        vault,
        rhythm=Rhythm(
            check=every,
            events=min(2.0, every),
            health=min(10.0, every),
            verify=min(3600.0, 60 * every),
            count=min(10.0, every),
            due=every,
        ),
        pace=Pace(per_second=rate),
        health_file=health,
        help_others=help_others,
        watching=True,
    )
    stopped = asyncio.Event()
    with stop_signals(stopped.set, once=True):
        async with made:
            notify_systemd(READY="1")
            console.say(f"worker {made.id[:8]} runs; stop it with Ctrl-C")
            await stopped.wait()
            notify_systemd(STOPPING="1")


@command()
def dashboard(
    chosen: Settings,
    port: Annotated[int, option("N", "0: any that is free.", min=0, max=65535)] = 8765,
    allow_decisions: Annotated[
        bool,
        flag(
            "Requests can be approved and denied on the page; else it only shows.",
            "--allow-decisions",
        ),
    ] = False,
    names: Annotated[bool, flag("Names, though the log has pseudonyms.", "--names")] = False,
    expose: Annotated[
        str | None,
        option(
            "ADDRESS",
            "Listen there, where other machines can reach it; needs a certificate.",
            "--expose-to-network",
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        option("FILE", "PEM, with its chain.", "--tls-certificate"),
    ] = None,
    key: Annotated[
        Path | None,
        option("FILE", "Of it, PEM.", "--tls-key"),
    ] = None,
    host: Annotated[
        list[str] | None,
        option("NAME[:PORT]", "The page is opened by this name, too; repeat.", "--host-name"),
    ] = None,
) -> None:
    """Show keys, leases, permissions, requests and the log live, in a browser.

    On this machine alone, to the browser that opens the printed link, which works once.
    """
    if (certificate is None) is not (key is None):
        raise InvalidInputError("Give both, --tls-certificate and --tls-key, or neither.")
    try:
        from apex_creds.dashboard import server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise NotInstalledError(
            "What serves the dashboard is not installed.",
            hint="Install it: pip install 'apex-creds[dashboard]'",
        ) from None
    settings = server.Settings(
        port=port,
        decisions=allow_decisions,
        named=names,
        address=expose or server.LOOPBACK,
        certificate=None if certificate is None or key is None else (certificate, key),
        hosts=tuple(host or ()),
    )

    def say(text: str) -> None:
        console.say(text)
        sys.stdout.flush()  # a reader of a pipe waits for the link

    async def work(vault: Vault) -> None:
        await server.serve(vault, settings, say=say)

    # The master key may be rotated while this runs.
    with_vault(chosen, work, asks_again=True)
