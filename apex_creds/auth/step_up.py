"""Step-up: what a credential may demand beyond a grant, a second factor or a signed challenge.

Guarantee: a gate returns only if what it demands was shown for this plugin and this
credential; no answer by the deadline, no client to ask, and any error are a refusal.
Nothing here is touched by credentials that demand nothing.

A second factor is required before a lease is made on a credential whose level is
``critical``, a signed challenge before each redeem of one that is marked for it.

At most ``PER_CLIENT`` uses of this process ask a client at a time, at most ``PER_PLUGIN`` of
them for one plugin; the rest wait in order. Of a plugin that waits, only those few stand in
the client's queue, so that it keeps no other from being served.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Final, Protocol

import anyio

from apex_creds.auth import challenge
from apex_creds.auth.access_document import Client
from apex_creds.auth.challenge import MAX_OPEN
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import MAX_WINDOW, Subject
from apex_creds.concurrency import Queues
from apex_creds.errors import ChallengeError, LockedOutError, SecondFactorError
from apex_creds.plain import check_can, check_is, plain_seconds
from apex_creds.telemetry import semconv, tracing
from apex_creds.telemetry.tracing import Step

Ask = Callable[[Subject, str], Awaitable[str | None]]
"""Asks the principal for a code; the text says why an earlier one was not accepted.

None: no answer. Cancelled at the deadline.
"""

_log = logging.getLogger(__name__)
DEADLINE: Final = 120.0
TRIES: Final = 3
_PERIOD: Final = 0.2
PER_CLIENT: Final = MAX_OPEN // 2
"""Other processes ask the same client."""
PER_PLUGIN: Final = PER_CLIENT // 2


class SecondFactorGate:
    """Demands a second factor for each lease, or once in a while.

    Args:
        factors: The vault's.
        ask: Asks for a code. None: the gate waits until a person runs ``apex-creds factor
            verify --plugin PLUGIN --credential NAME`` in another terminal.
        window: Seconds for which a factor counts, for the same principal, plugin and
            credential; 0: each lease takes a new one. At most a day.
        deadline: Seconds to wait for an answer.
    """

    def __init__(
        self,
        factors: Factors,
        *,
        ask: Ask | None = None,
        window: float = 0.0,
        deadline: float = DEADLINE,
    ) -> None:
        check_is(factors, Factors, what="factors")
        if ask is not None:
            check_can(ask, what="ask", hint="TerminalAsk() is such.")
        self._factors = factors
        self._ask = ask
        self._window = min(plain_seconds(window, what="window"), MAX_WINDOW) if window else 0.0
        self._deadline = plain_seconds(deadline, what="deadline")
        self._one_at_a_time: Queues[tuple[str, str, str]] = Queues()

    def second_factor_shown(self, subject: Subject) -> bool:
        """Whether one still counts, if memory is current; without waiting."""
        if not self._window:
            return False
        return self._factors.passed_now(subject, since=self._since())

    async def require_second_factor(
        self, subject: Subject, *, since: float | None = None
    ) -> None:
        """Returns when one was shown. Of calls for one subject at once, one asks (in a window).

        Args:
            subject: What it is needed for.
            since: From when on one counts that was shown elsewhere, Unix seconds; now.

        Raises:
            SecondFactorError: No factor is enrolled, no answer in time, or a wrong one.
            LockedOutError: Too many wrong ones.
        """
        began = self._factors.access.clock.time() if since is None else since
        one = (subject.principal, subject.plugin, subject.credential)
        with asking(subject.plugin, "second_factor"), anyio.move_on_after(self._deadline):
            async with self._one_at_a_time.held(one):
                if self._window and await self._factors.passed(subject, since=self._since()):
                    return
                await self._show(subject, began)
                return
        raise SecondFactorError(
            "No second factor was shown in time.", hint="Ask again when somebody is there."
        )

    async def _show(self, subject: Subject, began: float) -> None:
        if not await self._factors.enrolled(subject.principal):
            raise SecondFactorError(
                "A second factor is needed, and there is none.",
                hint="Enrol one: apex-creds factor enrol",
            )
        # One that another process showed; one that was shown before does not count.
        take = self._factors.passed if self._window else self._factors.claim
        while not await take(subject, since=began):
            if self._ask is not None:
                await self._prompt(subject, self._ask)
                return
            await anyio.sleep(_PERIOD)

    async def _prompt(self, subject: Subject, ask: Ask) -> None:
        why = ""
        for left in range(TRIES - 1, -1, -1):
            answer = await ask(subject, why)
            if answer is None:
                break
            try:
                # One that is for this lease alone must not be found by another.
                await self._factors.verify(answer, subject=subject, remember=self._window > 0)
            except LockedOutError:
                raise
            except SecondFactorError as error:
                why = error.message
                if not left:
                    raise
            else:
                return
        raise SecondFactorError("No second factor was given.", hint="Ask again.")

    def _since(self) -> float:
        return self._factors.access.clock.time() - self._window


class Responder(Protocol):
    """The client for which an invocation runs, as far as a gate sees it."""

    @property
    def client(self) -> str:
        """Its id or name."""

    async def answer(self, message: bytes) -> bytes:
        """Its answer to a challenge."""


class LocalResponder:
    """A client in this process.

    Args:
        key: Its key.
        vault_id: The vault that it trusts.
        allow: What it wants to sign.
    """

    def __init__(self, key: ClientKey, *, vault_id: str, allow: challenge.Allow) -> None:
        check_is(key, ClientKey, what="key")
        check_can(allow, what="allow")
        self._key = key
        self._vault_id = vault_id
        self._allow = allow

    @property
    def client(self) -> str:
        """The client's id."""
        return self._key.id

    async def answer(self, message: bytes) -> bytes:
        """See ``Responder``.

        Raises:
            ChallengeError: The client does not expect it.
        """
        return self._key.answer(message, vault_id=self._vault_id, allow=self._allow)


RESPONDER: Final[ContextVar[Responder | None]] = ContextVar(
    "apex_creds_responder", default=None
)
"""Named by the runtime; None while a plugin's code runs (see ``middleware.call``)."""


def current_responder() -> Responder | None:
    """The client that ``answering`` names here; None in a plugin's code."""
    return RESPONDER.get()


@contextmanager
def answering(responder: Responder) -> Iterator[None]:
    """``responder`` signs for the invocations that begin within it, to their end.

    In this task and those it starts; within an invocation it counts for nothing.
    """
    token = RESPONDER.set(responder)
    try:
        yield
    finally:
        RESPONDER.reset(token)


class ChallengeGate:
    """Demands a signed challenge for each redeem.

    Args:
        challenger: The vault's.
        deadline: Seconds to wait for an answer, and before that in the queue.
    """

    def __init__(self, challenger: Challenger, *, deadline: float = challenge.TTL) -> None:
        self._challenger = challenger
        self._deadline = deadline
        self._queue = ClientQueue()

    async def require_challenge(
        self, subject: Subject, responder: Responder | None = None
    ) -> Client:
        """Returns the client that signed; ``responder`` is that of ``answering`` by default.

        Raises:
            ChallengeError: There is no client to ask, no answer in time, or not the right
                one.
        """
        client = responder or RESPONDER.get()
        if client is None:
            raise no_responder()
        with asking(subject.plugin, "challenge"):
            async with AsyncExitStack() as held:
                # A client has few open challenges: uses at the same time wait for each other.
                with anyio.move_on_after(self._deadline) as waiting:
                    place = self._queue.place(client.client, subject.plugin)
                    await held.enter_async_context(place)
                if waiting.cancelled_caught:
                    raise ChallengeError(
                        "The client did not get to this challenge in time.",
                        hint="It is asked for too much at once; try again.",
                    )
                message = await self._challenger.issue(client.client, subject)
                answer = await self._ask(client, message, subject)
                return await self._challenger.redeem(answer, subject)

    async def _ask(self, client: Responder, message: bytes, subject: Subject) -> bytes:
        """The client's answer; a challenge that gets none is closed, and is in the log."""
        why = "did not answer in time"
        try:
            with anyio.move_on_after(self._deadline):
                answer: object = await client.answer(message)
                if isinstance(answer, bytes):
                    return answer
                why = "gave no answer"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a refusal
            _log.warning("Asking a client for its signature failed: %s", type(error).__name__)
            why = "could not be asked, or refused to sign"
        except BaseException:
            await self._withdraw(message, subject)
            raise
        await self._withdraw(message, subject)
        raise ChallengeError(f"The client {why}.", hint="See docs/CHALLENGE.md.")

    async def _withdraw(self, message: bytes, subject: Subject) -> None:
        with anyio.CancelScope(shield=True):
            await self._challenger.withdraw(message, subject)


def no_responder() -> ChallengeError:
    """The refusal of a use for which there is no client to ask."""
    return ChallengeError(
        "This credential takes a signed challenge, and no client is there to sign.",
        hint="Run the invocation within answering(…); see docs/CHALLENGE.md.",
    )


def asking(plugin: str, method: str) -> Step:
    """A wait for an answer, as a span."""
    return tracing.step(semconv.CONSENT, {semconv.PLUGIN: plugin, semconv.METHOD: method})


class ClientQueue:
    """Who may ask a client now, of the uses of one gate."""

    def __init__(self) -> None:
        self._plugins: Queues[tuple[str, str]] = Queues()
        self._clients: Queues[str] = Queues()

    @asynccontextmanager
    async def place(self, client: str, plugin: str) -> AsyncIterator[None]:
        """Waits until a client may be asked for a plugin; it may be within the block."""
        async with (
            self._plugins.held((client, plugin), places=PER_PLUGIN),
            self._clients.held(client, places=PER_CLIENT),
        ):
            yield
