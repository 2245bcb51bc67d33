"""Consent requests that wait in the vault until another process answers them.

Guarantee: a request is answered once, before its end, and only as it was asked; what is over
is forgotten. A plugin can't fill the queue: it has room for a few requests of each.
"""

from __future__ import annotations

import contextlib
from typing import Final

import anyio
import msgspec

from apex_creds.auth.access_document import AccessState, HasAccess, PendingRequest
from apex_creds.errors import (
    AccessDeniedError,
    ApexCredsError,
    NotFoundError,
)
from apex_creds.model import completed, new_id
from apex_creds.policy.consent import DEADLINE, DENIED, ConsentAnswer, ConsentRequest

MAX_OPEN: Final = 128
MAX_OPEN_OF_ONE: Final = 16
PERIOD: Final = 0.2
"""Seconds between two comparisons of the document's change token."""

_replace = msgspec.structs.replace


class QueueConsent:
    """A ``ConsentProvider``: ``apex-creds requests``, ``approve`` and ``deny`` answer.

    Args:
        vault: Unsealed.
        deadline: Seconds after which a question can't be answered any more.
        period: Seconds between two checks for an answer.
    """

    def __init__(
        self, vault: HasAccess, *, deadline: float = DEADLINE, period: float = PERIOD
    ) -> None:
        self._access = vault.access
        self._deadline = deadline
        self._period = period

    async def ask(self, request: ConsentRequest) -> ConsentAnswer:
        """Posts the request and waits; it is withdrawn when the wait ends."""
        now = self._access.moment()
        made = PendingRequest(
            id=new_id()[:8],
            request=request,
            asked=now.wall,
            expires=now.wall + self._deadline,
            moment=now,
        )

        def post(state: AccessState, _: object) -> AccessState:
            kept = [item for item in state.requests if item.seconds_left(now) > 0]
            of_one = sum(item.request.plugin == request.plugin for item in kept)
            if len(kept) >= MAX_OPEN or of_one >= MAX_OPEN_OF_ONE:
                raise AccessDeniedError(
                    "Too many questions wait for an answer.", hint="See: apex-creds requests"
                )
            return _replace(state, requests=(*kept, made))

        def withdraw(state: AccessState, _: object) -> AccessState:
            kept = tuple(item for item in state.requests if item.id != made.id)
            unchanged = len(kept) == len(state.requests)
            return state if unchanged else _replace(state, requests=kept)

        try:
            await self._access.change(post)
            with anyio.move_on_after(self._deadline):
                while found := _find(await self._access.read(), made.id):
                    if found.answer is not None:
                        return found.answer
                    await anyio.sleep(self._period)
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(ApexCredsError):
                await self._access.change(withdraw)
        return DENIED


class Requests:
    """The questions that are open, for those who answer them."""

    def __init__(self, vault: HasAccess) -> None:
        self._access = vault.access

    async def open(self) -> list[PendingRequest]:
        """Those that wait for an answer, oldest first."""
        now = self._access.moment()
        state = await self._access.read()
        return [r for r in state.requests if r.answer is None and r.seconds_left(now) > 0]

    async def find(self, request_id: str) -> PendingRequest:
        """The open question of that id, or the only one whose id begins so.

        Raises:
            InvalidInputError: Several do.
            NotFoundError: There is none: it was answered, withdrawn, or is over.
        """
        items = {item.id: item for item in await self.open()}
        found = completed(request_id, items)
        if found is None:
            raise _no_such_request()
        return items[found]

    async def answer(self, request_id: str, answer: ConsentAnswer) -> PendingRequest:
        """Answers a question.

        Raises:
            NotFoundError: There is none of that id any more.
        """
        answered: PendingRequest | None = None

        def change(state: AccessState, _: object) -> AccessState:
            nonlocal answered
            found = _find(state, request_id)
            over = found is None or found.seconds_left(self._access.moment()) <= 0
            if found is None or over or found.answer is not None:
                raise _no_such_request()
            answered = _replace(found, answer=answer)
            after = tuple(answered if r is found else r for r in state.requests)
            return _replace(state, requests=after)

        await self._access.change(change)
        assert answered is not None
        return answered


def _find(state: AccessState, request_id: str) -> PendingRequest | None:
    return next((item for item in state.requests if item.id == request_id), None)


def _no_such_request() -> NotFoundError:
    return NotFoundError(
        "There is no such request; it may be over.", hint="See: apex-creds requests"
    )
