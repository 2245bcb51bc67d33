"""Connects for an isolated process, to hosts that are allowed by name and by address.

Guarantee: a name is looked up once, and what was checked is what is dialled. An address that is
not public (private, link-local, loopback, a cloud's metadata, also within IPv6) is refused
unless the credential's owner named it: as an address in an origin, as ``localhost``, or in
``internal``. So a name that its owner lets point elsewhere leads to nothing inside.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final

import httpcore

from apex_creds.model import canonical_host

Resolve = Callable[[str, int], Awaitable[list[str]]]
_NOT_PUBLIC: Final[tuple[IPv4Network | IPv6Network, ...]] = (
    *map(IPv6Network, ("fec0::/10", "3fff::/20")),  # of one site; for documentation
    *map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24")),  # protocols' own; Oracle's metadata
    IPv4Network("168.63.129.16"),  # Azure's, in every machine there
)
"""What Python takes for public, or some versions of it do."""
_NAT64: Final = IPv6Network("64:ff9b::/96")
_LOW: Final = 0xFFFFFFFF


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


class Dialer(httpcore.AsyncNetworkBackend):
    """Connects for a gateway.

    Args:
        internal: Names of hosts that may have addresses that are not public.
        resolve: Looks names up.
    """

    def __init__(self, *, internal: Collection[str] = (), resolve: Resolve = look_up) -> None:
        self._internal = frozenset(map(canonical_host, internal))
        self._resolve = resolve
        self._backend = httpcore.AnyIOBackend()

    async def addresses(self, host: str, port: int) -> list[str]:
        """Where a host may be dialled, in order.

        Raises:
            httpcore.ConnectError: Nowhere.
        """
        host = canonical_host(host.strip("[]"))
        with suppress(ValueError):
            ip_address(host)
            return [host]
        try:
            found = await self._resolve(host, port)
        except OSError:
            raise httpcore.ConnectError(f"The host {host} is not known.") from None
        if host not in self._internal and host != "localhost":
            refused = [address for address in found if not is_public(address)]
            if refused:
                raise httpcore.ConnectError(
                    f"The host {host} leads to {refused[0]}, which is not public: refused."
                )
        return found

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """See ``httpcore.AsyncNetworkBackend``."""
        failure: Exception = httpcore.ConnectError(f"The host {host} has no address.")
        for address in await self.addresses(host, port):
            try:
                return await self._backend.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """See ``httpcore.AsyncNetworkBackend``."""
        await asyncio.sleep(seconds)

    async def open(
        self, host: str, port: int, *, tls: ssl.SSLContext | None, limit: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection, for what is no request.

        Raises:
            OSError: There is none.
        """
        failure: OSError = ConnectionError(f"The host {host} has no address.")
        try:
            addresses = await self.addresses(host, port)
        except httpcore.ConnectError as error:
            raise ConnectionError(str(error)) from None
        for address in addresses:
            try:
                return await asyncio.open_connection(
                    address,
                    port,
                    ssl=tls,
                    server_hostname=None if tls is None else host,
                    limit=limit,
                )
            except OSError as error:
                failure = error
        raise failure


def is_public(address: str) -> bool:
    """Whether it is one of the internet; of an IPv4 address within IPv6, whether that is."""
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address):
        within = parsed.ipv4_mapped or parsed.sixtofour
        parsed = within or (IPv4Address(int(parsed) & _LOW) if parsed in _NAT64 else parsed)
    named = any(parsed in network for network in _NOT_PUBLIC)
    return parsed.is_global and not (named or parsed.is_multicast or parsed.is_reserved)
