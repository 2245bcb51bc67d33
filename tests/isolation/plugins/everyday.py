"""A plugin, as people write them: it knows nothing of a wall."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import datetime
import decimal
import enum
import importlib
import logging
import os
import signal
import sys
import threading
import time

from apex_creds import CredentialMap, current_credentials

log = logging.getLogger("plugins.everyday")
seen = []


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int


class NoSuchCityError(ValueError):
    pass


class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(one, two)


def plain(a, b=2, *, credentials: CredentialMap):
    return {"sum": a + b, "names": sorted(credentials)}


async def coroutine(q):
    await asyncio.sleep(0)
    return [q, sorted(current_credentials())]


def same(value):
    return value


def kinds():
    return {
        "point": Point(1, 2),
        "colour": Colour.RED,
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001
        "price": decimal.Decimal("1.10"),
    }


def unknown_kind():
    return threading.Lock()


def pid():
    return os.getpid()


def remember(value):
    seen.append(value)
    return list(seen)


async def stream(n, made=None):
    try:
        for i in range(n):
            seen.append(i)
            yield f"item {i}"
    finally:
        log.info("stream closed")


async def echo():
    got = None
    while True:
        try:
            got = yield got
        except ValueError as error:
            got = f"caught {error}"


def steps(n):
    yield from range(n)
    return "end"


async def broken_stream():
    yield 1
    raise NoSuchCityError("no more")


async def no_such_city():
    error = NoSuchCityError("no city Roma")
    error.add_note("did you mean Rome?")
    raise error from OSError("the map is gone")


def key_error():
    raise KeyError("missing")


def odd():
    raise Odd(1, 2)


def stop_everything():
    raise SystemExit(3)


def progress(report):
    for i in range(3):
        report(i, total=3)
    return "done"


async def awaited_progress(report):
    return [await report(i) for i in range(3)]


def talk():
    print("printed")
    log.warning("a warning about %s", "rain")
    try:
        raise OSError("lost")
    except OSError:
        log.exception("it failed")


def adapters():
    found = {}
    for name in ("httpx", "requests", "postgres", "redis", "smtp", "websockets", "grpc", "ssh"):
        try:
            importlib.import_module(f"apex_creds.sdk.{name}")
            found[name] = "there"
        except ImportError as error:
            found[name] = str(error)
    return found


async def hang(started):
    try:
        await started()
        await asyncio.Event().wait()
    finally:
        log.info("cancelled in time")


def blocks(started):
    started()
    time.sleep(3600)


def exits():
    os._exit(3)


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def segfault():
    ctypes.string_at(0)


def hog():
    return len([bytearray(1 << 26) for _ in range(1000)])


def forks():
    return os.fork()


async def revealed(name="key"):
    async with current_credentials()[name].reveal() as secret:
        return secret.expose_str()


def revealed_in_thread(credentials):
    with credentials["key"].reveal() as secret:
        return len(secret)


async def revealed_beside_the_loop(credentials):
    with credentials["key"].reveal() as secret:  # blocks the plugin's event loop
        return len(secret)


async def undeclared():
    return current_credentials()["other"]


async def get(base, credentials):
    async with credentials["key"].client(base_url=base) as http:
        answer = await http.get("/hello", params={"q": "1"})
        return answer.status_code, answer.text


def get_in_thread(base, credentials):
    with credentials["key"].sync_client(base_url=base) as http:
        return http.get("/hello").status_code


async def upload(base, credentials):
    async def pieces():
        for each in (b"one ", b"two"):
            yield each

    async with credentials["key"].client(base_url=base) as http:
        answer = await http.post("/upload", content=pieces())
        return answer.text


async def by_sdk(base, key):
    import httpx
    import openai

    from apex_creds import sdk

    client = openai.AsyncOpenAI(
        base_url=f"{base}/v1",
        api_key=sdk.placeholder("sk-"),
        http_client=httpx.AsyncClient(transport=sdk.httpx.async_transport(key)),
    )
    found = await client.models.list()
    return [each.id for each in found.data]


async def kept(started):
    """A handle, and a task that goes on after the call."""
    handle = current_credentials()["key"]

    async def later():
        await asyncio.sleep(0)
        while True:
            await asyncio.sleep(0.01)
            try:
                async with handle.reveal() as secret:
                    seen.append(len(secret))
            except Exception as error:
                if "over" in str(error) or "ended" in str(error).lower():
                    seen.append(type(error).__name__)
                    return

    seen[:] = []
    seen.append(asyncio.ensure_future(later()))
    return "returned"


async def what_happened():
    while not isinstance(seen[-1], str):
        await asyncio.sleep(0.01)
    return seen[-1]


def modules():
    return sorted(sys.modules)


class Plugin:
    def __init__(self):
        self.count = 0

    def next(self):
        self.count += 1
        return self.count


async def get_gone(credentials):
    async with credentials["gone"].client() as http:
        return (await http.get("http://127.0.0.1:9/")).status_code


async def unmodified():
    import openai

    client = openai.AsyncOpenAI()
    found = await client.models.list()
    return os.environ["OPENAI_API_KEY"], [each.id for each in found.data]


def fork_bomb():
    started = 0
    try:
        for _ in range(10_000):
            if os.fork() == 0:
                time.sleep(3600)
            started += 1
    except OSError as error:
        return started, type(error).__name__
    return started, "no end"
