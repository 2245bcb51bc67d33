"""A lockdown seals: in this process at once, in others at their next look."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from apex_creds import CredentialMiddleware, Vault
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.errors import (
    AccessDeniedError,
    AuditTamperedError,
    AuditUnavailableError,
    GrantVoidError,
    HandleRevokedError,
    LockedDownError,
    SecretLeakError,
)
from apex_creds.fs.home import audit_directory
from apex_creds.leases.handle import current_credentials
from apex_creds.model import ApiKey
from apex_creds.policy.consent import CallbackConsent, Choice, ConsentAnswer
from apex_creds.policy.grants import GrantDecision
from tests.support.worlds import REPOSITORY, World, world_in

pytestmark = pytest.mark.anyio
READ = "[redacted:key]"


async def read() -> str:
    async with current_credentials()["key"].reveal() as secret:
        return secret.expose_str()


def keys_in(vault: Vault) -> list[object]:
    """Every key that a vault's store has in memory, that is not wiped."""
    hierarchy = vault.store.unsealed().hierarchy
    documents = [key for pair in hierarchy._documents.values() for key in pair]
    held = [hierarchy._keks, hierarchy._wrapping, hierarchy._deks]
    found = [*documents, *(key for table in held for key in table.values())]
    return [key for key in found if not key.closed]


async def test_no_key_is_left_and_none_comes_back_until_it_is_unlocked(tmp_path):
    async with world_in(tmp_path) as world:
        await world.call(read)
        had = keys_in(world.vault)
        assert had
        await world.vault.lockdown(keep_grants=True)
        assert all(key.closed for key in had)
        assert keys_in(world.vault) == []
        for work in (
            lambda: world.call(read),
            lambda: world.vault.put("new", ApiKey("value")),
            lambda: world.vault.delete("key"),
            lambda: world.vault.grant("demo", "ungranted"),
        ):
            with pytest.raises(AccessDeniedError):
                await work()
            assert keys_in(world.vault) == []
        await world.vault.unlock()
        assert await world.call(read) == READ


async def test_what_is_taken_back_meanwhile_stays_so_and_leaves_no_key(tmp_path):
    async with world_in(tmp_path) as world:
        await world.vault.lockdown(keep_grants=True)
        removed = await world.vault.revoke(plugin="demo")
        assert {grant.plugin for grant in removed} == {"demo"}
        assert keys_in(world.vault) == []
        await world.vault.unlock()
        assert {grant.plugin for grant in await world.vault.grants()} == {"inner"}


async def test_a_lockdown_during_an_unlocking_stands(tmp_path, monkeypatch):
    async with world_in(tmp_path) as world:
        await world.vault.lockdown(reason="drill", keep_grants=True)
        access = world.vault.access
        change = access.change

        async def meanwhile(forget: object) -> None:
            await change(forget)
            world.clock.now += 1
            await world.vault.revoke(plugin="inner")  # is no lockdown
            if again:
                code = "await vault.lockdown(reason='thief', keep_grants=True)"
                await anyio.to_thread.run_sync(world.elsewhere, code)

        with monkeypatch.context() as patched:
            patched.setattr(access, "change", meanwhile)
            again = True
            with pytest.raises(LockedDownError):
                await world.vault.unlock()
            found = (await world.vault.grants()).lockdown
            assert found is not None
            assert found.reason == "thief"
            assert keys_in(world.vault) == []
            again = False
            assert await world.vault.unlock()
        assert await world.call(read) == READ


async def test_every_object_of_the_vault_in_this_process_is_sealed_at_once(tmp_path):
    async def long(other: Vault) -> None:
        handle = current_credentials()["key"]
        async with handle.reveal() as secret:
            await other.lockdown()
            assert secret.closed
        with pytest.raises(HandleRevokedError):
            async with handle.reveal():
                pass

    async with (
        world_in(tmp_path) as world,
        await Vault.unseal(tmp_path / "home", clock=world.clock) as other,
    ):
        had = keys_in(world.vault)
        await world.call(long, other)
        assert all(key.closed for key in had)
        assert keys_in(world.vault) == keys_in(other) == []
        with pytest.raises(AccessDeniedError):
            await world.call(read)


async def test_a_process_that_sees_it_ends_every_lease(tmp_path):
    async def one(world: World, go: anyio.Event, ready: anyio.Event) -> None:
        async with current_credentials()["token"].reveal() as secret:
            ready.set()
            await go.wait()
            assert secret.closed  # ended by what another invocation saw

    async def other(world: World, go: anyio.Event, ready: anyio.Event) -> None:
        await ready.wait()
        await anyio.to_thread.run_sync(world.elsewhere, "await vault.lockdown()")
        with pytest.raises(AccessDeniedError):
            await read()
        go.set()

    async with world_in(tmp_path) as world:
        go, ready = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: world.call(one, world, go, ready, needs=("token",)))
            group.start_soon(lambda: world.call(other, world, go, ready))
        assert keys_in(world.vault) == []
        assert [e.decision for e in world.events("revoke")][-1:] == ["sealed"]


async def test_changes_meanwhile_do_not_bring_the_keys_back(tmp_path):
    async with world_in(tmp_path) as world:
        await world.call(read)
        for code in (
            "await vault.lockdown()",
            "await vault.revoke(plugin='x')",
            "await vault.put('key', ApiKey('replaced'))",
        ):
            await anyio.to_thread.run_sync(world.elsewhere, code)
            with pytest.raises(AccessDeniedError):
                await world.call(read)
            assert keys_in(world.vault) == []
        await anyio.to_thread.run_sync(world.elsewhere, "await vault.unlock()")
        await world.vault.grant("demo", "key", reveal=True)
        assert await world.call(read) == READ


async def test_a_vault_that_is_opened_meanwhile_has_keys_until_it_serves_plugins(tmp_path):
    async with world_in(tmp_path) as world:
        await world.vault.lockdown(keep_grants=True)
        async with await Vault.unseal(tmp_path / "home", clock=world.clock) as other:
            await other.put("key", ApiKey("replaced"))
            assert keys_in(other)
            with pytest.raises(LockedDownError):
                async with other.open("key"):
                    pass
            async with CredentialMiddleware(other):
                assert keys_in(other) == []
            with pytest.raises(LockedDownError):
                await other.put("key", ApiKey("again"))
            await other.unlock()
            async with other.open("key") as opened:
                assert bytes(opened.view()) == b"replaced"


async def test_what_an_invocation_gives_back_that_had_a_secret_is_withheld(
    tmp_path,
):
    async def keeps(world: World) -> str:
        async with current_credentials()["key"].reveal() as secret:
            text = secret.expose_str()
        await world.vault.lockdown()
        return f"the key is {text}"

    async with world_in(tmp_path) as world:
        with pytest.raises(SecretLeakError):
            await world.call(keeps, world)


async def test_what_nobody_logs_meanwhile_is_withheld_if_it_may_have_a_secret(tmp_path, caplog):
    kept: list[str] = []

    async def keeps() -> None:
        async with current_credentials()["key"].reveal() as secret:
            kept.append(secret.expose_str())

    async with world_in(tmp_path) as world:
        await world.call(keeps)
        await anyio.to_thread.run_sync(
            world.elsewhere, "await vault.lockdown(keep_grants=True)"
        )
        with pytest.raises(AccessDeniedError):
            await world.call(read)
        log = logging.getLogger("forgotten")
        log.warning("it is %s", kept[0])
        log.warning("nothing here")
        assert kept[0] not in caplog.text
        assert "withheld" in caplog.text
        assert "nothing here" in caplog.text
        await world.vault.unlock()
        log.warning("it was %s", kept[0])
        assert "it was [redacted:key]" in caplog.text


async def test_grants_are_gone_and_denials_are_not(tmp_path):
    async with world_in(tmp_path) as world:
        vault = world.vault
        await vault.grant("demo", "ungranted", decision=GrantDecision.DENY)
        before = (await vault.grants()).mark
        await vault.lockdown()
        with pytest.raises(GrantVoidError):
            await vault.grant("demo", "key", since_mark=before)
        await vault.unlock()
        left = [(grant.credential, grant.decision) for grant in await vault.grants()]
        assert left == [("ungranted", GrantDecision.DENY)]


async def test_a_factor_that_was_shown_before_does_not_count_after(tmp_path):
    async with world_in(tmp_path) as world:
        factors = Factors(world.vault)
        with factors.begin("phone") as new:
            from apex_creds.auth.totp import code_at

            def code() -> str:
                world.clock.now += 30
                return code_at(seed, settings=new.settings, now=world.clock.now)

            seed = new.seed
            await factors.confirm(new, code())
            subject = Subject(plugin="demo", credential="key")
            await factors.verify(code(), subject=subject)
            assert await factors.passed(subject, since=0.0)
            await world.vault.lockdown()
            with pytest.raises(AccessDeniedError):
                await world.vault.unlock("000000")
            assert keys_in(world.vault) == []
            await world.vault.unlock(code())
            assert not await factors.passed(subject, since=0.0)


async def test_an_answer_that_comes_after_it_is_void(tmp_path):
    async def late(_: object) -> ConsentAnswer:
        await world.vault.lockdown()
        await world.vault.unlock()
        return ConsentAnswer(choice=Choice.SESSION)

    async with world_in(tmp_path, consent=CallbackConsent(late)) as world:
        with pytest.raises(AccessDeniedError):
            await world.call(lambda: 1, needs=("ungranted",))


async def test_it_is_in_force_also_where_it_can_not_be_logged(tmp_path, monkeypatch):
    async with world_in(tmp_path) as world:

        def fails(*_: object, **__: object) -> None:
            raise AuditUnavailableError("The disk is full.")

        with monkeypatch.context() as patched:
            patched.setattr(world.vault.audit, "append", fails)
            with pytest.raises(AuditUnavailableError):
                await world.vault.lockdown()
        assert keys_in(world.vault) == []
        with pytest.raises(AccessDeniedError):
            await world.call(read)
        assert (await world.vault.grants()).lockdown is not None


RUNTIME = """
import sys
import anyio
from apex_creds import *
from apex_creds.leases.handle import current_credentials

manifest = parse_manifest({"id": "demo", "version": "1.0.0",
                           "credentials": [{"name": "key", "access": "reveal"}]})

async def hold():
    handle = current_credentials()["key"]
    for line in sys.stdin:
        try:
            async with handle.reveal() as secret:
                print("read", flush=True)
        except AccessDeniedError as error:
            print(type(error).__name__, flush=True)

async def main():
    async with await Vault.unseal(sys.argv[1]) as vault:
        async with CredentialMiddleware(vault) as middleware:
            await middleware.invoke(manifest, hold)

anyio.run(main)
"""


def copies_in(pid: int, key: bytes) -> int:
    """How often a key is in the memory of another process."""
    found = 0
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, modes, *_ = line.split()
            if not modes.startswith("rw"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            with contextlib.suppress(OSError, ValueError):
                memory.seek(start)
                found += memory.read(end - start).count(key)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_lockdown_whose_process_is_killed_stands(tmp_path):
    """The runtime is another process; so is what locks down, and it dies right after."""

    def ask() -> str:
        runtime.stdin.write("again\n")
        runtime.stdin.flush()
        return runtime.stdout.readline().strip()

    dies = "import os, signal\nawait vault.lockdown()\nos.kill(os.getpid(), signal.SIGKILL)"
    async with world_in(tmp_path) as world:
        argv = [sys.executable, "-c", RUNTIME, str(tmp_path / "home")]
        runtime = subprocess.Popen(
            argv, cwd=REPOSITORY, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert await anyio.to_thread.run_sync(ask) == "read"
            kek = world.vault.store.unsealed().hierarchy._kek(1).expose_bytes()
            assert copies_in(runtime.pid, kek) == 1
            with pytest.raises(subprocess.CalledProcessError):
                await anyio.to_thread.run_sync(world.elsewhere, dies)
            assert await anyio.to_thread.run_sync(ask) == "HandleRevokedError"
            assert copies_in(runtime.pid, kek) == 0
            runtime.communicate(timeout=480)
            assert runtime.returncode == 0
        finally:
            runtime.kill()
            runtime.communicate()
        with pytest.raises(AccessDeniedError):
            await world.call(read)
        assert keys_in(world.vault) == []


DAMAGE = {
    "cut short": lambda path: os.truncate(path, 100),
    "taken away": lambda path: path.unlink(),
    "written on": lambda path: path.write_bytes(path.read_bytes() + b"junk\n"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_log_that_was_tampered_with_does_not_stop_a_lockdown(tmp_path, damage):
    async with world_in(tmp_path) as world:
        world.vault.audit.sync()
        (segment,) = audit_directory(world.vault.home).glob("0*")
        data = segment.read_bytes()
        damage(segment)
        with pytest.raises(AuditTamperedError):
            await world.vault.lockdown(reason="it was tampered with")
        found = (await world.vault.grants()).lockdown
        assert found is not None
        assert found.reason == "it was tampered with"
        assert keys_in(world.vault) == []
        if segment.exists():  # one that was taken away does not come back by its name
            segment.write_bytes(data)
            return
        with pytest.raises(AuditTamperedError):
            await world.vault.close()
