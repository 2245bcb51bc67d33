"""A limit on denials that is exceeded reaches the worker, which reacts."""

from __future__ import annotations

import anyio
import pytest

from apex_creds.errors import AccessDeniedError
from apex_creds.leases.handle import current_credentials
from apex_creds.middleware import report_denials
from apex_creds.scheduler.rotation_state import DenialsExceeded
from apex_creds.scheduler.worker import RotationWorker
from tests.support.worlds import World, world_in

pytestmark = pytest.mark.anyio

POLICY = """version = 1
[[limits]]
per = "plugin"
of = "denials"
limit = "2/minute"
"""


@pytest.mark.parametrize("in_thread", [False, True])
async def test_it_is_an_event(tmp_path, in_thread: bool):
    def in_a_thread() -> None:
        for _ in range(3):
            with pytest.raises(AccessDeniedError):
                current_credentials()["ungranted"]

    async def on_the_loop() -> None:
        in_a_thread()

    async with world_in(tmp_path) as world:
        limit(world)
        worker, heard = RotationWorker(world.vault), []

        async def hear(event: DenialsExceeded) -> None:
            heard.append(event)

        worker.bus.subscribe(hear, ["denials_exceeded"])
        report_denials(world.middleware, worker)
        await world.call(in_a_thread if in_thread else on_the_loop)
        while not heard:
            await anyio.sleep(0.01)
        assert [(event.plugin, event.count) for event in heard] == [("demo", 2)]


def limit(world: World) -> None:
    path = world.where / "home" / "security" / "policy.toml"
    path.write_text(POLICY)
    path.chmod(0o600)
    world.middleware.broker.authorizer.reload()
