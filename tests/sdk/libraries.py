"""HTTP libraries, each with its adapter: a client that is made beforehand, and its calls."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
import httpx2
import requests
import urllib3

from apex_creds import sdk


@dataclass
class Client:
    """One library.

    Attributes:
        make: A client, of names and options; with ``retries`` it tries that often.
        call: Sends a method, URL, body and headers; gives status, JSON.
        lines: The lines of a stream, as they come.
        connection_error: What a connection that failed is to it.
    """

    name: str
    make: Callable[..., Any]
    call: Callable[..., Any]
    lines: Callable[..., Any]
    connection_error: type[Exception]
    asynchronous: bool = False

    def __repr__(self) -> str:
        return self.name


def _httpx(library, transport, name):
    def call(client, method, url, body=None, headers=None):
        answer = client.request(method, url, content=body, headers=headers)
        return answer.status_code, answer.json(), answer.headers

    def lines(client, url) -> Iterator[str]:
        with client.stream("GET", url) as answer:
            yield from (line for line in answer.iter_lines() if line)

    def make(*names, **options):
        return library.Client(transport=transport(*names, **options))

    return Client(name, make, call, lines, library.ConnectError)


def _async_httpx(library, transport, name):
    async def call(client, method, url, body=None, headers=None):
        answer = await client.request(method, url, content=body, headers=headers)
        return answer.status_code, answer.json(), answer.headers

    async def lines(client, url) -> AsyncIterator[str]:
        async with client.stream("GET", url) as answer:
            async for line in answer.aiter_lines():
                if line:
                    yield line

    def make(*names, **options):
        return library.AsyncClient(transport=transport(*names, **options))

    return Client(name, make, call, lines, library.ConnectError, asynchronous=True)


def _requests():
    def call(client, method, url, body=None, headers=None):
        answer = client.request(method, url, data=body, headers=headers)
        return answer.status_code, answer.json(), answer.headers

    def lines(client, url) -> Iterator[str]:
        with client.get(url, stream=True) as answer:
            for line in answer.iter_lines(chunk_size=None, decode_unicode=True):
                if line:
                    yield line

    return Client("requests", sdk.requests.session, call, lines, requests.ConnectionError)


def _urllib3():
    def call(client, method, url, body=None, headers=None):
        answer = client.request(method, url, body=body, headers=headers, retries=False)
        return answer.status, json.loads(answer.data), answer.headers

    def lines(client, url) -> Iterator[str]:
        answer = client.request("GET", url, preload_content=False)
        for chunk in answer.stream():
            yield from filter(None, chunk.decode().split("\n"))
        answer.release_conn()

    error = urllib3.exceptions.NewConnectionError
    return Client("urllib3", sdk.urllib3.pool_manager, call, lines, error)


def _aiohttp():
    @contextlib.asynccontextmanager
    async def requested(connector, method, url, **more):
        async with (
            aiohttp.ClientSession(connector=connector, connector_owner=False) as session,
            session.request(method, url, **more) as answer,
        ):
            yield answer

    async def call(client, method, url, body=None, headers=None):
        async with requested(client, method, url, data=body, headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers

    async def lines(client, url) -> AsyncIterator[str]:
        async with requested(client, "GET", url) as answer:
            async for line in answer.content:
                if line.strip():
                    yield line.decode().strip()

    error = aiohttp.ClientConnectorError
    return Client("aiohttp", sdk.aiohttp.connector, call, lines, error, asynchronous=True)


LIBRARIES = [
    _aiohttp(),
    _async_httpx(httpx, sdk.httpx.async_transport, "httpx-async"),
    _httpx(httpx, sdk.httpx.transport, "httpx"),
    _async_httpx(httpx2, sdk.httpx2.async_transport, "httpx2-async"),
    _httpx(httpx2, sdk.httpx2.transport, "httpx2"),
    _requests(),
    _urllib3(),
]
