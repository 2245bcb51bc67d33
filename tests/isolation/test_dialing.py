"""Names are looked up once, and what was checked is what is dialled."""

from __future__ import annotations

import asyncio

import httpcore
import pytest

from apex_creds.isolation.dialing import Dialer, is_public

pytestmark = pytest.mark.anyio

INSIDE = [
    *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1"),
    *("192.168.1.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
    *("::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"),
    *("168.63.129.16", "192.0.0.192", "::ffff:168.63.129.16", "fec0::1", "3fff::1"),
    *("::127.0.0.1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
]


@pytest.mark.parametrize("address", INSIDE)
def test_what_is_not_of_the_internet(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_what_is(address: str) -> None:
    assert is_public(address)


def leading_to(*addresses: str, internal: tuple[str, ...] = ()) -> tuple[Dialer, list[str]]:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return list(addresses)

    return Dialer(internal=internal, resolve=resolve), asked


async def test_a_name_that_leads_inside_is_not_dialled() -> None:
    dialer, asked = leading_to("8.8.8.8", "169.254.169.254")
    with pytest.raises(httpcore.ConnectError, match="not public"):
        await dialer.connect_tcp("api.example.com", 443)
    with pytest.raises(ConnectionError, match="not public"):
        await dialer.open("api.example.com", 443, tls=None, limit=1024)
    assert asked == ["api.example.com"] * 2


async def test_what_its_owner_named_is() -> None:
    dialer, asked = leading_to("10.0.0.1", internal=("Vault.Internal",))
    assert await dialer.addresses("vault.internal.", 443) == ["10.0.0.1"]
    assert await dialer.addresses("localhost", 443) == ["10.0.0.1"]
    assert await dialer.addresses("192.168.1.1", 443) == ["192.168.1.1"]
    assert await dialer.addresses("[::1]", 443) == ["::1"]
    assert asked == ["vault.internal", "localhost"]


async def test_what_was_checked_is_what_is_dialled() -> None:
    """A resolver that answers otherwise the second time is asked once."""
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    dialer, asked = leading_to("127.0.0.1", internal=("inside.test",))
    stream = await dialer.connect_tcp("inside.test", port, timeout=60)
    await stream.aclose()
    assert asked == ["inside.test"]
    server.close()
