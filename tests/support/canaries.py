"""Looks for a secret in the objects that a plugin can walk to."""

from __future__ import annotations

import asyncio
import gc
import types
import weakref
from collections.abc import Iterable

_LEAVES = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.CodeType,
    types.FrameType,
    weakref.ProxyType,
    asyncio.AbstractEventLoop,  # the server of a test runs in the same one
)
_MOST = 3_000_000


def reachable(*roots: object) -> Iterable[object]:
    """What can be walked to from ``roots``, but through modules, classes, functions, frames."""
    seen: set[int] = set()
    ahead = list(roots)
    while ahead and len(seen) < _MOST:
        thing = ahead.pop()
        if id(thing) in seen or issubclass(type(thing), _LEAVES):
            continue
        seen.add(id(thing))
        yield thing
        ahead.extend(gc.get_referents(thing))
    assert not ahead, "the walk has no end: it showed nothing"


def holders(secret: str, *roots: object) -> list[str]:
    """The types of the texts and bytes that have the secret in them."""
    plain = secret.encode()
    found = []
    for thing in reachable(*roots):
        if isinstance(thing, str) and secret in thing:
            found.append(f"str {thing[:40]!r}")
        elif isinstance(thing, bytes | bytearray) and plain in thing:
            found.append(f"bytes {bytes(thing[:40])!r}")
    return found


def in_frames(error: BaseException) -> list[object]:
    """What is in the frames below the one that caught it, and what it came from."""
    found: list[object] = [error.__cause__, error.__context__]
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
        found += [each for each in at.tb_frame.f_locals.values() if each is not error]
    return found
