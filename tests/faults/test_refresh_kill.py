"""Killed at any write boundary of a refresh: the token works, or a person is asked for."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from apex_creds.errors import NeedsReconnectError
from apex_creds.model import CredentialInfo, OAuthToken
from apex_creds.oauth import Provider, Refresher, connect, flows
from apex_creds.oauth import provider_presets as providers
from apex_creds.oauth.endpoints import Client
from apex_creds.vault import Vault
from apex_creds.vault.config import AuditConfig, Config, write_config
from tests.faults.anchored import copies
from tests.support.killer import Scenario
from tests.support.oidc import Server, authorization_server, person
from tests.support.vaults import home_in, master_in, start, together

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.slow, pytest.mark.e2e]
FILE = Path(__file__).parent / "scenarios" / "oauth.py"
UNHURRIED = AuditConfig(durable_ms=60_000, checkpoint_seconds=60)
SCOPE = "openid offline_access api"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with authorization_server() as running:
        yield running


def allow(url: str) -> None:
    threading.Thread(target=person, args=(url,), daemon=True).start()


async def home_with_token(where: Path, server: Server) -> Provider:
    provider = await providers.find(server.issuer)
    async with await Vault.create(home_in(where), master=master_in(where)) as vault:
        await write_config(vault.store.storage, Config(audit=UNHURRIED))
        await connect(vault, "calendar", provider, client_id="desk", scope=SCOPE, show=allow)
        await vault.grant("demo", "calendar", reveal=True)
    return provider


async def expire(home: Path, provider: Provider) -> str:
    """Gives a home a connection of its own whose token has expired; its refresh token."""
    tokens = await flows.authorize_in_browser(
        provider, Client(id="desk"), scope=SCOPE, show=allow
    )
    async with await Vault.unseal(home) as vault:
        info = await vault.get("calendar")
        assert info.connection is not None
        over = OAuthToken(
            "expired", refresh_token=tokens.refresh, expires_at=vault.clock.time() - 1
        )
        await vault.renew(info, over, connection=info.connection)
    return tokens.refresh


def is_active(server: Server, token: str) -> bool:
    """What the server says of an access token."""
    form = {"token": token, "client_id": "desk"}
    answer = httpx.post(f"{server.issuer}/token/introspection", data=form, trust_env=False)
    return bool(answer.json()["active"])


async def test_a_refresh(tmp_path: Path, server: Server) -> None:
    provider = await home_with_token(tmp_path, server)
    homes = copies(home_in(tmp_path), tmp_path)
    seen = set()
    with Scenario(FILE, "refresh") as scenario:
        dry = next(homes)
        await expire(dry, provider)
        points = await asyncio.to_thread(scenario.points, dry)
        for point in points:
            home = next(homes)
            before = await expire(home, provider)
            run = await asyncio.to_thread(scenario.run, home, at=point)
            async with await Vault.unseal(home) as vault:
                seen.add(await after(vault, server, before, bool(run.acknowledged)))
            shutil.rmtree(home)
    assert seen == {"works", "person"}


async def after(vault: Vault, server: Server, before: str, acknowledged: bool) -> str:
    info: CredentialInfo | None = None
    try:
        info = await Refresher(vault).ensure("calendar")
    except NeedsReconnectError:
        assert not acknowledged
        with pytest.raises(NeedsReconnectError):  # and no request is sent any more
            await Refresher(vault, post=nobody).ensure("calendar")
        return "person"
    async with vault.open("calendar") as opened:
        access = bytes(opened.view("access")).decode()
        refresh = bytes(opened.view("refresh")).decode()
    assert info.expires is not None
    assert is_active(server, access)
    assert refresh != before
    return "works"


async def nobody(url: str, form: dict[str, str], client: Client) -> object:
    pytest.fail("a request was sent")


async def test_processes_that_need_it_at_once(tmp_path: Path, server: Server) -> None:
    """Six processes, four tasks in each: one refresh, and nobody is refused."""
    provider = await home_with_token(tmp_path, server)
    await expire(home_in(tmp_path), provider)
    refused = server.count("refresh_token", "grant.error")
    async with await Vault.unseal(home_in(tmp_path)) as vault:
        version = (await vault.get("calendar")).version
    ends = await together(*(start("use_token", str(home_in(tmp_path)), 4) for _ in range(6)))
    flat = [end for process in ends for end in process]
    assert len(flat) == 24
    assert len(set(flat)) == 1
    assert server.count("refresh_token", "grant.error") == refused
    async with await Vault.unseal(home_in(tmp_path)) as vault:
        assert (await vault.get("calendar")).version == version + 1
