"""A client in another process answers a runtime's challenges over a Unix socket."""

from __future__ import annotations

import subprocess
import sys

import anyio
import pytest

from apex_creds.auth.challenge import expecting
from apex_creds.auth.challenge_client import ClientKey, StreamResponder, answer_over
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.step_up import answering
from apex_creds.errors import ChallengeError
from tests.leases.test_challenge import READ, marked, read
from tests.support.worlds import REPOSITORY

pytestmark = pytest.mark.anyio

CLIENT = """
import sys
import anyio
from apex_creds.auth.challenge_client import answer_over
from apex_creds.auth.challenge import expecting
from apex_creds.auth.challenge_client import ClientKey

async def main(path, key, vault_id):
    stream = await anyio.connect_unix(path)
    allow = expecting(credential="key", plugin="demo")
    with ClientKey.load(key) as loaded:
        await answer_over(stream, loaded, vault_id=vault_id, allow=allow)

anyio.run(main, *sys.argv[1:])
"""


async def test_two_processes(tmp_path):
    async with marked(tmp_path) as (world, _):
        # The clocks of two processes are the machine's: so is the vault's in this test.
        world.clock.time = __import__("time").time
        path = tmp_path / "socket"
        async with await anyio.create_unix_listener(path) as listener:
            args = [str(path), str(tmp_path / "client.key"), world.vault.vault_id]
            process = subprocess.Popen([sys.executable, "-c", CLIENT, *args], cwd=REPOSITORY)
            try:
                async with await listener.accept() as stream:
                    with answering(StreamResponder(stream, client="worker")):
                        assert await world.call(read) == READ
                        with pytest.raises(ChallengeError):
                            await world.call(read, plugin="inner")
                        assert await world.call(read) == READ
                        process.kill()
                        process.wait()
                        with pytest.raises(ChallengeError):
                            await world.call(read)
            finally:
                process.kill()
                process.wait()


async def both_ends(path, key, vault_id, told):
    """A stream with a client at its end that signs for ``demo`` until it ends."""
    allow = expecting(credential="key", plugin="demo")

    async def serve(stream):
        async with stream:
            await answer_over(stream, key, vault_id=vault_id, allow=allow)
        told.append("over")

    listener = await anyio.create_unix_listener(path)
    return listener, serve


async def test_a_stream_that_breaks_ends_the_client(tmp_path):
    told: list[str] = []
    async with marked(tmp_path) as (world, _):
        with ClientKey.load(tmp_path / "client.key", clock=world.clock) as key:
            listener, serve = await both_ends(
                tmp_path / "socket", key, world.vault.vault_id, told
            )
            async with anyio.create_task_group() as group, listener:
                group.start_soon(listener.serve, serve)
                async with await anyio.connect_unix(tmp_path / "socket") as stream:
                    responder = StreamResponder(stream, client="worker")
                    with answering(responder):
                        assert await world.call(read) == READ
                with answering(responder), pytest.raises(ChallengeError):
                    await world.call(read)
                with pytest.raises(ChallengeError, match="broken"):
                    await responder.answer(b"again")
                while not told:
                    await anyio.sleep(0)
                group.cancel_scope.cancel()
        assert len((await Challenger(world.vault).access.read()).challenges) == 0
