"""Who is let in: login links that work once, and the sessions that they become.

Guarantee: a link works once and for ten minutes; making another one voids it. A session is
two random values, a cookie and a page key, and each alone is worth nothing: a cookie is
sent to every port of a host, a page key is kept by one tab of one origin. Only digests of
them are in memory; all end with the process.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from apex_creds.clocks import boot_time

LINK_SECONDS: Final = 600.0
SESSION_SECONDS: Final = 12 * 3600.0
MAX_SESSIONS: Final = 8
_LONGEST: Final = 256
WITH_SESSION: Final = "apex_creds.session"
"""In the scope of a request that has shown one."""


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is let in.

    Attributes:
        number: Counts the sessions of this process, from 1.
        ends: On the monotonic clock, seconds.
    """

    number: int
    cookie: bytes = field(repr=False)
    key: bytes = field(repr=False)
    ends: float = 0.0


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a browser gets, once; nothing here keeps it."""

    session: Session
    cookie: str = field(repr=False)
    key: str = field(repr=False)


class SessionGate:
    """Links and sessions of one process.

    Args:
        now: A monotonic clock.
    """

    def __init__(self, *, now: Callable[[], float] = boot_time) -> None:
        self._now = now
        self._link: tuple[bytes, float] | None = None
        self._sessions: dict[int, Session] = {}
        self._count = 0

    def new_link(self) -> str:
        """A token for a link; an earlier one that was not used is void."""
        token = secrets.token_urlsafe(32)
        self._link = (_digest(token), self._now() + LINK_SECONDS)
        return token

    def admit(self, token: str) -> Admitted | None:
        """A new session for a token that is good; the token is used up."""
        link = self._link
        if link is None or not hmac.compare_digest(link[0], _digest(token)):
            return None
        self._link = None
        if self._now() >= link[1]:
            return None
        cookie, key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self._count += 1
        ends = self._now() + SESSION_SECONDS
        session = Session(self._count, _digest(cookie), _digest(key), ends)
        self._sessions = {n: s for n, s in self._sessions.items() if self.lasts(s)}
        while len(self._sessions) >= MAX_SESSIONS:
            self._sessions.pop(next(iter(self._sessions)))
        self._sessions[session.number] = session
        return Admitted(session, cookie, key)

    def find(self, cookie: str, key: str) -> Session | None:
        """The session that both values belong to, while it lasts."""
        digests = _digest(cookie), _digest(key)
        found = None
        for session in self._sessions.values():
            both = hmac.compare_digest(session.cookie, digests[0]) & hmac.compare_digest(
                session.key, digests[1]
            )
            found = session if both else found
        return found if found is not None and self.lasts(found) else None

    def lasts(self, session: Session) -> bool:
        """Whether a session is not over."""
        return session.number in self._sessions and self._now() < session.ends

    def leave(self, session: Session) -> None:
        """Ends a session; again does nothing."""
        self._sessions.pop(session.number, None)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text[:_LONGEST].encode(errors="surrogatepass")).digest()
