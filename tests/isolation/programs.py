"""What programs behind the wall print."""

from __future__ import annotations

import asyncio
import os

from apex_creds.isolation.dialing import Dialer
from apex_creds.isolation.programs import run_program
from apex_creds.isolation.sandbox import Limits, MiB, Wall
from tests.support.worlds import World, manifest_for

LIMITS = Limits(memory=None, data=4096 * MiB, processes=1024)


async def output_of(
    world: World,
    *command: str,
    needs: tuple[object, ...],
    dialer: Dialer | None = None,
    **wall: object,
) -> str:
    """What a program prints, which ends well."""
    reading, writing = os.pipe()
    with open(reading) as output:
        said = asyncio.create_task(asyncio.to_thread(output.read))
        try:
            status = await run_program(
                world.middleware,
                manifest_for(*needs),  # type: ignore[arg-type]
                Wall(command=command, limits=LIMITS, **wall),  # type: ignore[arg-type]
                dialer=dialer,
                stdout=writing,
            )
        finally:
            os.close(writing)
        text = await said
    assert status == 0, text
    return text
