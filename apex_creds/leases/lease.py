"""An invocation and its leases: state, and the timer that ends them. Plugins hold handles.

Guarantee: a lease that has ended never comes back; ending it wipes what was revealed under
it, closes its bodies and ends every lease attenuated from it, from any thread. The current
invocation is found through a context variable only, so it follows tasks, worker threads
started with their context, and stream steps; a handle never refers to it. An invocation keeps
the sealed records of what was redeemed in it, never plaintext.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import msgspec

from apex_creds.audit.line import Actor
from apex_creds.documents.records import Record
from apex_creds.errors import (
    HandleExhaustedError,
    HandleExpiredError,
    HandleRevokedError,
    LeaseEndedError,
)
from apex_creds.model import Clock, Origin, check_name, new_id
from apex_creds.plain import plain_text
from apex_creds.policy.decide import Permission
from apex_creds.policy.grants import Grant, GrantDecision, Grants
from apex_creds.policy.manifest import Manifest, Need
from apex_creds.policy.rules import Policy

if TYPE_CHECKING:
    from apex_creds.auth.step_up import Responder

DEFAULT_TTL: Final = 300.0
"""Seconds that a lease lives, where nothing else is said."""

Key = tuple[str, int]
"""A credential's name and version."""
REVEAL: Final = "reveal"
LONGEST_SLEEP: Final = 5.0
"""A thread's wait stands still while the machine sleeps: the clock is read again after it."""

_current: ContextVar[Invocation | None] = ContextVar("apex_creds_invocation", default=None)
_bare: ContextVar[str] = ContextVar("apex_creds_bare_plugin", default="")
"""The plugin that is called without an invocation, as it has nothing to do with credentials."""

current_invocation: Final = _current.get
"""The invocation that the calling code runs in, or None."""
enter: Final = _current.set
leave: Final = _current.reset
PRINCIPAL: Final[ContextVar[str]] = ContextVar("apex_creds_principal", default="")
"""Named by the runtime, for the invocations that begin outside of any other."""
enter_bare: Final = _bare.set
leave_bare: Final = _bare.reset


class AccessRequest(msgspec.Struct, frozen=True):
    """What a lease is used for.

    Attributes:
        method: An HTTP method, or ``reveal``, ``SIGN``, ``JWT``.
        origin: Where the secret goes; None for ``reveal``.
        path: The request's raw path, without its query.
        scope: A scope that the lease must have; None: any lease will do.
        logged: The method in the log, where nothing is sent; empty: ``method``.
    """

    method: str
    origin: Origin | None = None
    path: str = ""
    scope: str | None = None
    logged: str = ""


class Authorization(NamedTuple):
    """What a lease is allowed by besides what is stored, for one plugin and one credential.

    It widens nothing: ``decide`` treats it as a stored grant, one that says no is stronger, and
    a revocation that came after it makes it void.

    Attributes:
        grant: What a person said, not stored; None: nothing.
        factor: When a second factor was shown, Unix seconds; None: none was.
        mark: The last revocation that was known then.
    """

    grant: Grant | None = None
    factor: float | None = None
    mark: int = 0


def effective_grant(
    grants: Grants, plugin: str, credential: str, authorization: Authorization | None
) -> tuple[Grant | None, float | None]:
    """The grant that counts for the pair, and when a second factor was shown for it."""
    stored = grants.find(plugin, credential)
    if authorization is None or grants.revoked_since(authorization.mark, plugin, credential):
        return stored, None
    if authorization.grant is None or (stored and stored.decision is GrantDecision.DENY):
        return stored, authorization.factor
    return authorization.grant, authorization.factor


class Invocation(msgspec.Struct, eq=False, kw_only=True, weakref=True):
    """One call of one plugin, in progress. A struct, as each call makes one.

    Attributes:
        id: 32 hexadecimal digits.
        manifest: The plugin's.
        action: What it does.
        actor: Begins the audit events of this plugin and action.
        refuse: Refuses a credential to an invocation; of the broker whose leases it has.
        parent: The one that it was called from within.
        principal: Who it is called for; empty: nobody.
        redeemed: Sealed records redeemed in it, by credential name and version.
        responder: The client that the runtime named when it began; None: nobody, or it was
            called from within another, whose client counts.
        ended: Whether it is over; then nothing is released to what still runs in it.
    """

    id: str
    manifest: Manifest
    action: str
    actor: Actor
    refuse: Callable[[Invocation, str], NoReturn]
    parent: Invocation | None
    principal: str
    responder: Responder | None
    leases: set[Lease] = msgspec.field(default_factory=set)
    redeemed: dict[Key, Record] = msgspec.field(default_factory=dict)
    credentials: Mapping[str, object] | None = None
    ended: bool = False

    __repr__ = object.__repr__  # one that showed all of it would never come to an end

    def shown(self, text: str) -> str:
        """``text`` that the plugin chose, as it may be logged and shown."""
        return text

    def is_live_within(self, other: Invocation) -> bool:
        """Whether this was called from within ``other``, and none on the way is over."""
        step: Invocation | None = self
        while step is not None and not step.ended:
            if step is other:
                return True
            step = step.parent
        return False


def caller() -> str:
    """The id of the plugin that is running; empty: none that is known."""
    invocation = current_invocation()
    return _bare.get() if invocation is None else invocation.manifest.plugin


@contextmanager
def acting_for(principal: str) -> Iterator[None]:
    """The invocations that begin within it are for ``principal``, as a user's id.

    In this task and those it starts; within an invocation it counts for nothing.

    Raises:
        InvalidNameError: It is no name.
    """
    token = PRINCIPAL.set(check_name(plain_text(principal, what="principal"), what="principal"))
    try:
        yield
    finally:
        PRINCIPAL.reset(token)


def is_for_another(principal: str) -> bool:
    """Whether what runs here may not begin an invocation for that principal.

    It is for the same as the invocation that it begins in; a plugin's code begins none for
    somebody if it is not called for them itself.
    """
    invocation = current_invocation()
    if invocation is None:
        return bool(_bare.get()) or PRINCIPAL.get() not in ("", principal)
    return invocation.principal != principal


class Lease(msgspec.Struct, eq=False, kw_only=True):
    """The state behind a handle: one time-bounded use of a grant. A struct, as ``Invocation``.

    Attributes:
        timer: Ends it at its deadline, once something is open under it.
        on_end: Called once, before what is open under it is closed.
        key: The credential's, ``model.key_of``.
        expires: On the monotonic clock, seconds; ``until`` is the same on the wall clock as it
            was when the lease began.
        uses_left: None: without limit.
        parent: The lease that this one was attenuated from.
        grants: The grants under which ``permission`` was decided; ``policy`` likewise.
        authorization: What that rests on besides; None: nothing.
        closers: Close what is open under it.
        watched: Whether the timer has it.
        ending: Taken by the one thread that ends it.
    """

    timer: ExpiryTimer
    on_end: Callable[[Lease], object]
    invocation: Invocation
    need: Need
    key: str
    record_id: str
    permission: Permission
    grants: Grants
    scopes: tuple[str, ...]
    expires: float
    until: float
    policy: Policy
    authorization: Authorization | None
    uses_left: int | None = None
    parent: Lease | None = None
    id: str = msgspec.field(default_factory=new_id)
    ended: type[LeaseEndedError] | None = None
    children: set[Lease] = msgspec.field(default_factory=set)
    closers: dict[Callable[[], object], None] = msgspec.field(default_factory=dict)
    watched: bool = False
    ending: threading.Lock = msgspec.field(default_factory=threading.Lock)

    __repr__ = object.__repr__

    def end(self, why: type[LeaseEndedError] = HandleRevokedError) -> None:
        """Ends the lease and what is open under it; idempotent, from any thread."""
        ending = [self]
        while ending:  # a plugin decides how deep they are attenuated
            lease = ending.pop()
            if not lease.ending.acquire(blocking=False):
                continue
            lease.ended = why
            lease.on_end(lease)
            if lease.watched:
                lease._close_all()
            while lease.children:
                try:
                    ending.append(lease.children.pop())
                except KeyError:  # another thread took the last one
                    break
            lease.invocation.leases.discard(lease)
            if lease.parent is not None:
                lease.parent.children.discard(lease)

    def _close_all(self) -> None:
        """Closes what is open under it."""
        self.timer.forget(self)
        while self.closers:
            try:
                close, _ = self.closers.popitem()
            except KeyError:  # another thread took the last one
                return
            close()

    def close_at_end(self, close: Callable[[], object]) -> None:
        """Has ``close`` called when the lease ends, at its deadline at the latest.

        Args:
            close: Idempotent; called from any thread, at once where the lease has ended
                meanwhile.
        """
        self.closers[close] = None
        # Read after it was added: an end in another thread closes it, or is seen here.
        if self.ended is not None:
            close()
        elif not self.watched:
            self.watched = True
            self.timer.watch(self)

    def check_alive(self, now: float) -> None:
        """Checks this lease and those it came from.

        Raises:
            LeaseEndedError: One of them is over; if its time is up, it is ended now.
        """
        step: Lease | None = self
        while step is not None:
            if step.ended is None and now >= step.expires:
                step.end(HandleExpiredError)
            if step.ended is not None:
                raise ended_error(step.ended)
            if step.uses_left is not None and step.uses_left <= 0:
                raise ended_error(HandleExhaustedError)
            step = step.parent

    def count_use(self) -> None:
        """Takes one use from this lease and from those it came from."""
        step: Lease | None = self
        while step is not None:
            if step.uses_left is not None:
                step.uses_left -= 1
            step = step.parent


def end_each(leases: set[Lease], why: type[LeaseEndedError] = HandleRevokedError) -> None:
    """Ends one after the other of a set that other threads take from, too."""
    while leases:
        try:
            lease = leases.pop()
        except KeyError:
            return
        lease.end(why)


def ended_error(why: type[LeaseEndedError]) -> LeaseEndedError:
    """The error that says how a lease ended."""
    return why(_ENDED[why], hint=_AGAIN)


_AGAIN: Final = (
    "Ask for a new handle by invoking the plugin again. An SDK's client that is kept longer "
    "sends by apex_creds.sdk; see docs/SDKS.md."
)
_ENDED: Final[dict[type[LeaseEndedError], str]] = {
    HandleExpiredError: "The credential handle has expired.",
    HandleRevokedError: "The credential handle is no longer valid: its lease has ended.",
    HandleExhaustedError: "The credential handle has been used as often as it may be.",
}


class ExpiryTimer:
    """Ends the leases under which something is open at their deadlines, in a thread.

    Whatever becomes of the event loop that a lease was made in, it ends at its deadline; one
    that ends in time costs no timer. The thread is there until ``close``, and reads the clock
    again after a suspend.
    """

    __slots__ = ("_at", "_changed", "_clock", "_closed", "_thread", "_watched")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._watched: dict[Lease, None] = {}
        self._changed = threading.Condition()
        self._at = math.inf
        self._closed = False
        self._thread = self._started()

    def watch(self, lease: Lease) -> None:
        """Has the lease ended at its deadline; from any thread."""
        self._watched[lease] = None
        if lease.expires < self._at:  # read after it was added
            with self._changed:
                if not (self._thread.is_alive() or self._closed):  # after a fork
                    self._thread = self._started()
                self._changed.notify()

    def forget(self, lease: Lease) -> None:
        """Nothing is open under it any more."""
        self._watched.pop(lease, None)

    def close(self) -> None:
        """Ends the thread; nothing is watched any more."""
        with self._changed:
            self._closed = True
            self._watched.clear()
            self._changed.notify()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="apex-creds-deadlines", daemon=True)
        with suppress(RuntimeError):  # the interpreter is ending; each use checks the time
            thread.start()
        return thread

    def _run(self) -> None:
        while self._wait():
            now = self._clock.monotonic()
            for lease in list(self._watched):
                if now >= lease.expires:
                    self.forget(lease)
                    with suppress(RuntimeError):  # of a loop with something open, just closed
                        lease.end(HandleExpiredError)

    def _wait(self) -> bool:
        """Returns at a deadline; False when this was closed.

        Where nothing is watched it still wakes once more by itself, so that the next leases
        need not wake it.
        """
        idle = False
        with self._changed:
            while not self._closed:
                self._at = math.inf  # a lease that is added from here on wakes this thread
                now = self._clock.monotonic()
                at = min((lease.expires for lease in list(self._watched)), default=math.inf)
                if at <= now:
                    return True
                rests = idle and at == math.inf
                self._at = math.inf if rests else min(at, now + LONGEST_SLEEP)
                woken = self._changed.wait(None if rests else self._at - now)
                idle = at == math.inf and not woken
            return False
