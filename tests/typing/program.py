# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What a type checker sees through the public names; read by mypy, never run.

An error that must be found has ``type: ignore`` with its code: mypy's ``warn_unused_ignores``
makes one that is not found an error in turn.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from typing import assert_type

import apex_creds
from apex_creds import (
    CredentialMap,
    CredentialMiddleware,
    Manifest,
    Vault,
    current_credentials,
    parse_manifest,
)

assert_type(parse_manifest({}), Manifest)
assert_type(current_credentials(), CredentialMap)
apex_creds.nothing_of_it  # type: ignore[attr-defined]  # noqa: B018
from apex_creds import nothing_of_it  # type: ignore[attr-defined]  # noqa: E402, F401


async def fetch(city: str, *, days: int = 1) -> dict[str, int]:
    return {city: days}


async def told(city: str, credentials: CredentialMap) -> int:
    return len(city)


async def pieces(count: int) -> AsyncIterator[str]:
    yield str(count)


async def pieces_told(count: int, *, credentials: CredentialMap) -> AsyncIterator[str]:
    yield str(count)


def steps(count: int) -> Iterator[bytes]:
    yield bytes(count)


def steps_told(credentials: CredentialMap) -> Iterator[bytes]:
    yield b""


def plain(count: int) -> float:
    return count / 2


def plain_told(count: int, credentials: CredentialMap) -> float:
    return count / 2


def may_be_told(count: int, credentials: CredentialMap | None = None) -> float:
    return count / 2


async def results(middleware: CredentialMiddleware, manifest: Manifest) -> None:
    assert_type(await middleware.invoke(manifest, fetch, "Oslo", days=2), dict[str, int])
    assert_type(await middleware.invoke(manifest, told, "Oslo"), int)
    assert_type(await middleware.invoke(manifest, pieces, 3), AsyncGenerator[str, None])
    assert_type(await middleware.invoke(manifest, pieces_told, 3), AsyncGenerator[str, None])
    assert_type(await middleware.invoke(manifest, steps, 3), Generator[bytes, None, None])
    assert_type(await middleware.invoke(manifest, steps_told), Generator[bytes, None, None])
    assert_type(await middleware.invoke(manifest, plain, 3), float)
    assert_type(await middleware.invoke(manifest, plain_told, 3), float)
    assert_type(await middleware.invoke(manifest, may_be_told, 3), float)


async def arguments(middleware: CredentialMiddleware, manifest: Manifest) -> None:
    await middleware.invoke(manifest, fetch, 3)  # type: ignore[arg-type]
    await middleware.invoke(manifest, fetch)  # type: ignore[arg-type]
    await middleware.invoke(manifest, fetch, "Oslo", hours=2)  # type: ignore[call-arg]
    await middleware.invoke(manifest, pieces, "three")  # type: ignore[arg-type]
    await middleware.invoke(manifest, steps, "three")  # type: ignore[arg-type]
    await middleware.invoke(manifest, plain, "three")  # type: ignore[arg-type]
    await middleware.invoke("weather", fetch, "Oslo")  # type: ignore[call-overload]


async def wrapped(middleware: CredentialMiddleware, manifest: Manifest) -> None:
    guarded = middleware.wrap(manifest, fetch)
    assert_type(await guarded("Oslo", days=2), dict[str, int])
    await guarded(3)  # type: ignore[arg-type]
    as_told: Callable[..., Coroutine[object, object, int]] = middleware.wrap(manifest, told)
    assert_type(await as_told("Oslo"), int)
    stream = await middleware.wrap(manifest, pieces)(3)
    assert_type([piece async for piece in stream], list[str])


async def opened() -> None:
    async with await Vault.create("home") as vault, CredentialMiddleware(vault) as middleware:
        assert_type(middleware, CredentialMiddleware)
        assert_type(vault, Vault)
