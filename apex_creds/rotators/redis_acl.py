"""Passwords of a user of Redis, of which an ACL has several at once.

``redis-acl:rediss://HOST[:PORT]?admin=NAME&persist=acl|config|no&ca=FILE``

The credential is of kind ``basic``. ``admin`` may use ACL GETUSER and SETUSER, what keeps
the ACL (ACL SAVE, CONFIG REWRITE), and CLIENT KILL; without it the user does so itself.

Guarantee: the server gets hashes of passwords in commands, and passwords in AUTH alone. A user
that is not there is not made. What was changed is kept on the server's disk, or it is refused:
else a restart would bring the old password back; ``persist=no`` says that something else sees
to that. Answers are read up to a limit, within a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from apex_creds.errors import InvalidInputError, RotatorError, RotatorRefusedError
from apex_creds.model import BasicAuth, CredentialKind, Secret
from apex_creds.rotators.protocol import Address, Created, Mode, Task, random_text, text_of

_SECONDS: Final = 20.0
_LARGEST: Final = 1 << 18
_MOST: Final = 4096
_DEEPEST: Final = 4
_KEEPERS: Final = {"acl": (("ACL", "SAVE"),), "config": (("CONFIG", "REWRITE"),), "no": ()}

_Reply = str | int | list["_Reply"] | None


class RedisAcl:
    """See the module; ``from_uri`` makes one."""

    mode = Mode.DUAL
    kinds = frozenset({CredentialKind.BASIC})
    longest_grace = None

    def __init__(self, address: Address) -> None:
        self.origin = address.origin
        self.admin = address.options.get("admin", "")
        persist = address.options.get("persist", "")
        if address.path or persist not in ("", *_KEEPERS):
            raise InvalidInputError(
                "A rotator of Redis has no path, and persist= is acl, config or no.",
                hint="Write redis-acl:rediss://HOST[:PORT]?admin=NAME.",
            )
        both = _KEEPERS["acl"] + _KEEPERS["config"]
        self._keepers = _KEEPERS[persist] if persist else both
        self._ca = address.options.get("ca", "")

    async def create(self, task: Task) -> Created:
        """See ``Rotator``."""
        return Created(secret=BasicAuth(text_of(task.current, "user"), random_text()))

    async def set(self, task: Task, new: Secret) -> None:
        """See ``Rotator``."""
        user, digest = text_of(new, "user"), _digest(new)
        async with self._ruling(task, new) as session:
            if digest not in await session.passwords(user):
                await session.done("ACL", "SETUSER", user, f"#{digest}")
            await self._keep(session)

    async def test(self, task: Task, new: Secret) -> None:
        """See ``Rotator``."""
        async with self._session(new):
            pass

    async def finish(self, task: Task, old: Secret) -> None:
        """See ``Rotator``."""
        user, digest = text_of(old, "user"), _digest(old)
        async with self._ruling(task, task.current) as session:
            if digest in await session.passwords(user):
                await session.done("ACL", "SETUSER", user, f"!{digest}")
            await self._keep(session)
            if task.lost:
                await session.done("CLIENT", "KILL", "USER", user, "SKIPME", "yes")

    async def _keep(self, session: _Session) -> None:
        """Has the server write its ACL to its disk, in one of the ways that it may have."""
        for command in self._keepers:
            if await session.did(*command):
                return
        if self._keepers:
            raise RotatorRefusedError(
                "Redis keeps no ACL: after a restart the old password would be valid again.",
                hint="Give it an aclfile or a configuration file, or say persist=no.",
            )

    @asynccontextmanager
    async def _ruling(self, task: Task, new: Secret) -> AsyncIterator[_Session]:
        """A session that may change the user: the admin's, or the user's."""
        if task.admin is not None:
            async with self._session(task.admin) as session:
                yield session
            return
        failed = RotatorError("Nobody can log in.")
        for value in (task.current, new, *task.others):
            try:
                session = await self._opened(value)
            except RotatorError as error:
                failed = error
                continue
            try:
                yield session
            finally:
                session.close()
            return
        raise failed

    @asynccontextmanager
    async def _session(self, who: Secret) -> AsyncIterator[_Session]:
        session = await self._opened(who)
        try:
            yield session
        finally:
            session.close()

    async def _opened(self, who: Secret) -> _Session:
        session = None
        try:
            async with asyncio.timeout(_SECONDS):
                tls = None
                if self.origin.scheme == "rediss":
                    tls = ssl.create_default_context(cafile=self._ca or None)
                reader, writer = await asyncio.open_connection(
                    self.origin.host, self.origin.port, ssl=tls, limit=_LARGEST
                )
        except (OSError, TimeoutError) as error:
            kind = type(error).__name__
        else:
            session, kind = _Session(reader, writer), ""
        if session is None:
            raise RotatorError(
                f"Redis at {self.origin} did not answer ({kind}).", hint="Check the network."
            )
        try:
            await session.done("AUTH", text_of(who, "user"), text_of(who, "password"))
        except BaseException:
            session.close()
            raise
        return session


class _Session:
    """One connection; commands in RESP2, one at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def close(self) -> None:
        self._writer.close()

    async def passwords(self, user: str) -> list[str]:
        """The hashes of a user's passwords."""
        reply = await self._asked("ACL", "GETUSER", user)
        if isinstance(reply, list):
            for name, value in zip(reply[::2], reply[1::2], strict=False):
                if name == "passwords" and isinstance(value, list):
                    return [each for each in value if isinstance(each, str)]
        raise RotatorRefusedError(
            "Redis has no such user.", hint="Check the credential's user."
        )

    async def done(self, *command: str) -> None:
        """Has a command done.

        Raises:
            RotatorRefusedError: The server refused.
        """
        if not await self.did(*command):
            raise RotatorRefusedError(
                f"Redis refused {' '.join(command[:2]) if command[0] != 'AUTH' else 'AUTH'}.",
                hint="Check the user, its password and its rights.",
            )

    async def did(self, *command: str) -> bool:
        """Whether the server did it."""
        return not isinstance(await self._asked(*command), _Refusal)

    async def _asked(self, *command: str) -> _Reply | _Refusal:
        sent = b"".join(
            b"$%d\r\n%s\r\n" % (len(each), each) for each in (one.encode() for one in command)
        )
        try:
            async with asyncio.timeout(_SECONDS):
                self._writer.write(b"*%d\r\n" % len(command) + sent)
                await self._writer.drain()
                return await self._reply(0)
        except (OSError, TimeoutError, EOFError, ValueError, asyncio.LimitOverrunError):
            pass
        raise RotatorError("Redis did not answer as it should.", hint="It is tried again.")

    async def _reply(self, depth: int) -> _Reply | _Refusal:
        line = (await self._reader.readuntil(b"\r\n"))[:-2]
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode(errors="replace")
        if kind == b"-":
            if rest.startswith((b"LOADING", b"BUSY", b"MASTERDOWN", b"READONLY")):
                raise RotatorError("Redis is not ready.", hint="It is tried again.")
            return _Refusal()
        size = int(rest)
        if kind == b":":
            return size
        if size < 0:
            return None
        if kind == b"$" and size <= _LARGEST:
            return (await self._reader.readexactly(size + 2))[:-2].decode(errors="replace")
        if kind == b"*" and size <= _MOST and depth < _DEEPEST:
            found = [await self._reply(depth + 1) for _ in range(size)]
            return [each for each in found if not isinstance(each, _Refusal)]
        raise ValueError


class _Refusal:
    """The server's error; its words are not kept."""


def _digest(value: Secret) -> str:
    return hashlib.sha256(value.parts.get("password", b"")).hexdigest()


def from_uri(uri: str) -> RedisAcl:
    """The rotator of a URI.

    Raises:
        InvalidInputError: It is not understood.
    """
    return RedisAcl(Address.parse(uri, schemes=("rediss", "redis"), options=("persist", "ca")))
