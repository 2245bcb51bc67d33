"""The web application: static files, login, the event stream, queries and decisions.

Guarantee: every response needs a session, except for the page's static files, which hold no
data and are all that is served from the disk; nothing is changed in the vault unless decisions
were allowed when it was started. No error has more in it than this package's own errors say.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlsplit

import anyio.to_thread
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.dashboard.event_words import Filter, sieve_of
from apex_creds.dashboard.lease_view import Answer, Names, answer
from apex_creds.dashboard.live_feed import MAX_READERS, LiveFeed
from apex_creds.dashboard.log_search import earlier, trace
from apex_creds.dashboard.sessions import WITH_SESSION, Session, SessionGate
from apex_creds.dashboard.watcher import Watcher
from apex_creds.dashboard.web_security import (
    Guard,
    Nothing,
    body,
    broken,
    encode,
    failed,
    not_found,
    refused,
    reply,
)
from apex_creds.errors import ApexCredsError, InvalidInputError
from apex_creds.fs.home import audit_directory
from apex_creds.vault import Vault

TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_files() -> dict[str, tuple[bytes, str]]:
    """Bytes and media type of each file by its name."""
    found = {}
    for item in files("apex_creds.dashboard").joinpath("static").iterdir():
        kind = TYPES.get(item.name[item.name.rfind(".") :])
        if kind is not None and item.is_file():
            found[item.name] = (item.read_bytes(), kind)
    return found


Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
Inside = Callable[[Request, Session], Coroutine[Any, Any, Response]]

KEY_HEADER: Final = "x-apex-creds-key"
_LOGGED_REFUSALS: Final = 20


class _Login(msgspec.Struct, forbid_unknown_fields=True):
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """How the dashboard is reached and what it may do.

    Attributes:
        origins: Where the page is opened; the first is in links.
        decisions: Whether questions may be answered.
    """

    origins: tuple[str, ...]
    decisions: bool = False


class Dashboard:
    """One vault's dashboard.

    Args:
        vault: Unsealed for as long as it is served.
        site: How it is reached.
        names: How credentials are called.
        gate: Lets people in.
        feed: What is sent to the page.
        watcher: Fills the feed.
    """

    def __init__(
        self,
        vault: Vault,
        site: Site,
        *,
        names: Names,
        gate: SessionGate,
        feed: LiveFeed,
        watcher: Watcher,
    ) -> None:
        self._vault = vault
        self._site = site
        self._names = names
        self._gate = gate
        self._feed = feed
        self._watcher = watcher
        self._files = page_files()
        self._directory = audit_directory(vault.home)
        self._refused = 0
        first = urlsplit(site.origins[0])
        self._cookie = f"apex-creds-{first.port or 0}"
        self._secure = first.scheme == "https"

    def app(self) -> ASGIApp:
        """The application, guarded."""
        routes = [
            Route("/", self._file, methods=["GET"]),
            Route("/assets/{name}", self._file, methods=["GET"]),
            Route("/login", self._login, methods=["POST"]),
            self._api("/api/stream", self._stream, "GET"),
            self._api("/api/story/{id}", self._story, "GET"),
            self._api("/api/log", self._earlier, "GET"),
            self._api("/api/lists/{name}", self._window, "GET"),
            self._api("/api/logout", self._logout, "POST"),
            self._api("/api/verify", self._verify, "POST"),
            self._api("/api/requests/{id}", self._answer, "POST"),
        ]
        handlers: dict[Any, Any] = {
            404: not_found,
            405: not_found,
            ApexCredsError: failed,
            Exception: broken,
        }
        inner = Starlette(routes=routes, exception_handlers=handlers)
        inner.router.redirect_slashes = False
        return Guard(inner, origins=self._site.origins)

    # -- for everybody ---------------------------------------------------------------

    async def _file(self, request: Request) -> Response:
        """One of the page's files; the page itself is at ``/`` alone."""
        name = request.path_params.get("name")
        if name == "index.html" or name not in {None, *self._files}:
            return refused(404, "There is nothing here.")
        data, kind = self._files[name or "index.html"]
        return Response(data, headers={"content-type": kind})

    async def _login(self, request: Request) -> Response:
        """Lets somebody in; of those that are refused, only the first ones are audited."""
        said = await body(request, _Login)
        admitted = self._gate.admit(said.token)
        self._refused += admitted is None
        if admitted is not None or self._refused <= _LOGGED_REFUSALS:
            event = AuditEvent(
                time=self._vault.clock.time(),
                kind=EventKind.CLIENT,
                action="dashboard",
                decision="allow" if admitted else "deny",
                reason="login" if admitted else "bad_link",
            )
            await anyio.to_thread.run_sync(self._vault.audit.append, event)
        if admitted is None:
            return refused(
                403,
                "That link was used already, is too old, or was never given out.",
                "Press Enter where apex-creds dashboard runs, for another one.",
            )
        made = Response(encode({"key": admitted.key}), media_type="application/json")
        made.set_cookie(
            self._cookie,
            admitted.cookie,
            path="/api",
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )
        return made

    # -- with a session --------------------------------------------------------------

    def _api(self, path: str, inside: Inside, method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            cookie = request.cookies.get(self._cookie, "")
            session = self._gate.find(cookie, request.headers.get(KEY_HEADER, ""))
            if session is None:
                return refused(
                    401,
                    "This tab is not logged in (any more).",
                    "Press Enter where apex-creds dashboard runs, for a link.",
                )
            request.scope[WITH_SESSION] = True
            return await inside(request, session)

        return Route(path, endpoint, methods=[method])

    async def _stream(self, _: Request, session: Session) -> Response:
        if self._feed.readers >= MAX_READERS:
            return refused(503, "Too many tabs are open.")

        async def frames() -> AsyncIterator[bytes]:
            hello = {
                "vault": self._vault.vault_id,
                "decisions": self._site.decisions,
                "hidden": self._names.hidden,
                # One of several homes of a vault in a database: each keeps its own log.
                "shared": self._vault.audit.vault_id != self._vault.vault_id,
                "now": self._vault.clock.time(),
            }
            yield b"event: hello\ndata: " + encode(hello) + b"\n\n"
            async for frame in self._feed.frames(lasts=partial(self._gate.lasts, session)):
                yield frame

        return StreamingResponse(frames(), media_type="text/event-stream")

    async def _story(self, request: Request, _: Session) -> Response:
        read = partial(
            trace,
            self._directory,
            vault_id=self._vault.audit.vault_id,
            invocation=request.path_params["id"],
        )
        events, whole = await anyio.to_thread.run_sync(read)
        return reply({"events": [self._watcher.shown(e) for e in events], "whole": whole})

    async def _earlier(self, request: Request, _: Session) -> Response:
        """One step back in the log: the page goes on where it ended."""
        asked = request.query_params
        before = asked.get("before", "")
        if not before.isdecimal() or len(before) > 15 or not before.isascii():
            raise InvalidInputError("That is not the number of an event.")
        wanted = Filter.parse(asked.get("text", ""), asked.get("kind", ""))
        read = partial(
            earlier,
            self._directory,
            vault_id=self._vault.audit.vault_id,
            before=int(before),
            shown=self._watcher.shown,
            fault=self._watcher.fault,
            wanted=wanted.matches if wanted else None,
            sieve=sieve_of(wanted, named=self._names.stored),
        )
        return reply(await anyio.to_thread.run_sync(read))

    async def _window(self, request: Request, _: Session) -> Response:
        """What is shown of a list, of any length."""
        find = partial(
            self._watcher.window, request.path_params["name"], dict(request.query_params)
        )
        return reply(await anyio.to_thread.run_sync(find))

    async def _logout(self, request: Request, session: Session) -> Response:
        await body(request, Nothing)
        self._gate.leave(session)
        made = reply({})
        made.delete_cookie(self._cookie, path="/api", httponly=True, samesite="strict")
        return made

    async def _verify(self, request: Request, _: Session) -> Response:
        await body(request, Nothing)
        self._watcher.verify_all()
        return reply({})

    async def _answer(self, request: Request, _: Session) -> Response:
        if not self._site.decisions:
            return refused(
                403,
                "This dashboard only shows; it takes no decisions.",
                "Start it with --allow-decisions, or use: apex-creds approve, deny",
            )
        said = await body(request, Answer)
        done = await answer(self._vault, request.path_params["id"], said)
        return reply({"id": done.id, "choice": said.choice.value})
