"""A synchronous runtime's call: who ends its leases, when it returns something to come."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import pytest

from apex_creds import ApiKey, CredentialMiddleware, Vault, current_credentials, parse_manifest

pytestmark = pytest.mark.anyio

SECRET = "sk-handover-0123456789"
MANIFEST = parse_manifest({"id": "demo", "credentials": [{"name": "key", "access": "reveal"}]})


@pytest.fixture
async def middleware(fresh_home: Path, anyio_backend: str):
    master = f"file:{fresh_home}/master"
    async with await Vault.create(fresh_home / "apex", master=master) as vault:
        await vault.put("key", ApiKey(SECRET), origins=["https://api.example.com"])
        await vault.grant("demo", "key", reveal=True)
        async with CredentialMiddleware(vault) as made:
            yield made


async def stream():
    async with current_credentials()["key"].reveal() as secret:
        yield secret.expose_str()
    yield "end"


async def late():
    return stream()


async def test_a_coroutine_hands_its_leases_to_the_stream_it_returns(middleware) -> None:
    chunks = await middleware.invoke_sync(MANIFEST, "late", late)
    gc.collect()
    assert middleware.broker.open_leases == 1
    assert [chunk async for chunk in chunks] == ["[redacted:key]", "end"]
    assert middleware.broker.open_leases == 0


async def test_a_coroutine_that_is_never_awaited_ends_them(middleware) -> None:
    coroutine = middleware.invoke_sync(MANIFEST, "late", late)
    assert middleware.broker.open_leases == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        del coroutine
        gc.collect()
    assert middleware.broker.open_leases == 0


async def test_one_that_is_closed_half_way_ends_them(middleware) -> None:
    class Pause:
        def __await__(self):
            yield

    async def waits():
        await Pause()

    coroutine = middleware.invoke_sync(MANIFEST, "waits", waits)
    coroutine.send(None)
    assert middleware.broker.open_leases == 1
    coroutine.close()
    assert middleware.broker.open_leases == 0
