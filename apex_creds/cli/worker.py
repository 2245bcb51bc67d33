"""``worker``: the rotation worker as a service of its own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import anyio
import typer

from apex_creds.cli import automatic, options, output, session
from apex_creds.cli.options import HomeOption, MasterOption
from apex_creds.cli.rotation import rotating_provider
from apex_creds.scheduler import systemd
from apex_creds.scheduler.reencrypt import Pace
from apex_creds.scheduler.worker import Rhythm, RotationWorker
from apex_creds.vault import Vault


def worker(
    ctx: typer.Context,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.05, max=86_400, help="How often to look.")
    ] = 60.0,
    rate: Annotated[
        float | None,
        typer.Option(metavar="N", min=1, help="At most so many credentials a second."),
    ] = None,
    health: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write how it is, as JSON.", show_default=False),
    ] = None,
    help_others: Annotated[
        bool, typer.Option("--help-others", help="Re-encrypt while another one rotates.")
    ] = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Rotate keys when they are due, until it is told to stop (SIGTERM, SIGINT)."""
    chosen = options.settings(ctx, home, master)
    uri = session.master_uri(chosen, session.read_header(chosen))
    rhythm = Rhythm(
        check=every,
        events=min(2.0, every),
        health=min(10.0, every),
        verify=min(3600.0, 60 * every),
        count=min(10.0, every),
        due=every,
    )

    async def run() -> None:
        async with await Vault.unseal(chosen.home, master=rotating_provider(uri)) as vault:
            await automatic.look(vault)
            made = RotationWorker(
                vault,
                rhythm=rhythm,
                pace=Pace(per_second=rate),
                health_file=health,
                help_others=help_others,
                watching=True,
            )
            with _signals() as stopped:
                async with made:
                    systemd.notify(READY="1")
                    output.say(f"worker {made.id[:8]} runs; stop it with Ctrl-C")
                    await stopped.wait()
                    systemd.notify(STOPPING="1")

    anyio.run(run)


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """Set by the first signal; a second one ends the process at once, as it always may."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    chosen = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        stopped.set()
        for number in chosen:
            loop.remove_signal_handler(number)

    for number in chosen:
        loop.add_signal_handler(number, stop)
    try:
        yield stopped
    finally:
        for number in chosen:
            loop.remove_signal_handler(number)
