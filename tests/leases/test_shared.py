"""Leases over a storage that several homes share: each redeem knows what is stored now.

Nothing is told here: these storages have no notifications, so a redeem has to look.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from apex_creds.errors import (
    AccessDeniedError,
    HandleRevokedError,
    RateLimitedError,
    StorageStaleError,
)
from apex_creds.leases.handle import CredentialHandle
from apex_creds.middleware import CredentialMiddleware
from apex_creds.model import ApiKey
from apex_creds.storage.memory_storage import MemoryStorage
from apex_creds.vault import Vault
from tests.support.recording import recording
from tests.support.worlds import manifest_for

pytestmark = pytest.mark.anyio
Credentials = dict[str, CredentialHandle]
DEMO = manifest_for("key")


class Home:
    """A home that shares a vault, and its middleware."""

    def __init__(self, vault: Vault, middleware: CredentialMiddleware) -> None:
        self.vault, self.middleware = vault, middleware

    async def value(self) -> bytes:
        """What a plugin gets that redeems."""
        found: list[bytes] = []

        async def plugin(credentials: Credentials) -> None:
            found.append(await reveal(credentials["key"]))

        await self.middleware.invoke(DEMO, plugin)
        return found[0]


async def reveal(handle: CredentialHandle) -> bytes:
    async with handle.reveal() as secret:
        return bytes(secret.view())


class Two:
    """Two homes; time and reachability of the second one's storage are the test's."""

    def __init__(self, where: Path) -> None:
        self.where, self.now = where, 0.0
        self.storage = MemoryStorage(shards=4, monotonic=lambda: self.now)

    async def open(self, stack: AsyncExitStack, policy: str = "") -> tuple[Home, Home]:
        homes = []
        for number in range(2):
            home = self.where / str(number)
            (home / "security").mkdir(mode=0o700, parents=True)
            home.chmod(0o700)
            if policy:
                (home / "security" / "policy.toml").write_text(policy)
                (home / "security" / "policy.toml").chmod(0o600)
            if number == 0:
                vault = await Vault.create(
                    home, master=f"file:{self.where}/k", storage=self.storage
                )
                await vault.put("key", ApiKey("first"))
                await vault.grant("demo", "key", reveal=True)
            else:
                self.other = self.storage.peer()
                vault = await Vault.unseal(home, storage=self.other)
            await stack.enter_async_context(vault)
            middleware = await stack.enter_async_context(CredentialMiddleware(vault))
            homes.append(Home(vault, middleware))
        return homes[0], homes[1]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


async def test_a_revoked_grant_is_refused_by_the_next_redeem(
    tmp_path: Path, stack: AsyncExitStack
) -> None:
    one, two = await Two(tmp_path).open(stack)

    async def plugin(credentials: Credentials) -> None:
        assert await reveal(credentials["key"]) == b"first"
        await one.vault.revoke(plugin="demo")
        with pytest.raises(HandleRevokedError):
            await reveal(credentials["key"])

    await two.middleware.invoke(DEMO, plugin)
    with pytest.raises(AccessDeniedError):
        await two.value()
    await one.vault.grant("demo", "key", reveal=True)
    assert await two.value() == b"first"


async def test_so_it_is_by_the_next_redeem_of_code_that_cannot_wait(
    tmp_path: Path, stack: AsyncExitStack
) -> None:
    one, two = await Two(tmp_path).open(stack)
    revoked, used = anyio.Event(), anyio.Event()

    def plugin(credentials: Credentials) -> None:
        with credentials["key"].reveal() as secret:
            assert bytes(secret.view()) == b"first"
        anyio.from_thread.run_sync(used.set)
        anyio.from_thread.run(revoked.wait)
        with pytest.raises(HandleRevokedError), credentials["key"].reveal():
            pass

    async with anyio.create_task_group() as group:
        group.start_soon(two.middleware.invoke, DEMO, plugin)
        await used.wait()
        await one.vault.revoke(plugin="demo")
        revoked.set()


async def test_and_of_code_that_stands_on_the_event_loop(
    tmp_path: Path, stack: AsyncExitStack
) -> None:
    one, two = await Two(tmp_path).open(stack)

    def plugin(credentials: Credentials) -> bytes:
        with credentials["key"].reveal() as secret:
            assert bytes(secret.view())
            return bytes(secret.view())[:3]

    assert two.middleware.invoke_sync(DEMO, "plugin", plugin)
    await one.vault.put("key", ApiKey("second"))  # what is read is not in memory here
    assert two.middleware.invoke_sync(DEMO, "plugin", plugin) == b"sec"
    await one.vault.revoke(plugin="demo")
    with pytest.raises(AccessDeniedError):
        two.middleware.invoke_sync(DEMO, "plugin", plugin)


async def test_a_new_value_and_a_deletion_are_seen_at_once(
    tmp_path: Path, stack: AsyncExitStack
) -> None:
    one, two = await Two(tmp_path).open(stack)
    assert await two.value() == b"first"
    await one.vault.put("key", ApiKey("second"))
    assert await two.value() == b"second"
    await one.vault.delete("key")
    with pytest.raises(AccessDeniedError):
        await two.value()


async def test_memory_is_used_within_the_bound_and_the_span_says_so(
    tmp_path: Path, stack: AsyncExitStack
) -> None:
    world = Two(tmp_path)
    _, two = await world.open(stack)
    await two.value()
    world.other.reachable = False
    world.now += 3.0
    with recording() as seen:
        assert await two.value() == b"first"
        span = seen.span("apex_creds.redeem")
    assert span.attributes is not None
    assert 3000 <= span.attributes["apex_creds.stale_ms"] < 5000
    world.now += 3.0
    with pytest.raises(StorageStaleError):
        await two.value()
    world.other.reachable = True
    world.now += 1.0
    with recording() as seen:
        assert await two.value() == b"first"
        attributes = seen.span("apex_creds.redeem").attributes
    assert attributes is not None
    assert "apex_creds.stale_ms" not in attributes


LIMIT = """version = 1
[[limits]]
per = "pair"
of = "redeems"
limit = "3/hour"
persist = true

[[rules]]
decision = "allow"
"""


async def test_a_limit_that_is_kept_counts_for_all_homes(
    tmp_path: Path, stack: AsyncExitStack
) -> None:
    one, two = await Two(tmp_path).open(stack, policy=LIMIT)
    for home in (one, two, one):
        assert await home.value() == b"first"
    for home in (one, two):
        with pytest.raises(RateLimitedError):
            await home.value()


async def test_a_lockdown_is_everybodys(tmp_path: Path, stack: AsyncExitStack) -> None:
    one, two = await Two(tmp_path).open(stack)
    assert await two.value() == b"first"
    await one.middleware.lockdown(reason="drill")
    with pytest.raises(AccessDeniedError):
        await two.value()
    await one.vault.unlock()
    await one.vault.grant("demo", "key", reveal=True)
    assert await two.value() == b"first"
