"""A vault's events at its destinations, from the first on, however they were named."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from apex_creds import CredentialMap, CredentialMiddleware
from apex_creds.audit.events import Recorded
from apex_creds.audit.sinks import CallbackSink, Destination, Level
from apex_creds.errors import AuditUnavailableError, InvalidInputError
from apex_creds.model import ApiKey
from apex_creds.vault import Vault
from tests.support.held import FailingSink
from tests.support.loops import WITHIN
from tests.support.worlds import manifest_for

pytestmark = pytest.mark.anyio
SECRET = "sk-canary-77"


def _to(seen: list[Recorded], level: Level = Level.ALL) -> Destination:
    return Destination(name="kept", sink=CallbackSink(seen.append), level=level)


async def test_from_the_first_event_to_the_last(tmp_path: Path) -> None:
    seen: list[Recorded] = []
    master = f"file:{tmp_path}/key"
    async with await Vault.create(tmp_path / "v", master=master, audit_to=[_to(seen)]) as vault:
        await vault.put("openai", ApiKey(SECRET))
        await vault.grant("weather", "openai")
    assert [event.kind for event in seen] == ["init", "put", "grant"]
    secure: list[Recorded] = []
    to = _to(secure, Level.SECURITY)
    async with await Vault.unseal(tmp_path / "v", audit_to=[to]) as vault:
        await vault.put("openai", ApiKey(SECRET))
    assert "unseal" in {event.kind for event in secure}
    assert "put" not in {event.kind for event in secure}
    assert SECRET not in repr(seen + secure)


async def test_named_by_the_environment_and_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await Vault.create(tmp_path / "v", master=f"file:{tmp_path}/key"):
        pass
    config = tmp_path / "v" / "security" / "config.json"
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    config.write_text(f'{{"audit":{{"to":["journald:{one}?required=yes"]}}}}')
    os.chmod(config, 0o600)
    monkeypatch.setenv("APEX_CREDS_AUDIT_TO", f"syslog:{two}?level=security")
    with pytest.raises(AuditUnavailableError, match="journald"):
        await Vault.unseal(tmp_path / "v")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog,
    ):
        journal.bind(one)
        syslog.bind(two)
        async with await Vault.unseal(tmp_path / "v"):
            pass
        for server, expected in ((journal, b"APEX_CREDS_KIND=unseal"), (syslog, b" unseal [")):
            server.settimeout(20)
            while expected not in server.recv(1 << 17):
                pass
    monkeypatch.setenv("APEX_CREDS_AUDIT_TO", "carrier-pigeon:")
    with pytest.raises(InvalidInputError, match="carrier-pigeon"):
        await Vault.unseal(tmp_path / "v")


async def test_nothing_is_redeemed_while_a_required_one_fails(tmp_path: Path) -> None:
    sink = FailingSink(broken=False)
    to = Destination(name="siem", sink=sink, required=True)
    master = f"file:{tmp_path}/key"
    async with await Vault.create(tmp_path / "v", master=master, audit_to=[to]) as vault:
        await vault.put("key", ApiKey(SECRET))
        await vault.grant("demo", "key", reveal=True)
        async with CredentialMiddleware(vault) as middleware:

            async def use(credentials: CredentialMap) -> int:
                async with credentials["key"].reveal() as secret:
                    return len(secret)

            assert await middleware.invoke(manifest_for("key"), use) == len(SECRET)
            sink.broken = True
            with anyio.fail_after(WITHIN):
                while await _works(middleware, use):
                    pass
            with pytest.raises(AuditUnavailableError, match="siem"):
                await middleware.invoke(manifest_for("key"), use)
            sink.delivered.clear()
            sink.broken = False
            await anyio.to_thread.run_sync(sink.delivered.wait, 30)
            # The sink has taken one; the outlet says so a moment later.
            with anyio.fail_after(WITHIN):
                while not await _works(middleware, use):
                    await anyio.lowlevel.checkpoint()


async def _works(middleware: CredentialMiddleware, function: Callable[..., object]) -> bool:
    try:
        await middleware.invoke(manifest_for("key"), function)
    except AuditUnavailableError:
        return False
    return True
