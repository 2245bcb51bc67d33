"""Asking a person: the question, the answers there are, and who can be asked. No I/O.

Guarantee: a question says everything that its answer will allow, and nothing of it is the
plugin's to phrase but its names and its reason, which ``lines`` shows with every character
escaped that is not plainly seen, and in quotation marks where they could be read as ours. No
answer is a denial.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from apex_creds.errors import InvalidInputError
from apex_creds.model import check_time
from apex_creds.plain import check_can
from apex_creds.policy.display import named, quoted, shown
from apex_creds.policy.manifest import Access

DEADLINE: Final = 120.0
"""Seconds that a question waits, where nothing else is said."""
UNKNOWN: Final = "unknown_credential"
_MANY: Final = 50


class Choice(StrEnum):
    """What a person can say."""

    ONCE = "once"
    SESSION = "session"
    UNTIL = "until"
    ALWAYS = "always"
    DENY = "deny"
    NEVER = "never"

    @property
    def allows(self) -> bool:
        """Whether it is a yes."""
        return self not in (Choice.DENY, Choice.NEVER)


class ConsentAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer.

    Attributes:
        until: Unix seconds; with ``UNTIL``, and only there.
        by: Who answered, in words; for the log.
    """

    choice: Choice
    until: float | None = None
    by: str = ""

    def __post_init__(self) -> None:
        check_time(self.until, what="end of the answer")
        if (self.choice is Choice.UNTIL) is not (self.until is not None):
            raise InvalidInputError("An answer has an end exactly if it is until a date.")


DENIED: Final = ConsentAnswer(choice=Choice.DENY)


class ConsentRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question: may this plugin use that credential?

    Attributes:
        plugin: Its id; ``version`` and ``action`` likewise.
        level: The credential's.
        scopes: All that it asks for, and so are ``origins``, ``methods`` and ``paths``.
        access: Whether it would read the secret itself.
        reason: The plugin's own words.
        why: Why it must be asked: a ``Reason``; ``unknown_credential``: there is none of
            that name, and a yes gives the plugin nothing now.
        before: What it was granted before, in words; empty: nothing.
        changes: What it asks for now beyond what was decided on, in words.
        unverified: Whether its code is not what its metadata says.
        second_factor: Whether a second factor is asked for besides.
        owner: Whose credential it is; empty: it is shared.
        principal: Who the plugin is called for; empty: nobody.
    """

    plugin: str
    version: str = ""
    action: str = ""
    credential: str
    level: str = ""
    scopes: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    access: Access = Access.INJECT
    reason: str = ""
    why: str = ""
    before: str = ""
    changes: tuple[str, ...] = ()
    unverified: bool = False
    second_factor: bool = False
    owner: str = ""
    principal: str = ""


class ConsentProvider(Protocol):
    """Somebody who can be asked."""

    async def ask(self, request: ConsentRequest) -> ConsentAnswer:
        """The answer. Cancelled at the deadline, or when nobody waits for it any more."""


Callback = Callable[[ConsentRequest], "Awaitable[ConsentAnswer | None] | ConsentAnswer | None"]


class CallbackConsent:
    """Asks through a function of the runtime's, synchronous or not; None is a denial."""

    def __init__(self, callback: Callback) -> None:
        check_can(callback, what="callback")
        self._callback = callback

    async def ask(self, request: ConsentRequest) -> ConsentAnswer:
        """See ``ConsentProvider``."""
        answer = self._callback(request)
        if inspect.isawaitable(answer):
            answer = await answer
        return answer or DENIED


_VERBS: Final = {
    Access.INJECT: "use",
    Access.SIGN: "sign with",
    Access.REVEAL: "read the secret of",
}


def lines(request: ConsentRequest) -> list[str]:
    """The question, in lines that can be shown on a terminal as they are."""
    version = f" (version {named(request.version)})" if request.version else ""
    verb = _VERBS[request.access]
    level = f" [{shown(request.level)}]" if request.level else ""
    whose = f" of {named(request.owner)}" if request.owner else ""
    credential = f"{named(request.credential)}{whose}{level}"
    found = [f"Plugin {named(request.plugin)}{version} wants to {verb} {credential}."]
    if not request.plugin.isascii():
        found.append(f"  NOTE: its id has letters beyond ASCII: {request.plugin!a}")
    for name, values in (
        ("scopes", request.scopes),
        ("sent to", request.origins or ("nowhere",)),
        ("methods", request.methods),
        ("paths", request.paths),
    ):
        if values:
            more = f" and {len(values) - _MANY} more" if len(values) > _MANY else ""
            found.append(f"  {name}: {', '.join(map(named, values[:_MANY]))}{more}")
    if request.principal:
        shared = "" if request.owner else ", who has none of that name: it is the shared one"
        found.append(f"  for: {named(request.principal)}{shared}")
    if request.action:
        found.append(f"  action: {named(request.action)}")
    found.append(f"  it says: {quoted(request.reason)}" if request.reason else "  no reason")
    if request.why == UNKNOWN:
        found.append("  NOTE: there is no credential of that name (yet).")
    found.append(f"  before: {shown(request.before) or 'nothing was granted'}")
    found += [f"  NEW: {shown(change)}" for change in request.changes[:_MANY]]
    if len(request.changes) > _MANY:
        found.append(f"  NEW: and {len(request.changes) - _MANY} more")
    if request.unverified:
        found.append("  WARNING: its code is not what its metadata says (checksum).")
    return found
